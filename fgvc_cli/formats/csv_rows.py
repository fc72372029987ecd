"""CSV: into a file, to stdout, and read back; the columns that other tables take over.

A cell that a spreadsheet would take for a formula, from the name of a file or a class, gets a ``'`` in front
(``as_cell``); ``from_cell`` gives it back exactly. A spreadsheet shows the ``'`` of a file that it imports.
"""

from __future__ import annotations

import csv
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from fgvc_cli.data.names import as_cell, from_cell
from fgvc_cli.errors import FgvcError
from fgvc_cli.formats.rows import (
    COLUMNS,
    OK,
    UNKNOWN,
    UNSURE,
    Block,
    Box,
    FileSink,
    Layout,
    OtherRun,
    Row,
    RunInfo,
    Table,
    Value,
    as_text,
    box_headers,
    build_blocks,
    build_table,
    has_prediction,
)

CRLF = "\r\n"

_FRAME = re.compile(r"#(\d+)$")


def csv_columns(layout: Layout) -> list[str]:
    """The header: path, status, error, width, height, label, prob, label_2, prob_2, ..., the box, part boxes.

    Beyond the contract, a model with parts adds ``part_1_x1`` to ``part_P_y2`` behind the box, and a
    multi-label model ``labels`` behind those: the k with a probability above 0.5, joined by ``|``. What else
    a run has (``COLUMNS``) stands behind the path or behind all.
    """
    front, back = (
        [header for column in layout.known(behind_path=first) for header in column.headers]
        for first in (True, False)
    )
    boxes = ["box", *(f"part_{k}" for k in range(1, layout.parts + 1))]
    edges = [header for box in boxes for header in box_headers(box)]
    several = ["labels"] if layout.multi_label else []
    head = ["path", *front, "status", "error", "width", "height", *ranked_columns(layout.top_k)]
    return [*head, *edges, *several, *back]


def ranked_columns(top_k: int) -> list[str]:
    """label, prob, label_2, prob_2, ..."""
    ranks = ["", *(f"_{k}" for k in range(2, top_k + 1))]
    return [f"{name}{rank}" for rank in ranks for name in ("label", "prob")]


def csv_cells(row: Row, layout: Layout) -> list[str]:
    """One line: probabilities with 6 decimals, box edges with 1; empty cells where there is no value."""
    guesses = zip(row.labels, row.probs, strict=True)
    ranked = [cell for label, prob in guesses for cell in (label, f"{prob:.6f}")]
    size = ["" if side is None else str(side) for side in (row.width, row.height)]
    boxes = [row.box, *row.parts] + [None] * (layout.parts - len(row.parts))
    edges = [cell for box in boxes for cell in ([f"{edge:.1f}" for edge in box] if box else [""] * 4)]
    several = ["|".join(row.labels_there)] if layout.multi_label else []
    front, back = (
        [
            cell
            for column in layout.known(behind_path=first)
            for cell in column.cells(row.more.get(column.name))
        ]
        for first in (True, False)
    )
    head = [row.path, *front, row.status, row.error, *size]
    return [*head, *(ranked or [""] * (2 * layout.top_k)), *edges, *several, *back]


class _Utf8Lines:
    """What csv.writer writes to: each line as UTF-8 with LF into a binary stream."""

    def __init__(self, stream: IO[bytes]):
        self.stream = stream

    def write(self, line: str) -> None:
        self.stream.write(f"{line.removesuffix(CRLF)}\n".encode(errors="backslashreplace"))


def csv_lines(stream: IO[bytes], rows: Iterable[list[str]]) -> None:
    """Write cells as lines: UTF-8, LF, quoted where needed, none of them a formula (``as_cell``).

    Bytes of a file name that are not UTF-8 are written as ``\\udcXX`` (XX the byte in hex), so that any
    reader can read the whole file.
    """
    # Told that lines end in CRLF, csv quotes a lone CR too; readers take either for the end of a line.
    safe = ([as_cell(cell) for cell in cells] for cells in rows)
    csv.writer(_Utf8Lines(stream), lineterminator=CRLF).writerows(safe)


class CsvSink(FileSink):
    """CSV into a file."""

    def _begin(self, info: RunInfo) -> None:
        self._info = info
        csv_lines(self._stream, [csv_columns(info.layout)])

    def _write(self, block: Block) -> None:
        info = self._info
        cells = (csv_cells(row, info.layout) for row in block.rows(info))
        csv_lines(self._stream, cells)


class StdoutSink:
    """CSV to stdout, block by block as they come.

    Raises:
        FgvcError: stdout goes to a disk that is full.
        BrokenPipeError: whoever read stdout has gone.
    """

    def __init__(self) -> None:
        self._stream = sys.stdout.buffer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """stdout stays open."""

    def begin(self, info: RunInfo) -> None:
        """Write the header."""
        self._info = info
        self._put([csv_columns(info.layout)])

    def write(self, block: Block) -> None:
        """Write a line for each row."""
        info = self._info
        self._put(csv_cells(row, info.layout) for row in block.rows(info))

    def _put(self, rows: Iterable[list[str]]) -> None:
        try:
            csv_lines(self._stream, rows)
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise FgvcError(f"Could not write to stdout: {error.strerror or error}.") from error


