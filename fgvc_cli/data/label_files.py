"""A user's file of labelled images: CSV, JSONL or Parquet.

``path,label`` says what an image shows. ``path,labels`` (plural) says all that it shows, joined by ``|``, and
makes the set multi-label: ``leaf.jpg,rust|scab``, where ``leaf.jpg,`` has none of the labels. Each may have a
column ``split``. Columns of a CSV may be separated by ``;`` or tabs instead. JSONL has one object per line
and Parquet one row per image, with the same names; there ``labels`` may be a list.

Columns ``x1,y1,x2,y2`` make a line one box of its image, which may then have several lines; where the four
are empty, the line is of the whole image.

A review, which has a column ``old_label``, is read as it is: what was marked as none of the classes, or as
wrong without saying what it is, trains nothing.
"""

from __future__ import annotations

import csv
import json
import math
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from fgvc_cli.data.listing import first_names, missing_images
from fgvc_cli.data.names import FileFinder, from_cell, same_form
from fgvc_cli.errors import FgvcError, counted
from fgvc_cli.sources.boxes import EDGE_COLUMNS, Edges, GivenBox, are_fractions, read_edges

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Names that are understood -> split."""
LABEL_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
"""Endings, in any case, of files that list labelled images."""
LABEL_SEPARATOR = "|"
NONE_OF_THESE = "none of these"
"""Label in a review (``fgvc report --review``) of an image that shows none of the classes."""
WRONG = "wrong"
"""Label in a review of an image that does not show what the model said; what it shows is not known."""

_CSV_FORM = "a header line path,label or path,label,split, then one image per line"
_FORMS = {
    ".jsonl": '{"path": "a.jpg", "label": "wren"} on each line, perhaps with "split"',
    ".ndjson": '{"path": "a.jpg", "label": "wren"} on each line, perhaps with "split"',
    ".parquet": "the columns path and label, perhaps split",
}
LABEL_FORM = f"{_CSV_FORM}; or .jsonl, .parquet with the same names"
_MULTI_FORM = "for several labels per image, name the column labels and write a|b"
_NONE_FORM = "For images that may have no label, name the column labels."
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}


class Entry(NamedTuple):
    """An image, or a box of one."""

    path: str
    box: GivenBox | None = None


@dataclass
class Labels:
    """What a source lists."""

    images: dict[str | None, dict[tuple[str, ...], list[Entry]]] = field(default_factory=dict)
    """Split -> class names of an image -> images; the key None holds everything where the source has
    no splits."""
    multi_label: bool = False
    notes: list[str] = field(default_factory=list)
    """Lines that the user is to read: what was taken in another way than it is written."""
    reviewed: bool = False
    """The source is a review: it has the column ``old_label``."""
    boxes: int = 0
    """Entries that are a box."""
    box_ids: bool = False
    """The source numbers the boxes itself."""
    groups: dict[str, str] = field(default_factory=dict)
    """Image path -> what the column that splits go by says of it; empty without one."""

    def by_class(self) -> dict[str | None, dict[str, list[Entry]]]:
        """Split -> class name -> the images that have it."""
        result: dict[str | None, dict[str, list[Entry]]] = {}
        for split, by_names in self.images.items():
            own = result.setdefault(split, {})
            for names, entries in by_names.items():
                for name in names:
                    own.setdefault(name, []).extend(entries)
        return result

    def rename(self, path_of: Mapping[str, str], class_of: Mapping[str, str]) -> None:
        """Give images and classes other names; those not named keep theirs."""
        renamed: dict[str | None, dict[tuple[str, ...], list[Entry]]] = {}
        for split, by_names in self.images.items():
            own = renamed.setdefault(split, {})
            for names, entries in by_names.items():
                joined = tuple(dict.fromkeys(class_of.get(name, name) for name in names))
                own.setdefault(joined, []).extend(
                    e._replace(path=path_of.get(e.path, e.path)) for e in entries
                )
        self.images = renamed
        self.groups = {path_of.get(path, path): group for path, group in self.groups.items()}


class _Table(NamedTuple):
    """A label file in rows."""

    columns: list[str]
    rows: Iterable[tuple[int, dict[str, Any]]]
    """Number of a row as people count it, and its cells by column."""
    row_word: str
    notes: list[str]


def is_label_file(path: Path) -> bool:
    """Whether a file's ending says that it lists labelled images."""
    return path.suffix.lower() in LABEL_ENDINGS


