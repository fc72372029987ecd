"""Novelty and thresholds per class, by hand."""

import math

import numpy as np
import pytest
import torch

from fgvc_cli.config import MultiStageVitConfig, Preprocess
from fgvc_cli.data.listing import Example
from fgvc_cli.data.loaders import Batch
from fgvc_cli.errors import FgvcError
from fgvc_cli.evaluate.confidence import (
    CONFIDENCE,
    NOVELTY_IMAGES,
    PRIOR_IMAGES,
    SHRINKAGE,
    embed,
    fit_examples,
    fit_novelty,
    fit_thresholds,
    read_thresholds,
    stored_novelty,
    wilson_lower,
)
from fgvc_cli.models.output import ModelOutput

TRAIN = torch.tensor([[0.0, 0.0], [2.0, 0.0], [10.0, 1.0], [12.0, 1.0]])
LABELS = torch.tensor([0, 0, 2, 2])
"""Means (1, 0) and (11, 1); squares around them add up to 4 and 0, over two degrees of freedom."""
VARIANCES = (1 - SHRINKAGE) * np.array([2.0, 0.0]) + SHRINKAGE * 1.0


def val(count: int) -> torch.Tensor:
    """Images ever farther from the first mean."""
    return torch.stack([1 + torch.arange(count) / 10, torch.zeros(count)], dim=1)


def fitted(count=40, **options):
    return fit_novelty([(TRAIN, LABELS)], [(val(count), torch.zeros(count))], 3, **options)


def test_novelty_is_the_distance_to_the_nearest_mean_over_the_shared_shrunk_variance():
    novelty = fitted()
    x = np.array([[1.0, 3.0], [9.0, 1.0]])
    means = np.array([[1.0, 0.0], [11.0, 1.0]])
    expected = np.sqrt((np.square(x[:, None] - means) / VARIANCES).mean(axis=2)).min(axis=1)
    distances = novelty.distances(torch.tensor(x, dtype=torch.float32))
    np.testing.assert_allclose(distances, expected, rtol=2e-3)  # the means are float16
    np.testing.assert_allclose(
        novelty.scores(torch.tensor(x).float()), expected / novelty.threshold, rtol=2e-3
    )
    assert len(novelty.means) == 2  # a class without images has no mean


def test_the_threshold_keeps_95_percent_of_the_val_split_and_of_what_is_drawn_like_it():
    """The conformal one: of n values the ceil(0.95 (n + 1))-th."""
    for count, kept in ((19, 19), (40, 39), (99, 95), (200, 191)):
        novelty = fitted(count)
        assert int((novelty.scores(val(count)) <= 1).sum()) == kept
        assert novelty.images == count
    assert NOVELTY_IMAGES == 19 and fitted(18) is None
    one_each = [(TRAIN[::2], LABELS[::2])]
    assert fit_novelty(one_each, [(val(40), torch.zeros(40))], 3) is None  # no spread to be known
    assert fit_novelty([], [(val(40), torch.zeros(40))], 3) is None


def test_processes_come_to_what_one_comes_to():
    other: list[object] = []
    fit_novelty([(TRAIN[2:], LABELS[2:])], [(val(40)[20:], torch.zeros(20))], 3,
                lambda value: [other.append(value), value][1:])  # fmt: skip
    sums = iter(other)

    def gather(value):
        found = next(sums)
        return [value, found] if isinstance(value, tuple) else [value, [novelty.distances(val(40)[20:])]]

    novelty = fitted(40)
    shared = fit_novelty([(TRAIN[:2], LABELS[:2])], [(val(40)[:20], torch.zeros(20))], 3, gather)
    assert shared.means.equal(novelty.means) and shared.scale.allclose(novelty.scale)
    assert shared.threshold == pytest.approx(novelty.threshold) and shared.images == 40


def test_a_checkpoint_of_before_has_no_novelty():
    novelty = fitted()
    again = stored_novelty({"heads.weight": TRAIN, **novelty.tensors()}, novelty.document())
    assert again.threshold == novelty.threshold and again.means.equal(novelty.means)
    assert again.means.dtype == torch.float16
    assert stored_novelty({"heads.weight": TRAIN}, None) is None


def test_a_mean_is_made_of_the_first_images_of_a_class(monkeypatch):
    monkeypatch.setattr("fgvc_cli.evaluate.confidence.IMAGES_PER_CLASS", 2)
    examples = [Example(f"{i}.jpg", label) for i, label in enumerate([0, 0, 0, 1, 0, 1])]
    assert [int(e.path[0]) for e in fit_examples(examples)] == [0, 1, 3, 5]


