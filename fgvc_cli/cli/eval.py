"""``fgvc eval``: names, options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fgvc_cli.cli.options import BatchSize, Cascade, DataRoot, Device, Stages, Weights, Workers


def evaluate(
    weights: Weights = None,
    data: Annotated[str | None, typer.Option(help="Labelled folder or CSV. Default: the training's.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Known set instead.")] = None,
    data_root: DataRoot = None,
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    against: Annotated[
        str | None,
        typer.Option(help="Second model, as --weights: compared on the same photographs."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="New folder for tables (per class, confusion, predictions) and pictures."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what an earlier one wrote.")
    ] = False,
    batch_size: BatchSize = 32,
    workers: Workers = 2,
    device: Device = "auto",
    amp: Annotated[
        str,
        typer.Option(help="Precision: none (float32), bf16, or auto: bf16 on a GPU that has it, as predict."),
    ] = "auto",
    stages: Stages = None,
    cascade: Cascade = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="With --split val: fit the temperature, and write the model with it to this new file."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Measure a model on labelled photographs: fused and per branch, with intervals and the split named.

    Where a set has boxes (a boxes.csv with path,x1,y1,x2,y2; CUB, Dogs, Aircraft), where the model looked is
    compared with them.
    """
    from fgvc_cli.commands import eval as command

    return command.run(
        command.EvalRequest(
            weights=weights,
            data=data,
            dataset=dataset,
            data_root=data_root,
            split=split,
            batch_size=batch_size,
            workers=workers,
            device=device,
            amp=amp,
            as_json=as_json,
            stages=stages,
            cascade=cascade,
            against=against,
            out=out,
            overwrite=overwrite,
            calibrate=calibrate,
        )
    )
