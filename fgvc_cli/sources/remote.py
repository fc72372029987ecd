"""Images behind a URL (s3://, gs://, memory://, ...), through fsspec.

fsspec comes with torch; the package for a protocol (s3fs, gcsfs) is the user's to install.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import urlsplit

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
from fgvc_cli.store import open_store, store_reason, without_secrets

TellUnreadable = Callable[[Any, OSError], None]


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
        try:
            return self._fetch()
        except (CannotRead, FileNotFoundError):
            raise
        except FgvcError as error:
            raise CannotRead("unreadable", f"{error.message} {error.hint}") from error
        except Exception as error:
            if without_secrets(self.url) == self.url:
                raise
            denied = isinstance(error, PermissionError)
            reason = store_reason(error, self.url)
            raise CannotRead("no_access" if denied else "unreadable", reason) from error

    def _fetch(self) -> BinaryIO:
        files, path = open_store(self.url)
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
        return self.path or without_secrets(self.url)


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
    files, path = open_store(url)
    shown = without_secrets(url)
    try:
        if files.isdir(path):
            pick = pick or Pick()
            walk = _walk(files, url, path, f"{shown.rstrip('/')}/" if several else "", on_unreadable, pick)
            silent = Pick(pick.all_files, videos=pick.videos)
            if next(_walk(files, url, path, "", lambda *_: None, silent), None) is None:
                files.ls(path, detail=True)  # says why, where the walk did not
                raise FgvcError(*no_image(shown))
            return Source(walk)
        if files.exists(path):
            return Source(iter([Found(RemoteFile(url), shown)]), 1)
        matches = _matches(files, url, path) if glob.has_magic(path) else []
    except FgvcError:
        raise
    except Exception as error:  # each store has exceptions of its own
        hint = "Check the URL, the network and the credentials."
        raise FgvcError(f"Cannot list {shown}: {store_reason(error, url)}.", hint) from error
    if not matches:
        hint = "Name a folder, a file or a glob; check the name of the bucket, and whether you may read it."
        raise FgvcError(f"Nothing lies at {shown}.", hint)
    return Source(iter(matches), len(matches))


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
        on_unreadable(f"{without_secrets(url)} ({path})", OSError(code, store_reason(error, url)))
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
