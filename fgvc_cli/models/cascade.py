"""What a model said at each look, and who still needs another one.

Legend: B images, n of them that take a look, P crops per image, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fgvc_cli.models.output import class_probs, confidence, mean_logits


class Looks:
    """Branch logits and their fusion; with a cascade, confident images stop early.

    Fused probabilities are the mean over the looks an image took, each the mean of its crops' probabilities.

    Args:
        logits: of the first look, (B, K).
        cascade: fused confidence from which an image takes no further look; None or 1: all take all.
        multi_label: see ``class_probs`` and ``confidence``.
    """

    def __init__(self, logits: Tensor, cascade: float | None, multi_label: bool = False):
        self._multi_label = multi_label
        self.logits: dict[str, Tensor] = {"main": logits}
        self.passes = torch.ones((), device=logits.device)
        """Encoder passes per image, the mean over the batch."""
        # A confidence of 1 is what float32 makes of a sure answer; a limit of 1 is meant as no limit.
        self._cascade = cascade if cascade is not None and cascade < 1 else None
        self._sum = class_probs(logits, multi_label)
        self._count = torch.ones(logits.shape[0], 1, device=logits.device)

    @property
    def probs(self) -> Tensor:
        """Fused, (B, K)."""
        return self._sum / self._count

    def open_rows(self) -> Tensor | None:
        """Indices (n,) of the images that go on; None: all do."""
        if self._cascade is None:
            return None
        # An image that stopped before stays stopped: nothing was added to its confidence.
        return (confidence(self.probs, self._multi_label) < self._cascade).nonzero().flatten()

    def add(self, name: str, logits: Tensor, rows: Tensor | None) -> None:
        """Enter a look: logits (n, P, K) of the images ``rows``, the crops of one image counting equally."""
        crops = logits.shape[1]
        joint = mean_logits(logits, self._multi_label)
        own = logits[:, 0] if crops == 1 else joint
        probs = class_probs(joint, self._multi_label)
        total = self._sum.shape[0]
        self.logits[name] = spread(own, rows, total)
        if rows is None:
            self._sum, self._count = self._sum + probs, self._count + 1
        else:
            self._sum = self._sum.index_add(0, rows, probs)
            self._count = self._count.index_add(0, rows, torch.ones_like(self._count[rows]))
        self.passes = self.passes + logits.shape[0] * crops / total

    def skip(self, name: str) -> None:
        """Enter a look that no image takes."""
        self.logits[name] = torch.full_like(self.logits["main"], torch.nan)


def pick(values: Tensor, rows: Tensor | None) -> Tensor:
    """The given rows of (B, ...); None: all."""
    return values if rows is None else values[rows]


def spread(values: Tensor, rows: Tensor | None, total: int) -> Tensor:
    """(n, ...) back to (total, ...), NaN in the other rows."""
    if rows is None:
        return values
    return values.new_full((total, *values.shape[1:]), torch.nan).index_copy(0, rows, values)
