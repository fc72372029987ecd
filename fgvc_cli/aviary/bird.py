"""One bird of the Aviary: what a species may wear, in words and outlines, and how each part is painted.

Outlines are (N, 2) polygons in the frame of the bird or of its head: facing right, x right, y down, one unit
about the length of its trunk. Every outline but those of a species' own parts is shared by all. A ``Pose``
carries that frame into pixels of a square picture, S a side; a shape becomes an antialiased plane of
coverage, on which a ``Painter`` measures every part exactly. Random numbers are drawn only by ``sample_pose``
and ``sample_look``, and neither knows the species, so two species painted from one random stream differ only
where their parts differ.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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


PARTS: tuple[str, ...] = ("bill", "crown", "eye", "wing_bar", "tail", "breast")


@dataclass(frozen=True)
class Species:
    """A name and, for each of ``PARTS``, how it looks: a key of the table of that part."""

    name: str
    bill: str
    crown: str
    eye: str
    wing_bar: str
    tail: str
    breast: str


_WHITE, _BLACK = (0.97, 0.96, 0.92), (0.11, 0.10, 0.12)

BILLS: dict[str, tuple[str, Colour]] = {  # shape, colour
    "stout orange cone": ("cone", (0.95, 0.55, 0.16)),
    "stout slate cone": ("cone", (0.25, 0.27, 0.32)),
    "fine black needle": ("needle", (0.13, 0.12, 0.13)),
    "hooked yellow bill": ("hook", (0.96, 0.80, 0.25)),
    "long curved red bill": ("curved", (0.82, 0.20, 0.14)),
}
CROWNS: dict[str, tuple[str, Colour]] = {  # pattern, colour (none of its own when plain)
    "plain crown": ("plain", _WHITE),
    "copper cap": ("cap", (0.80, 0.36, 0.12)),
    "black cap": ("cap", _BLACK),
    "scarlet crest": ("crest", (0.84, 0.13, 0.12)),
    "white brow": ("brow", _WHITE),
}
EYES: dict[str, Colour | None] = {  # colour of the ring
    "dark eye": None,
    "white eye ring": _WHITE,
    "red eye ring": (0.86, 0.22, 0.14),
}
WING_BARS: dict[str, tuple[tuple[float, ...], Colour]] = {  # places along the wing, colour
    "one white bar": ((0.50,), _WHITE),
    "two white bars": ((0.32, 0.53), _WHITE),
    "one gold bar": ((0.50,), (0.96, 0.76, 0.16)),
    "one blue bar": ((0.50,), (0.16, 0.42, 0.80)),
}
TAIL_ENDS: dict[str, tuple[float, float]] = {  # reach of the middle and of the outermost feathers
    "square tail": (0.84, 0.80),
    "forked tail": (0.62, 1.04),
    "long pointed tail": (1.14, 0.56),
    "white-tipped tail": (0.84, 0.80),
}
BREASTS: dict[str, tuple[str, Colour]] = {  # pattern, colour (none of its own when plain)
    "plain breast": ("plain", _WHITE),
    "spotted breast": ("spots", (0.20, 0.14, 0.11)),
    "rufous bib": ("bib", (0.80, 0.36, 0.18)),
    "black breast band": ("band", _BLACK),
}
LOOKS: dict[str, tuple[str, ...]] = {  # per part, all it may look like
    "bill": tuple(BILLS),
    "crown": tuple(CROWNS),
    "eye": tuple(EYES),
    "wing_bar": tuple(WING_BARS),
    "tail": tuple(TAIL_ENDS),
    "breast": tuple(BREASTS),
}

# ---------------------------------------------------------------- outlines
# fmt: off

FOOT, NECK, EYE = (0.1, 0.84), (0.34, -0.56), (0.15, -0.03)
# Corners that no species and no part of it exceeds: they size and place every species alike.
BODY_EXTENT = polygon((0.74, -0.1), (0.55, 0.4), (0.3, 0.87), (-0.1, 0.87), (-1.24, 0.98), (-1.42, 0.72))
HEAD_EXTENT = polygon((0.8, 0.25), (0.2, -0.4), (-0.3, -0.64), (-0.5, -0.36))

BODY = curve([
    (0.66, -0.30), (0.72, -0.02), (0.62, 0.30), (0.36, 0.54), (0.02, 0.62), (-0.32, 0.58), (-0.62, 0.50),
    (-0.86, 0.46), (-0.80, 0.32), (-0.56, 0.12), (-0.30, -0.14), (-0.10, -0.40), (0.02, -0.66), (0.34, -0.80),
])
BELLY = curve([
    (0.72, 0.0), (0.5, 0.2), (0.1, 0.34), (-0.4, 0.42), (-0.8, 0.48), (-0.3, 0.75), (0.3, 0.75), (0.7, 0.4),
])
BREAST = curve([
    (0.24, -0.30), (0.50, -0.34), (0.74, -0.30), (0.85, 0.0), (0.70, 0.30), (0.44, 0.44), (0.30, 0.24),
    (0.28, 0.0),
])
BAND = curve([(0.2, -0.06), (0.5, 0.08), (0.9, -0.02), (0.9, 0.14), (0.55, 0.26), (0.2, 0.12)])
HEAD = curve([
    (0.35, 0.03), (0.32, -0.15), (0.19, -0.30), (0.0, -0.36), (-0.20, -0.31), (-0.34, -0.14), (-0.38, 0.10),
    (-0.30, 0.32), (0.0, 0.42), (0.24, 0.33), (0.34, 0.18),
])
CHEEK = curve([(0.30, 0.02), (0.05, 0.02), (-0.16, 0.12), (-0.12, 0.28), (0.08, 0.34), (0.26, 0.22)])
CAP = curve([
    (0.36, -0.10), (0.22, -0.13), (0.02, -0.12), (-0.16, -0.06), (-0.36, 0.10), (-0.50, -0.2), (-0.2, -0.5),
    (0.2, -0.45),
])
BROW = curve([(0.31, -0.15), (0.14, -0.19), (-0.06, -0.17), (-0.33, 0.02), (-0.08, -0.10), (0.14, -0.125)])
CREST = curve([
    (0.20, -0.25), (0.10, -0.42), (-0.08, -0.54), (-0.30, -0.62), (-0.26, -0.53), (-0.44, -0.52),
    (-0.38, -0.42), (-0.50, -0.34), (-0.36, -0.22), (-0.10, -0.2),
])
CREST_LINES = [
    polygon((0.08, -0.24), (0.0, -0.40), (-0.22, -0.565), (-0.02, -0.42)),
    polygon((-0.04, -0.22), (-0.12, -0.36), (-0.36, -0.49), (-0.14, -0.38)),
    polygon((-0.14, -0.20), (-0.22, -0.28), (-0.42, -0.35), (-0.24, -0.30)),
]
BILL_SHAPES: dict[str, tuple[Points, Points, Points]] = {  # upper and lower half, gloss; rooted in the head
    "cone": (
        polygon((0.24, -0.15), (0.38, -0.145), (0.52, -0.08), (0.62, 0.0), (0.66, 0.05), (0.48, 0.03),
                (0.24, 0.02)),
        polygon((0.24, 0.02), (0.48, 0.03), (0.64, 0.045), (0.52, 0.12), (0.38, 0.17), (0.24, 0.17)),
        polygon((0.35, -0.10), (0.49, -0.06), (0.57, -0.01), (0.47, -0.03), (0.35, -0.05)),
    ),
    "needle": (
        polygon((0.24, -0.06), (0.42, -0.05), (0.60, 0.0), (0.76, 0.05), (0.5, 0.03), (0.24, 0.02)),
        polygon((0.24, 0.02), (0.5, 0.03), (0.72, 0.05), (0.5, 0.075), (0.36, 0.09), (0.24, 0.10)),
        polygon((0.36, -0.03), (0.5, -0.01), (0.6, 0.015), (0.48, 0.005), (0.36, -0.005)),
    ),
    "hook": (
        polygon((0.24, -0.14), (0.40, -0.15), (0.55, -0.10), (0.64, 0.0), (0.63, 0.16), (0.58, 0.08),
                (0.46, 0.04), (0.24, 0.03)),
        polygon((0.24, 0.03), (0.44, 0.04), (0.56, 0.08), (0.52, 0.12), (0.38, 0.15), (0.24, 0.15)),
        polygon((0.35, -0.11), (0.48, -0.09), (0.58, -0.02), (0.47, -0.05), (0.35, -0.06)),
    ),
    "curved": (
        polygon((0.24, -0.09), (0.42, -0.08), (0.58, -0.02), (0.72, 0.10), (0.78, 0.24), (0.66, 0.12),
                (0.5, 0.04), (0.24, 0.02)),
        polygon((0.24, 0.02), (0.5, 0.04), (0.66, 0.12), (0.76, 0.23), (0.64, 0.165), (0.48, 0.095),
                (0.24, 0.10)),
        polygon((0.36, -0.05), (0.48, -0.035), (0.62, 0.05), (0.70, 0.13), (0.60, 0.06), (0.46, -0.005),
                (0.36, -0.015)),
    ),
}
_WING_TOP = polygon((0.34, -0.16), (0.08, -0.30), (-0.20, -0.13), (-0.46, 0.10), (-0.72, 0.34), (-1.00, 0.56))
_WING_LOW = polygon((0.38, 0.02), (0.26, 0.26), (0.0, 0.38), (-0.32, 0.46), (-0.66, 0.52), (-1.00, 0.58))
# fmt: on
_WING_FITS = [np.polyfit(np.linspace(0, 1, 6), edge, 4) for edge in (_WING_TOP, _WING_LOW)]


def _wing(along: Sequence[float], across: Sequence[float]) -> Points:
    """Wing coordinates (0 shoulder to 1 tip, 0 upper to 1 lower edge) in the bird's frame."""
    powers = np.asarray(along)[:, None] ** np.arange(4, -1, -1)
    top, low = (powers @ fit for fit in _WING_FITS)
    return np.asarray(top + np.asarray(across)[:, None] * (low - top))


