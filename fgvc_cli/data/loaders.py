"""Labelled images as batches. An image that cannot be read is left out and named, never replaced.

Which one comes when in training is a function of the seed and the position alone: an epoch that is gone on
with, on any number of workers or devices, sees what it would have seen in one go.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fgvc_cli.config import usable_cpus
from fgvc_cli.data.listing import Example
from fgvc_cli.data.transforms import Transform
from fgvc_cli.sources.images import TO_SHOW, DecodedImage, Failure, Prepare, ReadRule, read_image


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


class Batch(NamedTuple):
    """Readable images of one batch, B of them."""

    images: Tensor
    """uint8 (B, 3, S, S)."""
    labels: Tensor
    """int64 (B,); of a multi-label set float32 (B, K), 1 for each label of an image, all 0 without one."""
    indices: Tensor
    """int64 (B,), positions in the list of examples."""
    failures: list[str]
    """One line for each image left out."""
    unread: tuple[int, ...] = ()
    """Positions of those left out."""


class LabelledImages(Dataset):
    """Examples under a root, decoded upright and transformed.

    Args:
        label_slots: K of a multi-label set, see ``LabelledSet.label_slots``.
        rule: how files become pixels, the model's ``Preprocess``.
    """

    def __init__(
        self,
        root: Path,
        examples: Sequence[Example],
        transform: Transform,
        label_slots: int | None = None,
        rule: ReadRule = TO_SHOW,
    ):
        self.rule = rule
        self.label_slots = label_slots
        self.root = root
        self.examples = examples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: int | Draw) -> tuple[int, int | Tensor, Tensor | str]:
        """(index, target, uint8 image (3, S, S) or the line that says why there is none).

        Args:
            key: a position; or a draw, whose seed decides what a random transform does.
        """
        if isinstance(key, Draw):
            with _seeded(key.seed):
                return self._read(key.place)
        return self._read(key)

    def _read(self, index: int) -> tuple[int, int | Tensor, Tensor | str]:
        example = self.examples[index]
        target = self._target(example)
        photo = read_example(self.root, example, self.rule)
        if isinstance(photo, Failure):
            return index, target, f"{example.name}: {photo.error}"
        try:
            return index, target, self.transform(photo.image)
        except (MemoryError, OSError, ValueError) as error:
            return index, target, f"{example.name}: cannot be resized: {error or 'out of memory'}"

    def _target(self, example: Example) -> int | Tensor:
        """The class index, or float32 (K,)."""
        if self.label_slots is None:
            return example.label
        target = torch.zeros(self.label_slots)
        target[list(example.labels)] = 1
        return target


def read_example(
    root: Path, example: Example, rule: ReadRule, prepare: Prepare | None = None
) -> DecodedImage | Failure:
    """Read what a labelled image shows, without its banner.

    Args:
        prepare: see ``read_image``.
    """
    photo = read_image(example.where(root), prepare, rule)
    if isinstance(photo, Failure) or example.box or not 0 < example.banner_px < photo.size[1]:
        return photo
    width, height = photo.size[0], photo.size[1] - example.banner_px
    rows = max(1, round(photo.image.height * height / photo.size[1]))
    shown = photo.image.crop((0, 0, photo.image.width, rows))
    return replace(photo, image=shown, full_size=(width, height) if photo.full_size else None)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's CPU generator, from which transforms draw, seeded for a block and then put back."""
    before = torch.get_rng_state()
    # Not ``torch.manual_seed``, which would reach for the GPU from a worker.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def collate(samples: list[tuple[int, int | Tensor, Tensor | str]]) -> Batch:
    """Stack the readable samples and list the others."""
    good = [(i, label, image) for i, label, image in samples if isinstance(image, Tensor)]
    images = (
        torch.stack([image for _, _, image in good]) if good else torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    )
    return Batch(
        images,
        torch.stack([torch.as_tensor(label) for _, label, _ in good])
        if good
        else torch.empty(0, dtype=torch.int64),
        torch.tensor([i for i, _, _ in good], dtype=torch.int64),
        [failure for _, _, failure in samples if isinstance(failure, str)],
        tuple(i for i, _, failure in samples if isinstance(failure, str)),
    )


def build_loader(images: LabelledImages, *, batch_size: int, workers: int) -> DataLoader:
    """A loader of ``Batch`` over all images, in their order."""
    return DataLoader(
        images, batch_size=batch_size, collate_fn=collate, **_shared_settings(min(workers, len(images)))
    )


def build_train_loader(images: LabelledImages, draws: EpochDraws, *, workers: int) -> DataLoader:
    """A loader of ``Batch`` that runs through all epochs of ``draws`` without a stop between them."""
    return DataLoader(images, batch_sampler=draws, collate_fn=collate, **_shared_settings(workers))


def _shared_settings(workers: int) -> dict[str, Any]:
    return {
        "num_workers": min(workers, usable_cpus()),
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": _ignore_interrupts,
    }


def _ignore_interrupts(_: int) -> None:
    """A terminal's Ctrl-C reaches every process; only the main one is to act on it, and ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
