"""How far to believe an answer: its probability, calibrated; too little of it; an image unlike any it saw.

A temperature is fitted for a checkpoint that has none, or another: an interrupted training stores T = 1.
Novelty is the distance of the embedding to the nearest class mean, over one variance per dimension that all
classes share (Lee et al. 2018 with a diagonal covariance). A threshold per class is the least probability
at which rows of that class are as precise as wanted.

Legend: N images, K classes, B images of a batch, D embedding width, M classes with training images.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fgvc_cli.config import Preprocess
from fgvc_cli.data.listing import Example
from fgvc_cli.data.loaders import Batch
from fgvc_cli.data.names import from_cell
from fgvc_cli.errors import EXIT_USAGE, FgvcError, counted
from fgvc_cli.models.output import normalize

TEMPERATURES = (0.05, 20.0)
"""Least and largest temperature that is fitted."""

LEAST_IMAGES = 20
SURE_IMAGES = 500
FOLDS = 10
"""See ``fit_calibration``."""

_TINY = torch.finfo(torch.float32).tiny
_ROWS = 4096


@dataclass(frozen=True)
class Calibration:
    """A temperature and where it comes from; a checkpoint stores it."""

    temperature: float
    split: str
    """What it was fitted on: there, calibrated figures are not held out."""
    images: int
    """N of the fit."""
    refused: bool = False
    """Whether the fit was given up, T being 1: too few images, or no gain on images left out of it."""

    @property
    def in_words(self) -> str:
        """One line about a fit that was given up."""
        few = f"{counted(self.images, 'image')} of the {self.split} split"
        if self.images < LEAST_IMAGES:
            return f"prob is not calibrated: {few} are too few to fit a temperature (at least {LEAST_IMAGES})"
        return f"prob is not calibrated: a temperature fitted on {few} did not hold up in cross-validation"

    @property
    def clamped(self) -> bool:
        """Whether the split asks for a temperature beyond ``TEMPERATURES``."""
        return self.temperature in TEMPERATURES


def apply_temperature(probs: Tensor, temperature: float) -> Tensor:
    """softmax(log p / T): below 1 sharper, above 1 flatter, 1 is the identity.

    No class overtakes another, but two closer than float32 can tell may become equal: whoever needs the same
    top-k as without a temperature takes the indices from ``probs`` and gathers.

    Args:
        probs: (B, K), rows summing to 1; a probability of 0 counts as the smallest normal float32.

    Returns:
        float32 (B, K), rows summing to 1, on the same device.

    Raises:
        ValueError: a temperature that is not positive and finite.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"the temperature is {temperature}, expected a positive number")
    probs = probs.float()
    if temperature == 1:
        return probs
    return (_log(probs) / temperature).softmax(dim=-1)


def mean_probs(probs: Sequence[Tensor], temperatures: Sequence[float]) -> Tensor:
    """The mean of several answers (B, K) to the same images, each with its temperature, float32."""
    told = [
        apply_temperature(each, temperature) for each, temperature in zip(probs, temperatures, strict=True)
    ]
    return torch.stack(told).mean(dim=0) if len(told) > 1 else told[0]


def fit_temperature(
    probs: Tensor, labels: Tensor, add_up: Callable[[Tensor], Tensor] = lambda sums: sums
) -> float:
    """The temperature that makes the true labels most likely, within ``TEMPERATURES``.

    Guo et al. minimise the NLL alone, which has no minimum where every image is right, as on many a small
    split. Ours counts one image more, the mean of all, its label drawn from the probabilities as they are
    (Platt 1999 smooths his targets likewise): few images move the temperature little, and from some hundreds
    on it makes no difference. The sum is convex in 1/T; the zero of its slope is bracketed, so that equal
    inputs give equal answers.

    Args:
        probs: (N, K), fused, of validation images.
        labels: int64 (N,).
        add_up: sums over these images -> over those of all processes, each of which fits its part.

    Returns:
        T; 1 where no temperature is better than another (no image, uniform probabilities).
    """
    count = float(add_up(torch.tensor(float(len(labels)), dtype=torch.float64)))

    def slope(sharpness: float) -> float:
        own, mean = add_up(_slopes(sharpness, probs, labels)).tolist()
        return own + mean / count

    if not count or abs(slope(1.0)) < 1e-9 * count:
        return 1.0
    least, largest = TEMPERATURES
    if slope(1 / largest) >= 0:
        return largest
    if slope(1 / least) <= 0:
        return least
    from scipy.optimize import brentq  # a third of a second that a prediction, which imports this file, saves

    return 1 / brentq(slope, 1 / largest, 1 / least, xtol=1e-8)


