"""``fgvc export`` and ``fgvc push``: options, help, and what they print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fgvc_cli.cli.options import Quiet, Stages, Weights
from fgvc_cli.errors import EXIT_OK

if TYPE_CHECKING:
    from fgvc_cli.engine.export import Exported


def export(
    out: Annotated[Path, typer.Option(help="File to write: .onnx, or .pt2 for torch.export.load.")],
    weights: Weights = None,
    check: Annotated[
        str | None,
        typer.Option(help="Images to compare the graph with the model on. Default: generated ones."),
    ] = None,
    pixels: Annotated[
        Literal["uint8", "float"], typer.Option(help="Input: uint8 (0 to 255) or float (0 to 1).")
    ] = "uint8",
    stages: Stages = None,
    tolerance: Annotated[
        float, typer.Option(min=0, max=1, help="Largest difference in a probability that passes.")
    ] = 1e-3,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise an .onnx to int8: smaller, and faster on a CPU.")
    ] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="With --int8: images like those to come, some hundred."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> int:
    """Write a model as one graph: pixels in, calibrated probabilities, object box and heat map out."""
    given = dict(locals())
    from fgvc_cli.cli.progress import ConsoleMessages
    from fgvc_cli.engine.options import ExportOptions

    options = ExportOptions(**given, messages=ConsoleMessages())
    from fgvc_cli.engine.export import export as run

    print(_report(run.run(options)))
    return EXIT_OK


def _report(exported: Exported) -> str:
    """What was written, for people."""
    about, difference = exported.metadata, exported.difference
    lines = [f"{exported.path}: {about['model']} as {exported.format}, {exported.bytes / 1e6:.1f} MB"]
    lines.append(f"  input    {about['input']}")
    lines += [f"  {name:20s} {text}" for name, text in about["outputs"].items()]
    lines.append(
        f"  checked against the model on {difference.images} images: probabilities within "
        f"{difference.probs:.1e} (tolerance {exported.tolerance:g}), boxes within {difference.box_px:.2f} px "
        f"(tolerance {exported.tolerance_px:.2f}), heat within {difference.heat:.1e}, "
        f"{difference.labels} other labels"
    )
    if int8 := exported.int8:
        lines.append(
            f"  in int8 (ranges of {exported.calibrated_on} images), on {int8.images} images: "
            f"{1 - int8.labels / int8.images:.1%} equal labels, probabilities within {int8.probs:.2f}, "
            f"boxes within {int8.box_px:.0f} px"
        )
    return "\n".join(lines)


def push(
    weights: Annotated[str, typer.Argument(metavar="RUN", help="Folder or model.safetensors of a training.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Its name on the hub.")],
    license: Annotated[
        str,
        typer.Option(help="Of the weights, as the hub writes it: apache-2.0, mit, cc-by-4.0, other."),
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Only those who are allowed to may see it.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Upload nothing: write the folder to --out.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="With --dry-run: new folder.")] = None,
    quiet: Quiet = False,
) -> int:
    """Upload a model to the Hugging Face hub, with a card; others use it as --weights hf-hub:owner/name.

    The card tells data, split sizes, figures with their intervals, classes, limits and the training command.
    Log in once with hf auth login, or set HF_TOKEN.
    """
    given = dict(locals())
    from fgvc_cli.cli.progress import ConsoleMessages
    from fgvc_cli.engine.hub import push as run

    print(run(**given, messages=ConsoleMessages(quiet=quiet)).url)
    return EXIT_OK
