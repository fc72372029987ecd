"""Where the model's input lies in an image. No torch, no pydantic: decoding workers import this; listings of
data sets do too, so Pillow comes with the first image.

Legend: S side of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from PIL import Image

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2; ends exclusive."""


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
