"""``fgvc predict``: images -> one row each, into outputs, or handed on as they come.

Rows go to completed parts in ``OUT.partial`` and from there, all at once, into the outputs; the same command
resumes where another one ended.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from functools import cached_property, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import Field

from fgvc_cli.command import BoxOptions, Messages, Several, command, options
from fgvc_cli.config import usable_cpus
from fgvc_cli.data.taxonomy import read_taxonomy
from fgvc_cli.engine.graph import Graph, check_runtime, is_graph, refuse
from fgvc_cli.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_USAGE, FgvcError
from fgvc_cli.formats.outputs import Outputs
from fgvc_cli.formats.rows import BOX_COLUMNS, Block, Origin, Row, RunInfo
from fgvc_cli.run.folder import (
    WHOLE,
    RunFolder,
    ShardOf,
    ShardWalk,
    Task,
    parse_shard,
    partial_folder,
    placed_outputs,
    recorded_setting,
    run_identity,
    sweep_removed,
)
from fgvc_cli.run.merge import GROUP_COLUMNS, group_minutes, merge_run, merge_shards
from fgvc_cli.run.parts import PartWriter, write_part
from fgvc_cli.run.progress import (
    MaybePath,
    Paths,
    PipeProgress,
    PredictProgress,
    RunResult,
    Sources,
    run_processes,
)
from fgvc_cli.run.retry import finished_setting, repaired_outputs, repaired_part, take_apart
from fgvc_cli.sources.boxes import BoxFile, BoxMatch, each_box, open_boxes
from fgvc_cli.sources.find import STDIN, Found, Images, check_named, find_images
from fgvc_cli.sources.frames import FrameChoice, parse_frames
from fgvc_cli.store import check_store, is_url, store_failures

if TYPE_CHECKING:
    from fgvc_cli.engine.checkpoint import Checkpoint
    from fgvc_cli.predict.predictor import Predictor

BATCH_SIZE = 16

Note = Callable[[str], None]
"""Gets a line for people."""


@options
class PredictOptions(BoxOptions):
    """What ``fgvc predict`` is asked for."""

    sources: Sources
    """Folders (searched recursively), files, globs, .tar and .zip archives, URLs like s3://..., @LIST for a
    list in a file, or - for one on stdin."""
    weights: Several = ()
    """Checkpoint, folder of a training, or an embedded model; none: the default one. Of several with the same
    classes rows tell the mean of the probabilities; boxes and maps are the first one's."""
    out: Paths = ()
    """Files to write: .csv, .jsonl, .h5 or .parquet; for other programs .md.json, .coco.json and .ls.json;
    the first names OUT.partial, where an interrupted run waits.
    None: rows are handed on as they come."""
    top_k: Annotated[int, Field(ge=1)] = 5
    """Predictions per image."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """Images per forward pass; None: what the run was begun with, else ``BATCH_SIZE``."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Parallel readers of images."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    devices: Annotated[int, Field(ge=1)] | None = None
    """Processes, one per CUDA device or several on the CPU."""
    shard: str | None = None
    """``i/n``: only rows i, i + n, i + 2 n, ...; when all are complete: ``merge``."""
    ray: str | None = None
    """``auto`` or the address of a Ray cluster, whose nodes predict."""
    ray_gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """None: 1 where the cluster has GPUs, else 0."""
    ray_cpus_per_worker: Annotated[int, Field(ge=1)] = 1
    """CPUs that each worker takes, and threads of its model."""
    stages: str | None = None
    """Of a multi-stage ViT: main, main+object or all; None: as trained."""
    cascade: Annotated[float, Field(ge=0, le=1)] | None = None
    """Multi-stage ViT: images this sure after a stage take no further one."""
    tta: Literal["flip"] | None = None
    """``flip``: the mean over the image and its mirror image."""
    taxonomy: str | None = None
    """CSV of what the classes hang on: ``class``, then ranks from coarse to fine; None: the model's."""
    rollup: Annotated[float, Field(gt=0, le=1)] | None = None
    """Columns ``rank``, ``rank_label`` and ``rank_prob``: the finest node of the tree that is this
    probable."""
    exif: bool = False
    """Columns ``date``, ``latitude``, ``longitude`` and ``camera``."""
    group: str | None = None
    """``minutes=5``: images of a folder and camera with no longer gap are one group with one answer; columns
    ``group``, ``group_label`` and ``group_prob``, and those of ``exif``."""
    maps: bool = False
    """Store attention maps in the .h5 or .parquet."""
    crops: bool = False
    """Store crops of the objects there, as JPEG."""
    embeddings: bool = False
    """Store embeddings there."""
    logits: bool = False
    """Store the scores of all classes there."""
    crops_dir: Path | None = None
    """New folder for a JPEG of each object."""
    maps_dir: Path | None = None
    """New folder for a 16-bit PNG of each attention map."""
    per_file: MaybePath = None
    """CSV with one row per file where rows are frames (``frames``, ``every``)."""
    min_prob: Annotated[float, Field(ge=0, le=1)] | None = None
    """Rows less sure than this get the status ``unsure``."""
    thresholds: Path | dict[str, Annotated[float, Field(ge=0)]] | None = None
    """Class -> the same for rows of that class, or the CSV that ``fgvc eval --thresholds`` writes; the larger
    counts."""
    unknown: Literal["on", "off"] | Annotated[float, Field(gt=0)] | None = None
    """Rows unlike the training images get the status ``unknown``: on, off, or how unlike (1 is on); None: on
    where the model can tell."""
    classes: str | tuple[str, ...] | None = None
    """Which classes can occur: their names, or a file with one per line; None: all."""
    amp: Literal["auto", "none", "bf16"] = "auto"
    """Precision: none is float32."""
    runtime: Literal["auto", "onnxruntime", "openvino"] = "auto"
    """Of an exported graph (.onnx); auto: OpenVINO on a CPU where it is installed, else onnxruntime."""
    compile: bool = False
    """``torch.compile`` the model."""
    fast_decode: bool = False
    """Decode large JPEGs at a fraction of their size."""
    overwrite: bool = False
    """Replace output files that exist."""
    restart: bool = False
    """Discard what an earlier run left in OUT.partial."""
    retry_failed: bool = False
    """Read again only what failed; all else stays as it is."""
    accept_list: bool = False
    """Resume with the list of images as it is now, where it has changed behind the completed rows."""
    null: bool = False
    """Lists end their entries with NUL."""
    all_files: bool = False
    """Try files of any name in folders and archives, by content."""
    nested: bool = False
    """Look into archives that lie in folders and archives, one level."""
    raw: Literal["preview", "develop"] | None = None
    """Of camera RAW; None: as the model was trained."""
    frames: str | None = None
    """``all`` or a number: a row per frame or page of a file, or of its first so many."""
    every: str | None = None
    """Read videos, a row per 1s, 500ms, 2min, ..."""
    index: Path | None = None
    """File of ``fgvc index``: its classes, known and added ones, in place of the model's."""
    by: Literal["neighbours", "means"] | None = None
    """What stands for a class of ``index``: its nearest image or the mean of all; None: ``means``."""
    quiet: bool = False
    """Say nothing but errors."""
    messages: Messages | None = None
    """Who says what happens; None: lines on stderr."""
    on_rows: Any = None
    """Without ``out``: a sink that gets the rows as they come, such as ``StdoutSink``; None: they are in
    the result."""

    def __post_init__(self) -> None:
        """Raise FgvcError where options exclude each other."""
        super().__post_init__()
        if not self.out:
            files = ["shard", "devices", "ray", "restart", "retry_failed", "accept_list", "crops_dir"]
            files += ["maps_dir", "per_file", "group"]
            for name in [*files, "maps", "crops", "embeddings", "logits"]:
                if getattr(self, name) not in (None, False):
                    message = f"--{name.replace('_', '-')} needs an output file."
                    raise FgvcError(message, "Add --out FILE.h5", EXIT_USAGE)
        pieces = "--devices" if self.devices else "--shard" if self.shard else None
        if self.devices and self.shard:
            raise FgvcError("--devices splits the work itself.", "Leave --shard away.", EXIT_USAGE)
        if self.retry_failed and pieces:
            raise FgvcError("--retry-failed works in one piece.", f"Leave {pieces} away.", EXIT_USAGE)
        if self.retry_failed and self.restart:
            raise FgvcError("--restart discards what --retry-failed repairs.", "Choose one.", EXIT_USAGE)
        if self.ray and pieces:
            raise FgvcError("--ray shares the work out itself.", f"Leave {pieces} away.", EXIT_USAGE)
        if self.by and self.index is None:
            raise FgvcError("--by says how an index is used.", "Add --index FILE", EXIT_USAGE)
        if self.devices and STDIN in self.sources:
            message = "--devices cannot share the list on stdin among its processes."
            raise FgvcError(message, "Write the list to a file: fgvc predict @list.txt", EXIT_USAGE)
        if self.taxonomy and self.rollup is None:
            message = "--taxonomy is for --rollup: without it no column comes of it."
            raise FgvcError(message, "Add --rollup 0.9", EXIT_USAGE)
        if self.boxes and self.per_file:
            message = "--per-file is for frames; with --boxes a row is a box, and their mean says nothing."
            raise FgvcError(message, "Leave one of them away.", EXIT_USAGE)
        if self.boxes and self.fast_decode:
            message = "--fast-decode makes images smaller, and --boxes needs all pixels of a box."
            raise FgvcError(message, "Leave one of them away.", EXIT_USAGE)
        _ = self.frame_choice
        if self.group is not None:
            group_minutes(self.group)

    @cached_property
    def box_file(self) -> BoxFile | None:
        """The boxes to look at; None: whole images.

        Raises:
            FgvcError: see ``read_boxes``.
        """
        return open_boxes(self)

    @property
    def frame_choice(self) -> FrameChoice | None:
        """What ``frames`` and ``every`` come to.

        Raises:
            FgvcError: a usage error.
        """
        return parse_frames(self.frames, self.every)

    @property
    def outputs(self) -> Outputs:
        """Where the rows go; only with ``out``."""
        return Outputs.of(self.out, self)


