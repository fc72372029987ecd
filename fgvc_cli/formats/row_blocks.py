"""Blocks of rows: cut, joined, interleaved, mended. Arrays only, no files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fgvc_cli.formats.rows import UNSURE, Block
from fgvc_cli.sources.images import OK

TEXTS = ("path", "status", "error")
ARRAYS = ("size", "topk_index", "topk_prob", "box", "parts")
OPTIONAL_ARRAYS = ("attention", "embedding", "logits")
"""None where not asked for, and in a block of failed rows that never met the model."""


def as_text(name: str) -> str:
    """A name as every file of the run holds it: bytes that are not UTF-8 become ``\\udcXX``, XX in hex."""
    return name.encode(errors="backslashreplace").decode()


def has_prediction(status: str) -> bool:
    """Whether a row of this status has one."""
    return status in (OK, UNSURE)


def block_bytes(block: Block) -> int:
    """Roughly what a block takes in memory."""
    arrays = [getattr(block, name) for name in (*ARRAYS, *OPTIONAL_ARRAYS)]
    texts = sum(len(text) for name in TEXTS for text in getattr(block, name))
    return sum(a.nbytes for a in arrays if a is not None) + texts + sum(map(len, block.crop or ()))


def cut(block: Block, start: int, stop: int) -> Block:
    """Rows start to stop, end-exclusive, without copying arrays."""
    rows = slice(start, stop)
    columns = {name: getattr(block, name) for name in (*TEXTS, *ARRAYS, *OPTIONAL_ARRAYS, "crop")}
    taken = {name: None if column is None else column[rows] for name, column in columns.items()}
    return Block(first=block.first + start, **taken)  # type: ignore[arg-type]


def join(blocks: Sequence[Block]) -> Block:
    """Blocks that follow each other as one."""
    ends = np.cumsum([len(block) for block in blocks]).tolist()
    starts = [0, *ends[:-1]]
    rows = [slice(start, end) for start, end in zip(starts, ends, strict=True)]
    return _scatter(blocks, rows, ends[-1], blocks[0].first)


def interleave(blocks: Sequence[Block], first: int) -> Block:
    """n blocks as one whose row j is row j // n of block j % n; lengths fall by one at most."""
    rows = [slice(i, None, len(blocks)) for i in range(len(blocks))]
    return _scatter(blocks, rows, sum(map(len, blocks)), first)


def replace_rows(block: Block, rows: Sequence[int], new: Block) -> None:
    """Put row j of ``new`` in the place of row ``rows[j]``."""
    for name in TEXTS:
        for row, text in zip(rows, getattr(new, name), strict=True):
            getattr(block, name)[row] = text
    for name in (*ARRAYS, *OPTIONAL_ARRAYS):
        values = getattr(new, name)
        if values is None:
            continue
        if getattr(block, name) is None:
            setattr(block, name, _blank(len(block), values))
        # Arrays read from a file may be read-only views.
        column = np.array(getattr(block, name))
        column[list(rows)] = values
        setattr(block, name, column)
    if new.crop is not None:
        block.crop = block.crop or [b""] * len(block)
        for row, crop in zip(rows, new.crop, strict=True):
            block.crop[row] = crop


def _scatter(blocks: Sequence[Block], rows: Sequence[slice], total: int, first: int) -> Block:
    """One block whose rows ``rows[b]`` are those of ``blocks[b]``."""
    columns: dict[str, Any] = {}
    for name in TEXTS:
        texts = [""] * total
        for block, where in zip(blocks, rows, strict=True):
            texts[where] = getattr(block, name)
        columns[name] = texts
    for name in (*ARRAYS, *OPTIONAL_ARRAYS):
        columns[name] = _scatter_arrays([getattr(block, name) for block in blocks], rows, total)
    crops: list[bytes] | None = None
    if any(block.crop is not None for block in blocks):
        crops = [b""] * total
        for block, where in zip(blocks, rows, strict=True):
            if block.crop is not None:
                crops[where] = block.crop
    return Block(first=first, crop=crops, **columns)


def _scatter_arrays(
    arrays: Iterable[np.ndarray | None], rows: Sequence[slice], total: int
) -> np.ndarray | None:
    arrays = list(arrays)
    known = next((array for array in arrays if array is not None), None)
    if known is None:
        return None
    out = _blank(total, known)
    for array, where in zip(arrays, rows, strict=True):
        if array is not None:
            out[where] = array
    return out


def _blank(total: int, like: np.ndarray) -> np.ndarray:
    fill = np.nan if like.dtype.kind == "f" else 0
    return np.full((total, *like.shape[1:]), fill, like.dtype)
