"""What several seeds say: mean, spread, and whether one way of training differs from another.

Legend: S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student

from fgvc_cli.evaluate.intervals import LEVEL, Interval

_EQUAL = 1e-9
"""Shares of images that differ by less are the same share."""


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (over S - 1) of S values; of one, NaN."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return float(np.mean(values)), deviation


def paired_interval(differences: Sequence[float]) -> Interval | None:
    """Of the mean difference, by Student's t: mean +- t(S - 1) * deviation / sqrt(S).

    Paired, for equal seeds see equal splits, order and augmentation. It speaks of other seeds, not of other
    photographs, and with few seeds it is wide, as it should be.

    Args:
        differences: one per seed.

    Returns:
        None where nothing can be said: fewer than two seeds, or all with the same difference, which on a
        small split is chance and would make the interval a point.
    """
    if len(differences) < 2:
        return None
    mean, deviation = mean_and_deviation(differences)
    if deviation < _EQUAL:
        return None
    half = float(student.ppf((1 + LEVEL) / 2, len(differences) - 1)) * deviation / math.sqrt(len(differences))
    return Interval(mean - half, mean + half)


def verdict(differences: Sequence[float]) -> str:
    """In words: ``higher``, ``lower``, ``no difference shown`` where the interval holds 0, or why there is
    none."""
    interval = paired_interval(differences)
    if interval is None and len(differences) == 1:
        return "one seed is no comparison"
    if interval is None and max(map(abs, differences)) >= _EQUAL:
        return "the same in every seed: no interval"
    if interval is None or interval.holds(0):
        return "no difference shown"
    return "higher" if interval.low > 0 else "lower"