@command(PredictOptions)
def predict_folder(options: PredictOptions) -> RunResult:
    """Classify the images of folders, lists or archives: one row each, whatever the files hold.

        result = fgvc_cli.predict_folder("photos", weights="groceries", out="predictions.csv")
        print(result.images, result.failed, result.outputs)

    The options are those of ``fgvc predict``. Interrupted, the same call resumes where it was. Without
    ``out``, the rows are in the result: ``result.rows``.

    Returns:
        What the run came to: counts by status, where the rows are, and the exit code of the command line.

    Raises:
        FgvcError: an output that cannot be written (found out first), sources without an image, weights or a
            device that are not there, another run in OUT.partial.
        KeyboardInterrupt: after what is finished has been completed.
    """
    messages = options.messages or Messages(quiet=options.quiet)
    progress = PredictProgress(messages, live=bool(options.out) or not _shows_rows(options))
    try:
        if not options.out:
            return _hand_on(options, progress)
        with store_failures(options.out[0]):
            return _to_files(options, progress)
    except KeyboardInterrupt:
        out = options.out[0] if options.out else None
        progress.interrupted(out, kept=out is not None and partial_folder(out).is_dir())
        raise


def _shows_rows(options: PredictOptions) -> bool:
    """Whether rows go to the terminal that a live line would be redrawn on."""
    return bool(getattr(options.on_rows, "on_terminal", False))


