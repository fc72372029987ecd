"""The panels of an explanation: the photograph with its box, and one map laid over the part it covers."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from fgvc_cli.explain.colormap import apply_colormap
from fgvc_cli.explain.explanation import Box, Explanation

BOX_LINE = (0, 229, 255)
"""Cyan: rare in photographs, and opposite to every colour of the map."""
BOX_EDGE = (6, 20, 38)
MAP_OPACITY = 0.72
"""How much of a map's colour covers the grey photograph beneath."""
UNSEEN_VEIL = 0.62
"""How far the part of the photograph that the model did not see fades to white."""

_BLOCKY_ZOOM = 8
"""Photographs enlarged more than this keep their square pixels, which says that there is no detail."""


def fit(photo: tuple[int, int], slot: tuple[int, int]) -> tuple[int, int]:
    """The largest (width, height) with the photograph's aspect that fits a slot; at least one pixel."""
    scale = min(slot[0] / photo[0], slot[1] / photo[1])
    return max(1, round(photo[0] * scale)), max(1, round(photo[1] * scale))


def draw_photo(explanation: Explanation, size: tuple[int, int]) -> Image.Image:
    """The photograph, resized to ``size``, with its object box."""
    panel = _resized(explanation.image, size)
    if explanation.box is not None:
        draw_box(panel, _scaled(explanation.box, explanation.image.size, size))
    return panel


def draw_map(explanation: Explanation, name: str, size: tuple[int, int], box: bool = False) -> Image.Image:
    """One map over the grey photograph, exactly where the model's input lies; what it did not see is faded.

    Raises:
        KeyError: a map that the explanation lacks.
    """
    grey = _resized(explanation.image, size).convert("L").convert("RGB")
    white = Image.new("RGB", size, "white")
    panel = Image.blend(grey, white, UNSEEN_VEIL)
    x1, y1, x2, y2 = whole_pixels(_scaled(explanation.region, explanation.image.size, size), size)
    values = np.nan_to_num(np.asarray(explanation.maps[name], np.float32))
    # A cell is an area, as a pixel is: resizing the map like an image puts each over the pixels it came from.
    smooth = Image.fromarray(values).resize((x2 - x1, y2 - y1), Image.Resampling.BICUBIC)
    colors = Image.fromarray(apply_colormap(np.asarray(smooth)))
    seen = ImageOps.autocontrast(grey.crop((x1, y1, x2, y2)), cutoff=1)
    panel.paste(Image.blend(seen, colors, MAP_OPACITY), (x1, y1))
    if box and explanation.box is not None:
        draw_box(panel, _scaled(explanation.box, explanation.image.size, size))
    return panel


def draw_box(panel: Image.Image, box: Box) -> None:
    """A bright line with dark edges, inside the box, so that it stands out on any photograph."""
    thickness = max(3.0, math.sqrt(panel.width * panel.height) / 150)
    line = max(1, round(min(thickness, min(panel.size) / 12)))
    edge = max(1, line // 3)
    x1, y1, x2, y2 = whole_pixels(box, panel.size)
    draw = ImageDraw.Draw(panel)

    def ring(inset: int, width: int, color: tuple[int, int, int]) -> None:
        # Pillow's rectangle includes its last pixel; a box ends before it.
        corners = (x1 + inset, y1 + inset, x2 - 1 - inset, y2 - 1 - inset)
        if corners[0] <= corners[2] and corners[1] <= corners[3]:
            draw.rectangle(corners, outline=color, width=width)

    ring(0, line + 2 * edge, BOX_EDGE)
    ring(edge, line, BOX_LINE)


def whole_pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """An xyxy box rounded to the panel's pixels, inside it and never empty."""
    x1, x2 = _whole(box[0], box[2], size[0])
    y1, y2 = _whole(box[1], box[3], size[1])
    return x1, y1, x2, y2


def _whole(low: float, high: float, limit: int) -> tuple[int, int]:
    start = min(max(round(low), 0), limit - 1)
    return start, min(max(round(high), start + 1), limit)


def _scaled(box: Box, photo: tuple[int, int], size: tuple[int, int]) -> Box:
    x, y = size[0] / photo[0], size[1] / photo[1]
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    blocky = size[0] > _BLOCKY_ZOOM * image.width
    how = Image.Resampling.NEAREST if blocky else Image.Resampling.LANCZOS
    return image.resize(size, how, reducing_gap=3.0)
