"""``fgvc models``: names, options and help."""

from __future__ import annotations

from typing import Annotated

import typer


def models(
    names: Annotated[list[str] | None, typer.Argument(help="Models to cost, e.g. crasmra-resnet18.")] = None,
    input_px: Annotated[int, typer.Option(min=32, help="Side of the input for the cost, pixels.")] = 448,
) -> int:
    """List the models that can be trained, with their cost, and the embedded weights."""
    from fgvc_cli.commands import models as command

    return command.run(names or [], input_px=input_px)
