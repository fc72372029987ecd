"""A user's CSV of labelled images.

``path,label`` says what an image shows. ``path,labels`` (plural) says all that it shows, joined by ``|``, and
makes the set multi-label: ``leaf.jpg,rust|scab``, where ``leaf.jpg,`` has none of the labels. Each may have a
column ``split``. Columns may be parted by ``;`` or tabs instead.
"""

from __future__ import annotations

import csv
import posixpath
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from fgvc_cli.data.listing import missing_images
from fgvc_cli.errors import FgvcError

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Names that are understood -> split."""
CSV_FORM = "a header line path,label or path,label,split, then one image per line"
LABEL_SEPARATOR = "|"

_MULTI_FORM = "for several labels per image, name the column labels and write a|b"
_NONE_FORM = "For images that may have no label, name the column labels."


@dataclass
class Found:
    """What a source lists."""

    images: dict[str | None, dict[tuple[str, ...], list[str]]] = field(default_factory=dict)
    """Split -> class names of an image -> image paths; the key None holds everything where the source has
    no splits."""
    multi_label: bool = False

    def by_class(self) -> dict[str | None, dict[str, list[str]]]:
        """Split -> class name -> the images that have it."""
        result: dict[str | None, dict[str, list[str]]] = {}
        for split, by_names in self.images.items():
            own = result.setdefault(split, {})
            for names, paths in by_names.items():
                for name in names:
                    own.setdefault(name, []).extend(paths)
        return result


def read_csv(path: Path) -> Found:
    """The images that a CSV lists.

    Raises:
        FgvcError: a malformed file, with the line, or images that do not exist.
        OSError: it cannot be read.
    """
    found, line_of = read_listing(path)
    missing = missing_images(path.parent, line_of)
    if missing:
        raise FgvcError(
            f"{path}: {len(missing)} of {len(line_of)} images do not exist, first {missing[0]} on line "
            f"{line_of[missing[0]]}.",
            f"Relative paths start at {path.parent}.",
        )
    if not found.images:
        found.images[None] = {}
    return found


def read_listing(path: Path) -> tuple[Found, dict[str, int]]:
    """The same, whether or not the images are there, and the line of each.

    Raises:
        FgvcError: a malformed file, with the line.
        OSError: it cannot be read.
    """
    found = Found()
    line_of: dict[str, int] = {}
    try:
        # -sig: spreadsheets write a byte order mark; strict: a stray quote must not swallow lines
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = _delimiter(file.readline())
            file.seek(0)
            reader = csv.reader(file, strict=True, delimiter=delimiter)
            header = [cell.strip().lower() for cell in next(reader, [])]
            while header and not header[-1]:  # trailing commas, as spreadsheets write them
                header.pop()
            found.multi_label = "labels" in header and "label" not in header
            label_column = "labels" if found.multi_label else "label"
            absent = [column for column in ("path", label_column) if column not in header]
            if absent:
                raise FgvcError(
                    f"{path} line 1: no column {' and '.join(absent)} in {','.join(header)!r}.",
                    f"Write {CSV_FORM}.",
                )
            twice = [column for column in ("path", label_column, "split") if header.count(column) > 1]
            if twice:
                raise FgvcError(
                    f"{path} line 1: the column {twice[0]} is there {header.count(twice[0])} times.",
                    "Remove or rename all but one.",
                )
            places: dict[str, str] = {}
            for cells in reader:
                where = f"{path} line {reader.line_num}"
                if cells and not any(cell.strip() for cell in cells):
                    continue  # only commas: a row that was emptied in a spreadsheet
                while len(cells) > len(header) and not cells[-1].strip():
                    cells.pop()
                image, labels, split = _read_row(cells, header, label_column, where, path.parent)
                # One file, however its path is written: a/../a/x.jpg is a/x.jpg.
                if (earlier := places.setdefault(posixpath.normpath(image), image)) in line_of:
                    written = "" if earlier == image else f" as {earlier}"
                    raise FgvcError(
                        f"{where}: {image} is on line {line_of[earlier]} too{written}; "
                        f"expected it once ({_MULTI_FORM})."
                    )
                line_of[image] = reader.line_num
                found.images.setdefault(split, {}).setdefault(labels, []).append(image)
    except (UnicodeDecodeError, csv.Error) as error:
        raise FgvcError(f"{path} is not a UTF-8 CSV file: {error}.", f"Write {CSV_FORM}.") from error
    # Each line alone may say that nothing is there; all of them together are a column that was not filled.
    if line_of and not any(labels for by_labels in found.images.values() for labels in by_labels):
        raise FgvcError(
            f"{path}: the field labels is empty in all {len(line_of)} lines; expected names in some of them.",
            "Write a|b where both are there, and leave it empty where none is.",
        )
    return found, line_of


def _delimiter(first_line: str) -> str:
    """What parts the columns of a header: a comma, or what spreadsheets of other countries write."""
    for delimiter in (",", ";", "\t"):
        columns = [cell.strip(' "\r\n').lower() for cell in first_line.split(delimiter)]
        if "path" in columns and ("label" in columns or "labels" in columns):
            return delimiter
    return ","


def _read_row(
    cells: list[str], header: list[str], label_column: str, where: str, root: Path
) -> tuple[str, tuple[str, ...], str | None]:
    if len(cells) != len(header):
        got = f"{len(cells)} values" if cells else "an empty line"
        raise FgvcError(f"{where}: {got}, expected {len(header)} ({','.join(header)}).")
    row = {column: cell.strip() for column, cell in zip(header, cells, strict=True)}
    if not row["path"]:
        raise FgvcError(f"{where}: the path is empty, expected one.")
    if label_column == "label" and not row["label"]:
        raise FgvcError(f"{where}: the label is empty, expected one.", _NONE_FORM)
    split = row.get("split")
    if split is not None and split.lower() not in SPLIT_NAMES:
        raise FgvcError(f"{where}: unknown split {split!r}.", "Use train, val or test.")
    labels = (row["label"],) if label_column == "label" else _read_labels(row["labels"], where)
    image = PurePath(row["path"])
    if image.is_absolute() and image.is_relative_to(root.absolute()):
        image = image.relative_to(root.absolute())
    return image.as_posix(), labels, None if split is None else SPLIT_NAMES[split.lower()]


def _read_labels(cell: str, where: str) -> tuple[str, ...]:
    if not cell:
        return ()
    names = [name.strip() for name in cell.split(LABEL_SEPARATOR)]
    if not all(names):
        raise FgvcError(f"{where}: an empty label in {cell!r}, expected names joined by {LABEL_SEPARATOR}.")
    return tuple(sorted(set(names)))
