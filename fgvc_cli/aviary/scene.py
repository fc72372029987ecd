"""The Aviary's surroundings: blurred habitats behind the bird, its perch, and what hangs before it.

Nothing here knows the species. Shapes are placed in shares of the side, or in the bird's own unit where
they touch it, so that one random stream gives one scene at every size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fgvc_cli.aviary.bird import (
    Canvas,
    Colour,
    Light,
    Plane,
    Points,
    Pose,
    blur,
    cover,
    curve,
    cushion,
    disc,
    lay,
    mix,
    polygon,
)

_GRID_PX = 96  # the backdrop is painted this small: it is out of focus anyway


@dataclass(frozen=True)
class Habitat:
    """The colours of a backdrop from top to bottom, of its discs of light, stems and leaves; its perches."""

    top: Colour
    middle: Colour
    bottom: Colour
    discs: tuple[Colour, ...]
    stems: Colour
    leaves: tuple[Colour, ...]
    perches: tuple[str, ...]
    upright: float = 0.5  # how far its stems keep to the vertical


# fmt: off
HABITATS: tuple[Habitat, ...] = (
    Habitat(  # forest
        (0.46, 0.56, 0.36), (0.33, 0.45, 0.28), (0.17, 0.26, 0.17),
        ((0.72, 0.80, 0.46), (0.90, 0.90, 0.62), (0.25, 0.38, 0.22)), (0.20, 0.22, 0.15),
        ((0.36, 0.54, 0.20), (0.50, 0.64, 0.26)), ("branch", "mossy", "post"), 0.9,
    ),
    Habitat(  # open sky
        (0.47, 0.66, 0.86), (0.68, 0.82, 0.92), (0.90, 0.93, 0.93),
        ((1.0, 1.0, 1.0), (0.93, 0.96, 0.99), (0.62, 0.78, 0.92)), (0.50, 0.56, 0.56),
        ((0.42, 0.58, 0.24), (0.58, 0.68, 0.30)), ("branch", "twig", "post"), 0.2,
    ),
    Habitat(  # reeds
        (0.86, 0.85, 0.70), (0.74, 0.70, 0.48), (0.46, 0.47, 0.31),
        ((0.93, 0.88, 0.66), (0.58, 0.62, 0.38), (0.80, 0.70, 0.42)), (0.60, 0.54, 0.32),
        ((0.66, 0.66, 0.32), (0.78, 0.70, 0.40)), ("twig", "post", "branch"), 1.0,
    ),
    Habitat(  # meadow
        (0.72, 0.84, 0.88), (0.64, 0.76, 0.46), (0.36, 0.52, 0.22),
        ((0.93, 0.56, 0.66), (0.98, 0.86, 0.36), (0.96, 0.95, 0.92), (0.66, 0.50, 0.80)), (0.42, 0.58, 0.26),
        ((0.46, 0.64, 0.24), (0.60, 0.72, 0.30)), ("post", "stone", "twig"), 0.9,
    ),
    Habitat(  # snow
        (0.62, 0.70, 0.82), (0.74, 0.80, 0.88), (0.86, 0.88, 0.93),
        ((1.0, 1.0, 1.0), (0.76, 0.24, 0.22), (0.62, 0.70, 0.82)), (0.50, 0.52, 0.58),
        ((0.42, 0.50, 0.40), (0.58, 0.46, 0.34)), ("snowy", "snowy", "stone"), 0.4,
    ),
    Habitat(  # dusk
        (0.40, 0.36, 0.58), (0.90, 0.60, 0.52), (0.38, 0.28, 0.40),
        ((0.99, 0.78, 0.55), (0.96, 0.62, 0.48), (0.62, 0.46, 0.66)), (0.32, 0.24, 0.36),
        ((0.36, 0.40, 0.30), (0.46, 0.38, 0.34)), ("branch", "twig", "stone"), 0.6,
    ),
    Habitat(  # autumn
        (0.88, 0.72, 0.42), (0.72, 0.48, 0.24), (0.36, 0.22, 0.14),
        ((0.96, 0.74, 0.26), (0.86, 0.40, 0.16), (0.60, 0.60, 0.28)), (0.34, 0.24, 0.18),
        ((0.86, 0.48, 0.14), (0.80, 0.28, 0.14), (0.90, 0.68, 0.22)), ("branch", "mossy", "post"), 0.7,
    ),
    Habitat(  # shore
        (0.80, 0.87, 0.88), (0.52, 0.68, 0.72), (0.34, 0.48, 0.52),
        ((0.90, 0.95, 0.95), (0.70, 0.80, 0.78), (0.42, 0.58, 0.60)), (0.60, 0.66, 0.58),
        ((0.48, 0.60, 0.42), (0.60, 0.66, 0.46)), ("stone", "stone", "post"), 0.8,
    ),
    Habitat(  # blossom
        (0.78, 0.86, 0.92), (0.90, 0.84, 0.88), (0.66, 0.72, 0.54),
        ((0.98, 0.80, 0.86), (0.96, 0.66, 0.76), (1.0, 0.95, 0.96)), (0.48, 0.38, 0.36),
        ((0.98, 0.80, 0.86), (0.97, 0.70, 0.80), (0.56, 0.68, 0.34)), ("branch", "twig", "mossy"), 0.3,
    ),
)
# fmt: on


def draw_backdrop(rng: np.random.Generator, habitat: Habitat, size_px: int) -> Canvas:
    """A habitat out of focus: colours, far stems and discs, then nearer and sharper ones; (S, S, 3)."""
    grid = np.arange(_GRID_PX)
    stops, colours = [0, rng.uniform(0.35, 0.7), 1], np.array([habitat.top, habitat.middle, habitat.bottom])
    slope = rng.uniform(-0.15, 0.15) * (grid[None, :] / _GRID_PX - 0.5)
    height = grid[:, None] / _GRID_PX + slope
    wash = np.stack([np.interp(height, stops, colours[:, channel]) for channel in range(3)], 2)
    mottle = Image.fromarray(rng.standard_normal((7, 7)).astype(np.float32))
    wash += 0.045 * np.asarray(mottle.resize((_GRID_PX, _GRID_PX), Image.Resampling.BICUBIC))[..., None]
    image = Image.fromarray((255 * np.clip(wash, 0, 1)).astype(np.uint8))
    for radius, stems, discs, opaque in ((4.5, 7, 12, 150), (2.0, 4, 8, 130), (0.9, 2, 6, 110)):
        pen = ImageDraw.Draw(image, "RGBA")
        for _ in range(int(rng.integers(0, stems + 1))):
            _stem(rng, pen, habitat, 2.6 if radius > 4 else 1.2, opaque)
        for _ in range(int(rng.integers(discs // 3, discs + 1))):
            x, y, r = *rng.uniform(-4, _GRID_PX + 4, 2), rng.uniform(1.5, 5) + radius
            colour = _byte(habitat.discs[int(rng.integers(len(habitat.discs)))], opaque * rng.uniform(0.4, 1))
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        image = image.filter(ImageFilter.GaussianBlur(radius))
    image = image.resize((size_px, size_px), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32) * np.float32(1 / 255)


def _byte(colour: Colour, alpha: float) -> tuple[int, int, int, int]:
    return round(255 * colour[0]), round(255 * colour[1]), round(255 * colour[2]), round(alpha)


def _stem(
    rng: np.random.Generator, pen: ImageDraw.ImageDraw, habitat: Habitat, width: float, alpha: int
) -> None:
    """Draw one bent stem across the small backdrop, upright in reeds and forest, any way in the open."""
    lean = (1 - habitat.upright) * rng.uniform(-1, 1) * 1.4 + rng.uniform(-0.12, 0.12)
    middle, bend = rng.uniform(0, _GRID_PX, 2), rng.uniform(-9, 9)
    t = np.linspace(-1.5, 1.5, 9) * _GRID_PX
    x, y = middle[0] + np.sin(lean) * t + bend * (t / _GRID_PX) ** 2, middle[1] + np.cos(lean) * t
    shade = mix(habitat.stems, habitat.middle, float(rng.uniform(0, 0.45)))
    pen.line(np.stack([x, y], 1).ravel().tolist(), _byte(shade, alpha), round(width * rng.uniform(0.8, 3)))


# ---------------------------------------------------------------- perches

_WOOD: dict[str, tuple[Colour, tuple[float, float]]] = {  # colour, thickness in the bird's unit
    "branch": ((0.42, 0.33, 0.26), (0.12, 0.22)),
    "mossy": ((0.38, 0.32, 0.24), (0.18, 0.28)),
    "snowy": ((0.38, 0.33, 0.31), (0.14, 0.22)),
    "twig": ((0.52, 0.42, 0.28), (0.06, 0.09)),
}


def draw_perch(rng: np.random.Generator, canvas: Canvas, habitat: Habitat, pose: Pose, light: Light) -> None:
    """Paint what the bird sits on, under its feet, with its soft shadow."""
    kind = habitat.perches[int(rng.integers(len(habitat.perches)))]
    if kind in _WOOD:
        alpha = _draw_branch(rng, canvas, habitat, pose, light, kind)
    else:
        draw = _draw_post if kind == "post" else _draw_stone
        alpha = draw(rng, canvas, habitat, pose, light)
    x, y = pose.foot_px
    unit = pose.scale_px
    shadow = cover(len(canvas), [disc(x - 0.2 * light[0] * unit, y + 0.05 * unit, 0.5 * unit, 0.12 * unit)])
    lay(canvas, 0.55 * blur(shadow, 0.07 * unit) * alpha, (0.08, 0.07, 0.08))


def _draw_branch(
    rng: np.random.Generator, canvas: Canvas, habitat: Habitat, pose: Pose, light: Light, kind: str
) -> Plane:
    """A branch from edge to edge with twigs behind it, bare or under moss or snow."""
    size_px, unit, (foot_x, foot_y) = len(canvas), pose.scale_px, pose.foot_px
    colour, thickness = _WOOD[kind]
    half, taper = 0.5 * unit * rng.uniform(*thickness), 0.35 * rng.uniform(-1, 1)
    slope, bend = rng.uniform(-0.3, 0.3), rng.uniform(-0.12, 0.12)
    x = np.linspace(-0.1, 1.1, 25) * size_px
    off = (x - foot_x) / size_px
    knots = rng.uniform(-1, 1, 25) * 0.12 * half * (np.abs(off) > 0.1)
    y = foot_y + 0.01 * unit + half + size_px * (slope * off + bend * off * off) + knots
    upper, lower = y - half * (1 + taper * off), y + half * (1 + taper * off)
    _draw_sprigs(rng, canvas, habitat, np.stack([x, y], 1), unit, light)
    wood = np.concatenate([np.stack([x, upper], 1), np.stack([x, lower], 1)[::-1]])
    alpha = cover(size_px, [wood])
    bark = cover(size_px, [wood, *_bark(rng, x, y, half)], [0.5] + [0.22, 0.22, 0.8] * 16)
    shade = cushion(alpha, 0.8 * half, light, 0.8) * (0.7 + 0.6 * bark)
    lay(canvas, alpha, mix(colour, habitat.bottom, 0.15), shade)
    if kind in ("mossy", "snowy"):
        high = upper - (0.05 * unit if kind == "snowy" else 0)
        edge = y - half * (0.15 + 0.5 * rng.uniform(-1, 1, 25))
        crust = curve(np.concatenate([np.stack([x, high], 1), np.stack([x, edge], 1)[::-1]]), 3)
        top = cover(size_px, [crust])
        tint = (0.95, 0.96, 0.99) if kind == "snowy" else (0.42, 0.52, 0.20)
        lay(canvas, top, tint, cushion(top, 0.5 * half, light, 0.8))
        alpha = np.maximum(alpha, top)
    return alpha


def _bark(rng: np.random.Generator, x: Points, y: Points, half: float) -> list[Points]:
    """48 slivers along a branch whose middle runs through the knots (x, y)."""
    knots, heights, spans = rng.integers(0, 21, 48), rng.uniform(-0.95, 0.9, 48), rng.integers(1, 4, 48)
    slivers = []
    for i, v, n in zip(knots.tolist(), heights.tolist(), spans.tolist(), strict=True):
        start, end = (x[i], y[i] + v * half), (x[i + n], y[i + n] + v * half)
        above, below = (x[i + 1], y[i + 1] + (v - 0.05) * half), (x[i + 1], y[i + 1] + (v + 0.09) * half)
        slivers.append(polygon(start, above, end, below))
    return slivers


def _draw_post(rng: np.random.Generator, canvas: Canvas, habitat: Habitat, pose: Pose, light: Light) -> Plane:
    """A weathered fence post that leaves the picture at its lower edge."""
    size_px, unit, (foot_x, foot_y) = len(canvas), pose.scale_px, pose.foot_px
    wide, lean, bumps = rng.uniform(0.24, 0.36) * unit, rng.uniform(-0.06, 0.06), rng.uniform(-1, 1, 16)
    x, y, low = foot_x + 0.06 * unit * bumps[0], foot_y + 0.02 * unit, 1.3 * size_px
    far = x + lean * (low - y)
    rim, shoulder = 0.9 * wide, y + 0.05 * unit
    left, right = ((x - wide, shoulder), (x - rim, y)), ((x + rim, y - 0.02 * unit), (x + wide, shoulder))
    outline = polygon(*left, *right, (far + wide, low), (far - wide, low))
    starts = np.stack([x + 0.9 * wide * bumps, y + (0.1 + 0.25 * np.arange(16)) * unit], 1)
    crack = unit * polygon((0, 0), (0.02, 0.4), (0, 0.9), (-0.012, 0.4))
    alpha = cover(size_px, [outline])
    marks = cover(size_px, [outline, *(starts[:, None] + crack)], [0.6] + [0.42, 0.72, 0.42, 0.5] * 4)
    shade = cushion(alpha, wide, light) * (0.6 + 0.7 * marks)
    lay(canvas, alpha, mix((0.50, 0.43, 0.35), habitat.bottom, 0.2), shade)
    return alpha


def _draw_stone(
    rng: np.random.Generator, canvas: Canvas, habitat: Habitat, pose: Pose, light: Light
) -> Plane:
    """A boulder whose top is under the feet and whose flanks leave the picture."""
    size_px, unit, (foot_x, foot_y) = len(canvas), pose.scale_px, pose.foot_px
    spread, shift = rng.uniform(1.7, 2.8), rng.uniform(-0.3, 0.3)
    bumps, marks = rng.uniform(-1, 1, 25), rng.uniform(0, 1, (80, 4))
    off = np.linspace(-4, 4, 25)
    drop = 1.6 * (1 - np.exp(-(np.abs((off - shift) / spread) ** 2.6)))
    drop += 0.06 * bumps * np.minimum(1, np.abs(off)) - drop[12]
    top = np.stack([foot_x + unit * off, foot_y + unit * (0.01 + drop)], 1)
    low = polygon((foot_x + 4 * unit, 3 * size_px), (foot_x - 4 * unit, 3 * size_px))
    outline = np.concatenate([curve(top, 4)[:-4], low])
    alpha = cover(size_px, [outline])
    flecks, tones = [outline], [0.6]
    for a, b, c, d in marks.tolist():
        x, y = foot_x + 3.4 * unit * (2 * a - 1), foot_y + unit * (0.1 + 2.6 * b)
        flecks.append(disc(x, y, (0.03 + 0.10 * c) * unit, (0.012 + 0.02 * d) * unit, 9))
        tones.append(0.46 if d < 0.6 else 0.74)
    shade = cushion(alpha, 0.3 * unit, light, 0.9) * (0.6 + 0.7 * cover(size_px, flecks, tones))
    lay(canvas, alpha, mix((0.60, 0.58, 0.55), habitat.bottom, 0.25), shade)
    return alpha


# ---------------------------------------------------------------- leaves, and what hides the bird

_LEAF = polygon(
    (0, 0), (0.22, -0.15), (0.55, -0.19), (0.85, -0.09), (1.06, 0), (0.85, 0.09), (0.55, 0.19), (0.22, 0.15)
)  # fmt: skip


def _leaf(x: float, y: float, length: float, turn: float, wide: float) -> list[Points]:
    """A leaf in pixels: blade, its lighter half, its rib."""
    c, s = np.cos(turn), np.sin(turn)
    frame = length * np.array([[c, s], [-s, c]])
    rib = np.array([(0, -0.012), (0, 0.012), (0.98, 0.004), (0.98, -0.004)])
    half = np.concatenate([_LEAF[:5] * (1, wide), [(1.06, 0), (0, 0)]])
    return [piece @ frame + (x, y) for piece in (curve(_LEAF * (1, wide), 4), curve(half, 2), rib)]


def _draw_leaf(canvas: Canvas, leaf: list[Points], colour: Colour) -> None:
    shade = 0.7 + 0.4 * cover(len(canvas), leaf, [0.5, 0.85, 1.0])
    lay(canvas, cover(len(canvas), leaf[:1]), colour, shade)


def _draw_sprigs(
    rng: np.random.Generator, canvas: Canvas, habitat: Habitat, middle: Points, unit: float, light: Light
) -> None:
    """Twigs with a few leaves or berries, out of the branch whose ``middle`` is (25, 2)."""
    for _ in range(int(rng.integers(2, 6))):
        i, up = int(rng.integers(2, 23)), -1 if rng.uniform() < 0.55 else 1
        reach, turn = rng.uniform(0.35, 0.8) * unit, up * rng.uniform(0.5, 1.2)
        if rng.uniform() < 0.5:
            turn = np.pi - turn
        root, tip = middle[i], middle[i] + reach * np.array([np.cos(turn), np.sin(turn)])
        side = 0.024 * unit * np.array([-np.sin(turn), np.cos(turn)])
        lay(canvas, cover(len(canvas), [np.array([root - side, root + side, tip])]), (0.36, 0.28, 0.22))
        berry = rng.uniform() < 0.25
        for share in (1.0, 0.62, 0.34)[: int(rng.integers(1, 4))]:
            spot = root + share * (tip - root)
            length, sway, wide = rng.uniform(0.24, 0.42) * unit, rng.uniform(-0.9, 0.9), rng.uniform(0.8, 1.3)
            tint = habitat.leaves[int(rng.integers(len(habitat.leaves)))]
            if berry:
                fruit = cover(len(canvas), [disc(spot[0], spot[1], 0.2 * length)])
                lay(canvas, fruit, (0.78, 0.16, 0.14), cushion(fruit, 0.12 * length, light))
            else:
                _draw_leaf(canvas, _leaf(spot[0], spot[1], length, turn + sway, wide), tint)


def _spray(pose: Pose, size_px: int, blade: bool, place: list[float]) -> list[list[Points]]:
    """A blade of grass, or a stem with two leaves, from the nearer of floor and ceiling to the bird."""
    a, b, c, d, e, f = place  # each -1 to 1
    unit = pose.scale_px
    x = pose.foot_px[0] + pose.facing * (0.9 * a - 0.3) * unit
    y = pose.foot_px[1] - (0.65 + 0.6 * b) * unit
    up = 1 if y > 0.45 * size_px else -1
    base_x, base_y = x + 0.5 * c * unit, (0.5 + 0.6 * up) * size_px
    if blade:
        wide, tip = (0.035 + 0.015 * e) * unit, (x + 0.6 * d * unit, y - up * 0.8 * unit)
        right = [(x + wide, y), (base_x + wide, base_y)]
        whole = curve([(base_x - wide, base_y), (x - wide, y), tip, *right], 8)
        half = curve([(base_x, base_y), (x, y), tip, *right], 8)
        return [[whole, half, half[:3]]]
    wide, length = 0.016 * unit, (0.42 + 0.1 * d) * unit
    stem = polygon((base_x - wide, base_y), (x - wide, y), (x + wide, y), (base_x + wide, base_y))
    turn = -up * 0.5 * np.pi + 0.7 * f
    long, short = _leaf(x, y, length, turn - 0.5, 1 + 0.2 * e), _leaf(x, y, 0.8 * length, turn + 0.6, 1.0)
    return [[stem, stem, stem], long, short]


def draw_occluder(
    rng: np.random.Generator, canvas: Canvas, habitat: Habitat, pose: Pose, landmarks: Points
) -> None:
    """In about half the pictures: leaves or a blade before the bird, where every part stays recognisable.

    ``landmarks`` (parts, points, 2) are pixels within the parts. A place that hides more than a third of
    those of any part is passed over; after four such places nothing is drawn.
    """
    wanted, blade = rng.uniform() < 0.6, rng.uniform() < 0.4
    places, tint = rng.uniform(-1, 1, (4, 6)), habitat.leaves[int(rng.integers(len(habitat.leaves)))]
    size_px = len(canvas)
    columns, rows = np.clip(landmarks.astype(int), 0, size_px - 1).transpose(2, 0, 1)
    for place in places.tolist():
        spray = _spray(pose, size_px, blade, place)
        hidden = cover(size_px, [pieces[0] for pieces in spray])[rows, columns] > 0.5
        if wanted and hidden.any() and hidden.mean(1).max() <= 0.34:
            stalk = mix(habitat.stems, (0.44, 0.60, 0.26), 0.6)
            for pieces, colour in zip(spray, (stalk, tint, tint), strict=False):
                _draw_leaf(canvas, pieces, colour)
            return


def light_scene(rng: np.random.Generator, canvas: Canvas) -> Canvas:
    """The light of the hour over the whole picture: exposure, warmth, a vignette, a little grain."""
    exposure, warmth, corner = rng.uniform(0.8, 1.12), rng.uniform(-0.09, 0.11), rng.uniform(0.0, 0.22)
    gain = np.float32(exposure) * np.array([1 + warmth, 1 + 0.25 * warmth, 1 - warmth], np.float32)
    ramp = np.linspace(-1, 1, len(canvas), dtype=np.float32) ** 2
    fall = 1 - np.float32(corner) * (ramp[:, None] + ramp[None, :]) / 2
    grain = rng.standard_normal(canvas.shape[:2], np.float32) * np.float32(0.008)
    return np.asarray(canvas * gain * fall[..., None] + grain[..., None])