def wing_bar_at(place: float) -> Points:
    """A bar across the wing at ``place`` along it, scalloped like the feather tips it colours."""
    s = np.linspace(0.06, 0.94, 31)
    scallop = 0.035 * np.abs(np.sin(np.linspace(0, 5 * np.pi, 31)))
    return _wing([*np.full(31, place - 0.04), *(place + 0.02 + scallop)[::-1]], [*s, *s[::-1]])


def tail_feather(start: float, end: float, across: float, half: float) -> Points:
    """A feather of the tail: 0 root to about 1 end, ``across`` from -1 upper to 1 lower edge."""
    u = np.array([start, start, end - 0.1, end - 0.03, end, end - 0.03, end - 0.1])
    v = across + half * np.array([1, -1, -1, -0.7, 0, 0.7, 1])
    wide = v * (0.085 + 0.075 * u)
    return np.stack([-0.62 - 0.66 * u + 0.5 * wide, 0.40 + 0.36 * u + 0.87 * wide], 1)


def _wing_feathers() -> tuple[list[Points], list[float]]:
    """Shapes and tones of the wing's feathers, tip first, so that each row overlaps the one below."""
    shapes, tones = [_wing([*np.linspace(0, 1, 12), *np.linspace(1, 0, 12)], [0] * 12 + [1] * 12)], [0.5]
    count = 8
    for i in range(count):  # flight feathers, from the lowest up; each a pale fringe around a dark vane
        s1, s0 = 1 - i / count, 1 - (i + 1.25) / count
        end = 0.80 + 0.20 * (1 - abs(2 * (i + 0.5) / count - 0.6))
        for inset, tone in ((0.0, 0.86), (0.22, 0.40 + 0.03 * i)):
            g = inset / count
            along = [0.38, end - 0.06, end - g, end - 0.06, 0.38]
            shapes.append(_wing(along, [s1 - g, s1 - g, (s0 + s1) / 2, s0, s0]))
            tones.append(tone)
    for row, (start, end, count) in enumerate(((0.30, 0.54, 6), (0.16, 0.36, 6), (0.02, 0.20, 5))):  # coverts
        for i in range(count):
            s0, s1 = i / count, (i + 1) / count
            for inset, tone in ((0.0, 0.84), (0.18, 0.50 + 0.06 * row)):
                g, e = inset / count, end - 0.14 * inset
                along = [start, (start + e) / 2, e - 0.03, e, e - 0.03, (start + e) / 2, start]
                shapes.append(curve(_wing(along, [s0 + g] * 3 + [(s0 + s1) / 2] + [s1 - g] * 3), 4))
                tones.append(tone)
    return shapes, tones


