"""HDF5: one resizable, row-aligned data set per field, and what all rows share as root attributes.

Legend: N rows, k predictions per row, P parts, K classes, D embedding width, h w of a map.

    path status error   (N,) UTF-8 strings of any length; ``ok`` is the status of a row with a prediction
    size                (N, 2) int32: width, height of the upright photograph, pixels
    topk_index          (N, k) int32: into the attribute ``class_names``; -1 without a prediction
    topk_prob           (N, k) float32
    box                 (N, 4) float32: see the attribute ``box_convention``; NaN without one
    parts               (N, P, 4) float32, as box; only from a model with parts
    attention           (N, h, w) float16 in [0, 1] over the model's input, on request
    crop                (N,) bytes of a JPEG as uint8 of any length, empty without one, on request
    embedding           (N, D) float32, on request
    logits              (N, K) float32: log of the fused, calibrated probabilities, on request

Where the photographs were is an attribute too, where it is known: ``sources`` as typed, ``working_folder``.

How they are stored: ``h5_rows``.
"""

from __future__ import annotations

import json
from typing import Any

import h5py
import numpy as np

from fgvc_cli import __version__
from fgvc_cli.formats.h5_rows import H5Rows, ragged
from fgvc_cli.formats.row_blocks import ARRAYS, OPTIONAL_ARRAYS, TEXTS, as_text
from fgvc_cli.formats.rows import Block, RunInfo
from fgvc_cli.formats.sinks import FileSink

SCHEMA_VERSION = 1
BOX_CONVENTION = "xyxy pixels of the EXIF-upright photograph, end-exclusive"
DESCRIPTIONS = {
    "attention": "in [0, 1] over the model's input",
    "crop": "bytes of a JPEG, empty without one",
    "logits": "natural logarithm of the fused, calibrated probabilities",
}
"""Attribute ``description`` of data sets whose names do not say it."""


class H5Sink(FileSink):
    """HDF5 into a file."""

    def _begin(self, info: RunInfo) -> None:
        self._rows = H5Rows(self._stream.name)
        for name, value in root_attributes(info).items():
            self._rows.file.attrs[name] = value
        if self.origin:
            self._rows.file.attrs["sources"] = np.array(list(self.origin.sources), dtype=h5py.string_dtype())
            self._rows.file.attrs["working_folder"] = self.origin.working_folder
        for name in TEXTS:
            self._add(name, (), h5py.string_dtype())
        self._add("size", (2,), np.int32)
        self._add("topk_index", (info.top_k,), np.int32)
        self._add("topk_prob", (info.top_k,), np.float32)
        self._add("box", (4,), np.float32)
        if info.parts:
            self._add("parts", (info.parts, 4), np.float32)
        if "crop" in self.extras:
            self._add("crop", (), h5py.vlen_dtype(np.uint8))

    def _add(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        self._rows.add(name, shape, dtype, description=DESCRIPTIONS.get(name, ""))

    def _write(self, block: Block) -> None:
        columns: dict[str, Any] = {name: [as_text(text) for text in getattr(block, name)] for name in TEXTS}
        columns |= {name: getattr(block, name) for name in ARRAYS if name in self._rows}
        for name in OPTIONAL_ARRAYS:
            array = getattr(block, name)
            if name in self.extras and array is not None:
                if name not in self._rows:
                    # Its width is known from the first row that met the model; those before it stay NaN.
                    self._add(name, array.shape[1:], array.dtype)
                columns[name] = array
        if "crop" in self._rows and block.crop and any(block.crop):
            columns["crop"] = ragged(block.crop)
        self._rows.append(len(block), columns)

    def _close(self, *, complete: bool) -> None:
        if not hasattr(self, "_rows"):
            return
        # An extra that no row has, as none met the model, is still there, with no width.
        for name in OPTIONAL_ARRAYS if complete else ():
            if name in self.extras and name not in self._rows:
                self._rows.file.create_dataset(name, shape=(self._rows.count, 0), dtype=np.float32)
                self._rows.describe(name, DESCRIPTIONS.get(name, ""))
        self._rows.close()


def root_attributes(info: RunInfo) -> dict[str, Any]:
    """What a file says of all its rows."""
    return {
        "schema_version": SCHEMA_VERSION,
        "class_names": np.array(list(info.classes), dtype=h5py.string_dtype()),
        "model": info.model,
        "weights_sha256": info.weights_sha256,
        "preprocessing": json.dumps(info.preprocess.model_dump()),
        "settings": json.dumps(info.settings),
        "box_convention": BOX_CONVENTION,
        "fgvc_version": __version__,
    }
