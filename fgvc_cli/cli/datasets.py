"""``fgvc datasets``: names, options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fgvc_cli.cli.help import HelpCommand, HelpGroup
from fgvc_cli.cli.options import DataRoot, Workers, guarded

datasets_app = typer.Typer(
    cls=HelpGroup, help="Labelled data sets: list, get, check, make. Alone, it lists them."
)
make_app = typer.Typer(cls=HelpGroup, help="Make a data set.", no_args_is_help=True)
datasets_app.add_typer(make_app, name="make")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@datasets_app.callback(invoke_without_command=True)
def _alone(context: typer.Context, data_root: DataRoot = None, as_json: Json = False) -> None:
    """Options of the list; in front of a command they are refused, so that none is passed over in silence."""
    if context.invoked_subcommand is None:
        list_datasets(data_root, as_json)
    given = [name for name, value in (("--data-root", data_root), ("--json", as_json)) if value]
    if given:
        raise typer.BadParameter(
            f"Give {' and '.join(given)} behind the command: fgvc datasets {context.invoked_subcommand} ..."
        )


@datasets_app.command("list", cls=HelpCommand)
@guarded
def list_datasets(data_root: DataRoot = None, as_json: Json = False) -> int:
    """List the known data sets: their counts, whether they are here and whole, and how to get them."""
    from fgvc_cli.commands import datasets as command

    return command.list_known(data_root, as_json=as_json)


@datasets_app.command("get", cls=HelpCommand)
@guarded
def get_dataset(
    name: Annotated[str, typer.Argument(help="A known set, e.g. cub.")],
    data_root: DataRoot = None,
) -> int:
    """Download a known data set from its official address, check it, and put it below the data root.

    Cut or killed, the same command goes on where it was.
    """
    from fgvc_cli.commands import datasets_get as command

    return command.run(name, data_root)


@datasets_app.command("check", cls=HelpCommand)
@guarded
def check_dataset(
    source: Annotated[str, typer.Argument(help="Class-per-folder folder, CSV, or known set.")],
    data_root: DataRoot = None,
    out: Annotated[Path | None, typer.Option(help="CSV for all findings, one line per photograph.")] = None,
    as_json: Json = False,
    max_bits: Annotated[
        int,
        typer.Option(
            min=0, max=64, help="Bits of 64 by which near duplicates may differ: 0 is strict, 8 the default."
        ),
    ] = 8,
    min_images: Annotated[
        int, typer.Option(min=0, help="Classes with fewer photographs to train on are named.")
    ] = 5,
    workers: Workers = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the CSV.")] = False,
) -> int:
    """Find unreadable files, duplicates, photographs in two splits, contradicting labels, tiny classes.

    Exit code 0: nothing was found; 3: something was.
    """
    from fgvc_cli.commands import datasets_check as command

    return command.run(
        source,
        data_root,
        out=out,
        as_json=as_json,
        workers=workers,
        max_bits=max_bits,
        min_images=min_images,
        overwrite=overwrite,
    )


@make_app.command("aviary", cls=HelpCommand)
@guarded
def make_aviary(
    out: Annotated[Path, typer.Argument(help="New folder.")],
    species: Annotated[int, typer.Option(help="Number of species, 2 to 12.")] = 12,
    train: Annotated[int, typer.Option(help="Pictures per species to train on.")] = 40,
    val: Annotated[int, typer.Option(help="Pictures per species to choose the epoch.")] = 10,
    test: Annotated[int, typer.Option(help="Pictures per species to test on.")] = 20,
    size_px: Annotated[int, typer.Option(help="Side of each picture, pixels.")] = 256,
    seed: Annotated[int, typer.Option(help="Same seed, same pictures.")] = 0,
) -> int:
    """Render birds that differ only in their parts: class folders, with every box in boxes.csv."""
    from fgvc_cli.commands import datasets as command

    return command.make_aviary(
        out, species=species, train=train, val=val, test=test, size_px=size_px, seed=seed
    )