WING = curve(_wing([*np.linspace(0, 0.97, 8), *np.linspace(0.97, 0, 8)], [0] * 8 + [1] * 8), 3)
WING_FEATHERS = _wing_feathers()
# Points in a part on every species; those of bill, crown and eye in the head's frame, the rest in the bird's.
# fmt: off
LANDMARKS: dict[str, Points] = {
    "bill": polygon((0.38, -0.05), (0.38, 0.02), (0.38, 0.07), (0.46, 0.0), (0.46, 0.05), (0.53, 0.03),
                    (0.58, 0.03), (0.62, 0.05)),
    "crown": polygon((0.28, -0.17), (0.16, -0.22), (0.1, -0.30), (0.0, -0.2), (-0.1, -0.28), (-0.18, -0.16),
                     (-0.27, -0.1), (-0.3, -0.02)),
    "eye": disc(*EYE, 0.06, corners=8),
    "wing_bar": _wing([0.48, 0.54] * 4, np.repeat([0.14, 0.38, 0.62, 0.86], 2).tolist()),
    "tail": polygon((-0.86, 0.50), (-0.80, 0.56), (-0.98, 0.54), (-0.92, 0.62), (-1.06, 0.58), (-0.98, 0.66),
                    (-1.1, 0.62), (-1.04, 0.68)),
    "breast": polygon((0.38, -0.2), (0.56, -0.24), (0.42, 0.0), (0.62, -0.04), (0.44, 0.18), (0.64, 0.14),
                      (0.46, 0.34), (0.58, 0.28)),
}
# fmt: on


