"""``fgvc report`` and ``fgvc select``: names, options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fgvc_cli.cli.options import Quiet, Workers
from fgvc_cli.errors import EXIT_OK


def report(
    predictions: Annotated[
        Path,
        typer.Argument(
            help="What fgvc predict wrote: .h5 (with --maps --crops, also those), .parquet, .csv or .jsonl."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="HTML to write. Default: <name>.html here.")] = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="The images: folder or archive that was predicted. Default: where the .h5 says, "
            "or the paths do, and crops from the .h5 for those that are not there."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="What they show: a CSV with path,label (or path,labels), or a folder per class."),
    ] = None,
    thumbs: Annotated[
        int, typer.Option(min=0, help="Rows with a picture, at most; about 11 kB each at 240 px.")
    ] = 2000,
    thumb_px: Annotated[int, typer.Option(min=32, max=1024, help="Longest side of a picture, pixels.")] = 240,
    review: Annotated[
        bool,
        typer.Option(
            "--review",
            help="Make it a desk: right, wrong, another class, boxes, by keyboard; saves reviewed.csv.",
        ),
    ] = False,
    serve: Annotated[
        bool,
        typer.Option(
            "--serve",
            help="Show the desk on this machine only, until Ctrl-C; it writes reviewed.csv beside the page.",
        ),
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of --serve on 127.0.0.1. Default: a free one.")
    ] = 0,
    only: Annotated[
        Path | None,
        typer.Option(help="CSV with a column path: only these rows, in its order, as fgvc select writes it."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page. Default: the file's name.")] = None,
    workers: Workers = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page.")] = False,
    quiet: Quiet = False,
) -> int:
    """Make one HTML page of predictions, to look through, filter and hand on; it needs no network."""
    given = dict(locals())
    from fgvc_cli.cli.progress import ConsoleMessages
    from fgvc_cli.report.page import report as write

    write(**given, messages=ConsoleMessages(quiet=quiet))
    return EXIT_OK


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
    given = dict(locals())
    from fgvc_cli.cli.progress import ConsoleMessages
    from fgvc_cli.report.select import select as run

    run(**given, messages=ConsoleMessages(quiet=quiet))
    return EXIT_OK
