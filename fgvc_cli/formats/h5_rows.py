"""Row-aligned data sets of one HDF5 file that grow together, written through a disk that may be full.

Arrays are compressed with gzip, which every HDF5 reader has (lzf only h5py), behind a shuffle, with a
checksum per chunk; values of any length cannot be.

Legend: N rows.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

CHUNK_BYTES = 1 << 20
CHUNK_ROWS = 1024
# Version 1.8 of the file format holds attributes above 64 KiB (the names of very many classes).
LIBVER = ("v108", "v110")


class H5Rows:
    """Data sets of N rows each, in an open file; ``append`` adds to all of them.

    Args:
        name: of a file that is there, and empty.
    """

    def __init__(self, name: str):
        self._disk = _Disk(name)
        self.file = h5py.File(self._disk, "w", libver=LIBVER)
        self.count = 0
        """N."""
        self._sets: dict[str, h5py.Dataset] = {}

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
        self.describe(name, description)

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
            data_set.resize(self.count, axis=0)
            if name in columns:
                data_set[start:] = columns[name]
        self._disk.check()

    def close(self) -> None:
        """Raises the ``OSError`` of the first write that failed."""
        self.file.close()
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


def ragged(pieces: list[bytes]) -> np.ndarray:
    """Pieces, not all empty, as h5py takes values of any length: of equal length, it wants one array."""
    arrays = [np.frombuffer(piece, np.uint8) for piece in pieces]
    if len({len(array) for array in arrays}) == 1:
        return np.stack(arrays)
    ragged = np.empty(len(arrays), object)
    for i, array in enumerate(arrays):
        ragged[i] = array
    return ragged
