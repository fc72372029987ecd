"""The colour map keeps its order: in lightness, for colour-blind eyes, at its ends."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from fgvc_cli.charts.drawing import apply_colormap, color_table
from fgvc_cli.explain.panels import BOX_LINE, PART_LINES

# Linear RGB as protanopes and deuteranopes see it (Vienot, Brettel and Mollon 1999).
PROTAN = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
DEUTAN = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])


# Tritanopes (Machado, Oliveira and Fernandes 2009, severity 1).
TRITAN = np.array(
    [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]]
)


def seen_by(matrix: np.ndarray, srgb: np.ndarray) -> np.ndarray:
    """What (N, 3) sRGB in [0, 1] looks like to such eyes, sRGB again."""
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ matrix.T, 0, 1)
    return np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)


def lightness(srgb: np.ndarray) -> np.ndarray:
    """CIELAB L* of (N, 3) sRGB in [0, 1]."""
    return rgb2lab(srgb[None])[0, :, 0]


def test_lightness_rises_with_every_step_and_evenly():
    steps = np.diff(lightness(color_table() / 255))
    assert steps.min() > 0
    # Rounding to 8 bits alone moves a step by up to about a quarter of an L*.
    assert steps.max() < 2 * steps.mean()


def test_it_runs_from_dark_to_light():
    light = lightness(color_table() / 255)
    assert light[0] < 15 and light[-1] > 92


@pytest.mark.parametrize("matrix", [PROTAN, DEUTAN], ids=["protan", "deutan"])
def test_colour_blind_eyes_see_the_same_order(matrix):
    back = seen_by(matrix, color_table() / 255)
    # Four levels apart is less than anyone sees; between neighbours 8 bits leave no room.
    assert (lightness(back)[4:] > lightness(back)[:-4]).all()


@pytest.mark.parametrize(
    "matrix", [np.eye(3), PROTAN, DEUTAN, TRITAN], ids=["all", "protan", "deutan", "tritan"]
)
def test_everyone_tells_the_lines_of_boxes_apart(matrix):
    lab = rgb2lab(seen_by(matrix, np.array([BOX_LINE, *PART_LINES]) / 255)[None])[0]
    apart = [deltaE_ciede2000(lab[i], lab[j]) for j in range(len(lab)) for i in range(j)]
    assert min(apart) > 16 and min(apart[:3]) > 24


def test_values_meet_their_colours_and_wrong_ones_the_nearest():
    values = np.array([[0.0, 1.0], [128 / 255, np.nan], [-3.0, 7.0], [-np.inf, np.inf]])
    expected = color_table()[[[0, 255], [128, 0], [0, 255], [0, 255]]]
    np.testing.assert_array_equal(apply_colormap(values), expected)


def test_the_table_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        color_table()[0] = 0
