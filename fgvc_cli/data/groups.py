"""Which images belong together: a burst, a camera, a specimen. Splits go by them, so that none is in two.

Images of one camera moments apart are all but the same image. Dealt at random, some train and some test, and
the score says how well the model knows them again, not how well it knows the species.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from fgvc_cli.data.listing import Example
from fgvc_cli.errors import EXIT_USAGE, FgvcError

_READERS = 8
"""Threads that read EXIF: it is waiting for files, above all on a network drive."""
_TIME_TAGS = (0x9003, 0x9004)
"""DateTimeOriginal, DateTimeDigitized."""
_EXIF_FOLDER, _FILE_TIME = 0x8769, 0x0132


@dataclass(frozen=True)
class SplitBy:
    """What images have in common that belong together."""

    kind: Literal["folder", "column", "minutes"]
    column: str | None = None
    minutes: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``folder``, ``column=NAME`` (or the bare name) or ``minutes=N``.

        Raises:
            FgvcError: none of these.
        """
        kind, _, value = (part.strip() for part in text.partition("="))
        if text.strip() == "folder":
            return cls("folder")
        if kind == "minutes":
            try:
                minutes = float(value)
            except ValueError:
                minutes = 0.0
            if 0 < minutes < float("inf"):
                return cls("minutes", minutes=minutes)
        elif kind == "column" and value:
            return cls("column", value.lower())
        elif kind and not value and "=" not in text:
            return cls("column", kind.lower())
        raise FgvcError(
            f"split_by got {text!r}, expected folder, column=NAME or minutes=N.",
            "For example: --split-by minutes=5",
            EXIT_USAGE,
        )

    @property
    def text(self) -> str:
        """As a person reads it."""
        if self.kind == "minutes":
            return f"folder and time (bursts with gaps of at most {self.minutes:g} minutes)"
        return "folder" if self.kind == "folder" else f"column {self.column}"


def group_images(
    by: SplitBy,
    root: Path,
    examples: Sequence[Example],
    column: Mapping[str, str],
    *,
    by_class_folders: bool,
) -> tuple[list[str], list[str]]:
    """The group of each example, and lines that the user is to read.

    Folders: of ``CLASS/CAMERA/x.jpg`` it is ``CAMERA``, in all classes the same one. Time: when the camera
    took it (EXIF); images of one folder are a burst while no gap between them is longer than ``by.minutes``.

    Args:
        column: path -> value of the column, where one is named.
        by_class_folders: the first folder of a path (behind ``train/``, where there is one) is a class.

    Raises:
        FgvcError: images right below their class, images without a time.
    """
    paths = [example.path for example in examples]
    if by.kind == "column":
        return _by_column(paths, column, by)
    if by.kind == "folder":
        return _by_folder(paths, examples, by_class_folders), []
    times = list(read_times(root / path for path in paths))
    if all(time is None for time in times):
        raise FgvcError(
            f"None of the {len(paths):,} images says when it was taken (EXIF): they cannot be split by time.",
            "Use --split-by folder, or a column of a .csv file.",
        )
    bursts = find_bursts(paths, times, by.minutes)
    untimed = sum(time is None for time in times)
    notes = [f"{untimed:,} images have no time in their EXIF; each stands for itself."] if untimed else []
    return bursts, notes


def _by_column(paths: Sequence[str], column: Mapping[str, str], by: SplitBy) -> tuple[list[str], list[str]]:
    # An empty cell is not one large group: nothing is known of these images.
    groups = [column.get(path) or f"\0{path}" for path in paths]
    empty = sum(not column.get(path) for path in paths)
    notes = [f"{empty:,} images have nothing in the column {by.column}; each stands for itself."]
    return groups, notes if empty else []


def _by_folder(paths: Sequence[str], examples: Sequence[Example], by_class_folders: bool) -> list[str]:
    folders = [posixpath.dirname(path) for path in paths]
    if not by_class_folders:
        return folders
    skipped = 2 if _has_split_folders(folders) else 1
    below = ["/".join(folder.split("/")[skipped:]) for folder in folders]
    labels = {example.label for example in examples}
    bare = [place for place, folder in enumerate(below) if not folder]
    if bare:
        raise FgvcError(
            f"{len({examples[place].label for place in bare})} of {len(labels)} classes have images right in "
            f"their folder, first {paths[bare[0]]}; to split by folder, expected CLASS/CAMERA/image.",
            "Sort them into a folder for each camera, visit or specimen; or use --split-by minutes=5.",
        )
    return below


def _has_split_folders(folders: Sequence[str]) -> bool:
    from fgvc_cli.data.label_files import SPLIT_NAMES

    return {folder.partition("/")[0].lower() for folder in folders} <= SPLIT_NAMES.keys()


def find_bursts(paths: Sequence[str], times: Sequence[float | None], minutes: float) -> list[str]:
    """The burst of each image: its folder and first image; one without a time is one of its own.

    Args:
        times: seconds; see ``read_times``.
        minutes: longest gap within a burst.
    """
    in_folder: dict[str, list[tuple[float, int]]] = {}
    bursts = [f"\0{path}" for path in paths]
    for place, (path, time) in enumerate(zip(paths, times, strict=True)):
        if time is not None:
            in_folder.setdefault(posixpath.dirname(path), []).append((time, place))
    for own in in_folder.values():
        own.sort(key=lambda item: (item[0], paths[item[1]]))
        first, before = own[0][1], own[0][0]
        for time, place in own:
            if time - before > 60 * minutes:
                first = place
            bursts[place], before = paths[first], time
    return bursts


def read_times(paths: Iterable[Path]) -> Iterable[float | None]:
    """When each image was taken by its EXIF, in seconds of the camera's clock; None where it does not say."""
    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(read_time, paths)


def read_time(path: Path) -> float | None:
    """When an image was taken by its EXIF; its pixels are not read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            exif = image.getexif()
            inner = exif.get_ifd(_EXIF_FOLDER)
            texts = [inner.get(tag) for tag in _TIME_TAGS] + [exif.get(_FILE_TIME)]
    except Exception:  # a damaged file raises anything; that it cannot be read is said where it is read
        return None
    return next((time for time in map(_seconds, texts) if time is not None), None)


def _seconds(text: object) -> float | None:
    try:
        moment = datetime.strptime(str(text).strip("\0 ")[:19], "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC).timestamp()
