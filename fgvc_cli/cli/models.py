"""``fgvc models`` and ``fgvc recipes``: what can be trained, and with which settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from fgvc_cli.errors import EXIT_OK, EXIT_USAGE, FgvcError, nearest
from fgvc_cli.models.catalog import COST_CLASSES, FAMILY_TEXTS, IN_WORDS, NAMED, Cost, read_costs

if TYPE_CHECKING:
    from rich.table import Table


def models(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Models to compute the cost of, e.g. crasmra-resnet18. Default: the list."),
    ] = None,
    input_px: Annotated[
        int | None,
        typer.Option(min=32, help="Side of the input to compute the cost for, pixels. Default: 448."),
    ] = None,
) -> int:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from fgvc_cli.engine.weights import read_manifest

    console = Console(highlight=False)
    if names:
        console.print(_cost_table(_compute(names, input_px or 448)))
        return EXIT_OK
    console.print(IN_WORDS, end="\n\n")
    console.print(_cost_table(_compute(NAMED, input_px) if input_px else read_costs()))
    for prefix, family in FAMILY_TEXTS.items():
        console.print(f"[bold]{prefix}-<timm name>[/]  {family.describe}")
        console.print(f"    cost: fgvc models {prefix}-{family.example}")
    console.print()
    title = "Embedded models: --weights NAME"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True)
    for column in ("name", "model", "classes", "knows", "test top-1 %"):
        table.add_column(column, overflow="fold")
    manifest = read_manifest()
    for entry in manifest.entries.values():
        name = f"{entry.name} (default)" if entry.name == manifest.default else entry.name
        top1 = f"{100 * entry.metrics['test']['top1']:.1f}"
        table.add_row(name, entry.model, str(entry.classes), entry.describes, top1)
    console.print(table)
    console.print(
        "Of the Hugging Face hub: --weights hf-hub:owner/name; fgvc push RUN owner/name puts a model there.",
        soft_wrap=True,
    )
    return EXIT_OK


models.__doc__ = f"""List the models that can be trained, with their cost, and the embedded weights.

{IN_WORDS} timm- is any plain network of timm, without boxes, to compare both with.
"""


def _compute(names: Iterable[str], input_px: int) -> list[Cost]:
    """Build each model.

    Raises:
        FgvcError: an unknown name.
    """
    from fgvc_cli.models.registry import compute_cost

    return [compute_cost(name, input_px) for name in names]


def _cost_table(costs: Iterable[Cost]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"Models: --model NAME ({COST_CLASSES} classes)"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True)
    for column in ("name", "backbone", "input", "parameters", "GMAC"):
        table.add_column(
            column, overflow="fold", justify="right" if column in ("parameters", "GMAC") else "left"
        )
    for cost in costs:
        table.add_row(
            cost.name,
            cost.backbone,
            f"{cost.input_px} px",
            f"{cost.parameters / 1e6:.1f} M",
            f"{cost.gmac:.1f}",
        )
    return table


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
