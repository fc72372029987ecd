"""The images in tar and zip archives: which members they are, one small entry for each, and their bytes.

Plain tars and zips are listed first and looked up at random, compressed tars read front to back.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import posixpath
import stat
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

from fgvc_cli.sources.stored import (
    MAX_BYTES,
    CannotRead,
    FailureStatus,
    Found,
    Lost,
    Pick,
    Stored,
    is_left_behind,
)

FILE, FOLDER, SPECIAL, LINK, OUTSIDE, SPARSE, ENCRYPTED, TOO_LARGE = range(8)
"""Kinds of members."""

WHY: dict[int, tuple[FailureStatus, str]] = {
    FOLDER: ("not_a_file", "not a regular file but a folder"),
    SPECIAL: ("not_a_file", "not a regular file but a FIFO or a device"),
    LINK: ("not_a_file", "a link; those of zip and compressed tar archives are not followed"),
    OUTSIDE: ("missing", "a link to what the archive does not hold"),
    SPARSE: ("unreadable", "stored with holes, which is not read; unpack the archive"),
    ENCRYPTED: ("no_access", "encrypted; unpack the archive with its password"),
    TOO_LARGE: ("too_large", f"more than {MAX_BYTES} bytes"),
}
"""Kind -> why there is no image."""

Stamp = tuple[int, int]
"""Size in bytes and time of change in ns of an archive when it was listed."""

_FIELDS = struct.Struct(">BQQQLH")


class Damaged(Exception):
    """An archive cannot be read any further; the text says why."""


class Entry(NamedTuple):
    """An image of an archive."""

    name: str
    """As the row calls it, without the archive."""
    kind: int
    offset: int = 0
    """Of its bytes in a tar, of its local header in a zip."""
    size: int = 0
    packed: int = 0
    """Bytes it takes in a zip."""
    crc: int = 0
    method: int = 0
    """Compression, as zip numbers it."""

    def pack(self) -> bytes:
        """In about 100 bytes of memory; packed entries sort by name."""
        fields = _FIELDS.pack(self.kind, self.offset, self.size, self.packed, self.crc, self.method)
        return self.name.encode("utf-8", "surrogateescape") + b"\0" + fields

    @classmethod
    def unpack(cls, packed: bytes) -> Entry:
        """The entry again."""
        name = packed[: -_FIELDS.size - 1].decode("utf-8", "surrogateescape")
        return cls(name, *_FIELDS.unpack_from(packed, len(packed) - _FIELDS.size))


def image_member(name: str, pick: Pick | None = None) -> str | None:
    """The name of a member as a row calls it, or None for what is no image or hidden; with a slash behind it
    for an archive to look into.

    Like tar and unzip, without a leading ``/`` and without ``..``, so that no name leads out of a folder.
    """
    pick = pick or Pick()
    name = name.split("\0")[0]
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    folder = name.endswith("/")
    # A folder of an archive is an entry beside what lies in it.
    if not parts or (any(map(is_left_behind, parts)) if folder else any(map(pick.leaves, parts))):
        return None
    if not folder and pick.opens(parts[-1]):
        return "/".join(parts) + "/"
    return "/".join(parts) if pick.takes(parts[-1], folder=folder) else None


def stamp_of(stream: BinaryIO) -> Stamp:
    """The stamp of an open archive."""
    info = os.fstat(stream.fileno())
    return info.st_size, info.st_mtime_ns


@contextmanager
def open_unchanged(archive: str, stamp: Stamp) -> Iterator[BinaryIO]:
    """The archive, open for one reader.

    Raises:
        CannotRead: it is not the one that was listed; its bytes could be those of another image.
    """
    with open(archive, "rb") as stream:
        if stamp_of(stream) != stamp:
            raise CannotRead("unreadable", "the archive changed while it was read")
        yield stream


# tar

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
                yield Entry(name, _tar_kind(member), member.offset_data, member.size)
    except Damaged as error:
        damage = error
    if waiting:
        yield from _follow_links(stream, waiting, links)
    if damage:
        raise damage


def _tar_kind(member: tarfile.TarInfo) -> int:
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
                places[place] = _tar_kind(member), member.offset_data, member.size
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
        kind = LINK if _target(member) else _tar_kind(member)
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


# zip. Python's zipfile would keep half a kilobyte per member, read the directory anew for each reader, and
# refuse an archive over one name that is not UTF-8. Layout: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5.3.

STORED, DEFLATED, BZIPPED, LZMA = 0, 8, 12, 14
UTF8_NAME, IS_ENCRYPTED = 0x800, 0x1
UNIX = 3
END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
END64_PLACE = struct.Struct("<4sLQL")
RECORD = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
MAX_COMMENT_BYTES = 1 << 16


class _Decompressor(Protocol):
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class ZipMember(Stored):
    """An image in a zip archive."""

    archive: str
    stamp: Stamp
    entry: Entry

    def open(self) -> BinaryIO:
        """Its bytes, checked against the checksum; see ``Stored.open``."""
        with open_unchanged(self.archive, self.stamp) as stream:
            return io.BytesIO(read_zipped(stream, self.entry))

    def __str__(self) -> str:
        return f"{self.archive}/{self.entry.name}"


def read_zipped(stream: BinaryIO, entry: Entry) -> bytes:
    """The bytes of a member of an open archive, checked against the checksum.

    Raises:
        CannotRead: the archive is damaged there.
    """
    stream.seek(entry.offset)
    header = stream.read(LOCAL.size)
    if len(header) < LOCAL.size or not header.startswith(b"PK\3\4"):
        raise CannotRead("unreadable", "the archive is damaged: no header where the image begins")
    *_, name_bytes, extra_bytes = LOCAL.unpack(header)
    stream.seek(name_bytes + extra_bytes, io.SEEK_CUR)
    packed = stream.read(entry.packed)
    if len(packed) < entry.packed:
        raise CannotRead("truncated", "the archive ends in this image")
    data = _unzip(packed, entry)
    if len(data) != entry.size or zlib.crc32(data) != entry.crc:
        raise CannotRead("unreadable", "the archive is damaged: wrong checksum of the image")
    return data


def _unzip(packed: bytes, entry: Entry) -> bytes:
    """At most one byte more than the entry promises, whatever a bomb holds."""
    if entry.method == STORED:
        return packed
    decompressor: _Decompressor
    try:
        if entry.method == DEFLATED:
            decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
        elif entry.method == BZIPPED:
            decompressor = bz2.BZ2Decompressor()
        elif entry.method == LZMA:
            decompressor, packed = _lzma(packed, entry.size)
        else:
            raise CannotRead("unreadable", f"compressed by method {entry.method}, which is not read")
        return decompressor.decompress(packed, entry.size + 1)
    except (zlib.error, OSError, lzma.LZMAError, struct.error) as error:
        raise CannotRead("unreadable", f"the archive is damaged: {error}") from error


def _lzma(packed: bytes, size: int) -> tuple[lzma.LZMADecompressor, bytes]:
    """Section 5.8: version, length of the properties, properties, raw stream."""
    length, properties, dictionary = struct.unpack_from("<2xHBL", packed)
    settings = {
        "id": lzma.FILTER_LZMA1,
        "dict_size": max(min(dictionary, size), 4096),  # more is never looked at
        "lc": properties % 9,
        "lp": properties // 9 % 5,
        "pb": properties // 45,
    }
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[settings]), packed[4 + length :]


def zip_entries(stream: BinaryIO, pick: Pick | None = None) -> Iterator[Entry]:
    """The images of a zip archive, in the order of its directory.

    Raises:
        Damaged: the directory is missing, or ends after what was yielded.
    """
    start, size, shift = _directory(stream)
    stream.seek(start)
    while size > 0:
        record = stream.read(RECORD.size)
        if len(record) < RECORD.size or not record.startswith(b"PK\1\2"):
            raise Damaged(f"its directory is damaged {size} bytes before its end")
        _, made, _, flags, method, _, _, crc, packed, full, *lengths, _, _, mode, at = RECORD.unpack(record)
        name_len, extra_len, comment_len = lengths
        raw = stream.read(name_len)
        extra = stream.read(extra_len)
        stream.seek(comment_len, io.SEEK_CUR)
        size -= RECORD.size + name_len + extra_len + comment_len
        name = image_member(_zip_name(raw, flags), pick)
        if name is not None:
            full, packed, at = _wide(extra, full, packed, at)
            is_link = made >> 8 == UNIX and stat.S_ISLNK(mode >> 16)
            kind = LINK if is_link else _zip_kind(raw, flags, max(full, packed))
            yield Entry(name, kind, max(0, at + shift), full, packed, crc, method)


def _zip_kind(raw_name: bytes, flags: int, size: int) -> int:
    if raw_name.endswith(b"/"):
        return FOLDER
    if flags & IS_ENCRYPTED:
        return ENCRYPTED
    return TOO_LARGE if size > MAX_BYTES else FILE


def _zip_name(raw: bytes, flags: int) -> str:
    """UTF-8 where it is, said so or not (macOS does not say); else the code page of old."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "surrogateescape") if flags & UTF8_NAME else raw.decode("cp437")