def fit_calibration(
    probs: Tensor, labels: Tensor, split: str, add_up: Callable[[Tensor], Tensor] = lambda sums: sums
) -> Calibration:
    """Fit a temperature where that can be trusted to help, else keep 1.

    Few images make a fit that suits them alone: with 6, an ECE has gone from 29 to 42 %. Below
    ``LEAST_IMAGES`` nothing is fitted. Below ``SURE_IMAGES`` the fit is cross-validated (``FOLDS`` parts,
    each scored by the temperature of the others), and kept if the NLL of images left out falls by more than
    its standard error.

    Args:
        probs, labels, add_up: as ``fit_temperature``; in the order of classes, so that folds are alike.
        split: what they are, for the record.
    """
    count = int(add_up(torch.tensor(float(len(labels)), dtype=torch.float64)))
    kept = count >= LEAST_IMAGES and (count >= SURE_IMAGES or _holds_up(probs, labels, count, add_up))
    temperature = fit_temperature(probs, labels, add_up) if kept else 1.0
    return Calibration(temperature, split, count, refused=not kept)


def _holds_up(probs: Tensor, labels: Tensor, count: int, add_up: Callable[[Tensor], Tensor]) -> bool:
    """Whether images gain by the temperature of others; every process comes to the same answer."""
    fold = torch.arange(len(labels)) % FOLDS
    gains = torch.zeros(len(labels), dtype=torch.float64)
    for part in range(FOLDS):
        out = fold == part
        temperature = fit_temperature(probs[~out], labels[~out], add_up)
        before, after = (
            _log(each.double()).gather(1, labels[out, None]).squeeze(1)
            for each in (probs[out], apply_temperature(probs[out], temperature))
        )
        gains[out] = after - before
    total, squares = add_up(torch.stack([gains.sum(), (gains**2).sum()])).tolist()
    variance = max(0.0, squares - total**2 / count) / (count - 1)
    return total / count > math.sqrt(variance / count)


class Reliability(NamedTuple):
    """Images by confidence, the largest probability of each, in B bins of equal width over (0, 1]."""

    images: np.ndarray
    """int (B,)."""
    confidence: np.ndarray
    """Mean of the bin's images, float64 (B,); NaN in an empty bin."""
    accuracy: np.ndarray
    """Share of the bin's images that are right, as ``confidence``."""

    @property
    def error(self) -> float:
        """ECE (Guo et al., eq. 3): sum over bins of n_bin / N * |accuracy - mean confidence|."""
        filled = self.images > 0
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float((gaps * self.images[filled]).sum() / self.images.sum())


def reliability(probs: Tensor, labels: Tensor, bins: int = 15) -> Reliability:
    """What a reliability diagram shows; each bin has its upper edge.

    Args:
        probs: (N, K), N at least 1.
        labels: int64 (N,).
    """
    top = probs.double().max(dim=1)
    return reliability_of(top.values.numpy(), (top.indices == labels).numpy(), bins)


