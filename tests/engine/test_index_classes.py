"""Classes of an index: the nearest image or the mean, and a temperature that leave-one-out chooses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from fgvc_cli.engine import index_classes
from fgvc_cli.engine.index_classes import KnownImages, unit

LABELS = np.array([0, 0, 0, 1, 1, 3, 3, 3, 4])
"""Class 2 has no image, class 4 one."""


def world(seed: int = 0, count: int = 5) -> tuple[np.ndarray, np.ndarray, KnownImages]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, 12))
    vectors = unit(centres[LABELS] + rng.normal(size=(len(LABELS), 12)))
    queries = rng.normal(size=(6, 12)) * 7
    return vectors.astype(float), queries, KnownImages(vectors, LABELS.copy(), count)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def expected_scores(vectors, labels, query, by, count=5) -> list[float]:
    scores = []
    for c in range(count):
        own = vectors[labels == c]
        if by == "means":
            scores.append(cosine(query, own.sum(axis=0)) if len(own) else -np.inf)
        else:
            scores.append(max((cosine(query, each) for each in own), default=-np.inf))
    return scores


@pytest.mark.parametrize("by", ["neighbours", "means"])
@pytest.mark.parametrize("chunk", [2, 8192])
def test_a_class_is_as_close_as_its_nearest_image_or_as_its_mean(monkeypatch, by, chunk):
    monkeypatch.setattr(index_classes, "CHUNK_ROWS", chunk)
    vectors, queries, known = world()
    got = known.scores(torch.from_numpy(queries).float(), by).numpy()
    expected = [expected_scores(vectors, LABELS, query, by) for query in queries]
    np.testing.assert_allclose(got, expected, atol=1e-3)
    assert np.isneginf(got[:, 2]).all()


@pytest.mark.parametrize("by", ["neighbours", "means"])
@pytest.mark.parametrize("chunk", [2, 8192])
def test_the_temperature_makes_the_labels_of_images_left_out_most_likely(monkeypatch, by, chunk):
    monkeypatch.setattr(index_classes, "CHUNK_ROWS", chunk)
    vectors, _, known = world()
    judged = []
    for i in np.flatnonzero(LABELS != 4):  # which has no other image
        rest = np.arange(len(LABELS)) != i
        scores = np.array(expected_scores(vectors[rest], LABELS[rest], vectors[i], by))
        filled = [0, 1, 3, 4]
        judged.append((scores[filled], filled.index(LABELS[i])))

    def loss(temperature: float) -> float:
        own, mean = 0.0, 0.0
        for scores, label in judged:
            logs = scores / temperature - np.log(np.exp(scores / temperature).sum())
            start = scores * index_classes.SHARPNESS
            probs = np.exp(start) / np.exp(start).sum()
            own, mean = own - logs[label], mean - (probs * logs).sum()
        return own + mean / len(judged)  # one image more, see fit_temperature

    best = minimize_scalar(loss, bounds=(0.003, 1), method="bounded", options={"xatol": 1e-6}).x
    assert known.temperature(by) == pytest.approx(best, rel=0.02)


def test_without_two_images_of_a_class_the_temperature_is_the_start():
    known = KnownImages(unit(np.eye(3)), np.arange(3), 3)
    assert known.temperature("neighbours") == known.temperature("means") == 1 / index_classes.SHARPNESS


def test_a_large_index_is_judged_by_some_of_its_images(monkeypatch):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 3000)
    vectors = unit(np.eye(16)[labels] * 2 + rng.normal(size=(3000, 16)))
    whole = KnownImages(vectors, labels, 4).temperature("neighbours")
    monkeypatch.setattr(index_classes, "QUERIES", 400)
    assert KnownImages(vectors, labels, 4).temperature("neighbours") == pytest.approx(whole, rel=0.2)
