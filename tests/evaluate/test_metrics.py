"""Tables of a split, by hand and against scikit-learn."""

from __future__ import annotations

import tracemalloc

import numpy as np
from sklearn.metrics import top_k_accuracy_score

from fgvc_cli.charts.figures import draw_confusion
from fgvc_cli.evaluate import metrics
from fgvc_cli.evaluate.metrics import Confusion, class_figures, confusion, in_top, most_confused

LABELS = np.array([0, 0, 0, 0, 1, 1, 2])
GUESSES = np.array([0, 0, 1, 2, 1, 0, 2])


def test_confusion_has_the_truth_in_rows_and_every_class():
    assert confusion(LABELS, GUESSES, 4).tolist() == [[2, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_a_large_confusion_is_sparse_and_says_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    labels, guesses = rng.integers(40, size=300), rng.integers(40, size=300)
    dense = confusion(labels, guesses, 40)
    monkeypatch.setattr(metrics, "DENSE_CLASSES", 39)
    sparse = confusion(labels, guesses, 40)
    assert not isinstance(sparse, np.ndarray) and (sparse.toarray() == dense).all()
    assert class_figures(sparse) == class_figures(dense)
    assert most_confused(sparse, 9) == most_confused(dense, 9)
    assert sparse[3].sum() == dense[3].sum() and sparse[labels[0], guesses[0]] == dense[labels[0], guesses[0]]
    names = [f"c{i}" for i in range(40)]
    assert draw_confusion(sparse, names) == draw_confusion(dense, names)


def test_ten_thousand_classes_and_forty_images_take_little_memory():
    labels = np.arange(40) * 250
    tracemalloc.start()
    matrix = confusion(labels, labels[::-1].copy(), 10_000)
    rows, pairs = class_figures(matrix), most_confused(matrix, 6)
    draw_confusion(matrix, [str(i) for i in range(10_000)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rows) == 10_000 and len(pairs) == 6
    assert peak < 200e6


def test_class_figures_by_hand():
    first, second, third, absent = class_figures(confusion(LABELS, GUESSES, 4))
    assert first == (4, 2 / 4, 2 / 3, 4 / 7, 1, 1)
    assert second == (2, 1 / 2, 1 / 2, 1 / 2, 0, 1)
    assert third == (1, 1.0, 1 / 2, 2 / 3, None, 0)
    assert absent == (0, None, None, None, None, 0)


def test_most_confused_by_number_then_by_share():
    matrix = np.array([[5, 2, 0], [3, 9, 0], [2, 0, 1]])
    assert most_confused(matrix, 2) == [Confusion(1, 0, 3), Confusion(2, 0, 2)]
    assert len(most_confused(matrix, 9)) == 3
    assert most_confused(np.eye(3, dtype=int), 9) == []


def test_top_k_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    probs, labels = rng.random((60, 9)), rng.integers(9, size=60)
    expected = top_k_accuracy_score(labels, probs, k=5, labels=range(9))
    assert in_top(labels, probs).mean() == expected


def test_of_equal_probabilities_the_first_counts_as_in_argmax():
    probs = np.full((3, 3), 1 / 3)
    labels = np.arange(3)
    assert (in_top(labels, probs, 1) == (probs.argmax(axis=1) == labels)).all()
    assert in_top(labels, probs, 2).tolist() == [True, True, False]
    assert in_top(labels, probs).all()
