"""Images in tar archives: looked up at random in plain ones, read front to back in compressed ones."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from fgvc_cli.sources.archive_entries import (
    FILE,
    FOLDER,
    LINK,
    OUTSIDE,
    SPARSE,
    SPECIAL,
    TOO_LARGE,
    WHY,
    Damaged,
    Entry,
    Stamp,
    image_member,
    open_unchanged,
)
from fgvc_cli.sources.stored import MAX_BYTES, CannotRead, Found, Lost, Pick, Stored

BLOCK_BYTES = tarfile.BLOCKSIZE
MAX_HEADER_BYTES = 1 << 20
"""Most that tarfile may read at once: names and attributes, never an image."""
COMPRESSED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
"""First bytes of a compressed archive -> what reads it."""


@dataclass(frozen=True, slots=True)
class TarMember(Stored):
    """An image in a plain tar archive."""

    archive: str
    stamp: Stamp
    name: str
    offset: int
    size: int

    def open(self) -> BinaryIO:
        """Its bytes; see ``Stored.open``."""
        with open_unchanged(self.archive, self.stamp) as stream:
            return io.BytesIO(read_tarred(stream, self.offset, self.size))

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"


def read_tarred(stream: BinaryIO, offset: int, size: int) -> bytes:
    """The bytes of a member of an open archive.

    Raises:
        CannotRead: the archive ends before.
    """
    stream.seek(offset)
    data = stream.read(size)
    if len(data) < size:
        raise CannotRead("truncated", f"the archive ends {size - len(data)} bytes before the image")
    return data


@dataclass(frozen=True, slots=True)
class HeldMember(Stored):
    """An image of a compressed tar archive with its bytes, as no reader can go back for them."""

    where: str
    data: bytes = field(repr=False)

    def open(self) -> BinaryIO:
        """Its bytes."""
        return io.BytesIO(self.data)

    def __str__(self) -> str:
        return self.where


class _Watched:
    """A stream that keeps what was read last: tarfile takes a damaged header for the end, silently."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self.seek = stream.seek
        self.tell = stream.tell
        self.last = b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise Damaged(f"a header of {size} bytes")
        self.last = self._stream.read(size)
        return self.last


def tar_members(stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The headers of a tar archive in its order, in flat memory.

    Raises:
        Damaged: where the rest cannot be read; also where the end mark is missing, as rows may be then.
    """
    watched = _Watched(stream)
    end = -1
    try:
        tar: Any = tarfile.TarFile(fileobj=cast(BinaryIO, watched), errors="surrogateescape")
        while (member := tar.next()) is not None:
            # A hostile size turns tarfile back to where it has been, for ever.
            if not 0 <= member.size < 1 << 60 or tar.offset <= end:
                raise Damaged(f"damaged at byte {max(end, 0)}")
            end = tar.offset
            tar.members.clear()  # it would keep them all
            yield member
    # Hostile headers bring out any exception in tarfile, decompressors add theirs.
    except Exception as error:
        raise Damaged(str(error)) from error
    if len(watched.last) < BLOCK_BYTES:
        raise Damaged(f"cut off at byte {tar.offset}")
    if watched.last.strip(b"\0"):
        raise Damaged(f"damaged at byte {tar.offset}")


def tar_entries(stream: BinaryIO, pick: Pick | None = None) -> Iterator[Entry]:
    """The images of a plain tar archive, in its order; links to images in it lead to their bytes.

    Raises:
        Damaged: after all that could be listed.
    """
    links: dict[str, str] = {}
    waiting: list[tuple[str, str]] = []
    damage: Damaged | None = None
    try:
        for member in tar_members(stream):
            if target := _target(member):
                links[_normal(member.name)] = target
            if (name := image_member(_named(member), pick)) is None:
                continue
            if target:
                waiting.append((name, target))
            else:
                yield Entry(name, _kind(member), member.offset_data, member.size)
    except Damaged as error:
        damage = error
    if waiting:
        yield from _follow_links(stream, waiting, links)
    if damage:
        raise damage


def _kind(member: tarfile.TarInfo) -> int:
    if member.isdir():
        return FOLDER
    if member.issparse():
        return SPARSE
    if not member.isreg():
        return SPECIAL
    return TOO_LARGE if member.size > MAX_BYTES else FILE


def _named(member: tarfile.TarInfo) -> str:
    """With a slash behind a folder."""
    return f"{member.name}/" if member.isdir() else member.name


def _normal(name: str) -> str:
    return posixpath.normpath(name)


def _target(member: tarfile.TarInfo) -> str:
    """What a link points to, as a member name; empty for everything else."""
    if member.islnk():
        return _normal(member.linkname)
    if member.issym():
        return _normal(posixpath.join(posixpath.dirname(member.name), member.linkname))
    return ""


def _follow_links(stream: BinaryIO, waiting: list[tuple[str, str]], links: dict[str, str]) -> Iterator[Entry]:
    """Image names that are links -> entries with the place of the bytes they lead to."""
    ends: dict[str, str] = {}
    for name, target in waiting:
        seen = set()
        while target in links and target not in seen:
            seen.add(target)
            target = links[target]
        ends[name] = target
    wanted = set(ends.values())
    places: dict[str, tuple[int, int, int]] = {}
    stream.seek(0)
    with contextlib.suppress(Damaged):  # the first pass has told of it
        for member in tar_members(stream):
            if (place := _normal(member.name)) in wanted and not _target(member):
                places[place] = _kind(member), member.offset_data, member.size
    for name, _ in waiting:
        yield Entry(name, *places.get(ends[name], (OUTSIDE, 0, 0)))


def compressed_images(
    stream: BinaryIO, archive: str, prefix: str, pick: Pick | None = None
) -> Iterator[Found]:
    """The images of a tar archive from its decompressed stream, in its order, each with its bytes.

    Raises:
        Damaged: after all that could be read.
    """
    for member in tar_members(stream):
        if (name := image_member(_named(member), pick)) is None:
            continue
        where, row = f"{archive}/{name}", prefix + name
        kind = LINK if _target(member) else _kind(member)
        if kind != FILE:
            yield Found(Lost(where, *WHY[kind]), row)
            continue
        try:
            data = stream.read(member.size)
        except Exception as error:  # any of a decompressor's
            yield Found(Lost(where, "truncated", f"the archive is damaged here: {error}"), row)
            raise Damaged(str(error)) from error
        if len(data) < member.size:
            yield Found(Lost(where, "truncated", "the archive ends in this image"), row)
            raise Damaged("cut off")
        yield Found(HeldMember(where, data), row)


def open_compressed(stream: BinaryIO) -> BinaryIO | None:
    """The decompressed stream of a compressed archive; None where its first bytes are of none known."""
    start = stream.read(6)
    stream.seek(0)
    return next((read(stream) for magic, read in COMPRESSED.items() if start.startswith(magic)), None)
