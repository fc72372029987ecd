"""Files that are whole or absent, on a disk or behind a URL (``StorePath``), and locks on folders."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import io
import json
import os
import re
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any, Self, cast
from urllib.parse import unquote

from fgvc_cli.errors import EXIT_USAGE, FgvcError

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ENOENT, errno.ESTALE)

TEMPORARY = ".tmp"
"""What a file that is being written has behind its name; one that a killed process left is overwritten."""


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_SECRET = re.compile(r"sign|token|secret|password|credential|key|sig=", re.IGNORECASE)


def is_url(text: str) -> bool:
    """Whether this is ``protocol://...`` of a store; a local file stays one, which a FIFO cannot hold up."""
    return _URL.match(text) is not None and not text.startswith(("file://", "local://"))


def local_path(text: str) -> str:
    """The path in a ``file:///...`` URL; any other text as it is."""
    if not text.startswith("file:///"):
        return text
    return unquote(text.removeprefix("file://"), errors="surrogateescape")


def without_secrets(text: str) -> str:
    """A URL without its password, and without a query that may be a key; any other text as it is."""
    if not is_url(text):
        return text
    text = re.sub(r"://[^/@]*@", "://", text)
    address, mark, query = text.partition("?")
    return address if _SECRET.search(query) else address + mark + query


def as_path(text: str | os.PathLike[str]) -> Path:
    """What is typed as an output: a path, or a ``StorePath``, which does what a path does."""
    text = local_path(os.fspath(text))
    return cast(Path, StorePath(text)) if is_url(text) else Path(text)


def real_path(path: Path) -> str:
    """One text for one file, however it is named: links are followed, a URL stays as it is."""
    return str(path) if isinstance(path, StorePath) else os.path.realpath(path)