# ---------------------------------------------------------------- pose and look


@dataclass(frozen=True)
class Pose:
    """Where and how the bird stands: pixels per unit, the feet in pixels, angles in radians."""

    scale_px: float
    foot_px: tuple[float, float]
    facing: int
    tilt: float
    head_tilt: float
    looks_back: bool
    bill_turn: float

    def body(self, points: Points) -> Points:
        """Points of the bird's frame, in pixels."""
        c, s = math.cos(self.tilt), math.sin(self.tilt)
        x, y = points[:, 0] - FOOT[0], points[:, 1] - FOOT[1]
        turned = np.stack([self.facing * (c * x - s * y), s * x + c * y], 1)
        return np.asarray(turned * self.scale_px + self.foot_px)

    def head(self, points: Points) -> Points:
        """Points of the head's frame (origin at its centre), in pixels."""
        c, s = math.cos(self.head_tilt), math.sin(self.head_tilt)
        x, y = c * points[:, 0] - s * points[:, 1], s * points[:, 0] + c * points[:, 1]
        if self.looks_back:
            x = -x - 0.07
        return self.body(np.stack([x + NECK[0], y + NECK[1]], 1))


def sample_pose(rng: np.random.Generator, size_px: int) -> Pose:
    """A pose whose bird, whatever its species, spans 27 to 75 % of the side and lies in the picture."""
    share, place = 0.32 + 0.44 * rng.uniform() ** 0.7, rng.uniform(size=2)
    facing = 1 if rng.uniform() < 0.5 else -1
    tilt, head_tilt = (float(np.radians(rng.uniform(-16, high))) for high in (20, 16))
    looks_back, bill_turn = bool(rng.uniform() < 0.15), float(rng.uniform(0.84, 1.0))
    pose = Pose(1.0, (0.0, 0.0), facing, tilt, head_tilt, looks_back, bill_turn)
    corners = np.concatenate([pose.body(BODY_EXTENT), pose.head(HEAD_EXTENT)])
    low, high = corners.min(0), corners.max(0)
    scale = share * size_px / float((high - low).max())
    first, last = 0.02 * size_px - low * scale, 0.98 * size_px - high * scale
    foot = first + (last - first) * place
    return replace(pose, scale_px=scale, foot_px=(float(foot[0]), float(foot[1])))


