"""Boxes of the objects of many maps at once, on the device the maps are on.

``objects.locate_objects`` finds the same boxes map by map with scikit-image, the reference; at thousands of
photographs per second that, and copying the maps to the host, would be the bottleneck.

Legend: B batch, h w rows and columns of a map, H W of the grid on which components are found.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fgvc_cli.attention.crops import resize

CONSTANT_SPAN = 1e-6
"""A map whose span is at most this share of its largest magnitude is constant but for float32 rounding."""

TIE_SPAN = 1e-7
"""A sample above the threshold by at most this share of the map's span is on it. Samples that equal the mean,
as in symmetric maps, then fall on the same side on every device, however it rounds."""

MAPS_AT_ONCE = 256
"""Maps in flight: bounds the working memory to about 0.7 GB for a grid of 224 x 224."""

ROUNDS_PER_CHECK = 3
"""Rounds of labelling between two looks at the result, each of which makes the host wait for the device.
Blobs take about five rounds, spirals and noise of single pixels up to seven."""


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (bilinear, antialiased): (B, h, w) -> (B, H, W) for a ``size`` (H, W).

    float64, so that the rounding of different devices stays far below ``TIE_SPAN``.
    """
    return resize(maps[:, None].double(), size)[:, 0]


def close_maps(maps: Tensor) -> Tensor:
    """Grey closing with 3x3 cells of maps (B, h, w); the plane around a map counts as its minimum."""
    dilated = F.max_pool2d(F.pad(maps[:, None], (2, 2, 2, 2), value=-math.inf), 3, stride=1)
    return -F.max_pool2d(-dilated, 3, stride=1)[:, 0]


def label_components(mask: Tensor) -> Tensor:
    """Number the connected components (8 neighbours) of each mask.

    Set pixels of a block of 2x2 are always connected, so blocks are labelled instead of pixels (Grana et al.
    2010). Each block points to a block of its component, at first to itself; a round takes over the highest
    pointer among the neighbours, hooks the block formerly pointed to onto it, and follows the pointers
    (FastSV, Zhang et al. 2020): rounds grow slowly with the length of a path, about with its logarithm.

    Args:
        mask: (B, H, W) bool.

    Returns:
        (B, H, W) int64: -1 off the mask; equal numbers in 0..H*W-1, not consecutive, within a component.
    """
    if torch.compiler.is_exporting():
        return _label_in_graph(mask)
    batch, height, width = mask.shape
    links = _block_links(mask)
    rows, columns = (height + 1) // 2, (width + 1) // 2
    labels = torch.arange(rows * columns, device=mask.device).expand(batch, -1).view(batch, rows, columns)
    while True:
        for _ in range(ROUNDS_PER_CHECK):
            previous, labels = labels, _hook(labels, links)
        if torch.equal(previous, labels):
            break
    pixels = labels[:, :, None, :, None].expand(-1, -1, 2, -1, 2).reshape(batch, 2 * rows, 2 * columns)
    return torch.where(mask, pixels[:, :height, :width], -1)


def _label_in_graph(mask: Tensor) -> Tensor:
    """``label_components`` for an exported graph: one loop of few operators, of which any runtime has a kind.

    The rounds of ``label_components`` on pixels: their neighbours' highest pointer is a max pooling.
    """
    flat, size = mask.flatten(1), mask.shape[1:]
    own = torch.arange(flat.shape[1], device=mask.device).expand_as(flat).clone()

    def step(labels: Tensor, going: Tensor) -> tuple[Tensor, Tensor]:
        # float32 holds every index up to 16 million, and pools on every runtime.
        seen = torch.where(flat, labels, -1).unflatten(1, size).float()
        near = F.max_pool2d(seen[:, None], 3, stride=1, padding=1)[:, 0].flatten(1).long()
        raised = torch.where(flat, near, labels)
        parents = raised.scatter_reduce(1, labels, raised, "amax")
        for _ in range(3):
            parents = parents.gather(1, parents)
        return parents, (parents != labels).any()

    going = torch.ones((), dtype=torch.bool, device=mask.device)
    labels, _ = torch.while_loop(lambda _, going: going.clone(), step, (own, going))
    return torch.where(flat, labels, -1).view_as(mask)


Link = tuple[Tensor, tuple[slice, ...], tuple[slice, ...]]
"""Where blocks touch their neighbour on one side; the blocks; these neighbours."""


