"""Sealed rows of all shards -> every output, each put in its place whole."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgvc_cli.errors import FgvcError
from fgvc_cli.files import FolderLock, read_document, write_document
from fgvc_cli.formats.outputs import Outputs
from fgvc_cli.formats.rows import Block, cut, first_change, interleave, join
from fgvc_cli.run.parts import list_shards, read_blocks, read_names
from fgvc_cli.run.resume import info_of
from fgvc_cli.run.run_files import DONE, MERGING, RUN, ShardOf, read_origin, remove_run, shard_folders

MERGE_ROWS = 2000
"""Rows in memory while shards are interleaved."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What was put together."""

    rows: int
    statuses: Counter[str]


def merge_run(root: Path, outputs: Outputs, *, overwrite: bool = False) -> Merged:
    """Write the outputs of a complete run, then remove its folder.

    Killed meanwhile, the same call does it again; outputs that are in place already are known from
    ``merging.json``. Nothing is lost on a full disk: the sealed rows go last.

    Args:
        root: OUT.partial; the caller holds its lock where the run is in one piece.
        overwrite: outputs that exist may be replaced.

    Raises:
        FgvcError: a shard that is missing, incomplete, damaged or of another run; an output that cannot be
            written or exists.
    """
    folders = complete_folders(root)
    counts = [read_document(folder / DONE) for folder in folders]
    _check_lists(folders, counts)
    for folder, count in zip(folders, counts, strict=True):
        _check_sealed(folder, count["rows"])
    info = info_of(_shared_identity(folders))
    if missing := [extra for extra in outputs.needed() if extra not in info.extras]:
        message = f"The rows in {root} carry no {missing[0]}; they were predicted without it."
        raise FgvcError(message, "Merge without it, or predict again with --restart.")
    allowed = merging_outputs(root)
    outputs.check(overwrite=overwrite, allowed=allowed)
    write_document(root / MERGING, {"outputs": sorted(allowed | set(outputs.targets()))})
    origin = read_origin(folders[0])
    blocks = interleaved([list_shards(folder) for folder in folders])
    with ExitStack() as stack:
        sinks = [stack.enter_context(sink) for sink in outputs.sinks(info, placed=allowed, origin=origin)]
        for sink in sinks:
            sink.begin(info)
        for block in blocks:
            for sink in sinks:
                sink.write(block)
    remove_run(root)
    statuses = sum((Counter(count["statuses"]) for count in counts), Counter[str]())
    return Merged(sum(count["rows"] for count in counts), statuses)


def merging_outputs(root: Path) -> set[str]:
    """Outputs that a merge which was cut short may have put in place, as real paths."""
    return set(read_document(root / MERGING)["outputs"]) if (root / MERGING).exists() else set()


def complete_folders(root: Path) -> list[Path]:
    """The folders of a run in the order of its shards: ``[root]`` for a run in one piece.

    Raises:
        FgvcError: no run; a shard that is missing, incomplete or of another run, by its name.
    """
    if (root / RUN).exists():
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
    for folder in folders:
        if not (folder / RUN).exists():
            raise FgvcError(f"{folder} is missing.", f"Run {_shard_hint(folder)} first, or copy it there.")
        if not (folder / DONE).exists():
            raise FgvcError(f"{folder} is not complete.", f"Run {_shard_hint(folder)} again; it goes on.")
    runs = [read_document(folder / RUN) for folder in folders]
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


def _shared_identity(folders: Sequence[Path]) -> dict[str, Any]:
    """That of all shards; where they differ in batch size, with a list of all."""
    runs = [read_document(folder / RUN) for folder in folders]
    sizes = sorted({run["settings"].get("batch_size", 0) for run in runs})
    settings = runs[0]["settings"] | ({"batch_size": sizes} if len(sizes) > 1 else {})
    return runs[0] | {"settings": settings}


def _check_sealed(folder: Path, rows: int) -> None:
    """Whether the last shard ends where ``done.json`` says; gaps before it are met while reading."""
    shards = list_shards(folder)
    first, names, _ = read_names(shards[-1]) if shards else (0, [], [])
    if first + len(names) != rows:
        raise FgvcError(
            f"{folder} lacks rows {first + len(names):,} to {rows - 1:,}.",
            f"Run {_shard_hint(folder)} again; it reads them anew.",
        )


def _shard_hint(folder: Path) -> str:
    parts = folder.name.split("-")
    return f"--shard {parts[1]}/{parts[3]}" if len(parts) == 4 else "fgvc predict"


def _check_lists(folders: Sequence[Path], dones: Sequence[dict[str, Any]]) -> None:
    """Shard i of n holds every n-th image of one list, which all have seen in full."""
    if (n := len(folders)) == 1:
        return
    seen = [(done.get("total", 0), done.get("names_sha256")) for done in dones]
    for i, (folder, done) in enumerate(zip(folders, dones, strict=True)):
        total, names = seen[i]
        if seen[i] != seen[0] or names is None or done["rows"] != (total - i + n - 1) // n:
            counts = "" if total == seen[0][0] else f" ({total:,} and {seen[0][0]:,})"
            raise FgvcError(
                f"{folder} and {folders[0].name} saw different lists of photographs{counts}.",
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


def merge_shards(root: Path, outputs: Outputs, *, overwrite: bool = False) -> Merged:
    """``merge_run`` for a run in several pieces, with every piece locked.

    Raises:
        FgvcError: as ``merge_run``; a process still works on a shard.
    """
    if not root.is_dir():
        raise FgvcError(
            f"There is no folder {root.name}.", "fgvc predict SOURCES --out OUT --shard i/n makes it."
        )
    with ExitStack() as stack:
        for folder in {root, *complete_folders(root)}:
            stack.enter_context(FolderLock(folder))
        return merge_run(root, outputs, overwrite=overwrite)
