"""Crops cut from a batch of images on their own device, and attended pixels erased in it (Conde & Turgutlu
2021, section 2.3, Fig. 3).

Legend: B batch, C channels, H W rows and columns of an image, h w of a map, P boxes per image, S side of a
crop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align


def cut_boxes(images: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Cut boxes and resize each to a square.

    ``roi_align`` samples bilinearly where a box is enlarged and averages a grid of samples where it shrinks,
    so that fine patterns do not alias.

    Args:
        images: (B, C, H, W), floating point.
        boxes: (B, P, 4), xyxy pixels of the images, end-exclusive.
        side: S, pixels.

    Returns:
        (B * P, C, S, S), image by image. No gradient reaches the boxes, see ``sample_boxes``.
    """
    if torch.compiler.is_exporting():
        return _cut_by_matrices(images, boxes, side)
    return roi_align(images, list(boxes.to(images.dtype)), side, sampling_ratio=-1, aligned=True)


def _cut_by_matrices(images: Tensor, boxes: Tensor, side: int) -> Tensor:
    """``cut_boxes`` in matrix products, which every runtime has.

    What ``roi_align`` averages is separable: a crop is rows @ image @ columns, each matrix holding the
    weights of the pixels along its axis.
    """
    across = _sample_weights(boxes[..., 0], boxes[..., 2], images.shape[-1], side).to(images.dtype)
    down = _sample_weights(boxes[..., 1], boxes[..., 3], images.shape[-2], side).to(images.dtype)
    # (B, 1, C, H, W) @ (B, P, 1, W, S), then (B, P, 1, S, H) @ (B, P, C, H, S)
    narrowed = images[:, None] @ across[:, :, None].transpose(-1, -2)
    return (down[:, :, None] @ narrowed).flatten(0, 1)


def _sample_weights(low: Tensor, high: Tensor, pixels: int, side: int) -> Tensor:
    """Edges (B, P) along an axis -> (B, P, S, pixels): the share that each pixel has in each cell.

    As ``roi_align``: ceil(box / S) samples per cell at equal distances, each bilinear between two pixels;
    samples up to one pixel outside take the border's value, those further out nothing.
    """
    low, high = low.float() - 0.5, high.float() - 0.5  # aligned: pixel i has its centre at i
    step = ((high - low) / side)[..., None, None]
    samples = torch.ceil(step)
    index = torch.arange(max(1, math.ceil(pixels / side)), device=low.device)  # no box exceeds the image
    cells = torch.arange(side, device=low.device)[:, None]
    places = low[..., None, None] + (cells + (index + 0.5) / samples.clamp_min(1)) * step
    counted = (index < samples) & (places >= -1) & (places <= pixels)
    near = places.clamp(0, pixels - 1)[..., None] - torch.arange(pixels, device=low.device)
    weights = (1 - near.abs()).clamp_min(0) * (counted / samples.clamp_min(1))[..., None]
    return weights.sum(dim=-2)


def sample_boxes(images: Tensor, boxes: Tensor, side: int) -> Tensor:
    """``cut_boxes`` with gradients to the boxes.

    One sampling density serves the whole batch, that of its largest box, so a crop may depend on its
    neighbours; where all boxes are enlarged, the crops equal those of ``cut_boxes``. For training.
    """
    batch, count, _ = boxes.shape
    height, width = images.shape[-2:]
    edges = boxes.float().flatten(0, 1)
    largest = float((edges[:, 2:] - edges[:, :2]).detach().amax())
    density = max(1, math.ceil(largest / side - 1e-6))
    steps = (torch.arange(side * density, device=images.device) + 0.5) / (side * density)
    xs = edges[:, 0, None] + steps * (edges[:, 2] - edges[:, 0])[:, None]
    ys = edges[:, 1, None] + steps * (edges[:, 3] - edges[:, 1])[:, None]
    grid = torch.stack(
        [
            (xs / width * 2 - 1)[:, None, :].expand(-1, len(steps), -1),
            (ys / height * 2 - 1)[:, :, None].expand(-1, -1, len(steps)),
        ],
        dim=-1,
    )
    source = images.repeat_interleave(count, dim=0)
    crops = F.grid_sample(
        source, grid.to(images.dtype), mode="bilinear", padding_mode="border", align_corners=False
    )
    return F.avg_pool2d(crops, density) if density > 1 else crops


