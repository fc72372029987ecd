"""What a page knows of its rows, as one block of text: columns as typed arrays, compressed.

    base64(gzip(header length as uint32, header as JSON, padding, columns))

The header has ``columns``: name -> {type, length, at}, ``at`` in bytes from the end of the padding, a
multiple of 8; little-endian. Texts are one UTF-8 column each, with NUL between the rows.
"""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import numpy as np

from fgvc_cli.data.geometry import input_geometry
from fgvc_cli.report.table import Table
from fgvc_cli.report.truth import Truth

ALIGN = 8
LEVEL = 6
TENTHS = 10
"""Boxes are whole tenths of a pixel: as exact as in a CSV, and they compress."""


def pack(header: dict[str, Any], columns: dict[str, np.ndarray]) -> bytes:
    """The block; ``header`` must be JSON."""
    pieces, described, at = [], {}, 0
    for name, values in columns.items():
        values = np.ascontiguousarray(values)
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        described[name] = {"type": values.dtype.name, "length": values.size, "at": at}
        data = little.tobytes()
        pieces.append(data + bytes(-len(data) % ALIGN))
        at += len(pieces[-1])
    head = json.dumps({**header, "columns": described}).encode()
    start = np.uint32(len(head)).astype("<u4").tobytes() + head
    start += bytes(-len(start) % ALIGN)
    return base64.b64encode(gzip.compress(b"".join([start, *pieces]), LEVEL, mtime=0))


def row_columns(table: Table, truth: Truth | None) -> dict[str, np.ndarray]:
    """The columns of all N rows.

    Args:
        truth: what the photographs show; None without labels.
    """
    rows = table.rows
    number = {status: i for i, status in enumerate(statuses(table))}
    columns = {
        "path": _texts(rows.path),
        "error": _texts(rows.error),
        "status": np.array([number[status] for status in rows.status], np.int32),
        "size": rows.size.astype(np.int32),
        "index": rows.topk_index.astype(np.int32),
        "prob": rows.topk_prob.astype(np.float32),
        "box": _tenths(rows.box),
        "parts": _tenths(rows.parts),
    }
    return columns | (truth.columns() if truth else {})


def statuses(table: Table) -> list[str]:
    """The words that the column ``status`` counts in."""
    return sorted(set(table.rows.status))


def picture_columns(table: Table, rows: list[int], cropped: list[bool]) -> dict[str, np.ndarray]:
    """The columns of all T pictures, in the order in which they are stored.

    ``picture_input`` (T, 4) is where the model's input lies, as ``box``.
    """
    corner = (0, 0, table.info.preprocess.input_px, table.info.preprocess.input_px)
    sizes = table.rows.size[rows].tolist()
    inputs = [input_geometry(w, h, table.info.preprocess).to_photo(corner) for w, h in sizes]
    return {
        "picture_row": np.array(rows, np.int32),
        "picture_cropped": np.array(cropped, np.uint8),
        "picture_input": _tenths(np.array(inputs, np.float64).reshape(-1, 4)),
    }


def _texts(values: list[str]) -> np.ndarray:
    text = "\0".join(value.replace("\0", "\ufffd") for value in values)
    return np.frombuffer(text.encode(errors="backslashreplace"), np.uint8)


def _tenths(boxes: np.ndarray) -> np.ndarray:
    """Edges in pixels -> int32; -1 where there is no box."""
    return np.where(np.isnan(boxes), -1, np.round(boxes.astype(np.float64) * TENTHS)).astype(np.int32)
