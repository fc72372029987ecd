"""``--retry-failed``: read again only the rows that failed before, and put the new answers in their place.

Of a run that is not merged yet, its completed rows are repaired where they lie. Of a finished one, the best
of its outputs is first taken apart into completed rows again: HDF5 and Parquet give all back exactly, a CSV
or JSON lines all that they hold, so that the rows left alone come out as they were. Only HDF5 and Parquet
know the weights of their rows; for the others the columns and the class names have to fit. The other outputs
of the run are written anew from the same rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fgvc_cli.errors import FgvcError
from fgvc_cli.formats.csv_rows import FileStarts, read_per_file
from fgvc_cli.formats.outputs import (
    FLAGS,
    FOR_OTHERS,
    HOLDS_EXTRAS,
    Outputs,
    ending_of,
    format_of,
    holds_anything,
)
from fgvc_cli.formats.rows import Block, OtherRun, RunInfo, as_text, join, replace_rows
from fgvc_cli.run.folder import RunFolder, Task
from fgvc_cli.run.parts import list_parts, part_name, read_part, write_part
from fgvc_cli.store import real_path

BEST_FIRST = (*HOLDS_EXTRAS, ".csv", ".jsonl")
"""HDF5 and Parquet give rows back exactly."""


def repaired_part(folder: Path, task: Task, answers: Sequence[Block]) -> Block:
    """A part with new answers in the place of those that a task reads again.

    Raises:
        FgvcError: the part is damaged.
    """
    block = read_part(folder / part_name(task.first))
    replace_rows(block, task.rows, join(answers))
    return block


def finished_output(outs: Iterable[Path]) -> Path | None:
    """The output of a finished run that its rows are read back from: the first of the best format."""
    there = [out for out in outs if out.suffix.lower() in BEST_FIRST and out.exists()]
    return min(there, key=lambda out: BEST_FIRST.index(out.suffix.lower()), default=None)


def is_apart(root: Path) -> bool:
    """Whether OUT.partial holds rows to repair: the first of them, which ``take_apart`` commits last."""
    return (root / part_name(0)).exists()


def repaired_outputs(outputs: Outputs, root: Path, placed: Collection[str]) -> set[str]:
    """The real paths of what a finished run has left and this one may repair; ``take_apart`` looks into it.

    None where rows are there to repair; then ``placed_outputs`` knows them.

    Args:
        placed: real paths that may be replaced in any case.

    Raises:
        FgvcError: a folder of crops or maps is there, whose other files would have to be made anew.
    """
    if is_apart(root) or finished_output(outputs.files) is None:
        return set()
    for flag, folder in outputs.folders():
        if holds_anything(folder) and real_path(folder) not in placed:
            raise FgvcError(
                f"--retry-failed does not repair a folder: {folder} exists.",
                f"Leave {flag} out to repair the other outputs; or name a new folder, which gets all of them "
                f"where an .h5 or .parquet among the outputs holds the {flag.split('-')[2]}.",
            )
    return {real_path(path) for path in outputs.tables() if path.exists()}


def finished_setting(outs: Sequence[Path], name: str) -> Any:
    """A setting of a finished run; None where neither HDF5 nor Parquet tells it."""
    out = finished_output(outs)
    if out is None or out.suffix.lower() not in HOLDS_EXTRAS:
        return None
    return format_of(out).read_setting(out, name)


def take_apart(outputs: Outputs, folder: RunFolder, info: RunInfo, *, overwrite: bool = False) -> None:
    """Commit the rows of a finished run again, from the best of its outputs; the merge may then replace
    all that hold them.

    Does nothing where rows are there to repair. The first rows are committed last, so that a kill meanwhile
    leaves parts without them, which are discarded here the next time.

    Args:
        overwrite: outputs of other rows may be replaced too.

    Raises:
        FgvcError: no output is there, or none fits this run; one that is there holds other rows.
    """
    if is_apart(folder.path):
        return
    out = finished_output(outputs.files)
    if out is None and list_parts(folder.path):
        return  # the first part of a run under way is gone; its rows are read anew
    if out is None:
        message = "--retry-failed found no finished .h5, .parquet, .csv or .jsonl, and no run to go on with."
        raise FgvcError(message, "Run without it first.")
    if info.extras and out.suffix.lower() not in HOLDS_EXTRAS:
        message = f"--retry-failed: {out} does not hold the {', '.join(info.extras)} of its rows."
        raise FgvcError(message, "Name the run's .h5 or .parquet as --out too, or run anew with --overwrite.")
    copies = [path for path in outputs.tables() if path != out and path.exists()]
    if not overwrite:
        for path in copies:
            _check_copy(path, out, info, per_file=path == outputs.per_file)
        for path in outputs.files:
            _check_extras_stay(path, outputs)
    blocks = _read_back(out, info)
    _discard_parts(folder.path)
    try:
        head = next(blocks, None)
        for block in blocks:
            write_part(folder.path, block)
    except FgvcError:
        _discard_parts(folder.path)
        raise
    if head is not None:
        write_part(folder.path, head)
    repaired = {real_path(path) for path in (out, *copies)}
    folder.update(placed=tuple(sorted(repaired.union(folder.record.placed))))


def _check_copy(path: Path, out: Path, info: RunInfo, *, per_file: bool) -> None:
    """Raise FgvcError unless an output holds the same images in the same order as the one taken apart."""
    if ending_of(path) in FOR_OTHERS:
        message = f"--retry-failed cannot tell whether {path} is of the run of {out}."
        raise FgvcError(message, "Add --overwrite to replace it, or name another file.")
    bare = dataclasses.replace(info, extras=())
    names = (name for block in _read_back(out, bare) for name in block.path)
    try:
        if per_file:
            starts = FileStarts("frames" in info.settings)
            files = (name for name, first in map(starts.take, names) if first)
            _check_names(zip_longest(files, read_per_file(path, info)))
        else:
            blocks = format_of(path).read_blocks(path, bare)
            _check_names(zip_longest(names, (name for block in blocks for name in block.path)))
    except (OtherRun, FgvcError) as other:
        why = other.message.rstrip(".") if isinstance(other, FgvcError) else str(other)
        message = f"--retry-failed: {path} exists and is not of the run of {out}: {why}."
        raise FgvcError(message, "Add --overwrite to replace it, or name another file.") from other


def _check_names(pairs: Iterable[tuple[str | None, str | None]]) -> None:
    """Raise OtherRun at the first pair of names that differ; None stands behind the last one."""
    for row, (ours, theirs) in enumerate(pairs):
        if ours is None or theirs is None or as_text(ours) != as_text(theirs):
            raise OtherRun(f"row {row} is {theirs or 'missing'}, expected {ours or 'the end'}")


def _check_extras_stay(path: Path, outputs: Outputs) -> None:
    """Raise FgvcError where a file holds maps, crops, ... that it would lose."""
    if path.suffix.lower() not in HOLDS_EXTRAS or not path.exists():
        return
    if lost := [extra for extra in format_of(path).read_extras(path) if extra not in outputs.extras]:
        flags = " ".join(FLAGS[extra][0] for extra in lost)
        raise FgvcError(
            f"--retry-failed: {path} would lose the {', '.join(lost)} of its rows.", f"Add {flags}"
        )


def _discard_parts(folder: Path) -> None:
    for part in list_parts(folder):
        part.unlink()


def _read_back(out: Path, info: RunInfo) -> Iterator[Block]:
    """The rows of an output, in blocks.

    Raises:
        FgvcError: it is damaged, or of another run.
    """
    try:
        yield from format_of(out).read_blocks(out, info)
    except OtherRun as other:
        raise _other_run(out, str(other)) from other


def _other_run(out: Path, why: str) -> FgvcError:
    return FgvcError(
        f"--retry-failed cannot repair {out}: {why}.",
        "Type the options it was made with, or use --overwrite.",
    )
