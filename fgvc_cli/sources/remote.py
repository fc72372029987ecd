"""Images behind a URL (s3://, gs://, memory://, ...), through fsspec.

fsspec comes with torch; the package for a protocol (s3fs, gcsfs) is the user's to install.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

from fgvc_cli.errors import FgvcError
from fgvc_cli.sources.stored import (
    MAX_BYTES,
    CannotRead,
    Found,
    Pick,
    Source,
    Stored,
    no_image,
)

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

TellUnreadable = Callable[[Any, OSError], None]


def is_url(text: str) -> bool:
    """Whether this is ``protocol://...`` of a store; a local file stays one, which a FIFO cannot hold up."""
    return _URL.match(text) is not None and not text.startswith(("file://", "local://"))


def local_path(text: str) -> str:
    """The path in a ``file:///...`` URL; any other text as it is."""
    if not text.startswith("file:///"):
        return text
    return unquote(text.removeprefix("file://"), errors="surrogateescape")


@contextlib.contextmanager
def offline_at_once() -> Iterator[None]:
    """Without a network, let the Hugging Face hub answer from its cache or fail now, not after a minute of
    retries."""
    from huggingface_hub import constants as hub

    before = hub.HF_HUB_OFFLINE
    if not any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        try:
            socket.getaddrinfo(urlsplit(hub.ENDPOINT).hostname, 443)
        except OSError:
            hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before


@dataclass(frozen=True, slots=True)
class RemoteFile(Stored):
    """An image behind a URL, fetched whole by each ``open``.

    Args:
        url: its own, or that of the source it was found in.
        path: where it lies in that store; empty: where the URL says.
        size: bytes, where known.
    """

    url: str
    path: str = ""
    size: int | None = None

    def open(self) -> BinaryIO:
        """Its bytes; see ``Stored.open``."""
        files, path = _store(self.url)
        path = self.path or path
        size = self.size
        if size is None:
            info = files.info(path)
            if info.get("type") == "directory":
                raise CannotRead("not_a_file", "not a regular file but a folder")
            size = info.get("size")
        if size is None:
            with files.open(path, "rb") as stream:
                data = stream.read(MAX_BYTES + 1)
            size = len(data)
        elif size <= MAX_BYTES:
            data = files.cat_file(path)
        if size > MAX_BYTES:
            raise CannotRead("too_large", f"more than {MAX_BYTES} bytes")
        return io.BytesIO(data)

    def __str__(self) -> str:
        return self.path or self.url


class _Listed(NamedTuple):
    name: str
    """With a slash behind a folder; sorting these sorts the whole walk."""
    path: str
    size: int | None


def remote_source(
    url: str, on_unreadable: TellUnreadable, *, several: bool, pick: Pick | None = None
) -> Source:
    """The images of a remote folder (with everything below), glob or file, in the order of a local walk.

    Names are those of local sources, the URL as typed being the folder as given. Memory holds the listings
    of one folder and of those above it, as far as the store's own client lists folder by folder; a glob is
    held whole.

    Raises:
        FgvcError: at the call: nothing is there, it holds no image, it cannot be listed, or the package for
            its protocol is missing.
    """
    try:
        files, path = _store(url)
    except CannotRead as error:
        raise FgvcError(f"Cannot read {url}: {error}.") from error
    try:
        if files.isdir(path):
            pick = pick or Pick()
            walk = _walk(files, url, path, f"{url.rstrip('/')}/" if several else "", on_unreadable, pick)
            silent = Pick(pick.all_files, videos=pick.videos)
            if next(_walk(files, url, path, "", lambda *_: None, silent), None) is None:
                files.ls(path, detail=True)  # says why, where the walk did not
                raise FgvcError(*no_image(url))
            return Source(walk)
        if files.exists(path):
            return Source(iter([Found(RemoteFile(url), url)]), 1)
        matches = _matches(files, url, path) if glob.has_magic(path) else []
    except FgvcError:
        raise
    except Exception as error:  # each store has exceptions of its own
        hint = "Check the URL, the network and the credentials."
        raise FgvcError(f"Cannot list {url}: {_reason(error)}.", hint) from error
    if not matches:
        raise FgvcError(f"Nothing lies at {url}.", "Name a folder, a file or a glob.")
    return Source(iter(matches), len(matches))


def _store(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it. Listings are not kept: they would grow with the walk."""
    try:
        import fsspec.core
    except ImportError as error:
        raise CannotRead("unreadable", "it needs a package: pip install fsspec") from error
    if "::" in url:
        raise CannotRead("unreadable", "chained URLs (::) are not read")
    try:
        files, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise CannotRead("unreadable", f"it needs a package: {_package(url, error)}") from error
    except Exception as error:  # an unknown protocol, or what the store's client says of the URL
        raise CannotRead("unreadable", _reason(error)) from error
    return files, path


def _package(url: str, error: ImportError) -> str:
    """What to type for the protocol of a URL."""
    from fsspec.registry import known_implementations

    known = known_implementations.get(url.split("://")[0].lower(), {})
    package = known.get("class", "fsspec").split(".")[0]
    return known.get("err") or str(error) if package == "fsspec" else f"pip install {package}"


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".: ")


def _matches(files: Any, url: str, path: str) -> list[Found]:
    found = files.glob(path, detail=True)
    return [
        Found(RemoteFile(url, name, info.get("size")), str(files.unstrip_protocol(name)))
        for name, info in sorted(found.items())
        if info.get("type") != "directory"
    ]


def _walk(
    files: Any, url: str, root: str, prefix: str, on_unreadable: TellUnreadable, pick: Pick
) -> Iterator[Found]:
    # The folders on the way down, each as its name relative to the root and its entries, last one first.
    stack = [("", _list_folder(files, url, root, on_unreadable, pick))]
    while stack:
        above, entries = stack[-1]
        if not entries:
            stack.pop()
            continue
        entry = entries.pop()
        name = above + entry.name
        if entry.name.endswith("/"):
            stack.append((name, _list_folder(files, url, entry.path, on_unreadable, pick)))
        else:
            yield Found(RemoteFile(url, entry.path, entry.size), prefix + name)


def _list_folder(files: Any, url: str, path: str, on_unreadable: TellUnreadable, pick: Pick) -> list[_Listed]:
    try:
        infos = files.ls(path, detail=True)
    except Exception as error:  # each store has exceptions of its own
        code = getattr(error, "errno", None) or errno.EIO
        on_unreadable(f"{url} ({path})", OSError(code, _reason(error)))
        return []
    entries = []
    for info in infos:
        where = info["name"]
        name = where.rstrip("/").rsplit("/", 1)[-1]
        # Object stores list a folder's own marker among its entries.
        if where.strip("/") == path.strip("/") or pick.leaves(name):
            continue
        size = info.get("size")
        folder = info.get("type") == "directory"
        if folder:
            entries.append(_Listed(f"{name}/", where, None))
            size = None
        if pick.takes(name, folder=folder):
            entries.append(_Listed(name, where, size))
    return sorted(entries, reverse=True, key=lambda entry: entry.name)