class FileStarts:
    """Tells rows of one file from those of the next, in the order of a run.

    Args:
        frames: whether rows are frames, ``clip.gif#0``, ``clip.gif#1``, ...; else each row is a file.
    """

    def __init__(self, frames: bool):
        self._frames = frames
        self._name: str | None = None
        self._number: int | None = None

    def take(self, path: str) -> tuple[str, bool]:
        """The name of the file that the next row is of, and whether the row is its first one.

        A file that a list names twice is two files: its frames are counted from the start again.
        """
        match = _FRAME.search(path) if self._frames else None
        name, number = (path[: match.start()], int(match[1])) if match else (path, None)
        last = self._number if name == self._name else None
        self._name, self._number = name, number
        return name, number is None or last is None or number <= last


def per_file_columns(top_k: int) -> list[str]:
    """The header of ``PerFileSink``."""
    return ["path", "status", "error", "frames", "answered", *ranked_columns(top_k)]


class MeanAnswer:
    """The one answer of several rows: the mean of the probabilities of those that were answered.

    A class counts as 0 in a row that does not have it among its top k: the means are exact with ``top_k`` =
    all classes, and else at most as large.
    """

    def __init__(self) -> None:
        self.answered = 0
        """Rows with a prediction."""
        self._sums: defaultdict[int, float] = defaultdict(float)

    def add(self, block: Block, row: int) -> None:
        """Count a row of a block."""
        if block.topk_index[row, 0] < 0:
            return
        self.answered += 1
        for index, prob in zip(block.topk_index[row].tolist(), block.topk_prob[row].tolist(), strict=True):
            self._sums[index] += prob

    def best(self, count: int) -> list[tuple[float, int]]:
        """The most probable classes, at most ``count``, as (mean, class); of equals the first class first."""
        means = [(total / self.answered, index) for index, total in self._sums.items()]
        return sorted(means, key=lambda each: (-each[0], each[1]))[:count]


class PerFileSink(FileSink):
    """CSV: ``path,status,error,frames,answered,label,prob,label_2,...``, a row per file in their order.

    A probability is the mean over the frames, see ``MeanAnswer``. ``min_prob`` and ``thresholds`` of the run
    mark unsure ones; a file is unknown by the mean of its frames' novelty. Where no frame was answered,
    ``status`` and ``error`` are those of the first.
    """

    def _begin(self, info: RunInfo) -> None:
        self._info = info
        self._starts = FileStarts("frames" in info.settings)
        self._name: str | None = None
        csv_lines(self._stream, [per_file_columns(info.top_k)])

    def _start(self, name: str, status: str, error: str) -> None:
        self._name, self._failure = name, (status, error)
        self._frames, self._mean = 0, MeanAnswer()
        self._novelty = 0.0

    def _write(self, block: Block) -> None:
        for row, path in enumerate(block.path):
            name, starts = self._starts.take(path)
            if starts:
                self._finish()
                self._start(name, block.status[row], block.error[row])
            self._frames += 1
            self._mean.add(block, row)
            if block.topk_index[row, 0] >= 0 and "novelty" in block.more:
                self._novelty += float(block.more["novelty"][row])

    def _finish(self) -> None:
        if self._name is None:
            return
        info = self._info
        best = self._mean.best(info.top_k)
        status, error = self._failure
        if best:
            status, error = self._status(*best[0]), ""
        ranked = [cell for mean, index in best for cell in (info.classes[index], f"{mean:.6f}")]
        counts = [str(self._frames), str(self._mean.answered)]
        csv_lines(self._stream, [[self._name, status, error, *counts, *(ranked or [""] * (2 * info.top_k))]])

    def _status(self, prob: float, index: int) -> str:
        settings, name = self._info.settings, self._info.classes[index]
        if self._novelty / self._mean.answered > settings.get("unknown", math.inf):
            return UNKNOWN
        least = max(settings.get("min_prob") or 0, settings.get("thresholds", {}).get(name, 0))
        return UNSURE if prob < least else OK

    def _close(self, *, complete: bool) -> None:
        if complete and hasattr(self, "_name"):
            self._finish()


