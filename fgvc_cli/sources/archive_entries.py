"""What tar and zip archives share: which members are images, one entry for each, and safe access."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from fgvc_cli.sources.stored import MAX_BYTES, CannotRead, Pick, is_left_behind

if TYPE_CHECKING:
    from fgvc_cli.sources.images import FailureStatus

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
