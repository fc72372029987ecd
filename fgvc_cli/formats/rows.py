"""One row per image, as an object for people and in columns for files, and what all rows of a run share.

Legend: n rows of a block, k predictions per row, P parts, K classes, D embedding width, h w of a map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from fgvc_cli.config import Preprocess
from fgvc_cli.data.geometry import Box
from fgvc_cli.sources.images import OK

Extra = Literal["attention", "crop", "embedding", "logits"]
"""What a run stores beside its predictions, on request."""

UNSURE = "unsure"
"""Status of a row whose best probability is below the run's ``min_prob``; its predictions are kept."""


TOLD_ABOVE = 0.5
"""A multi-label model tells the labels that are more probable than this."""


@dataclass(frozen=True, slots=True)
class Row:
    """The answer for one image: a prediction, or why there is none."""

    path: str
    """The name of the image, with forward slashes."""
    status: str = OK
    """``ok``; ``unsure``, which keeps everything below; or one word of ``images.FailureStatus``."""
    error: str = ""
    """One line for people."""
    width: int | None = None
    """Of the upright photograph, pixels."""
    height: int | None = None
    labels: tuple[str, ...] = ()
    """The k most probable classes, best first."""
    probs: tuple[float, ...] = ()
    """Their probabilities."""
    box: Box | None = None
    """Object box, xyxy pixels of the upright photograph, end-exclusive; None from a model without boxes."""
    parts: tuple[Box, ...] = ()
    """Part boxes, as ``box``, the most attended first; none from a model without parts, or where a cascade
    stopped before them."""

    @property
    def labels_there(self) -> tuple[str, ...]:
        """Of a multi-label model: the labels more probable than not, among the k."""
        return tuple(name for name, prob in zip(self.labels, self.probs, strict=True) if prob > TOLD_ABOVE)

    @property
    def ok(self) -> bool:
        """Whether there is a prediction."""
        return self.status in (OK, UNSURE)


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a sink may store once for a whole run; equal for runs whose rows are equal."""

    model: str
    weights_sha256: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    top_k: int
    """k: predictions per row, at most the number of classes."""
    parts: int = 0
    """P: part boxes per row; 0 for a model without parts."""
    extras: tuple[Extra, ...] = ()
    """What each row carries beside its prediction."""
    settings: dict[str, Any] = field(default_factory=dict)
    """All else that changes a row, as plain JSON values: looks, cascade, min_prob, precision, decoding."""

    @property
    def multi_label(self) -> bool:
        """Whether each probability stands alone, and tables have a column ``labels``."""
        return bool(self.settings.get("multi_label", False))


@dataclass(slots=True)
class Block:
    """Consecutive rows in columns. A row without a prediction holds 0 in ``size``, -1 in ``topk_index``, NaN
    elsewhere; so does a value that the model does not give."""

    first: int
    """Number of its first row in the run, from 0."""
    path: list[str]
    status: list[str]
    error: list[str]
    size: np.ndarray
    """int32 (n, 2): width, height of the upright photograph."""
    topk_index: np.ndarray
    """int32 (n, k)."""
    topk_prob: np.ndarray
    """float32 (n, k)."""
    box: np.ndarray
    """float32 (n, 4)."""
    parts: np.ndarray
    """float32 (n, P, 4)."""
    attention: np.ndarray | None = None
    """float16 (n, h, w) in [0, 1] over the model's input, where asked for."""
    crop: list[bytes] | None = None
    """The object cut from the photograph as JPEG, empty without one; where asked for."""
    embedding: np.ndarray | None = None
    """float32 (n, D), where asked for."""
    logits: np.ndarray | None = None
    """float32 (n, K): log of the fused probabilities, where asked for."""

    def __len__(self) -> int:
        return len(self.path)

    def rows(self, info: RunInfo) -> Iterator[Row]:
        """The rows as objects."""
        for i, path in enumerate(self.path):
            if self.topk_index[i, 0] < 0:
                yield Row(path, self.status[i], self.error[i])
                continue
            parts = (part for part in self.parts[i].tolist() if not np.isnan(part[0]))
            x1, y1, x2, y2 = self.box[i].tolist()
            yield Row(
                path=path,
                status=self.status[i],
                error=self.error[i],
                width=int(self.size[i, 0]),
                height=int(self.size[i, 1]),
                labels=tuple(info.classes[index] for index in self.topk_index[i]),
                probs=tuple(self.topk_prob[i].tolist()),
                box=None if np.isnan(x1) else (x1, y1, x2, y2),
                parts=tuple((a, b, c, d) for a, b, c, d in parts),
            )