class _Collected:
    """A sink into memory."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def __enter__(self) -> _Collected:
        return self

    def __exit__(self, *exc: object) -> None:
        """The rows stay."""

    def begin(self, info: Any) -> None:
        """Remember what a block needs to tell its rows."""
        self._info = info

    def write(self, block: Block) -> None:
        """Take the next rows."""
        self.rows += block.rows(self._info)


def _hand_on(options: PredictOptions, progress: PredictProgress) -> RunResult:
    pick_shard(options, os.environ)  # which refuses torchrun without --out
    images = open_images(options, progress)
    predictor = open_predictor(options, progress.note)
    kept = _Collected()
    with options.on_rows or kept as sink, progress, closing(predictor.blocks(images)) as blocks:
        sink.begin(predictor.info)
        for block in blocks:
            sink.write(block)
            progress.on_block(block)
    progress.on_clipped(predictor.clipped)
    progress.summary(())
    return progress.result((), kept.rows)


def _to_files(options: PredictOptions, progress: PredictProgress) -> RunResult:
    shard = pick_shard(options, os.environ)
    outputs, root = options.outputs, partial_folder(options.out[0])
    for out in outputs.tables():
        check_store(out)
    sweep_removed(root)
    _check_outputs(options, root)
    if options.devices:
        return _run_devices(options, progress)
    if options.ray:
        return _run_ray(options, progress)
    images = open_images(options, progress, shard)
    predictor = open_predictor(options, progress.note, shard)
    with open_folder(options, predictor.info, shard) as folder:
        with progress:
            complete = partial(complete_here, predictor)
            complete_rows(options, folder, images, predictor.info, complete, progress)
        if shard.count == 1:
            merge_run(root, outputs, overwrite=options.overwrite)
    if shard.count == 1:
        progress.summary(outputs.paths())
        return progress.result(outputs.paths())
    progress.summary(())
    again = f"fgvc merge {options.out[0]}{' --overwrite' * options.overwrite}"
    progress.note(f"Shard {shard.index}/{shard.count} is complete. When all are: {again}")
    return progress.result(())


def _check_outputs(options: PredictOptions, root: Path) -> None:
    """Raise FgvcError unless all outputs can be written, replacing only what this run may replace.

    What a restart discards gives no leave to replace anything. What ``--retry-failed`` repairs may be
    replaced as soon as its rows have been read: ``take_apart`` looks into it.
    """
    outputs = options.outputs
    allowed = set() if options.restart else placed_outputs(root)
    if options.retry_failed:
        allowed |= repaired_outputs(outputs, root, allowed)
    outputs.check(overwrite=options.overwrite, allowed=allowed)


def _run_devices(options: PredictOptions, progress: PredictProgress) -> RunResult:
    """Predict in ``options.devices`` processes and merge; resumable as a whole, like each of its shards.

    Raises:
        FgvcError: what a process was told, or that it died; devices that are not there.
    """
    from fgvc_cli.engine.device import pick_devices

    count = options.devices or 1
    if graph := _graph(options):
        if options.device not in ("auto", "cpu"):
            raise refuse(f"--devices with --device {options.device}", graph)
        devices = ["cpu"] * count
    else:
        devices = pick_devices(options.device, count)
    here = dataclasses.replace(options, messages=None, on_rows=None)  # which stay in this process
    progress.what = "box" if options.boxes else "image"
    arguments = [(here, i, count, device) for i, device in enumerate(devices)]
    with progress:
        run_processes(_complete_shard, arguments, progress)
    merge_shards(partial_folder(options.out[0]), options.outputs, overwrite=options.overwrite)
    progress.summary(options.outputs.paths())
    return progress.result(options.outputs.paths())


def _run_ray(options: PredictOptions, progress: PredictProgress) -> RunResult:
    """Predict on a Ray cluster and merge here.

    Raises:
        FgvcError: as ``WorkerPool`` and ``RayCluster``, and all that a run in one process raises.
    """
    from fgvc_cli.run.cluster import RayCluster, WorkerPool

    assert options.ray
    images = open_images(options, progress)
    outs = tuple(out if is_url(str(out)) else Path(os.path.abspath(out)) for out in options.out)
    given = dataclasses.asdict(dataclasses.replace(options, out=outs, messages=None, on_rows=None))
    given["working_folder"] = os.getcwd()
    with (
        RayCluster(options.ray, options.ray_gpus_per_worker, options.ray_cpus_per_worker) as cluster,
        WorkerPool(cluster, make_predictor, given, progress.note) as pool,
    ):
        info = pool.open()
        with open_folder(options, info, WHOLE) as folder:
            with progress:
                complete_rows(options, folder, images, info, pool.complete, progress)
            merge_run(folder.root, options.outputs, overwrite=options.overwrite)
    progress.summary(options.outputs.paths())
    return progress.result(options.outputs.paths())


def make_predictor(given: dict[str, Any], note: Note) -> Predictor:
    """In a worker of a cluster: the model, as the options of the run say.

    Args:
        given: the options, and the working folder of the run.

    Raises:
        FgvcError: as ``open_predictor``; sources that this node does not see.
    """
    import torch

    folder = given["working_folder"]
    options = PredictOptions(**{k: v for k, v in given.items() if k != "working_folder"})
    try:
        os.chdir(folder)
    except OSError as error:
        relative = [each for each in options.sources if not os.path.isabs(each) and not is_url(each)]
        if relative and relative != [STDIN]:
            message = f"There is no folder {folder}, where {relative[0]} starts."
            raise FgvcError(message, "Start in a folder that all nodes see, or type whole paths.") from error
    for source in options.sources:
        check_named(source)
    cpus = options.ray_cpus_per_worker
    predictor = open_predictor(options, note, processes=max(1, usable_cpus() // cpus))
    torch.set_num_threads(cpus)
    return predictor


def _complete_shard(pipe: Connection, options: PredictOptions, index: int, count: int, device: str) -> None:
    """In a process of its own: predict and complete one shard."""
    signal.signal(signal.SIGTERM, _interrupt)
    code = 0
    try:
        try:
            progress, shard = PipeProgress(pipe), ShardOf(index, count)
            options = dataclasses.replace(options, device=device)
            images = open_images(options, progress, shard)
            predictor = open_predictor(options, progress.note, shard, processes=count)
            with open_folder(options, predictor.info, shard) as folder:
                complete = partial(complete_here, predictor)
                complete_rows(options, folder, images, predictor.info, complete, progress)
            for line in progress.passed_over() if index == 0 else ():  # each walks past all files
                progress.note(line)
        finally:
            # The parent ends all where one has failed; there is nothing more to interrupt here.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except FgvcError as error:
        pipe.send(("error", error.message, error.hint, error.exit_code))
    except BrokenPipeError:  # the parent is gone
        code = EXIT_ERROR
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    pipe.close()
    if code:
        os._exit(code)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def launched_shard(environment: Mapping[str, str]) -> str | None:
    """The shard that a launcher like torchrun gives this process, as ``i/n``; None without one.

    Raises:
        FgvcError: a world without a rank.
    """
    count = environment.get("WORLD_SIZE", "1")
    if not count.isdecimal() or int(count) < 2:
        return None
    if "RANK" not in environment:
        message = f"WORLD_SIZE is {count}, but RANK is not set."
        raise FgvcError(message, "torchrun sets both; or unset WORLD_SIZE.", EXIT_USAGE)
    return f"{environment['RANK']}/{count}"


def pick_shard(options: PredictOptions, environment: Mapping[str, str]) -> ShardOf:
    """Which rows this process predicts: ``--shard``, else the launcher's, else all.

    Raises:
        FgvcError: not i/n; a launcher beside --devices, --retry-failed or without --out.
    """
    launched = launched_shard(environment)
    if launched and not options.shard:
        for name, used in (("--devices", options.devices), ("--retry-failed", options.retry_failed)):
            if used:
                raise FgvcError(f"{name} is not for torchrun.", "Start fgvc predict itself.", EXIT_USAGE)
        if not options.out:
            raise FgvcError("Under torchrun rows go to a file.", "Add --out FILE", EXIT_USAGE)
    text = options.shard or launched
    return parse_shard(text) if text else ShardOf()


class Listener(Protocol):
    """What is told how far it is: ``PredictProgress``, or the pipe to it from another process."""

    total: Callable[[], int | None]
    passed_over: Callable[[], list[str]]
    what: str

    def note(self, text: str) -> None: ...
    def resumed(self, rows: int, statuses: Counter[str], retried: int = 0) -> None: ...
    def on_block(self, block: Block) -> None: ...
    def on_clipped(self, boxes: int) -> None: ...
    def on_unreadable(self, folder: Path | str, error: OSError) -> None: ...


def open_images(options: PredictOptions, progress: Listener, shard: ShardOf = WHOLE) -> ShardWalk:
    """The images of the sources, or their boxes, those of a shard only.

    Raises:
        FgvcError: as ``find_images``, ``read_boxes`` and ``BoxMatch``.
    """
    boxes = options.box_file
    images = _find(options, progress.on_unreadable)
    progress.passed_over = lambda: images.passed_over
    for line in images.notes:
        progress.note(line)
    progress.total = lambda: _count_of(images.total, shard)
    # A note says that the walk costs about as much as reading; what comes on stdin comes once.
    once = images.notes or options.nested or STDIN in options.sources or any(map(is_url, options.sources))
    walk: Iterator[Found] = images
    if boxes is None:
        return ShardWalk(walk, shard, None if once else partial(_list_again, options))
    progress.what = "box"
    progress.total = lambda: None
    if once:  # all names are needed before the first row
        walk = iter(held := list(images))
        match = BoxMatch(boxes, held)
    else:
        match = BoxMatch(boxes, _list_again(options))
    for line in (*boxes.notes, *match.lines):
        progress.note(line)
    return ShardWalk(each_box(walk, match), shard, None if once else partial(_list_again, options, match))


def _list_again(options: PredictOptions, match: BoxMatch | None = None) -> Iterable[Found]:
    """The images or boxes of all shards, without a word on folders that cannot be listed."""
    images = _find(options, lambda folder, error: None)
    return each_box(images, match) if match else images


def _find(options: PredictOptions, on_unreadable: Callable[[Path | str, OSError], None]) -> Images:
    sources = list(options.sources)
    return find_images(
        sources,
        on_unreadable,
        null=options.null,
        all_files=options.all_files,
        nested=options.nested,
        frames=options.frame_choice,
    )


def _count_of(total: int | None, shard: ShardOf) -> int | None:
    """How many of so many images are a shard's."""
    return None if total is None else (total - shard.index + shard.count - 1) // shard.count