def _wide(extra: bytes, full: int, packed: int, at: int) -> tuple[int, int, int]:
    """Sizes and offset of a zip64 record: those that are all ones stand in its extra field."""
    while len(extra) >= 4:
        tag, length = struct.unpack_from("<HH", extra)
        if tag == 1:
            numbers = iter(struct.unpack_from(f"<{min(length, len(extra) - 4) // 8}Q", extra, 4))
            full, packed, at = (
                next(numbers, value) if value == 0xFFFFFFFF else value for value in (full, packed, at)
            )
        extra = extra[4 + length :]
    return full, packed, at


def _directory(stream: BinaryIO) -> tuple[int, int, int]:
    """Where the directory starts, its size in bytes, and what to add to the offsets in it."""
    length = stream.seek(0, io.SEEK_END)
    tail_at = max(0, length - END.size - MAX_COMMENT_BYTES)
    stream.seek(tail_at)
    tail = stream.read()
    found = tail.rfind(b"PK\5\6")
    if found < 0 or len(tail) - found < END.size:
        raise Damaged("its directory, which is its end, is missing")
    *_, size, offset, _ = END.unpack_from(tail, found)
    stop = tail_at + found
    stream.seek(max(0, stop - END64_PLACE.size))
    place = stream.read(END64_PLACE.size)
    if place.startswith(b"PK\6\7"):
        # As zipfile does: right before its locator, since the offset is off where bytes precede the archive.
        stop -= END64_PLACE.size + END64.size
        stream.seek(max(0, stop))
        end = stream.read(END64.size)
        if len(end) < END64.size or not end.startswith(b"PK\6\6"):
            raise Damaged("its zip64 directory is damaged")
        *_, size, offset = END64.unpack(end)
    start = stop - size
    if start < 0:
        raise Damaged("its directory is damaged")
    return start, size, start - offset
