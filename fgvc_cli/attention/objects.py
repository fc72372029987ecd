"""Heat map -> object box, and inside it part boxes (Conde & Turgutlu 2021, section 2.2).

Legend: B batch, h w rows and columns of a map, H W of the image the box is for, S side of the grid that parts
are scored on, P parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from skimage.filters import threshold_li, threshold_mean, threshold_otsu, threshold_triangle
from skimage.measure import label
from torch import Tensor

from fgvc_cli.attention.crops import cut_boxes
from fgvc_cli.errors import FgvcError

CONSTANT_SPAN = 1e-6
"""A map whose span is at most this share of its largest magnitude is constant but for float32 rounding."""

TIE_SPAN = 1e-7
"""A sample above the threshold by at most this share of the map's span is on it. Samples that equal the mean,
as in symmetric maps, then fall on the same side on every device, however it rounds."""

MAPS_AT_ONCE = 256
"""Maps in flight: bounds the working memory to about 0.7 GB for a grid of 224 x 224."""

ROUNDS_PER_CHECK = 3
"""Rounds of labelling between two looks at the result, on the CPU."""

CUDA_ROUNDS = 10
"""Rounds of labelling on a card, where a look at the result would make the host wait. Each joins pieces of a
component to a higher neighbour and so at least halves their number; blobs, spirals, mazes and noise of single
pixels take four to seven (tests/attention/test_components.py)."""


def resize(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, C, H, W) to ``size`` (rows, columns): bilinear, antialiased, in the type of ``values``."""
    if torch.compiler.is_exporting():
        # Runtimes differ in which antialiasing they have, and for which types; all multiply matrices.
        height, width = values.shape[-2:]
        return _resize_weights(height, size[0], values) @ values @ _resize_weights(width, size[1], values).T
    return F.interpolate(values, size, mode="bilinear", antialias=True)


def _resize_weights(pixels: int, side: int, like: Tensor) -> Tensor:
    """(side, pixels): what each pixel along an axis gives to each of the new ones, a triangle around it."""
    scale = pixels / side
    cells, places = (
        torch.arange(count, dtype=like.dtype, device=like.device) + 0.5 for count in (side, pixels)
    )
    weights = (1 - (places - scale * cells[:, None]).abs() / max(scale, 1)).clamp_min(0)
    return weights / weights.sum(dim=1, keepdim=True)


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (bilinear, antialiased): (B, h, w) -> (B, H, W) for a ``size`` (H, W).

    float64, so that the rounding of different devices stays far below ``TIE_SPAN``.
    """
    return resize(maps[:, None].double(), size)[:, 0]


def close_maps(maps: Tensor, side: int = 3) -> Tensor:
    """Grey closing with a square of ``side`` cells, an odd number, of maps (B, h, w); same shape.

    The plane around a map counts as its minimum. Of a mask in 0 and 1 it is the binary closing.
    """
    margin = (side - 1,) * 4
    dilated = F.max_pool2d(F.pad(maps[:, None], margin, value=-math.inf), side, stride=1)
    return -F.max_pool2d(-dilated, side, stride=1)[:, 0]


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
    settled = False
    while not settled:
        for _ in range(CUDA_ROUNDS if mask.is_cuda else ROUNDS_PER_CHECK):
            previous, labels = labels, _hook(labels, links)
        settled = mask.is_cuda or torch.equal(previous, labels)
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


def peak_boxes(heat: Tensor, size: tuple[int, int], min_area_px: int, binary_px: int | None = None) -> Tensor:
    """Boxes of the components that hold the maps' highest cells, thresholded at the mean.

    The steps of ``objects.locate_objects`` for all maps at once; a card is not waited for.

    Args:
        heat: (B, h, w), any finite range.
        size: (H, W) of the grid on which components are found, pixels.
        min_area_px: components of fewer pixels of that grid are specks.
        binary_px: side of the binary closing on that grid, an odd number; None: the map's cells are closed.

    Returns:
        (B, 4) int64 on the device of ``heat``: xyxy pixels of ``size``, end-exclusive. The full grid for a
        map that is constant, holds NaN or infinity, or shows nothing but specks.
    """
    maps = heat.detach().float()
    # A graph takes batches of any size, so it cannot list their parts.
    parts = [maps] if torch.compiler.is_exporting() else maps.split(MAPS_AT_ONCE)
    return torch.cat([_bounds(_object_masks(part, size, min_area_px, binary_px)) for part in parts])


def _object_masks(maps: Tensor, size: tuple[int, int], min_area_px: int, binary_px: int | None) -> Tensor:
    """(B, H, W) bool: the object's component; everything where a map shows no object."""
    low, high = maps.amin((1, 2)).double(), maps.amax((1, 2)).double()
    usable = (low + high).isfinite() & (high - low > CONSTANT_SPAN * torch.maximum(low.abs(), high.abs()))
    resized = resize_maps(maps, size)
    threshold = resized.mean((1, 2)) + TIE_SPAN * (high - low)
    if binary_px is None:
        mask = resize_maps(close_maps(maps), size) > threshold[:, None, None]
    else:
        mask = close_maps((resized > threshold[:, None, None]).float(), binary_px) > 0.5
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


THRESHOLDS: dict[str, Callable[[np.ndarray], float]] = {
    "mean": threshold_mean,
    "otsu": threshold_otsu,
    "li": threshold_li,
    "triangle": threshold_triangle,
}
"""Name -> threshold of a grey image; the paper's is the mean."""

WORK_PX = 224
"""Longest side on which components of maps with closed cells are found. For a larger image the edges lie
within one of these pixels of the full-size result, at a quarter of its cost."""


