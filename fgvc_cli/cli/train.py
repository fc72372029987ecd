"""``fgvc train``: options, help, and what it prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fgvc_cli.cli.options import (
    BoxCategory,
    BoxConf,
    Boxes,
    BoxMargin,
    DataRoot,
    Device,
    Stages,
    Taxonomy,
)
from fgvc_cli.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, FgvcError, Interrupted

if TYPE_CHECKING:
    from fgvc_cli.engine.options import AblateOptions, TrainOptions


def train(
    model: Annotated[
        str | None,
        typer.Option(
            help="crasmra-r50, vitms-s16, or crasmra-, vitms-, timm- and a timm name. Left out: one that "
            "images and device suit, from embedded weights; it says which and why."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Class-per-folder folder (train/ val/ test/ optional), folder of WebDataset .tar, or CSV: "
            "path,label[,split]; "
            "path,labels with a|b for several labels per image, or none; with x1,y1,x2,y2 a line is a box."
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Known set instead, e.g. cub; fgvc datasets lists them.")
    ] = None,
    data_root: DataRoot = None,
    boxes: Boxes = None,
    box_conf: BoxConf = None,
    box_margin: BoxMargin = None,
    box_category: BoxCategory = None,
    split_by: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="Keep a camera, specimen or burst in one split: folder (CLASS/CAMERA/), column=NAME of the "
            "label file, or minutes=5 (folder and EXIF time).",
        ),
    ] = None,
    taxonomy: Taxonomy = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/<model>-<data>.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Settings to start from: strong (the default), crasmra-paper, vitms-paper, probe, ...; "
            "fgvc recipes describes them. paper: that of the model, the default of --ablate."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Default: 30; crasmra-paper: 200.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default: 32; crasmra-paper: 20.")] = None,
    input_px: Annotated[
        int | None, typer.Option(help="Side of the model's input, pixels. Default: 448, as the paper.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Default: 0.")] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Start from these weights, named as for --weights. Without --model: go on with that model. "
            "Its classifiers of classes that the data have are kept."
        ),
    ] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option(
            "--pretrained/--no-pretrained",
            help="ImageNet weights from timm (a download, the default), or random ones.",
        ),
    ] = None,
    stages: Stages = None,
    amp: Annotated[str | None, typer.Option(help="Precision: auto, none (float32), bf16 or fp16.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that decode. Default: all CPUs.")] = None,
    device: Device = "auto",
    devices: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes that train together, one per CUDA device or several on the CPU, each with "
            "batches of --batch-size; under torchrun as many as it started.",
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Any other setting, e.g. options.delta=0.8, options.channel_attention=cbam, "
            "optim.lr_cram=0.01, loss.gamma=0.5, augment.crop=resized. Repeatable.",
        ),
    ] = None,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print every setting as JSON, and train nothing.")
    ] = False,
    ablate: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Train each row of a table, with several seeds: table3, delta, gamma, necks, head-pool, "
            "smram-map; stages (vitms). The same command resumes.",
        ),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Of --ablate. Default: 0,1,2.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a run folder in use.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Resume an interrupted run folder with its own settings; only --device, --workers and "
            "where the data are may be given.",
        ),
    ] = None,
) -> int:
    """Train a model on labelled images; the best epoch on validation is kept, then tested once."""
    given = dict(locals())
    from fgvc_cli.cli.progress import ConsoleMessages
    from fgvc_cli.engine.options import AblateOptions, TrainOptions

    if resume is not None:
        ours = {"--show-config": show_config, "--ablate": ablate, "--seeds": seeds}
        for name in (name for name, value in ours.items() if value):
            raise FgvcError(
                f"--resume goes on by the run's own settings, got {name}.",
                "Leave it out; --device, --workers, --data and --data-root may be given.",
                EXIT_USAGE,
            )
    if seeds and not ablate:
        raise FgvcError("--seeds goes with --ablate.", "One training takes --seed.", EXIT_USAGE)
    del given["show_config"], given["ablate"], given["seeds"]
    given |= {"set": given.pop("sets"), "messages": ConsoleMessages()}
    if ablate:
        return run_table(AblateOptions(**given, ablate=ablate, seeds=seeds), show_config=show_config)
    return run(TrainOptions(**given), show_config=show_config)


def run(options: TrainOptions, *, show_config: bool = False) -> int:
    """Train, or only print the settings; print the result."""
    from fgvc_cli.engine.distributed import EndedByAnother, find_world
    from fgvc_cli.engine.train import plain_values, resolved_config, train, with_default_model

    if show_config:
        options = with_default_model(options, options.speaker)
        config = resolved_config(plain_values(options, find_world().size))
        print(json.dumps(config.model_dump(), indent=2))
        return EXIT_OK
    try:
        trained = train.run(options)
    except Interrupted:
        return EXIT_INTERRUPTED
    except EndedByAnother:
        return EXIT_ERROR
    if not trained.told:
        print(trained.text)
    return EXIT_OK


def run_table(options: AblateOptions, *, show_config: bool = False) -> int:
    """Train a table, or only print the settings of its trainings; print the table."""
    from fgvc_cli.engine.ablate import PICTURE, SCORES, SUMMARY, ablate, ablation_configs, summary_text

    if show_config:
        configs = {name: config.model_dump() for name, config in ablation_configs(options).items()}
        print(json.dumps(configs, indent=2))
        return EXIT_OK
    try:
        ablated = ablate.run(options)
    except Interrupted:
        return EXIT_INTERRUPTED
    if ablated.lines:
        print(summary_text(ablated.lines, ablated.reference))
        # A row that lacks seeds has had less chance of a bad one.
        lines = [line for line in ablated.lines if line.split == "val"]
        best = max(lines, key=lambda line: (line.seeds, line.top1))
        than = f"; than {ablated.reference}: {best.verdict}" if best.verdict else ""
        print(f"\nhighest mean on val, by which to choose: {best.variant}{than}")
        print(f"{SCORES}, {SUMMARY} and {PICTURE} are in {ablated.folder}")
    for name, why in ablated.failures.items():
        print(f"fgvc: {name} failed: {why}", file=sys.stderr)
    if ablated.failures:
        print("fgvc: The same command again tries these once more.", file=sys.stderr)
    return EXIT_ERROR if ablated.failures else EXIT_OK