def _block_links(mask: Tensor) -> list[Link]:
    """Which 2x2 blocks touch their neighbours to the right, below, and below on either side."""
    blocks = F.pad(mask, (0, mask.shape[2] % 2, 0, mask.shape[1] % 2))
    a, b, c, d = (blocks[:, y::2, x::2] for y in (0, 1) for x in (0, 1))
    every, head, tail = slice(None), slice(None, -1), slice(1, None)
    sides = (
        (b | d, a | c, (every, every, head), (every, every, tail)),
        (c | d, a | b, (every, head, every), (every, tail, every)),
        (d, a, (every, head, head), (every, tail, tail)),
        (c, b, (every, head, tail), (every, tail, head)),
    )
    return [(facing[near] & met[far], near, far) for facing, met, near, far in sides]


def _hook(labels: Tensor, links: list[Link]) -> Tensor:
    """One round of labelling: the pointers (B, rows, columns) of all blocks, moved up."""
    raised = labels.clone()
    for touching, near, far in links:
        for here, there in ((near, far), (far, near)):
            part = raised[here]
            torch.maximum(part, labels[there] * touching, out=part)
    parents = raised.flatten(1).scatter_reduce(1, labels.flatten(1), raised.flatten(1), "amax")
    # Three steps instead of one halve the rounds.
    for _ in range(3):
        parents = parents.gather(1, parents)
    return parents.view_as(labels)


def peak_boxes(heat: Tensor, size: tuple[int, int], min_area_px: int) -> Tensor:
    """Boxes of the components that hold the maps' highest cells, thresholded at the mean.

    The steps of ``objects.locate_objects`` for all maps at once. The device is waited for while components
    are labelled, and nowhere else.

    Args:
        heat: (B, h, w), any finite range.
        size: (H, W) of the grid on which components are found, pixels.
        min_area_px: components of fewer pixels of that grid are specks.

    Returns:
        (B, 4) int64 on the device of ``heat``: xyxy pixels of ``size``, end-exclusive. The full grid for a
        map that is constant, holds NaN or infinity, or shows nothing but specks.
    """
    maps = heat.detach().float()
    # A graph takes batches of any size, so it cannot list their parts.
    parts = [maps] if torch.compiler.is_exporting() else maps.split(MAPS_AT_ONCE)
    return torch.cat([_bounds(_object_masks(part, size, min_area_px)) for part in parts])


def _object_masks(maps: Tensor, size: tuple[int, int], min_area_px: int) -> Tensor:
    """(B, H, W) bool: the object's component; everything where a map shows no object."""
    low, high = maps.amin((1, 2)).double(), maps.amax((1, 2)).double()
    usable = (low + high).isfinite() & (high - low > CONSTANT_SPAN * torch.maximum(low.abs(), high.abs()))
    threshold = resize_maps(maps, size).mean((1, 2)) + TIE_SPAN * (high - low)
    mask = resize_maps(close_maps(maps), size) > threshold[:, None, None]
    labels = label_components(mask)
    numbers = labels.flatten(1).clamp(min=0)
    areas = torch.zeros_like(numbers).scatter_add(1, numbers, mask.flatten(1).long())
    rows, columns = (
        (2 * torch.arange(cells, device=maps.device) + 1) * side // (2 * cells)
        for cells, side in zip(maps.shape[1:], size, strict=True)
    )
    of_cell = labels[:, rows[:, None], columns].flatten(1)
    kept = (of_cell >= 0) & (areas.gather(1, of_cell.clamp(min=0)) >= min_area_px)
    peak = torch.where(kept, maps.flatten(1), -math.inf).argmax(1, keepdim=True)
    found = usable & kept.any(1)
    return (labels == of_cell.gather(1, peak)[:, :, None]) | ~found[:, None, None]


def _bounds(masks: Tensor) -> Tensor:
    """(B, 4) int64 xyxy, end-exclusive: the bounds of the set pixels of each mask (B, H, W), none empty."""
    starts, ends = [], []
    for across in (1, 2):
        occupied = masks.any(across)
        at = torch.arange(occupied.shape[1], device=masks.device)
        starts.append(torch.where(occupied, at, occupied.shape[1]).amin(1))
        ends.append(torch.where(occupied, at + 1, 0).amax(1))
    return torch.stack(starts + ends, 1)