class TerminalSink(StdoutSink):
    """Rows for somebody who looks at them: of one image a readable line, of several the CSV as
    ``StdoutSink``."""

    on_terminal = True

    def begin(self, info: RunInfo) -> None:
        """The header waits until there are two rows."""
        self._info = info
        self._first: Row | None = None
        self._begun = False

    def write(self, block: Block) -> None:
        """Write a line for each row, but keep the first one until a second comes."""
        rows = list(block.rows(self._info))
        if not self._begun and self._first is None and len(rows) == 1:
            self._first = rows[0]
            return
        if not self._begun:
            self._begun = True
            super().begin(self._info)
            rows = [self._first, *rows] if self._first else rows
        info = self._info
        self._put(csv_cells(row, info.layout) for row in rows)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the line of the only row."""
        if kind is None and not self._begun and self._first:
            line = as_text(readable(self._first, self._info.multi_label))
            self._stream.write(f"{line}\n".encode())
            self._stream.flush()


def readable(row: Row, multi_label: bool = False) -> str:
    """A row as people read it: ``bird.jpg: spotted-linnet 93.1%, ringed-linnet 4.2%``, likeliest first.

    Control characters of a file name are shown as escapes, so that it cannot steer the terminal.
    """
    name = "".join(c if c.isprintable() else repr(c)[1:-1] for c in as_text(row.path))
    if not row.ok:
        return f"{name}: {row.status}: {row.error}"
    names = ", ".join(f"{label} {prob:.1%}" for label, prob in zip(row.labels, row.probs, strict=True))
    if multi_label:
        there = ", ".join(row.labels_there) or "none of the labels"
        return f"{name}: {there} ({names})"
    return f"{name}: {names}{f' ({row.status})' if row.status != OK else ''}"


def read_table(path: Path) -> Table:
    """Read all rows.

    Raises:
        FgvcError: not the columns of fgvc predict; a cell that cannot be, with its line; too many rows; a
            model that tells several labels per image.
    """
    layout = _read_header(path)
    if layout.multi_label:
        raise FgvcError(
            f"{path} is of a model that tells several labels per image.",
            "It does not name all of them; make the report of the .h5.",
        )
    return build_table(path, lambda: _read_rows(path, layout), layout)


def read_blocks(path: Path, info: RunInfo) -> Iterator[Block]:
    """Read the rows of a finished run, which have no extras.

    Raises:
        FgvcError: as ``read_table``.
        OtherRun: other columns or classes than those of the run.
    """
    if _read_header(path) != info.layout:
        raise OtherRun("its columns are not those of this run")
    yield from build_blocks(_read_rows(path, info.layout), info)


def read_per_file(path: Path, info: RunInfo) -> Iterator[str]:
    """Read the names of the files that ``PerFileSink`` has written of a run.

    Raises:
        FgvcError: not a UTF-8 CSV file.
        OtherRun: other columns.
    """
    lines = _read_cells(path)
    if next(lines, (0, []))[1] != per_file_columns(info.top_k):
        raise OtherRun("its columns are not those of --per-file")
    yield from (cells[0] for _, cells in lines)


def read_layout(header: Sequence[str]) -> Layout | None:
    """What the names of a table's columns say; None where they are not those of fgvc predict."""
    top_k = sum(bool(re.fullmatch(r"prob(_\d+)?", name)) for name in header)
    parts = sum(bool(re.fullmatch(r"part_\d+_x1", name)) for name in header)
    columns = tuple(name for name, column in COLUMNS.items() if column.headers[0] in header)
    layout = Layout(top_k, parts, "labels" in header, columns)
    return layout if top_k and list(header[: len(csv_columns(layout))]) == csv_columns(layout) else None


def _read_header(path: Path) -> Layout:
    header = next(_read_cells(path), (0, []))[1]
    layout = read_layout(header)
    if layout is None or len(header) != len(csv_columns(layout)):
        got = ",".join(header)[:60]
        wanted = ",".join(csv_columns(Layout(1))[:7])
        message = f"{path} line 1: expected the columns of fgvc predict, {wanted}..."
        raise FgvcError(f"{message}; got {got!r}.", "fgvc predict PHOTOS --out preds.csv")
    return layout


def _read_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Lines as (number of the last one read, cells). A byte order mark, which Excel writes, is no cell's."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            for cells in reader:
                yield reader.line_num, [from_cell(cell) for cell in cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FgvcError(f"{path} is not a UTF-8 CSV file: {error}.") from error


def _read_rows(path: Path, layout: Layout) -> Iterator[Row]:
    columns = csv_columns(layout)
    width = len(columns)
    places = {
        name: slice(at := columns.index(COLUMNS[name].headers[0]), at + len(COLUMNS[name].headers))
        for name in layout.columns
    }
    taken = {at for place in places.values() for at in range(place.start, place.stop)}
    kept = [at for at, name in enumerate(columns) if at not in taken and name != "labels"]
    for number, cells in islice(_read_cells(path), 1, None):
        if len(cells) != width:
            raise FgvcError(f"{path} line {number}: {len(cells)} values, expected {width}.")
        try:
            values = {name: COLUMNS[name].parse(cells[place]) for name, place in places.items()}
            more = {name: value for name, value in values.items() if value is not None}
            yield _row([cells[at] for at in kept], 5 + 2 * layout.top_k, more)
        except ValueError as error:
            raise FgvcError(f"{path} line {number}: {error}.") from error


def _row(cells: list[str], boxes_at: int, more: Mapping[str, Value]) -> Row:
    path, status, error, width, height = cells[:5]
    if not has_prediction(status):
        return Row(path, status, error, more=more)
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
        more=more,
    )