def read_label_file(path: Path, column: str | None = None) -> Labels:
    """The images that a file lists, each called as its file is.

    Args:
        column: fills ``Labels.groups``.

    Raises:
        FgvcError: a malformed file, with the line, or images that do not exist.
        OSError: it cannot be read.
    """
    found, line_of = read_listing(path, column)
    if found.reviewed:
        _leave_out_undecided(path, found, line_of)
    missing = missing_images(path.parent, line_of)
    if missing:
        _find_missing(path, found, missing, line_of)
    if not found.images:
        found.images[None] = {}
    return found


def _leave_out_undecided(path: Path, found: Labels, line_of: dict[str, int]) -> None:
    """Take images and boxes out of a review that nobody gave a class, and say so."""
    for name in (NONE_OF_THESE, WRONG):
        left_out = [entry for by_names in found.images.values() for entry in by_names.pop((name,), ())]
        boxes = sum(entry.box is not None for entry in left_out)
        what = [
            counted(n, *w) for n, w in ((len(left_out) - boxes, ("image",)), (boxes, ("box", "boxes"))) if n
        ]
        found.boxes -= boxes
        if left_out:
            found.notes.append(f"{path.name}: marked {name!r} and left out: {' and '.join(what)}.")
    kept = {e.path for by_names in found.images.values() for entries in by_names.values() for e in entries}
    for image in line_of.keys() - kept:
        del line_of[image]


def _find_missing(path: Path, found: Labels, missing: list[str], line_of: dict[str, int]) -> None:
    """Look for images under the other ways to write their paths.

    Raises:
        FgvcError: images that are not there, that could be several files, or that are one.
    """
    finder = FileFinder(path.parent)
    meant = {image: finder.find(image) for image in missing}
    several = [image for image, files in meant.items() if len(files) > 1]
    if several:
        first = several[0]
        raise FgvcError(
            f"{path}: {first} on line {line_of[first]} may be any of {first_names(meant[first])}"
            + (f" ({len(several)} such paths)." if len(several) > 1 else "."),
            "Write each path in full.",
        )
    gone = [image for image, files in meant.items() if not files]
    if gone:
        raise FgvcError(
            f"{path}: {len(gone)} of {len(line_of)} images do not exist, first {gone[0]} on line "
            f"{line_of[gone[0]]}.",
            _where_they_are(path.parent, gone[0]),
        )
    path_of = {image: files[0] for image, files in meant.items()}
    found.rename(path_of, {})
    lines = {path_of.get(image, image): line for image, line in line_of.items() if image not in path_of}
    for image, file in path_of.items():
        if file in lines:
            raise FgvcError(
                f"{path} line {line_of[image]}: {image} is {file}, which is on line {lines[file]} too; "
                f"expected it once ({_MULTI_FORM})."
            )
        lines[file] = line_of[image]
    found.notes += _renamed_lines(path_of)


def _renamed_lines(path_of: Mapping[str, str]) -> list[str]:
    forms = [image for image, file in path_of.items() if same_form(image) == same_form(file)]
    slashes = [image for image in path_of if "\\" in image]
    ids = [image for image in path_of if image not in {*forms, *slashes}]
    texts = (
        (ids, "paths without an ending are read as the one image of that name, such as {0} as {1}."),
        (slashes, "paths are written with backslashes and read with slashes, such as {1}."),
        (forms, "paths are written in another Unicode form than their files, and read all the same."),
    )
    return [f"{len(own):,} {text.format(own[0], path_of[own[0]])}" for own, text in texts if own]


