"""Heat map -> object box (Conde & Turgutlu 2021, their object stage; method.md part B).

Legend: B batch, h w rows and columns of a map, H W of the image the box is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from skimage.filters import threshold_li, threshold_mean, threshold_otsu, threshold_triangle
from skimage.measure import label
from skimage.morphology import closing
from torch import Tensor

from fgvc_cli.attention.components import CONSTANT_SPAN, TIE_SPAN, peak_boxes, resize_maps
from fgvc_cli.errors import FgvcError

THRESHOLDS: dict[str, Callable[[np.ndarray], float]] = {
    "mean": threshold_mean,
    "otsu": threshold_otsu,
    "li": threshold_li,
    "triangle": threshold_triangle,
}
"""Name -> threshold of a grey image; the paper's is the mean."""

MIN_AREA_SHARE = 0.01
"""Components below this share of the image are specks, not objects."""

WORK_PX = 224
"""Longest side on which components are found. For a larger image the edges lie within one of these pixels of
the full-size result, at a quarter of its cost (0.7 ms against 2.5 ms per map at 448 px, one CPU core)."""

Box = tuple[float, float, float, float]


def locate_objects(heat: Tensor, size: Sequence[int], threshold: str = "mean") -> Tensor:
    """Boxes of the objects that maps look at.

    Each map is resized (bilinear), binarised at its threshold and closed; of the connected components
    that are not specks, the one with the map's highest value gives the box. Deviation from the paper: the
    grey closing runs on the map's own grid (3x3 cells) before the resizing, where it bridges gaps of up to
    two cells; a 3x3 closing of the resized mask would change next to nothing.

    scikit-image takes the maps one by one on the CPU; for maps on CUDA and the mean threshold, ``components``
    finds the same boxes for all of them there. No gradient.

    Args:
        heat: (B, h, w), any finite range.
        size: (H, W) of the image, pixels.
        threshold: a name in ``THRESHOLDS``.

    Returns:
        (B, 4) float32 on the device of ``heat``: xyxy pixels of ``size``, end-exclusive. The full image for a
        map that is constant, holds NaN or infinity, or shows nothing but specks.

    Raises:
        FgvcError: an unknown threshold.
    """
    if threshold not in THRESHOLDS:
        raise FgvcError(f"No threshold is called {threshold!r}.", f"Known: {', '.join(THRESHOLDS)}.")
    height, width = size
    scale = min(1.0, WORK_PX / max(height, width))
    work = max(1, round(height * scale)), max(1, round(width * scale))
    # On the CPU the reference is about four times faster; other thresholds need a histogram of each map. An
    # exported graph holds tensor operations only.
    if threshold == "mean" and (heat.is_cuda or torch.compiler.is_exporting()):
        found = peak_boxes(heat, work, math.ceil(MIN_AREA_SHARE * math.prod(work)))
    else:
        found = _reference_boxes(heat.detach().float().cpu(), *work, threshold)
    # Multiplied first, so that the far border comes out as exactly the image's.
    x, y = found[:, ::2].double() * width / work[1], found[:, 1::2].double() * height / work[0]
    return torch.stack((x, y), 2).flatten(1).float().to(heat.device)


def locate_object(heat: np.ndarray, size: Sequence[int], threshold: str = "mean") -> Box:
    """The box of one map (h, w); see ``locate_objects``."""
    maps = torch.from_numpy(np.array(heat, np.float32))[None]
    x1, y1, x2, y2 = locate_objects(maps, size, threshold)[0].tolist()
    return x1, y1, x2, y2


@torch.library.custom_op(
    "fgvc::reference_boxes",
    mutates_args=(),
    schema="(Tensor maps, int height, int width, str threshold) -> Tensor",
)
def _reference_boxes(maps: Tensor, height: int, width: int, threshold: str) -> Tensor:
    """(B, 4) int64 boxes in pixels of (height, width), map by map through scikit-image.

    An operator of its own, so that a model that calls it can be costed, compiled and exported.
    """
    work = (height, width)
    resized = resize_maps(maps, work).numpy()
    closed = resize_maps(torch.from_numpy(_close(maps.numpy())), work).numpy()
    full = (0, 0, work[1], work[0])
    boxes = [
        _peak_box(*arrays, THRESHOLDS[threshold]) or full
        for arrays in zip(maps.numpy(), resized, closed, strict=True)
    ]
    return torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)


@_reference_boxes.register_fake
def _(maps: Tensor, height: int, width: int, threshold: str) -> Tensor:
    return maps.new_empty((maps.shape[0], 4), dtype=torch.int64)


def _close(maps: np.ndarray) -> np.ndarray:
    """Grey closing with 3x3 cells of each map (B, h, w); the plane around a map counts as its minimum."""
    padded = np.pad(maps, ((0, 0), (2, 2), (2, 2)), constant_values=-np.inf)
    return closing(padded, np.ones((1, 3, 3), bool))[:, 2:-2, 2:-2]


def _peak_box(
    heat: np.ndarray, resized: np.ndarray, closed: np.ndarray, find_threshold: Callable[[np.ndarray], float]
) -> tuple[int, int, int, int] | None:
    """The object's box in pixels of ``resized``, or None for no object."""
    low, high = float(heat.min()), float(heat.max())
    if not np.isfinite(low + high) or high - low <= CONSTANT_SPAN * max(abs(low), abs(high)):
        return None
    components = label(closed > find_threshold(resized) + TIE_SPAN * (high - low))
    kept = np.bincount(components.ravel()) >= MIN_AREA_SHARE * components.size
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
