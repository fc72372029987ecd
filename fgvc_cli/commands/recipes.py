"""fgvc recipes: what training can start from."""

from __future__ import annotations

from fgvc_cli.engine.recipes import RECIPES
from fgvc_cli.errors import EXIT_OK, EXIT_USAGE, FgvcError, nearest


def run(name: str | None) -> int:
    """Print each recipe's first line, or all that is known of one.

    Raises:
        FgvcError: an unknown name, with the nearest known ones.
    """
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