def _where_they_are(folder: Path, image: str) -> str:
    """What to write, where a path is relative to something else than the file's folder."""
    start = f"Relative paths start at {folder}"
    if os.path.isfile(image):
        return (
            f"{start}; {image} lies below the current folder: move the file there, or write paths from "
            f"{folder} ({Path(os.path.relpath(image, folder)).as_posix()})."
        )
    name = posixpath.basename(image.replace("\\", "/"))
    for below in ("", *sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())):
        for tail in dict.fromkeys((image, name)):
            there = posixpath.join(below, tail)
            if there != image and (os.path.isfile(folder / there) or FileFinder(folder).find(there)):
                return f"{start}; there is {there}: write the paths so."
    return f"{start}."


def read_listing(path: Path, column: str | None = None) -> tuple[Labels, dict[str, int]]:
    """The same, whether or not the images are there, and the line (Parquet: row) of each.

    Raises:
        FgvcError: a malformed file, with the line.
        OSError: it cannot be read.
    """
    ending = path.suffix.lower()
    form = _FORMS.get(ending, _CSV_FORM)
    try:
        if ending == ".parquet":
            return _read_table(path, _parquet_table(path), form, column)
        with path.open(encoding="utf-8-sig", newline="") as file:
            # -sig: spreadsheets write a byte order mark
            table = _json_table(path, file) if ending in _FORMS else _csv_table(path, file)
            return _read_table(path, table, form, column)
    except (UnicodeDecodeError, csv.Error) as error:
        kind = "JSONL" if ending in _FORMS else "CSV"
        raise FgvcError(f"{path} is not a UTF-8 {kind} file: {error}.", f"Write {form}.") from error


