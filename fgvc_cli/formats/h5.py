"""HDF5: one resizable, row-aligned data set per field, and what all rows share as root attributes.

Legend: N rows, k predictions per row, P parts, K classes, D embedding width, h w of a map.

    path status error   (N,) UTF-8 strings of any length; ``ok`` is the status of a row with a prediction
    size                (N, 2) int32: width, height of the upright image, pixels
    topk_index          (N, k) int32: into the attribute ``class_names``; -1 without a prediction
    topk_prob           (N, k) float32
    box                 (N, 4) float32: see the attribute ``box_convention``; NaN without one
    parts               (N, P, 4) float32, as box; only from a model with parts
    attention           (N, h, w) float16 in [0, 1] over the model's input, on request
    crop                (N,) bytes of a JPEG as uint8 of any length, empty without one, on request
    embedding           (N, D) float32, on request
    logits              (N, K) float32: log of the fused, calibrated probabilities, on request

What else a run has (``COLUMNS`` of rows.py): texts, (N,) float64, boxes (N, 4) float32, by their names.
Where the images were is an attribute too, where it is known: ``sources`` as typed, ``working_folder``.

Arrays are compressed with gzip, which every HDF5 reader has (lzf only h5py), behind a shuffle, with a
checksum per chunk; values of any length cannot be.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np

from fgvc_cli.config import stored_preprocess
from fgvc_cli.errors import FgvcError
from fgvc_cli.files import readable
from fgvc_cli.formats.rows import (
    ARRAYS,
    COLUMNS,
    HOW_TO,
    OPTIONAL_ARRAYS,
    READ_ROWS,
    SCHEMA_VERSION,
    TEXTS,
    Block,
    Extra,
    FileSink,
    Origin,
    OtherRun,
    RunInfo,
    Table,
    as_text,
    check_count,
    check_same_run,
    shared_by_rows,
)

BOX_CONVENTION = "xyxy pixels of the EXIF-upright image, end-exclusive"
DESCRIPTIONS = {
    "attention": "in [0, 1] over the model's input",
    "crop": "bytes of a JPEG, empty without one",
    "logits": "natural logarithm of the fused, calibrated probabilities",
}
"""Attribute ``description`` of data sets whose names do not say it."""


class H5Sink(FileSink):
    """HDF5 into a file."""

    by_name = True

    def _begin(self, info: RunInfo) -> None:
        self._rows = H5Rows(self._stream.name)
        for name, value in root_attributes(info).items():
            self._rows.file.attrs[name] = value
        if self.origin:
            self._rows.file.attrs["sources"] = np.array(list(self.origin.sources), dtype=h5py.string_dtype())
            self._rows.file.attrs["working_folder"] = self.origin.working_folder
        for name in TEXTS:
            self._add(name, (), h5py.string_dtype())
        self._add("size", (2,), np.int32)
        self._add("topk_index", (info.top_k,), np.int32)
        self._add("topk_prob", (info.top_k,), np.float32)
        self._add("box", (4,), np.float32)
        if info.parts:
            self._add("parts", (info.parts, 4), np.float32)
        if "crop" in self.extras:
            self._add("crop", (), h5py.vlen_dtype(np.uint8))
        types: dict[str, tuple[tuple[int, ...], Any]] = {
            "text": ((), h5py.string_dtype()),
            "number": ((), np.float64),
            "box": ((4,), np.float32),
        }
        for column in (COLUMNS[name] for name in info.columns):
            self._rows.add(column.name, *types[column.kind], description=column.description)

    def _add(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        self._rows.add(name, shape, dtype, description=DESCRIPTIONS.get(name, ""))

    def _write(self, block: Block) -> None:
        columns: dict[str, Any] = {name: [as_text(text) for text in getattr(block, name)] for name in TEXTS}
        columns |= {name: getattr(block, name) for name in ARRAYS if name in self._rows}
        for name, values in block.more.items():
            texts = isinstance(values, list)
            columns[name] = [as_text(text) for text in values] if texts else values
        for name in OPTIONAL_ARRAYS:
            array = getattr(block, name)
            if name in self.extras and array is not None:
                if name not in self._rows:
                    # Its width is known from the first row that met the model; those before it stay NaN.
                    self._add(name, array.shape[1:], array.dtype)
                columns[name] = array
        if "crop" in self._rows and block.crop and any(block.crop):
            columns["crop"] = ragged(block.crop)
        self._rows.append(len(block), columns)

    def _close(self, *, complete: bool) -> None:
        if not hasattr(self, "_rows"):
            return
        # An extra that no row has, as none met the model, is still there, with no width.
        for name in OPTIONAL_ARRAYS if complete else ():
            if name in self.extras and name not in self._rows:
                self._rows.file.create_dataset(name, shape=(self._rows.count, 0), dtype=np.float32)
                self._rows.describe(name, DESCRIPTIONS.get(name, ""))
        self._rows.close()


def root_attributes(info: RunInfo) -> dict[str, Any]:
    """What a file says of all its rows."""
    shared = shared_by_rows(info)
    return {
        **shared,
        "class_names": np.array(shared["class_names"], dtype=h5py.string_dtype()),
        "preprocessing": json.dumps(shared["preprocessing"]),
        "settings": json.dumps(shared["settings"]),
        "box_convention": BOX_CONVENTION,
    }


NEEDED = (*TEXTS, "size", "topk_index", "topk_prob", "box")
ATTRIBUTES = ("schema_version", "class_names", "preprocessing")
CACHE_BYTES = 8 << 20
"""Of decompressed chunks, per data set: rows read one after another decompress each chunk once."""


def open_h5(path: Path) -> h5py.File:
    """The file, read-only, to be closed.

    Raises:
        FgvcError: it cannot be opened.
    """
    with reading(path):
        return h5py.File(readable(path), "r", rdcc_nbytes=CACHE_BYTES)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Round each read of the file: what h5py raises becomes the user's line.

    Raises:
        FgvcError: something in it cannot be read.
    """
    try:
        yield
    # h5py raises any of these for a file that is cut short, damaged, or built to confuse.
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise FgvcError(f"{path} cannot be read as HDF5: {reason}.", HOW_TO) from error