def follow_map(boxes: Tensor, heat: Tensor, size: tuple[int, int]) -> Tensor:
    """The same boxes, with gradients into the map they came from.

    The paper names the box as what keeps its model from end-to-end training (3.1) and leaves it as future
    work; this way is ours. A uniform density over [a, b] has its mean in the middle and a standard
    deviation of (b - a) / sqrt(12). So the attention inside a box has a soft box of its own, mean +- sqrt(3)
    standard deviations per axis. The values stay those of ``boxes``, the gradient is the soft box's
    (straight through).

    Args:
        boxes: (B, P, 4), xyxy pixels of ``size``.
        heat: (B, h, w), not negative.
        size: (H, W) of the image, pixels.

    Returns:
        (B, P, 4), equal to ``boxes``.
    """
    inside = [_cover(boxes[..., i], boxes[..., i + 2], size[1 - i], heat.shape[2 - i]) for i in (0, 1)]
    weights = heat[:, None] * inside[0][:, :, None, :] * inside[1][:, :, :, None]
    soft = []
    for axis, sides in ((-2, size[1]), (-1, size[0])):
        density = weights.sum(dim=axis)
        density = density / density.sum(dim=-1, keepdim=True).clamp_min(1e-12)
        cells = density.shape[-1]
        centres = (torch.arange(cells, device=heat.device) + 0.5) * (sides / cells)
        mean = (density * centres).sum(dim=-1)
        variance = (density * (centres - mean[..., None]) ** 2).sum(dim=-1)
        half = (3 * variance + 1e-6).sqrt()
        soft.append((mean - half, mean + half))
    soft_boxes = torch.stack([soft[0][0], soft[1][0], soft[0][1], soft[1][1]], dim=-1)
    return boxes + (soft_boxes - soft_boxes.detach())


def _cover(low: Tensor, high: Tensor, pixels: int, cells: int) -> Tensor:
    """Share of each cell that lies between two edges: (B, P) pixels -> (B, P, cells)."""
    starts = torch.arange(cells, device=low.device) * (pixels / cells)
    ends = starts + pixels / cells
    overlap = torch.minimum(high[..., None], ends) - torch.maximum(low[..., None], starts)
    return overlap.clamp_min(0) / (pixels / cells)


def attended_pixels(heat: Tensor, size: Sequence[int], threshold: float = 0.7) -> Tensor:
    """Which pixels a map attends to above a threshold: (B, h, w) in [0, 1] -> bool (B, H, W).

    Args:
        size: (H, W) of the image, pixels.
        threshold: T.
    """
    resized = F.interpolate(heat[:, None].float(), tuple(size), mode="bilinear", align_corners=False)
    return resized[:, 0] > threshold


def place_mask(mask: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """What masks over boxes cover in the images: bool (B, S, S) and boxes (B, 4) -> bool (B, H, W).

    Args:
        boxes: xyxy pixels of the images, end-exclusive.
        size: (H, W).
    """
    inside, places = [], []
    for axis, length in ((1, size[0]), (0, size[1])):
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        at = (torch.arange(length, device=boxes.device) + 0.5 - low) / (high - low)
        inside.append((at >= 0) & (at < 1))
        places.append((at * mask.shape[-1]).long().clamp(0, mask.shape[-1] - 1))
    rows = torch.arange(len(mask), device=mask.device)[:, None, None]
    covered = mask[rows, places[0][:, :, None], places[1][:, None, :]]
    return covered & inside[0][:, :, None] & inside[1][:, None, :]


def erase_pixels(images: Tensor, mask: Tensor) -> Tensor:
    """Normalised images (B, C, H, W) with the masked pixels (B, H, W) at 0, the data's mean colour."""
    return images.masked_fill(mask[:, None], 0)
