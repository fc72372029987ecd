"""What every source of images shares: the image found, and one that lies elsewhere than in a file.

No torch here: decoding workers import this.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from fgvc_cli.errors import counted

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
    | {".avif", ".jp2", ".j2k", ".jpx", ".jpf"}
    | {".jfif", ".mpo"}
    # With the extras heif and raw; without them each becomes a row that says so, rather than vanish.
    | {".heic", ".heif", ".hif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"}
)
"""Endings, in any case, that make a file of a folder an image; a file named by the user may have any."""

MAX_BYTES = 1 << 30
"""Largest file taken out of an archive or from a remote store: it is held whole, before decoding."""


FailureStatus = Literal[
    "missing",
    "not_a_file",
    "no_access",
    "empty",
    "not_an_image",
    "truncated",
    "too_large",
    "unreadable",
    "crashed",
    "no_memory",
    "bad_box",
    "no_box",
]
"""``crashed``: its decoder died; ``no_memory``: the model could not take it even alone; ``bad_box``, of a box
that was given: it shows nothing of its image; ``no_box``, no failure: an image of which none was given."""


class CannotRead(Exception):
    """Why a source has no bytes for an image; ``read_image`` turns it into that failure.

    Args:
        status: the word for the row.
        reason: one line for people.
    """

    def __init__(self, status: FailureStatus, reason: str):
        super().__init__(reason)
        self.status = status


class Stored(ABC):
    """An image that is no file of its own: a member of an archive, an object of a remote store.

    It is picklable and holds nothing open; any number of threads and processes may open it at once.
    ``str()`` says where it lies.
    """

    __slots__ = ()

    @abstractmethod
    def open(self) -> BinaryIO:
        """A seekable stream of its bytes, on a handle of its own.

        Raises:
            CannotRead: there are none, and why.
            Exception: whatever else went wrong; ``read_image`` makes a row of it.
        """


@dataclass(frozen=True, slots=True)
class Lost(Stored):
    """An image whose bytes are known to be out of reach."""

    where: str
    status: FailureStatus
    reason: str

    def open(self) -> BinaryIO:
        """Never succeeds."""
        raise CannotRead(self.status, self.reason)

    def __str__(self) -> str:
        return self.where


class Found(NamedTuple):
    """One image to read."""

    path: Path | Stored
    """Where it lies."""
    name: str
    """What the output calls it, with forward slashes."""


@dataclass
class Source:
    """The images of one source as typed, each once, lazily."""

    images: Iterator[Found]
    total: int | None = None
    """How many, once that is known."""
    note: str = ""
    """One line on what this source costs; empty where there is nothing to say."""


LEFT_BEHIND = frozenset(
    {
        "@eadir",  # thumbnails of Synology drives
        "@tmp",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "~snapshot",  # NetApp
        "$recycle.bin",
        "system volume information",
        "recycler",
        "recycled",
        "lost.dir",  # Android
        "temporary items",  # macOS
        "network trash folder",
        "__macosx",
        "lost+found",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
    }
)
"""What systems and network drives leave beside images, in lower case; its copies and thumbnails are nobody's
images, and in several splits of a set they would be a leak."""


def is_left_behind(name: str) -> bool:
    """Whether a file or folder called ``name`` is passed over: hidden, one of ``LEFT_BEHIND``, what CHKDSK
    has found (``FOUND.000``), or what Synology keeps of a file (``a.jpg@SynoEAStream``)."""
    low = name.lower()
    return (
        low.startswith(".")
        or low in LEFT_BEHIND
        or low.endswith(("@synoeastream", "@synoresource"))
        or (low.startswith("found.") and len(low) == 9 and low[6:].isdecimal())
    )


VIDEOS = (".mp4", ".mov", ".avi")
"""Endings of videos, which are images only where their frames are asked for."""

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")
"""What makes a file named by the user an archive; which kind, its first bytes say."""
ARCHIVES_NOT_READ = (".tar.zst", ".tzst", ".tar.lz4", ".7z", ".rar")
"""Archives that are refused rather than called broken images."""


def is_archive(name: str) -> bool:
    """Whether a file of this name is read, or refused, as an archive."""
    return name.lower().endswith(ARCHIVES + ARCHIVES_NOT_READ)


def is_image_name(name: str) -> bool:
    """Whether the ending is one of ``EXTENSIONS``."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


