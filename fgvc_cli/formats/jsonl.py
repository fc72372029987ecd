"""JSON lines, written and read back: one object per row, keys as the CSV's columns, boxes as lists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fgvc_cli.errors import FgvcError
from fgvc_cli.formats.csv_rows import ranked_columns
from fgvc_cli.formats.rows import (
    COLUMNS,
    Block,
    FileSink,
    Layout,
    OtherRun,
    Row,
    RunInfo,
    Table,
    Value,
    as_text,
    build_blocks,
    build_table,
    check_count,
)


def json_row(row: Row, layout: Layout) -> dict[str, Any]:
    """The object of a row: null where there is no value; ``parts`` only from a model that has them,
    ``labels``, a list, only from a multi-label one, what else a run has (``COLUMNS``) as in a CSV."""
    guesses = zip(row.labels, row.probs, strict=True)
    ranked = [value for label, prob in guesses for value in (label, round(prob, 6))]
    front, back = (
        {column.name: _json_value(row.more.get(column.name), column.decimals) for column in known}
        for known in (layout.known(behind_path=True), layout.known(behind_path=False))
    )
    document: dict[str, Any] = {
        "path": as_text(row.path),
        **front,
        "status": row.status,
        "error": as_text(row.error),
        "width": row.width,
        "height": row.height,
    }
    blank = [None] * (2 * layout.top_k)
    document |= zip(ranked_columns(layout.top_k), ranked or blank, strict=True)
    document["box"] = [round(edge, 1) for edge in row.box] if row.box else None
    if layout.parts:
        document["parts"] = [[round(edge, 1) for edge in part] for part in row.parts]
    if layout.multi_label:
        document["labels"] = list(row.labels_there) if row.ok else None
    return document | back


def _json_value(value: Value | None, decimals: int) -> Any:
    if isinstance(value, tuple):
        return [round(edge, decimals) for edge in value]
    return as_text(value) if isinstance(value, str) else value if value is None else round(value, decimals)


class JsonlSink(FileSink):
    """UTF-8, LF, no spaces to spare."""

    def _begin(self, info: RunInfo) -> None:
        self._info = info

    def _write(self, block: Block) -> None:
        info = self._info
        for row in block.rows(info):
            line = json.dumps(json_row(row, info.layout), ensure_ascii=False)
            self._stream.write(f"{line}\n".encode())


def read_table(path: Path) -> Table:
    """Read all rows.

    Raises:
        FgvcError: not the keys of fgvc predict, with the line; too many rows; a model that tells several
            labels per image.
    """
    first = next(_read_objects(path), (1, {}))[1]
    if not first:
        check_count(path, 0)
    if "labels" in first:
        raise FgvcError(
            f"{path} is of a model that tells several labels per image.",
            "It does not name all of them; make the report of the .h5.",
        )
    layout = _layout(first)
    return build_table(path, lambda: _read_rows(path, layout), layout)


def read_blocks(path: Path, info: RunInfo) -> Iterator[Block]:
    """Read the rows of a finished run, which have no extras.

    Raises:
        FgvcError: as ``read_table``.
        OtherRun: other keys or classes than those of the run.
    """
    for _, row in _read_objects(path):
        if ("parts" in row) != (info.parts > 0) or replace(_layout(row), parts=info.parts) != info.layout:
            raise OtherRun("its keys are not those of this run")
        break
    yield from build_blocks(_read_rows(path, info.layout), info)


def _top_k(row: dict[str, Any]) -> int:
    return sum(key == "prob" or key.startswith("prob_") for key in row)


def _layout(row: dict[str, Any]) -> Layout:
    """What the keys of a row say; P is not among them."""
    columns = tuple(name for name in COLUMNS if name in row)
    return Layout(_top_k(row), multi_label="labels" in row, columns=columns)


def _read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Lines as (number, object)."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield number, dict(json.loads(line))
            except (ValueError, TypeError) as error:
                raise FgvcError(f"{path} line {number}: no JSON object: {error}.") from error


def _read_rows(path: Path, layout: Layout) -> Iterator[Row]:
    top_k, names = layout.top_k, ranked_columns(layout.top_k)
    for number, row in _read_objects(path):
        try:
            if _top_k(row) != top_k:
                raise KeyError(f"prob_{top_k + 1}" if _top_k(row) > top_k else f"prob_{top_k}")
            values = [row[name] for name in names if row[name] is not None]
            head = (row["path"], row["status"], row["error"], row["width"], row["height"])
            box = tuple(row["box"]) if row["box"] else None
            parts = tuple(tuple(part) for part in row.get("parts", ()))
            more = {
                name: tuple(row[name]) if COLUMNS[name].kind == "box" else row[name]
                for name in layout.columns
                if row[name] is not None
            }
            read = Row(*head, tuple(values[::2]), tuple(values[1::2]), box, parts, more)
            if read.ok and (len(values) != 2 * top_k or None in head):
                raise ValueError(f"a row of status {read.status} without its size, a label or a probability")
        except KeyError as error:
            message = f"{path} line {number}: expected the keys of fgvc predict, {error} is not as in them."
            raise FgvcError(message, "fgvc predict PHOTOS --out preds.jsonl") from error
        except (TypeError, ValueError) as error:
            raise FgvcError(f"{path} line {number}: {error}.") from error
        yield read
