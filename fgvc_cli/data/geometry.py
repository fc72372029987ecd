"""Where the model's input lies in an image, and what is cut of it. No torch, no pydantic: decoding workers
import this; listings of data sets do too, so Pillow comes with the first image.

Legend: S side of the input, B images, P parts.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2; ends exclusive."""


CROP_PX = 224
"""Longest side of a stored crop."""

JPEG_QUALITY = 90

SURROUNDINGS = 0.35
"""Share of an object's longer side that its surroundings reach beyond it, on every side."""


class ResizeRule(Protocol):
    """What of ``config.Preprocess`` decides the geometry."""

    @property
    def input_px(self) -> int: ...
    @property
    def resize_px(self) -> int: ...
    @property
    def resize_rule(self) -> Literal["squash", "shorter"]: ...


@dataclass(frozen=True)
class Geometry:
    """Where the model's input lies in an image: input = photo * scale - offset, per axis."""

    width: int
    height: int
    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float

    def to_photo(self, box: Sequence[float]) -> Box:
        """An xyxy box of input pixels in pixels of the upright image, clipped to it."""
        x1, y1, x2, y2 = box

        def back(value: float, offset: float, scale: float, limit: int) -> float:
            return min(max((value + offset) / scale, 0.0), float(limit))

        return (
            back(x1, self.offset_x, self.scale_x, self.width),
            back(y1, self.offset_y, self.scale_y, self.height),
            back(x2, self.offset_x, self.scale_x, self.width),
            back(y2, self.offset_y, self.scale_y, self.height),
        )


def resized_size(width: int, height: int, preprocess: ResizeRule) -> tuple[int, int]:
    """(width, height) in pixels after the resize rule."""
    side = preprocess.resize_px
    if preprocess.resize_rule == "squash":
        return side, side
    factor = side / min(width, height)
    return max(side, round(width * factor)), max(side, round(height * factor))


def input_geometry(width: int, height: int, preprocess: ResizeRule) -> Geometry:
    """The geometry of the evaluation transform for an image of this size."""
    new_width, new_height = resized_size(width, height, preprocess)
    return Geometry(
        width,
        height,
        new_width / width,
        new_height / height,
        (new_width - preprocess.input_px) // 2,
        (new_height - preprocess.input_px) // 2,
    )


def boxes_in_image(boxes: np.ndarray, sizes: Sequence[tuple[int, int]], preprocess: ResizeRule) -> np.ndarray:
    """Boxes (B, 4) or (B, P, 4) in input pixels -> in those of images of these (width, height), clipped;
    float32; as ``Geometry.to_photo``, for all at once."""
    all_geometry = [input_geometry(width, height, preprocess) for width, height in sizes]
    numbers = np.array(
        [(g.offset_x, g.offset_y, g.scale_x, g.scale_y, g.width, g.height) for g in all_geometry], np.float64
    ).reshape(len(sizes), *[1] * (boxes.ndim - 2), 3, 2)
    offset, scale, limit = (np.concatenate([numbers[..., i, :]] * 2, axis=-1) for i in range(3))
    return np.clip((boxes.astype(np.float64) + offset) / scale, 0, limit).astype(np.float32)


def cut_input(
    image: Image.Image,
    preprocess: ResizeRule,
    full_size: tuple[int, int] | None = None,
    corner: tuple[int, int] | None = None,
) -> Image.Image:
    """Resize by the rule and cut the centre: upright RGB image -> the model's input, S x S.

    Args:
        full_size: (width, height) of the image where ``image`` is a copy of it at another scale; the
            input then shows what it would show of the image itself.
        corner: (left, top) of the cut in the resized image, pixels, where it is not the centre.
    """
    width, height = full_size or image.size
    geometry = input_geometry(width, height, preprocess)
    side = preprocess.input_px
    left, top = corner or (int(geometry.offset_x), int(geometry.offset_y))
    # Resizing just the part that is kept equals resize-then-crop, and never builds a huge strip for a
    # panorama.
    x1, y1, x2, y2 = (
        left / geometry.scale_x,
        top / geometry.scale_y,
        min((left + side) / geometry.scale_x, width),
        min((top + side) / geometry.scale_y, height),
    )
    if image.size != (width, height):
        across, down = image.width / width, image.height / height
        x1, y1, x2, y2 = x1 * across, y1 * down, min(x2 * across, image.width), min(y2 * down, image.height)
    from PIL import Image  # listing a set needs boxes of this module, and no picture

    return image.resize((side, side), Image.Resampling.BILINEAR, box=(x1, y1, x2, y2))


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
    from PIL import Image

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
