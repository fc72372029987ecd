"""What ``honesty.py`` measures of one map (1, h, w), in [0, 1], of a picture of S pixels a side.

Sources: see there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from localisation import inside, peak
from scipy.stats import spearmanr
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from fgvc_cli.explain.methods import Heats

SHARES = (0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
"""Of the picture, where the deletion and insertion curves are measured: closest where they are steep."""
Box = tuple[float, float, float, float]
Row = dict[str, float | None]


def points(heat: Tensor, boxes: Sequence[Box], side: int, place: str) -> Row:
    """Pointing game and energy of a map (1, h, w) for boxes in pixels."""
    hit = bool(heat.max() > 0) and inside(peak(heat[0].numpy(), (0, 0, side, side)), boxes)
    return {f"point {place}": float(hit), f"energy {place}": energy(heat, boxes, side)}


def curves(
    probs: Callable[[Tensor], Tensor], images: Tensor, heats: Heats, target: int
) -> tuple[dict[str, tuple[float, float]], Row]:
    """Areas under the deletion and the insertion curve of each map (1, h, w) of one picture (1, 3, S, S), and
    the probability of the whole, the greyed and the blurred picture."""
    side = images.shape[-1]
    grey = torch.zeros_like(images)
    blurred = v2.gaussian_blur(images, [2 * (side // 8) + 1] * 2, [side / 16] * 2)
    ends = probs(torch.cat([images, grey, blurred]))[:, target].tolist()
    whole, shares = ends[0], torch.tensor(SHARES, dtype=torch.float64)
    areas = {}
    for name, heat in heats.items():
        taken = (ranks(heat, side)[None, None] < shares[1:-1].view(-1, 1, 1, 1) * side**2).float()
        shown = torch.cat([images * (1 - taken) + grey * taken, blurred * (1 - taken) + images * taken])
        deletion, insertion = probs(shown)[:, target].double().chunk(2)
        areas[name] = (
            _area([whole, *deletion.tolist(), ends[1]], shares),
            _area([ends[2], *insertion.tolist(), whole], shares),
        )
    return areas, dict(zip(("whole", "grey", "blurred"), ends, strict=True))


def _area(values: Sequence[float], shares: Tensor) -> float:
    return float(torch.trapezoid(torch.tensor(values, dtype=torch.float64), shares))


def ranks(heat: Tensor, side: int) -> Tensor:
    """Map (1, h, w) -> the place of each pixel in the order from the hottest on, int (S, S)."""
    ties = torch.rand(1, 14, 14, generator=torch.Generator().manual_seed(0))
    order = smooth(ties, side).flatten().argsort()
    order = order[smooth(heat, side).flatten()[order].argsort(descending=True, stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    return rank.view(side, side)


def smooth(heat: Tensor, side: int) -> Tensor:
    """(1, h, w) -> (S, S), as it is drawn."""
    return F.interpolate(heat[None].float(), (side, side), mode="bilinear")[0, 0]


def energy(heat: Tensor, boxes: Sequence[Box], side: int) -> float:
    """Share of a map (1, h, w) inside boxes in pixels; 0 of an empty one."""
    mask = torch.zeros(side, side)
    for x1, y1, x2, y2 in boxes:
        mask[round(y1) : round(y2), round(x1) : round(x2)] = 1
    values = smooth(heat, side)
    return float((values * mask).sum() / values.sum().clamp_min(1e-12))


def correlation(one: Tensor, other: Tensor) -> float | None:
    """Spearman's, without its sign; None where a map is constant, which has no ranks."""
    if one.min() == one.max() or other.min() == other.max():
        return None
    return abs(float(spearmanr(one.flatten().numpy(), other.flatten().numpy()).statistic))
