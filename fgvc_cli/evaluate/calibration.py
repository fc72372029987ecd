"""A temperature for a checkpoint that has none, or another: an interrupted training stores T = 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fgvc_cli.errors import counted

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


def expected_calibration_error(probs: Tensor, labels: Tensor, bins: int = 15) -> float:
    """A share in [0, 1], 0 is calibrated; see ``reliability``."""
    return reliability(probs, labels, bins).error


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
