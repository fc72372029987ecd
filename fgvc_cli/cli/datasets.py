"""``fgvc datasets``: names, options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fgvc_cli.cli.options import DataRoot, guarded

datasets_app = typer.Typer(help="Labelled data sets: list, get, check, make. Alone, it lists them.")
make_app = typer.Typer(help="Make a data set.", no_args_is_help=True)
datasets_app.add_typer(make_app, name="make")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@datasets_app.callback(invoke_without_command=True)
def _alone(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_datasets()


@datasets_app.command("list")
@guarded
def list_datasets(data_root: DataRoot = None, as_json: Json = False) -> int:
    """List the known data sets: their counts, whether they are here and whole, and how to get them."""
    from fgvc_cli.commands import datasets as command

    return command.list_known(data_root, as_json=as_json)


@datasets_app.command("get")
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


@make_app.command("aviary")
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
