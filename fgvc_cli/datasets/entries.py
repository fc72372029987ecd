"""What a published set is: where its files lie, how many images there are, how its lists are read.

The sets are in ``published``, those with boxes, and ``catalogue``; ``registry`` finds them by name.

A set has boxes of its objects if the file that lists them lies in its folder, whatever the set is called:
published ones, or a ``boxes.csv`` of one's own. They are xyxy pixels of the upright image, end-exclusive;
those published are taken to be of images that no EXIF turns.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fgvc_cli.data.geometry import Box
from fgvc_cli.data.listing import LabelledSet
from fgvc_cli.data.taxonomy import Taxonomy
from fgvc_cli.errors import FgvcError


@dataclass(frozen=True)
class Archive:
    """A file at an official address.

    Args:
        url: where it is.
        md5: as published, hex; None where none is.
        into: the folder below the data root in which it is unpacked, or put where it is no archive.
    """

    url: str
    md5: str | None = None
    into: str = ""

    @property
    def file(self) -> str:
        """Its name."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class KnownSet:
    """A published data set: where its files lie, how many there are, how to list them.

    Args:
        key: the name users type.
        title: the name in print.
        folder: its folder below the data root, POSIX.
        needs: what must exist in that folder; directories end in ``/``.
        classes, train, test: official counts; ``train`` is counted before anything is held out of it.
        source: where it is to be had.
        load: folder -> listing with the official splits, val empty where there is none. May raise
            OSError, ValueError, KeyError, IndexError or TypeError on malformed files.
        val: official count, or 0 where val is held out of train.
        dealt_test: fraction of each class of ``train`` that becomes the test split, where the labels of the
            official one are unpublished (``test`` is 0 then). It does not depend on any seed. A number on
            it compares with no official one.
        archives: what ``fgvc datasets get`` downloads; empty where one has to ask or to sign in first.
        archive_folder: what the unpacked archives call ``folder``, where it is something else.
        other_needs: the same set as it comes from elsewhere: what must exist in its folder then.
        caveat: what has to be said beside every score on it; empty where nothing has.
    """

    key: str
    title: str
    folder: str
    needs: tuple[str, ...]
    classes: int
    train: int
    test: int
    source: str
    load: Callable[[Path], LabelledSet]
    val: int = 0
    dealt_test: float = 0.0
    archives: tuple[Archive, ...] = ()
    archive_folder: str = ""
    other_needs: tuple[tuple[str, ...], ...] = ()
    caveat: str = ""

    @property
    def tree(self) -> str:
        """The expected tree in one line."""
        return f"{self.folder}/{{{','.join(self.needs)}}}"

    @property
    def expected(self) -> str:
        """The official counts in one line."""
        text = counts_text(self.classes, self.train, self.val, self.test)
        return f"{text}, {self.dealt_test:.0%} of train dealt as test" if self.dealt_test else text


def counts_text(classes: int, train: int, val: int, test: int) -> str:
    """Classes and images per split, those that are there."""
    splits = (("train", train), ("val", val), ("test", test))
    return ", ".join([f"{classes} classes", *(f"{count:,} {name}" for name, count in splits if count)])


def read_lines(path: Path) -> list[str]:
    """The non-blank lines of a UTF-8 list file, stripped."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Lines of ``key value``; the value may hold spaces.

    Raises:
        ValueError: a line with one word.
    """
    pairs = []
    for line in read_lines(path):
        key, gap, value = line.partition(" ")
        if not gap:
            raise ValueError(f"{path.name}: {line!r} is not two words")
        pairs.append((key, value.strip()))
    return pairs


def known_taxonomy(
    ranks: Sequence[str], lineages: Mapping[str, Sequence[str]], classes: Sequence[str]
) -> tuple[Taxonomy | None, tuple[str, ...]]:
    """The tree that the lists of a set tell, or none and the note that says why: a set is of use without."""
    try:
        return Taxonomy.of(ranks, lineages, classes), ()
    except FgvcError as error:
        return None, (f"Without a taxonomy: {error.message}",)


def read_mat(path: Path) -> dict[str, Any]:
    """The variables of a MATLAB file, singleton dimensions squeezed.

    Raises:
        ValueError: not a readable MATLAB file.
    """
    from scipy.io import loadmat  # 0.2 s, for two of the sets only

    try:
        variables: dict[str, Any] = loadmat(path, squeeze_me=True)
    except Exception as error:  # a cut file surfaces as zlib.error, TypeError, MatReadError and others
        raise ValueError(f"{path.name}: {error}") from error
    return variables


BOXES_CSV = "boxes.csv"


class TrueBoxes(NamedTuple):
    """What is known of one image."""

    objects: tuple[Box, ...]
    """At least one; several where several objects of the class are marked."""
    parts: dict[str, Box]
    """Part name -> box; empty where none are known."""
    points: dict[str, tuple[float, float]] = {}
    """Part name -> (x, y) of the visible parts, where they are known as points; empty where none are."""


def read_box_table(root: Path, paths: Iterable[str]) -> dict[str, TrueBoxes]:
    """``boxes.csv``: ``path,x1,y1,x2,y2`` among its columns, and ``NAME_x1`` to ``NAME_y2`` for a part.

    A path on several lines has several objects; other columns are left alone. Empty cells: no such part.

    Raises:
        ValueError: columns that lack, or a box that is none.
    """
    wanted = set(paths)
    found: dict[str, TrueBoxes] = {}
    with (root / BOXES_CSV).open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        columns = reader.fieldnames or []
        lacking = [name for name in ("path", *_corners("")) if name not in columns]
        if lacking:
            raise ValueError(f"no column {', '.join(lacking)}")
        parts = [name[:-3] for name in columns if name.endswith("_x1")]
        for row in reader:
            if row["path"] not in wanted:
                continue
            where = f"line {reader.line_num}"
            box = _read_box(row, "", where)
            if box is None:
                raise ValueError(f"{where} has no box")
            known = found.get(row["path"], TrueBoxes((), {}))
            boxes = {part: _read_box(row, f"{part}_", where) for part in parts}
            own = {part: each for part, each in boxes.items() if each is not None}
            found[row["path"]] = TrueBoxes((*known.objects, box), known.parts | own)
    return found


def check_box(box: Box, where: str) -> Box:
    """The box itself.

    Raises:
        ValueError: not finite, or empty.
    """
    x1, y1, x2, y2 = box
    if not (x1 < x2 < float("inf") and y1 < y2 < float("inf") and min(x1, y1) > -float("inf")):
        raise ValueError(f"{where}: {x1:g} {y1:g} {x2:g} {y2:g} is no box x1 y1 x2 y2")
    return box


def _read_box(row: dict[str, str], prefix: str, where: str) -> Box | None:
    cells = [row.get(name) or "" for name in _corners(prefix)]
    if not any(cells):
        return None
    try:
        x1, y1, x2, y2 = (float(cell) for cell in cells)
    except ValueError:
        raise ValueError(f"{where}: {','.join(cells)!r} is no box x1,y1,x2,y2") from None
    return check_box((x1, y1, x2, y2), where)


def _corners(prefix: str) -> tuple[str, ...]:
    return tuple(f"{prefix}{corner}" for corner in ("x1", "y1", "x2", "y2"))
