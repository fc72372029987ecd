"""A known set from its official address to its folder: fetched, unpacked aside, checked, then renamed.

Below the data root, ``.downloads/NAME/`` holds the archives until the set is there, and its ``tree/`` what is
unpacked. A process that is killed leaves these and never half a set. A cut download goes on where it was, and
only a whole file gets its name: while it comes it is ``NAME.part``; ``NAME.part.tag`` holds what the
server calls this version of the file, so that two versions are never put together.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import urlsplit

from fgvc_cli import __version__
from fgvc_cli.data.listing import LabelledSet
from fgvc_cli.datasets.entries import Archive, KnownSet
from fgvc_cli.datasets.registry import default_root, find_known, look_for, read_official
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.files import LOCK, FolderLock, reason, sync_folder

_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError)
_TREE = "tree"

OnBytes = Callable[[int, int | None], None]
"""Called with the bytes that are here and those of the whole file, None where the server does not say."""

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 60
_TRIES = 4
"""Connections in a row that bring nothing before we give up."""


def downloads_folder(entry: KnownSet, data_root: Path) -> Path:
    """Where its archives lie until the set is there."""
    return data_root / ".downloads" / entry.folder.partition("/")[0]


def check_address(entry: KnownSet) -> None:
    """Whether a set can be downloaded.

    Raises:
        FgvcError: one has to ask or to sign in first; where.
    """
    if not entry.archives:
        raise FgvcError(
            f"{entry.title} has no official address to download from without signing in.",
            f"Get it from {entry.source}, and unpack it to {entry.tree} below the data root.",
        )


def get_known(
    entry: KnownSet, data_root: Path, *, on_bytes: OnBytes = lambda here, total: None
) -> LabelledSet:
    """Bring a known set below ``data_root``; its archives are removed at the end.

    Returns:
        The official listing, counts checked.

    Raises:
        FgvcError: no official address, a folder in its place, a download that fails (see ``fetch``), an
            archive that does not unpack, a full disk, or contents other than the official ones.
    """
    check_address(entry)
    top = PurePosixPath(entry.folder).parts[0]
    if (data_root / top).exists():
        raise FgvcError(
            f"{data_root / top} is there, but it is not {entry.title} with {entry.expected}.",
            "Move it away, or give another --data-root.",
        )
    downloads = downloads_folder(entry, data_root)
    downloads.mkdir(parents=True, exist_ok=True)
    for archive in entry.archives:
        fetch(archive.url, downloads / archive.file, md5=archive.md5, on_bytes=on_bytes)
    tree = downloads / _TREE
    shutil.rmtree(tree, ignore_errors=True)  # of a process that was killed
    for archive in entry.archives:
        _unpack(archive, downloads / archive.file, tree)
    if entry.archive_folder:
        (tree / entry.archive_folder).rename(tree / top)
    try:
        read_official(entry, tree)
    except FgvcError as error:
        raise FgvcError(
            f"The download is not {entry.title} as published: {error.message}", f"It is kept in {downloads}."
        ) from error
    (tree / top).rename(data_root / top)
    sync_folder(data_root)
    shutil.rmtree(downloads)
    with contextlib.suppress(OSError):  # others may be under way there
        downloads.parent.rmdir()
    return read_official(entry, data_root)


def _unpack(archive: Archive, file: Path, tree: Path) -> None:
    folder = tree / archive.into
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as zipped:
                zipped.extractall(folder)  # refuses no name, but keeps all below the folder
        elif file.suffix in (".gz", ".tgz", ".tar"):
            with tarfile.open(file) as tarred:
                tarred.extractall(folder, filter="data")  # no links, names or modes that lead outside
        else:
            shutil.copyfile(file, folder / file.name)
    except _DAMAGED as error:
        file.unlink()
        raise FgvcError(
            f"{archive.url} does not unpack ({type(error).__name__}: {error}); it is removed.",
            "The same command fetches it anew.",
        ) from error
    except OSError as error:
        raise FgvcError(
            f"Could not unpack {file}: {reason(error)}.", "Free space, and run the same command again."
        ) from error


def fetch_set(
    name: str, data_root: str | None = None, *, on_bytes: OnBytes = lambda here, total: None
) -> tuple[LabelledSet | None, Path]:
    """Bring a known set below the data root by name; one that is there already is left as it is.

    Returns:
        Its official listing, or None where it was there already; and its folder.

    Raises:
        FgvcError: an unknown name, no data root, another process at it, or what ``get_known`` says.
    """
    entry = find_known(name)
    root = Path(data_root) if data_root else default_root()
    there = look_for(entry, root)
    if there.root:
        return None, there.root
    check_address(entry)
    if root is None:
        raise FgvcError(
            "Where data sets lie is not known.", "Give --data-root DIR or set FGVC_DATA=DIR.", EXIT_USAGE
        )
    downloads = downloads_folder(entry, root)
    made = _missing_folders(downloads)
    downloads.mkdir(parents=True, exist_ok=True)
    with FolderLock(downloads):
        try:
            listing = get_known(entry, root, on_bytes=on_bytes)
        finally:
            _remove_unused(downloads, made)
    return listing, listing.root


def _missing_folders(folder: Path) -> list[Path]:
    """Those that have to be made for this one to be there, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove_unused(downloads: Path, made: list[Path]) -> None:
    """Take the folders away where nothing has arrived: an address that cannot be reached leaves no trace.

    Args:
        made: those that were not there before, the innermost first.
    """
    if downloads.is_dir() and {file.name for file in downloads.iterdir()} <= {LOCK}:
        (downloads / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others may be under way in the folders above
            for folder in dict.fromkeys((downloads, downloads.parent, *made)):
                folder.rmdir()


def fetch(url: str, target: Path, *, md5: str | None, on_bytes: OnBytes = lambda here, total: None) -> None:
    """Download ``url`` to ``target``, whose folder exists. A file that is there already is taken.

    Args:
        md5: of the whole file, hex; None where none is published: then its length is all that is checked.

    Raises:
        FgvcError: no network, no such file, a checksum that differs (the file is removed), or a disk that is
            full. What has arrived stays.
    """
    if not target.exists():
        part = target.with_name(f"{target.name}.part")
        idle = 0
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                if _go_on(url, part, on_bytes, checked=md5 is not None):
                    break
            except (OSError, http.client.HTTPException) as error:
                if not _may_pass(error):
                    raise _explain(url, target, error) from error
                idle = 0 if part.exists() and part.stat().st_size > before else idle + 1
                if idle >= _TRIES:
                    raise _explain(url, target, error) from error
            else:
                idle = 0 if part.exists() and part.stat().st_size > before else idle + 1
                if idle >= _TRIES:
                    raise FgvcError(f"{_host(url)} sends {url} in part only.", "Try again later.")
        part.replace(target)
        _tag_file(part).unlink(missing_ok=True)
    if md5:
        _check(url, target, md5)


def _check(url: str, target: Path, md5: str) -> None:
    with target.open("rb") as stream:
        arrived = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if arrived != md5:
        target.unlink()
        raise FgvcError(
            f"{url} came with MD5 {arrived}, expected {md5}; the file is removed.",
            "The same command fetches it anew.",
        )


def _go_on(url: str, part: Path, on_bytes: OnBytes, *, checked: bool) -> bool:
    """One connection; whether the file is whole then.

    Args:
        checked: a checksum will find two versions that were put together.
    """
    have, tag = _what_is_here(part)
    if not tag and not checked:
        have = 0
    request = urllib.request.Request(url, headers={"User-Agent": f"fgvc/{__version__}"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    if have and tag:
        request.add_header("If-Range", tag)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers.get("Content-Range", "") == f"bytes */{have}":
            return True  # nothing was left to send
        part.unlink()
        return False
    with response:
        if response.status != http.client.PARTIAL_CONTENT:  # no ranges there, or another version of the file
            have = 0
            # first the bytes, then the tag: it never stands beside bytes of another version
            part.write_bytes(b"")
            _tag_file(part).write_text(_tag(response.headers))
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab") as stream:
            here = _copy(response, stream, have, total, on_bytes)
    return total is None or here == total


def _copy(
    response: http.client.HTTPResponse, stream: BinaryIO, have: int, total: int | None, on_bytes: OnBytes
) -> int:
    on_bytes(have, total)
    while chunk := response.read(_CHUNK_BYTES):
        stream.write(chunk)
        have += len(chunk)
        on_bytes(have, total)
    return have


def _what_is_here(part: Path) -> tuple[int, str]:
    """Bytes that are here, and the version that they are of, empty where the server has no name for it."""
    tag = _tag_file(part)
    if not part.exists() or not tag.exists():
        return 0, ""
    return part.stat().st_size, tag.read_text()


def _tag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _tag(headers: http.client.HTTPMessage) -> str:
    # A weak tag stands for files that may differ in their bytes (RFC 9110, 13.1.5).
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")


def _may_pass(error: OSError | http.client.HTTPException) -> bool:
    """Whether the next connection may do better."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 429, 500, 502, 503, 504)
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return isinstance(cause, http.client.HTTPException | ConnectionError | TimeoutError)


def _explain(url: str, target: Path, error: OSError | http.client.HTTPException) -> FgvcError:
    by_hand = f"The same command goes on where it was; or put the file there by hand, as {target}."
    if isinstance(error, urllib.error.HTTPError):
        return FgvcError(f"{_host(url)} answers {error.code} {error.reason} for {url}.", by_hand)
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return FgvcError(f"Could not write {target}: {reason(cause)}.", "Free space, and run it again.")
    # str(): the numbers of name look-ups are none of the system's errors
    return FgvcError(f"{_host(url)} cannot be reached ({cause}).", by_hand)


def _host(url: str) -> str:
    return urlsplit(url).netloc
