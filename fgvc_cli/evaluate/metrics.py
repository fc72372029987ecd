"""What labels and guesses come to, as pure functions: one row per class, and who is taken for whom.

Legend: N images, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array, csr_array

TOP = 5

DENSE_CLASSES = 512
"""Up to so many classes a confusion matrix is an array; that of 10,000 would take 0.8 GB, almost all 0."""

Matrix = np.ndarray | csr_array


class ClassFigures(NamedTuple):
    """One class of a split; a share without a denominator is None."""

    images: int
    recall: float | None
    """Share of the class's own images that are right: its top-1."""
    precision: float | None
    """Share of the guesses of this class that are right."""
    f1: float | None
    taken_for: int | None
    """The class that its misread images are most often taken for, the first of equals; None without one."""
    taken_count: int


class Confusion(NamedTuple):
    """So many images of the class ``label`` were taken for the class ``guess``."""

    label: int
    guess: int
    images: int


def in_top(labels: np.ndarray, probs: np.ndarray, k: int = TOP) -> np.ndarray:
    """Whether the label is among the k best guesses, bool (N,); of equals the first counts, as in argmax.

    Args:
        labels: int (N,).
        probs: (N, K).
    """
    own = np.take_along_axis(probs, labels[:, None], axis=1)
    first = np.arange(probs.shape[1]) < labels[:, None]
    ahead = (probs > own) | ((probs == own) & first)
    return ahead.sum(axis=1) < k


def confusion(labels: np.ndarray, guesses: np.ndarray, classes: int) -> Matrix:
    """Images of each class by what they were taken for, int (K, K): rows are the truth.

    Above ``DENSE_CLASSES`` it is sparse, with the same ``matrix[label, guess]``, ``nonzero()`` and sums.
    """
    counts = coo_array((np.ones(len(labels), np.int64), (labels, guesses)), shape=(classes, classes)).tocsr()
    return counts.toarray() if classes <= DENSE_CLASSES else counts


def mistakes(matrix: Matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label, guess and number of images of each filled cell off the diagonal of a ``confusion`` matrix."""
    cells = coo_array(matrix)
    wrong = (cells.row != cells.col) & (cells.data > 0)
    return cells.row[wrong], cells.col[wrong], cells.data[wrong]


def class_figures(matrix: Matrix) -> list[ClassFigures]:
    """Per class of a ``confusion`` matrix (K, K); F1 is None where a class is neither shown nor guessed."""
    images, guessed, right = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    labels, guesses, counts = mistakes(matrix)
    taken_for: dict[int, tuple[int, int]] = {}
    for i in np.lexsort((guesses, -counts, labels)).tolist():
        taken_for.setdefault(int(labels[i]), (int(guesses[i]), int(counts[i])))
    rows = []
    for label in range(matrix.shape[0]):
        most, count = taken_for.get(label, (None, 0))
        rows.append(
            ClassFigures(
                images=int(images[label]),
                recall=_share(right[label], images[label]),
                precision=_share(right[label], guessed[label]),
                f1=_share(2 * right[label], images[label] + guessed[label]),
                taken_for=most,
                taken_count=count,
            )
        )
    return rows


def most_confused(matrix: Matrix, limit: int) -> list[Confusion]:
    """The directed pairs with most images, at most ``limit``; of equals that of the smaller class first."""
    labels, guesses, counts = mistakes(matrix)
    order = np.lexsort((guesses, labels, matrix.sum(axis=1)[labels], -counts))[:limit]
    return [Confusion(int(labels[i]), int(guesses[i]), int(counts[i])) for i in order]


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