def test_a_multi_stage_vit_takes_one_pass_and_keeps_its_settings():
    passes = []

    class Stages(torch.nn.Module):
        config = MultiStageVitConfig(cascade=0.7)

        def forward(self, images, want=()):
            passes.append(self.config.cascade)
            return ModelOutput({}, torch.ones(len(images), 1), embedding=images.mean(dim=(2, 3)))

    model = Stages()
    batch = Batch(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), torch.arange(2), [])
    empty = Batch(torch.zeros(0, 3, 0, 0, dtype=torch.uint8), torch.zeros(0), torch.zeros(0), ["bad.jpg"])
    found = list(
        embed(model, [batch, empty], Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3), torch.device("cpu"))
    )
    assert [(each.tolist(), labels.tolist()) for each, labels in found] == [([[-1.0] * 3] * 2, [0, 1])]
    assert passes == [0.0] and model.config.cascade == 0.7


# ---- thresholds per class ----


def test_the_lower_bound_is_wilsons():
    z = 1.2815515594
    assert CONFIDENCE == 0.9
    lower = wilson_lower(np.array([10, 0, 5]), np.array([10, 0, 10]))
    assert lower[0] == pytest.approx(10 / (10 + z**2)) and lower[1] == 0
    middle, half = 0.5 + z**2 / 20, z * math.sqrt(0.25 / 10 + z**2 / 400)
    assert lower[2] == pytest.approx((middle - half) / (1 + z**2 / 10))


NAMES = ("always right", "sure and wrong", "never seen", "always wrong")


def split():
    """700 images: of one class half are wrong below 0.6, and some when it is sure; one class has none of its
    own, one only mistakes."""
    prob = np.concatenate([np.linspace(0.3, 0.98, 400), np.linspace(0.301, 0.981, 290), [0.9] * 10])
    guess = np.repeat([0, 1, 3], [400, 290, 10])
    right = np.ones(700, bool)
    right[400:690][prob[400:690] < 0.6] = np.arange((prob[400:690] < 0.6).sum()) % 2
    right[640:656] = False
    right[690:] = False
    return prob, guess, right


def test_each_class_gets_the_least_threshold_that_its_own_images_and_those_of_all_let_expect():
    prob, guess, right = split()
    found = fit_thresholds(prob, guess, right, NAMES, 0.9)
    by_name = {each.name: each for each in found.classes}
    assert by_name["never seen"].threshold == pytest.approx(found.pooled, abs=1e-6)
    assert by_name["always right"].threshold < found.pooled < by_name["sure and wrong"].threshold
    assert by_name["always wrong"].threshold > 0.9 and found.unreached == ["always wrong"]
    assert by_name["always wrong"].precision is None and by_name["never seen"].coverage is None
    assert found.few == ["never seen"]
    kept = prob >= np.array([each.threshold for each in found.classes])[guess]
    assert found.coverage == kept.mean() and found.precision == right[kept].mean() >= 0.9
    own = kept[guess == 1]
    assert by_name["sure and wrong"].coverage == own.mean()
    assert by_name["sure and wrong"].precision == right[guess == 1][own].mean()


def test_a_threshold_is_the_least_one_by_the_formula():
    """By brute force over a fine grid of thresholds."""
    prob, guess, right = split()
    found = fit_thresholds(prob, guess, right, NAMES, 0.9)
    grid = np.linspace(0, 1, 20001)
    kept = prob[None] >= grid[:, None]
    pooled = np.maximum.accumulate(wilson_lower((kept & right).sum(axis=1), kept.sum(axis=1)))
    for number, each in enumerate(found.classes):
        mine = kept & (guess == number)
        expected = ((mine & right).sum(axis=1) + PRIOR_IMAGES * pooled) / (mine.sum(axis=1) + PRIOR_IMAGES)
        least = grid[(expected >= 0.9).argmax()]
        between = np.diff(np.unique(prob)).max()
        assert each.threshold == pytest.approx(least, abs=between)


def test_a_precision_out_of_reach_is_said():
    prob, guess, right = split()
    with pytest.raises(FgvcError, match=r"0.999 cannot be shown on 700 val images: at best 0\.\d+, of rows"):
        fit_thresholds(prob, guess, right, NAMES, 0.999)


def test_a_file_of_thresholds_is_read_back(tmp_path):
    file = tmp_path / "least.csv"
    file.write_bytes('\ufeffclass,threshold,images\r\n\'=wren,0.9,3\r\n"a, b",0.25,1\r\n'.encode())
    assert read_thresholds(file) == {"=wren": 0.9, "a, b": 0.25}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("label,threshold\na,0.5\n", "no columns class and threshold"),
        ("class,threshold\na,high\n", "line 2: 'high', expected a number"),
        ("class,threshold\na,-1\n", "line 2: '-1'"),
        ("class,threshold\na,inf\n", "line 2: 'inf'"),
        ("class,threshold\na,0.5\na,0.6\n", "names 'a' twice"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path, text, names):
    file = tmp_path / "least.csv"
    file.write_text(text)
    with pytest.raises(FgvcError, match=names):
        read_thresholds(file)
    with pytest.raises(FgvcError, match="No such file"):
        read_thresholds(tmp_path / "none.csv")
