"""``fgvc eval``: names, options and help."""

from __future__ import annotations

from typing import Annotated

import typer

from fgvc_cli.cli.options import BatchSize, Cascade, DataRoot, Device, Stages, Weights, Workers


def evaluate(
    weights: Weights = None,
    data: Annotated[str | None, typer.Option(help="Labelled folder or CSV. Default: the training's.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Known set instead.")] = None,
    data_root: DataRoot = None,
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    batch_size: BatchSize = 32,
    workers: Workers = 2,
    device: Device = "auto",
    stages: Stages = None,
    cascade: Cascade = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Measure a model on labelled photographs: fused and per branch, with the split named."""
    from fgvc_cli.commands import eval as command

    return command.run(
        weights=weights,
        data=data,
        dataset=dataset,
        data_root=data_root,
        split=split,
        batch_size=batch_size,
        workers=workers,
        device=device,
        as_json=as_json,
        stages=stages,
        cascade=cascade,
    )
