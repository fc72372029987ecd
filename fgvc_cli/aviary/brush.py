"""The Aviary's brush: outlines, their coverage in pixels, and paint with light on it.

Pictures are square, S pixels a side. Outlines are exact; a shape becomes an antialiased plane of coverage,
and everything known about the picture later (boxes, masks) is measured on such planes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points = NDArray[np.float64]  # (N, 2) xy
Plane = NDArray[np.float32]  # (S, S), one value a pixel
Canvas = NDArray[np.float32]  # (S, S, 3) RGB, 0 to 1
Colour = tuple[float, float, float]  # RGB, 0 to 1
Light = tuple[float, float, float]  # towards the light: x right, y down, z at the viewer

_SUPERSAMPLE = 4

# ---------------------------------------------------------------- outlines


def polygon(*points: tuple[float, float]) -> Points:
    """The corners given, as (N, 2)."""
    return np.asarray(points, dtype=np.float64)


def curve(points: Sequence[tuple[float, float]] | Points, steps: int = 6) -> Points:
    """The closed Catmull-Rom curve through ``points``: (N, 2) to (N * steps, 2)."""
    p1 = np.asarray(points, dtype=np.float64)
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = (np.arange(steps) / steps)[None, :, None]
    p0, p1, p2, p3 = (p[:, None] for p in (p0, p1, p2, p3))
    bent = p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    return np.asarray(bent.reshape(-1, 2))


def disc(x: float, y: float, rx: float, ry: float | None = None, corners: int = 20) -> Points:
    """An ellipse around (x, y) as a (corners, 2) polygon."""
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([x + rx * np.cos(turn), y + (rx if ry is None else ry) * np.sin(turn)], 1)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """``a`` moved by ``share`` towards ``b``."""
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1]), a[2] + share * (b[2] - a[2])


# ---------------------------------------------------------------- planes


def cover(size_px: int, shapes: Sequence[Points], tones: Sequence[float] | None = None) -> Plane:
    """Antialiased coverage (S, S), 0 to 1, of polygons given in pixels, later ones over earlier ones.

    ``tones`` gives each polygon a value other than 1.
    """
    plane = np.zeros((size_px, size_px), np.float32)
    corners = np.concatenate(shapes)
    x1, y1 = np.clip(np.floor(corners.min(0)), 0, size_px).astype(int).tolist()
    x2, y2 = np.clip(np.ceil(corners.max(0)), 0, size_px).astype(int).tolist()
    if x2 <= x1 or y2 <= y1:
        return plane
    tile = Image.new("L", ((x2 - x1) * _SUPERSAMPLE, (y2 - y1) * _SUPERSAMPLE))
    pen = ImageDraw.Draw(tile)
    flat, start = ((corners - (x1, y1)) * _SUPERSAMPLE - 0.5).ravel().tolist(), 0
    for index, shape in enumerate(shapes):
        stop = start + 2 * len(shape)
        pen.polygon(flat[start:stop], fill=255 if tones is None else round(255 * tones[index]))
        start = stop
    # The box filter is exact coverage; LANCZOS would ring at the edges and widen the boxes.
    plane[y1:y2, x1:x2] = np.asarray(tile.reduce(_SUPERSAMPLE))
    return plane * np.float32(1 / 255)


def blur(plane: Plane, radius_px: float) -> Plane:
    """Gaussian-like blur of an (S, S) plane, in floats: Pillow's own is 8-bit and bands under shading."""
    blurred = np.zeros_like(plane)
    window = bounds(plane, margin=int(3 * radius_px) + 2)
    part = plane[window]
    height, width = part.shape
    if not part.size:
        return blurred
    step = max(1.0, radius_px / 1.5)  # the kernel runs on a coarser grid, where it is a few cells wide
    cells = (max(2, round(width / step)), max(2, round(height / step)))
    small = Image.fromarray(part).resize(cells, Image.Resampling.BOX)
    grid = np.pad(np.asarray(small), 1, mode="edge")
    for _ in range(max(1, round(2 * (radius_px / step) ** 2))):  # each pass adds half a cell of variance
        grid[1:-1] = 0.25 * (grid[:-2] + grid[2:]) + 0.5 * grid[1:-1]
        grid[:, 1:-1] = 0.25 * (grid[:, :-2] + grid[:, 2:]) + 0.5 * grid[:, 1:-1]
    fine = Image.fromarray(grid[1:-1, 1:-1]).resize((width, height), Image.Resampling.BICUBIC)
    blurred[window] = np.clip(np.asarray(fine), 0, 1)
    return blurred


def cushion(alpha: Plane, radius_px: float, light: Light, strength: float = 1.0) -> Plane:
    """Light on a rounded shape: its blurred coverage is a height, whose slope meets ``light``; (S, S)."""
    shade = np.ones_like(alpha)
    window = bounds(alpha, margin=1)
    if alpha[window].size:
        down, across = np.gradient(blur(alpha, radius_px)[window])
        slope = np.float32(2.2 * radius_px * strength)
        nx, ny = -across * slope, -down * slope
        norm = np.sqrt((nx * nx + ny * ny + 1) * np.float32(sum(c * c for c in light)))
        shade[window] = 0.52 + 0.72 * np.maximum((nx * light[0] + ny * light[1] + light[2]) / norm, 0)
    return shade


def lay(canvas: Canvas, alpha: Plane, colour: Colour, shade: Plane | None = None) -> None:
    """Blend ``colour``, times ``shade`` where given, over the canvas in place where ``alpha`` covers it."""
    rows, cols = bounds(alpha)
    paint = np.asarray(colour, np.float32)
    if shade is not None:
        paint = paint * shade[rows, cols, None]
    view = canvas[rows, cols]
    view += alpha[rows, cols, None] * (paint - view)


def bounds(plane: Plane, level: float = 0.0, margin: int = 0) -> tuple[slice, slice]:
    """Rows and columns of the tightest box around the pixels above ``level``, ``margin`` wider; or empty."""
    above = plane > level
    rows, cols = np.flatnonzero(above.any(1)), np.flatnonzero(above.any(0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    top, left = max(0, int(rows[0]) - margin), max(0, int(cols[0]) - margin)
    return slice(top, int(rows[-1]) + 1 + margin), slice(left, int(cols[-1]) + 1 + margin)