def read_table(path: Path) -> Table:
    """Read all rows but their maps, crops, embeddings and logits.

    Raises:
        FgvcError: damaged, not written by fgvc, by a newer fgvc, or too many rows.
    """
    with open_h5(path) as file, reading(path):
        _check(path, file)
        rows = len(file["path"])
        check_count(path, rows)
        columns: dict[str, Any] = {name: file[name].asstr()[:].tolist() for name in TEXTS}
        columns |= {name: file[name][:] for name in ("size", "topk_index", "topk_prob", "box")}
        columns["parts"] = file["parts"][:] if "parts" in file else np.empty((rows, 0, 4), np.float32)
        columns["more"] = {name: _read_column(file[name], slice(None)) for name in _known(file)}
        classes = tuple(str(name) for name in file.attrs["class_names"])
        known: tuple[Extra, ...] = ("attention", "crop")
        info = RunInfo(
            model=str(file.attrs.get("model", "")),
            weights_sha256=str(file.attrs.get("weights_sha256", "")),
            classes=classes,
            preprocess=stored_preprocess(_document(path, file, "preprocessing")),
            top_k=columns["topk_index"].shape[1],
            parts=columns["parts"].shape[1],
            # An extra that no row had has no width.
            extras=tuple(extra for extra in known if extra in file and 0 not in file[extra].shape),
            columns=_known(file),
            settings=_document(path, file, "settings"),
        )
        origin = _origin(file)
    if columns["topk_index"].max() >= len(classes):
        raise FgvcError(f"{path} is damaged: it names class {columns['topk_index'].max()} of {len(classes)}.")
    return Table(path, Block(first=0, **columns), info, origin)


