"""Intervals known in closed form, and against drawing images one by one; two models compared."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, norm
from sklearn.metrics import f1_score

from fgvc_cli.evaluate.intervals import (
    DRAWS,
    compare,
    difference_interval,
    macro_f1_interval,
    mean_interval,
    share_interval,
)


@pytest.mark.parametrize(("right", "images"), [(2138, 2485), (50, 60), (1, 40)])
def test_a_share_has_the_quantiles_of_the_binomial(right, images):
    low, high = share_interval(right, images)
    drawn = binom(images, right / images)
    # Within what 1,000 draws can miss the 2.5 % and 97.5 % quantiles by: 1 % of probability either side.
    assert drawn.ppf(0.015) <= low * images <= drawn.ppf(0.035)
    assert drawn.ppf(0.965) <= high * images <= drawn.ppf(0.985)


def test_where_all_or_none_are_right_the_exact_interval_stays_open():
    low, high = share_interval(12, 12)
    assert high == 1 and low == pytest.approx(0.025 ** (1 / 12))
    low, high = share_interval(0, 12)
    assert low == 0 and high == pytest.approx(1 - 0.025 ** (1 / 12))


def test_a_difference_has_the_spread_of_paired_counts():
    images, first, second = 2000, 90, 50
    low, high = difference_interval(first, second, images)
    difference = (first - second) / images
    # Variance of a mean of values that are +1, -1 or 0.
    spread = norm.ppf(0.975) * np.sqrt(((first + second) / images - difference**2) / images)
    assert (low, high) == pytest.approx((difference - spread, difference + spread), abs=0.15 * spread)


def test_a_mean_has_the_spread_of_its_standard_error():
    values = np.random.default_rng(1).random(400)
    low, high = mean_interval(values)
    spread = norm.ppf(0.975) * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - spread, values.mean() + spread), abs=0.15 * spread)
    assert mean_interval(np.ones(5)) is None and mean_interval(np.ones(0)) is None


def test_macro_f1_is_that_of_images_drawn_one_by_one():
    rng = np.random.default_rng(2)
    labels = rng.integers(4, size=120)
    guesses = np.where(rng.random(120) < 0.7, labels, rng.integers(4, size=120))
    drawn = []
    for _ in range(DRAWS):
        rows = rng.integers(120, size=120)
        drawn.append(f1_score(labels[rows], guesses[rows], average="macro", zero_division=0.0))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert macro_f1_interval(labels, guesses, 6) == pytest.approx((low, high), abs=0.012)


def test_macro_f1_of_one_drawn_split_is_scikit_learns(monkeypatch):
    """Each draw, not only their quantiles: classes that a draw lacks are out of its mean."""
    from fgvc_cli.evaluate import intervals

    labels, guesses = np.array([0, 0, 1, 3]), np.array([0, 1, 1, 3])
    pairs, counts = np.unique(labels * 5 + guesses, return_counts=True)
    got = intervals._macro_f1(np.array([counts, [2, 2, 0, 0]]), pairs, 5)
    drawn = f1_score([0, 0, 0, 0], [0, 0, 1, 1], average="macro", zero_division=0.0)
    assert got == pytest.approx([f1_score(labels, guesses, average="macro"), drawn])


def test_pieces_of_draws_cover_all_of_them(monkeypatch):
    from fgvc_cli.evaluate import intervals

    rng = np.random.default_rng(3)
    labels, guesses = rng.integers(4, size=90), rng.integers(4, size=90)
    whole = macro_f1_interval(labels, guesses, 4)
    monkeypatch.setattr(intervals, "_CELLS", 64)
    assert macro_f1_interval(labels, guesses, 4) == pytest.approx(whole)
    assert macro_f1_interval(labels, labels, 4) is None


def test_intervals_are_the_same_every_time():
    assert share_interval(70, 100) == share_interval(70, 100)


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
