"""Boxes of hand-made maps, whose truth is known, and agreement with the full-size scikit-image path."""

import functools

import numpy as np
import pytest
import torch
from skimage.filters import threshold_mean
from skimage.measure import label, regionprops
from skimage.morphology import closing
from skimage.transform import resize

from fgvc_cli.attention import objects
from fgvc_cli.attention.objects import THRESHOLDS
from fgvc_cli.errors import FgvcError

CELL = 16
CELLS = {"closing": "cells", "min_area": 0.01}
"""Of models from before these were settings; the first tests here are of steps that both ways share."""


def _locate_one(heat, size, threshold="mean", **settings) -> tuple[float, ...]:
    maps = torch.from_numpy(np.array(heat, np.float32))[None]
    return tuple(objects.locate_objects(maps, size, threshold, **settings)[0].tolist())


locate_object = functools.partial(_locate_one, **CELLS)
locate_objects = functools.partial(objects.locate_objects, **CELLS)
FULL = (0.0, 0.0, 224.0, 224.0)


def blobs(*boxes, cells=14):
    """A map that is 1 (or the fifth number) inside boxes of whole cells."""
    heat = np.zeros((cells, cells), np.float32)
    for x1, y1, x2, y2, *value in boxes:
        heat[y1:y2, x1:x2] = value[0] if value else 1.0
    return heat


def assert_close_to(box, cells, tolerance=CELL):
    """Interpolation moves an edge by less than one cell."""
    assert np.abs(np.array(box) - np.array(cells) * CELL).max() < tolerance, box


def test_one_blob_gives_its_box_in_xy_order():
    assert_close_to(locate_object(blobs((4, 2, 9, 5)), (224, 224)), (4, 2, 9, 5))


def test_otsu_finds_the_half_height_edge_of_a_plateau():
    box = locate_object(blobs((4, 2, 9, 5)), (224, 224), "otsu")
    assert_close_to(box, (4, 2, 9, 5), tolerance=CELL / 2)


def test_non_square_image_scales_each_axis():
    x1, y1, x2, y2 = locate_object(blobs((7, 0, 14, 14)), (112, 224))
    assert abs(x1 - 112) < CELL
    assert (y1, x2, y2) == (0, 224, 112)


def test_the_component_of_the_maximum_wins_over_a_larger_one():
    heat = blobs((0, 0, 6, 14, 0.6), (10, 9, 13, 12, 0.9))
    assert_close_to(locate_object(heat, (224, 224)), (10, 9, 13, 12))


@pytest.mark.parametrize("box", [(0, 0, 4, 5), (10, 9, 14, 14), (0, 5, 14, 8)])
def test_a_blob_at_the_border_reaches_the_border_and_no_further(box):
    found = locate_object(blobs(box), (224, 224))
    assert_close_to(found, box)
    for edge, cells in zip(found, box, strict=True):
        assert cells not in (0, 14) or edge == cells * CELL


def test_a_blob_beside_the_border_is_not_closed_onto_it():
    assert locate_object(blobs((1, 5, 6, 9)), (224, 224), "otsu")[0] > CELL / 2


@pytest.mark.parametrize("heat", [np.zeros((7, 7)), np.full((7, 7), 0.3), np.full((1, 1), 2.0)])
def test_a_constant_map_gives_the_full_image(heat):
    assert locate_object(heat, (224, 224)) == FULL


def test_a_map_that_varies_by_rounding_alone_is_constant():
    heat = np.full((14, 14), 0.3, np.float32)
    heat[4:8, 4:8] += 2e-7
    assert locate_object(heat, (224, 224)) == FULL


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_gives_the_full_image(bad, threshold):
    heat = blobs((4, 4, 8, 8))
    heat[0, 0] = bad
    assert locate_object(heat, (224, 224), threshold) == FULL


def test_a_speck_with_the_maximum_loses_to_the_object():
    heat = blobs((4, 16, 20, 26, 0.7), (24, 2, 25, 3, 1.0), cells=28)
    x1, y1, x2, y2 = locate_object(heat, (224, 224), "otsu")
    assert np.abs(np.array([x1, y1, x2, y2]) - np.array([4, 16, 20, 26]) * 8).max() <= 4


def test_nothing_but_a_speck_gives_the_full_image():
    assert locate_object(blobs((20, 5, 21, 6), cells=28), (224, 224), "otsu") == FULL


def test_closing_joins_two_halves_of_an_object_across_one_dark_cell():
    heat = blobs((2, 5, 6, 9), (7, 5, 11, 9))
    assert_close_to(locate_object(heat, (224, 224), "otsu"), (2, 5, 11, 9), tolerance=CELL / 2)
    apart = blobs((2, 5, 5, 9, 1.0), (8, 5, 11, 9, 0.9))
    assert_close_to(locate_object(apart, (224, 224), "otsu"), (2, 5, 5, 9), tolerance=CELL / 2)


def test_values_are_relative_to_the_map():
    heat = blobs((4, 2, 9, 5))
    assert locate_object(heat * 1e-3 - 7, (224, 224)) == locate_object(heat, (224, 224))


def test_a_batch_equals_its_maps_one_by_one_and_keeps_the_order():
    maps = np.stack([blobs((1, 1, 4, 4)), blobs((9, 9, 13, 13)), np.zeros((14, 14), np.float32)])
    boxes = locate_objects(torch.from_numpy(maps), (448, 448))
    assert boxes.shape == (3, 4)
    assert boxes.dtype == torch.float32
    assert [tuple(box) for box in boxes.tolist()] == [locate_object(heat, (448, 448)) for heat in maps]


