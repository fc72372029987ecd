"""Files that are whole or absent, on a disk or in a store (``store.StorePath``), and locks on folders."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import socket
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from fgvc_cli.errors import FgvcError
from fgvc_cli.store import Lease, StorePath, check_store

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ENOENT, errno.ESTALE)

TEMPORARY = ".tmp"
"""What a file that is being written has behind its name; one that a killed process left is overwritten."""


def file_sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream into ``PATH.tmp``, which is synced and becomes PATH when the block ends well; for a
    store one in memory, which is put there.

    Raises:
        OSError: as it came; ``AtomicFile`` explains.
    """
    if isinstance(path, StorePath):
        held = io.BytesIO()
        yield held
        path.write_bytes(held.getvalue())
        return
    temporary = path.with_name(f"{path.name}{TEMPORARY}")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


class AtomicFile:
    """Context manager: a binary stream into ``OUT.tmp``, which becomes OUT when the block ends well.

    On any exception, Ctrl-C included, ``OUT.tmp`` is removed and OUT stays as it was. A link is written
    through to its target. The stream's ``name`` is the temporary file, for libraries that write by path.

    Args:
        out: the file to appear; its folder must exist.
        overwrite: replace a file that is there.
        again: what to do after a failure, which is told with it.
        by_name: it is written through ``name``; going to a store, it is a local file until it is whole.

    Raises:
        FgvcError: on entering, where OUT exists or cannot be written; on leaving, where finishing fails
            or the disk is full.
    """

    def __init__(
        self,
        out: Path,
        *,
        overwrite: bool = False,
        again: str = "Free space, check permissions, or name another file.",
        by_name: bool = False,
    ):
        self.out = out
        self._overwrite = overwrite
        self._again = again
        self._by_name = by_name
        self._file: AbstractContextManager[IO[bytes]] | None = None

    def __enter__(self) -> IO[bytes]:
        check_writable(self.out, overwrite=self._overwrite)
        if isinstance(self.out, StorePath):
            self._file = self.out.upload(by_name=self._by_name)
        else:
            self._file = whole_file(Path(os.path.realpath(self.out)))
        try:
            return self._file.__enter__()
        except OSError as error:
            raise self.explain(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        try:
            self._file.__exit__(kind, error, trace)
        except OSError as failure:
            if kind is None:
                raise self.explain(failure) from failure
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise self.explain(error) from error

    def explain(self, error: OSError) -> FgvcError:
        """The user's line for an ``OSError`` met while writing."""
        return FgvcError(
            f"Could not write {self.out}: {reason(error)}; it is left as it was.",
            self._again,
        )


def check_writable(out: Path, *, overwrite: bool) -> None:
    """Whether a file can be put there, without touching anything.

    Raises:
        FgvcError: it exists and may not be replaced, is no regular file, or its folder is missing or locked;
            a store that does not answer, has no such bucket, or whose package is not installed.
    """
    if isinstance(out, StorePath):
        check_store(out)
        if not overwrite and out.exists():
            raise FgvcError(f"{out} exists.", "Add --overwrite to replace it, or name another file.")
        return
    target = Path(os.path.realpath(out))
    if target.exists():
        if not target.is_file():
            raise FgvcError(f"{out} exists and is not a regular file.", "Name a new file.")
        if not overwrite:
            raise FgvcError(f"{out} exists.", "Add --overwrite to replace it, or name another file.")
    _check_parent(out, "file")


@contextlib.contextmanager
def whole_folder(out: Path, *, overwrite: bool = False, replaceable: Collection[str] = ()) -> Iterator[Path]:
    """A new folder ``.NAME.tmp`` to fill, which becomes OUT when the block ends well, or OUT stays as it is.

    Args:
        overwrite, replaceable: see ``check_folder``.

    Raises:
        FgvcError: as ``check_folder``; it cannot be written, the disk is full.
    """
    check_folder(out, overwrite=overwrite, replaceable=replaceable)
    target = Path(os.path.realpath(out))
    filling, old = (target.with_name(f".{target.name}.{ending}") for ending in ("tmp", "old"))
    try:
        for left in (filling, old):  # by a killed process
            shutil.rmtree(left, ignore_errors=True)
        filling.mkdir()
        yield filling
        if target.exists():
            target.rename(old)
        try:
            filling.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        sync_folder(target.parent)
    except OSError as error:
        raise FgvcError(
            f"Could not write {out}: {reason(error)}; it is left as it was.",
            "Free space, check permissions, or name another folder.",
        ) from error
    finally:
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(filling, ignore_errors=True)


def check_folder(out: Path, *, overwrite: bool, replaceable: Collection[str]) -> None:
    """Whether a folder can be put there, without touching anything.

    Args:
        overwrite: replace a folder that is there, if nothing else than ``replaceable`` names is in it.

    Raises:
        FgvcError: it is there and may not be replaced, or its parent is missing or locked.
    """
    target = Path(os.path.realpath(out))
    if target.exists() and not target.is_dir():
        raise FgvcError(f"{out} is a file, expected a new folder.", "Name another folder.")
    names = sorted(entry.name for entry in target.iterdir()) if target.is_dir() else []
    if names and not overwrite:
        raise FgvcError(f"{out} exists.", "Add --overwrite to replace it, or name another folder.")
    strange = [name for name in names if name not in replaceable]
    if strange:
        raise FgvcError(f"{out} holds other files too, such as {strange[0]}.", "Name another folder.")
    _check_parent(out, "folder")


def _check_parent(out: Path, kind: str) -> None:
    folder = Path(os.path.realpath(out)).parent
    if not folder.is_dir():
        raise FgvcError(f"There is no folder {out.parent}.", f"mkdir -p {out.parent}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FgvcError(f"Cannot write into {out.parent}.", f"Check its permissions, or name another {kind}.")


def reason(error: OSError) -> str:
    """What the system says, in one line."""
    text = os.strerror(error.errno) if error.errno else str(error)
    return " ".join(text.split())


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that lies in it, if it is there."""
    if isinstance(folder, StorePath):
        folder.remove()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def readable(path: Path) -> Any:
    """What libraries read a file from: its path, or a stream of an object of a store."""
    return path.open("rb") if isinstance(path, StorePath) else path


def sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


LOCK = "lock"


class FolderLock:
    """One process per folder. The system frees the lock when its process ends, so none is ever stale.

    POSIX record locks, as workers that are forked do not inherit them, and as NFS and Lustre know them; on a
    file system or system without locks there is none. In a store it is a ``Lease``, which promises less.

    Raises:
        FgvcError: on entering, another process works in the folder.
    """

    def __init__(self, folder: Path):
        self._path = folder / LOCK
        self._file: int | None = None
        self._lease: Lease | None = None

    def __enter__(self) -> Self:
        if isinstance(self._path, StorePath):
            self._lease = Lease(self._path)
            return self
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
        if self._lease is not None:
            self._lease.end()
            self._lease = None


def read_document(path: Path) -> dict[str, Any]:
    """A JSON file of a run folder.

    Raises:
        FgvcError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path} cannot be read: {' '.join(str(error).split())}."
        raise FgvcError(message, "--restart discards the rows beside it; or name another --out.") from error


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON file of a run folder, whole.

    Raises:
        FgvcError: the disk is full or the folder has gone.
    """
    try:
        with whole_file(path) as stream:
            stream.write(json.dumps(document, ensure_ascii=False, indent=1).encode())
    except OSError as error:
        if not path.parent.exists():
            message = f"Could not write {path}: {reason(error)}; {path.parent} is gone and its rows are lost."
            raise FgvcError(message, "The same command again begins anew.") from error
        message = f"Could not write {path}: {reason(error)}; the rows beside it are kept."
        raise FgvcError(message, "Free space, then type the same command again.") from error
