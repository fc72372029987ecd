"""``--retry-failed``: read again only the rows that failed before, and put the new answers in their place.

Of a run that is not merged yet, its sealed rows are mended where they lie. Of a finished one, OUT is first
taken apart into sealed rows again: an HDF5 file gives all back exactly, a CSV or JSON lines all that they
hold, so that the rows left alone come out as they were. Only the HDF5 file knows the weights of its rows;
for the others the columns and the class names have to fit.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fgvc_cli.config import stored_preprocess
from fgvc_cli.errors import FgvcError
from fgvc_cli.files import read_document, write_document
from fgvc_cli.formats.csv_rows import csv_columns, ranked_columns
from fgvc_cli.formats.row_blocks import (
    ARRAYS,
    OPTIONAL_ARRAYS,
    TEXTS,
    cut,
    has_prediction,
    join,
    replace_rows,
)
from fgvc_cli.formats.rows import Block, Row, RunInfo
from fgvc_cli.run.parts import SEAL_ROWS, list_shards, read_shard, shard_name, write_shard
from fgvc_cli.run.resume import RunFolder, first_change
from fgvc_cli.run.run_files import MERGING
from fgvc_cli.sources.find import Found

if TYPE_CHECKING:
    import h5py

H5_ENDINGS = (".h5", ".hdf5")


class BlockMaker(Protocol):
    """What predicts (``predictor.Predictor``)."""

    def blocks(self, images: Iterable[Found], first: int = 0) -> Generator[Block, None, None]: ...


def retry_failed(
    folder: RunFolder, images: Iterator[Found], predictor: BlockMaker, on_block: Callable[[Block], None]
) -> None:
    """Predict the failed ones of the sealed rows anew; takes them all from the walk, as ``skip_sealed``.

    A shard is replaced as soon as its rows are known, so that this too can be killed and begun again.

    Raises:
        FgvcError: the list of images has changed, or a shard is damaged.
    """
    waiting: deque[tuple[Path, int]] = deque()

    def failed() -> Iterator[Found]:
        for shard, row, status, found in folder.walk_sealed(images):
            if not has_prediction(status):
                waiting.append((shard, row))
                yield found

    answers: list[Block] = []
    places: list[tuple[Path, int]] = []
    before: Counter[str] = Counter()
    with closing(predictor.blocks(failed())) as blocks:
        for block in blocks:
            on_block(block)
            for row in range(len(block)):
                place = waiting.popleft()
                if places and place[0] != places[0][0]:
                    before += _mend(places, answers)
                    answers, places = [], []
                answers.append(cut(block, row, row + 1))
                places.append(place)
            folder.statuses.update(block.status)
    if places:
        before += _mend(places, answers)
    folder.statuses.subtract(before)
    folder.statuses = +folder.statuses


def _mend(places: list[tuple[Path, int]], answers: list[Block]) -> Counter[str]:
    """Replace rows of one shard; returns the statuses they had."""
    shard = places[0][0]
    block = read_shard(shard)
    rows = [row for _, row in places]
    before = Counter(block.status[row] for row in rows)
    replace_rows(block, rows, join(answers))
    write_shard(shard.parent, block)
    return before


def finished_output(outs: Iterable[Path]) -> Path | None:
    """The output of a finished run that its rows are read back from: an HDF5 file, else a table."""
    for endings in (H5_ENDINGS, (".csv", ".jsonl")):
        for out in outs:
            if out.suffix.lower() in endings and out.exists():
                return out
    return None


def is_apart(root: Path) -> bool:
    """Whether OUT.partial holds rows to mend: the first of them, which ``take_apart`` seals last."""
    return (root / shard_name(0)).exists()


def mended_outputs(outs: Sequence[Path], root: Path) -> set[str]:
    """The real path of the output that will be taken apart, and so may be replaced.

    Empty where rows are there to mend; then ``merging_outputs`` knows it.
    """
    out = None if is_apart(root) else finished_output(outs)
    return {os.path.realpath(out)} if out else set()


def finished_setting(outs: Sequence[Path], name: str) -> Any:
    """A setting of a finished run; None where no HDF5 file tells it."""
    out = finished_output(outs)
    if out is None or out.suffix.lower() not in H5_ENDINGS:
        return None
    with _open_h5(out) as file:
        return _document(file, "settings").get(name)


def take_apart(outs: Sequence[Path], folder: RunFolder, info: RunInfo) -> None:
    """Seal the rows of a finished run again, from the best of its outputs, which the merge may then replace.

    Does nothing where rows are there to mend. The first rows are sealed last, so that a kill meanwhile leaves
    shards without them, which are discarded here the next time.

    Raises:
        FgvcError: no output is there, or none fits this run.
    """
    if is_apart(folder.path):
        return
    out = finished_output(outs)
    if out is None and list_shards(folder.path):
        return  # the first shard of a run under way is gone; its rows are read anew
    if out is None:
        message = "--retry-failed found no finished .h5, .csv or .jsonl, and no run to go on with."
        raise FgvcError(message, "Run without it first.")
    if out.suffix.lower() in H5_ENDINGS:
        blocks = _h5_blocks(out, info)
    elif info.extras:
        message = f"--retry-failed: {out} does not hold the {', '.join(info.extras)} of its rows."
        raise FgvcError(message, "Name the run's .h5 as --out too, or run anew with --overwrite.")
    else:
        blocks = _table_blocks(out, info)
    _discard_shards(folder.path)
    try:
        head = next(blocks, None)
        for block in blocks:
            write_shard(folder.path, block)
    except FgvcError:
        _discard_shards(folder.path)
        raise
    if head is not None:
        write_shard(folder.path, head)
    targets = {os.path.realpath(out)}
    if (folder.root / MERGING).exists():
        targets |= set(read_document(folder.root / MERGING)["outputs"])
    write_document(folder.root / MERGING, {"outputs": sorted(targets)})


def _discard_shards(folder: Path) -> None:
    for shard in list_shards(folder):
        shard.unlink()


def _open_h5(out: Path) -> h5py.File:
    import h5py

    try:
        return h5py.File(out, "r")
    except OSError as error:
        raise FgvcError(f"{out} is no readable HDF5 file: {error}.", "Run anew with --overwrite.") from error


def _document(file: h5py.File, name: str) -> dict[str, Any]:
    """A JSON attribute; empty where the file has none."""
    try:
        return dict(json.loads(file.attrs.get(name, "{}")))
    except (TypeError, ValueError):
        return {}


def _h5_blocks(out: Path, info: RunInfo) -> Iterator[Block]:
    from fgvc_cli.formats.h5 import root_attributes

    with _open_h5(out) as file:
        for name, value in root_attributes(info).items():
            if name in ("settings", "preprocessing"):
                # What failed is read in other company than before anyway.
                either = {"batch_size": None} if name == "settings" else {}
                stored = _document(file, name)
                if name == "preprocessing":
                    stored = stored_preprocess(stored).model_dump(mode="json")
                if change := first_change(stored | either, json.loads(value) | either, name):
                    field, old, new = change
                    raise _other_run(out, f"its {field} is {json.dumps(old)}, this run's {json.dumps(new)}")
                continue
            if not np.array_equal(file.attrs.get(name), value):
                raise _other_run(out, f"its {name} is not that of this run")
        sets = {name: file[name] for name in (*TEXTS, *ARRAYS, *OPTIONAL_ARRAYS, "crop") if name in file}
        if missing := [extra for extra in info.extras if extra not in sets]:
            raise _other_run(out, f"it holds no {missing[0]}")
        if sets["topk_index"].shape[1] != info.top_k:
            raise _other_run(out, f"it holds {sets['topk_index'].shape[1]} predictions per row")
        for first in range(0, len(sets["path"]), SEAL_ROWS):
            rows = slice(first, first + SEAL_ROWS)
            columns: dict[str, Any] = {name: sets[name].asstr()[rows].tolist() for name in TEXTS}
            columns |= {name: sets[name][rows] for name in (*ARRAYS, *OPTIONAL_ARRAYS) if name in sets}
            columns.setdefault("parts", np.empty((len(columns["path"]), 0, 4), np.float32))
            # An extra that no row had has no width.
            columns = {k: v for k, v in columns.items() if k not in OPTIONAL_ARRAYS or v.shape[1]}
            crop = [item.tobytes() for item in sets["crop"][rows]] if "crop" in sets else None
            yield Block(first=first, crop=crop, **columns)


def _table_blocks(out: Path, info: RunInfo) -> Iterator[Block]:
    first = 0
    with out.open(encoding="utf-8", newline="") as stream:
        rows = _csv_rows(out, stream, info) if out.suffix.lower() == ".csv" else _json_rows(out, stream, info)
        while batch := tuple(islice(rows, SEAL_ROWS)):
            try:
                block = rows_block(batch, first, info)
            except KeyError as error:
                raise _other_run(out, f"the model does not know {error}") from error
            first += len(block)
            yield block


def _csv_rows(out: Path, lines: Iterable[str], info: RunInfo) -> Iterator[Row]:
    cells = csv.reader(lines)
    if next(cells, None) != csv_columns(info.top_k, info.parts, info.multi_label):
        raise _other_run(out, "its columns are not those of this run")
    k = 5 + 2 * info.top_k
    for line in cells:
        boxes = [line[at : at + 4] for at in range(k, len(line) - info.multi_label, 4)]
        box, *parts = [tuple(map(float, box)) if box[0] else None for box in boxes]
        labels = tuple(label for label in line[5:k:2] if label)
        probs = tuple(float(prob) for prob in line[6:k:2] if prob)
        width, height = (int(side) if side else None for side in line[3:5])
        given = tuple(part for part in parts if part)
        yield Row(line[0], line[1], line[2], width, height, labels, probs, box, given)  # type: ignore[arg-type]


def _json_rows(out: Path, lines: Iterable[str], info: RunInfo) -> Iterator[Row]:
    names = ranked_columns(info.top_k)
    for line in lines:
        row = json.loads(line)
        keys = 6 + 2 * info.top_k + (info.parts > 0) + info.multi_label
        if len(row) != keys or not set(names) <= set(row):
            raise _other_run(out, "its keys are not those of this run")
        values = [row[name] for name in names if row[name] is not None]
        box = tuple(row["box"]) if row["box"] else None
        parts = tuple(tuple(part) for part in row.get("parts", ()))
        head = (row["path"], row["status"], row["error"], row["width"], row["height"])
        yield Row(*head, tuple(values[::2]), tuple(values[1::2]), box, parts)


def rows_block(rows: Sequence[Row], first: int, info: RunInfo) -> Block:
    """Rows in columns, without extras.

    Raises:
        KeyError: a label that is not a class of the run.
    """
    index = {label: i for i, label in enumerate(info.classes)}
    n, k = len(rows), info.top_k
    block = Block(
        first=first,
        path=[row.path for row in rows],
        status=[row.status for row in rows],
        error=[row.error for row in rows],
        size=np.zeros((n, 2), np.int32),
        topk_index=np.full((n, k), -1, np.int32),
        topk_prob=np.full((n, k), np.nan, np.float32),
        box=np.full((n, 4), np.nan, np.float32),
        parts=np.full((n, info.parts, 4), np.nan, np.float32),
    )
    for i, row in enumerate(rows):
        if not row.ok:
            continue
        block.size[i] = row.width, row.height
        block.topk_index[i] = [index[label] for label in row.labels]
        block.topk_prob[i] = row.probs
        if row.box:
            block.box[i] = row.box
        if row.parts:
            block.parts[i, : len(row.parts)] = row.parts
    return block


def _other_run(out: Path, why: str) -> FgvcError:
    return FgvcError(
        f"--retry-failed cannot mend {out}: {why}.", "Type the options it was made with, or use --overwrite."
    )
