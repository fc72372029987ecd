"""Part boxes: the paper's numbers, and every degenerate case."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou, nms

from fgvc_cli.attention.objects import cut_map, locate_parts


def smooth_maps(seed: int, batch: int = 2, side: int = 96) -> torch.Tensor:
    noise = torch.rand(batch, 1, 12, 12, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, side, mode="bicubic")[:, 0]


def square(batch: int, side: float) -> torch.Tensor:
    return torch.tensor([[0.0, 0, side, side]]).expand(batch, 4)


def by_definition(heat: torch.Tensor, width: int, count: int, max_iou: float) -> torch.Tensor:
    """Average pooling with stride 1, then torchvision's non-maximum suppression."""
    scores = F.avg_pool2d(heat[None, None].double(), width, stride=1)[0, 0]
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in scores.shape), indexing="ij")
    corners = torch.stack([columns.flatten(), rows.flatten()], dim=1).double()
    boxes = torch.cat([corners, corners + width], dim=1)
    return boxes[nms(boxes, scores.flatten(), max_iou)[:count]].float()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_windows_are_those_of_average_pooling_and_nms(seed, count):
    maps = smooth_maps(seed)
    found = locate_parts(maps, square(2, 96.0), window=28 / 96, count=count)
    for heat, boxes in zip(maps, found, strict=True):
        torch.testing.assert_close(boxes, by_definition(heat, 28, count, 0.1))


def test_window_of_the_paper_is_112_of_384():
    parts = locate_parts(smooth_maps(0, side=384), square(2, 384.0))
    assert parts.shape == (2, 2, 4)
    assert ((parts[..., 2:] - parts[..., :2]) == 112).all()
    assert all(box_iou(pair[:1], pair[1:]) <= 0.1 for pair in parts)


def test_best_window_lies_on_the_attention():
    heat = torch.zeros(1, 384, 384)
    heat[0, 40:152, 200:312] = 1
    best, second = locate_parts(heat, square(1, 384.0))[0]
    assert best.tolist() == [200, 40, 312, 152]
    assert box_iou(best[None], second[None]) <= 0.1


def test_parts_are_in_the_coordinates_of_the_object():
    heat = torch.zeros(1, 100, 100)
    heat[0, 0:20, 80:100] = 1
    (part,) = locate_parts(heat, torch.tensor([[50.0, 10, 250, 110]]), window=0.2, count=1)[0]
    assert part.tolist() == [210, 10, 250, 30]


@pytest.mark.parametrize("window", [0.8, 0.97, 1.0])
def test_windows_too_large_for_two_apart_overlap_least(window):
    parts = locate_parts(smooth_maps(3), square(2, 96.0), window=window)
    assert parts.shape == (2, 2, 4) and parts.min() >= 0 and parts.max() <= 96
    for pair in parts:
        assert box_iou(pair[:1], pair[1:]) > 0.1
        assert (pair[0] != pair[1]).any() or window == 1


def test_second_window_is_the_farthest_where_none_is_free():
    """The first window lies in a corner; of all others, the one in the opposite corner overlaps least."""
    heat = torch.zeros(1, 10, 10)
    heat[0, :6, :6] = 1
    first, second = locate_parts(heat, square(1, 10.0), window=0.8)[0]
    assert first.tolist() == [0, 0, 8, 8]
    assert second.tolist() == [2, 2, 10, 10]


def test_constant_map_gives_the_first_windows():
    parts = locate_parts(torch.ones(1, 384, 384), square(1, 384.0))[0]
    assert parts[0].tolist() == [0, 0, 112, 112]


def test_more_parts_than_fit_are_still_given():
    assert locate_parts(smooth_maps(5), square(2, 96.0), window=0.5, count=6).shape == (2, 6, 4)


def test_map_is_cut_where_the_object_is():
    """A map whose cells count up, cut at whole cells and at its own resolution."""
    heat = torch.arange(64.0).view(1, 8, 8)
    cut = cut_map(heat, torch.tensor([[16.0, 8, 48, 40]]), (64, 64), 4)
    torch.testing.assert_close(cut, heat[:, 1:5, 2:6])
    wide = cut_map(heat, torch.tensor([[32.0, 8, 96, 40]]), (64, 128), 4)
    torch.testing.assert_close(wide, heat[:, 1:5, 2:6])


@pytest.mark.parametrize(("score", "first"), [("mean", (4, 4)), ("gem", (15, 15)), ("max", (30, 30))])
def test_what_a_window_scores_is_a_setting(score, first):
    """A plateau of 0.4 as large as a window, a patch of 0.9 in a quarter of one, a point of 1."""
    maps = torch.zeros(1, 40, 40)
    maps[0, 4:14, 4:14], maps[0, 20:25, 20:25], maps[0, 39, 39] = 0.4, 0.9, 1.0
    boxes = torch.tensor([[0.0, 0, 40, 40]])
    found = locate_parts(maps, boxes, window=0.25, count=1, score=score)[0, 0]
    # The means are 0.4 and 0.225, those of third powers 0.064 and 0.182.
    assert tuple(found[:2].int().tolist()) == first


def test_windows_may_be_wide_and_lie_on_a_coarser_grid():
    maps = torch.zeros(1, 40, 40)
    maps[0, 17:22, 10:30] = 1
    boxes = torch.tensor([[0.0, 0, 80, 80]])
    found = locate_parts(maps, boxes, window=0.25, count=2, aspect=4.0)[0]
    assert found[0].tolist() == [20, 34, 60, 44]
    coarse = locate_parts(maps, boxes, window=0.25, count=2, aspect=4.0, stride=8)[0]
    assert (coarse[:, 0] % 16 == 0).all() and (coarse[:, 1] % 16 == 0).all()
    assert (coarse[:, 2:] - coarse[:, :2] == torch.tensor([40, 10])).all()
