"""CSV, into a file or to stdout, and the columns that other tables take over."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from types import TracebackType
from typing import IO, Self

from fgvc_cli.errors import FgvcError
from fgvc_cli.formats.rows import Block, Row, RunInfo
from fgvc_cli.formats.sinks import FileSink

CRLF = "\r\n"


def csv_columns(top_k: int, parts: int = 0, multi_label: bool = False) -> list[str]:
    """The header: path, status, error, width, height, label, prob, label_2, prob_2, ..., the box, part boxes.

    Beyond the contract, a model with parts adds ``part_1_x1`` to ``part_P_y2`` behind the box, and a
    multi-label model ``labels`` behind all: those of the k with a probability above 0.5, joined by ``|``.
    """
    boxes = ["box", *(f"part_{k}" for k in range(1, parts + 1))]
    edges = [f"{box}_{edge}" for box in boxes for edge in ("x1", "y1", "x2", "y2")]
    several = ["labels"] if multi_label else []
    return ["path", "status", "error", "width", "height", *ranked_columns(top_k), *edges, *several]


def ranked_columns(top_k: int) -> list[str]:
    """label, prob, label_2, prob_2, ..."""
    ranks = ["", *(f"_{k}" for k in range(2, top_k + 1))]
    return [f"{name}{rank}" for rank in ranks for name in ("label", "prob")]


def csv_cells(row: Row, top_k: int, parts: int = 0, multi_label: bool = False) -> list[str]:
    """One line: probabilities with 6 decimals, box edges with 1; empty cells where there is no value."""
    guesses = zip(row.labels, row.probs, strict=True)
    ranked = [cell for label, prob in guesses for cell in (label, f"{prob:.6f}")]
    size = ["" if side is None else str(side) for side in (row.width, row.height)]
    boxes = [row.box, *row.parts] + [None] * (parts - len(row.parts))
    edges = [cell for box in boxes for cell in ([f"{edge:.1f}" for edge in box] if box else [""] * 4)]
    several = ["|".join(row.labels_there)] if multi_label else []
    return [row.path, row.status, row.error, *size, *(ranked or [""] * (2 * top_k)), *edges, *several]


class _Utf8Lines:
    """What csv.writer writes to: each line as UTF-8 with LF into a binary stream."""

    def __init__(self, stream: IO[bytes]):
        self.stream = stream

    def write(self, line: str) -> None:
        self.stream.write(f"{line.removesuffix(CRLF)}\n".encode(errors="backslashreplace"))


def csv_lines(stream: IO[bytes], rows: Iterable[list[str]]) -> None:
    """Cells as lines: UTF-8, LF, quoted where needed.

    Bytes of a file name that are not UTF-8 are written as ``\\udcXX`` (XX the byte in hex), so that any
    reader can read the whole file.
    """
    # Told that lines end in CRLF, csv quotes a lone CR too; readers take either for the end of a line.
    csv.writer(_Utf8Lines(stream), lineterminator=CRLF).writerows(rows)


class CsvSink(FileSink):
    """CSV into a file."""

    def _begin(self, info: RunInfo) -> None:
        self._info = info
        csv_lines(self._stream, [csv_columns(info.top_k, info.parts, info.multi_label)])

    def _write(self, block: Block) -> None:
        info = self._info
        cells = (csv_cells(row, info.top_k, info.parts, info.multi_label) for row in block.rows(info))
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
        self._put([csv_columns(info.top_k, info.parts, info.multi_label)])

    def write(self, block: Block) -> None:
        """Write a line for each row."""
        info = self._info
        self._put(csv_cells(row, info.top_k, info.parts, info.multi_label) for row in block.rows(info))

    def _put(self, rows: Iterable[list[str]]) -> None:
        try:
            csv_lines(self._stream, rows)
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise FgvcError(f"Could not write to stdout: {error.strerror or error}.") from error
