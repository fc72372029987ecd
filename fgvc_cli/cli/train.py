"""``fgvc train``: names, options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fgvc_cli.cli.options import DataRoot, Device, Stages


def train(
    model: Annotated[
        str | None, typer.Option(help="crasmra-r50, vitms-s16, or crasmra-, vitms-, timm- and a timm name.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Class-per-folder folder (train/ val/ test/ optional), or CSV: path,label[,split]; "
            "path,labels with a|b for several labels per photograph, or none."
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Known set instead, e.g. cub; fgvc datasets lists them.")
    ] = None,
    data_root: DataRoot = None,
    split_by: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="Keep a camera, specimen or burst in one split: folder (CLASS/CAMERA/), column=NAME of the "
            "label file, or minutes=5 (folder and EXIF time).",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/<model>-<data>.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Settings to start from: crasmra-paper, vitms-paper, strong or probe; fgvc recipes "
            "describes them. Default: that of the model's paper."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Default: 200; vitms and strong: 30.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default: 20; vitms: 16; strong: 32.")] = None,
    input_px: Annotated[
        int | None, typer.Option(help="Side of the model's input, pixels. Default: 448, as the paper.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Default: 0.")] = None,
    init: Annotated[
        str | None, typer.Option(help="Start from this safetensors file; its classifier is not taken.")
    ] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option(
            "--pretrained/--no-pretrained",
            help="ImageNet weights from timm (a download, the default), or random ones.",
        ),
    ] = None,
    stages: Stages = None,
    amp: Annotated[str | None, typer.Option(help="none, bf16 or fp16.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that decode. Default: 2.")] = None,
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
            "smram-map; stages (vitms). The same command again goes on where it was cut.",
        ),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Of --ablate. Default: 0,1,2.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a run folder in use.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Go on with an interrupted run folder, by its own settings; only --device, --workers and "
            "where the data lie may be given.",
        ),
    ] = None,
) -> int:
    """Train a model on labelled photographs; the best epoch on validation is kept, then tested once."""
    from fgvc_cli.commands import train as command

    flags = {
        "model": model,
        "recipe": recipe,
        "data": data,
        "dataset": dataset,
        "data_root": data_root,
        "split_by": split_by,
        "epochs": epochs,
        "batch_size": batch_size,
        "input_px": input_px,
        "seed": seed,
        "init": init,
        "pretrained": pretrained,
        "stages": stages,
        "amp": amp,
        "workers": workers,
        "devices": devices,
        "show_config": show_config or None,
        "ablate": ablate,
        "seeds": seeds,
    }
    if resume is not None:
        return command.resume(resume, flags, sets=sets or [], out=out, device=device, overwrite=overwrite)
    if ablate is not None or seeds is not None:
        from fgvc_cli.commands import ablate as ablation

        return ablation.run(flags, sets=sets or [], out=out, device=device, overwrite=overwrite)
    return command.run(flags, sets=sets or [], out=out, device=device, overwrite=overwrite)
