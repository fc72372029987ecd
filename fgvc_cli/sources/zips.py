"""Images in zip archives, through their directory; memory holds one small entry per image.

Python's zipfile would keep half a kilobyte per member, read the directory anew for each reader, and refuse
an archive over one name that is not UTF-8. Layout: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5.3.
"""

from __future__ import annotations

import bz2
import io
import lzma
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from fgvc_cli.sources.archive_entries import (
    ENCRYPTED,
    FILE,
    FOLDER,
    LINK,
    TOO_LARGE,
    Damaged,
    Entry,
    Stamp,
    image_member,
    open_unchanged,
)
from fgvc_cli.sources.stored import MAX_BYTES, CannotRead, Pick
from fgvc_cli.sources.stored import Stored as StoredImage

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
class ZipMember(StoredImage):
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
    data = _unpack(packed, entry)
    if len(data) != entry.size or zlib.crc32(data) != entry.crc:
        raise CannotRead("unreadable", "the archive is damaged: wrong checksum of the image")
    return data


def _unpack(packed: bytes, entry: Entry) -> bytes:
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
        name = image_member(_name(raw, flags), pick)
        if name is not None:
            full, packed, at = _wide(extra, full, packed, at)
            is_link = made >> 8 == UNIX and stat.S_ISLNK(mode >> 16)
            kind = LINK if is_link else _kind(raw, flags, max(full, packed))
            yield Entry(name, kind, max(0, at + shift), full, packed, crc, method)


def _kind(raw_name: bytes, flags: int, size: int) -> int:
    if raw_name.endswith(b"/"):
        return FOLDER
    if flags & IS_ENCRYPTED:
        return ENCRYPTED
    return TOO_LARGE if size > MAX_BYTES else FILE


def _name(raw: bytes, flags: int) -> str:
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
