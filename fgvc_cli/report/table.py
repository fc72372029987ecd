"""The rows of a prediction file, all in memory but for their maps and crops.

Legend: N rows, k predictions per row, P parts.
"""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fgvc_cli.config import Preprocess, stored_preprocess
from fgvc_cli.data.labelled import natural_key
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.formats.csv_rows import csv_columns
from fgvc_cli.formats.h5 import SCHEMA_VERSION
from fgvc_cli.formats.provenance import Origin
from fgvc_cli.formats.row_blocks import TEXTS, has_prediction, join
from fgvc_cli.formats.rows import Block, Box, Extra, Row, RunInfo
from fgvc_cli.run.retry import rows_block

ENDINGS = (".h5", ".hdf5", ".csv")
MAX_ROWS = 1_000_000
"""More than a browser holds at ease: each row takes about 0.5 KB of its memory."""
HOW_TO = "fgvc predict PHOTOS --out preds.h5 --maps --crops"


@dataclass(frozen=True)
class Table:
    """A prediction file."""

    source: Path
    rows: Block
    """All rows, without extras."""
    info: RunInfo
    """``extras`` says what the file holds; from a CSV, which tells no model, it is empty."""
    origin: Origin | None = None
    """Where the photographs were; not known from a CSV."""

    @property
    def answered(self) -> np.ndarray:
        """(N,) bool: rows with a prediction."""
        return self.rows.topk_index[:, 0] >= 0


def read_table(path: Path) -> Table:
    """Read what ``fgvc predict`` wrote.

    Raises:
        FgvcError: no such file, another kind of file, damaged, without a row, or of more than ``MAX_ROWS``.
    """
    if path.suffix.lower() not in ENDINGS:
        hint = "Give an .h5, which also holds attention maps and crops, or a .csv."
        raise FgvcError(f"fgvc report does not read {path.name}.", hint, EXIT_USAGE)
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise FgvcError(f"{path} {what}.", HOW_TO)
    if path.suffix.lower() == ".csv":
        return read_csv(path)
    return read_h5(path)


def check_count(path: Path, rows: int) -> None:
    """Refuse a file without rows, or with too many.

    Raises:
        FgvcError: with the count.
    """
    if rows == 0:
        raise FgvcError(f"{path} holds no rows.", HOW_TO)
    if rows > MAX_ROWS:
        raise FgvcError(
            f"{path} holds {rows:,} rows; a page shows {MAX_ROWS:,} at most.",
            "Predict folder by folder, and make a report of each.",
        )


BATCH_ROWS = 4096


def read_csv(path: Path) -> Table:
    """All rows. The file is read twice, first for its classes, so that no more than columns stays in memory.

    Raises:
        FgvcError: not the columns of fgvc predict; a cell that cannot be, with its line; too many rows.
    """
    top_k, parts = _read_header(path)
    names: set[str] = set()
    count = 0
    for row in _read_rows(path, top_k, parts):
        names.update(row.labels)
        count += 1
    check_count(path, count)
    info = RunInfo(
        model="",
        weights_sha256="",
        classes=tuple(sorted(names, key=natural_key)),
        preprocess=Preprocess(),
        top_k=top_k,
        parts=parts,
    )
    blocks, rows = [], _read_rows(path, top_k, parts)
    while batch := tuple(islice(rows, BATCH_ROWS)):
        blocks.append(rows_block(batch, 0, info))
    return Table(path, join(blocks), info)


def _read_header(path: Path) -> tuple[int, int]:
    """k and P, which the columns' names say."""
    header = next(_cells(path), (0, []))[1]
    if header[-1:] == ["labels"]:
        raise FgvcError(
            f"{path} is of a model that tells several labels per photograph.",
            "It does not name all of them; make the report of the .h5.",
        )
    top_k = sum(bool(re.fullmatch(r"prob(_\d+)?", name)) for name in header)
    parts = sum(bool(re.fullmatch(r"part_\d+_x1", name)) for name in header)
    if not top_k or header != csv_columns(top_k, parts):
        got = ",".join(header)[:60]
        message = f"{path} line 1: expected the columns of fgvc predict, {','.join(csv_columns(1)[:7])}..."
        raise FgvcError(f"{message}; got {got!r}.", "fgvc predict PHOTOS --out preds.csv")
    return top_k, parts


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Lines as (number of the last one read, cells)."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.reader(stream)
            for cells in reader:
                yield reader.line_num, cells
    except (UnicodeDecodeError, csv.Error) as error:
        raise FgvcError(f"{path} is not a UTF-8 CSV file: {error}.") from error


def _read_rows(path: Path, top_k: int, parts: int) -> Iterator[Row]:
    width = len(csv_columns(top_k, parts))
    for number, cells in islice(_cells(path), 1, None):
        if len(cells) != width:
            raise FgvcError(f"{path} line {number}: {len(cells)} values, expected {width}.")
        try:
            yield _row(cells, 5 + 2 * top_k)
        except ValueError as error:
            raise FgvcError(f"{path} line {number}: {error}.") from error