@dataclass(frozen=True)
class Look:
    """What varies from bird to bird within any species."""

    base: Colour
    light: Light
    strokes: NDArray[np.float64]  # (N, 4): x, y, turn, tone of the plumage's brush strokes, each -1 to 1
    jitter: NDArray[np.float64]  # (24, 2): where the spots of the breast sit, each -1 to 1


def sample_look(rng: np.random.Generator) -> Look:
    """A muted body colour, so that the parts stand out, and light from above, left or right."""
    hue = rng.choice([0.05, 0.08, 0.11, 0.17, 0.24, 0.36, 0.52, 0.58, 0.62, 0.92]) + rng.uniform(-0.02, 0.02)
    base = colorsys.hsv_to_rgb(float(hue) % 1, float(rng.uniform(0.14, 0.42)), float(rng.uniform(0.54, 0.74)))
    light = (float(rng.uniform(-0.75, 0.75)), -0.8, 0.75)
    return Look(base, light, rng.uniform(-1, 1, (480, 4)), rng.uniform(-1, 1, (24, 2)))


def locate_landmarks(pose: Pose) -> Points:
    """Eight points within each of ``PARTS`` as every species carries it, in pixels: (6, 8, 2)."""
    frames = {"bill": pose.head, "crown": pose.head, "eye": pose.head}
    return np.stack([frames.get(part, pose.body)(LANDMARKS[part]) for part in PARTS])


# ---------------------------------------------------------------- the bird


@dataclass
class Painter:
    """One bird under the brush; after ``draw_bird``, the coverage of the bird and of each part in view.

    A part stops where the bird itself hides it (the tail under the wing), not where a leaf does.
    """

    canvas: Canvas
    pose: Pose
    look: Look
    bird: Plane
    parts: dict[str, Plane]
    light: Plane  # a factor on the colours painted next
    down: Plane  # the same, of the plumage's strokes

    def cover(self, *shapes: Points, tones: Sequence[float] | None = None) -> Plane:
        """Coverage of shapes of the bird's frame."""
        return cover(len(self.bird), _carry(self.pose.body, shapes), tones)

    def cover_head(self, *shapes: Points) -> Plane:
        """Coverage of shapes of the head's frame."""
        return cover(len(self.bird), _carry(self.pose.head, shapes))

    def soften(self, alpha: Plane, radius: float) -> Plane:
        """Blur by a radius in the bird's unit."""
        return blur(alpha, radius * self.pose.scale_px)

    def lay(self, alpha: Plane, colour: Colour, shade: Plane | float = 1.0) -> None:
        """Paint ``colour`` in the light that falls on the bird."""
        lay(self.canvas, alpha, colour, self.light * shade)

    def own(self, alpha: Plane, part: str | None = None) -> Plane:
        """Count ``alpha`` as bird, and as ``part`` where one is named."""
        np.maximum(self.bird, alpha, out=self.bird)
        if part is not None:
            self.parts[part] = alpha
        return alpha

    def round_off(self, alpha: Plane, radius: float, strength: float = 1.0) -> None:
        """Let the light fall on ``alpha`` as on a rounded shape, its edge ``radius`` units deep."""
        lit = cushion(alpha, radius * self.pose.scale_px, self.look.light, strength)
        self.light += alpha * (lit - self.light)


def _carry(frame: Callable[[Points], Points], shapes: Sequence[Points]) -> list[Points]:
    """Shapes in another frame, carried there in one go."""
    stops = np.cumsum([len(shape) for shape in shapes])
    points = frame(np.concatenate(shapes))
    return [points[stop - len(shape) : stop] for shape, stop in zip(shapes, stops.tolist(), strict=True)]