def test_edges_are_whole_pixels_of_the_working_grid():
    heat = torch.from_numpy(np.stack([smooth_map(np.random.default_rng(seed), 14) for seed in range(8)]))
    boxes = locate_objects(heat, (224, 224))
    assert torch.equal(boxes, boxes.round())
    assert torch.equal(locate_objects(heat, (672, 672)), 3 * boxes)


@pytest.mark.parametrize("size", [(640, 427), (333, 1000), (225, 225)])
def test_the_far_border_is_exactly_that_of_the_image(size):
    assert locate_object(np.array([[1, 1], [1, 0]]), size) == (0.0, 0.0, size[1], size[0])


def test_samples_that_equal_the_mean_are_outside_it():
    heat = np.array([[0.1, 0.7, 1.3]])
    assert locate_object(heat, (9, 9)) == (5.0, 0.0, 9.0, 9.0)


def test_half_precision_with_gradient_and_an_empty_batch_are_taken():
    heat = torch.from_numpy(blobs((4, 2, 9, 5)))[None].to(torch.bfloat16).requires_grad_()
    expected = locate_object(blobs((4, 2, 9, 5)), (224, 224))
    assert tuple(locate_objects(heat, (224, 224))[0].tolist()) == expected
    assert locate_objects(torch.empty(0, 14, 14), (224, 224)).shape == (0, 4)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_every_threshold_contains_the_peak(threshold):
    heat = smooth_map(np.random.default_rng(1), 14)
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    x1, y1, x2, y2 = locate_object(heat, (224, 224), threshold)
    assert x1 <= (x + 0.5) * CELL <= x2
    assert y1 <= (y + 0.5) * CELL <= y2


def test_unknown_threshold_names_the_known():
    with pytest.raises(FgvcError, match="otsu"):
        locate_object(blobs((1, 1, 3, 3)), (224, 224), "median")


def smooth_map(rng, cells):
    """Random bumps, a few cells wide."""
    return resize(rng.random((5, 5)), (cells, cells), order=3, clip=False).astype(np.float32)


def reference_box(heat, side):
    """The steps of closed cells at full size, by scikit-image alone."""
    padded = closing(np.pad(heat, 2, constant_values=-np.inf), np.ones((3, 3)))[2:-2, 2:-2]
    enlarge = {"output_shape": (side, side), "order": 1, "mode": "edge", "anti_aliasing": False}
    resized = resize(heat, **enlarge)
    components = label(resize(padded, **enlarge) > threshold_mean(resized))
    large = [r for r in regionprops(components) if r.area >= 0.01 * side * side]
    step = side // len(heat)
    cells = components[step // 2 :: step, step // 2 :: step]
    y1, x1, y2, x2 = max(large, key=lambda r: heat[cells == r.label].max()).bbox
    return x1, y1, x2, y2


@pytest.mark.parametrize(("cells", "side", "tolerance"), [(7, 224, 0), (14, 448, 2), (24, 384, 2)])
def test_boxes_agree_with_the_full_size_reference(cells, side, tolerance):
    rng = np.random.default_rng(cells)
    for _ in range(10):
        heat = smooth_map(rng, cells)
        gap = np.abs(np.array(locate_object(heat, (side, side))) - reference_box(heat, side))
        assert gap.max() <= tolerance


def binary_reference(heat, side, closing_px=3, min_area=64**2 / 448**2):
    """The paper's order (2.1) by scikit-image alone."""
    resized = resize(heat, (side, side), order=1, mode="edge", anti_aliasing=False)
    mask = np.pad(resized > threshold_mean(resized), closing_px - 1)
    mask = closing(mask, np.ones((closing_px, closing_px)))
    components = label(mask[closing_px - 1 : side + closing_px - 1, closing_px - 1 : side + closing_px - 1])
    large = [r for r in regionprops(components) if r.area >= min_area * side * side]
    step = side // len(heat)
    cells = components[step // 2 :: step, step // 2 :: step]
    y1, x1, y2, x2 = max(large, key=lambda r: heat[cells == r.label].max(initial=-np.inf)).bbox
    return x1, y1, x2, y2


@pytest.mark.parametrize(("cells", "side"), [(7, 224), (14, 448), (24, 384)])
@pytest.mark.parametrize("closing_px", [3, 21])
def test_binary_boxes_are_the_papers_order_at_full_size(cells, side, closing_px):
    rng = np.random.default_rng(cells)
    for _ in range(5):
        heat = smooth_map(rng, cells).astype(np.float64)
        found = _locate_one(heat, (side, side), closing_px=closing_px)
        assert found == binary_reference(heat.astype(np.float32).astype(np.float64), side, closing_px)


def test_binary_closing_leaves_objects_apart_that_closed_cells_join():
    heat = blobs((2, 4, 6, 8), (8, 4, 12, 8, 0.8))
    near, joined = (_locate_one(heat, (224, 224), closing=c, min_area=0.01) for c in ("binary", "cells"))
    assert near[2] < 8 * CELL < 11 * CELL < joined[2]


def test_a_gap_is_closed_by_a_square_wide_enough():
    heat = np.kron(blobs((2, 2, 7, 12), (7, 2, 12, 12, 0.8)), np.ones((16, 16), np.float32))
    heat[:, 112:116] = 0
    boxes = [_locate_one(heat, heat.shape, closing_px=px) for px in (3, 5)]
    assert [box[2] for box in boxes] == [112, 192]


def test_the_smallest_object_is_a_setting():
    heat = blobs((5, 5, 7, 7))  # of 14 x 14 cells: 2.04 % before it is resized
    assert _locate_one(heat, (224, 224), min_area=0.2) == FULL
    assert _locate_one(heat, (224, 224), min_area=0.02) != FULL
