"""Parquet, through pyarrow, written and read back: the CSV's columns with types, null where there is
no value, extras behind them.

``attention`` is a list of lists of float16, ``crop`` the bytes of a JPEG, ``embedding`` and ``logits`` are
lists of float32; they are null in rows without a prediction. The root attributes of the HDF5 file stand as
JSON under the key ``fgvc`` of the file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fgvc_cli.config import stored_preprocess
from fgvc_cli.errors import FgvcError
from fgvc_cli.files import readable
from fgvc_cli.formats.csv_rows import csv_columns, read_layout
from fgvc_cli.formats.rows import (
    COLUMNS,
    READ_ROWS,
    TEXTS,
    Block,
    Column,
    Extra,
    FileSink,
    Layout,
    OtherRun,
    RunInfo,
    Table,
    as_text,
    box_headers,
    check_count,
    check_same_run,
    has_prediction,
    join,
    shared_by_rows,
)

EXTRA_TYPES = {
    "attention": pa.list_(pa.list_(pa.float16())),
    "crop": pa.binary(),
    "embedding": pa.list_(pa.float32()),
    "logits": pa.list_(pa.float32()),
}
HOW_TO_PARQUET = "fgvc predict PHOTOS --out preds.parquet"
_TYPES = {"path": pa.string(), "status": pa.string(), "error": pa.string()}
_TYPES |= {"width": pa.int32(), "height": pa.int32()}
_TYPES |= {
    column.name: pa.string() if column.kind == "text" else pa.float64()
    for column in COLUMNS.values()
    if column.kind != "box"
}


class ParquetSink(FileSink):
    """Parquet into a file, zstd-compressed, one row group per block."""

    def _begin(self, info: RunInfo) -> None:
        self._info = info
        fields = []
        for name in csv_columns(info.layout):
            labelled = pa.string() if name.startswith("label") else pa.float32()
            fields.append(pa.field(name, _TYPES.get(name, labelled)))
        fields += [pa.field(name, kind) for name, kind in EXTRA_TYPES.items() if name in self.extras]
        self._schema = pa.schema(fields, metadata={"fgvc": json.dumps(shared_by_rows(info))})
        self._writer = pq.ParquetWriter(self._stream, self._schema, compression="zstd")

    def _write(self, block: Block) -> None:
        named = self._columns(block)
        columns = [*(named[name] for name in csv_columns(self._info.layout)), *self._extra_columns(block)]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))

    def _columns(self, block: Block) -> dict[str, pa.Array]:
        blank = np.array([not has_prediction(status) for status in block.status])
        columns = {
            name: pa.array([as_text(text) for text in getattr(block, name)], pa.string()) for name in TEXTS
        }
        for side, name in enumerate(("width", "height")):
            columns[name] = pa.array(block.size[:, side], mask=blank)
        names = np.array(self._info.classes, object)
        for k, rank in enumerate(_ranks(self._info.top_k)):
            columns[f"label{rank}"] = pa.array(names[block.topk_index[:, k]], pa.string(), mask=blank)
            columns[f"prob{rank}"] = pa.array(block.topk_prob[:, k], mask=blank)
        boxes = {"box": block.box}
        boxes |= {f"part_{k + 1}": block.parts[:, k] for k in range(self._info.parts)}
        for name in self._info.columns:
            column, values = COLUMNS[name], block.column(name)
            if isinstance(values, list):
                columns[name] = pa.array([as_text(text) or None for text in values], pa.string())
            elif column.kind == "box":
                boxes[column.edges] = values
            else:
                columns[name] = pa.array(values, mask=np.isnan(values))
        for name, edges in boxes.items():
            for i, header in enumerate(box_headers(name)):
                columns[header] = pa.array(edges[:, i], mask=np.isnan(edges[:, i]))
        if self._info.multi_label:
            there = ["|".join(row.labels_there) for row in block.rows(self._info)]
            columns["labels"] = pa.array(np.array(there, object), pa.string(), mask=blank)
        return columns

    def _extra_columns(self, block: Block) -> list[pa.Array]:
        columns = []
        for name, kind in EXTRA_TYPES.items():
            if name not in self.extras:
                continue
            values: Any = getattr(block, name)
            if values is None:
                columns.append(pa.nulls(len(block), kind))
            elif name == "crop":
                columns.append(pa.array([crop or None for crop in values], kind))
            else:
                columns.append(_lists(values))
        return columns

    def _close(self, *, complete: bool) -> None:
        if hasattr(self, "_writer"):
            self._writer.close()


def _ranks(top_k: int) -> list[str]:
    """What the names of columns end in: "", _2, ..., _k."""
    return ["", *(f"_{k}" for k in range(2, top_k + 1))]


def _lists(values: np.ndarray) -> pa.Array:
    """(n, ...) -> n nested lists; null where all is NaN."""
    blank = np.isnan(values.reshape(len(values), -1)).all(axis=1)
    array = pa.array(np.ascontiguousarray(values).reshape(-1))
    for depth in range(values.ndim - 1, 0, -1):
        offsets = np.arange(0, len(array) + 1, values.shape[depth], dtype=np.int32)
        mask = pa.array(blank) if depth == 1 else None
        array = pa.ListArray.from_arrays(pa.array(offsets), array, mask=mask)
    return array


def read_table(path: Path) -> Table:
    """Read all rows but their maps, crops, embeddings and logits.

    Raises:
        FgvcError: damaged, not written by fgvc, or too many rows.
    """
    with _open(path) as file:
        info = _read_info(path, file)
        check_count(path, file.metadata.num_rows)
        return Table(path, join(list(_read_blocks(path, file, info))), info)


def read_setting(path: Path, name: str) -> Any:
    """Look up a setting of the run that a file is of; None where it tells none.

    Raises:
        FgvcError: damaged, not written by fgvc.
    """
    with _open(path) as file:
        return _read_info(path, file).settings.get(name)


def read_extras(path: Path) -> tuple[Extra, ...]:
    """Which extras the rows of a file have.

    Raises:
        FgvcError: damaged.
    """
    with _open(path) as file:
        return tuple(extra for extra in get_args(Extra) if extra in file.schema_arrow.names)


def read_blocks(path: Path, info: RunInfo) -> Iterator[Block]:
    """Read the rows of a finished run exactly, with their extras.

    Raises:
        FgvcError: as ``read_table``.
        OtherRun: as ``check_same_run``; other extras or columns.
    """
    with _open(path) as file:
        _read_info(path, file)
        check_same_run(json.loads(file.schema_arrow.metadata[b"fgvc"]), info)
        names = file.schema_arrow.names
        if missing := [extra for extra in info.extras if extra not in names]:
            raise OtherRun(f"it holds no {missing[0]}")
        columns = csv_columns(info.layout)
        if names[: len(columns)] != columns:
            raise OtherRun("its columns are not those of this run")
        yield from _read_blocks(path, file, info)


def read_embeddings(path: Path, rows: np.ndarray) -> np.ndarray | None:
    """Embeddings of rows by their numbers, as ``h5.read_embeddings``.

    Raises:
        FgvcError: damaged.
    """
    with _open(path) as file:
        if "embedding" not in file.schema_arrow.names:
            return None
        found, first = None, 0
        try:
            for batch in file.iter_batches(READ_ROWS, columns=["embedding"]):
                here = (rows >= first) & (rows < first + len(batch))
                values = _array(batch.column(0), np.float32) if here.any() else None
                if values is not None:
                    if found is None:
                        found = np.full((len(rows), values.shape[1]), np.nan, np.float32)
                    found[here] = values[rows[here] - first]
                first += len(batch)
        except pa.ArrowException as error:
            raise _damaged(path, error) from error
        return found


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(readable(path))
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> FgvcError:
    reason = " ".join(str(error).split())[:160]
    return FgvcError(f"{path} cannot be read as Parquet: {reason}.", HOW_TO_PARQUET)


def _read_info(path: Path, file: pq.ParquetFile) -> RunInfo:
    """What a file says of all its rows; without extras."""
    names = file.schema_arrow.names
    layout = read_layout(names) or Layout(0)
    try:
        shared = json.loads(file.schema_arrow.metadata[b"fgvc"])
        info = RunInfo(
            model=shared["model"],
            weights_sha256=shared["weights_sha256"],
            classes=tuple(shared["class_names"]),
            preprocess=stored_preprocess(shared["preprocessing"]),
            top_k=layout.top_k,
            parts=layout.parts,
            columns=layout.columns,
            settings=dict(shared["settings"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        message = f"{path} is not what fgvc predict writes: it tells no model, classes and settings."
        raise FgvcError(message, HOW_TO_PARQUET) from error
    if not layout.top_k:
        raise FgvcError(f"{path} has not the columns of fgvc predict.", HOW_TO_PARQUET)
    return info


def _read_blocks(path: Path, file: pq.ParquetFile, info: RunInfo) -> Iterator[Block]:
    """The rows, with the extras of ``info``."""
    index = {name: i for i, name in enumerate(info.classes)} | {None: -1}
    wanted = [*csv_columns(info.layout), *info.extras]
    first = 0
    try:
        for batch in file.iter_batches(READ_ROWS, columns=wanted):
            block = _read_block(batch, info, index, first)
            first += len(block)
            yield block
    except KeyError as error:
        raise FgvcError(f"{path} is damaged: it names {error}, which is none of its classes.") from error
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _read_block(batch: pa.RecordBatch, info: RunInfo, index: dict[str | None, int], first: int) -> Block:
    count = len(batch)
    ranks = _ranks(info.top_k)
    boxes = ["box", *(f"part_{k}" for k in range(1, info.parts + 1))]

    def numbers(name: str, fill: float) -> np.ndarray:
        return batch[name].fill_null(fill).to_numpy(zero_copy_only=False)

    def box_values(name: str) -> np.ndarray:
        return np.stack([numbers(header, np.nan) for header in box_headers(name)], axis=1)

    def values(column: Column) -> list[str] | np.ndarray:
        if column.kind == "text":
            return batch[column.name].fill_null("").to_pylist()
        return box_values(column.edges) if column.kind == "box" else numbers(column.name, np.nan)

    all_boxes = np.stack([box_values(box) for box in boxes], axis=1)
    labels = [[index[name] for name in batch[f"label{rank}"].to_pylist()] for rank in ranks]
    block = Block(
        first=first,
        path=batch["path"].to_pylist(),
        status=batch["status"].to_pylist(),
        error=batch["error"].to_pylist(),
        size=np.stack([numbers("width", 0), numbers("height", 0)], axis=1).astype(np.int32),
        topk_index=np.array(labels, np.int32).reshape(info.top_k, count).T.copy(),
        topk_prob=np.stack([numbers(f"prob{rank}", np.nan) for rank in ranks], axis=1),
        box=all_boxes[:, 0].copy(),
        parts=all_boxes[:, 1:].copy(),
        more={name: values(COLUMNS[name]) for name in info.columns},
    )
    for name in info.extras:
        if name == "crop":
            block.crop = [crop or b"" for crop in batch["crop"].to_pylist()]
        else:
            setattr(block, name, _array(batch[name], np.float16 if name == "attention" else np.float32))
    return block


def _array(column: pa.Array, dtype: Any) -> np.ndarray | None:
    """n nested lists -> (n, ...), NaN where one is null; None where all are."""
    there = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    if not len(there):
        return None
    shape = np.shape(column[int(there[0])].as_py())
    flat = column
    while isinstance(flat, pa.ListArray):
        flat = flat.flatten()
    array = np.full((len(column), *shape), np.nan, dtype)
    array[there] = flat.to_numpy(zero_copy_only=False).reshape(len(there), *shape)
    return array
