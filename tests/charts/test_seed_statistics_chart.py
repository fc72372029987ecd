"""The picture of an ablation: its points lie where the values are."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from fgvc_cli.charts.figures import draw_spread


def pixels(**groups) -> np.ndarray:
    png = draw_spread(["plain", "cram", "cbam"], groups, reference="plain", title="a table")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def orange(image: np.ndarray) -> np.ndarray:
    """The reference's colour (D55E00), bars and marker."""
    return np.abs(image - (0xD5, 0x5E, 0x00)).sum(axis=2) < 12


def test_the_reference_is_the_upper_row_and_its_bar_is_as_wide_as_its_spread():
    narrow = pixels(val={"plain": [49, 50, 51], "cram": [10, 90], "cbam": []})
    wide = pixels(val={"plain": [30, 50, 70], "cram": [10, 90], "cbam": []})
    rows, columns = np.nonzero(orange(wide))
    assert rows.max() < wide.shape[0] / 2
    assert np.ptp(columns) > 3 * np.ptp(np.nonzero(orange(narrow))[1])


def test_one_seed_has_no_bar_and_equal_numbers_give_equal_files():
    one = {"val": {"plain": [50.0], "cram": [60.0]}, "test": {"plain": [55.0], "cram": [52.0]}}
    assert np.array_equal(pixels(**one), pixels(**one))
    assert pixels(**one).shape[1] > pixels(val=one["val"]).shape[1]
