"""The command line: names, options and help. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from fgvc_cli import __version__
from fgvc_cli.cli.datasets import datasets_app
from fgvc_cli.cli.eval import evaluate
from fgvc_cli.cli.explain import explain
from fgvc_cli.cli.export import export, push
from fgvc_cli.cli.help import HelpCommand, OneLineGroup
from fgvc_cli.cli.index import index
from fgvc_cli.cli.models import models, recipes
from fgvc_cli.cli.options import guarded
from fgvc_cli.cli.predict import merge, predict
from fgvc_cli.cli.report import report, select
from fgvc_cli.cli.train import train
from fgvc_cli.models.catalog import IN_WORDS

HELP = f"""{IN_WORDS}

Predict, see where the model looked, train your own. timm- is any plain network of timm, without boxes, to
compare both with; fgvc models lists what each costs. Progress and messages go to stderr, data to stdout or to
--out.
"""

app = typer.Typer(
    name="fgvc",
    cls=OneLineGroup,
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(value: bool) -> None:
    if value:
        print(f"fgvc {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before any command; its help is the app's."""


for command in (
    train,
    evaluate,
    predict,
    merge,
    index,
    explain,
    report,
    select,
    export,
    push,
    models,
    recipes,
):
    app.command("eval" if command is evaluate else command.__name__, cls=HelpCommand)(guarded(command))
app.add_typer(datasets_app, name="datasets")


def main() -> None:
    """Entry point of the ``fgvc`` script."""
    app(prog_name="fgvc")
