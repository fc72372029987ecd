"""``fgvc recipes``: options, help, and what it prints."""

from __future__ import annotations

from typing import Annotated

import typer

from fgvc_cli.errors import EXIT_OK, EXIT_USAGE, FgvcError, nearest


def recipes(
    name: Annotated[str | None, typer.Argument(help="One of them, to see where it comes from.")] = None,
) -> int:
    """List the recipes of fgvc train, or say where one comes from and what it is expected to give."""
    from fgvc_cli.engine.options import RECIPES

    if name is None:
        for recipe in RECIPES.values():
            families = ", ".join(f"{family}-" for family in recipe.families)
            print(f"{recipe.name:<14} {families:<23} {recipe.text.splitlines()[0]}")
        print(
            "\nfgvc recipes NAME says where it comes from. Its settings, as a run would have them:\n"
            "fgvc train --model MODEL --recipe NAME --show-config"
        )
        return EXIT_OK
    if name not in RECIPES:
        near = nearest(name, RECIPES)
        raise FgvcError(
            f"No recipe is called {name!r}; expected {', '.join(RECIPES)}.",
            f"Nearest: {', '.join(near)}." if near else None,
            EXIT_USAGE,
        )
    print(RECIPES[name].text)
    return EXIT_OK
