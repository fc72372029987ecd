"""Occlusion (Zeiler & Fergus, ECCV 2014): hide a place, see how much less the model is for the class.

It asks only for probabilities, so it serves any model and says what the whole of it does: where a box moves
because its object is hidden, that counts too. A photograph costs ``POSITIONS`` squared passes.

Legend: B images, S side of the input, n cells per side of a map.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as v2

from fgvc_cli.explain.method import Heats, Method
from fgvc_cli.explain.question import Case
from fgvc_cli.models.output import ModelOutput, over_maximum

CELLS = 12
"""n: cells per side of the map."""
WINDOW = 2
"""Side of what is hidden at a time, cells: a sixth of the input, less than the paper's 50 of 224 px, since
the parts that tell fine-grained classes apart are small."""
POSITIONS = CELLS - WINDOW + 1
LEAST_LOSS = 1e-3
"""Nats below which a loss is rounding: a map of nothing else would be stretched to full scale."""
_PASS = 32
"""Images of one forward pass."""


class Occlusion(Method):
    """Windows replaced by the data's mean, which normalisation makes zero: the paper's grey square."""

    name = "occlusion"
    describes = "how much hiding a place in grey takes from the class"
    asks_class = True

    def maps(self, model: nn.Module, images: Tensor, output: ModelOutput, case: Case) -> Heats:
        """One map of n x n cells: what each takes away, the mean over the windows that hide it."""
        return {self.name: self.heat(output.probs, self.hidden(model, images), case)}

    @torch.no_grad()
    def hidden(self, model: nn.Module, images: Tensor) -> Tensor:
        """What the model answers with each window hidden: (B, positions squared, K), whatever is asked."""
        fill = self.fill(images)
        return torch.stack([self._probs(model, *pair) for pair in zip(images, fill, strict=True)])

    def heat(self, probs: Tensor, hidden: Tensor, case: Case) -> Tensor:
        """The map (B, n, n) of a question, from the answers before (B, K) and those of ``hidden``."""
        after = case.repeated(hidden.shape[1]).score(hidden.flatten(0, 1)).view(-1, POSITIONS, POSITIONS)
        losses = case.score(probs)[:, None, None] - after
        return over_maximum(spread_losses(torch.where(losses > LEAST_LOSS, losses, 0)))

    def fill(self, images: Tensor) -> Tensor:
        """What is put in place of what is hidden, (B, 3, S, S)."""
        return torch.zeros_like(images)

    @staticmethod
    def _probs(model: nn.Module, image: Tensor, fill: Tensor) -> Tensor:
        """The probabilities of one image (3, S, S) with each window hidden, (positions squared, K)."""
        windows = list(_windows(image.shape[-1]))
        probs = []
        for first in range(0, len(windows), _PASS):
            chunk = windows[first : first + _PASS]
            hidden = image.repeat(len(chunk), 1, 1, 1)
            for one, (rows, columns) in zip(hidden, chunk, strict=True):
                one[:, rows, columns] = fill[:, rows, columns]
            probs.append(model(hidden).probs)
        return torch.cat(probs)


class OcclusionBlur(Occlusion):
    """Windows replaced by a blurred copy: what is hidden leaves no edges of its own, colours stay."""

    name = "occlusion-blur"
    describes = "the same, hidden in a blur"

    def fill(self, images: Tensor) -> Tensor:
        """The images behind a Gaussian whose width is that of a cell."""
        sigma = images.shape[-1] / CELLS
        return v2.gaussian_blur(images, [2 * round(2 * sigma) + 1] * 2, [sigma, sigma])


def spread_losses(losses: Tensor) -> Tensor:
    """What each window took away (B, positions, positions) -> each cell's mean over the windows that hide it,
    (B, n, n)."""
    kernel = losses.new_ones(1, 1, WINDOW, WINDOW)
    total = nn.functional.conv_transpose2d(losses[:, None], kernel)
    count = nn.functional.conv_transpose2d(torch.ones_like(losses[:1, None]), kernel)
    return (total / count).squeeze(1)


def _windows(side: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of each window in pixels, row by row."""
    edges = [round(i * side / CELLS) for i in range(CELLS + 1)]
    spans = [slice(edges[i], edges[i + WINDOW]) for i in range(POSITIONS)]
    for rows in spans:
        for columns in spans:
            yield rows, columns
