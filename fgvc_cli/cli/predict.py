"""``fgvc predict`` and ``fgvc merge``: options, help, how they end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fgvc_cli.cli.options import (
    AllWeights,
    BoxCategory,
    BoxConf,
    Boxes,
    BoxMargin,
    Cascade,
    Crops,
    CropsDir,
    Device,
    Embeddings,
    Index,
    IndexBy,
    Logits,
    Maps,
    MapsDir,
    Outs,
    PerFile,
    Quiet,
    RuntimeChoice,
    Stages,
    Taxonomy,
    Tta,
    Workers,
)
from fgvc_cli.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_USAGE, FgvcError

if TYPE_CHECKING:
    from fgvc_cli.run.predict import PredictOptions


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
    weights: AllWeights = None,
    index: Index = None,
    by: IndexBy = None,
    boxes: Boxes = None,
    box_conf: BoxConf = None,
    box_margin: BoxMargin = None,
    box_category: BoxCategory = None,
    out: Outs = None,
    top_k: Annotated[int, typer.Option(min=1, help="Predictions per image.")] = 5,
    batch_size: Annotated[
        str | None,
        typer.Option(help="Images per forward pass, or auto. Default: 16, or as the run was begun."),
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
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Predict on a Ray cluster: auto, or HOST:PORT of its head."),
    ] = None,
    ray_gpus_per_worker: Annotated[
        float | None, typer.Option(min=0, help="GPUs of each worker. Default: 1 if the cluster has any.")
    ] = None,
    ray_cpus_per_worker: Annotated[int, typer.Option(min=1, help="CPUs of each worker.")] = 1,
    stages: Stages = None,
    cascade: Cascade = None,
    tta: Tta = None,
    taxonomy: Taxonomy = None,
    rollup: Annotated[
        float | None,
        typer.Option(
            help="Columns rank, rank_label, rank_prob: the finest node of the taxonomy that is so probable, "
            "e.g. 0.9."
        ),
    ] = None,
    exif: Annotated[
        bool, typer.Option("--exif", help="Columns date, latitude, longitude, camera, from the metadata.")
    ] = False,
    group: Annotated[
        str | None,
        typer.Option(
            help="minutes=5: images of a folder and camera with no longer gap get one answer; columns group, "
            "group_label, group_prob, and those of --exif."
        ),
    ] = None,
    maps: Maps = False,
    crops: Crops = False,
    embeddings: Embeddings = False,
    logits: Logits = False,
    crops_dir: CropsDir = None,
    maps_dir: MapsDir = None,
    min_prob: Annotated[
        float | None, typer.Option(min=0, max=1, help="Rows less sure than this get the status unsure.")
    ] = None,
    thresholds: Annotated[
        Path | None,
        typer.Option(help="CSV of fgvc eval --thresholds: the same for each class, where it is more."),
    ] = None,
    unknown: Annotated[
        str | None,
        typer.Option(
            help="Status unknown for images unlike the training's: on, off, or how unlike (1 is on). "
            "Default: on where the model can tell."
        ),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="List of the classes that can occur here, one per line.")
    ] = None,
    amp: Annotated[
        Literal["auto", "none", "bf16"], typer.Option(help="Precision: auto, none (float32) or bf16.")
    ] = "auto",
    runtime: RuntimeChoice = "auto",
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
    accept_list: Annotated[
        bool,
        typer.Option("--accept-list", help="Resume though images came or went behind the completed rows."),
    ] = False,
    null: Annotated[bool, typer.Option("-0", "--null", help="Lists end their entries with NUL.")] = False,
    all_files: Annotated[
        bool, typer.Option("--all-files", help="Try files of any name in folders and archives, by content.")
    ] = False,
    nested: Annotated[
        bool, typer.Option("--nested", help="Look into archives that lie in folders and archives, one level.")
    ] = False,
    raw: Annotated[
        Literal["preview", "develop"] | None,
        typer.Option(help="Camera RAW: preview or develop. Default: as the model was trained, preview."),
    ] = None,
    frames: Annotated[
        str | None,
        typer.Option(help="A row per frame or page of a file, or of its first N: path#0, ..."),
    ] = None,
    every: Annotated[
        str | None,
        typer.Option(help="Read videos (.mp4 .mov .avi), a row per 1s, 500ms, 2min, ..."),
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
    """Classify images: one row each, with the object's box; a file that cannot be read says why.

    With --index, the classes are those of an index of images (fgvc index), to which fgvc index --add brings
    new ones without training: the class whose mean is nearest, or with --by neighbours that of the nearest
    image.

    Interrupted runs resume with the same command. Exit code 0: every row is ok; 3: finished,
    but some images failed; 130: interrupted.
    """
    given = dict(locals())
    from fgvc_cli.run.predict import PredictOptions

    del given["formats"]
    given["batch_size"] = None if batch_size is None else parse_batch_size(batch_size)
    given["classes"] = None if classes is None else str(classes)
    return run(PredictOptions(**given))


def parse_batch_size(text: str) -> int | Literal["auto"]:
    """``auto`` or a number of images.

    Raises:
        FgvcError: anything else.
    """
    if text == "auto":
        return "auto"
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise FgvcError(f"--batch-size got {text!r}, expected a number from 1 or auto.", None, EXIT_USAGE)


def run(options: PredictOptions) -> int:
    """Predict; returns the exit code: 0, 3 where a row failed, 130 after Ctrl-C, 1 where stdout has gone.

    Raises:
        FgvcError: as ``predict_folder``.
    """
    from dataclasses import replace

    from fgvc_cli.cli.progress import ConsoleMessages, spare_cores

    spare_cores()
    from fgvc_cli.formats.csv_rows import StdoutSink, TerminalSink
    from fgvc_cli.run.predict import predict_folder

    messages = options.messages or ConsoleMessages(quiet=options.quiet)
    try:
        with second_ctrl_c_ends():
            sink = TerminalSink() if sys.stdout.isatty() else StdoutSink()
            return predict_folder.run(replace(options, messages=messages, on_rows=sink)).exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _abandon_stdout()
        return EXIT_ERROR


@contextlib.contextmanager
def second_ctrl_c_ends() -> Iterator[None]:
    """The first Ctrl-C raises KeyboardInterrupt, so that finished rows are committed; the second ends the
    process at once, which costs the rows that were not. A SIGINT that is ignored stays so."""
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not in_main or before in (signal.SIG_IGN, None):
        yield
        return

    def at_once(*_: object) -> None:
        os._exit(EXIT_INTERRUPTED)

    def first(*_: object) -> None:
        signal.signal(signal.SIGINT, at_once)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _abandon_stdout() -> None:
    """Whoever read stdout, ``head`` for example, has gone; Python would flush it once more at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def merge(
    out: Annotated[
        list[str],
        typer.Argument(
            help="The output as it was named to predict --shard; the run knows the others, with maps, crops "
            "and folders. Several, or options: these in place of what the run was begun for."
        ),
    ],
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
    """Put the complete shards of fgvc predict --shard I/N together, in the order of the images."""
    given = dict(locals())
    from fgvc_cli.cli.progress import ConsoleMessages
    from fgvc_cli.run.merge import merge as run

    return run(**given, messages=ConsoleMessages(quiet=quiet)).exit_code
