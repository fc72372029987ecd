"""Lists of images, one path per line or with NUL between them, from a stream or a file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO, cast

from fgvc_cli.errors import FgvcError
from fgvc_cli.sources.remote import RemoteFile, is_url, local_path
from fgvc_cli.sources.stored import Found, Source

MAX_ENTRY_BYTES = 1 << 16
"""Longest path in a list; a file without separators is no list, and is not read into memory to find out."""


def as_given(text: str) -> Found:
    """A file under the name the user gave it; nothing is looked up."""
    if is_url(text):
        return Found(RemoteFile(text), text)
    path = Path(local_path(text))
    return Found(path, path.as_posix())


def read_list(stream: BinaryIO | BufferedIOBase, *, null: bool = False) -> Iterator[Found]:
    """A list of files, lazily: one per line (LF or CRLF, blank lines skipped), any bytes in a name.

    Entries are paths, relative to the working directory, or URLs. Nothing is checked here: a path without a
    file becomes a row that says so.

    Args:
        null: entries end in NUL instead, as ``find -print0`` writes them; a name may then hold newlines.

    Raises:
        FgvcError: from ``next``, where the list is empty or is not a list.
    """
    empty = True
    for entry in _entries(stream, null):
        if empty and b"\0" in entry:
            raise FgvcError("The list of images holds NUL bytes.", "Add -0 if NUL separates its entries.")
        empty = False
        yield as_given(os.fsdecode(entry))
    if empty:
        raise FgvcError("The list of images is empty.", "Send one path per line.")


def list_source(text: str, path: Path, *, null: bool) -> Source:
    """The images of a list in a file; a regular file is counted first, a pipe is read as it comes.

    Raises:
        FgvcError: at the call, where the file cannot be read or is empty.
    """
    try:
        with path.open("rb") as stream:
            regular = stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
            total = sum(1 for _ in _entries(stream, null)) if regular else None
    except OSError as error:
        hint = "Name the list as @FILE, one path per line."
        raise FgvcError(f"Cannot read the list {text}: {error.strerror or error}.", hint) from error
    if total == 0:
        raise FgvcError(f"The list {text} is empty.", "Write one path per line.")
    return Source(_from_file(path, null), total)


def _from_file(path: Path, null: bool) -> Iterator[Found]:
    try:
        with path.open("rb") as stream:
            yield from read_list(stream, null=null)
    except OSError as error:
        raise FgvcError(f"Cannot read the list {path}: {error.strerror or error}.") from error


def _entries(stream: BinaryIO | BufferedIOBase, null: bool) -> Iterator[bytes]:
    """Entries that are not blank, without their separators."""
    for entry in _split_at_nul(stream) if null else iter(partial(stream.readline, MAX_ENTRY_BYTES), b""):
        if len(entry) >= MAX_ENTRY_BYTES:
            hint = "Name an image without @, or add -0 if NUL separates the entries."
            raise FgvcError(f"A line of the list is longer than {MAX_ENTRY_BYTES:,} bytes.", hint)
        entry = entry if null else entry.removesuffix(b"\n").removesuffix(b"\r")
        if entry if null else entry.strip():
            yield entry


def _split_at_nul(stream: BinaryIO | BufferedIOBase) -> Iterator[bytes]:
    """What comes between NUL bytes, as soon as it has come."""
    rest = b""
    while chunk := cast(BufferedIOBase, stream).read1(MAX_ENTRY_BYTES):
        *whole, rest = (rest + chunk).split(b"\0")
        yield from whole
        if len(rest) >= MAX_ENTRY_BYTES:
            break
    if rest:
        yield rest
