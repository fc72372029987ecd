"""Parquet, through pyarrow: the CSV's columns with types, null where there is no value, extras behind them.

``attention`` is a list of lists of float16, ``crop`` the bytes of a JPEG, ``embedding`` and ``logits`` are
lists of float32; they are null in rows without a prediction. The root attributes of the HDF5 file stand as
JSON under the key ``fgvc`` of the file's metadata.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fgvc_cli import __version__
from fgvc_cli.formats.csv_rows import csv_columns
from fgvc_cli.formats.row_blocks import as_text, has_prediction
from fgvc_cli.formats.rows import Block, RunInfo
from fgvc_cli.formats.sinks import FileSink

EXTRA_TYPES = {
    "attention": pa.list_(pa.list_(pa.float16())),
    "crop": pa.binary(),
    "embedding": pa.list_(pa.float32()),
    "logits": pa.list_(pa.float32()),
}
_TYPES = {"path": pa.string(), "status": pa.string(), "error": pa.string()}
_TYPES |= {"width": pa.int32(), "height": pa.int32()}


class ParquetSink(FileSink):
    """Parquet into a file, zstd-compressed, one row group per block."""

    def _begin(self, info: RunInfo) -> None:
        self._info = info
        fields = []
        for name in csv_columns(info.top_k, info.parts, info.multi_label):
            labelled = pa.string() if name.startswith("label") else pa.float32()
            fields.append(pa.field(name, _TYPES.get(name, labelled)))
        fields += [pa.field(name, kind) for name, kind in EXTRA_TYPES.items() if name in self.extras]
        shared = {
            "model": info.model,
            "weights_sha256": info.weights_sha256,
            "class_names": info.classes,
            "preprocessing": info.preprocess.model_dump(),
            "settings": info.settings,
            "fgvc_version": __version__,
        }
        self._schema = pa.schema(fields, metadata={"fgvc": json.dumps(shared)})
        self._writer = pq.ParquetWriter(self._stream, self._schema, compression="zstd")

    def _write(self, block: Block) -> None:
        columns = [*self._columns(block), *self._extra_columns(block)]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))

    def _columns(self, block: Block) -> list[pa.Array]:
        blank = np.array([not has_prediction(status) for status in block.status])
        columns = [
            pa.array([as_text(text) for text in texts]) for texts in (block.path, block.status, block.error)
        ]
        columns += [pa.array(block.size[:, i], mask=blank) for i in range(2)]
        names = np.array(self._info.classes, object)
        for k in range(self._info.top_k):
            columns.append(pa.array(names[block.topk_index[:, k]], pa.string(), mask=blank))
            columns.append(pa.array(block.topk_prob[:, k], mask=blank))
        edges = np.concatenate([block.box, block.parts.reshape(len(block), -1)], axis=1)
        columns += [pa.array(edges[:, i], mask=np.isnan(edges[:, i])) for i in range(edges.shape[1])]
        if self._info.multi_label:
            there = ["|".join(row.labels_there) for row in block.rows(self._info)]
            columns.append(pa.array(np.array(there, object), pa.string(), mask=blank))
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


def _lists(values: np.ndarray) -> pa.Array:
    """(n, ...) -> n nested lists; null where all is NaN."""
    blank = np.isnan(values.reshape(len(values), -1)).all(axis=1)
    array = pa.array(np.ascontiguousarray(values).reshape(-1))
    for depth in range(values.ndim - 1, 0, -1):
        offsets = np.arange(0, len(array) + 1, values.shape[depth], dtype=np.int32)
        mask = pa.array(blank) if depth == 1 else None
        array = pa.ListArray.from_arrays(pa.array(offsets), array, mask=mask)
    return array
