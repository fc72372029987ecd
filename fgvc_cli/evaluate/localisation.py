"""Where a model looked against where the object is known to be.

Boxes are xyxy pixels of the upright image, end-exclusive. An image may have several objects (Stanford
Dogs marks each dog): the nearest counts, as in ImageNet's localisation task. Pointing game: Zhang et al.,
Top-down Neural Attention by Excitation Backprop, ECCV 2016, without their margin of 15 pixels.

Legend: N images with a known box.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torchvision.ops import box_iou

from fgvc_cli.data.geometry import Box
from fgvc_cli.datasets.entries import TrueBoxes
from fgvc_cli.evaluate.intervals import Interval, mean_interval, share_interval

ENOUGH = 0.5
"""IoU above which a box counts as found (Russakovsky et al. 2015)."""
CENTRED = 0.6
"""Share of each side of the fixed box that figures are to be compared with."""
PART_SIDE = 0.2
"""Side of the square around a part that is known as a point, of the object's mean side."""

Point = tuple[float, float]


class Located(NamedTuple):
    """What the model says of one image, in its pixels."""

    truth: TrueBoxes
    size: tuple[int, int]
    """(width, height) of the upright image."""
    box: Box
    peak: Point | None
    """The hottest point of the heat map; None from a model without one."""


def best_iou(box: Box, truths: Sequence[Box]) -> float:
    """Intersection over union with the nearest of the true boxes, in [0, 1]."""
    return float(box_iou(torch.tensor([box]), torch.tensor(truths, dtype=torch.float)).max())


def inside(point: Point, boxes: Iterable[Box]) -> bool:
    """Whether a point lies in one of the boxes."""
    x, y = point
    return any(x1 <= x < x2 and y1 <= y < y2 for x1, y1, x2, y2 in boxes)


def part_boxes(truth: TrueBoxes) -> list[Box]:
    """The boxes of the parts. A part known as a point has a square around it, of ``PART_SIDE`` of the
    object's mean side (ours: the data give no size)."""
    x1, y1, x2, y2 = truth.objects[0]
    reach = PART_SIDE * ((x2 - x1) + (y2 - y1)) / 4
    around = [(x - reach, y - reach, x + reach, y + reach) for x, y in truth.points.values()]
    return [*truth.parts.values(), *around]


def centred_box(size: tuple[int, int], share: float = CENTRED) -> Box:
    """A box in the middle of (width, height) that covers a share of each side."""
    x, y = size[0] * (1 - share) / 2, size[1] * (1 - share) / 2
    return x, y, size[0] - x, size[1] - y


def localisation_metrics(located: Sequence[Located]) -> tuple[dict[str, float], dict[str, Interval]]:
    """Mean IoU, share above 0.5, pointing game, and what a fixed box scores; with 95 % intervals.

    Args:
        located: N of them, at least one.

    Returns:
        ``boxes`` (N), ``iou``, ``iou_above_0.5``, ``pointing_object``, ``pointing_parts`` (over the
        images whose part boxes are known), ``iou_centred`` and ``iou_above_0.5_centred`` of a fixed box
        in the middle, ``pointing_chance`` (mean share of the picture that the objects cover); the intervals
        of the first figures by the same names.
    """
    iou = np.array([best_iou(each.box, each.truth.objects) for each in located])
    fixed = np.array([best_iou(centred_box(each.size), each.truth.objects) for each in located])
    figures = {"boxes": float(len(located)), "iou": float(iou.mean())}
    mean = mean_interval(iou)
    intervals = {} if mean is None else {"iou": mean}
    shares = {"iou_above_0.5": iou > ENOUGH} | _pointing(located)
    for name, hits in shares.items():
        figures[name] = float(hits.mean())
        intervals[name] = share_interval(int(hits.sum()), len(hits))
    figures |= {"iou_centred": float(fixed.mean()), "iou_above_0.5_centred": float((fixed > ENOUGH).mean())}
    if "pointing_object" in figures:
        figures["pointing_chance"] = float(np.mean([_covered(each) for each in located]))
    return figures, intervals


def _pointing(located: Sequence[Located]) -> dict[str, np.ndarray]:
    pointed = [(each.peak, each.truth) for each in located if each.peak is not None]
    if not pointed:
        return {}
    hits = {"pointing_object": np.array([inside(peak, truth.objects) for peak, truth in pointed])}
    with_parts = [(peak, part_boxes(truth)) for peak, truth in pointed if truth.parts or truth.points]
    if with_parts:
        hits["pointing_parts"] = np.array([inside(peak, parts) for peak, parts in with_parts])
    return hits


def _covered(each: Located) -> float:
    """Share of the picture inside any of its objects, counted on a grid of 64 x 64 points."""
    width, height = each.size
    ticks = (np.arange(64) + 0.5) / 64
    x, y = np.meshgrid(ticks * width, ticks * height)
    held = [(x1 <= x) & (x < x2) & (y1 <= y) & (y < y2) for x1, y1, x2, y2 in each.truth.objects]
    return float(np.any(held, axis=0).mean())
