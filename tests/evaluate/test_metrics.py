"""Tables of a split, by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import top_k_accuracy_score

from fgvc_cli.evaluate.metrics import Confusion, class_figures, confusion, in_top, most_confused

LABELS = np.array([0, 0, 0, 0, 1, 1, 2])
GUESSES = np.array([0, 0, 1, 2, 1, 0, 2])


def test_confusion_has_the_truth_in_rows_and_every_class():
    assert confusion(LABELS, GUESSES, 4).tolist() == [[2, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


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