class Pick:
    """Which entries of folders and archives are images, and a count of what is passed over.

    Args:
        all_files: take files of any name; their content decides.
        nested: look into archives that lie in folders and archives; not into those in these.
        videos: take videos.
    """

    def __init__(self, all_files: bool = False, nested: bool = False, videos: bool = False):
        self.all_files = all_files
        self.nested = nested
        self.videos = videos
        self.left_behind: Counter[str] = Counter()
        self.others: Counter[str] = Counter()
        self.archives: Counter[str] = Counter()
        self.linked_folders = 0
        self.beside_classes: list[str] = []

    def silent(self) -> Pick:
        """The same choice, which counts elsewhere."""
        return Pick(self.all_files, self.nested, self.videos)

    def within(self) -> Pick:
        """The choice in an archive that was met: one level, and the same counts."""
        inner = Pick(self.all_files, videos=self.videos)
        inner.left_behind, inner.others, inner.archives = self.left_behind, self.others, self.archives
        return inner

    def leaves(self, name: str) -> bool:
        """Whether an entry is what a system leaves behind; counts it. A folder counts once."""
        if not is_left_behind(name):
            return False
        # Names starting with a dot may be of any number.
        self.left_behind["._*" if name.startswith("._") else "hidden" if name[0] == "." else name] += 1
        return True

    def opens(self, name: str) -> bool:
        """Whether a file is an archive to look into."""
        return self.nested and name.lower().endswith(ARCHIVES)

    def takes(self, name: str, *, folder: bool = False) -> bool:
        """Whether an entry is an image by its name; counts a file that is not."""
        if is_image_name(name) or (self.videos and not folder and name.lower().endswith(VIDEOS)):
            return True
        if folder:
            return False
        if not self.all_files and is_archive(name):
            self.archives[_archive_ending(name)] += 1
        elif not self.all_files:
            self.others[os.path.splitext(name)[1].lower()[:12] or "without an ending"] += 1
        return self.all_files

    def found_none(self, name: str) -> None:
        """Count an archive that was looked into, and holds no image."""
        self.archives[f"{_archive_ending(name)} without an image"] += 1

    def lines(self) -> list[str]:
        """What was passed over, for the user."""
        kinds = (
            (self.left_behind, "entry that systems leave behind", "entries that systems leave behind"),
            (self.archives, "archive", "archives"),
            (self.others, "other file", "other files"),
        )
        lines = [
            f"{counted(counts.total(), one, many)} passed over ({_largest(counts)})."
            for counts, one, many in kinds
            if counts
        ]
        if self.linked_folders:
            lines.append(f"{counted(self.linked_folders, 'linked folder')} passed over.")
        if self.beside_classes:
            images = counted(len(self.beside_classes), "image")
            lines.append(f"{images} beside the class folders passed over, first {self.beside_classes[0]}.")
        return lines


def _archive_ending(name: str) -> str:
    return next(end for end in ARCHIVES + ARCHIVES_NOT_READ if name.lower().endswith(end))


def _largest(counts: Counter[str]) -> str:
    shown = counts.most_common(6)
    rest = counts.total() - sum(count for _, count in shown)
    return ", ".join([f"{kind} {count:,}" for kind, count in shown] + [f"others {rest:,}"] * bool(rest))


NO_IMAGE = "holds no image."


def no_image(where: str, pick: Pick | None = None) -> tuple[str, str]:
    """Message and hint of the error about a source without a single image.

    Args:
        pick: what counted there.
    """
    if pick and pick.archives and not pick.nested:
        return f"{where} {NO_IMAGE}", f"It holds archives ({_largest(pick.archives)}): --nested reads them."
    endings = " ".join(sorted(EXTENSIONS))
    hint = (
        f"Looked for {endings}, in all folders below; hidden ones, thumbnails and wastebaskets are left out."
    )
    return f"{where} {NO_IMAGE}", hint
