"""Completed rows of all shards -> every output, each put in its place whole; and the command ``fgvc
merge``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import posixpath
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fgvc_cli.command import Messages, command, options
from fgvc_cli.data.split import order_bursts
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.files import FolderLock
from fgvc_cli.formats.csv_rows import MeanAnswer
from fgvc_cli.formats.outputs import Outputs
from fgvc_cli.formats.rows import COLUMNS, Block, cut, first_change, interleave, join
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
from fgvc_cli.run.progress import MaybePath, Paths, PredictProgress, RunResult
from fgvc_cli.sources.metadata import clock_seconds
from fgvc_cli.store import check_store, store_failures

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
    shards = [list_parts(folder) for folder in folders]
    blocks = interleaved(shards)
    if choice := info.settings.get("group"):
        groups = find_groups(lambda: interleaved(shards, light=True), choice["minutes"])
        blocks = (groups.mark(block, info.classes) for block in blocks)
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


def interleaved(shards: Sequence[Sequence[Path]], *, light: bool = False) -> Iterator[Block]:
    """The rows of a run in the order of its walk, from the files of each of its shards.

    Args:
        light: as ``read_part``.

    Raises:
        FgvcError: a shard is damaged.
    """
    if len(shards) == 1:
        yield from read_blocks(shards[0], light=light)
        return
    window = max(1, MERGE_ROWS // len(shards))
    readers = [_Reader(files, light) for files in shards]
    first = 0
    while len(parts := [reader.take(window) for reader in readers]) and parts[0] is not None:
        block = interleave([part for part in parts if part is not None], first)
        first += len(block)
        yield block


class _Reader:
    """The rows of one shard, some at a time."""

    def __init__(self, files: Sequence[Path], light: bool):
        self._blocks = read_blocks(files, light=light)
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


GROUP_COLUMNS = ("group", "group_label", "group_prob")


def group_minutes(text: str) -> float:
    """The longest gap within a group, of ``minutes=5``.

    Raises:
        FgvcError: anything else.
    """
    kind, _, value = (part.strip() for part in text.partition("="))
    with contextlib.suppress(ValueError):
        if kind == "minutes" and 0 < float(value) < float("inf"):
            return float(value)
    raise FgvcError(f"--group got {text!r}, expected minutes=N.", "E.g. --group minutes=5", EXIT_USAGE)


@dataclass
class Groups:
    """Which rows of a run were taken together, and what they are of. N rows, G groups."""

    of_row: np.ndarray
    """int32 (N,): the number of its group, -1 for none."""
    folders: list[str]
    folder: np.ndarray
    """int (G,): which of ``folders`` it is in."""
    number: np.ndarray
    """int (G,): from 1, within the folder in order of time."""
    label: np.ndarray
    """int32 (G,): the class that the group's rows together are of; -1 where none was answered."""
    prob: np.ndarray
    """float64 (G,)."""

    def mark(self, block: Block, classes: Sequence[str]) -> Block:
        """The same block, with its columns of groups filled."""
        rows: list[tuple[str | None, str | None, float | None]] = []
        for group in self.of_row[block.first : block.first + len(block)].tolist():
            name = label = prob = None
            if group >= 0:
                name = f"{self.folders[self.folder[group]]}#{self.number[group]:04d}"
            if group >= 0 and self.label[group] >= 0:
                label, prob = classes[self.label[group]], float(self.prob[group])
            rows.append((name, label, prob))
        for at, name in enumerate(GROUP_COLUMNS):
            block.more[name] = COLUMNS[name].values([row[at] for row in rows])
        return block


def find_groups(read: Callable[[], Iterator[Block]], minutes: float) -> Groups:
    """The groups of a run: rows of one folder and one camera, no two neighbours in time further apart.

    A folder's rows are in order of path, not of time, so times are gathered first: some 50 bytes of memory
    per row, whatever the rows hold. The rows are read twice, and then once more to be written.

    Args:
        read: the rows of the run, from the first on at each call.
        minutes: longest gap within a group, by the camera's clock.
    """
    folders: dict[str, int] = {}
    series: dict[tuple[int, str], int] = {}
    own_folder, own_series, moments = array("i"), array("i"), array("d")
    for block in read():
        for path, date, camera in zip(block.path, block.column("date"), block.column("camera"), strict=True):
            folder = folders.setdefault(posixpath.dirname(path) or ".", len(folders))
            own_folder.append(folder)
            own_series.append(series.setdefault((folder, camera), len(series)))
            moment = clock_seconds(date)
            moments.append(math.nan if moment is None else moment)
    times = np.array(moments)
    order, starts = order_bursts(np.array(own_series), times, minutes)
    firsts = order[starts]
    of_row = np.full(len(times), -1, np.int32)
    of_row[order] = np.cumsum(starts) - 1
    folder_of = np.array(own_folder)[firsts]
    by_time = np.lexsort((firsts, times[firsts], folder_of))
    number = np.empty(len(firsts), np.int64)
    begins = np.flatnonzero(np.diff(folder_of[by_time], prepend=-1))
    number[by_time] = 1 + np.arange(len(firsts)) - np.repeat(begins, np.diff(begins, append=len(firsts)))
    label, prob = _answer_groups(read(), of_row, len(firsts))
    return Groups(of_row, list(folders), folder_of, number, label, prob)


def _answer_groups(blocks: Iterator[Block], of_row: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Class and probability of each group; a group is in memory from its first row to its last."""
    label, prob = np.full(count, -1, np.int32), np.full(count, np.nan)
    last = np.zeros(count, np.int64)
    grouped = np.flatnonzero(of_row >= 0)
    np.maximum.at(last, of_row[grouped], grouped)
    means: defaultdict[int, MeanAnswer] = defaultdict(MeanAnswer)
    for block in blocks:
        for row, group in enumerate(of_row[block.first : block.first + len(block)].tolist()):
            if group < 0:
                continue
            means[group].add(block, row)
            if block.first + row == last[group]:
                for mean, index in means.pop(group).best(1):
                    label[group], prob[group] = index, mean
    return label, prob


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
        if not isinstance(outputs, Outputs):
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
    per_file: MaybePath = None
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
    for out in options.out:
        check_store(out)
    with store_failures(first):
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
