"""One process per run folder."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Self

from fgvc_cli.errors import FgvcError

LOCK = "lock"


class FolderLock:
    """One process per folder. The system frees the lock when its process ends, so none is ever stale.

    POSIX record locks, as workers that are forked do not inherit them, and as NFS and Lustre know them; on a
    file system or system without locks there is none.

    Raises:
        FgvcError: on entering, another process works in the folder.
    """

    def __init__(self, folder: Path):
        self._path = folder / LOCK
        self._file: int | None = None

    def __enter__(self) -> Self:
        try:
            import fcntl
        except ImportError:  # Windows
            return self
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                owner = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
                os.close(descriptor)
                raise FgvcError(
                    f"{self._path.parent} is in use by {owner}.", "Wait for it or end it first."
                ) from error
        self._file = descriptor
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
