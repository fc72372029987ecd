"""One row per image, and what all rows of a run share."""

from __future__ import annotations

from dataclasses import dataclass

from fgvc_cli.config import Preprocess
from fgvc_cli.data.images import OK

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Row:
    """The answer for one image: a prediction, or why there is none."""

    path: str
    """The name of the image, with forward slashes."""
    status: str = OK
    """``ok``, or one word of ``images.FailureStatus``; then everything below is empty."""
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
    def ok(self) -> bool:
        """Whether there is a prediction."""
        return self.status == OK


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a sink may store once for a whole run."""

    model: str
    weights_sha256: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    top_k: int
    """k: predictions per row, at most the number of classes."""
    parts: int = 0
    """P: part boxes per row; 0 for a model without parts."""
