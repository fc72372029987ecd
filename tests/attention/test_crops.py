"""Crops cut on the device, the ones that gradients flow through, and attended pixels erased."""

from __future__ import annotations

import pytest
import torch

from fgvc_cli.attention.crops import (
    attended_pixels,
    cut_boxes,
    erase_pixels,
    follow_map,
    place_mask,
    sample_boxes,
)


@pytest.fixture(autouse=True)
def same_images_each_time():
    torch.manual_seed(0)


def ramp(height=16, width=20):
    """Two channels that hold the x and the y of each pixel's centre."""
    ys, xs = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([xs, ys])[None]


@pytest.mark.parametrize("cut", [cut_boxes, sample_boxes])
def test_whole_image_at_its_own_size_is_itself(cut):
    images = torch.randn(2, 3, 12, 12)
    boxes = torch.tensor([[[0.0, 0, 12, 12]]]).expand(2, 1, 4)
    torch.testing.assert_close(cut(images, boxes, 12), images)


@pytest.mark.parametrize("cut", [cut_boxes, sample_boxes])
def test_whole_pixels_are_cut_exactly(cut):
    images = torch.randn(1, 3, 16, 20)
    crops = cut(images, torch.tensor([[[4.0, 2, 12, 10], [0.0, 0, 8, 8]]]), 8)
    torch.testing.assert_close(crops, torch.cat([images[..., 2:10, 4:12], images[..., :8, :8]]))


@pytest.mark.parametrize("cut", [cut_boxes, sample_boxes])
def test_crops_lie_where_the_box_says(cut):
    """On a ramp, bilinear samples of a box are the coordinates of their centres."""
    box = torch.tensor([[[5.25, 3.5, 13.25, 9.5]]])
    x, y = cut(ramp(), box, 16)[0]
    steps = (torch.arange(16) + 0.5) / 16
    torch.testing.assert_close(x[0], 5.25 + 8 * steps)
    torch.testing.assert_close(y[:, 0], 3.5 + 6 * steps)


@pytest.mark.parametrize("cut", [cut_boxes, sample_boxes])
def test_shrinking_averages(cut):
    """A checkerboard of single pixels shrinks to grey; sampling without averaging would keep its contrast."""
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    crops = cut(board.float()[None, None], torch.tensor([[[0.0, 0, 64, 64]]]), 16)
    torch.testing.assert_close(crops, torch.full((1, 1, 16, 16), 0.5))


def test_crops_come_image_by_image():
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 8, 8).contiguous()
    boxes = torch.tensor([[0.0, 0, 4, 4], [2, 2, 8, 8]]).expand(3, 2, 4)
    assert cut_boxes(images, boxes, 4).amax(dim=(1, 2, 3)).tolist() == [0, 0, 1, 1, 2, 2]


def test_sampled_crops_equal_cut_crops_where_boxes_are_enlarged():
    images = torch.randn(2, 3, 32, 32)
    boxes = torch.tensor([[[1.3, 2.7, 20.1, 30.9]], [[0.0, 0, 31, 11.5]]])
    torch.testing.assert_close(sample_boxes(images, boxes, 48), cut_boxes(images, boxes, 48))


def test_following_a_map_keeps_the_values():
    boxes, heat = torch.tensor([[[2.0, 3, 11, 13]]]), torch.rand(1, 4, 4)
    assert torch.equal(follow_map(boxes, heat, (16, 16)), boxes)


def test_gradient_of_a_crop_reaches_the_map_and_moves_the_box_towards_it():
    heat = torch.full((1, 8, 8), 0.2, requires_grad=True)
    boxes = torch.tensor([[[2.0, 2, 14, 14]]])
    followed = follow_map(boxes, heat, (16, 16))
    sample_boxes(ramp(16, 16), followed, 8)[0, 0].mean().backward()
    # The mean x of the crop grows when attention moves to the right, inside the box only.
    assert heat.grad[0, 3, 6] > 0 > heat.grad[0, 3, 1]
    assert heat.grad[0, 0, 0] == 0


def test_soft_box_of_uniform_attention_is_the_box():
    """Mean +- sqrt(3) standard deviations of a uniform density are its ends. The derivative of x2 - x1, which
    is sqrt(12) deviations, is ((x - mean)^2 - variance) * sqrt(12) / (2 deviations), over their sum."""
    heat = torch.ones(1, 64, 64, dtype=torch.float64, requires_grad=True)
    box = torch.tensor([[[0.0, 0, 64, 64]]])
    x1, _, x2, _ = follow_map(box, heat, (64, 64))[0, 0]
    (grad,) = torch.autograd.grad(x2 - x1, heat)
    centres = torch.arange(64, dtype=torch.float64) + 0.5
    variance = ((centres - 32) ** 2).mean()
    expected = ((centres - 32) ** 2 - variance) * 12**0.5 / (2 * variance**0.5) / 64**2
    torch.testing.assert_close(grad[0, 32], expected, atol=1e-6, rtol=1e-3)


def test_cut_crops_do_not_depend_on_their_neighbours():
    images = torch.randn(2, 3, 160, 160)
    boxes = torch.tensor([[[4.0, 6, 34, 36]], [[0.0, 0, 150, 150]]])
    torch.testing.assert_close(cut_boxes(images, boxes, 64)[:1], cut_boxes(images[:1], boxes[:1], 64))


def test_pixels_above_the_threshold_are_erased_and_no_others():
    heat = torch.tensor([[[1.0, 0.2], [0.2, 0.2]], [[0.69, 0.0], [0.0, 0.71]]])
    mask = attended_pixels(heat, (2, 2), 0.7)
    assert mask.tolist() == [[[True, False], [False, False]], [[False, False], [False, True]]]
    images = torch.ones(2, 3, 2, 2)
    erased = erase_pixels(images, mask)
    assert torch.equal(erased == 0, mask[:, None].expand(2, 3, 2, 2))
    assert images.min() == 1


def test_map_is_enlarged_to_the_image():
    mask = attended_pixels(torch.tensor([[[1.0, 0.0]]]), (4, 8), 0.7)
    # Bilinear from the cells' centres at x = 2 and 6: 0.7 is reached before x = 3.2.
    assert mask[0, 0].tolist() == [True, True, True] + [False] * 5


def test_nothing_is_erased_at_threshold_one():
    assert not attended_pixels(torch.rand(2, 5, 5), (10, 10), 1.0).any()


def test_a_mask_over_a_box_lands_where_its_crop_came_from():
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 0, 3] = mask[1] = True
    boxes = torch.tensor([[10.0, 20.0, 18.0, 36.0], [0.0, 0.0, 5.0, 3.0]])
    placed = place_mask(mask, boxes, (40, 30))
    expected = torch.zeros(2, 40, 30, dtype=torch.bool)
    expected[0, 20:24, 16:18] = True  # cells of 2 x 4 pixels
    expected[1, :3, :5] = True
    assert torch.equal(placed, expected)
