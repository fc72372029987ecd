"""URLs of stores: object stores and what else fsspec reads, as paths (``StorePath``), and a lock there."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import io
import json
import os
import re
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast
from urllib.parse import unquote

from fgvc_cli.errors import EXIT_USAGE, FgvcError

STORE_CLIENTS = {"fsspec", "s3fs", "botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "adlfs", "azure"}
"""Packages whose exceptions are no ``OSError``."""

BUFFER_BYTES = 1 << 20
"""Of what goes to a store, before its client gets it."""

LEASE_SECONDS = 30.0
"""After so long without a sign of life the lock of another process, in a store, is taken over."""

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
