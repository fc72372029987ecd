"""Attention-guided erasing."""

from __future__ import annotations

import torch

from fgvc_cli.attention.erase import attended_pixels, erase_pixels, place_mask


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
