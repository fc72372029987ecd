"""Completed rows on disk: one ``.npz`` per group of blocks, never touched again once it has its name.

A part holds plain numpy arrays (texts and JPEGs as bytes and their ends), no pickle; the zip around them
keeps a CRC of each. ``rows-000000002000.npz`` begins with row 2000 of its folder.
"""

from __future__ import annotations

import io
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from fgvc_cli.errors import FgvcError
from fgvc_cli.files import reason, whole_file
from fgvc_cli.formats.rows import ARRAYS, COLUMNS, OPTIONAL_ARRAYS, TEXTS, Block, as_text, block_bytes, join
from fgvc_cli.store import StorePath

PART_ROWS = 1000
FIRST_SECONDS, PART_SECONDS = 2.0, 20.0
"""What a kill can cost: little at first, twice as much after each group, so that a job that is killed again
and again advances."""
PART_BYTES = 64 << 20


def part_name(first: int) -> str:
    """File name of the part that begins with this row; names sort as the rows do."""
    return f"rows-{first:012d}.npz"


def list_parts(folder: Path) -> list[Path]:
    """The parts of a folder, in order."""
    return sorted(folder.glob("rows-*.npz"))


def write_part(folder: Path, block: Block, held: str = "") -> Path:
    """Commit a block: temporary file, fsync, rename.

    Args:
        held: what the file is called behind its name until another process commits it.

    Raises:
        FgvcError: the disk is full, the folder has gone or cannot be written; the parts before it stay.
    """
    arrays: dict[str, Any] = {"first": np.int64(block.first)}
    for name in TEXTS:
        arrays |= _pack(name, [as_text(text).encode() for text in getattr(block, name)])
    for name in (*ARRAYS, *OPTIONAL_ARRAYS):
        if (column := getattr(block, name)) is not None:
            arrays[name] = column
    for name, values in block.more.items():
        if isinstance(values, list):
            arrays |= _pack(name, [as_text(text).encode() for text in values])
        else:
            arrays[name] = values
    if block.crop is not None:
        arrays |= _pack("crop", block.crop)
    path = folder / f"{part_name(block.first)}{held}"
    try:
        with whole_file(path) as stream:
            np.savez(stream, **arrays)
    except OSError as error:
        if not folder.exists():
            message = f"Could not write {path}: {reason(error)}; {folder} is gone and its rows are lost."
            raise FgvcError(message, "The same command again begins anew.") from error
        raise FgvcError(
            f"Could not write {path}: {reason(error)}; the {block.first:,} rows before it are kept.",
            "Free space or check the folder, then type the same command again.",
        ) from error
    return path


def read_part(path: Path, *, light: bool = False) -> Block:
    """A committed block, checked against its CRCs.

    Args:
        light: without crops, maps and the like.

    Raises:
        FgvcError: it is damaged or cannot be read.
    """
    with _Part(path) as file:
        texts = {name: file.texts(name) for name in TEXTS}
        optional = () if light else OPTIONAL_ARRAYS
        arrays = {name: file.array(name) for name in (*ARRAYS, *optional) if file.has(name)}
        crop = file.pieces("crop") if file.has("crop_ends") and not light else None
        more = {
            name: file.texts(name) if column.kind == "text" else file.array(name)
            for name, column in COLUMNS.items()
            if file.has(name)
        }
        first = int(file.array("first"))
        return Block(first=first, crop=crop, more=more, **texts, **arrays)  # type: ignore[arg-type]


def read_names(path: Path) -> tuple[int, list[str], list[str]]:
    """First row, paths and statuses of a part, without the rest of it.

    Raises:
        FgvcError: as ``read_part``.
    """
    with _Part(path) as file:
        return int(file.array("first")), file.texts("path"), file.texts("status")


def _pack(name: str, pieces: Sequence[bytes]) -> dict[str, np.ndarray]:
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    return {name: np.frombuffer(b"".join(pieces), np.uint8), f"{name}_ends": ends}


