"""Object map -> part boxes (Conde & Turgutlu 2021, section 2.2).

Legend: B batch, h w rows and columns of a map, S side of the scoring grid, P parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fgvc_cli.attention.crops import cut_boxes


def cut_map(heat: Tensor, boxes: Tensor, size: Sequence[int], side: int) -> Tensor:
    """The object's part of the full map, resized: (B, h, w) and boxes (B, 4) of an image -> (B, S, S).

    Args:
        size: (H, W) of the image that ``boxes`` are in pixels of.
        side: S.
    """
    rows, columns = heat.shape[-2:]
    # Numbers, not a tensor of them: a card would be waited for to take it.
    cells = torch.stack([boxes[:, ::2] * (columns / size[1]), boxes[:, 1::2] * (rows / size[0])], 2).flatten(
        1
    )
    return cut_boxes(heat[:, None].float(), cells[:, None], side)[:, 0]


def locate_parts(
    maps: Tensor,
    boxes: Tensor,
    *,
    window: float = 112 / 384,
    count: int = 2,
    max_iou: float = 0.1,
    score: str = "mean",
    aspect: float = 1.0,
    stride: int = 1,
) -> Tensor:
    """The windows of an object that gather most attention and hardly overlap.

    Every position of a window is scored, by its mean attention in the paper; non-maximum suppression keeps
    the best ``count``. Where windows are too large for that many within ``max_iou``, the next one is
    the window that overlaps the chosen ones least, the better scored among equals: there are always
    ``count`` boxes.

    Args:
        maps: (B, S, S), attention inside the object box; the paper's S is 384.
        boxes: object boxes (B, 4), xyxy.
        window: side of a window as a share of the object's side; the paper's is 112 of 384.
        count: P.
        max_iou: overlap up to which two windows are two parts.
        score: ``mean``, ``gem`` (generalised mean, exponent 3) or ``max`` of the attention in a window.
        aspect: width of a window over its height, at the same area.
        stride: distance between windows, cells of ``maps``.

    Returns:
        (B, P, 4) in the coordinates of ``boxes``, best first.
    """
    side = maps.shape[-1]
    width = min(side, max(1, round(window * aspect**0.5 * side)))
    height = min(side, max(1, round(window / aspect**0.5 * side)))
    scores = _window_scores(maps.detach(), height, width, score)[:, ::stride, ::stride]
    places = scores.shape[-1]
    down, across = (torch.arange(length, device=maps.device) * stride for length in scores.shape[1:])
    worst = torch.zeros_like(scores)
    chosen = []
    for _ in range(count):
        # First the windows within the limit; failing these, the least overlap; then the score.
        over = worst.where(worst > max_iou, 0)
        allowed = over == over.amin(dim=(-2, -1), keepdim=True)
        best = scores.where(allowed, -torch.inf).flatten(1).argmax(dim=1)
        row, column = best // places * stride, best % places * stride
        chosen.append(torch.stack([column, row, column + width, row + height], dim=-1))
        inter = (height - (down - row[:, None]).abs()).clamp_min(0)[:, :, None]
        inter = inter * (width - (across - column[:, None]).abs()).clamp_min(0)[:, None, :]
        worst = torch.maximum(worst, inter / (2 * width * height - inter))
    return _place(torch.stack(chosen, dim=1) / side, boxes)


def _window_scores(maps: Tensor, height: int, width: int, score: str) -> Tensor:
    """What each window scores: (B, S, S) -> (B, S - height + 1, S - width + 1)."""
    if score == "max":
        return F.max_pool2d(maps[:, None].float(), (height, width), stride=1)[:, 0]
    if score == "gem":
        return _window_means(maps.clamp_min(0) ** 3, height, width).clamp_min(0) ** (1 / 3)
    return _window_means(maps, height, width)


def _window_means(maps: Tensor, height: int, width: int) -> Tensor:
    """Mean of each window: (B, S, S) -> (B, S - height + 1, S - width + 1)."""
    # Differences of running sums: as cheap for large windows as for small; in float32 they would lose digits.
    sums = maps.double().cumsum(dim=1).cumsum(dim=2)
    sums = F.pad(sums, (1, 0, 1, 0))
    corner = sums[:, height:, width:] - sums[:, :-height, width:] - sums[:, height:, :-width]
    # Back in float32, windows of equal attention are equal again, and the first of them wins.
    return ((corner + sums[:, :-height, :-width]) / (height * width)).float()


def _place(shares: Tensor, boxes: Tensor) -> Tensor:
    """Boxes in shares of an object's sides (B, P, 4) -> the coordinates of the object boxes (B, 4)."""
    origin = boxes[:, None, :2].repeat(1, 1, 2)
    sides = (boxes[:, None, 2:] - boxes[:, None, :2]).repeat(1, 1, 2)
    return origin + shares * sides
