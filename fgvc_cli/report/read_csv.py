"""Reading back what ``predict.sink_csv`` writes; it tells neither the model nor classes never predicted."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from fgvc_cli.config import Preprocess
from fgvc_cli.data.labelled import natural_key
from fgvc_cli.errors import FgvcError
from fgvc_cli.predict.blocks import has_prediction, join
from fgvc_cli.predict.retry import rows_block
from fgvc_cli.predict.rows import Box, Row, RunInfo
from fgvc_cli.predict.sink_csv import csv_columns
from fgvc_cli.report.table import Table, check_count

BATCH_ROWS = 4096


def read_csv(path: Path) -> Table:
    """All rows. The file is read twice, first for its classes, so that no more than columns stays in memory.

    Raises:
        FgvcError: not the columns of fgvc predict; a cell that cannot be, with its line; too many rows.
    """
    top_k, parts = _read_header(path)
    names: set[str] = set()
    count = 0
    for row in _read_rows(path, top_k, parts):
        names.update(row.labels)
        count += 1
    check_count(path, count)
    info = RunInfo(
        model="",
        weights_sha256="",
        classes=tuple(sorted(names, key=natural_key)),
        preprocess=Preprocess(),
        top_k=top_k,
        parts=parts,
    )
    blocks, rows = [], _read_rows(path, top_k, parts)
    while batch := tuple(islice(rows, BATCH_ROWS)):
        blocks.append(rows_block(batch, 0, info))
    return Table(path, join(blocks), info)


def _read_header(path: Path) -> tuple[int, int]:
    """k and P, which the columns' names say."""
    header = next(_cells(path), (0, []))[1]
    if header[-1:] == ["labels"]:
        raise FgvcError(
            f"{path} is of a model that tells several labels per photograph.",
            "It does not name all of them; make the report of the .h5.",
        )
    top_k = sum(bool(re.fullmatch(r"prob(_\d+)?", name)) for name in header)
    parts = sum(bool(re.fullmatch(r"part_\d+_x1", name)) for name in header)
    if not top_k or header != csv_columns(top_k, parts):
        got = ",".join(header)[:60]
        message = f"{path} line 1: expected the columns of fgvc predict, {','.join(csv_columns(1)[:7])}..."
        raise FgvcError(f"{message}; got {got!r}.", "fgvc predict PHOTOS --out preds.csv")
    return top_k, parts


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Lines as (number of the last one read, cells)."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.reader(stream)
            for cells in reader:
                yield reader.line_num, cells
    except (UnicodeDecodeError, csv.Error) as error:
        raise FgvcError(f"{path} is not a UTF-8 CSV file: {error}.") from error


def _read_rows(path: Path, top_k: int, parts: int) -> Iterator[Row]:
    width = len(csv_columns(top_k, parts))
    for number, cells in islice(_cells(path), 1, None):
        if len(cells) != width:
            raise FgvcError(f"{path} line {number}: {len(cells)} values, expected {width}.")
        try:
            yield _row(cells, 5 + 2 * top_k)
        except ValueError as error:
            raise FgvcError(f"{path} line {number}: {error}.") from error


def _row(cells: list[str], boxes_at: int) -> Row:
    path, status, error, width, height = cells[:5]
    if not has_prediction(status):
        return Row(path, status, error)
    if "" in cells[3:boxes_at]:
        raise ValueError(f"a row of status {status} without its size, a label or a probability")
    boxes: list[Box | None] = []
    for at in range(boxes_at, len(cells), 4):
        x1, y1, x2, y2 = cells[at : at + 4]
        boxes.append((float(x1), float(y1), float(x2), float(y2)) if x1 else None)
    return Row(
        path=path,
        status=status,
        error=error,
        width=int(width),
        height=int(height),
        labels=tuple(cells[5:boxes_at:2]),
        probs=tuple(float(prob) for prob in cells[6:boxes_at:2]),
        box=boxes[0],
        parts=tuple(box for box in boxes[1:] if box),
    )