def _read_table(path: Path, table: _Table, form: str, column: str | None) -> tuple[Labels, dict[str, int]]:
    columns = table.columns
    found = Labels(multi_label="labels" in columns and "label" not in columns, notes=table.notes)
    label_column = "labels" if found.multi_label else "label"
    absent = [name for name in ("path", label_column) if name not in columns]
    if absent:
        raise FgvcError(
            f"{path} {table.row_word} 1: no column {' and '.join(absent)} in {','.join(columns)!r}.",
            f"Write {form}.",
        )
    twice = [name for name in ("path", label_column, "split", column) if name and columns.count(name) > 1]
    if twice:
        raise FgvcError(
            f"{path} line 1: the column {twice[0]} is there {columns.count(twice[0])} times.",
            "Remove or rename all but one.",
        )
    if column is not None and column not in columns:
        own = [name for name in columns if name not in ("path", label_column, "split")]
        raise FgvcError(
            f"{path}: no column {column} to split by; its other columns are {', '.join(own) or 'none'}.",
            "For example: --split-by column=camera, --split-by folder, --split-by minutes=5",
        )
    found.reviewed = {"label", "old_label"} <= set(columns)
    line_of: dict[str, int] = {}
    places: dict[str, tuple[str, dict[str, Edges | None], str | None]] = {}
    boxed = set(EDGE_COLUMNS) <= set(columns)
    found.box_ids = "box_id" in columns
    read: list[tuple[str | None, tuple[str, ...], Entry]] = []
    root = os.path.abspath(path.parent)
    for number, row in table.rows:
        where = f"{path} {table.row_word} {number}"
        if found.reviewed:
            row = row | {
                name: from_cell(_text(row.get(name), f"{where}: the {name}")) for name in ("path", "label")
            }
        image, labels, split = _read_row(row, label_column, where, root)
        edges = None
        if boxed:
            edges = read_edges(
                [_text(row.get(name), f"{where}: {name}", nan="") for name in EDGE_COLUMNS], where
            )
        # One file, however its path is written: a/../a/x.jpg is a/x.jpg.
        place = os.path.normpath(os.path.join(root, image))
        earlier, boxes, placed = places.setdefault(place, (image, {}, split))
        own_id = from_cell(_text(row.get("box_id"), f"{where}: box_id", nan="")) if edges else ""
        # A detector may give one box twice, as two things; it then says which is which.
        again = not own_id and edges in boxes.values()
        if boxes and (earlier != image or again or None in (edges, *boxes.values())):
            written = "" if earlier == image else f" as {earlier}"
            raise FgvcError(
                f"{where}: {image} is on {table.row_word} {line_of[earlier]} too{written}; "
                f"expected it once ({_MULTI_FORM}), or each with a box of its own."
            )
        if split != placed:
            message = (
                f"{where}: this box of {image} is for {split or 'no split'}, the one on {table.row_word} "
                f"{line_of[image]} for {placed or 'no split'}."
            )
            raise FgvcError(message, "Give all boxes of an image to one split.")
        line_of.setdefault(image, number)
        own_id = own_id or (str(len(boxes)) if edges else "")
        if own_id in boxes:
            raise FgvcError(
                f"{where}: {image} has a box {own_id} on an earlier {table.row_word} too.",
                "Number its boxes.",
            )
        boxes[own_id] = edges
        read.append((split, labels, Entry(image, edges and GivenBox(own_id, edges, False, image=image))))
        if column is not None:
            group = _text(row.get(column), f"{where}: the {column}", nan="")
            if found.groups.setdefault(image, group) != group:
                raise FgvcError(
                    f"{where}: {column} is {group!r} for this box of {image}, {found.groups[image]!r} on "
                    f"{table.row_word} {line_of[image]}.",
                    "Give all boxes of an image one value: they are kept in one split.",
                )
    relative = boxed and are_fractions(path, (entry.box.edges for _, _, entry in read if entry.box))
    for split, labels, entry in read:
        found.boxes += entry.box is not None
        if entry.box is not None:
            entry = entry._replace(box=entry.box._replace(relative=relative))
        found.images.setdefault(split, {}).setdefault(labels, []).append(entry)
    # Each line alone may say that nothing is there; all of them together are a column that was not filled.
    if line_of and not any(labels for by_labels in found.images.values() for labels in by_labels):
        raise FgvcError(
            f"{path}: the field labels is empty in all {len(line_of)} {table.row_word}s; expected names in "
            "some of them.",
            "Write a|b where both are there, and leave it empty where none is.",
        )
    return found, line_of


def _csv_table(path: Path, file: Any) -> _Table:
    said = re.fullmatch(r'"?sep=(.)"?', file.readline().rstrip("\r\n"), re.IGNORECASE)  # as Excel takes it
    start = file.tell() if said else 0
    file.seek(start)
    delimiter = said[1] if said else _delimiter(file.readline())
    file.seek(start)
    # strict: a stray quote must not swallow lines
    reader = csv.reader(file, strict=True, delimiter=delimiter)
    header = [cell.strip().lower() for cell in next(reader, [])]
    while header and not header[-1]:  # trailing commas, as spreadsheets write them
        header.pop()
    separators = _DELIMITERS.get(delimiter, repr(delimiter))
    notes = [] if delimiter == "," else [f"{path.name}: columns are separated by {separators}."]

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue  # blank, or only commas: a row that was emptied in a spreadsheet
            while len(cells) > len(header) and not cells[-1].strip():
                cells.pop()
            number = reader.line_num + bool(said)
            if len(cells) != len(header):
                wanted = f"{len(header)} ({','.join(header)})"
                raise FgvcError(f"{path} line {number}: {len(cells)} values, expected {wanted}.")
            yield number, dict(zip(header, cells, strict=True))

    return _Table(header, rows(), "line", notes)


