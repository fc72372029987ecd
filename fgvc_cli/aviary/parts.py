"""The Aviary's parts: what a species may wear, in words, and the outlines it is painted from.

Outlines are (N, 2) polygons in the frame of the bird or of its head: facing right, x right, y down, one
unit about the length of the trunk. Every outline but those of a species' own parts is shared by all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fgvc_cli.aviary.brush import Colour, Points, curve, disc, polygon

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


def wing_bar(place: float) -> Points:
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
