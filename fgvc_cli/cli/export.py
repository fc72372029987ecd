"""``fgvc export``: names, options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fgvc_cli.cli.options import Stages, Weights


def export(
    out: Annotated[Path, typer.Option(help="File to write: .onnx, or .pt2 for torch.export.load.")],
    weights: Weights = None,
    check: Annotated[
        str | None,
        typer.Option(help="Images to compare the graph with the model on. Default: generated ones."),
    ] = None,
    pixels: Annotated[str, typer.Option(help="Input: uint8 (0 to 255) or float (0 to 1).")] = "uint8",
    stages: Stages = None,
    tolerance: Annotated[
        float, typer.Option(min=0, max=1, help="Largest difference in a probability that passes.")
    ] = 1e-3,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> int:
    """Write a model as one graph: pixels in, calibrated probabilities, object box and heat map out."""
    from fgvc_cli.commands import export as command

    return command.run(
        weights=weights,
        out=out,
        check=check,
        pixels=pixels,
        stages=stages,
        tolerance=tolerance,
        overwrite=overwrite,
    )
