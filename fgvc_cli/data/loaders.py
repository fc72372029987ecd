"""Labelled photographs as batches. A photograph that cannot be read is left out and named, never replaced."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fgvc_cli.data.images import Failure, read_image
from fgvc_cli.data.listing import Example
from fgvc_cli.data.transforms import Transform


class Batch(NamedTuple):
    """Readable photographs of one batch, B of them."""

    images: Tensor
    """uint8 (B, 3, S, S)."""
    labels: Tensor
    """int64 (B,); of a multi-label set float32 (B, K), 1 for each label of an image."""
    indices: Tensor
    """int64 (B,), positions in the list of examples."""
    failures: list[str]
    """One line for each photograph left out."""


class LabelledImages(Dataset):
    """Examples under a root, decoded upright and transformed.

    Args:
        label_slots: K of a multi-label set, see ``LabelledSet.label_slots``.
    """

    def __init__(
        self, root: Path, examples: Sequence[Example], transform: Transform, label_slots: int | None = None
    ):
        self.label_slots = label_slots
        self.root = root
        self.examples = examples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[int, int | Tensor, Tensor | str]:
        """(index, target, uint8 image (3, S, S) or the line that says why there is none)."""
        example = self.examples[index]
        target = self._target(example)
        photo = read_image(self.root / example.path)
        if isinstance(photo, Failure):
            return index, target, f"{example.path}: {photo.error}"
        try:
            return index, target, self.transform(photo.image)
        except (MemoryError, OSError, ValueError) as error:
            return index, target, f"{example.path}: cannot be resized: {error or 'out of memory'}"

    def _target(self, example: Example) -> int | Tensor:
        """The class index, or float32 (K,)."""
        if self.label_slots is None:
            return example.label
        target = torch.zeros(self.label_slots)
        target[list(example.labels)] = 1
        return target


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
    )


def build_loader(
    images: LabelledImages, *, batch_size: int, workers: int, shuffle_seed: int | None = None
) -> DataLoader:
    """A loader of ``Batch``; shuffled where a seed is given.

    A training batch of one image, which batch norm cannot use, is dropped.
    """
    shuffle = shuffle_seed is not None
    return DataLoader(
        images,
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=min(workers, len(images), _usable_cpus()),
        collate_fn=collate,
        drop_last=shuffle and len(images) > batch_size and len(images) % batch_size == 1,
        persistent_workers=workers > 0 and shuffle,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(shuffle_seed) if shuffle_seed is not None else None,
    )


def _usable_cpus() -> int:
    """CPUs this process may run on; torch warns when there are more workers than that."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
