"""``fgvc explain``: names, options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fgvc_cli.cli.options import Cascade, Device, Quiet, Stages, Weights


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
