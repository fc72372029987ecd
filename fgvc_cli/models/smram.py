"""Spatial multi-region attention (SMRAM), Wang et al. 2025, 3.2: a training-only penalty.

Legend: B batch, Ca unified channels, H W rows and columns of the last stage, N = H * W.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Smram(nn.Module):
    """Makes the stages look at different places, Eq. 7-9.

    Args:
        channels: Ca of every stage's X_e.
        stages: number of stages.
        source: ``phi``, a learnt 1x1 convolution and BN per stage (paper), or ``mean``, the channel mean of
            X_e (ours). With ``phi`` the convolution alone can lower the loss while the features stay as
            they are; ``mean`` leaves only the features to do it.
    """

    def __init__(self, channels: int, stages: int = 3, source: str = "phi"):
        super().__init__()
        self.source = source
        self.phi = nn.ModuleList()
        if source == "phi":
            self.phi.extend(
                nn.Sequential(nn.Conv2d(channels, 1, 1), nn.BatchNorm2d(1)) for _ in range(stages)
            )

    def attention(self, features: Sequence[Tensor]) -> Tensor:
        """P of Eq. 7: stage maps X_e (B, Ca, H_l, W_l) -> (B, stages, N), each row summing to 1."""
        height, width = features[-1].shape[-2:]
        pooled = [F.adaptive_avg_pool2d(x, (height, width)) for x in features]
        if self.source == "phi":
            maps = [phi(x) for phi, x in zip(self.phi, pooled, strict=True)]
        else:
            maps = [x.mean(dim=1, keepdim=True) for x in pooled]
        return torch.cat(maps, dim=1).flatten(2).float().softmax(dim=-1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """L_div of Eq. 9, averaged over the batch: a scalar in [0, 1 - 1/stages]."""
        return diversity_loss(self.attention(features))


def diversity_loss(attention: Tensor) -> Tensor:
    """Eq. 7 (cross-channel max pooling), 8 and 9: P (B, stages, N) -> scalar.

    Identical maps give 1 - 1/stages (2/3 for three), disjoint maps 0.
    """
    matching = attention.amax(dim=1).sum(dim=-1) / attention.shape[1]
    return (1 - matching).mean()


@torch.no_grad()
def top_overlap(maps: Sequence[Tensor], share: float = 0.1) -> Tensor:
    """How much the stages' strongest positions coincide, whatever SMRAM's own maps say.

    Args:
        maps: channel-averaged stage maps (B, H_l, W_l), pooled here to the size of the last.
        share: share of positions that count as strongest.

    Returns:
        Scalar in [0, 1]: mean over pairs of stages and images of |A and B| / |A|. Chance level is ``share``.
    """
    height, width = maps[-1].shape[-2:]
    flat = [F.adaptive_avg_pool2d(m.float().unsqueeze(1), (height, width)).flatten(1) for m in maps]
    count = max(1, round(share * flat[-1].shape[1]))
    tops = [torch.zeros_like(m).scatter_(1, m.topk(count, dim=1).indices, 1.0) for m in flat]
    pairs = [(a * b).sum(dim=1).mean() / count for a, b in combinations(tops, 2)]
    return torch.stack(pairs).mean()