def open_predictor(
    options: PredictOptions, note: Note, shard: ShardOf = WHOLE, *, processes: int = 1
) -> Predictor:
    """The model, ready to predict as the options say; for a shard of a run where there is one.

    Args:
        note: gets lines for people.
        processes: that share the cores of this machine.

    Raises:
        FgvcError: weights or a device that are not there, settings that cannot be.
    """
    from fgvc_cli.engine.weights import default_notice
    from fgvc_cli.predict.predictor import Predictor, count_named

    if not options.weights:
        note(default_notice())
    device = _device(options)
    models = _open(options, device, processes)
    for checkpoint in models if options.raw else ():
        checkpoint.preprocess = checkpoint.preprocess.model_copy(update={"raw": options.raw})
    predictor = Predictor(
        models,
        device=device,
        batch_size=_batch_size(options, note, shard),
        workers=options.workers,
        top_k=options.top_k,
        extras=options.outputs.needed(),
        min_prob=options.min_prob,
        columns=(*(BOX_COLUMNS if options.boxes else ()), *(GROUP_COLUMNS if options.group else ())),
        thresholds=options.thresholds,
        unknown=options.unknown,
        classes=options.classes,
        amp=_amp(options, device, shard),
        compile=options.compile,
        fast_decode=options.fast_decode,
        index=options.index,
        by=options.by or "means",
        tta=options.tta,
        taxonomy=read_taxonomy(options.taxonomy, models[0].classes) if options.taxonomy else None,
        rollup=options.rollup,
        exif=options.exif or options.group is not None,
        expected=options.box_file.count if options.box_file else count_named(options.sources),
        on_event=note,
    )
    if choice := options.frame_choice:
        predictor.info.settings["frames"] = dataclasses.asdict(choice)
    if options.group is not None:
        predictor.info.settings["group"] = {"minutes": group_minutes(options.group)}
    if boxes := options.box_file:
        predictor.info.settings["boxes"] = boxes.settings
    return predictor


