"""The object cut from its photograph, small enough to store a million of. No torch here."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from PIL import Image

CROP_PX = 224
"""Longest side of a stored crop."""

JPEG_QUALITY = 90


def cut_crop(image: Image.Image, box: Sequence[float], full_size: tuple[int, int] | None = None) -> bytes:
    """The box of a photograph as JPEG, its longer side at most ``CROP_PX``, never enlarged.

    Args:
        image: upright, RGB.
        box: xyxy pixels of the photograph, end-exclusive; whole pixels that it touches are cut.
        full_size: (width, height) of the photograph where ``image`` is a smaller copy of it.
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
