"""Where rows go. A sink is a context manager; a new format is one class and one entry in ``SINKS``."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

from fgvc_cli.atomic import AtomicFile
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.predict.rows import Row, RunInfo

CRLF = "\r\n"


class Sink(Protocol):
    """Entering checks that the output can be written; leaving without an exception completes it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def begin(self, info: RunInfo) -> None:
        """Called once, before the first row."""

    def write(self, row: Row) -> None:
        """One row, in the order of the images."""


def csv_columns(top_k: int, parts: int = 0) -> list[str]:
    """The header: path, status, error, width, height, label, prob, label_2, prob_2, ..., the box, part boxes.

    Beyond the contract, a model with parts adds ``part_1_x1`` to ``part_P_y2`` behind the box.
    """
    ranks = ["", *(f"_{k}" for k in range(2, top_k + 1))]
    ranked = [f"{name}{rank}" for rank in ranks for name in ("label", "prob")]
    boxes = ["box", *(f"part_{k}" for k in range(1, parts + 1))]
    edges = [f"{box}_{edge}" for box in boxes for edge in ("x1", "y1", "x2", "y2")]
    return ["path", "status", "error", "width", "height", *ranked, *edges]


def csv_cells(row: Row, top_k: int, parts: int = 0) -> list[str]:
    """One line: probabilities with 6 decimals, box edges with 1; empty cells where there is no value."""
    guesses = zip(row.labels, row.probs, strict=True)
    ranked = [cell for label, prob in guesses for cell in (label, f"{prob:.6f}")]
    size = ["" if side is None else str(side) for side in (row.width, row.height)]
    boxes = [row.box, *row.parts] + [None] * (parts - len(row.parts))
    edges = [cell for box in boxes for cell in ([f"{edge:.1f}" for edge in box] if box else [""] * 4)]
    return [row.path, row.status, row.error, *size, *(ranked or [""] * (2 * top_k)), *edges]


class _Utf8Lines:
    """What csv.writer writes to: each line as UTF-8 with LF into a binary stream."""

    def __init__(self, stream: IO[bytes]):
        self.stream = stream

    def write(self, line: str) -> None:
        self.stream.write(f"{line.removesuffix(CRLF)}\n".encode(errors="backslashreplace"))


class CsvSink:
    """CSV into a file that appears complete or not at all (``AtomicFile``), or line by line to stdout.

    UTF-8, LF, quoted where needed. Bytes of a file name that are not UTF-8 are written as ``\\udcXX`` (XX the
    byte in hex), so that any reader can read the whole file.

    Args:
        out: the file, or None for stdout.
        overwrite: replace a file that is there.

    Raises:
        FgvcError: the file exists and may not be replaced, or cannot be written.
        BrokenPipeError: whoever read stdout has gone.
    """

    def __init__(self, out: Path | None, *, overwrite: bool = False):
        self._file = AtomicFile(out, overwrite=overwrite) if out else None

    def __enter__(self) -> Self:
        self._stream = self._file.__enter__() if self._file else sys.stdout.buffer
        # Told that lines end in CRLF, csv quotes a lone CR too; readers take either for the end of a line.
        self._lines = csv.writer(_Utf8Lines(self._stream), lineterminator=CRLF)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.__exit__(kind, error, trace)

    def begin(self, info: RunInfo) -> None:
        """Write the header."""
        self._info = info
        self._write(csv_columns(info.top_k, info.parts))

    def write(self, row: Row) -> None:
        """Write one line."""
        self._write(csv_cells(row, self._info.top_k, self._info.parts))

    def _write(self, cells: list[str]) -> None:
        try:
            self._lines.writerow(cells)
            if not self._file:
                self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            if self._file:
                raise self._file.explain(error) from error
            raise FgvcError(f"Could not write to stdout: {error.strerror or error}.") from error


SINKS: dict[str, Callable[..., Sink]] = {".csv": CsvSink}
"""Ending of OUT -> its sink, made as ``SINKS[ending](out, overwrite=...)``."""


def open_sink(out: Path | None, *, overwrite: bool = False) -> Sink:
    """The sink for a file, by its ending, or CSV to stdout for None; nothing is touched before entering it.

    Raises:
        FgvcError: an ending without a sink.
    """
    if out is None:
        return CsvSink(None)
    if out.suffix.lower() not in SINKS:
        known = ", ".join(SINKS)
        raise FgvcError(f"Cannot write {out.name}: expected a name ending in {known}.", None, EXIT_USAGE)
    return SINKS[out.suffix.lower()](out, overwrite=overwrite)
