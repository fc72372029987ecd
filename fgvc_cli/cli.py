"""The command line: names, options and help. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fgvc_cli import __version__
from fgvc_cli.cli_options import (
    BatchSize,
    Cascade,
    DataRoot,
    Device,
    Quiet,
    Stages,
    Weights,
    Workers,
    guarded,
)
from fgvc_cli.cli_predict import merge, predict

app = typer.Typer(
    name="fgvc",
    help="Sort photographs into look-alike classes: predict, see where the model looked, train your own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
datasets_app = typer.Typer(help="Labelled data sets.", no_args_is_help=True)
app.add_typer(datasets_app, name="datasets")
datasets_make_app = typer.Typer(help="Make a data set.", no_args_is_help=True)
datasets_app.add_typer(datasets_make_app, name="make")


def _print_version(value: bool) -> None:
    if value:
        print(f"fgvc {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before any command; its help is the app's."""


@app.command()
@guarded
def train(
    model: Annotated[
        str, typer.Option(help="crasmra-r50, vitms-s16, or crasmra-, vitms-, timm- and a timm name.")
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Class-per-folder folder (train/ val/ test/ optional), or CSV: path,label[,split]."
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Known set instead: grocery, cub, cars, dogs, aircraft.")
    ] = None,
    data_root: DataRoot = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/<model>-<data>.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Default: 200; vitms: 30.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default: 20; vitms: 16.")] = None,
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
    amp: Annotated[str | None, typer.Option(help="none or bf16.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that decode. Default: 2.")] = None,
    device: Device = "auto",
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Any other setting, e.g. options.delta=0.8, options.channel_attention=cbam, "
            "optim.lr_cram=0.01, loss.gamma=0.5, augment.crop=resized. Repeatable.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a run folder in use.")] = False,
) -> int:
    """Train a model on labelled photographs; the best epoch on validation is kept, then tested once."""
    from fgvc_cli.commands import train as command

    flags = {
        "model": model,
        "data": data,
        "dataset": dataset,
        "data_root": data_root,
        "epochs": epochs,
        "batch_size": batch_size,
        "input_px": input_px,
        "seed": seed,
        "init": init,
        "pretrained": pretrained,
        "stages": stages,
        "amp": amp,
        "workers": workers,
    }
    return command.run(flags, sets=sets or [], out=out, device=device, overwrite=overwrite)


@app.command("eval")
@guarded
def evaluate(
    weights: Weights = None,
    data: Annotated[str | None, typer.Option(help="Labelled folder or CSV. Default: the training's.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Known set instead.")] = None,
    data_root: DataRoot = None,
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    batch_size: BatchSize = 32,
    workers: Workers = 2,
    device: Device = "auto",
    stages: Stages = None,
    cascade: Cascade = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Measure a model on labelled photographs: fused and per branch, with the split named."""
    from fgvc_cli.commands import eval as command

    return command.run(
        weights=weights,
        data=data,
        dataset=dataset,
        data_root=data_root,
        split=split,
        batch_size=batch_size,
        workers=workers,
        device=device,
        as_json=as_json,
        stages=stages,
        cascade=cascade,
    )


app.command()(guarded(predict))
app.command()(guarded(merge))


@app.command()
@guarded
def explain(
    image: Annotated[Path, typer.Argument(help="One photograph.")],
    weights: Weights = None,
    out: Annotated[Path | None, typer.Option(help="PNG to write. Default: <photo>.explain.png here.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes to print; the first ten are drawn as bars.")] = 5,
    device: Device = "auto",
    stages: Stages = None,
    cascade: Cascade = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the picture.")] = False,
    quiet: Quiet = False,
) -> int:
    """Show where the model looked in one photograph: its box, the maps of its stages, its best guesses."""
    from fgvc_cli.commands import explain as command

    return command.run(
        image,
        weights=weights,
        out=out,
        top_k=top_k,
        device=device,
        stages=stages,
        cascade=cascade,
        overwrite=overwrite,
        quiet=quiet,
    )


@app.command()
@guarded
def models(
    names: Annotated[list[str] | None, typer.Argument(help="Models to cost, e.g. crasmra-resnet18.")] = None,
    input_px: Annotated[int, typer.Option(min=32, help="Side of the input for the cost, pixels.")] = 448,
) -> int:
    """List the models that can be trained, with their cost, and the embedded weights."""
    from fgvc_cli.commands import models as command

    return command.run(names or [], input_px=input_px)


@datasets_app.command("list")
@guarded
def list_datasets() -> int:
    """List the known data sets, their counts, and where they are to be had."""
    from fgvc_cli.commands import datasets as command

    return command.list_known()


@datasets_make_app.command("aviary")
@guarded
def make_aviary(
    out: Annotated[Path, typer.Argument(help="New folder.")],
    species: Annotated[int, typer.Option(help="Number of species, 2 to 12.")] = 12,
    train: Annotated[int, typer.Option(help="Pictures per species to train on.")] = 40,
    val: Annotated[int, typer.Option(help="Pictures per species to choose the epoch.")] = 10,
    test: Annotated[int, typer.Option(help="Pictures per species to test on.")] = 20,
    size_px: Annotated[int, typer.Option(help="Side of each picture, pixels.")] = 256,
    seed: Annotated[int, typer.Option(help="Same seed, same pictures.")] = 0,
) -> int:
    """Render birds that differ only in their parts: class folders, with every box in boxes.csv."""
    from fgvc_cli.commands import datasets as command

    return command.make_aviary(
        out, species=species, train=train, val=val, test=test, size_px=size_px, seed=seed
    )


def main() -> None:
    """Entry point of the ``fgvc`` script."""
    app()


if __name__ == "__main__":
    main()
