"""HDF5: one resizable, row-aligned data set per field, and what all rows share as root attributes.

Legend: N rows, k predictions per row, P parts, K classes, D embedding width, h w of a map.

    path status error   (N,) UTF-8 strings of any length; ``ok`` is the status of a row with a prediction
    size                (N, 2) int32: width, height of the upright photograph, pixels
    topk_index          (N, k) int32: into the attribute ``class_names``; -1 without a prediction
    topk_prob           (N, k) float32
    box                 (N, 4) float32: see the attribute ``box_convention``; NaN without one
    parts               (N, P, 4) float32, as box; only from a model with parts
    attention           (N, h, w) float16 in [0, 1] over the model's input, on request
    crop                (N,) bytes of a JPEG as uint8 of any length, empty without one, on request
    embedding           (N, D) float32, on request
    logits              (N, K) float32: log of the fused, calibrated probabilities, on request

Where the photographs were is an attribute too, where it is known: ``sources`` as typed, ``working_folder``.

Arrays are compressed with gzip, which every HDF5 reader has (lzf only h5py), behind a shuffle, with a
checksum per chunk; values of any length cannot be.
"""

from __future__ import annotations

import io
import json
import os
from typing import Any

import h5py
import numpy as np

from fgvc_cli import __version__
from fgvc_cli.predict.blocks import ARRAYS, OPTIONAL_ARRAYS, TEXTS, as_text
from fgvc_cli.predict.rows import Block, RunInfo
from fgvc_cli.predict.sinks import FileSink

SCHEMA_VERSION = 1
BOX_CONVENTION = "xyxy pixels of the EXIF-upright photograph, end-exclusive"
CHUNK_BYTES = 1 << 20
CHUNK_ROWS = 1024
DESCRIPTIONS = {
    "attention": "in [0, 1] over the model's input",
    "crop": "bytes of a JPEG, empty without one",
    "logits": "natural logarithm of the fused, calibrated probabilities",
}
"""Attribute ``description`` of data sets whose names do not say it."""
# Version 1.8 of the file format holds attributes above 64 KiB (the names of very many classes).
LIBVER = ("v108", "v110")


class H5Sink(FileSink):
    """HDF5 into a file."""

    def _begin(self, info: RunInfo) -> None:
        self._disk = _Disk(self._stream.name)
        self._h5 = h5py.File(self._disk, "w", libver=LIBVER)
        self._info = info
        self._rows = 0
        self._sets: dict[str, h5py.Dataset] = {}
        for name, value in root_attributes(info).items():
            self._h5.attrs[name] = value
        if self.origin:
            self._h5.attrs["sources"] = np.array(list(self.origin.sources), dtype=h5py.string_dtype())
            self._h5.attrs["working_folder"] = self.origin.working_folder
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

    def _add(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        """A data set with as many blank rows as there are."""
        dtype = np.dtype(dtype)
        # Texts and JPEGs lie in a heap of the file that no filter reaches.
        filters: dict[str, Any] = {}
        if dtype.kind != "O":
            filters = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}
        row_bytes = max(1, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        chunk = min(CHUNK_ROWS, max(1, CHUNK_BYTES // row_bytes))
        self._sets[name] = self._h5.create_dataset(
            name,
            shape=(self._rows, *shape),
            maxshape=(None, *shape),
            chunks=(chunk, *shape),
            dtype=dtype,
            # Rows only come at the end: two chunks, and memory does not grow with the file.
            rdcc_nbytes=2 * chunk * row_bytes,
            **filters,
            fillvalue=np.nan if dtype.kind == "f" else None,
        )
        self._describe(name)

    def _describe(self, name: str) -> None:
        if name in DESCRIPTIONS:
            self._h5[name].attrs["description"] = DESCRIPTIONS[name]

    def _write(self, block: Block) -> None:
        start, self._rows = self._rows, self._rows + len(block)
        columns: dict[str, Any] = {name: [as_text(text) for text in getattr(block, name)] for name in TEXTS}
        columns |= {name: getattr(block, name) for name in ARRAYS if name in self._sets}
        for name in OPTIONAL_ARRAYS:
            array = getattr(block, name)
            if name in self.extras and array is not None:
                if name not in self._sets:
                    # Its width is known from the first row that met the model; those before it stay NaN.
                    self._add(name, array.shape[1:], array.dtype)
                columns[name] = array
        if "crop" in self._sets and block.crop and any(block.crop):
            columns["crop"] = _ragged(block.crop)
        for name, data_set in self._sets.items():
            data_set.resize(self._rows, axis=0)
            if name in columns:
                data_set[start:] = columns[name]
        self._disk.check()

    def _close(self, *, complete: bool) -> None:
        if not hasattr(self, "_h5"):
            return
        # An extra that no row has, as none met the model, is still there, with no width.
        for name in OPTIONAL_ARRAYS if complete else ():
            if name in self.extras and name not in self._sets:
                self._h5.create_dataset(name, shape=(self._rows, 0), dtype=np.float32)
                self._describe(name)
        self._h5.close()
        self._disk.close()
        self._disk.check()


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


def _ragged(pieces: list[bytes]) -> np.ndarray:
    """Pieces, not all empty, as h5py takes values of any length: of equal length, it wants one array."""
    arrays = [np.frombuffer(piece, np.uint8) for piece in pieces]
    if len({len(array) for array in arrays}) == 1:
        return np.stack(arrays)
    ragged = np.empty(len(arrays), object)
    for i, array in enumerate(arrays):
        ragged[i] = array
    return ragged


def root_attributes(info: RunInfo) -> dict[str, Any]:
    """What a file says of all its rows."""
    return {
        "schema_version": SCHEMA_VERSION,
        "class_names": np.array(list(info.classes), dtype=h5py.string_dtype()),
        "model": info.model,
        "weights_sha256": info.weights_sha256,
        "preprocessing": json.dumps(info.preprocess.model_dump()),
        "settings": json.dumps(info.settings),
        "box_convention": BOX_CONVENTION,
        "fgvc_version": __version__,
    }