def read_embeddings(path: Path, rows: np.ndarray) -> np.ndarray | None:
    """Embeddings (n, D) float32 of rows (n,) by their numbers, NaN where a row has none; None where the file
    holds none.

    Raises:
        FgvcError: it cannot be read, or they are not those of its rows.
    """
    with open_h5(path) as file, reading(path):
        stored = file.get("embedding")
        if not isinstance(stored, h5py.Dataset) or stored.ndim != 2 or 0 in stored.shape:
            return None
        if len(stored) != len(file["path"]):
            raise FgvcError(f"{path} is damaged: embedding has {len(stored)} rows of {len(file['path'])}.")
        found = np.empty((len(rows), stored.shape[1]), np.float32)
        for first in np.unique(rows // READ_ROWS) * READ_ROWS:
            here = (rows >= first) & (rows < first + READ_ROWS)
            found[here] = stored[first : first + READ_ROWS][rows[here] - first]
        return found


def _document(path: Path, file: h5py.File, name: str) -> dict[str, Any]:
    """A JSON attribute; empty where the file has none."""
    try:
        return dict(json.loads(file.attrs.get(name, "{}")))
    except (TypeError, ValueError) as error:
        raise FgvcError(f"{path} is damaged: its {name} is no JSON.") from error


def _shared(path: Path, file: h5py.File) -> dict[str, Any]:
    """What ``shared_by_rows`` gave, as far as the file has it."""
    texts = {name: str(file.attrs.get(name, "")) for name in ("model", "weights_sha256", "fgvc_version")}
    documents = {name: _document(path, file, name) for name in ("preprocessing", "settings")}
    return texts | documents | {"class_names": [str(name) for name in file.attrs["class_names"]]}


def _origin(file: h5py.File) -> Origin | None:
    if "sources" not in file.attrs or "working_folder" not in file.attrs:
        return None
    sources = tuple(str(source) for source in file.attrs["sources"])
    return Origin(sources, str(file.attrs["working_folder"]))


def _check(path: Path, file: h5py.File) -> None:
    """Raise FgvcError unless fgvc predict wrote this, in a form that is known here."""
    missing = [name for name in NEEDED if not isinstance(file.get(name), h5py.Dataset)]
    missing += [name for name in ATTRIBUTES if name not in file.attrs]
    if missing:
        raise FgvcError(f"{path} is not what fgvc predict writes: it has no {missing[0]}.", HOW_TO)
    if (version := file.attrs["schema_version"]) not in range(1, SCHEMA_VERSION + 1):
        message = f"{path} has the schema {version}, this fgvc reads 1 to {SCHEMA_VERSION}."
        raise FgvcError(message, "Predict again, or use the fgvc that wrote it.")
    rows, top_k = len(file["path"]), file["topk_index"].shape[-1:]
    shapes: dict[str, tuple[int, ...]] = {name: (rows,) for name in (*TEXTS, "crop")}
    shapes |= {name: (rows, 4) if COLUMNS[name].kind == "box" else (rows,) for name in _known(file)}
    shapes |= {"size": (rows, 2), "box": (rows, 4), "topk_index": (rows, *top_k), "topk_prob": (rows, *top_k)}
    for name, shape in shapes.items():
        if name in file and (file[name].shape != shape or 0 in shape[1:]):
            raise FgvcError(f"{path} is damaged: {name} has the shape {file[name].shape}, for {rows} rows.")
    for name in ("parts", "attention"):
        if name in file and len(file[name]) != rows:
            raise FgvcError(f"{path} is damaged: {name} has {len(file[name])} rows of {rows}.")


def read_setting(path: Path, name: str) -> Any:
    """Look up a setting of the run that a file is of; None where it tells none.

    Raises:
        FgvcError: it cannot be opened.
    """
    with open_h5(path) as file, reading(path):
        return _document(path, file, "settings").get(name)


def read_extras(path: Path) -> tuple[Extra, ...]:
    """Which extras the rows of a file have.

    Raises:
        FgvcError: it cannot be opened.
    """
    with open_h5(path) as file:
        return tuple(extra for extra in get_args(Extra) if extra in file)


def read_blocks(path: Path, info: RunInfo) -> Iterator[Block]:
    """Read the rows of a finished run exactly, with their extras.

    Raises:
        FgvcError: as ``read_table``.
        OtherRun: as ``check_same_run``; other extras or predictions per row.
    """
    with open_h5(path) as file, reading(path):
        _check(path, file)
        check_same_run(_shared(path, file), info)
        if _known(file) != info.columns:
            raise OtherRun("its columns are not those of this run")
        sets = {name: file[name] for name in (*TEXTS, *ARRAYS, *info.extras, *info.columns) if name in file}
        if missing := [extra for extra in info.extras if extra not in sets]:
            raise OtherRun(f"it holds no {missing[0]}")
        if sets["topk_index"].shape[1] != info.top_k:
            raise OtherRun(f"it holds {sets['topk_index'].shape[1]} predictions per row")
        for first in range(0, len(sets["path"]), READ_ROWS):
            yield _read_block(sets, first)


def _read_block(sets: Mapping[str, h5py.Dataset], first: int) -> Block:
    rows = slice(first, first + READ_ROWS)
    columns: dict[str, Any] = {name: sets[name].asstr()[rows].tolist() for name in TEXTS}
    columns |= {name: sets[name][rows] for name in (*ARRAYS, *OPTIONAL_ARRAYS) if name in sets}
    columns.setdefault("parts", np.empty((len(columns["path"]), 0, 4), np.float32))
    # An extra that no row had has no width.
    columns = {k: v for k, v in columns.items() if k not in OPTIONAL_ARRAYS or v.shape[1]}
    crop = [item.tobytes() for item in sets["crop"][rows]] if "crop" in sets else None
    more = {name: _read_column(sets[name], rows) for name in COLUMNS if name in sets}
    return Block(first=first, crop=crop, more=more, **columns)


def _known(file: h5py.File) -> tuple[str, ...]:
    return tuple(name for name in COLUMNS if name in file)


def _read_column(values: h5py.Dataset, rows: slice) -> Any:
    """A column of ``Block.more``."""
    return values.asstr()[rows].tolist() if values.dtype.kind == "O" else values[rows]


CHUNK_BYTES = 1 << 20
CHUNK_ROWS = 1024
COMPRESSORS = 4
"""Threads at most, each with a chunk."""
# Version 1.8 of the file format holds attributes above 64 KiB (the names of very many classes).
LIBVER = ("v108", "v110")


class H5Rows:
    """Data sets of N rows each, in an open file; ``append`` adds to all of them.

    Args:
        name: of a file that is there, and empty.
        more: it is one of these already, to be continued.
    """

    def __init__(self, name: str, *, more: bool = False):
        self._disk = _Disk(name)
        self.file = h5py.File(self._disk, "r+" if more else "w", libver=LIBVER)
        self._sets: dict[str, h5py.Dataset] = dict(self.file.items())
        self.count = len(next(iter(self._sets.values()))) if more else 0
        """N."""
        self._open: dict[str, _OpenChunk] = {}
        """Of those in chunks of numbers."""
        threads = min(COMPRESSORS, os.cpu_count() or 1)
        self._compressors = ThreadPoolExecutor(threads, thread_name_prefix="compress")
        self._compressing: deque[tuple[h5py.Dataset, int, Future[bytes]]] = deque()
        self._ahead = threads + 1
        for name, data_set in self._sets.items():
            self._begin(name, data_set)

    def __contains__(self, name: str) -> bool:
        return name in self._sets

    def add(
        self, name: str, shape: tuple[int, ...], dtype: Any, *, description: str = "", compress: bool = True
    ) -> None:
        """A data set (N, *shape) with as many blank rows as there are: NaN in floats, else 0 or empty.

        Args:
            description: what its name does not say.
            compress: not for numbers that are noise to a compressor and are read often.
        """
        dtype = np.dtype(dtype)
        # Texts and JPEGs lie in a heap of the file that no filter reaches.
        filters: dict[str, Any] = {}
        if dtype.kind != "O":
            filters = {"fletcher32": True}
        if filters and compress:
            filters |= {"compression": "gzip", "compression_opts": 1, "shuffle": True}
        row_bytes = max(1, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        chunk = min(CHUNK_ROWS, max(1, CHUNK_BYTES // row_bytes))
        self._sets[name] = self.file.create_dataset(
            name,
            shape=(self.count, *shape),
            maxshape=(None, *shape),
            chunks=(chunk, *shape),
            dtype=dtype,
            # Rows only come at the end: two chunks, and memory does not grow with the file.
            rdcc_nbytes=2 * chunk * row_bytes,
            **filters,
            fillvalue=np.nan if dtype.kind == "f" else None,
        )
        self._begin(name, self._sets[name])
        self.describe(name, description)

    def _begin(self, name: str, data_set: h5py.Dataset) -> None:
        """Rows of numbers that come next are added to those of the last chunk."""
        if not data_set.fletcher32:
            return
        begun = self.count % data_set.chunks[0]
        blank = np.full(data_set.chunks, np.nan if data_set.dtype.kind == "f" else 0, data_set.dtype)
        self._open[name] = chunk = _OpenChunk(
            blank, blank.copy(), self.count - begun, begun, not data_set.id.get_num_chunks()
        )
        chunk.rows[:begun] = data_set[chunk.start :]

    def describe(self, name: str, description: str) -> None:
        """Say of a data set what its name does not."""
        if description:
            self.file[name].attrs["description"] = description

    def append(self, count: int, columns: Mapping[str, Any]) -> None:
        """So many rows more; data sets that ``columns`` lacks stay blank there.

        Raises:
            OSError: of the first write that failed.
        """
        start, self.count = self.count, self.count + count
        for name, data_set in self._sets.items():
            if name in self._open:
                self._append_numbers(name, count, columns.get(name))
            else:
                data_set.resize(self.count, axis=0)
                if name in columns:
                    data_set[start:] = columns[name]
        self._disk.check()

    def put(self, row: int, columns: Mapping[str, Any]) -> None:
        """Values of one row, each in a list, in place of those that it has."""
        self._write_encoded(0)
        for name, values in columns.items():
            chunk = self._open.get(name)
            if chunk and row >= chunk.start:
                chunk.rows[row - chunk.start], chunk.blank = values[0], False
            else:
                self._sets[name][row] = values[0]

    def read_again(self, name: str) -> None:
        """Take notice of what was written into a data set but through ``append`` and ``put``."""
        self._begin(name, self._sets[name])

    def _append_numbers(self, name: str, count: int, values: Any) -> None:
        """Fill chunks; whole ones go to the compressors. HDF5's own filters would take twice the time, in one
        thread."""
        data_set, chunk, done = self._sets[name], self._open[name], 0
        compress = data_set.compression is not None
        while done < count:
            size = min(count - done, len(chunk.rows) - chunk.filled)
            if values is not None:
                chunk.rows[chunk.filled : chunk.filled + size] = values[done : done + size]
                chunk.blank = False
            chunk.filled += size
            done += size
            if chunk.filled < len(chunk.rows):
                return
            if not chunk.blank:  # else it stays unwritten, as the fill value says the same
                encoded = self._compressors.submit(_encode, chunk.rows, compress)
                self._compressing.append((data_set, chunk.start, encoded))
            self._open[name] = chunk = chunk.next()
            self._write_encoded(self._ahead)

    def _write_encoded(self, left: int) -> None:
        """Write chunks in their order until no more than so many are under way."""
        while len(self._compressing) > left:
            data_set, start, encoded = self._compressing.popleft()
            data_set.resize(start + data_set.chunks[0], axis=0)
            data_set.id.write_direct_chunk((start, *[0] * (data_set.ndim - 1)), encoded.result())

    def close(self) -> None:
        """Raises the ``OSError`` of the first write that failed."""
        self._write_encoded(0)
        self._compressors.shutdown()
        for name, chunk in self._open.items():
            self._sets[name].resize(self.count, axis=0)
            if chunk.filled and not chunk.blank:
                self._sets[name][chunk.start :] = chunk.rows[: chunk.filled]
        self.file.close()
        self._disk.close()
        self._disk.check()


@dataclass
class _OpenChunk:
    """The chunk that a data set's next rows come into."""

    template: np.ndarray
    """Blank rows, (chunk, ...)."""
    rows: np.ndarray
    start: int
    """The number of its first row."""
    filled: int
    blank: bool = True
    """Whether no row has a value."""

    def next(self) -> _OpenChunk:
        return _OpenChunk(self.template, self.template.copy(), self.start + len(self.rows), 0)


def _encode(rows: np.ndarray, compress: bool) -> bytes:
    """A chunk as HDF5's filters shuffle, deflate and fletcher32 leave it; deflated by libdeflate."""
    from imagecodecs import deflate_encode, h5checksum_fletcher32

    data = rows.tobytes()
    if compress:
        data = np.frombuffer(data, np.uint8).reshape(-1, rows.itemsize).T.tobytes()
        data = bytes(deflate_encode(data, level=1))
    return data + h5checksum_fletcher32(data).to_bytes(4, "little")


class _Disk(io.RawIOBase):
    """The file beneath HDF5, which hides from it that a disk is full.

    The HDF5 library ends the process (SIGSEGV) some time after a write that fails. So a failed write is
    remembered, all that follows goes nowhere, and ``check`` raises.
    """

    def __init__(self, name: str):
        self._file = open(name, "r+b", buffering=0)  # noqa: SIM115 - closed by close
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the ``OSError`` of the first write that failed."""
        if self._error:
            raise self._error

    def write(self, data: Any) -> int:
        """All of ``data``, or none of it and none of what follows."""
        view, done = memoryview(data).cast("B"), 0
        try:
            while done < len(view) and not self._error:
                done += self._file.write(view[done:]) or 0
        except OSError as error:
            self._error = error
        if self._error:
            self._file.seek(len(view) - done, os.SEEK_CUR)
        return len(view)

    def readinto(self, buffer: Any) -> int:
        """Zeros where nothing was written."""
        view = memoryview(buffer).cast("B")
        count = self._file.readinto(view) or 0
        view[count:] = bytes(len(view) - count)
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As of any file."""
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        """As of any file, where the disk allows."""
        try:
            return self._file.truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size or 0

    def close(self) -> None:
        """Close the file; what the system still has to say of it counts."""
        try:
            self._file.close()
        except OSError as error:
            self._error = self._error or error
        super().close()


def ragged(pieces: list[bytes]) -> np.ndarray:
    """Pieces, not all empty, as h5py takes values of any length: of equal length, it wants one array."""
    arrays = [np.frombuffer(piece, np.uint8) for piece in pieces]
    if len({len(array) for array in arrays}) == 1:
        return np.stack(arrays)
    ragged = np.empty(len(arrays), object)
    for i, array in enumerate(arrays):
        ragged[i] = array
    return ragged
