"""``fgvc select``: names, options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fgvc_cli.cli.options import Quiet
from fgvc_cli.errors import EXIT_OK


def select(
    predictions: Annotated[
        Path,
        typer.Argument(
            help="What fgvc predict wrote; .h5 or .parquet with --embeddings, for rows that differ."
        ),
    ],
    count: Annotated[int, typer.Option(min=1, help="Rows to pick.")] = 200,
    out: Annotated[
        Path | None, typer.Option(help="CSV to write, for fgvc report --only. Default: stdout.")
    ] = None,
    doubt: Annotated[
        Literal["margin", "entropy", "novelty"],
        typer.Option(
            help="margin: the two best classes are close; entropy: many classes are likely; novelty: unlike "
            "the training images."
        ),
    ] = "margin",
    pool: Annotated[
        int,
        typer.Option(
            min=1, help="Choose among POOL times COUNT most doubtful rows those that differ; 1: doubt alone."
        ),
    ] = 2,
    reviewed: Annotated[
        Path | None,
        typer.Option(help="Labels that are known, such as reviewed.csv: these rows are left out."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the CSV.")] = False,
    quiet: Quiet = False,
) -> int:
    """Pick what to look at next: rows that the model doubts and that differ from each other."""
    from fgvc_cli.cli.progress import ConsoleMessages
    from fgvc_cli.report.select import SelectOptions
    from fgvc_cli.report.select import select as run

    run.run(
        SelectOptions(
            predictions,
            count=count,
            out=out,
            doubt=doubt,
            pool=pool,
            reviewed=reviewed,
            overwrite=overwrite,
            messages=ConsoleMessages(quiet=quiet),
        )
    )
    return EXIT_OK
