"""Two models on the same images."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from fgvc_cli.evaluate.comparison import compare


def answers(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """What each has right, bool (N,)."""
    counts = [both, first, second, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_counts_and_difference():
    result = compare(*answers(50, 12, 4, 34))
    assert (result.both, result.only_first, result.only_second, result.neither) == (50, 12, 4, 34)
    assert result.images == 100
    assert result.difference == pytest.approx(0.08)
    assert result.interval.low < 0.08 < result.interval.high


def test_p_is_that_of_the_exact_test():
    """Twice the binomial tail of the smaller of the two counts."""
    assert compare(*answers(50, 12, 4, 34)).p_value == pytest.approx(2 * binom.cdf(4, 16, 0.5))
    # What both or neither have right says nothing of which is better.
    assert compare(*answers(5000, 12, 4, 0)).p_value == compare(*answers(0, 12, 4, 1)).p_value


def test_equal_models_show_no_difference():
    result = compare(*answers(7, 0, 0, 3))
    assert (result.difference, result.p_value, result.interval) == (0, 1, (0, 0))
    result = compare(*answers(70, 10, 10, 10))
    assert result.p_value == pytest.approx(1) and result.interval.low < 0 < result.interval.high


def test_answers_to_other_images_are_refused():
    with pytest.raises(ValueError, match="3 and 2"):
        compare(np.ones(3, bool), np.ones(2, bool))
    with pytest.raises(ValueError, match="at least one"):
        compare(np.ones(0, bool), np.ones(0, bool))
