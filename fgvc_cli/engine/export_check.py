"""An exported graph against the model it was made from, photograph by photograph.

The model answers as for ``fgvc predict`` on the CPU, float32, its boxes by scikit-image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fgvc_cli.aviary.dataset import SPECIES, render_bird
from fgvc_cli.data.transforms import eval_transform
from fgvc_cli.engine.checkpoint import Checkpoint
from fgvc_cli.engine.export import Deployed, Pixels

LEAST_BOX_PX = 2.0
"""Box differences that pass at any size: an edge that snaps to another pixel."""
BOX_SHARE = 1 / 200
"""Allowed difference of a box edge as a share of the input's side: a little more than one cell of the grid of
224 on which boxes are found."""

BATCHES = (1, 3, 8)
"""Photographs per batch, the last for all that follow: a graph must take any number."""

Answers = dict[str, Tensor]


@dataclass
class Difference:
    """The largest differences met so far; one that is not a number counts as infinite."""

    images: int = 0
    probs: float = 0.0
    box_px: float = 0.0
    heat: float = 0.0
    labels: int = 0
    """Photographs for which another class is the best."""
    worst: str = ""
    """Which photograph has the largest difference in probability."""

    def add(self, names: list[str], expected: Answers, found: Answers) -> None:
        """Count a batch in."""
        self.images += len(names)
        gaps = (found["probs"] - expected["probs"]).abs().amax(dim=1)
        if not self.worst or _largest(gaps) > self.probs:
            self.worst = names[int(gaps.nan_to_num(torch.inf).argmax())]
        self.probs = max(self.probs, _largest(gaps))
        self.box_px = max(self.box_px, _largest(found["box"] - expected["box"]))
        self.heat = max(self.heat, _largest(found["heat"] - expected["heat"]))
        self.labels += int((found["probs"].argmax(dim=1) != expected["probs"].argmax(dim=1)).sum())


def _largest(gaps: Tensor) -> float:
    return float(gaps.abs().nan_to_num(torch.inf).max())


def compare(
    checkpoint: Checkpoint,
    pixels: Pixels,
    graph: Callable[[Tensor], Answers],
    photos: Iterable[tuple[str, Image.Image]],
) -> Difference:
    """Both over all photographs, named and upright RGB, in batches of ``BATCHES``.

    Memory holds one batch.
    """
    original = Deployed(checkpoint, pixels).eval()
    difference = Difference()
    for names, batch in _batches(checkpoint, photos):
        images = batch if pixels == "uint8" else batch.float() / 255
        with torch.no_grad():
            expected = original(images)
        difference.add(names, expected, graph(images))
    return difference


def generated_photos(count: int = 12) -> Iterator[tuple[str, Image.Image]]:
    """Pictures of the Aviary, for who names no photographs; the same each time."""
    rng = np.random.default_rng(0)
    for index in range(count):
        species = SPECIES[index % len(SPECIES)]
        yield f"generated {index + 1}", render_bird(species, rng).image


def _batches(
    checkpoint: Checkpoint, photos: Iterable[tuple[str, Image.Image]]
) -> Iterator[tuple[list[str], Tensor]]:
    transform = eval_transform(checkpoint.preprocess)
    sizes = iter(BATCHES)
    size = next(sizes)
    names: list[str] = []
    inputs: list[Tensor] = []
    for name, image in photos:
        names.append(name)
        inputs.append(transform(image))
        if len(names) == size:
            yield names, torch.stack(inputs)
            names, inputs, size = [], [], next(sizes, size)
    if names:
        yield names, torch.stack(inputs)
