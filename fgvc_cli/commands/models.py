"""fgvc models: what can be trained, and what is trained already."""

from __future__ import annotations

from typing import Literal

from rich.console import Console
from rich.table import Table

from fgvc_cli.errors import EXIT_OK


def run(names: list[str], *, input_px: int) -> int:
    """Print the registry, the embedded weights, and any other model names with their cost.

    Raises:
        FgvcError: an unknown name.
    """
    from fgvc_cli.engine.weights import read_manifest
    from fgvc_cli.models.registry import FAMILIES, NAMED

    console = Console(highlight=False)
    console.print(_registry_table(list(names or NAMED), input_px))
    if names:
        return EXIT_OK
    for prefix, family in FAMILIES.items():
        console.print(
            f"[bold]{prefix}-<timm name>[/]  {family.describe}. Cost: fgvc models {prefix}-{family.example}"
        )
    table = Table(title="Embedded weights: --weights NAME", title_justify="left")
    for column in ("name", "model", "classes", "knows", "test top-1 %"):
        table.add_column(column, overflow="fold")
    manifest = read_manifest()
    for entry in manifest.entries.values():
        name = f"{entry.name} (default)" if entry.name == manifest.default else entry.name
        top1 = f"{100 * entry.metrics['test']['top1']:.1f}"
        table.add_row(name, entry.model, str(entry.classes), entry.describes, top1)
    console.print(table)
    return EXIT_OK


def _registry_table(names: list[str], input_px: int) -> Table:
    from fgvc_cli.models.registry import count_gmac, count_parameters, create_model, resolve

    table = Table(title=f"Models: --model NAME (200 classes, {input_px} px)", title_justify="left")
    for column in ("name", "backbone", "input", "parameters", "GMAC", "paper"):
        justify: Literal["left", "right"] = "right" if column in ("parameters", "GMAC") else "left"
        table.add_column(column, overflow="fold", justify=justify)
    for name in names:
        resolved = resolve(name)
        model = create_model(name, 200)
        side = model.fixed_px or input_px
        parameters, gmac = count_parameters(model), count_gmac(model, side)
        table.add_row(
            name,
            resolved.backbone,
            f"{side} px",
            f"{parameters / 1e6:.1f} M",
            f"{gmac:.1f}",
            resolved.family.paper,
        )
    return table