def draw_bird(canvas: Canvas, species: Species, pose: Pose, look: Look) -> Painter:
    """Paint a bird on ``canvas`` in place; the painter returned holds the coverage of bird and parts."""
    size_px = len(canvas)
    blank = np.zeros((size_px, size_px), np.float32)
    painter = Painter(canvas, pose, look, blank.copy(), {}, blank + 1, _plumage(size_px, pose, look))
    dark, pale = mix(look.base, (0, 0, 0), 0.4), mix(look.base, (0.97, 0.93, 0.86), 0.62)
    body, head, wing = painter.cover(BODY), painter.cover_head(HEAD), painter.cover(WING)
    trunk = np.maximum(body, head)
    _draw_tail(painter, species.tail, dark, np.maximum(trunk, wing))
    _draw_legs(painter)
    painter.round_off(painter.own(trunk), 0.18)
    painter.lay(trunk, look.base, painter.down)
    painter.lay(painter.soften(painter.cover(BELLY), 0.07) * body, pale, painter.down)
    _draw_breast(painter, species.breast, body * (1 - head) * (1 - wing), pale)
    # The head's ball melts into the neck: its edge fades where the body lies behind it.
    melted = head * np.clip(1.35 - painter.soften(body, 0.06), 0.35, 1)
    painter.light += melted * (cushion(head, 0.13 * pose.scale_px, look.light) - painter.light)
    painter.lay(head * np.maximum(melted, 0.8), look.base, painter.down)
    _draw_wing(painter, species.wing_bar, mix(dark, look.base, 0.35), wing, body)
    _draw_bill(painter, species.bill, head)
    painter.lay(0.6 * painter.soften(painter.cover_head(CHEEK), 0.04) * head, pale, painter.down)
    _draw_crown(painter, species.crown, head, mix(look.base, dark, 0.4))
    _draw_eye(painter, species.eye)
    return painter


def _plumage(size_px: int, pose: Pose, look: Look) -> Plane:
    """Brush strokes along the trunk, as a factor about 1."""
    x, y = 0.95 * look.strokes[:, 0] - 0.05, 0.8 * look.strokes[:, 1] - 0.12
    turn = math.radians(142) + 0.3 * look.strokes[:, 2] - 0.5 * y
    along, across = np.stack([np.cos(turn), np.sin(turn)], 1), np.stack([-np.sin(turn), np.cos(turn)], 1)
    start = np.stack([x, y], 1)
    middle, side = start + 0.05 * along, 0.011 * across
    ends = np.stack([start, middle + side, start + 0.13 * along, middle - side], 1)
    frame = pose.body(polygon((-1.2, -1.4), (1.2, -1.4), (1.2, 1), (-1.2, 1)))
    shapes = [frame, *pose.body(ends.reshape(-1, 2)).reshape(-1, 4, 2)]
    tones = [0.5, *(0.5 + 0.5 * look.strokes[:, 3])]
    return 0.86 + 0.28 * cover(size_px, shapes, tones)


def _draw_tail(painter: Painter, tail: str, dark: Colour, before: Plane) -> None:
    middle, outer = TAIL_ENDS[tail]
    shapes, tones, tips = [], [], []
    for v in (-0.8, 0.8, -0.5, 0.5, -0.18, 0.18):
        end = middle + (outer - middle) * (abs(v) - 0.18) / 0.62
        for half, tone in ((0.25, 0.25), (0.19, 0.62 + 0.2 * (v < 0))):
            shapes.append(tail_feather(0, end, v, half))
            tones.append(tone)
        tips.append(tail_feather(end - 0.2, end, v, 0.26))
    alpha = painter.cover(*shapes)
    painter.own(alpha * (1 - before), "tail")
    lines = painter.cover(*shapes, tones=tones)
    painter.lay(alpha, dark, 0.45 + 0.9 * lines)
    if tail == "white-tipped tail":
        painter.lay(painter.cover(*tips) * alpha, (0.97, 0.96, 0.92), 0.75 + 0.35 * lines)


def _draw_legs(painter: Painter) -> None:
    legs, toes = [], []
    for hip, foot in ((0.0, 0.03), (0.17, 0.19)):
        thigh = ((hip - 0.03, 0.52), (hip + 0.03, 0.52))
        legs.append(polygon(*thigh, (foot + 0.013, 0.83), (foot - 0.013, 0.83)))
        toes += [disc(foot + x, y, 0.045, 0.018) for x, y in ((-0.05, 0.835), (0.045, 0.835), (0.08, 0.847))]
    painter.lay(painter.own(painter.cover(*legs, *toes)), (0.45, 0.33, 0.28))