class _Part:
    """An open part; whatever is wrong inside the block becomes the user's line."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> Self:
        try:
            # Of a store the whole part, in one request rather than one for each array.
            where = io.BytesIO(self._path.read_bytes()) if isinstance(self._path, StorePath) else self._path
            self._file = np.load(where, allow_pickle=False)
        except BaseException as error:
            self._explain(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if error is not None:
            self._explain(error)

    def _explain(self, error: BaseException) -> None:
        if isinstance(error, zipfile.BadZipFile | zlib.error | EOFError | KeyError | ValueError | OSError):
            raise FgvcError(
                f"{self._path} is damaged: {' '.join(str(error).split())}.",
                f"rm {self._path}, then the same command again reads its rows anew.",
            ) from error

    def has(self, name: str) -> bool:
        return name in self._file.files

    def array(self, name: str) -> np.ndarray:
        return self._file[name]

    def pieces(self, name: str) -> list[bytes]:
        data, ends = self.array(name).tobytes(), self.array(f"{name}_ends").tolist()
        starts = [0, *ends[:-1]]
        return [data[start:end] for start, end in zip(starts, ends, strict=True)] if ends else []

    def texts(self, name: str) -> list[str]:
        return [piece.decode() for piece in self.pieces(name)]


class PartWriter:
    """Gathers blocks and commits them in groups, in a thread of its own, so that the model does not wait.

    A context manager: leaving it waits for the thread, and commits nothing more; ``flush`` does.

    Args:
        folder: where parts lie.
        first: number of the next row.
        rows, seconds, size_bytes: a group is committed as soon as it reaches one of them; the first ones
            sooner, see ``FIRST_SECONDS``.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        folder: Path,
        *,
        first: int = 0,
        rows: int = PART_ROWS,
        seconds: float = PART_SECONDS,
        size_bytes: int = PART_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._folder = folder
        self.next_row = first
        self._rows, self._seconds, self._bytes = rows, seconds, size_bytes
        self._wait_seconds = min(FIRST_SECONDS, seconds)
        self._clock = clock
        self._pending: list[Block] = []
        self._pending_bytes = 0
        self._since = clock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._committing: Future[Path] | None = None
        self._broken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown()

    def add(self, block: Block) -> None:
        """Take the next rows.

        Raises:
            FgvcError: as ``write_part``, for this group or the one before.
        """
        if block.first != self.next_row:
            raise ValueError(f"row {block.first} came, row {self.next_row} was expected")
        if not len(block):
            return
        self._pending.append(block)
        self.next_row += len(block)
        self._pending_bytes += block_bytes(block)
        full = self.next_row - self._pending[0].first >= self._rows or self._pending_bytes >= self._bytes
        if full or self._clock() - self._since >= self._wait_seconds:
            self._commit()

    def flush(self) -> None:
        """Commit what is left, and wait until all of it is on disk; nothing after a group that failed.

        Raises:
            FgvcError: as ``write_part``.
        """
        if self._pending and not self._broken:
            self._commit()
        self._wait()

    def _commit(self) -> None:
        self._wait()
        blocks, self._pending, self._pending_bytes = self._pending, [], 0
        self._since = self._clock()
        self._wait_seconds = min(2 * self._wait_seconds, self._seconds)
        self._committing = self._pool.submit(lambda: write_part(self._folder, join(blocks)))

    def _wait(self) -> None:
        committing, self._committing = self._committing, None
        if committing:
            self._broken = committing.exception() is not None
            committing.result()


def read_blocks(parts: Sequence[Path], *, light: bool = False) -> Iterator[Block]:
    """The blocks of parts, one at a time.

    Args:
        light: as ``read_part``.

    Raises:
        FgvcError: as ``read_part``; rows between two parts are missing.
    """
    row = 0
    for path in parts:
        block = read_part(path, light=light)
        if block.first != row:
            message = f"{path.parent} lacks rows {row:,} to {block.first - 1:,}."
            raise FgvcError(message, "Type the command that predicted them again; it reads them anew.")
        row += len(block)
        yield block
