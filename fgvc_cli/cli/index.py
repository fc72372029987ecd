"""``fgvc index``: names, options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fgvc_cli.cli.options import BatchSize, DataRoot, Device, Quiet, Weights, Workers


def index(
    weights: Weights = None,
    data: Annotated[str | None, typer.Option(help="Labelled folder or CSV. Default: the training's.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Known set instead.")] = None,
    data_root: DataRoot = None,
    split: Annotated[
        str | None, typer.Option(help="train, val, test or all. Default: train; all of a set without one.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write. Default: model.index.h5 beside model.safetensors, NAME.index.h5 here for an "
            "embedded model."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index that is there.")] = False,
    batch_size: BatchSize = 32,
    workers: Workers = 2,
    device: Device = "auto",
    quiet: Quiet = False,
) -> int:
    """Store the embeddings of the training images, for fgvc explain --nearest to compare with."""
    from fgvc_cli.commands import index as command

    return command.run(
        command.IndexRequest(
            weights=weights,
            data=data,
            dataset=dataset,
            data_root=data_root,
            split=split,
            out=out,
            overwrite=overwrite,
            batch_size=batch_size,
            workers=workers,
            device=device,
            quiet=quiet,
        )
    )
