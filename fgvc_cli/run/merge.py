"""Completed rows of all shards -> every output, each put in its place whole; and the command ``fgvc
merge``."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fgvc_cli.command import Messages, command, options
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.files import FolderLock
from fgvc_cli.formats.outputs import Outputs
from fgvc_cli.formats.rows import Block, cut, first_change, interleave, join
from fgvc_cli.run.folder import (
    PARTIAL,
    RunRecord,
    ShardOf,
    has_record,
    info_of,
    partial_folder,
    placed_outputs,
    read_record,
    recorded_outputs,
    remove_run,
    shard_folders,
    write_record,
)
from fgvc_cli.run.parts import list_parts, read_blocks, read_names
from fgvc_cli.run.progress import Paths, PredictProgress, RunResult

MERGE_ROWS = 2000
"""Rows in memory while shards are interleaved."""


def merge_run(root: Path, outputs: Outputs, *, overwrite: bool = False) -> Counter[str]:
    """Write the outputs of a complete run, then remove its folder; how many rows have which status.

    Killed meanwhile, the same call does it again; outputs that are in place already are known from
    ``run.json``. Nothing is lost on a full disk: the completed rows go last.

    Args:
        root: OUT.partial; the caller holds its lock where the run is in one piece.
        overwrite: outputs that exist may be replaced.

    Raises:
        FgvcError: a shard that is missing, incomplete, damaged or of another run; an output that cannot be
            written or exists.
    """
    folders = complete_folders(root)
    records = [read_record(folder) for folder in folders]
    _check_lists(folders, records)
    for folder, record in zip(folders, records, strict=True):
        _check_parts(folder, _complete(record)["rows"])
    info = info_of(_shared_identity(records))
    if missing := [extra for extra in outputs.needed() if extra not in info.extras]:
        message = f"The rows in {root} carry no {missing[0]}; they were predicted without it."
        raise FgvcError(message, "Merge without it, or predict again with --restart.")
    allowed = placed_outputs(root)
    outputs.check(overwrite=overwrite, allowed=allowed)
    placed = tuple(sorted(allowed | set(outputs.targets())))
    write_record(folders[0], dataclasses.replace(records[0], placed=placed))
    origin = records[0].read_origin()
    blocks = interleaved([list_parts(folder) for folder in folders])
    with ExitStack() as stack:
        sinks = [stack.enter_context(sink) for sink in outputs.sinks(info, placed=allowed, origin=origin)]
        for sink in sinks:
            sink.begin(info)
        for block in blocks:
            for sink in sinks:
                sink.write(block)
    remove_run(root)
    return sum((Counter(_complete(record)["statuses"]) for record in records), Counter[str]())


def _complete(record: RunRecord) -> dict[str, Any]:
    """What is said of a run that is complete, as ``complete_folders`` has seen."""
    assert record.complete is not None
    return record.complete


def complete_folders(root: Path) -> list[Path]:
    """The folders of a run in the order of its shards: ``[root]`` for a run in one piece.

    Raises:
        FgvcError: no run; a shard that is missing, incomplete or of another run, by its name.
    """
    if has_record(root):
        folders = [root]
    else:
        counts = {count for count, _ in shard_folders(root)}
        if not counts:
            raise FgvcError(f"There are no rows in {root}.", "fgvc predict SOURCES --out OUT --shard i/n")
        if len(counts) > 1:
            numbers = " and of ".join(map(str, sorted(counts)))
            raise FgvcError(f"{root} holds shards of {numbers}.", "Remove those that do not belong.")
        (count,) = counts
        folders = [root / ShardOf(index, count).folder for index in range(count)]
    records = []
    for folder in folders:
        if not has_record(folder):
            raise FgvcError(f"{folder} is missing.", f"Run {_shard_hint(folder)} first, or copy it there.")
        records.append(read_record(folder))
        if records[-1].complete is None:
            raise FgvcError(f"{folder} is not complete.", f"Run {_shard_hint(folder)} again; it goes on.")
    runs = [record.run for record in records]
    for folder, run in zip(folders, runs, strict=True):
        if change := first_change(_but_batch_size(runs[0]), _but_batch_size(run)):
            name, old, new = change
            old, new = (json.dumps(value, ensure_ascii=False)[:60] for value in (old, new))
            message = f"{folder} is of another run than {folders[0]}: {name} is {new}, not {old}."
            raise FgvcError(message, f"Run {_shard_hint(folder)} again with --restart.")
    return folders


def _but_batch_size(run: dict[str, Any]) -> dict[str, Any]:
    """Each shard keeps to its own, as cards differ: it changes the last digits of a value at most."""
    return run | {"settings": {k: v for k, v in run["settings"].items() if k != "batch_size"}}


def _shared_identity(records: Sequence[RunRecord]) -> dict[str, Any]:
    """That of all shards; where they differ in batch size, with a list of all."""
    first = records[0].run
    sizes = sorted({record.run["settings"].get("batch_size", 0) for record in records})
    settings = first["settings"] | ({"batch_size": sizes} if len(sizes) > 1 else {})
    return first | {"settings": settings}


def _check_parts(folder: Path, rows: int) -> None:
    """Raise FgvcError unless the last part ends where ``run.json`` says; gaps before it are met while
    reading."""
    parts = list_parts(folder)
    first, names, _ = read_names(parts[-1]) if parts else (0, [], [])
    if first + len(names) != rows:
        raise FgvcError(
            f"{folder} lacks rows {first + len(names):,} to {rows - 1:,}.",
            f"Run {_shard_hint(folder)} again; it reads them anew.",
        )


def _shard_hint(folder: Path) -> str:
    parts = folder.name.split("-")
    return f"--shard {parts[1]}/{parts[3]}" if len(parts) == 4 else "fgvc predict"


def _check_lists(folders: Sequence[Path], records: Sequence[RunRecord]) -> None:
    """Raise FgvcError unless all shards have seen one list in full, of which shard i of n holds each n-th
    image."""
    if (n := len(folders)) == 1:
        return
    seen = [record.images or {} for record in records]
    for i, (folder, record) in enumerate(zip(folders, records, strict=True)):
        total = seen[i].get("total", 0)
        whole = _complete(record)["rows"] == (total - i + n - 1) // n
        if seen[i] != seen[0] or not seen[i] or not whole:
            first = seen[0].get("total", 0)
            counts = "" if total == first else f" ({total:,} and {first:,})"
            raise FgvcError(
                f"{folder} and {folders[0].name} saw different lists of images{counts}.",
                "Run all shards again with --restart, or all with one @list.",
            )


def interleaved(shards: Sequence[Sequence[Path]]) -> Iterator[Block]:
    """The rows of a run in the order of its walk, from the files of each of its shards.

    Raises:
        FgvcError: a shard is damaged.
    """
    if len(shards) == 1:
        yield from read_blocks(shards[0])
        return
    window = max(1, MERGE_ROWS // len(shards))
    readers = [_Reader(files) for files in shards]
    first = 0
    while len(parts := [reader.take(window) for reader in readers]) and parts[0] is not None:
        block = interleave([part for part in parts if part is not None], first)
        first += len(block)
        yield block


class _Reader:
    """The rows of one shard, some at a time."""

    def __init__(self, files: Sequence[Path]):
        self._blocks = read_blocks(files)
        self._rest: Block | None = None

    def take(self, rows: int) -> Block | None:
        """The next rows, fewer at the end, None behind it."""
        parts: list[Block] = []
        while rows:
            block = self._rest or next(self._blocks, None)
            if block is None:
                break
            parts.append(cut(block, 0, min(rows, len(block))))
            self._rest = cut(block, rows, len(block)) if len(block) > rows else None
            rows -= len(parts[-1])
        return join(parts) if parts else None


def merge_shards(
    root: Path, outputs: Outputs | Path, *, overwrite: bool = False
) -> tuple[Counter[str], Outputs]:
    """``merge_run`` for a run in several pieces, with every piece locked; and where the rows went.

    Args:
        outputs: or the first of them; the others are then those that the run was begun for.

    Raises:
        FgvcError: as ``merge_run``; a process still works on a shard; shards that were begun for other
            outputs.
    """
    if not root.is_dir():
        raise FgvcError(
            f"There is no folder {root.name}.", "fgvc predict SOURCES --out OUT --shard i/n makes it."
        )
    with ExitStack() as stack:
        folders = complete_folders(root)
        for folder in {root, *folders}:
            stack.enter_context(FolderLock(folder))
        if isinstance(outputs, Path):
            recorded = _recorded(folders, root)
            outputs = dataclasses.replace(recorded, files=(outputs, *recorded.files[1:]))
        return merge_run(root, outputs, overwrite=overwrite), outputs


def _recorded(folders: Sequence[Path], root: Path) -> Outputs:
    recorded = [recorded_outputs(folder, root) for folder in folders]
    for folder, outputs in zip(folders, recorded, strict=True):
        if outputs is None or outputs != recorded[0]:
            what = "does not say for which outputs it was begun"
            if outputs and recorded[0]:
                what = f"was begun for {outputs.text()}, {folders[0].name} for {recorded[0].text()}"
            raise FgvcError(f"{folder} {what}.", "Name all: fgvc merge OUT OUT2 --maps ...")
    assert recorded[0] is not None
    return recorded[0]


@options
class MergeOptions:
    """What ``fgvc merge`` is asked for."""

    out: Paths
    """The outputs, the first as it was named to ``fgvc predict --shard``; alone, those that the shards were
    begun for, with all that they hold."""
    maps: bool = False
    """Store attention maps in the .h5 or .parquet."""
    crops: bool = False
    """Store crops of the objects there."""
    embeddings: bool = False
    """Store embeddings there."""
    logits: bool = False
    """Store the scores of all classes there."""
    crops_dir: Path | None = None
    """New folder for a JPEG of each object."""
    maps_dir: Path | None = None
    """New folder for a 16-bit PNG of each attention map."""
    per_file: Path | None = None
    """CSV with one row per file where rows are frames."""
    overwrite: bool = False
    """Replace output files that exist."""
    quiet: bool = False
    """Say nothing but errors."""
    messages: Messages | None = None
    """Who says what happens; None: lines on stderr."""


@command(MergeOptions)
def merge(options: MergeOptions) -> RunResult:
    """Put the complete shards of ``predict_folder(..., shard="i/n")`` together, in the order of the images.

        fgvc_cli.merge("all.csv")

    ``out`` alone is enough: what else the shards were begun for, files, maps and folders, they know. Named
    outputs or extras take the place of that.

    Returns:
        What the run came to: counts by status, and where the rows are.

    Raises:
        FgvcError: a shard that is missing, incomplete, in use or of another run; extras that the rows do not
            carry; an output that exists or cannot be written.
    """
    messages = options.messages or Messages(quiet=options.quiet)
    progress = PredictProgress(messages, live=False)
    if not options.out:
        raise FgvcError("No output given.", "fgvc merge OUT, as it was named to predict", EXIT_USAGE)
    first = options.out[0]
    if first.name.endswith(PARTIAL) and first.is_dir():
        first = first.with_name(first.name.removesuffix(PARTIAL))
    root = partial_folder(first)
    given = Outputs.of((first, *options.out[1:]), options)
    alone = given == Outputs((first,))
    placed = placed_outputs(root)
    if not alone or not root.is_dir():
        given.check(overwrite=options.overwrite, allowed=placed)
    statuses, outputs = merge_shards(root, first if alone else given, overwrite=options.overwrite)
    return progress.merged(statuses, outputs.paths())
