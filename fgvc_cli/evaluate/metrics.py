"""What labels and guesses come to, as pure functions: one row per class, and who is taken for whom.

Legend: N images, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.metrics import confusion_matrix

TOP = 5


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


def confusion(labels: np.ndarray, guesses: np.ndarray, classes: int) -> np.ndarray:
    """Images of each class by what they were taken for, int (K, K): rows are the truth."""
    counts: np.ndarray = confusion_matrix(labels, guesses, labels=range(classes))
    return counts


def class_figures(matrix: np.ndarray) -> list[ClassFigures]:
    """Per class of a ``confusion`` matrix (K, K); F1 is None where a class is neither shown nor guessed."""
    images, guessed, right = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    wrong = matrix - np.diag(right)
    rows = []
    for label in range(len(matrix)):
        most = int(wrong[label].argmax())
        count = int(wrong[label, most])
        rows.append(
            ClassFigures(
                images=int(images[label]),
                recall=_share(right[label], images[label]),
                precision=_share(right[label], guessed[label]),
                f1=_share(2 * right[label], images[label] + guessed[label]),
                taken_for=most if count else None,
                taken_count=count,
            )
        )
    return rows


def most_confused(matrix: np.ndarray, limit: int) -> list[Confusion]:
    """The directed pairs with most images, at most ``limit``; of equals that of the smaller class first."""
    wrong = matrix - np.diag(matrix.diagonal())
    labels, guesses = np.nonzero(wrong)
    counts = wrong[labels, guesses]
    order = np.lexsort((matrix.sum(axis=1)[labels], -counts))[:limit]
    return [Confusion(int(labels[i]), int(guesses[i]), int(counts[i])) for i in order]


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