def reliability_of(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> Reliability:
    """``reliability`` of images with their largest probability, float64 (N,), and whether it is right, bool
    (N,)."""
    index = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    images = np.bincount(index, minlength=bins)
    sums = [np.bincount(index, weights=values, minlength=bins) for values in (confidence, right)]
    means = [np.divide(total, images, out=np.full(bins, np.nan), where=images > 0) for total in sums]
    return Reliability(images, *means)


def _log(probs: Tensor) -> Tensor:
    return probs.clamp_min(_TINY).log()


def _slopes(sharpness: float, probs: Tensor, labels: Tensor) -> Tensor:
    """Derivatives with respect to 1/T of the NLL summed over N images, and of the image that stands for all,
    before it is divided by their number: float64 (2,)."""
    own, mean = 0.0, 0.0
    # In pieces: float64 copies of a large split are not made whole.
    for rows, truth in zip(probs.split(_ROWS), labels.split(_ROWS), strict=True):
        logs = _log(rows.double())
        expected = ((sharpness * logs).softmax(dim=-1) * logs).sum(dim=-1)
        own += float((expected - logs.gather(1, truth[:, None]).squeeze(1)).sum())
        mean += float((expected - (logs.softmax(dim=-1) * logs).sum(dim=-1)).sum())
    return torch.tensor([own, mean], dtype=torch.float64)


KEPT = 0.95
"""Fraction of the val split that the threshold of novelty keeps."""

NOVELTY_IMAGES = math.ceil(KEPT / (1 - KEPT))
"""Of the val split; with fewer, no threshold among theirs keeps that fraction of new ones."""

SHRINKAGE = 0.1
"""How much of each variance is the mean of all: a dimension that hardly varies must not decide alone."""

IMAGES_PER_CLASS = 100
"""Training images that a mean is made of, at most."""

NO_NOVELTY = (
    f"no novelty is fitted: that takes {NOVELTY_IMAGES} val images and classes of more than one "
    "training image"
)
"""Where ``fit_novelty`` gives none."""

TENSORS = "novelty."
"""How the names of its tensors begin in a checkpoint."""


@dataclass(frozen=True)
class Novelty:
    """How far from the training images an embedding lies; a checkpoint stores it."""

    center: Tensor
    """float32 (D,): mean over the classes."""
    scale: Tensor
    """float32 (D,): standard deviation around the class means."""
    means: Tensor
    """float16 (M, D): of the classes, less ``center``, over ``scale``."""
    threshold: float
    """The distance at which the score is 1."""
    split: str = "val"
    """What the threshold was fitted on."""
    images: int = 0
    """How many of that split there were."""

    def scores(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, D) -> float32 (B,) from 0, ``distances`` over the threshold: beyond 1, an image is
        more unlike those of the training than ``KEPT`` of the val split are."""
        return self.distances(embeddings) / self.threshold

    def distances(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, D) -> distance to the nearest mean, float32 (B,), over the square root of D: about 1
        for an image that lies as far from its mean as those of the training do."""
        center, scale, means = (
            values.to(embeddings.device, torch.float32) for values in (self.center, self.scale, self.means)
        )
        return torch.cdist((embeddings.float() - center) / scale, means).amin(dim=1) / len(center) ** 0.5

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint stores, by name."""
        return {f"{TENSORS}{name}": getattr(self, name) for name in ("center", "scale", "means")}

    def document(self) -> dict[str, Any]:
        """What stands in its metadata."""
        return {"threshold": self.threshold, "kept": KEPT, "split": self.split, "images": self.images}


def stored_novelty(tensors: Mapping[str, Tensor], document: Mapping[str, Any] | None) -> Novelty | None:
    """What ``tensors`` and ``document`` of a checkpoint hold; None where it was written without."""
    if document is None:
        return None
    own = {name.removeprefix(TENSORS): values for name, values in tensors.items() if name.startswith(TENSORS)}
    return Novelty(**own, threshold=document["threshold"], split=document["split"], images=document["images"])


@torch.inference_mode()
def embed(
    model: nn.Module, loader: Iterable[Batch], preprocess: Preprocess, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Embeddings float32 (B, D) and labels (B,) of the readable images of each batch, on the CPU.

    Raises:
        FgvcError: a model that gives none.
    """
    with _first_stage_only(model):
        for batch in loader:
            if len(batch.labels):
                images = normalize(batch.images.to(device, non_blocking=True), preprocess)
                output = model(images.contiguous(memory_format=torch.channels_last), want=("embedding",))
                if output.embedding is None:
                    raise FgvcError(f"{type(model).__name__} gives no embedding to measure novelty by.")
                yield output.embedding.float().cpu(), batch.labels


@contextlib.contextmanager
def _first_stage_only(model: nn.Module) -> Iterator[None]:
    """A multi-stage ViT stops after its first stage, which its embedding is of."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "cascade"):
        yield
        return
    model.config = config.model_copy(update={"cascade": 0.0})
    try:
        yield
    finally:
        model.config = config


def fit_examples(examples: Sequence[Example]) -> list[Example]:
    """The first ``IMAGES_PER_CLASS`` of each class."""
    counts: dict[int, int] = {}
    chosen = []
    for example in examples:
        counts[example.label] = counts.get(example.label, 0) + 1
        if counts[example.label] <= IMAGES_PER_CLASS:
            chosen.append(example)
    return chosen


def fit_novelty(
    train: Iterable[tuple[Tensor, Tensor]],
    val: Iterable[tuple[Tensor, Tensor]],
    classes: int,
    gather: Callable[[Any], list[Any]] = lambda value: [value],
) -> Novelty | None:
    """Means and variances of training images; the threshold that keeps ``KEPT`` of the val split.

    The threshold is the conformal one: an image drawn as those of the val split is kept with at least that
    probability.

    Args:
        train, val: of ``embed``, in that order.
        classes: K.
        gather: a value -> those of all processes, each of which embeds its part.

    Returns:
        None where the val split has fewer than ``NOVELTY_IMAGES``, or no class two training images.
    """
    mine: tuple[Tensor, Tensor, Tensor] | None = None
    for embeddings, labels in train:
        x = embeddings.double()
        hot = torch.nn.functional.one_hot(labels, classes).double()
        sums = hot.sum(dim=0), hot.T @ x, x.square().sum(dim=0)
        mine = sums if mine is None else tuple(a + b for a, b in zip(mine, sums, strict=True))  # type: ignore[assignment]
    parts = [part for part in gather(mine) if part is not None]
    if not parts:
        return None
    counts, totals, squares = (torch.stack(each).sum(dim=0) for each in zip(*parts, strict=True))
    there = counts > 0
    means = totals[there] / counts[there, None]
    freedom = float(counts.sum()) - len(means)
    if freedom < 1:
        return None
    variance = (squares - (counts[there, None] * means.square()).sum(dim=0)).clamp_min(0) / freedom
    variance = (1 - SHRINKAGE) * variance + SHRINKAGE * variance.mean()
    scale = variance.clamp_min(torch.finfo(torch.float32).tiny).sqrt()
    center = means.mean(dim=0)
    white = ((means - center) / scale).clamp(*(sign * torch.finfo(torch.float16).max for sign in (-1, 1)))
    found = Novelty(center.float(), scale.float(), white.half(), math.inf)
    scored = [found.distances(embeddings) for embeddings, _ in val]
    scores = torch.cat([part for every in gather(scored) for part in every] or [torch.empty(0)])
    if len(scores) < NOVELTY_IMAGES:
        return None
    # A little more, as the last digits of a distance vary with the batch.
    threshold = 1.0001 * float(scores.sort().values[math.ceil(KEPT * (len(scores) + 1)) - 1])
    return Novelty(found.center, found.scale, found.means, threshold, images=len(scores))


# ---- thresholds per class ----

PRIOR_IMAGES = 20
"""As so many val images of a class count those of all classes together."""

CONFIDENCE = 0.9
"""Of the lower bound of the precision over all classes (Wilson's, one-sided)."""

FEW_IMAGES = 10
"""A class with fewer val images is told of: its threshold is mostly that of all."""


class ClassThreshold(NamedTuple):
    """Of the rows that are told to be of one class."""

    name: str
    threshold: float
    """Least probability that is kept."""
    precision: float | None
    """Fraction of right ones among the val images that it keeps; None where it keeps none."""
    coverage: float | None
    """Fraction of the val images told to be of the class that it keeps; None where there are none."""
    images: int
    """Val images told to be of the class."""

    def cells(self) -> list[str]:
        """As ``THRESHOLD_COLUMNS``; what is not known is empty."""
        shares = ["" if value is None else f"{value:.4f}" for value in (self.precision, self.coverage)]
        return [self.name, f"{self.threshold:.6f}", *shares, str(self.images)]


@dataclass(frozen=True)
class Thresholds:
    """Thresholds per class, and what they come to over all val images."""

    target: float
    classes: tuple[ClassThreshold, ...]
    pooled: float
    """The threshold of a class without val images."""
    precision: float | None
    coverage: float
    images: int

    @property
    def few(self) -> list[str]:
        """Classes with fewer than ``FEW_IMAGES``."""
        return [each.name for each in self.classes if each.images < FEW_IMAGES]

    @property
    def unreached(self) -> list[str]:
        """Classes none of whose val images is kept."""
        return [each.name for each in self.classes if each.coverage == 0]


def wilson_lower(right: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Lower end of Wilson's one-sided interval of level ``CONFIDENCE``; 0 without images."""
    z = NormalDist().inv_cdf(CONFIDENCE)
    n = np.maximum(images, 1)
    share = right / n
    middle, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.where(images > 0, (middle - half) / (1 + z**2 / n), 0)


def fit_thresholds(
    prob: np.ndarray, guess: np.ndarray, right: np.ndarray, names: Sequence[str], target: float
) -> Thresholds:
    """The least threshold of each class at which its rows are expected to reach a precision.

    Over all classes together, the precision above a threshold t is taken to be its lower bound
    (``wilson_lower``), and never less than at a smaller t. A class has few val images: its own, of which r
    of n are right above t, count beside ``PRIOR_IMAGES`` with the precision P of all classes:
    (r + prior P) / (n + prior) has to reach the target. So a class without images gets the threshold of all,
    one that is always right a lower one, one that is wrong while sure a higher one.

    Args:
        prob: of the class told, (N,), as ``fgvc predict`` gives it.
        guess: its index, int (N,).
        right: whether it is the true one, bool (N,).
        names: of the classes.
        target: in (0, 1).

    Raises:
        FgvcError: no threshold reaches the target over all classes.
    """
    seen = np.unique(prob.astype(np.float64))
    # Between two probabilities, not at one: the last digits of a probability vary with the batch.
    cuts = np.concatenate([[0.0], (seen[1:] + seen[:-1]) / 2, [np.nextafter(1, 2)]])
    pooled = np.maximum.accumulate(wilson_lower(*_above(cuts, prob, right)))
    if not (pooled >= target).any():
        best = int(pooled.argmax())
        raise FgvcError(
            f"A precision of {target:g} cannot be shown on {counted(len(prob), 'val image')}: at best "
            f"{pooled[best]:.3f}, of rows with a probability of {cuts[best]:.3f} or more.",
            "Ask for less, or put more images into the val split.",
        )
    fitted = []
    for index, name in enumerate(names):
        mine = guess == index
        hits, kept = _above(cuts, prob[mine], right[mine])
        expected = (hits + PRIOR_IMAGES * pooled) / (kept + PRIOR_IMAGES)
        at = int((expected >= target).argmax())
        fitted.append(
            ClassThreshold(
                name,
                math.ceil(cuts[at] * 1e6) / 1e6,
                hits[at] / kept[at] if kept[at] else None,
                kept[at] / kept[0] if kept[0] else None,
                int(mine.sum()),
            )
        )
    kept_rows = prob >= np.array([each.threshold for each in fitted])[guess]
    return Thresholds(
        target,
        tuple(fitted),
        float(cuts[int((pooled >= target).argmax())]),
        float(right[kept_rows].mean()) if kept_rows.any() else None,
        float(kept_rows.mean()),
        len(prob),
    )


def _above(cuts: np.ndarray, prob: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many rows are right, and how many there are, with at least each probability of ``cuts``."""
    order = np.argsort(prob)
    first = np.searchsorted(prob[order].astype(np.float64), cuts)
    hits = np.concatenate([[0], np.cumsum(right[order])])
    return hits[-1] - hits[first], len(prob) - first


THRESHOLD_COLUMNS = ("class", "threshold", "precision", "coverage", "images")
"""Of the CSV of ``fgvc eval --thresholds``; ``read_thresholds`` needs the first two."""


def read_thresholds(path: Path) -> dict[str, float]:
    """Class -> least probability, of a CSV with the columns ``class`` and ``threshold``.

    Raises:
        FgvcError: a file that is not there or no such CSV, a threshold that is no number from 0 on, a class
            that is named twice.
    """
    found: dict[str, float] = {}
    for number, row in enumerate(
        csv.DictReader(io.StringIO(read_named(path, "--thresholds"), newline="")), start=2
    ):
        if row.get("class") is None or row.get("threshold") is None:
            raise FgvcError(
                f"--thresholds {path} has no columns class and threshold.",
                "fgvc eval --split val --target-precision 0.95 --thresholds FILE.csv writes such a file.",
                EXIT_USAGE,
            )
        name, text = from_cell(row["class"]), row["threshold"]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            message = f"--thresholds {path}, line {number}: {text!r}, expected a number from 0 to 1."
            raise FgvcError(message, None, EXIT_USAGE)
        if name in found:
            raise FgvcError(f"--thresholds {path} names {name!r} twice.", None, EXIT_USAGE)
        found[name] = value
    return found


def read_named(path: Path, option: str) -> str:
    """The UTF-8 text of a file that a user named.

    Raises:
        FgvcError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise FgvcError(f"{option} {path}: {reason}.", None, EXIT_USAGE) from error
