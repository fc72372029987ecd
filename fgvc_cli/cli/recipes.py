"""``fgvc recipes``: names, options and help."""

from __future__ import annotations

from typing import Annotated

import typer


def recipes(
    name: Annotated[str | None, typer.Argument(help="One of them, to see where it comes from.")] = None,
) -> int:
    """List the recipes of fgvc train, or say where one comes from and what it is expected to give."""
    from fgvc_cli.commands import recipes as command

    return command.run(name)
