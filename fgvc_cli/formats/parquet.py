"""Parquet, through pyarrow, written and read back: the CSV's columns with types, null where there is
no value, extras behind them.

``attention`` is a list of lists of float16, ``crop`` the bytes of a JPEG, ``embedding`` and ``logits`` are
lists of float32; they are null in rows without a prediction. The root attributes of the HDF5 file stand as
JSON under the key ``fgvc`` of the file's metadata.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fgvc_cli.config import stored_preprocess
from fgvc_cli.errors import FgvcError
from fgvc_cli.files import AtomicFile, readable, whole_folder
from fgvc_cli.formats.csv_rows import csv_columns, read_layout
from fgvc_cli.formats.outputs import SUCCESS, check_parts, part_files
from fgvc_cli.formats.rows import (
    COLUMNS,
    READ_ROWS,
    TEXTS,
    TRY_AGAIN,
    Block,
    Column,
    Extra,
    FileSink,
    Layout,
    Origin,
    OtherRun,
    RunInfo,
    Table,
    as_text,
    block_bytes,
    box_headers,
    check_count,
    check_same_run,
    has_prediction,
    join,
    shared_by_rows,
)
from fgvc_cli.store import StorePath

EXTRA_TYPES = {
    "attention": pa.list_(pa.list_(pa.float16())),
    "crop": pa.binary(),
    "embedding": pa.list_(pa.float32()),
    "logits": pa.list_(pa.float32()),
}
FOLDER_TYPES = EXTRA_TYPES | {"attention": pa.binary()}
"""Of a folder of parts: many programs know no lists of float16, so a map is the bytes of an .npy file."""

PART_ROWS = 100_000
PART_BYTES = 256 << 20
"""Of a part of a folder: it ends behind the block that reaches one of them."""

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

    types = EXTRA_TYPES

    def _begin(self, info: RunInfo) -> None:
        self._info = info
        fields = []
        for name in csv_columns(info.layout):
            labelled = pa.string() if name.startswith("label") else pa.float32()
            fields.append(pa.field(name, _TYPES.get(name, labelled)))
        fields += [pa.field(name, kind) for name, kind in self.types.items() if name in self.extras]
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
        for name, kind in self.types.items():
            if name not in self.extras:
                continue
            values: Any = getattr(block, name)
            if values is None:
                columns.append(pa.nulls(len(block), kind))
            elif name == "crop":
                columns.append(pa.array([crop or None for crop in values], kind))
            elif kind == pa.binary():
                columns.append(pa.array(map(_npy, values), kind))
            else:
                columns.append(_lists(values))
        return columns

    def _close(self, *, complete: bool) -> None:
        if hasattr(self, "_writer"):
            self._writer.close()


class _PartSink(ParquetSink):
    types = FOLDER_TYPES


class ParquetFolderSink:
    """A folder ``part-00000.parquet, ..., _SUCCESS``, read as one data set; args as ``FileSink``.

    On a disk it appears whole. In a store its parts appear one after another, and ``_SUCCESS`` is the last.
    """

    def __init__(
        self,
        out: Path,
        *,
        overwrite: bool = False,
        extras: Collection[Extra] = (),
        origin: Origin | None = None,
    ):
        self.out = out
        self._overwrite, self._extras, self._origin = overwrite, extras, origin
        self._held = ExitStack()
        self._folder: Path = out
        self._part: _PartSink | None = None
        self._parts = 0

    def __enter__(self) -> Self:
        check_parts(self.out, overwrite=self._overwrite)
        if isinstance(self.out, StorePath):
            for name in (SUCCESS, *(path.name for path in part_files(self.out))):
                (self.out / name).unlink(missing_ok=True)
        else:
            names = (SUCCESS, *(path.name for path in part_files(self.out)))
            whole = whole_folder(self.out, overwrite=True, replaceable=names)
            self._folder = self._held.enter_context(whole)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            part, self._part = self._part, None
            if part:
                part.__exit__(kind, error, trace)
            if kind is None:
                with AtomicFile(self._folder / SUCCESS, overwrite=True, again=TRY_AGAIN):
                    """Empty."""
        except BaseException as failure:
            self._held.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._held.__exit__(kind, error, trace)

    def begin(self, info: RunInfo) -> None:
        """Begin the first part, which is there without rows too."""
        self._info = info
        self._begin_part()

    def write(self, block: Block) -> None:
        """The next rows."""
        if self._part is None:
            self._begin_part()
        assert self._part is not None
        self._part.write(block)
        self._rows += len(block)
        self._bytes += block_bytes(block)
        if self._rows >= PART_ROWS or self._bytes >= PART_BYTES:
            part, self._part = self._part, None
            part.__exit__(None, None, None)

    def _begin_part(self) -> None:
        self._rows = self._bytes = 0
        path = self._folder / f"part-{self._parts:05d}.parquet"
        self._parts += 1
        self._part = _PartSink(path, overwrite=True, extras=self._extras, origin=self._origin)
        self._part.__enter__()
        self._part.begin(self._info)


def _npy(values: np.ndarray) -> bytes | None:
    """An array as the bytes of an .npy file; None where it has no value."""
    if np.isnan(values).any():
        return None
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


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
    with ExitStack() as stack:
        files = [(part, stack.enter_context(_open(part))) for part in _parts_of(path)]
        info = _read_info(*files[0])
        check_count(path, sum(file.metadata.num_rows for _, file in files))
        return Table(path, join(list(_chained(files, info))), info)


def read_setting(path: Path, name: str) -> Any:
    """Look up a setting of the run that a file is of; None where it tells none.

    Raises:
        FgvcError: damaged, not written by fgvc.
    """
    first = _parts_of(path)[0]
    with _open(first) as file:
        return _read_info(first, file).settings.get(name)


def read_extras(path: Path) -> tuple[Extra, ...]:
    """Which extras the rows of a file have.

    Raises:
        FgvcError: damaged.
    """
    with _open(_parts_of(path)[0]) as file:
        return tuple(extra for extra in get_args(Extra) if extra in file.schema_arrow.names)


def read_blocks(path: Path, info: RunInfo) -> Iterator[Block]:
    """Read the rows of a finished run exactly, with their extras.

    Raises:
        FgvcError: as ``read_table``.
        OtherRun: as ``check_same_run``; other extras or columns.
    """
    first = 0
    for part in _parts_of(path):
        with _open(part) as file:
            _read_info(part, file)
            check_same_run(json.loads(file.schema_arrow.metadata[b"fgvc"]), info)
            names = file.schema_arrow.names
            if missing := [extra for extra in info.extras if extra not in names]:
                raise OtherRun(f"it holds no {missing[0]}")
            columns = csv_columns(info.layout)
            if names[: len(columns)] != columns:
                raise OtherRun("its columns are not those of this run")
            yield from _read_blocks(part, file, info, first)
            first += file.metadata.num_rows


def read_embeddings(path: Path, rows: np.ndarray) -> np.ndarray | None:
    """Embeddings of rows by their numbers, as ``h5.read_embeddings``.

    Raises:
        FgvcError: damaged.
    """
    found, first = None, 0
    for part in _parts_of(path):
        with _open(part) as file:
            if "embedding" not in file.schema_arrow.names:
                return None
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
                raise _damaged(part, error) from error
    return found


def _parts_of(path: Path) -> list[Path]:
    """The file, or those of a folder of parts.

    Raises:
        FgvcError: a folder that is not whole.
    """
    if path.suffix:
        return [path]
    parts = part_files(path)
    if not parts or not (path / SUCCESS).exists():
        lacks = SUCCESS if parts else "part-00000.parquet"
        message = f"{path} is no whole folder of Parquet parts: it lacks {lacks}."
        raise FgvcError(message, "fgvc predict PHOTOS --out preds/")
    return parts


def _chained(files: Sequence[tuple[Path, pq.ParquetFile]], info: RunInfo) -> Iterator[Block]:
    first = 0
    for path, file in files:
        yield from _read_blocks(path, file, info, first)
        first += file.metadata.num_rows


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


def _read_blocks(path: Path, file: pq.ParquetFile, info: RunInfo, first: int = 0) -> Iterator[Block]:
    """The rows, with the extras of ``info``; ``first`` is the number of the first one."""
    index = {name: i for i, name in enumerate(info.classes)} | {None: -1}
    wanted = [*csv_columns(info.layout), *info.extras]
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
    if pa.types.is_binary(column.type):
        values = [np.load(io.BytesIO(column[int(row)].as_py())) for row in there]
        array = np.full((len(column), *values[0].shape), np.nan, dtype)
        array[there] = values
        return array
    shape = np.shape(column[int(there[0])].as_py())
    flat = column
    while isinstance(flat, pa.ListArray):
        flat = flat.flatten()
    array = np.full((len(column), *shape), np.nan, dtype)
    array[there] = flat.to_numpy(zero_copy_only=False).reshape(len(there), *shape)
    return array
