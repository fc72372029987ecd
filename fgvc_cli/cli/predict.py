"""``fgvc predict`` and ``fgvc merge``: names, options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fgvc_cli.cli.options import (
    Cascade,
    Crops,
    CropsDir,
    Device,
    Embeddings,
    Logits,
    Maps,
    MapsDir,
    Outs,
    PerFile,
    Quiet,
    Stages,
    Weights,
    Workers,
)


def _print_formats(wanted: bool) -> None:
    if wanted:
        from fgvc_cli.sources.stored import EXTENSIONS

        typer.echo(" ".join(sorted(EXTENSIONS)))
        raise typer.Exit()


def predict(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Folders (searched recursively), files, globs, .tar and .zip archives, URLs like s3://..., "
            "@LIST for a list in a file, or - for one on stdin."
        ),
    ],
    weights: Weights = None,
    out: Outs = None,
    top_k: Annotated[int, typer.Option(min=1, help="Predictions per photograph.")] = 5,
    batch_size: Annotated[
        str | None,
        typer.Option(help="Photographs per forward pass, or auto. Default: 16, or as the run was begun."),
    ] = None,
    workers: Workers = 2,
    device: Device = "auto",
    devices: Annotated[
        int | None, typer.Option(min=1, help="Processes, one per CUDA device or several on the CPU.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only rows I, I+N, I+2N, ...; when all are done: fgvc merge."),
    ] = None,
    stages: Stages = None,
    cascade: Cascade = None,
    maps: Maps = False,
    crops: Crops = False,
    embeddings: Embeddings = False,
    logits: Logits = False,
    crops_dir: CropsDir = None,
    maps_dir: MapsDir = None,
    min_prob: Annotated[
        float | None, typer.Option(min=0, max=1, help="Rows less sure than this get the status unsure.")
    ] = None,
    amp: Annotated[str, typer.Option(help="Precision: auto, none (float32) or bf16.")] = "auto",
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the model.")] = False,
    fast_decode: Annotated[
        bool, typer.Option("--fast-decode", help="Decode large JPEGs at a fraction of their size.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace output files that exist.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard what an earlier run left in OUT.partial.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Read again only what failed; all else stays as it is.")
    ] = False,
    null: Annotated[bool, typer.Option("-0", "--null", help="Lists end their entries with NUL.")] = False,
    all_files: Annotated[
        bool, typer.Option("--all-files", help="Try files of any name in folders and archives, by content.")
    ] = False,
    nested: Annotated[
        bool, typer.Option("--nested", help="Look into archives that lie in folders and archives, one level.")
    ] = False,
    raw: Annotated[
        str | None,
        typer.Option(help="Camera RAW: preview or develop. Default: as the model was trained, preview."),
    ] = None,
    frames: Annotated[
        str | None,
        typer.Option(
            metavar="all|N", help="A row per frame or page of a file, or of its first N: path#0, ..."
        ),
    ] = None,
    every: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Read videos (.mp4 .mov .avi), a row per 1s, 500ms, 2min, ..."),
    ] = None,
    per_file: PerFile = None,
    formats: Annotated[
        bool,
        typer.Option(
            "--formats", callback=_print_formats, is_eager=True, help="Print the endings that make an image."
        ),
    ] = False,
    quiet: Quiet = False,
) -> int:
    """Classify photographs: one row each, with the object's box; a file that cannot be read says why.

    Killed or interrupted, the same command goes on where it was. Exit code 0: every row is ok; 3: finished,
    but some photographs failed; 130: interrupted.
    """
    from fgvc_cli.commands import predict as command
    from fgvc_cli.commands.predict_options import PredictOptions, parse_batch_size

    options = PredictOptions(
        sources=sources,
        weights=weights,
        out=out or (),
        top_k=top_k,
        batch_size=None if batch_size is None else parse_batch_size(batch_size),
        workers=workers,
        device=device,
        devices=devices,
        shard=shard,
        stages=stages,
        cascade=cascade,
        maps=maps,
        crops=crops,
        embeddings=embeddings,
        logits=logits,
        crops_dir=crops_dir,
        maps_dir=maps_dir,
        min_prob=min_prob,
        amp=amp,
        compile=compile,
        fast_decode=fast_decode,
        overwrite=overwrite,
        restart=restart,
        retry_failed=retry_failed,
        null=null,
        all_files=all_files,
        nested=nested,
        raw=raw,
        frames=frames,
        every=every,
        per_file=per_file,
        quiet=quiet,
    )
    return command.run(options)


def merge(
    out: Annotated[list[Path], typer.Argument(help="Outputs, the first as it was named to predict --shard.")],
    maps: Maps = False,
    crops: Crops = False,
    embeddings: Embeddings = False,
    logits: Logits = False,
    crops_dir: CropsDir = None,
    maps_dir: MapsDir = None,
    per_file: PerFile = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace output files that exist.")] = False,
    quiet: Quiet = False,
) -> int:
    """Put the complete shards of fgvc predict --shard I/N together, in the order of the photographs."""
    from fgvc_cli.commands import merge as command
    from fgvc_cli.commands.predict_options import PredictOptions

    options = PredictOptions(
        sources=(),
        out=out,
        maps=maps,
        crops=crops,
        embeddings=embeddings,
        logits=logits,
        crops_dir=crops_dir,
        maps_dir=maps_dir,
        per_file=per_file,
        overwrite=overwrite,
        quiet=quiet,
    )
    return command.run(options)
