"""``fgvc index``: names, options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fgvc_cli.cli.options import (
    BatchSize,
    BoxCategory,
    BoxConf,
    Boxes,
    BoxMargin,
    DataRoot,
    Device,
    Quiet,
    Weights,
    Workers,
)
from fgvc_cli.errors import EXIT_OK, EXIT_SOME_FAILED


def index(
    weights: Weights = None,
    data: Annotated[str | None, typer.Option(help="Labelled folder or CSV. Default: the training's.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Known set instead.")] = None,
    data_root: DataRoot = None,
    boxes: Boxes = None,
    box_conf: BoxConf = None,
    box_margin: BoxMargin = None,
    box_category: BoxCategory = None,
    split: Annotated[
        Literal["train", "val", "test", "all"] | None,
        typer.Option(help="train, val, test or all. Default: train; all of a set without one."),
    ] = None,
    add: Annotated[
        str | None,
        typer.Option(
            help="Add the images of this labelled folder or CSV, of known and of new classes, to the index."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write, or with --add to extend. Default: model.index.h5 beside model.safetensors, "
            "NAME.index.h5 here for an embedded model."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index that is there.")] = False,
    batch_size: BatchSize = 32,
    workers: Workers = 2,
    device: Device = "auto",
    quiet: Quiet = False,
) -> int:
    """Store the embeddings of the training images, to compare with: fgvc explain --nearest, predict --index.

    --add brings classes that the model was not trained on, from a few images each and without training;
    fgvc predict --index tells them from the known ones. An image that is in the index already is replaced.
    """
    given = dict(locals())
    from fgvc_cli.cli.progress import ConsoleMessages, spare_cores
    from fgvc_cli.retrieval.index_file import IndexOptions

    messages = ConsoleMessages(quiet=quiet)
    options = IndexOptions(**given, messages=messages)
    spare_cores()
    from fgvc_cli.retrieval.index_file import index as run

    indexed = run.run(options)
    failed = messages.summary(indexed.statuses, [indexed.path])
    return EXIT_SOME_FAILED if failed else EXIT_OK