def _draw_breast(painter: Painter, breast: str, clip: Plane, pale: Colour) -> None:
    pattern, colour = BREASTS[breast]
    patch = painter.own(painter.cover(BREAST) * clip, "breast")
    ground = colour if pattern == "bib" else mix(pale, (1.0, 0.98, 0.94), 0.35)
    painter.lay(np.minimum(1, 1.6 * painter.soften(patch, 0.03)) * patch, ground, painter.down)
    if pattern == "band":
        painter.lay(painter.cover(BAND) * patch, colour, painter.down)
    if pattern == "spots":
        rows = [(0.36 + 0.105 * i + 0.05 * (j % 2), -0.2 + 0.115 * j) for j in range(6) for i in range(4)]
        spots = [
            disc(x + 0.018 * dx, y + 0.018 * dy, 0.026, 0.034 + 0.006 * dx, 12)
            for (x, y), (dx, dy) in zip(rows, painter.look.jitter.tolist(), strict=True)
        ]
        painter.lay(painter.cover(*spots) * patch, colour)


def _draw_bill(painter: Painter, bill: str, head: Plane) -> None:
    shape, colour = BILLS[bill]
    turn = np.array([painter.pose.bill_turn, 1.0])
    upper, lower, gloss = (curve(points, 4) * turn for points in BILL_SHAPES[shape])
    alpha = painter.own(painter.cover_head(upper, lower) * (1 - head), "bill")
    painter.lay(alpha, mix(colour, (0, 0, 0), 0.35))
    painter.lay(painter.cover_head(upper) * (1 - head), colour)
    painter.lay(0.45 * painter.cover_head(gloss) * (1 - head), mix(colour, (1, 1, 1), 0.7))


def _draw_wing(painter: Painter, wing_bar: str, colour: Colour, wing: Plane, body: Plane) -> None:
    cast = np.roll(painter.soften(wing, 0.05), max(1, round(0.05 * painter.pose.scale_px)), 0)
    lay(painter.canvas, 0.35 * cast * body, (0, 0, 0))
    painter.round_off(painter.own(wing), 0.12, 0.7)
    feathers, shades = WING_FEATHERS
    tones = painter.cover(*feathers, tones=shades)
    painter.lay(wing, colour, 0.45 + 0.95 * tones)
    places, bar_colour = WING_BARS[wing_bar]
    bars = painter.cover(*(wing_bar_at(place) for place in places)) * wing
    painter.lay(painter.own(bars, "wing_bar"), bar_colour, 0.72 + 0.4 * tones)


def _draw_crown(painter: Painter, crown: str, head: Plane, plain: Colour) -> None:
    pattern, colour = CROWNS[crown]
    alpha = painter.cover_head(CAP) * head
    if pattern == "crest":
        alpha = np.maximum(alpha, painter.cover_head(CREST))
    painter.own(alpha, "crown")
    painter.lay(alpha, colour if pattern in ("cap", "crest") else plain, painter.down)
    if pattern == "crest":
        painter.lay(0.35 * painter.cover_head(*CREST_LINES), mix(colour, (0, 0, 0), 0.5))
    if pattern == "brow":
        painter.lay(painter.cover_head(BROW) * alpha, colour, painter.down)


def _draw_eye(painter: Painter, eye: str) -> None:
    ring, ball = EYES[eye], painter.cover_head(disc(*EYE, 0.064))
    alpha = ball if ring is None else painter.cover_head(disc(*EYE, 0.108))
    painter.own(alpha, "eye")
    if ring is not None:
        painter.lay(alpha, ring)
    lay(painter.canvas, ball, (0.06, 0.05, 0.06))
    glint = painter.cover_head(disc(EYE[0] + 0.02, EYE[1] - 0.024, 0.019))
    lay(painter.canvas, glint, (1.0, 1.0, 1.0))
