"""Where the objects are known to be: published boxes and a ``boxes.csv`` of one's own.

A set has boxes if the file that lists them lies in its folder, whatever the set is called. Boxes are xyxy
pixels of the upright image, end-exclusive; those published are taken to be of images that no EXIF
turns.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fgvc_cli.data.geometry import Box

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
