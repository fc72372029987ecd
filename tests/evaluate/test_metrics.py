"""Tables of a split, by hand and against scikit-learn."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from fgvc_cli.charts import figures
from fgvc_cli.data.taxonomy import Taxonomy
from fgvc_cli.evaluate import metrics
from fgvc_cli.evaluate.metrics import (
    Confusion,
    RollUp,
    class_figures,
    confusion,
    in_top,
    most_confused,
    taxonomy_figures,
)

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
    for shown in (9, 40):
        (found, said), (expected, same) = (figures._gather(each, names, shown) for each in (sparse, dense))
        assert (found == expected).all() and said == same
    assert figures.draw_confusion(sparse[:3][:, :3], names[:3])


def test_ten_thousand_classes_and_forty_images_take_little_memory():
    labels = np.arange(40) * 250
    tracemalloc.start()
    matrix = confusion(labels, labels[::-1].copy(), 10_000)
    rows, pairs = class_figures(matrix), most_confused(matrix, 6)
    figures._gather(matrix, [str(i) for i in range(10_000)], 30)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rows) == 10_000 and len(pairs) == 6
    assert peak < 50e6


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


TREE = Taxonomy.of(
    ("order", "family"),
    {"a": ("O", "F"), "b": ("O", "F"), "c": ("O", "G"), "d": ("P", ""), "e": ("", "")},
    "abcde",
)
PROBS = torch.tensor(
    [
        [0.95, 0.05, 0.0, 0.0, 0.0],
        [0.5, 0.45, 0.05, 0.0, 0.0],
        [0.5, 0.3, 0.15, 0.05, 0.0],
        [0.3, 0.3, 0.2, 0.1, 0.1],
        [0.05, 0.0, 0.0, 0.95, 0.0],
        [0.05, 0.0, 0.0, 0.0, 0.95],
    ]
)


def test_an_answer_is_rolled_up_to_the_finest_node_that_is_probable_enough():
    roll_up = RollUp(TREE, 0.9)
    rank, node, prob = roll_up(PROBS)
    named = [
        (roll_up.ranks[r] if r >= 0 else "", roll_up.label(r, n, "abcde"))
        for r, n in zip(rank.tolist(), node.tolist(), strict=True)
    ]
    assert named == [
        ("class", "a"),
        ("family", "F"),
        ("order", "O"),
        ("", ""),
        ("class", "d"),
        ("class", "e"),
    ]
    assert prob[[0, 1, 2, 4, 5]].tolist() == pytest.approx([0.95] * 5) and prob[3].isnan()


def test_of_two_nodes_that_reach_the_more_probable_answers_and_the_root_never_does():
    rank, node, prob = RollUp(TREE, 0.15)(
        torch.tensor([[0.14, 0.14, 0.14, 0.14, 0.14], [0.0, 0.0, 0.2, 0.3, 0.5]])
    )
    assert rank.tolist() == [1, 0] and node.tolist() == [0, 4]
    assert prob.tolist() == pytest.approx([0.28, 0.5])
    assert RollUp(TREE, 0.9)(torch.full((1, 5), 0.2))[0].tolist() == [-1]


def test_figures_of_a_taxonomy_by_hand():
    labels = np.array([0, 0, 2, 3, 3, 4])  # guesses: a a a a d e
    figures = taxonomy_figures(TREE, labels, PROBS, 0.9)
    found = {line["rank"]: line for line in figures["ranks"]}
    assert [line["images"] for line in figures["ranks"]] == [6, 3, 5]
    assert found["class"]["accuracy"] == pytest.approx(4 / 6)
    assert found["family"]["accuracy"] == pytest.approx(2 / 3)  # of a, a, c
    assert found["order"]["accuracy"] == pytest.approx(4 / 5)  # of all but e
    assert [line["coverage"] for line in figures["ranks"]] == pytest.approx([3 / 6, 1 / 6, 1 / 6])
    assert [line["answer_accuracy"] for line in figures["ranks"]] == [1.0, 1.0, 1.0]
    assert figures["rollup"] == {"least": 0.9, "coverage": pytest.approx(5 / 6), "accuracy": 1.0}
    assert figures["mistakes"] == {"2": 1, "3": 1} and figures["mean_distance"] == 2.5
    assert taxonomy_figures(TREE, labels, PROBS)["rollup"] is None


def test_many_classes_are_a_long_table(monkeypatch):
    monkeypatch.setattr(metrics, "WIDE_CLASSES", 1)
    table = [[*row] for row in metrics.confusion_rows(np.array([[3, 0], [1, 2]]), ["a", "b"])]
    assert table == [["label", "guess", "images"], ["a", "a", 3], ["b", "a", 1], ["b", "b", 2]]
