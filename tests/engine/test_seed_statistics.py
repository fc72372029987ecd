"""Means over seeds and what may be said of a difference, against closed forms."""

from __future__ import annotations

import math

import pytest

from fgvc_cli.engine.ablate import Score, summarise, summary_text
from fgvc_cli.evaluate.intervals import mean_and_deviation, paired_interval, verdict


def test_mean_and_sample_deviation():
    assert mean_and_deviation([1, 2, 3]) == (2, 1)
    mean, deviation = mean_and_deviation([0.5])
    assert mean == 0.5 and math.isnan(deviation)


def test_paired_interval_is_students():
    # t(2, 0.975) = 4.302653 of every table; deviation 1, three seeds.
    interval = paired_interval([1, 2, 3])
    assert interval == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), rel=1e-6)
    # Two seeds: t(1, 0.975) = 12.7062.
    assert paired_interval([0.0, 0.2]) == pytest.approx((0.1 - 1.27062, 0.1 + 1.27062), rel=1e-4)


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ([0.01], "one seed is no comparison"),
        ([0.0, 0.0], "no difference shown"),
        ([0.3 - 0.2, 0.2 - 0.1, 0.1], "the same in every seed: no interval"),
        ([0.01, -0.01, 0.02], "no difference shown"),
        ([0.010, 0.011, 0.012], "higher"),
        ([-0.010, -0.011, -0.012], "lower"),
    ],
)
def test_a_difference_is_claimed_only_where_the_interval_leaves_0_out(differences, words):
    assert verdict(differences) == words


def score(variant, seed, top1, split="val"):
    return Score(variant, seed, split, {"top1": top1, "macro_f1": top1 / 2}, 10.0 * (seed + 1))


def test_differences_are_paired_by_seed_and_a_missing_training_leaves_its_seed_out():
    scores = [score("plain", 0, 0.5), score("plain", 1, 0.7), score("cram", 1, 0.8), score("cram", 2, 0.1)]
    plain, cram = summarise(scores, ["plain", "cram", "none of this"], "plain")
    assert (plain.seeds, plain.top1, plain.difference, plain.verdict) == (2, pytest.approx(0.6), None, "")
    assert plain.top1_deviation == pytest.approx(math.sqrt(0.02))
    assert plain.seconds == 15 and plain.macro_f1 == pytest.approx(0.3)
    assert cram.seeds == 2 and cram.difference == pytest.approx(0.1) and cram.interval is None


def test_the_table_says_both_splits_and_no_difference_where_none_is_shown():
    scores = [score(v, s, t, split) for split in ("val", "test") for v, s, t in
              (("plain", 0, 0.5), ("plain", 1, 0.6), ("cram", 0, 0.52), ("cram", 1, 0.6))]  # fmt: skip
    text = summary_text(summarise(scores, ["plain", "cram"], "plain"), "plain")
    lines = text.splitlines()
    assert [line.split()[0] for line in lines if line] == ["val", "plain", "cram", "test", "plain", "cram"]
    assert "55.00 +- 7.07" in lines[1] and lines[1].endswith("3.54")
    # mean 1 point, deviation sqrt(2) points, t 12.7062, two seeds.
    assert lines[2].endswith("+1.00 [-11.71, +13.71] no difference shown")
