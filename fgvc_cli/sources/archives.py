"""Archives as sources: .zip, .tar, and .tar compressed by gzip, bzip2 or xz."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from fgvc_cli.errors import FgvcError
from fgvc_cli.sources.archive_members import (
    FILE,
    WHY,
    Damaged,
    Entry,
    HeldMember,
    Stamp,
    TarMember,
    ZipMember,
    compressed_images,
    image_member,
    open_compressed,
    read_tarred,
    read_zipped,
    stamp_of,
    tar_entries,
    tar_members,
    zip_entries,
)
from fgvc_cli.sources.stored import (
    ARCHIVES_NOT_READ,
    NO_IMAGE,
    CannotRead,
    Found,
    Lost,
    Pick,
    Source,
    Stored,
    no_image,
)

Listing = Callable[[BinaryIO, Pick | None], Iterator[Entry]]
BUFFER_BYTES = 1 << 16
LOST = "the archive is damaged, and what follows is lost: "


def archive_source(
    text: str, *, several: bool, pick: Pick | None = None, prefix: str | None = None
) -> Source:
    """The images of an archive, named as its members; with several sources, behind the archive as given.

    Members of .zip and plain .tar come in the order of their sorted names; the list of them is made when the
    first is asked for, and takes about 100 bytes for each. A compressed tar is read front to back instead:
    its images come in its own order, each with its bytes, and passing over some costs as much as reading
    them. What is hidden, in ``__MACOSX`` or not called an image is left out; a name that occurs twice comes
    twice. Links are followed within a plain .tar. Nothing is ever unpacked to disk.

    An archive that is damaged somewhere gives all it can, then one failed row under its own name. One in it,
    where ``pick`` is to look into these, is held whole, up to ``MAX_BYTES``; passing over its images costs as
    much as reading them.

    Args:
        prefix: what the names of its images begin with, instead of what ``several`` makes it.

    Raises:
        FgvcError: at the call: it cannot be read at all, or holds no image.
    """
    archive = Path(text).as_posix()
    if text.lower().endswith(ARCHIVES_NOT_READ):
        raise FgvcError(f"{archive} is no kind of archive that is read.", "Unpack it, and name the folder.")
    if prefix is None:
        prefix = f"{archive}/" if several else ""
    try:
        with open(text, "rb") as stream:
            start = stream.read(4)
            stream.seek(0)
            if open_compressed(stream):
                return _front_to_back(text, archive, prefix, pick)
            listing = zip_entries if start in (b"PK\3\4", b"PK\5\6") or _is_zip_name(text) else tar_entries
            silent = pick.silent() if pick else Pick()
            if next(listing(stream, silent), None) is None:
                raise FgvcError(*no_image(archive, silent))
    except (OSError, Damaged) as error:
        raise _refusal(archive, error) from error
    source = Source(iter(()))
    source.images = _sorted_images(source, text, prefix, listing, pick)
    return source


# WebDataset: samples in plain tar archives, the files of one side by side (key.jpg, key.cls, key.json).


@dataclass(frozen=True)
class TarIndex:
    """What lies where in a plain tar archive."""

    stamp: Stamp
    places: dict[str, tuple[int, int]]
    """Name of an image -> offset and size of its bytes."""
    texts: dict[str, bytes]
    """Name of a member of at most ``MAX_TEXT_BYTES`` that ends in ``.cls`` or ``.json`` -> its bytes."""
    damage: str
    """Why the rest could not be read; empty where all could."""


TEXT_ENDINGS = (".cls", ".json")
MAX_TEXT_BYTES = 1 << 20


def index_tar(archive: str, pick: Pick | None = None) -> TarIndex:
    """List a plain tar archive, its small texts with their bytes.

    Raises:
        OSError: it cannot be opened.
    """
    places: dict[str, tuple[int, int]] = {}
    texts: dict[str, bytes] = {}
    damage = ""
    pick = pick or Pick()
    with open(archive, "rb") as stream:
        stamp = stamp_of(stream)
        if open_compressed(stream):
            return TarIndex(stamp, {}, {}, "compressed; gunzip it, as its images are read in any order")
        try:
            for member in tar_members(stream):
                is_text = member.isreg() and member.name.lower().endswith(TEXT_ENDINGS)
                if is_text and member.size <= MAX_TEXT_BYTES:
                    name = image_member(member.name, Pick(all_files=True))
                    stream.seek(member.offset_data)
                    texts[name or ""] = stream.read(member.size)
                elif member.isreg() and (name := image_member(member.name, pick)):
                    places[name] = (member.offset_data, member.size)
        except Damaged as error:
            damage = str(error)
    _PLACES[archive] = stamp, places
    return TarIndex(stamp, places, texts, damage)


_PLACES: dict[str, tuple[Stamp, dict[str, tuple[int, int]]]] = {}
"""Archives that this process has listed; decoding processes that are forked off share them."""


def member_within(path: Path | str) -> TarMember | None:
    """The image that a path through a plain tar archive leads to, ``shards/000.tar/key.jpg``; None where it
    leads through none, or to none.

    Raises:
        OSError: the archive cannot be opened.
    """
    path = Path(path)
    for archive in path.parents:
        if archive.is_file():
            if str(archive) not in _PLACES:
                index_tar(str(archive))
            stamp, places = _PLACES.get(str(archive), ((0, 0), {}))
            name = path.relative_to(archive).as_posix()
            return TarMember(str(archive), stamp, name, *places[name]) if name in places else None
        if archive.is_dir():
            break
    return None


def open_bytes(path: Path) -> BinaryIO:
    """A file, or the image in a tar archive that a path leads to.

    Raises:
        OSError: there is none.
        CannotRead: the archive has changed, or ends in it.
    """
    try:
        return path.open("rb")
    except (NotADirectoryError, FileNotFoundError):
        if member := member_within(path):
            return member.open()
        raise


def bytes_of(path: Path) -> int:
    """The size of what ``open_bytes`` opens.

    Raises:
        OSError: there is none.
    """
    try:
        return os.stat(path).st_size
    except (NotADirectoryError, FileNotFoundError):
        if member := member_within(path):
            return member.size
        raise


def _is_zip_name(text: str) -> bool:
    return text.lower().endswith(".zip")


def _refusal(archive: str, error: Exception) -> FgvcError:
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())
    return FgvcError(f"Cannot read {archive}: {reason}.", "Check that it is whole, or unpack it.")


def _front_to_back(text: str, archive: str, prefix: str, pick: Pick | None) -> Source:
    silent = pick.silent() if pick else Pick()
    first = next(_compressed(text, archive, prefix, silent), None)
    if first is None:
        raise FgvcError(*no_image(archive, silent))
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
                for found in compressed_images(stream, archive, prefix, pick):
                    if found.name.endswith("/"):
                        yield from _within(found.path, found.name, pick)
                    else:
                        yield found
    except (OSError, Damaged) as error:
        yield _damage(archive, prefix, error)


def _damage(archive: str, prefix: str, error: Exception) -> Found:
    """The row for all that an archive may have held beyond its damage."""
    return Found(Lost(archive, "truncated", f"{LOST}{error}"), prefix.removesuffix("/") or archive)


def nested_images(path: str, name: str, pick: Pick) -> Iterator[Found]:
    """The images of an archive that was met in a folder; one that cannot be read at all is a failed row.

    Args:
        name: its own, which the names of its images begin with.
    """
    try:
        yield from archive_source(path, several=True, pick=pick, prefix=f"{name}/").images
    except FgvcError as error:
        if error.message.endswith(NO_IMAGE):
            pick.found_none(name)
        else:
            yield Found(Lost(path, "unreadable" if os.path.exists(path) else "missing", error.message), name)


def _within(archive: Path | Stored, prefix: str, pick: Pick | None) -> Iterator[Found]:
    """The images of an archive that is a member of another, each with its bytes; one without is counted."""
    pick = (pick or Pick()).within()
    found = None
    for found in _members_within(archive, prefix, pick):
        yield found
    if found is None:
        pick.found_none(prefix.removesuffix("/"))


def _members_within(archive: Path | Stored, prefix: str, pick: Pick) -> Iterator[Found]:
    where = str(archive).rstrip("/")
    if isinstance(archive, Lost) or not isinstance(archive, Stored):
        yield Found(archive, prefix.removesuffix("/"))
        return
    try:
        with archive.open() as packed:
            if stream := open_compressed(packed):
                yield from compressed_images(stream, where, prefix, pick)
                return
            start = packed.read(4)
            packed.seek(0)
            is_zip = start in (b"PK\3\4", b"PK\5\6") or _is_zip_name(where)
            damage: Damaged | None = None
            entries: list[bytes] = []
            try:
                for entry in (zip_entries if is_zip else tar_entries)(packed, pick):
                    entries.append(entry.pack())
            except Damaged as error:
                damage = error
            for data in sorted(entries):
                entry = Entry.unpack(data)
                yield Found(_held(packed, where, entry, is_zip), prefix + entry.name)
            if damage:
                raise damage
    except (OSError, Damaged) as error:
        yield _damage(where, prefix, error)
    except CannotRead as error:
        yield Found(Lost(where, error.status, str(error)), prefix.removesuffix("/"))


def _held(packed: BinaryIO, archive: str, entry: Entry, is_zip: bool) -> Stored:
    where = f"{archive}/{entry.name}"
    if entry.kind != FILE:
        return Lost(where, *WHY[entry.kind])
    try:
        if is_zip:
            return HeldMember(where, read_zipped(packed, entry))
        return HeldMember(where, read_tarred(packed, entry.offset, entry.size))
    except CannotRead as error:
        return Lost(where, error.status, str(error))


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
        damage = [_damage(Path(text).as_posix(), prefix, error)]
    packed.sort()
    if not (pick and pick.nested):
        source.total = len(packed) + len(damage)
    open_member = partial(_member, os.fspath(text), stamp, listing)
    for data in packed:
        entry = Entry.unpack(data)
        if entry.name.endswith("/"):
            yield from _within(open_member(entry), prefix + entry.name, pick)
        else:
            yield Found(open_member(entry), prefix + entry.name)
    yield from damage


def _member(archive: str, stamp: Stamp, listing: Listing, entry: Entry) -> Stored:
    if entry.kind != FILE:
        return Lost(f"{archive}/{entry.name}", *WHY[entry.kind])
    if listing is zip_entries:
        return ZipMember(archive, stamp, entry)
    return TarMember(archive, stamp, entry.name, entry.offset, entry.size)
