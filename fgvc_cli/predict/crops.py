"""The object cut from its image, small enough to store a million of. No torch here."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from PIL import Image

CROP_PX = 224
"""Longest side of a stored crop."""

JPEG_QUALITY = 90

SURROUNDINGS = 0.35
"""Share of an object's longer side that its surroundings reach beyond it, on every side."""


def cut_crop(image: Image.Image, box: Sequence[float], full_size: tuple[int, int] | None = None) -> bytes:
    """The box of an image as JPEG, its longer side at most ``CROP_PX``, never enlarged.

    Args:
        image: upright, RGB.
        box: xyxy pixels of the image, end-exclusive; whole pixels that it touches are cut.
        full_size: (width, height) of the image where ``image`` is a smaller copy of it.
    """
    width, height = full_size or image.size
    across, down = image.width / width, image.height / height
    left, top = (
        min(math.floor(box[0] * across), image.width - 1),
        min(math.floor(box[1] * down), image.height - 1),
    )
    right = max(left + 1, min(math.ceil(box[2] * across), image.width))
    bottom = max(top + 1, min(math.ceil(box[3] * down), image.height))
    factor = min(1.0, CROP_PX / max(right - left, bottom - top))
    size = max(1, round((right - left) * factor)), max(1, round((bottom - top) * factor))
    crop = image.resize(size, Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    stream = io.BytesIO()
    crop.save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def surroundings(box: Sequence[float] | None, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The square about an object with some room round it, as far as the image reaches.

    A model's box may miss a tail or a bill; what is to be compared by eye must not.

    Args:
        box: xyxy pixels of the image; None, the whole image.
        size: its (width, height).
    """
    if box is None:
        return 0.0, 0.0, float(size[0]), float(size[1])
    side = (1 + 2 * SURROUNDINGS) * max(box[2] - box[0], box[3] - box[1], 1.0)
    x1, x2 = _about((box[0] + box[2]) / 2, side, size[0])
    y1, y2 = _about((box[1] + box[3]) / 2, side, size[1])
    return x1, y1, x2, y2


def _about(middle: float, length: float, limit: int) -> tuple[float, float]:
    """An interval inside [0, limit], moved from its middle where it would reach out of it."""
    length = min(length, limit)
    start = min(max(middle - length / 2, 0.0), limit - length)
    return start, start + length
