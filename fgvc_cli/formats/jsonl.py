"""JSON lines: one object per row, keys as the CSV's columns, boxes as lists."""

from __future__ import annotations

import json
from typing import Any

from fgvc_cli.formats.csv_rows import ranked_columns
from fgvc_cli.formats.row_blocks import as_text
from fgvc_cli.formats.rows import Block, Row, RunInfo
from fgvc_cli.formats.sinks import FileSink


def json_row(row: Row, top_k: int, parts: int = 0, multi_label: bool = False) -> dict[str, Any]:
    """The object of a row: null where there is no value; ``parts`` only from a model that has them,
    ``labels``, a list, only from a multi-label one."""
    guesses = zip(row.labels, row.probs, strict=True)
    ranked = [value for label, prob in guesses for value in (label, round(prob, 6))]
    document: dict[str, Any] = {
        "path": as_text(row.path),
        "status": row.status,
        "error": as_text(row.error),
        "width": row.width,
        "height": row.height,
    }
    blank = [None] * (2 * top_k)
    document |= zip(ranked_columns(top_k), ranked or blank, strict=True)
    document["box"] = [round(edge, 1) for edge in row.box] if row.box else None
    if parts:
        document["parts"] = [[round(edge, 1) for edge in part] for part in row.parts]
    if multi_label:
        document["labels"] = list(row.labels_there) if row.ok else None
    return document


class JsonlSink(FileSink):
    """UTF-8, LF, no spaces to spare."""

    def _begin(self, info: RunInfo) -> None:
        self._info = info

    def _write(self, block: Block) -> None:
        info = self._info
        for row in block.rows(info):
            line = json.dumps(json_row(row, info.top_k, info.parts, info.multi_label), ensure_ascii=False)
            self._stream.write(f"{line}\n".encode())
