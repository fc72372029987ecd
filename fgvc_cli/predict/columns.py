"""Decoded images and the model's answers -> the columns of a block.

Legend: n rows, B images of them that the model answered for, P parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fgvc_cli.config import Preprocess
from fgvc_cli.data.geometry import input_geometry
from fgvc_cli.formats.rows import UNSURE, Block, RunInfo
from fgvc_cli.predict.decode_pool import Loaded
from fgvc_cli.predict.forward import Answers
from fgvc_cli.sources.images import OK, Failure

NO_MEMORY = Failure("no_memory", "not enough memory for the model, even with this image alone")


@dataclass
class RowBatch:
    """Rows of a block on their way, in order."""

    items: list[Loaded]
    failures: list[Failure | None] = field(default_factory=list)
    """Per item; from decoding, and then from the model."""
    answered: np.ndarray = field(default_factory=lambda: np.empty(0, np.intp))
    """Which items the model answered for, (B,)."""
    answers: Answers = field(default_factory=dict)
    """Joined, boxes in pixels of the photograph."""

    def __post_init__(self) -> None:
        self.failures = [item.decoded.failure for item in self.items]

    @property
    def readable(self) -> list[int]:
        """Items with pixels."""
        return [i for i, item in enumerate(self.items) if item.decoded.pixels is not None]

    def take(self, pieces: Sequence[Answers | None], preprocess: Preprocess) -> None:
        """Lay the answers, piece by piece, to their items; a piece of None is one image without memory."""
        readable, rows = iter(self.readable), []
        for piece in pieces:
            if piece is None:
                self.failures[next(readable)] = NO_MEMORY
            else:
                rows += [next(readable) for _ in range(len(piece["prob"]))]
        self.answered = np.array(rows, np.intp)
        given = [piece for piece in pieces if piece is not None]
        if given:
            self.answers = {name: np.concatenate([piece[name] for piece in given]) for name in given[0]}
            sizes = [self.items[row].decoded[1:3] for row in rows]
            for name in ("box", "parts"):
                if name in self.answers:
                    self.answers[name] = boxes_in_image(self.answers[name], sizes, preprocess)

    def boxes(self) -> list[list[float] | None]:
        """The object box of each item, where there is one."""
        boxes: list[list[float] | None] = [None] * len(self.items)
        for row, box in zip(self.answered.tolist(), self.answers.get("box", ()), strict=False):
            boxes[row] = None if np.isnan(box).any() else box.tolist()
        return boxes


def boxes_in_image(boxes: np.ndarray, sizes: Sequence[tuple[int, int]], preprocess: Preprocess) -> np.ndarray:
    """Boxes (B, 4) or (B, P, 4) in input pixels -> in those of photographs of these (width, height), clipped;
    float32; as ``Geometry.to_photo``, for all at once."""
    all_geometry = [input_geometry(width, height, preprocess) for width, height in sizes]
    numbers = np.array(
        [(g.offset_x, g.offset_y, g.scale_x, g.scale_y, g.width, g.height) for g in all_geometry], np.float64
    ).reshape(len(sizes), *[1] * (boxes.ndim - 2), 3, 2)
    offset, scale, limit = (np.concatenate([numbers[..., i, :]] * 2, axis=-1) for i in range(3))
    return np.clip((boxes.astype(np.float64) + offset) / scale, 0, limit).astype(np.float32)


def build_block(
    batch: RowBatch, info: RunInfo, *, first: int, crops: list[bytes] | None, min_prob: float | None
) -> Block:
    """The block of a batch.

    Args:
        crops: per item, where asked for.
        min_prob: below it, a row is unsure.
    """
    rows, answers, count = batch.answered, batch.answers, len(batch.items)

    def column(name: str, shape: tuple[int, ...], fill: float, dtype: type = np.float32) -> np.ndarray:
        values: np.ndarray = np.full((count, *shape), fill, dtype)
        if name in answers:
            values[rows] = answers[name]
        return values

    def extra(name: str) -> np.ndarray | None:
        # Its shape is the model's affair: unknown while no image was readable.
        return (
            column(name, answers[name].shape[1:], np.nan, answers[name].dtype.type)
            if name in answers
            else None
        )

    status: list[str] = [failure.status if failure else OK for failure in batch.failures]
    size = np.zeros((count, 2), np.int32)
    size[rows] = [batch.items[row].decoded[1:3] for row in rows] or np.zeros((0, 2))
    if min_prob is not None and "prob" in answers:
        for row in rows[answers["prob"][:, 0] < np.float32(min_prob)]:
            status[row] = UNSURE
    return Block(
        first=first,
        path=[item.found.name for item in batch.items],
        status=status,
        error=[failure.error if failure else "" for failure in batch.failures],
        size=size,
        topk_index=column("index", (info.top_k,), -1, np.int32),
        topk_prob=column("prob", (info.top_k,), np.nan),
        box=column("box", (4,), np.nan),
        parts=column("parts", (info.parts, 4), np.nan),
        attention=extra("attention"),
        crop=crops,
        embedding=extra("embedding"),
        logits=extra("logits"),
    )
