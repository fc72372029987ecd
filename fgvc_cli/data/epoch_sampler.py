"""Which image comes when in training: a function of the seed and the position alone.

An epoch that is gone on with, on any number of workers or devices, sees what it would have seen in one go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """One image of an epoch."""

    place: int
    """Its position in the list of examples."""
    seed: int
    """Of its augmentation, in [0, 2**63)."""


class EpochDraws(Sampler[list[Draw]]):
    """Batches of one epoch after another: a batch sampler, which a loader reads ahead over the seams.

    Args:
        labels: of the examples; as many images as there are make an epoch.
        batch_size: images of a batch, per process.
        seed: equal seeds give equal draws.
        epochs: how many to give.
        balanced: each class equally often, give or take one, its images in turn; else each
            image once.
        rank: which process of ``world`` this is: it gets its part of every batch.
        world: processes that train together.
    """

    def __init__(
        self,
        labels: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        epochs: int,
        balanced: bool = False,
        rank: int = 0,
        world: int = 1,
    ):
        self._labels = np.asarray(labels)
        self._whole = batch_size * world
        self._seed, self._epochs, self._balanced = seed, epochs, balanced
        self._rank, self._world = rank, world
        self.start = (1, 0)
        """Epoch, from 1, and batch, from 0, with which the next iterator begins."""

    def __len__(self) -> int:
        """Batches of an epoch. One that gives a process a single image, which batch norm cannot use, is
        left out, unless it is the only one."""
        whole, rest = divmod(len(self._labels), self._whole)
        return max(1, whole + (rest >= 2 * self._world))

    def size(self, batch: int) -> int:
        """Images of a batch, counted from 0, in all processes together."""
        return min(self._whole, len(self._labels) - batch * self._whole)

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, first = self.start
        while epoch <= self._epochs:
            order, seeds = self._epoch(epoch)
            for batch in range(first, len(self)):
                pairs = zip(self._mine(order, batch), self._mine(seeds, batch), strict=True)
                yield [Draw(int(place), int(seed)) for place, seed in pairs]
            epoch, first = epoch + 1, 0

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((self._seed, epoch))
        order = self._balance(rng) if self._balanced else rng.permutation(len(self._labels))
        return order, rng.integers(2**63, size=len(order), dtype=np.int64)

    def _balance(self, rng: np.random.Generator) -> np.ndarray:
        """As ``WeightedRandomSampler`` with equal shares of the classes, but without its luck: no image
        comes a third time before each of its class came twice."""
        classes = rng.permutation(np.unique(self._labels))
        quota, rest = divmod(len(self._labels), len(classes))
        order = []
        for number, label in enumerate(classes):
            members = np.flatnonzero(self._labels == label)
            count = quota + (number < rest)
            rounds = [rng.permutation(members) for _ in range(-(-count // len(members)))]
            order.append(np.concatenate(rounds)[:count] if rounds else members[:0])
        return rng.permutation(np.concatenate(order))

    def _mine(self, of_epoch: np.ndarray, batch: int) -> np.ndarray:
        whole = of_epoch[batch * self._whole : (batch + 1) * self._whole]
        return np.array_split(whole, self._world)[self._rank]
