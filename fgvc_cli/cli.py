"""The command line: names, options and help. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fgvc_cli import __version__
from fgvc_cli.errors import EXIT_INTERRUPTED, FgvcError

app = typer.Typer(
    name="fgvc",
    help="Sort photographs into look-alike classes: predict, see where the model looked, train your own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
datasets_app = typer.Typer(help="Labelled data sets.", no_args_is_help=True)
app.add_typer(datasets_app, name="datasets")

Weights = Annotated[
    str | None,
    typer.Option(help="model.safetensors of a training, or an embedded model (fgvc models lists them)."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Workers = Annotated[int, typer.Option(min=0, help="Parallel readers of photographs.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Photographs per forward pass.")]
DataRoot = Annotated[str | None, typer.Option(help="Folder that holds known sets. Default: $FGVC_DATA.")]


def _guarded(command: Callable[..., int]) -> Callable[..., None]:
    """A user error becomes one line on stderr and its exit code; Ctrl-C exits 130."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            code = command(*args, **kwargs)
        except FgvcError as error:
            print(f"fgvc: {error}", file=sys.stderr)
            code = error.exit_code
        except KeyboardInterrupt:
            print("fgvc: interrupted.", file=sys.stderr)
            code = EXIT_INTERRUPTED
        raise typer.Exit(code)

    return wrapper


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
    pass


@app.command()
@_guarded
def train(
    model: Annotated[str, typer.Option(help="crasmra-r50, crasmra-<timm name>, timm-<timm name>, ...")],
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
    epochs: Annotated[int | None, typer.Option(help="Default: 200, as the paper.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default: 20, as the paper.")] = None,
    input_px: Annotated[
        int | None, typer.Option(help="Side of the model's input, pixels. Default: 448, as the paper.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Default: 0.")] = None,
    init: Annotated[str | None, typer.Option(help="Start the backbone from this safetensors file.")] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option("--pretrained/--no-pretrained", help="Start from timm's ImageNet weights (a download)."),
    ] = None,
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
        "amp": amp,
        "workers": workers,
    }
    return command.run(flags, sets=sets or [], out=out, device=device, overwrite=overwrite)


@app.command("eval")
@_guarded
def evaluate(
    weights: Weights = None,
    data: Annotated[str | None, typer.Option(help="Labelled folder or CSV. Default: the training's.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Known set instead.")] = None,
    data_root: DataRoot = None,
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    batch_size: BatchSize = 32,
    workers: Workers = 2,
    device: Device = "auto",
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
    )


def main() -> None:
    """Entry point of the ``fgvc`` script."""
    app()


if __name__ == "__main__":
    main()
