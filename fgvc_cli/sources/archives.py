"""Archives as sources: .zip, .tar, and .tar compressed by gzip, bzip2 or xz."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from fgvc_cli.errors import FgvcError
from fgvc_cli.sources.archive_entries import FILE, WHY, Damaged, Entry, Stamp, stamp_of
from fgvc_cli.sources.stored import Found, Lost, Pick, Source, Stored, no_image
from fgvc_cli.sources.tars import TarMember, compressed_images, open_compressed, tar_entries
from fgvc_cli.sources.zips import ZipMember, zip_entries

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")
"""What makes a file named by the user an archive; which kind, its first bytes say."""
NOT_READ = (".tar.zst", ".tzst", ".tar.lz4", ".7z", ".rar")
"""Archives that are refused rather than called broken images."""

Listing = Callable[[BinaryIO, Pick | None], Iterator[Entry]]
BUFFER_BYTES = 1 << 16
LOST = "the archive is damaged, and what follows is lost: "


def is_archive(name: str) -> bool:
    """Whether a file of this name is read, or refused, as an archive."""
    return name.lower().endswith(ENDINGS + NOT_READ)


def archive_source(text: str, *, several: bool, pick: Pick | None = None) -> Source:
    """The images of an archive, named as its members; with several sources, behind the archive as given.

    Members of .zip and plain .tar come in the order of their sorted names; the list of them is made when the
    first is asked for, and takes about 100 bytes for each. A compressed tar is read front to back instead:
    its images come in its own order, each with its bytes, and passing over some costs as much as reading
    them. What is hidden, in ``__MACOSX`` or not called an image is left out; a name that occurs twice comes
    twice. Links are followed within a plain .tar. Nothing is ever unpacked to disk.

    An archive that is damaged somewhere gives all it can, then one failed row under its own name.

    Raises:
        FgvcError: at the call: it cannot be read at all, or holds no image.
    """
    archive = Path(text).as_posix()
    if text.lower().endswith(NOT_READ):
        raise FgvcError(f"{archive} is no kind of archive that is read.", "Unpack it, and name the folder.")
    prefix = f"{archive}/" if several else ""
    try:
        with open(text, "rb") as stream:
            start = stream.read(4)
            stream.seek(0)
            if open_compressed(stream):
                return _front_to_back(text, archive, prefix, pick)
            listing = zip_entries if start in (b"PK\3\4", b"PK\5\6") or _is_zip_name(text) else tar_entries
            if next(listing(stream, _silent(pick)), None) is None:
                raise FgvcError(*no_image(archive))
    except (OSError, Damaged) as error:
        raise _refusal(archive, error) from error
    source = Source(iter(()))
    source.images = _sorted_images(source, text, prefix, listing, pick)
    return source


def _silent(pick: Pick | None) -> Pick:
    """The same choice, which counts elsewhere."""
    return Pick(bool(pick and pick.all_files))


def _is_zip_name(text: str) -> bool:
    return text.lower().endswith(".zip")


def _refusal(archive: str, error: Exception) -> FgvcError:
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())
    return FgvcError(f"Cannot read {archive}: {reason}.", "Check that it is whole, or unpack it.")


def _front_to_back(text: str, archive: str, prefix: str, pick: Pick | None) -> Source:
    first = next(_compressed(text, archive, prefix, _silent(pick)), None)
    if first is None:
        raise FgvcError(*no_image(archive))
    if isinstance(first.path, Lost) and first.name == archive:
        raise _refusal(archive, Damaged(first.path.reason.removeprefix(LOST)))
    note = (
        f"{archive} is compressed: read front to back by one thread, rows in its own order, "
        "a resumed run from its start. A .zip or plain .tar has none of these costs."
    )
    return Source(_compressed(text, archive, prefix, pick), note=note)


def _compressed(text: str, archive: str, prefix: str, pick: Pick | None) -> Iterator[Found]:
    try:
        with open(text, "rb") as packed:
            if (stream := open_compressed(packed)) is None:
                raise Damaged("changed while it was read")
            with stream:
                yield from compressed_images(stream, archive, prefix, pick)
    except (OSError, Damaged) as error:
        yield _damage(archive, error)


def _damage(archive: str, error: Exception) -> Found:
    """The row for all that an archive may have held beyond its damage."""
    return Found(Lost(archive, "truncated", f"{LOST}{error}"), archive)


def _sorted_images(
    source: Source, text: str, prefix: str, listing: Listing, pick: Pick | None
) -> Iterator[Found]:
    packed: list[bytes] = []
    damage: list[Found] = []
    stamp: Stamp = (0, 0)
    try:
        with open(text, "rb", buffering=BUFFER_BYTES if listing is zip_entries else -1) as stream:
            stamp = stamp_of(stream)
            for entry in listing(stream, pick):
                packed.append(entry.pack())
    except (OSError, Damaged) as error:
        damage = [_damage(Path(text).as_posix(), error)]
    packed.sort()
    source.total = len(packed) + len(damage)
    open_member = partial(_member, os.fspath(text), stamp, listing)
    for data in packed:
        entry = Entry.unpack(data)
        yield Found(open_member(entry), prefix + entry.name)
    yield from damage


def _member(archive: str, stamp: Stamp, listing: Listing, entry: Entry) -> Stored:
    if entry.kind != FILE:
        return Lost(f"{archive}/{entry.name}", *WHY[entry.kind])
    if listing is zip_entries:
        return ZipMember(archive, stamp, entry)
    return TarMember(archive, stamp, entry.name, entry.offset, entry.size)
