"""Is one model better than another, or may it be chance? Over the images of a set, and over seeds.

Two models on the same images: McNemar 1947, in its exact form: if they are equally good, an image that only
one of them has right is the first's as often as the second's. Dietterich 1998 recommends it where each model
is trained once; it says nothing about other seeds. Those are what Student's interval of the paired
differences of several seeds speaks of.

Legend: N images, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student

from fgvc_cli.evaluate.intervals import LEVEL, Interval, difference_interval


@dataclass(frozen=True)
class Comparison:
    """Counts of images, and what they say."""

    both: int
    """Images that both have right."""
    only_first: int
    only_second: int
    neither: int
    difference: float
    """Top-1 of the first less that of the second, a share."""
    interval: Interval
    """95 % bootstrap interval of ``difference``, paired."""
    p_value: float
    """McNemar's exact test, two-sided."""

    @property
    def images(self) -> int:
        return self.both + self.only_first + self.only_second + self.neither


def compare(first: np.ndarray, second: np.ndarray) -> Comparison:
    """Compare what two models have right.

    Args:
        first, second: bool (N,), in the same order of images; N at least 1.

    Raises:
        ValueError: no image, or different numbers of them.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"compare got {len(first)} and {len(second)} images, expected as many, at least one")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differing = only_first + only_second
    return Comparison(
        both=int((first & second).sum()),
        only_first=only_first,
        only_second=only_second,
        neither=int((~first & ~second).sum()),
        difference=(only_first - only_second) / len(first),
        interval=difference_interval(only_first, only_second, len(first)),
        p_value=float(binomtest(only_first, differing).pvalue) if differing else 1.0,
    )


_EQUAL = 1e-9
"""Shares of images that differ by less are the same share."""


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (over S - 1) of S values; of one, NaN."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return float(np.mean(values)), deviation


def paired_interval(differences: Sequence[float]) -> Interval | None:
    """Of the mean difference, by Student's t: mean +- t(S - 1) * deviation / sqrt(S).

    Paired, for equal seeds see equal splits, order and augmentation. It speaks of other seeds, not of other
    images, and with few seeds it is wide, as it should be.

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