def _delimiter(first_line: str) -> str:
    """What separates the columns of a header: a comma, or what spreadsheets of other countries write."""
    for delimiter in _DELIMITERS:
        columns = [cell.strip(' "\r\n').lower() for cell in first_line.split(delimiter)]
        if "path" in columns and ("label" in columns or "labels" in columns):
            return delimiter
    return ","


def _json_table(path: Path, file: Any) -> _Table:
    def objects() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise FgvcError(
                    f"{path} line {number} is no JSON: {error}.", f"Write {_FORMS['.jsonl']}."
                ) from error
            if not isinstance(row, dict):
                raise FgvcError(f"{path} line {number} is no JSON object.", f"Write {_FORMS['.jsonl']}.")
            yield number, {str(name).lower(): value for name, value in row.items()}

    read = list(objects())
    # Objects may leave out what is empty: the columns are those of all of them.
    columns = list(dict.fromkeys(name for _, row in read for name in row))
    return _Table(columns, read, "line", [])


def _parquet_table(path: Path) -> _Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise FgvcError(
            f"{path}: to read Parquet, pyarrow is needed.", "pip install 'fgvc[parquet]'"
        ) from error
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        why = " ".join(str(error).split())
        raise FgvcError(
            f"{path} is no readable Parquet file: {why}.", f"Write {_FORMS['.parquet']}."
        ) from error
    columns = [name.lower() for name in table.column_names]
    rows = (dict(zip(columns, row.values(), strict=True)) for row in table.to_pylist())
    return _Table(columns, enumerate(rows, 1), "row", [])


def _text(value: Any, what: str, nan: str | None = None) -> str:
    """A cell as a CSV would have it.

    Args:
        what: where it stands and what it is, for people.
        nan: what NaN comes to, by which pandas writes that nothing is there; None: it is refused.

    Raises:
        FgvcError: it is no text or number: ``str`` would make a name of the list that it is.
    """
    if value is None:
        return ""
    if isinstance(value, float) and math.isnan(value):
        if nan is not None:
            return nan
        raise FgvcError(f"{what} is NaN, expected text.", "Fill the cell, or remove the row.")
    if isinstance(value, list | tuple | dict | set | bytes | bytearray):
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
        kind = type(value).__name__
        raise FgvcError(f"{what} is {shown} ({kind}), expected text.", f"Write the {kind} as text.")
    return str(value).strip()


def _read_row(
    row: Mapping[str, Any], label_column: str, where: str, root: str
) -> tuple[str, tuple[str, ...], str | None]:
    path = _text(row.get("path"), f"{where}: the path")
    if not path:
        raise FgvcError(f"{where}: the path is empty, expected one.")
    if label_column == "labels":
        labels = _read_labels(row.get("labels"), where)
    else:
        labels = (_text(row.get("label"), f"{where}: the label"),)
        if not labels[0]:
            raise FgvcError(f"{where}: the label is empty, expected one.", _NONE_FORM)
    split = _text(row["split"], f"{where}: the split") if "split" in row else None
    if split is not None and split.lower() not in SPLIT_NAMES:
        raise FgvcError(f"{where}: unknown split {split!r}.", "Use train, val or test.")
    image = PurePath(path)
    if image.is_absolute() and PurePath(os.path.normpath(image)).is_relative_to(root):
        image = PurePath(os.path.normpath(image)).relative_to(root)
    return image.as_posix(), labels, None if split is None else SPLIT_NAMES[split.lower()]


def _read_labels(cell: Any, where: str) -> tuple[str, ...]:
    if not isinstance(cell, list | tuple):
        text = _text(cell, f"{where}: the field labels")
        cell = text.split(LABEL_SEPARATOR) if text else []
    names = [_text(name, f"{where}: a label") for name in cell]
    if not all(names):
        shown = LABEL_SEPARATOR.join(names)
        raise FgvcError(f"{where}: an empty label in {shown!r}, expected names joined by {LABEL_SEPARATOR}.")
    return tuple(sorted(set(names)))