def _graph(options: PredictOptions) -> str | None:
    """The exported graph among the weights."""
    return next(filter(is_graph, options.weights), None)


def _open(options: PredictOptions, device: str, processes: int) -> Sequence[Checkpoint | Graph]:
    """The models or the graph, with their part of the cores."""
    if graph := _graph(options):
        if len(options.weights) > 1:
            raise refuse("A second --weights", graph)
        for name in ("stages", "cascade"):
            if getattr(options, name) is not None:
                raise refuse(f"--{name}", graph)
        threads = max(1, usable_cpus() // processes)
        return [Graph(graph, runtime=options.runtime, device=device, threads=threads)]
    check_runtime(options.runtime, next(iter(options.weights), None))
    import torch

    from fgvc_cli.engine.device import keep_freed_memory
    from fgvc_cli.engine.weights import open_ensemble

    keep_freed_memory()
    if processes > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    looks = {"stages": options.stages, "cascade": options.cascade}
    models = open_ensemble(options.weights, options=looks)
    if options.index and hasattr(models[0].model.config, "cascade") and not any(looks.values()):
        # The embedding is of a multi-stage ViT's first stage: the others would be run for their boxes alone.
        models = open_ensemble(options.weights, options={"stages": "main"})
    return models


def _amp(options: PredictOptions, device: str, shard: ShardOf) -> Literal["auto", "none", "bf16"]:
    """``auto`` is what the run was begun with: a probe may answer otherwise the second time.

    The processes of a run need one answer too. That of a card follows from its kind; for CPUs it is float32.
    """
    if options.amp != "auto" or not options.out:
        return options.amp
    if recorded := _recorded(options, shard, "precision"):
        return "bf16" if recorded == "bf16" else "none"
    if shard.count > 1 or options.ray:
        if _graph(options):
            return "none"
        from fgvc_cli.engine.device import pick_device

        return "none" if pick_device(device).type == "cpu" else "auto"
    return "auto"


def _batch_size(options: PredictOptions, note: Note, shard: ShardOf) -> int | Literal["auto"]:
    """What the run was begun with; where another number is given, the run will be refused."""
    if isinstance(options.batch_size, int):
        return options.batch_size
    otherwise = options.batch_size or BATCH_SIZE
    recorded = _recorded(options, shard, "batch_size") if options.out else None
    if not isinstance(recorded, int) or recorded == otherwise:
        return otherwise
    note(f"Batch size {recorded}, as this run was begun.")
    return recorded


def _recorded(options: PredictOptions, shard: ShardOf, name: str) -> Any:
    """A setting of the run that this one resumes or repairs; None where there is none."""
    if options.restart:
        return None
    recorded = recorded_setting(partial_folder(options.out[0]), name, shard)
    return finished_setting(options.out, name) if recorded is None and options.retry_failed else recorded


def _device(options: PredictOptions) -> str:
    """``auto`` under torchrun is the device of this process on its machine."""
    local, name = os.environ.get("LOCAL_RANK", ""), options.device
    alone = not local.isdecimal() or int(os.environ.get("WORLD_SIZE", "1")) < 2
    if name != "auto" or alone or _graph(options):
        return name
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{int(local) % count}" if count else "cpu"


def open_folder(options: PredictOptions, info: RunInfo, shard: ShardOf) -> RunFolder:
    """The folder of this run; enter it.

    Raises:
        FgvcError: on entering, see ``RunFolder``.
    """
    identity = run_identity(info, options.sources)
    return RunFolder(partial_folder(options.out[0]), identity, shard=shard, restart=options.restart)


def complete_rows(
    options: PredictOptions,
    folder: RunFolder,
    images: ShardWalk,
    info: RunInfo,
    complete: Callable[[Iterator[Task], RunFolder, Listener], None],
    progress: Listener,
) -> None:
    """Predict all rows that the folder does not hold yet, and commit them in parts; what is finished when
    something stops it, Ctrl-C included, is committed too.

    Args:
        complete: predicts and commits tasks, such as ``complete_here`` of a predictor.

    Raises:
        FgvcError: an output that has come into being since it was looked for; another list of images than
            before; a disk that is full; what the predictor raises.
    """
    # Again, now that the folder is locked: the process that held it may have just put them there.
    _check_outputs(options, folder.root)
    origin = dataclasses.asdict(Origin.of(options.sources, options.boxes))
    folder.update(
        outputs=options.outputs.record(folder.root.parent),
        origin=origin | {"sources": list(origin["sources"])},
    )
    if options.retry_failed:
        take_apart(options.outputs, folder, info, overwrite=options.overwrite)
    retried = folder.survey(retry=options.retry_failed)
    progress.resumed(folder.rows, folder.statuses, retried)
    with ExitStack() as stack:

        def tasks() -> Iterator[Task]:
            watched = False
            for task in folder.tasks(images, retry=options.retry_failed):
                if not task.rows and not watched:
                    stack.enter_context(_whole_list(options, folder, images, progress))
                    watched = True
                yield task

        complete(tasks(), folder, progress)
    folder.finish(images.seen())


def complete_here(predictor: Predictor, tasks: Iterator[Task], folder: RunFolder, progress: Listener) -> None:
    """Complete tasks with one model, in this process."""
    with predictor.kept_decoders():
        for task in tasks:
            writer = PartWriter(folder.path, first=task.first)
            answers: list[Block] = []
            with writer, closing(predictor.blocks(task.images, first=task.first)) as blocks:
                add = answers.append if task.rows else writer.add
                try:
                    for block in blocks:
                        add(block)
                        folder.count(len(block), block.status)
                        progress.on_block(block)
                finally:
                    writer.flush()
            if answers:
                write_part(folder.path, repaired_part(folder.path, task, answers))
    progress.on_clipped(predictor.clipped)


def _whole_list(
    options: PredictOptions, folder: RunFolder, images: ShardWalk, progress: Listener
) -> AbstractContextManager[object]:
    """The list that this run was begun with is the list still; or it is written down while this one works.

    Raises:
        FgvcError: it has changed.
    """

    def on_total(total: int) -> None:
        progress.total = lambda: _count_of(total, folder.shard)

    if images.again is None:
        return nullcontext()
    return folder.watch_list(images.again, on_total, accept=options.accept_list)
