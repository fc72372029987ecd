"""The colour map of every heat map: from dark violet to pale yellow, safe for colour-blind eyes."""

from __future__ import annotations

from functools import cache

import numpy as np
from skimage.color import lab2rgb, rgb2lab

ANCHORS = (
    (24, 14, 60),
    (44, 17, 96),
    (95, 23, 125),
    (147, 40, 125),
    (199, 61, 108),
    (239, 97, 90),
    (252, 151, 101),
    (254, 203, 138),
    (252, 250, 196),
)
"""sRGB, low to high: the hues of matplotlib's magma (CC0), without its black."""


@cache
def color_table() -> np.ndarray:
    """(256, 3) uint8 sRGB, read-only.

    Interpolated in CIELAB with lightness forced onto a straight line, so that equal steps of the map look
    like equal steps, and stay in order in grey print and for every kind of colour blindness.
    """
    anchors = rgb2lab(np.array(ANCHORS, float)[None] / 255)[0]
    at = np.linspace(0, 1, len(anchors))
    steps = np.linspace(0, 1, 256)
    lightness = np.linspace(anchors[0, 0], anchors[-1, 0], 256)
    lab = np.stack([lightness, *(np.interp(steps, at, anchors[:, i]) for i in (1, 2))], axis=-1)
    table = (lab2rgb(lab[None])[0] * 255).round().astype(np.uint8)
    table.setflags(write=False)
    return table


def apply_colormap(values: np.ndarray) -> np.ndarray:
    """Values (...) in [0, 1] -> uint8 sRGB (..., 3); values outside are clipped, NaN is drawn as 0."""
    index = np.clip(np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=0.0), 0, 1) * 255
    return np.take(color_table(), index.round().astype(np.uint8), axis=0)