def open_store(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it. Listings are not kept: they would grow with a walk.

    Raises:
        FgvcError: no such protocol, its package is missing, or its client refuses the URL.
    """
    shown = without_secrets(url)
    try:
        import fsspec.core
    except ImportError as error:
        raise FgvcError(f"{shown} needs a package.", "pip install fsspec") from error
    if "::" in url:
        raise FgvcError(f"{shown} is refused: chained URLs (::) are not read.", "Name what it leads to.")
    try:
        return fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise FgvcError(f"{shown} needs a package that is not installed.", _package(url, error)) from error
    except Exception as error:  # an unknown protocol, or what the store's client says of the URL
        if "Protocol not known" in str(error):
            message = f"{shown} is refused: there is no store called {url.split('://')[0]}."
            raise FgvcError(message, "Type s3://, gs://, abfs:// or another protocol of fsspec.") from error
        hint = "Check the URL, the network and the credentials."
        raise FgvcError(f"Cannot open {shown}: {store_reason(error, url)}.", hint) from error


def _package(url: str, error: ImportError) -> str:
    """What to type for the protocol of a URL."""
    from fsspec.registry import known_implementations

    known = known_implementations.get(url.split("://")[0].lower(), {})
    package = known.get("class", "fsspec").split(".")[0]
    return known.get("err") or str(error) if package == "fsspec" else f"pip install {package}"


def store_reason(error: Exception, url: str = "") -> str:
    """What a store's client says, in one line, without the password of a URL."""
    kind = "" if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: "
    text = f"{kind}{error.strerror if isinstance(error, OSError) and error.strerror else error}"
    if (shown := without_secrets(url)) != url:
        text = text.replace(url, shown)
        told = re.search(r"://([^/@]*)@", url)
        secrets = [*(told[1].split(":") if told else ()), *re.findall(r"=([^&]+)", url.partition("?")[2])]
        for secret in secrets:
            text = text.replace(secret, "...") if len(secret) > 3 else text
    return " ".join(text.split())[:300].rstrip(".: ")


class StorePath(PurePosixPath):
    """A file or folder of an object store: the part of ``pathlib.Path`` that outputs need, through fsspec.

    Folders come and go with what lies in them. What a client raises, of whatever kind, is an ``OSError``.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        files, path = open_store(str(self))
        try:
            return getattr(files, method)(path, *args, **kwargs)
        except FgvcError:
            raise
        except Exception as error:
            raise _as_os_error(error) from error

    def exists(self) -> bool:
        """Whether a file or a folder is there."""
        return bool(self._call("exists"))

    def is_file(self) -> bool:
        """Whether a file is there."""
        return bool(self._call("isfile"))

    def is_dir(self) -> bool:
        """Whether anything lies below."""
        return bool(self._call("isdir"))

    def mkdir(self, **_: Any) -> None:
        """A folder is there as soon as something lies in it; no bucket is ever made."""

    def open(self, mode: str = "r", **kwargs: Any) -> IO[Any]:
        """A stream to read."""
        stream = self._call("open", mode, **kwargs)
        return io.BufferedReader(stream) if mode == "rb" else stream

    def read_bytes(self) -> bytes:
        """All of a file, in one request."""
        return self._call("cat_file")

    def read_text(self, encoding: str = "utf-8") -> str:
        """All of a file of text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> None:
        """Put a whole file."""
        self._call("pipe_file", data)

    def write_text(self, text: str) -> None:
        """Put a whole file of text."""
        self.write_bytes(text.encode())

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove a file."""
        try:
            self._call("rm_file")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def replace(self, target: Path) -> None:
        """Give a file another name: it is copied whole, then removed."""
        self._call("cp_file", open_store(str(target))[1])
        self.unlink()

    def iterdir(self) -> Iterator[StorePath]:
        """What lies in a folder, folders too."""
        own = self._call("_strip_protocol").strip("/")
        for name in self._call("ls", detail=False):
            if name.strip("/") != own:  # the marker that object stores keep for a folder
                yield self / name.rstrip("/").rsplit("/", 1)[-1]

    def glob(self, pattern: str) -> Iterator[StorePath]:
        """What lies in a folder under names of a pattern; nothing where there is no folder."""
        with contextlib.suppress(FileNotFoundError):
            yield from (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def remove(self) -> None:
        """Remove a folder with all that lies in it, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._call("rm", recursive=True)

    @contextlib.contextmanager
    def upload(self, *, by_name: bool = False) -> Iterator[IO[bytes]]:
        """A stream to write, which becomes the file when the block ends well.

        Args:
            by_name: for what writes here and there in a file: a local one with a ``name``, which is uploaded.
        """
        if by_name:
            with tempfile.NamedTemporaryFile(prefix="fgvc-") as local:
                yield cast(IO[bytes], local)
                local.flush()
                files, path = open_store(str(self))
                try:
                    files.put_file(local.name, path)
                except Exception as error:
                    raise _as_os_error(error) from error
            return
        raw = _Upload(self._call("open", "wb", autocommit=False))
        writer = io.BufferedWriter(raw, BUFFER_BYTES)
        try:
            yield cast(IO[bytes], writer)
            writer.flush()
            raw.finish()
        finally:
            raw.discard()


class _Upload(io.RawIOBase):
    """A file of fsspec that is being written, which becomes one with ``finish`` and only then."""

    def __init__(self, stream: Any):
        self._stream = stream
        self._size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any) -> int:
        if self._stream is not None:
            try:
                self._stream.write(bytes(data))
            except Exception as error:
                raise _as_os_error(error) from error
        self._size += len(data)
        return len(data)

    def finish(self) -> None:
        try:
            self._stream.close()
            self._stream.commit()
        except Exception as error:
            raise _as_os_error(error) from error
        self._stream = None

    def discard(self) -> None:
        """Unless it is finished."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with contextlib.suppress(Exception):
                stream.discard()
            with contextlib.suppress(AttributeError):
                stream.closed = True  # else it would be uploaded as it is freed


@contextlib.contextmanager
def store_failures(path: Path) -> Iterator[None]:
    """Make what a store says in the middle of a run the user's line; round all that works with ``path``.

    Raises:
        FgvcError: an ``OSError``, or what the client of a store raises, that nobody has explained.
    """
    try:
        yield
    except Exception as error:
        of_client = type(error).__module__.split(".")[0] in STORE_CLIENTS
        if not isinstance(path, StorePath) or not (of_client or isinstance(error, OSError)):
            raise
        message = f"The work with {path} has failed: {store_reason(error)}."
        raise FgvcError(message, "Completed rows are kept: the same command resumes.") from error


def _as_os_error(error: Exception) -> OSError:
    if isinstance(error, OSError):
        return error
    return OSError(errno.EIO, store_reason(error))


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


def check_store(out: Path) -> None:
    """Raise FgvcError unless the store of a URL can be asked, and has the bucket; for a path nothing.

    Raises:
        FgvcError: a URL with a password in it, no such protocol, package or bucket, no answer.
    """
    if not isinstance(out, StorePath):
        return
    if (shown := without_secrets(str(out))) != str(out):
        hint = "Set them as fsspec reads them: environment variables, ~/.aws, ..."
        raise FgvcError(f"{shown} was given with a password or a key.", hint, EXIT_USAGE)
    if len(out.parts) < 3 and out.parts[0] != "memory:":
        message = f"{out} names no file in a bucket."
        raise FgvcError(message, f"Type {out.parts[0]}//BUCKET/{out.name}", EXIT_USAGE)
    files, bucket = open_store(str(out))[0], out.parts[1]
    protocols = {files.protocol} if isinstance(files.protocol, str) else set(files.protocol)
    try:
        if protocols.isdisjoint({"s3", "gs", "abfs"}) or files.exists(bucket) or out.exists():
            return
    except Exception as error:
        hint = "Check the URL, the network and the credentials."
        raise FgvcError(f"Cannot look at {out}: {store_reason(error)}.", hint) from error
    message = f"There is no bucket {bucket} for {out}, or it may not be seen."
    raise FgvcError(message, "Make it, check the name, or the credentials.")


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


STORE_CLIENTS = {"fsspec", "s3fs", "botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "adlfs", "azure"}
"""Packages whose exceptions are no ``OSError``."""

BUFFER_BYTES = 1 << 20
"""Of what goes to a store, before its client gets it."""

LOCK = "lock"
LEASE_SECONDS = 30.0
"""After so long without a sign of life the lock of another process, in a store, is taken over."""


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


class Lease:
    """The lock on a folder of a store: an object that its owner writes anew again and again.

    A store frees nothing as a process ends, so one that is not written anew for ``LEASE_SECONDS`` is taken
    over; of a process of this machine that is gone, at once. No clocks are compared. Where the store cannot
    make an object only if it is absent, two processes that begin in the same moment may both get in, and so
    may one beside an owner that was stopped for longer: then rows are computed twice. They are not doubled,
    as ``RunFolder.survey`` discards parts that overlap and a merge refuses them.

    Raises:
        FgvcError: somebody else's is alive.
    """

    def __init__(self, path: StorePath):
        self._path = path
        where, process = _this_machine(), os.getpid()
        name = f"process {process} on {socket.gethostname()}"
        self._own = {"owner": name, "where": where, "process": process, "token": uuid.uuid4().hex}
        self._beat = 0
        self._ended = threading.Event()
        if (there := self._read()) is not None:
            self._wait_out(there)
            path.write_bytes(self._document())
        else:
            try:
                path._call("pipe_file", self._document(), **({"mode": "create"} if _creates(path) else {}))
            except FileExistsError as error:
                message = f"{path.parent} is in use by another process."
                raise FgvcError(message, "Wait for it or end it first.") from error
        if not self._is_own(there := self._read()):
            raise self._in_use(there)
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Free it."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self._is_own(self._read()):
                self._path.unlink(missing_ok=True)

    def _document(self) -> bytes:
        self._beat += 1
        return json.dumps(self._own | {"beat": self._beat}).encode()

    def _read(self) -> dict[str, Any] | None:
        try:
            return json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}

    def _is_own(self, document: dict[str, Any] | None) -> bool:
        return document is not None and document.get("token") == self._own["token"]

    def _wait_out(self, there: dict[str, Any]) -> None:
        """Raise FgvcError once the lease of another process is seen to be alive."""
        if there.get("where") == self._own["where"] and not _is_running(there.get("process")):
            return
        until = time.monotonic() + LEASE_SECONDS
        while time.monotonic() < until:
            time.sleep(min(1.0, LEASE_SECONDS / 4))
            now = self._read()
            if now is None:
                return
            if now != there:
                raise self._in_use(now)

    def _in_use(self, there: dict[str, Any] | None) -> FgvcError:
        owner = (there or {}).get("owner", "another process")
        return FgvcError(f"{self._path.parent} is in use by {owner}.", "Wait for it or end it first.")

    def _renew(self) -> None:
        while not self._ended.wait(LEASE_SECONDS / 3):
            with contextlib.suppress(OSError):  # the next time, perhaps
                if not self._is_own(self._read()):
                    return  # taken over, or the folder was removed
                self._path.write_bytes(self._document())


def _creates(path: StorePath) -> bool:
    """Whether the client of a store knows ``pipe_file(mode="create")``; others fail on it, or ignore it."""
    import inspect

    method = open_store(str(path))[0]
    return "mode" in inspect.signature(getattr(method, "_pipe_file", method.pipe_file)).parameters


def _this_machine() -> str:
    """Where the number of a process says which it is: containers count their own."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')} {_boot()}"
    return f"{socket.gethostname()} {uuid.uuid4().hex}"


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _is_running(process: Any) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except OSError:
        return True
    return True


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
