"""Two models on the same images: is one better, or may it be chance?

McNemar 1947, in its exact form: if the models are equally good, an image that only one of them has right is
the first's as often as the second's. Dietterich 1998 recommends it where each model is trained once;
it says nothing about other seeds.

Legend: N images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from fgvc_cli.evaluate.intervals import Interval, difference_interval


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
