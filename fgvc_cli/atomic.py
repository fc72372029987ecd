"""A file that appears complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from types import TracebackType
from typing import IO

from fgvc_cli.errors import FgvcError

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


class AtomicFile:
    """Context manager: a binary stream into ``OUT.partial``, which becomes OUT when the block ends well.

    On any exception, Ctrl-C included, ``OUT.partial`` is removed and OUT stays as it was. A link is written
    through to its target.

    Args:
        out: the file to appear; its folder must exist.
        overwrite: replace a file that is there.

    Raises:
        FgvcError: on entering, where OUT exists or cannot be written; on leaving, where finishing fails
            or the disk is full.
    """

    def __init__(self, out: Path, *, overwrite: bool = False):
        self.out = out
        self._overwrite = overwrite
        self._target = Path(os.path.realpath(out))
        self._partial = self._target.with_name(f"{self._target.name}.partial")
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> IO[bytes]:
        if self._target.exists():
            if not self._target.is_file():
                raise FgvcError(f"{self.out} exists and is not a regular file.", "Name a new file.")
            if not self._overwrite:
                raise FgvcError(f"{self.out} exists.", "Add --overwrite to replace it, or name another file.")
        if not self._target.parent.is_dir():
            raise FgvcError(f"There is no folder {self.out.parent}.", f"mkdir -p {self.out.parent}")
        try:
            self._stream = self._partial.open("wb")
        except OSError as error:
            raise self.explain(error) from error
        return self._stream

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stream is not None
        try:
            with self._stream:
                if kind is None:
                    self._stream.flush()
                    os.fsync(self._stream.fileno())
            if kind is None:
                self._partial.replace(self._target)
                _sync_folder(self._target.parent)
        except OSError as failure:
            if kind is None:
                raise self.explain(failure) from failure
        finally:
            with contextlib.suppress(OSError):
                self._partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise self.explain(error) from error

    def explain(self, error: OSError) -> FgvcError:
        """The user's line for an ``OSError`` met while writing."""
        return FgvcError(
            f"Could not write {self.out}: {error.strerror or error}; it is left as it was.",
            "Free space, check permissions, or name another file.",
        )


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