def _row(cells: list[str], boxes_at: int) -> Row:
    path, status, error, width, height = cells[:5]
    if not has_prediction(status):
        return Row(path, status, error)
    if "" in cells[3:boxes_at]:
        raise ValueError(f"a row of status {status} without its size, a label or a probability")
    boxes: list[Box | None] = []
    for at in range(boxes_at, len(cells), 4):
        x1, y1, x2, y2 = cells[at : at + 4]
        boxes.append((float(x1), float(y1), float(x2), float(y2)) if x1 else None)
    return Row(
        path=path,
        status=status,
        error=error,
        width=int(width),
        height=int(height),
        labels=tuple(cells[5:boxes_at:2]),
        probs=tuple(float(prob) for prob in cells[6:boxes_at:2]),
        box=boxes[0],
        parts=tuple(box for box in boxes[1:] if box),
    )


NEEDED = (*TEXTS, "size", "topk_index", "topk_prob", "box")
ATTRIBUTES = ("schema_version", "class_names", "preprocessing")
CACHE_BYTES = 8 << 20
"""Of decompressed chunks, per data set: rows read one after another decompress each chunk once."""


def open_h5(path: Path) -> h5py.File:
    """The file, read-only, to be closed.

    Raises:
        FgvcError: it cannot be opened.
    """
    with reading(path):
        return h5py.File(path, "r", rdcc_nbytes=CACHE_BYTES)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Round each read of the file: what h5py raises becomes the user's line.

    Raises:
        FgvcError: something in it cannot be read.
    """
    try:
        yield
    # h5py raises any of these for a file that is cut short, damaged, or built to confuse.
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise FgvcError(f"{path} cannot be read as HDF5: {reason}.", HOW_TO) from error


def read_h5(path: Path) -> Table:
    """All rows but their maps, crops, embeddings and logits.

    Raises:
        FgvcError: damaged, not written by fgvc, by a newer fgvc, or too many rows.
    """
    with open_h5(path) as file, reading(path):
        _check(path, file)
        rows = len(file["path"])
        check_count(path, rows)
        columns: dict[str, Any] = {name: file[name].asstr()[:].tolist() for name in TEXTS}
        columns |= {name: file[name][:] for name in ("size", "topk_index", "topk_prob", "box")}
        columns["parts"] = file["parts"][:] if "parts" in file else np.empty((rows, 0, 4), np.float32)
        classes = tuple(str(name) for name in file.attrs["class_names"])
        known: tuple[Extra, ...] = ("attention", "crop")
        info = RunInfo(
            model=str(file.attrs.get("model", "")),
            weights_sha256=str(file.attrs.get("weights_sha256", "")),
            classes=classes,
            preprocess=_preprocess(path, file),
            top_k=columns["topk_index"].shape[1],
            parts=columns["parts"].shape[1],
            # An extra that no row had has no width.
            extras=tuple(extra for extra in known if extra in file and 0 not in file[extra].shape),
            settings=_settings(path, file),
        )
        origin = _origin(file)
    if columns["topk_index"].max() >= len(classes):
        raise FgvcError(f"{path} is damaged: it names class {columns['topk_index'].max()} of {len(classes)}.")
    return Table(path, Block(first=0, **columns), info, origin)


def _settings(path: Path, file: h5py.File) -> dict[str, Any]:
    try:
        return dict(json.loads(file.attrs.get("settings", "{}")))
    except (TypeError, ValueError) as error:
        raise FgvcError(f"{path} is damaged: its settings are no JSON.") from error


def _origin(file: h5py.File) -> Origin | None:
    if "sources" not in file.attrs or "working_folder" not in file.attrs:
        return None
    sources = tuple(str(source) for source in file.attrs["sources"])
    return Origin(sources, str(file.attrs["working_folder"]))


def _check(path: Path, file: h5py.File) -> None:
    """Whether fgvc predict wrote this, in a form that is known here."""
    missing = [name for name in NEEDED if not isinstance(file.get(name), h5py.Dataset)]
    missing += [name for name in ATTRIBUTES if name not in file.attrs]
    if missing:
        raise FgvcError(f"{path} is not what fgvc predict writes: it has no {missing[0]}.", HOW_TO)
    if (version := file.attrs["schema_version"]) != SCHEMA_VERSION:
        message = f"{path} has the schema {version}, this fgvc reads {SCHEMA_VERSION}."
        raise FgvcError(message, "Predict again, or use the fgvc that wrote it.")
    rows, top_k = len(file["path"]), file["topk_index"].shape[-1:]
    shapes: dict[str, tuple[int, ...]] = {name: (rows,) for name in (*TEXTS, "crop")}
    shapes |= {"size": (rows, 2), "box": (rows, 4), "topk_index": (rows, *top_k), "topk_prob": (rows, *top_k)}
    for name, shape in shapes.items():
        if name in file and (file[name].shape != shape or 0 in shape[1:]):
            raise FgvcError(f"{path} is damaged: {name} has the shape {file[name].shape}, for {rows} rows.")
    for name in ("parts", "attention"):
        if name in file and len(file[name]) != rows:
            raise FgvcError(f"{path} is damaged: {name} has {len(file[name])} rows of {rows}.")


def _preprocess(path: Path, file: h5py.File) -> Preprocess:
    try:
        return stored_preprocess(json.loads(file.attrs["preprocessing"]))
    except (TypeError, ValueError) as error:
        raise FgvcError(f"{path} is damaged: its preprocessing is no JSON.") from error