def locate_objects(
    heat: Tensor,
    size: Sequence[int],
    threshold: str = "mean",
    *,
    closing: str = "binary",
    closing_px: int = 3,
    min_area: float = 64**2 / 448**2,
) -> Tensor:
    """Boxes of the objects that maps look at.

    Each map is resized to the image (bilinear), binarised at its threshold and closed; of the connected
    components (8 neighbours) that are not specks, the one with the map's highest value gives the box.

    ``closing="binary"`` is the paper's order (2.1): the binary map of full size is closed. ``"cells"``, ours
    and older, closes the map's own cells (grey, 3x3 of them) before the resizing, which bridges gaps of up to
    two cells and makes most boxes the whole image; it works on a grid of at most ``WORK_PX``.

    scikit-image labels the maps one by one on the CPU; for maps on CUDA and the mean threshold,
    ``peak_boxes`` finds the same boxes for all of them there. No gradient.

    Args:
        heat: (B, h, w), any finite range.
        size: (H, W) of the image, pixels.
        threshold: a name in ``THRESHOLDS``.
        closing: ``binary`` or ``cells``.
        closing_px: side of the square of a binary closing, an odd number of pixels.
        min_area: components below this fraction of the image are specks; the authors': 64^2 of 448^2.

    Returns:
        (B, 4) float32 on the device of ``heat``: xyxy pixels of ``size``, end-exclusive. The full image for a
        map that is constant, holds NaN or infinity, or shows nothing but specks.

    Raises:
        FgvcError: an unknown threshold.
    """
    if threshold not in THRESHOLDS:
        raise FgvcError(f"No threshold is called {threshold!r}.", f"Known: {', '.join(THRESHOLDS)}.")
    height, width = size
    binary_px = closing_px if closing == "binary" else None
    scale = 1.0 if binary_px else min(1.0, WORK_PX / max(height, width))
    work = max(1, round(height * scale)), max(1, round(width * scale))
    least = math.ceil(min_area * math.prod(work))
    # On the CPU the reference is about four times faster; other thresholds need a histogram of each map. An
    # exported graph holds tensor operations only.
    if threshold == "mean" and (heat.is_cuda or torch.compiler.is_exporting()):
        found = peak_boxes(heat, work, least, binary_px)
    else:
        found = _reference_boxes(heat.detach().float().cpu(), *work, threshold, least, binary_px or 0)
    # Multiplied first, so that the far border comes out as exactly the image's.
    x, y = found[:, ::2].double() * width / work[1], found[:, 1::2].double() * height / work[0]
    return torch.stack((x, y), 2).flatten(1).float().to(heat.device)


@torch.library.custom_op(
    "fgvc::reference_boxes",
    mutates_args=(),
    schema="(Tensor maps, int height, int width, str threshold, int least, int binary_px) -> Tensor",
)
def _reference_boxes(
    maps: Tensor, height: int, width: int, threshold: str, least: int, binary_px: int
) -> Tensor:
    """(B, 4) int64 boxes in pixels of (height, width), map by map through scikit-image.

    An operator of its own, so that a model that calls it can be costed, compiled and exported.
    """
    full = (0, 0, width, height)
    resized = resize_maps(maps, (height, width)).numpy()
    joined = resized if binary_px else resize_maps(close_maps(maps), (height, width)).numpy()
    boxes = [
        _peak_box(*arrays, THRESHOLDS[threshold], least, binary_px) or full
        for arrays in zip(maps.numpy(), resized, joined, strict=True)
    ]
    return torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)


@_reference_boxes.register_fake
def _(maps: Tensor, height: int, width: int, threshold: str, least: int, binary_px: int) -> Tensor:
    return maps.new_empty((maps.shape[0], 4), dtype=torch.int64)


def _peak_box(
    heat: np.ndarray,
    resized: np.ndarray,
    joined: np.ndarray,
    find_threshold: Callable[[np.ndarray], float],
    least: int,
    binary_px: int,
) -> tuple[int, int, int, int] | None:
    """The object's box in pixels of ``resized``, or None for no object.

    Args:
        joined: what is binarised; ``resized``, or the same of closed cells.
        least: smallest component that is no speck, pixels.
        binary_px: side of the binary closing; 0: none.
    """
    low, high = float(heat.min()), float(heat.max())
    if not np.isfinite(low + high) or high - low <= CONSTANT_SPAN * max(abs(low), abs(high)):
        return None
    mask = joined > find_threshold(resized) + TIE_SPAN * (high - low)
    components = label(close_mask(mask, binary_px) if binary_px else mask)
    kept = np.bincount(components.ravel()) >= least
    kept[0] = False  # the background
    # The maximum is looked up among the map's own cells: among samples of the resized map, two peaks of
    # nearly equal height may change places.
    centres = [
        ((np.arange(cells) + 0.5) * side / cells).astype(int)
        for cells, side in zip(heat.shape, components.shape, strict=True)
    ]
    of_cell = components[np.ix_(*centres)]
    if not kept[of_cell].any():
        return None
    mask = components == of_cell.flat[np.where(kept[of_cell], heat, -np.inf).argmax()]
    (rows,), (columns,) = mask.any(axis=1).nonzero(), mask.any(axis=0).nonzero()
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def close_mask(mask: np.ndarray, side: int) -> np.ndarray:
    """Binary closing of a mask (H, W) with a square of ``side`` pixels, an odd number; the plane around it is
    clear. A square is closed along one axis after the other, which is much faster than scikit-image's."""
    wide = np.pad(mask, side - 1)
    for join in (np.logical_or, np.logical_and):
        rows, columns = (length - side + 1 for length in wide.shape)
        down = wide[:rows].copy()
        for start in range(1, side):
            join(down, wide[start : start + rows], out=down)
        wide = down[:, :columns].copy()
        for start in range(1, side):
            join(wide, down[:, start : start + columns], out=wide)
    return wide


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
