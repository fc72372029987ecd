"""Crops and maps as files: one per row with a prediction, named after the row's path.

``birds/a.jpg`` becomes ``birds/a.jpg.jpg``, or ``birds/a.jpg.png`` for a map, so that ``a.jpg`` and
``a.png`` do not clash. Names stay inside the folder: a leading slash goes, ``..`` becomes ``__``. A name that
is taken or that the file system refuses becomes ``row-17.jpg``, 17 being the number of the row from 0.
"""

from __future__ import annotations

import io
import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image

from fgvc_cli.errors import FgvcError
from fgvc_cli.files import reason, sync_folder
from fgvc_cli.formats.rows import TRY_AGAIN, Block, RunInfo, as_text, has_prediction


def safe_name(path: str) -> str:
    """A row's path as a relative one that stays inside a folder, with forward slashes."""
    steps = [step for step in as_text(path).replace("\\", "/").split("/") if step not in ("", ".")]
    return "/".join("__" if step == ".." else step for step in steps).replace("\0", "_") or "_"


class FolderSink(ABC):
    """A folder that appears complete or not at all: it is filled as ``.NAME.tmp`` beside it, then renamed.

    Args:
        out: the folder; absent or empty.

    Raises:
        FgvcError: it cannot be written: a full disk, a lost folder.
    """

    ending: str

    def __init__(self, out: Path):
        self.out = out
        self._target = Path(os.path.realpath(out))
        self._filling = self._target.with_name(f".{self._target.name}.tmp")
        self._rows = 0
        self._made: set[Path] = set()

    def __enter__(self) -> Self:
        try:
            # A killed process may have left one, of another run perhaps.
            shutil.rmtree(self._filling, ignore_errors=True)
            self._filling.mkdir()
        except OSError as error:
            raise self._explain(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                # Once for all files; a sync of each would take longer than the predictions.
                if hasattr(os, "sync"):
                    os.sync()
                self._filling.replace(self._target)
                sync_folder(self._target.parent)
        except OSError as failure:
            raise self._explain(failure) from failure
        finally:
            shutil.rmtree(self._filling, ignore_errors=True)

    def begin(self, info: RunInfo) -> None:  # noqa: B027 - the sinks of files need it
        """Nothing is shared."""

    def write(self, block: Block) -> None:
        """The files of the next rows."""
        for i, path in enumerate(block.path):
            data = self._encode(block, i) if has_prediction(block.status[i]) else b""
            if data:
                self._put(f"{safe_name(path)}{self.ending}", self._rows + i, data)
        self._rows += len(block)

    def _put(self, name: str, row: int, data: bytes) -> str:
        """Write a file; the name it has got."""
        try:
            path = self._filling / name
            folder = path.parent
            if folder not in self._made:
                folder.mkdir(parents=True, exist_ok=True)
                if len(self._made) > 1000:
                    self._made.clear()
                self._made.add(folder)
            with path.open("xb") as stream:
                stream.write(data)
        except OSError as error:
            flat = f"row-{row}{self.ending}"
            if _is_about_space(error) or name == flat:
                raise self._explain(error) from error
            return self._put(flat, row, data)
        return name

    @abstractmethod
    def _encode(self, block: Block, row: int) -> bytes:
        """The file of a row, empty for none."""

    def _explain(self, error: OSError) -> FgvcError:
        return FgvcError(f"Could not write {self.out}: {reason(error)}; it is left as it was.", TRY_AGAIN)


def _is_about_space(error: OSError) -> bool:
    import errno

    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE)


class CropsFolder(FolderSink):
    """The object of each row, as the JPEG that the row carries."""

    ending = ".jpg"

    def _encode(self, block: Block, row: int) -> bytes:
        return block.crop[row] if block.crop else b""


class MapsFolder(FolderSink):
    """The attention map of each row over the model's input, 16-bit grey PNG: 65535 is 1."""

    ending = ".png"

    def _encode(self, block: Block, row: int) -> bytes:
        if block.attention is None or np.isnan(block.attention[row]).any():
            return b""
        grey = np.round(block.attention[row].astype(np.float32).clip(0, 1) * 65535).astype(np.uint16)
        stream = io.BytesIO()
        Image.fromarray(grey).save(stream, format="PNG", compress_level=1)
        return stream.getvalue()
