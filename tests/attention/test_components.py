"""The batched boxes equal those that scikit-image gives map by map, to the pixel."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.measure import label
from skimage.morphology import closing

from fgvc_cli.attention.objects import (
    CUDA_ROUNDS,
    MAPS_AT_ONCE,
    _block_links,
    _hook,
    close_maps,
    close_mask,
    label_components,
    locate_objects,
    peak_boxes,
)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: boxes stay on the CPU")


def generator(seed):
    return torch.Generator().manual_seed(seed)


def smooth_maps(shape, seed, count=6):
    """Random bumps, a few cells wide."""
    bumps = torch.rand(count, 1, 5, 4, generator=generator(seed))
    return F.interpolate(bumps, shape, mode="bicubic")[:, 0]


def noisy_maps(shape, seed, count=6):
    return torch.rand(count, *shape, generator=generator(seed)) ** 4


def tied_maps(shape, seed, count=6):
    """Few values, and every map its own mirror image: equal peaks, samples that equal the mean."""
    half = torch.randint(0, 3, (count, *shape), generator=generator(seed)).float()
    return half + half.flip(2)


def plateau_maps(shape, seed, count=6):
    """1 in half of the cells: the mean lies half-way between the values."""
    ranks = torch.rand(count, shape[0] * shape[1], generator=generator(seed)).argsort(1).argsort(1)
    return (ranks * 2 < ranks.shape[1]).float().view(count, *shape)


def snake(side, gap=1):
    """Set rows with ``gap`` clear rows between, joined at alternate ends."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[:: gap + 1] = True
    mask[:, -1] = (torch.arange(side) // (gap + 1)) % 2 == 0
    mask[:, 0] = ~mask[:, -1]
    mask[:: gap + 1, :] = True
    return mask


def spiral(side, gap=1):
    """One arm from the corner to the centre, ``gap`` clear cells between its turns."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    y, x, dy, dx = 0, 0, 0, 1
    mask[0, 0] = True
    for turn in range(2 * side // (gap + 1)):
        # The first three runs are of full length; then every second turn is one pitch shorter.
        for _ in range(side - 1 - max(0, (turn - 1) // 2) * (gap + 1)):
            y, x = y + dy, x + dx
            mask[y, x] = True
        dy, dx = dx, -dy
    return mask


CELLS = {"closing": "cells", "min_area": 0.01}


def reference_equals(maps, grid):
    """Both ways of closing, batched and map by map; returns the boxes of closed cells, in pixels of a grid
    of at most ``WORK_PX``."""
    for closing_px in (3, 9):
        least = math.ceil(64**2 / 448**2 * math.prod(grid))
        found = peak_boxes(maps, grid, least, closing_px)
        expected = locate_objects(maps, grid, closing_px=closing_px)
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=0)
    found = peak_boxes(maps, grid, math.ceil(0.01 * math.prod(grid)))
    assert found.dtype == torch.int64
    torch.testing.assert_close(found.float(), locate_objects(maps, grid, **CELLS), rtol=0, atol=0)
    return found


def same_partition(labels, reference):
    pairs = np.unique(np.stack([labels.ravel(), reference.ravel()]), axis=1).shape[1]
    return pairs == len(np.unique(labels)) == len(np.unique(reference))


@pytest.mark.parametrize("grid", [(224, 224), (126, 224), (224, 149), (61, 37)])
@pytest.mark.parametrize("shape", [(14, 14), (24, 24), (28, 28), (7, 13), (40, 24)])
@pytest.mark.parametrize("maps", [smooth_maps, noisy_maps, tied_maps, plateau_maps])
def test_boxes_equal_the_reference(maps, shape, grid):
    reference_equals(maps(shape, seed=sum(shape) + sum(grid)), grid)


def test_more_maps_than_are_in_flight_at_once():
    maps = torch.cat([smooth_maps((24, 24), 1, MAPS_AT_ONCE - 50), noisy_maps((24, 24), 2, 100)])
    reference_equals(maps, (112, 112))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_and_gradients_are_taken(dtype):
    maps = smooth_maps((14, 14), 3).to(dtype).requires_grad_()
    assert not reference_equals(maps, (224, 224)).requires_grad


def test_an_empty_batch_gives_no_boxes():
    assert peak_boxes(torch.empty(0, 14, 14), (224, 224), 502).shape == (0, 4)


def test_lower_precision_of_autocast_changes_nothing():
    maps = smooth_maps((14, 14), 4)
    with torch.autocast("cpu", torch.bfloat16):
        reference_equals(maps, (224, 224))


def maps_without_object():
    """Constant, constant but for rounding, and not finite."""
    maps = smooth_maps((14, 14), 5, count=8)
    maps[0], maps[1], maps[2] = 0, 0.3, -7
    maps[2, 3:5, 3:5] += 1e-6
    maps[3, 0, 0], maps[4, 2, 2], maps[5, 13, 13] = math.nan, math.inf, -math.inf
    maps[6, 0, 0], maps[6, 13, 13] = math.inf, -math.inf
    maps[7] = math.nan
    return maps


def test_maps_without_object_give_the_full_grid_and_leave_their_neighbours_alone():
    maps = torch.stack([maps_without_object(), smooth_maps((14, 14), 6, count=8)], 1).flatten(0, 1)
    found = reference_equals(maps, (200, 160))
    assert (found[::2] == torch.tensor([0, 0, 160, 200])).all()
    assert torch.equal(found[1::2], reference_equals(maps[1::2], (200, 160)))


def test_values_of_any_offset_and_scale():
    maps = smooth_maps((14, 14), 7)
    for scale, offset in [(1e-3, -7), (1e30, 0), (-1e38, 0), (1e-30, 0), (1e-4, 50)]:
        reference_equals(maps * scale + offset, (224, 224))


def test_specks_lose_to_the_object_however_high_they_are():
    maps = torch.zeros(3, 56, 56)
    maps[0:2, 20:40, 10:30] = 0.7
    maps[:, 5, 50], maps[1:, 50, 50], maps[1:, 50, 5] = 1.0, 0.9, 0.8
    found = reference_equals(maps, (224, 224))
    assert found[0].tolist() == found[1].tolist()
    assert (found[0] - 4 * torch.tensor([10, 20, 30, 40])).abs().max() < 4
    assert found[2].tolist() == [0, 0, 224, 224]


def test_a_component_of_exactly_the_least_area_is_kept():
    maps = torch.zeros(1, 20, 20)
    maps[0, 4:6, 9:11] = 1.0
    assert reference_equals(maps, (20, 20)).tolist() == [[9, 4, 11, 6]]
    maps[0, 4, 9] = 0.0
    # Closing fills no corner: three of 400 pixels are a speck.
    assert reference_equals(maps, (20, 20)).tolist() == [[0, 0, 20, 20]]


def test_the_first_of_equal_peaks_wins():
    maps = torch.zeros(1, 14, 14)
    maps[0, 1:4, 8:12] = maps[0, 9:13, 1:4] = 1.0
    assert reference_equals(maps, (224, 224))[0, 3] < 5 * 16


def test_the_box_spans_the_whole_of_a_long_path():
    maps = torch.stack([snake(57, gap=3), spiral(57, gap=3)]).float()
    # The peak lies at one end only.
    maps[:, 0, 0] += 1
    assert reference_equals(maps, (224, 224)).tolist() == [[0, 0, 224, 224]] * 2


@pytest.mark.parametrize("side", [2, 5, 64, 113])
@pytest.mark.parametrize("shape", [snake, spiral])
def test_a_long_path_is_one_component(shape, side):
    mask = shape(side)
    masks = torch.stack([mask, mask.T, mask.flip(0), ~mask])
    labels = label_components(masks).numpy()
    assert len(np.unique(labels[0][mask])) == 1
    for found, expected in zip(labels, masks.numpy(), strict=True):
        assert same_partition(found, label(expected))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.4, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("shape", [(90, 91), (1, 50), (33, 2)])
def test_components_of_noise_are_those_of_scikit_image(shape, share):
    masks = torch.rand(3, *shape, generator=generator(8)) < share
    labels = label_components(masks)
    assert labels.dtype == torch.int64
    assert ((labels == -1) == ~masks).all()
    for found, mask in zip(labels.numpy(), masks.numpy(), strict=True):
        assert same_partition(found, label(mask))


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (14, 14)])
def test_closing_is_that_of_scikit_image_on_a_plane_of_minima(shape):
    maps = noisy_maps(shape, 9) - 0.5
    for found, heat in zip(close_maps(maps).numpy(), maps.numpy(), strict=True):
        padded = np.pad(heat, 2, constant_values=-np.inf)
        np.testing.assert_array_equal(found, closing(padded, np.ones((3, 3)))[2:-2, 2:-2])


@pytest.mark.parametrize("side", [1, 3, 7, 31])
def test_closing_of_masks_is_that_of_scikit_image_on_a_clear_plane(side):
    masks = torch.rand(3, 40, 53, generator=generator(11)) < 0.2
    batched = close_maps(masks.float(), side) > 0.5
    for mask, found in zip(masks.numpy(), batched.numpy(), strict=True):
        padded = closing(np.pad(mask, side), np.ones((side, side)))
        expected = padded[side : side + 40, side : side + 53]
        np.testing.assert_array_equal(close_mask(mask, side), expected)
        np.testing.assert_array_equal(found, expected)


def maze(side, seed):
    """One component of long winding paths: a spanning tree drawn at random over every fourth cell."""
    rng, mask = np.random.default_rng(seed), torch.zeros(side, side, dtype=torch.bool)
    path, seen = [(0, 0)], {(0, 0)}
    while path:
        y, x = path[-1]
        around = [(y + dy, x + dx) for dy, dx in ((0, 4), (4, 0), (0, -4), (-4, 0))]
        new = [place for place in around if min(place) >= 0 and max(place) < side and place not in seen]
        if not new:
            path.pop()
            continue
        to = new[rng.integers(len(new))]
        seen.add(to)
        path.append(to)
        mask[min(y, to[0]) : max(y, to[0]) + 1, min(x, to[1]) : max(x, to[1]) + 1] = True
    return mask


def rounds_of_labelling(masks):
    """After how many rounds no label changes any more."""
    links = _block_links(masks)
    rows, columns = (-(-side // 2) for side in masks.shape[1:])
    labels = torch.arange(rows * columns).expand(len(masks), -1).view(len(masks), rows, columns)
    for count in range(50):
        previous, labels = labels, _hook(labels, links)
        if previous.equal(labels):
            return count
    raise AssertionError("labels do not settle")


def test_the_rounds_on_a_card_are_enough_with_room_to_spare():
    noise = [torch.rand(2, 224, 224, generator=generator(9)) < fraction for fraction in (0.3, 0.4, 0.5)]
    paths = torch.stack([maze(224, 0), maze(224, 1), snake(224), snake(224, 3), spiral(224), spiral(224, 3)])
    needed = [rounds_of_labelling(masks) for masks in [*noise, paths, paths.flip(2), paths.mT]]
    assert 4 <= max(needed) <= CUDA_ROUNDS - 3


@needs_cuda
@pytest.mark.parametrize("size", [(224, 224), (384, 384), (300, 448), (61, 37)])
@pytest.mark.parametrize("shape", [(14, 14), (24, 24), (7, 13)])
def test_boxes_on_cuda_equal_the_reference_on_the_cpu(shape, size):
    kinds = (smooth_maps, noisy_maps, tied_maps, plateau_maps)
    maps = torch.cat([kind(shape, seed) for seed, kind in enumerate(kinds)])
    found = locate_objects(maps.cuda(), size)
    assert found.is_cuda
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu(), locate_objects(maps, size), rtol=0, atol=0)


@needs_cuda
def test_cuda_takes_maps_without_object_long_paths_and_every_threshold():
    maps = torch.cat([maps_without_object(), smooth_maps((14, 14), 10)])
    for threshold in ("mean", "otsu"):
        found = locate_objects(maps.cuda(), (384, 384), threshold)
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), locate_objects(maps, (384, 384), threshold), rtol=0, atol=0)
    paths = torch.stack([snake(57, gap=3), spiral(57, gap=3)]).float()
    torch.testing.assert_close(
        locate_objects(paths.cuda(), (448, 448)).cpu(), locate_objects(paths, (448, 448))
    )
