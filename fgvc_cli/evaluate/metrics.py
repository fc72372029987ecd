"""What labels and guesses come to, as pure functions.

Of one class per image: one row per class, and who is taken for whom. Of several labels: each is there or not,
by a threshold of 0.5.

Legend: N images, K classes or labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array, csr_array
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor

from fgvc_cli.data.listing import LabelledSet
from fgvc_cli.data.taxonomy import CLASS, Taxonomy
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.evaluate.intervals import share_interval

TOP = 5

DENSE_CLASSES = 512
"""Up to so many classes a confusion matrix is an array; that of 10,000 would take 0.8 GB, almost all 0."""

WIDE_CLASSES = 200
"""Up to so many classes a confusion table is the whole matrix; beyond, a line for each pair that occurs."""

Matrix: TypeAlias = np.ndarray | csr_array


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


def class_rows(matrix: Matrix, classes: Sequence[str]) -> Iterator[Sequence[object]]:
    """A table of ``class_figures``, its header first."""
    yield ["class", "images", "recall", "precision", "f1", "most_confused_with", "confused_images"]
    for name, row in zip(classes, class_figures(matrix), strict=True):
        shares = ["" if value is None else f"{value:.4f}" for value in (row.recall, row.precision, row.f1)]
        taken = "" if row.taken_for is None else classes[row.taken_for]
        yield [name, row.images, *shares, taken, row.taken_count]


def confusion_rows(matrix: Matrix, classes: Sequence[str]) -> Iterator[Sequence[object]]:
    """A ``confusion`` matrix as a table, its header first; of many classes a line per pair that occurs."""
    if len(classes) <= WIDE_CLASSES:
        yield ["label", *classes]
        for name, counts in zip(classes, matrix.tolist(), strict=True):
            yield [name, *counts]
        return
    yield ["label", "guess", "images"]
    for label, guess in zip(*np.nonzero(matrix), strict=True):
        yield [classes[label], classes[guess], int(matrix[label, guess])]


def most_confused(matrix: Matrix, limit: int) -> list[Confusion]:
    """The directed pairs with most images, at most ``limit``; of equals that of the smaller class first."""
    labels, guesses, counts = mistakes(matrix)
    order = np.lexsort((guesses, labels, matrix.sum(axis=1)[labels], -counts))[:limit]
    return [Confusion(int(labels[i]), int(guesses[i]), int(counts[i])) for i in order]


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


THRESHOLD = 0.5
_SAME = {True: ("true", "yes", "on", "1"), False: ("false", "no", "off", "0")}


def multilabel_metrics(labels: Tensor, probs: Tensor, branches: dict[str, Tensor]) -> dict[str, float]:
    """Macro and micro F1, mAP, share of images with exactly their labels, BCE; macro F1 of each branch.

    Macro F1 and mAP (the mean over labels of scikit-learn's average precision, without interpolation) are
    over the labels that some image has; 0 where none has any. An image without a label is matched exactly
    where no label is told.

    Args:
        labels: float (N, K), 0 or 1; N at least 1.
        probs: fused, (N, K).
        branches: name -> (N, K); a row is NaN where a cascade stopped before that branch.
    """
    truth, guesses = labels.numpy() > 0.5, probs.numpy() > THRESHOLD
    result = {
        "macro_f1": _macro_f1(labels, probs),
        "micro_f1": float(f1_score(truth, guesses, average="micro", zero_division=0.0)),
        "map": _mean_average_precision(truth, probs.numpy()),
        "exact_match": float(exact_matches(labels, probs).mean()),
        "bce": float(F.binary_cross_entropy(probs.double().clamp(0, 1), labels.double())),
    }
    for name, branch in branches.items():
        reached = ~branch.isnan().any(dim=1)
        if reached.any():
            result[f"macro_f1_{name}"] = _macro_f1(labels[reached], branch[reached])
        if not reached.all():
            result[f"reached_{name}"] = float(reached.double().mean())
    return result


def exact_matches(labels: Tensor, probs: Tensor) -> np.ndarray:
    """Whether an image is given its labels and no other, bool (N,)."""
    return ((labels.numpy() > 0.5) == (probs.numpy() > THRESHOLD)).all(axis=1)


def rank(scores: dict[str, float]) -> tuple[float, float]:
    """What chooses the epoch, larger is better: top-1, then NLL; of several labels macro F1, then mAP."""
    if "top1" in scores:
        return scores["top1"], -scores["nll"]
    return scores["macro_f1"], scores["map"]


def headline(scores: dict[str, float], prefix: str = "") -> str:
    """The figures to print first; ``prefix`` stands before their names in ``scores``."""
    if f"{prefix}top1" in scores:
        return f"top-1 {100 * scores[f'{prefix}top1']:.2f} %"
    return f"macro F1 {100 * scores[f'{prefix}macro_f1']:.2f} %, mAP {100 * scores[f'{prefix}map']:.2f} %"


def label_slots(data: LabelledSet, model_classes: int, multi_label: bool) -> int | None:
    """K of the targets that fit a model; None where a target is one class index.

    Raises:
        FgvcError: images with several labels for a model that tells one class.
    """
    if data.multi_label and not multi_label:
        raise FgvcError(
            f"{data.name} has several labels per image, the model tells one class each.",
            "Train one on a set of that kind, or name the column label.",
        )
    return model_classes if multi_label else None


def check_labels(told: bool | str, multi_label: bool, sampling: str) -> None:
    """Whether a training fits its data.

    Args:
        told: ``options.multi_label`` of the model, a word as ``--set`` takes it or its value.
        multi_label: whether the data has several labels per image.
        sampling: ``TrainConfig.sampling``.

    Raises:
        FgvcError: a model of the other kind; sampling that several labels do not go with.
    """
    if str(told).lower() not in _SAME[multi_label]:
        raise FgvcError(
            f"options.multi_label={told}, but the data "
            f"{'has several labels' if multi_label else 'has one class'} per image.",
            "Leave it out: the data decides. A CSV with a column labels (a|b) has several. In Python: "
            f"create_model(..., options={{'multi_label': {multi_label}}}).",
            EXIT_USAGE,
        )
    if multi_label and sampling == "balanced":
        raise FgvcError(
            "sampling=balanced draws every class equally often, but an image of this data has several.",
            "Leave it out.",
            EXIT_USAGE,
        )


def _mean_average_precision(truth: np.ndarray, probs: np.ndarray) -> float:
    there = truth.any(axis=0)
    if not there.any():
        return 0.0
    return float(average_precision_score(truth[:, there], probs[:, there], average="macro"))


def _macro_f1(labels: Tensor, probs: Tensor) -> float:
    truth, guesses = labels.numpy() > 0.5, probs.numpy() > THRESHOLD
    there = truth.any(axis=0)
    if not there.any():
        return 0.0
    each = f1_score(truth[:, there], guesses[:, there], average=None, zero_division=0.0)
    return float(torch.as_tensor(each).mean())


class RollUp:
    """The finest node of a tree that is probable enough, the class itself first.

    Args:
        taxonomy: of the classes.
        least: what a node's probability, the sum over its classes, has to reach.
    """

    def __init__(self, taxonomy: Taxonomy, least: float):
        self.taxonomy, self.least = taxonomy, least
        levels = taxonomy.levels()
        classes = len(taxonomy.lineages)
        self.ranks = (CLASS, *(rank for rank, _, _ in levels))
        """From fine to coarse."""
        self.nodes = [np.arange(classes), *(node for _, _, node in levels)]
        """Per rank, the node of each class, int (K,), -1 for none."""
        self.names = [(), *(names for _, names, _ in levels)]
        """Per rank, the nodes; of rank ``class`` the classes are."""
        # Classes without a node go into a last one, which is cut off.
        self._places = [torch.from_numpy(np.where(node < 0, len(names), node)) for _, names, node in levels]

    def __call__(self, probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities (B, K) -> rank and node int64 (B,), -1 where nothing reaches, and its probability
        float32 (B,), NaN there.

        Of several nodes of a rank the most probable answers; the root, which is always right, never does.
        """
        probs = probs.double()
        best, node = probs.max(dim=1)
        # What is 0.9 in the file, which holds float32, has reached 0.9.
        least = self.least - 1e-7
        found = torch.where(best >= least, 0, -1)
        self._places = [places.to(probs.device) for places in self._places]
        for number, places in enumerate(self._places, start=1):
            if not self.names[number]:
                continue
            sums = probs.new_zeros(len(probs), len(self.names[number]) + 1).index_add_(1, places, probs)
            sums, which = sums[:, :-1].max(dim=1)
            here = (found < 0) & (sums >= least)
            found = torch.where(here, number, found)
            node, best = torch.where(here, which, node), torch.where(here, sums, best)
        none = found < 0
        return found, node.masked_fill(none, -1), best.masked_fill(none, torch.nan).float()

    def label(self, rank: int, node: int, classes: Sequence[str]) -> str:
        """The name of an answer, empty for none."""
        return "" if rank < 0 else (classes if rank == 0 else self.names[rank])[node]


def taxonomy_figures(
    taxonomy: Taxonomy, labels: np.ndarray, probs: Tensor, least: float | None = None
) -> dict[str, Any]:
    """How right a model is at each rank, and how far off its mistakes are.

    Args:
        labels: int (N,).
        probs: (N, K), calibrated.
        least: also of the answers of ``RollUp``.

    Returns:
        Plain JSON values. ``ranks``: from fine to coarse, each with ``images`` (those whose class has a node
        there), ``accuracy`` and its ``interval``; with ``least``, ``coverage`` (share of all images that are
        answered at this rank) and ``answer_accuracy`` of these. ``mistakes`` by distance, see
        ``Taxonomy.distance``, and ``mean_distance`` of them. ``rollup``: coverage and accuracy in all.
    """
    guesses = probs.argmax(dim=1).numpy()
    roll_up = RollUp(taxonomy, least or 1.0)
    rank, node, _ = (values.numpy() for values in roll_up(probs)) if least else (None, None, None)
    lines, right_answers = [], 0
    for number, name in enumerate(roll_up.ranks):
        of_class = roll_up.nodes[number]
        there = of_class[labels] >= 0
        right = int((of_class[labels] == of_class[guesses])[there].sum())
        line: dict[str, Any] = {"rank": name, "images": int(there.sum()), "accuracy": None, "interval": None}
        if there.any():
            line |= {"accuracy": right / line["images"], "interval": share_interval(right, line["images"])}
        if rank is not None and node is not None:
            answered = rank == number
            hits = int((node == of_class[labels])[answered].sum())
            right_answers += hits
            line["coverage"] = float(answered.mean())
            line["answer_accuracy"] = _share(hits, int(answered.sum()))
        lines.append(line)
    distances = taxonomy.distance(labels, guesses)
    distances = distances[distances > 0]
    figures: dict[str, Any] = {
        "ranks": lines,
        "mistakes": {str(height): int((distances == height).sum()) for height in np.unique(distances)},
        "mean_distance": float(distances.mean()) if len(distances) else None,
        "rollup": None,
    }
    if rank is not None:
        answered = int((rank >= 0).sum())
        figures["rollup"] = {
            "least": least,
            "coverage": answered / len(labels),
            "accuracy": _share(right_answers, answered),
        }
    return figures


def rank_rows(figures: dict[str, Any]) -> Iterator[Sequence[object]]:
    """A table of ``taxonomy_figures``, its header first: rank by rank, from fine to coarse; the last two
    where answers were rolled up."""
    shares = ["accuracy", "low", "high", *(["coverage", "answer_accuracy"] if figures["rollup"] else [])]
    yield ["rank", "images", *shares]
    for line in figures["ranks"]:
        line = line | dict(zip(("low", "high"), line["interval"] or (None, None), strict=True))
        values = ["" if line[name] is None else f"{line[name]:.4f}" for name in shares]
        yield [line["rank"], line["images"], *values]
