"""Where cells lie: formulas for known layers, and a spot that must come out where it is."""

from __future__ import annotations

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from fgvc_cli.models.backbones import align_maps, build_backbone, cell_shift, plan_stages
from fgvc_cli.models.cra_smra import object_heat
from fgvc_cli.models.registry import create_model


@pytest.mark.parametrize(
    ("layers", "stride", "expected"),
    [
        # Symmetric padding centres cell 0 at pixel 0: (s - 1) / 2 pixels too low, in cells.
        ([nn.Conv2d(1, 1, 3, 2, 1)], 2, 0.25),
        ([nn.Conv2d(1, 1, 7, 2, 3), nn.MaxPool2d(3, 2, 1)], 4, 1.5 / 4),
        ([nn.Conv2d(1, 1, 3, 2, 1)] * 5, 32, 15.5 / 32),
        # Patches are areas.
        ([nn.Conv2d(1, 1, 4, 4)], 4, 0.0),
        ([nn.Conv2d(1, 1, 16, 16)], 16, 0.0),
        ([nn.AvgPool2d(2, 2)], 2, 0.0),
        # TensorFlow's SAME padding of an even side: one pixel on the right only.
        ([Conv2dSame(1, 1, 3, 2)], 2, -0.25),
        # Unstrided layers move nothing; what follows the map is not its concern.
        ([nn.Conv2d(1, 1, 5, 1, 2), nn.Conv2d(1, 1, 3, 2, 1), nn.Conv2d(1, 1, 3, 2, 1)], 2, 0.25),
        # A stride these layers do not explain.
        ([nn.Conv2d(1, 1, 3, 2, 1)], 8, 0.0),
    ],
)
def test_shift_of_known_layers(layers, stride, expected):
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.weight)
    assert cell_shift(layers, stride) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", [3.5 / 8, 7.5 / 16, 15.5 / 32]),
        ("mobilenetv2_100", [3.5 / 8, 7.5 / 16, 15.5 / 32]),
        ("convnext_tiny", [0, 0, 0]),
        # Its shortcuts pool areas; the main path is what counts.
        ("resnet18d", [3.5 / 8, 7.5 / 16, 15.5 / 32]),
        # Its transitions pool areas: only the stem's 1.5 pixels are left.
        ("densenet161", [1.5 / 8, 1.5 / 16, 1.5 / 32]),
    ],
)
def test_shifts_of_backbones(name, expected):
    # Random kernels lean by chance, a little.
    assert plan_stages(build_backbone(name)).shifts == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("layer", [nn.Conv2d(1, 1, 3, 2, 1, bias=False), Conv2dSame(1, 1, 3, 2, bias=False)])
def test_what_kernels_have_learnt_counts(layer):
    """A kernel that reads one pixel only: the shift says where that pixel lies, whatever the padding."""
    nn.init.zeros_(layer.weight)
    layer.weight.data[0, 0, 0, 0] = 1  # the upper left one
    image = torch.zeros(1, 1, 16, 16)
    cell = layer(image + 1)[0, 0].nonzero()[-1]
    image.requires_grad_(True)
    layer(image)[0, 0, cell[0], cell[1]].backward()
    (place,) = image.grad[0, 0].nonzero()
    off = (2 * cell + 1 - (place + 0.5)) / 2  # cells too far to the lower right
    assert off.tolist() == pytest.approx([cell_shift([layer], 2)] * 2)


def test_weights_that_are_loaded_move_the_maps():
    model = create_model("crasmra-mobilenetv2_100", 3)
    before = model.plan.shifts
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    tensors["backbone.conv_stem.weight"][..., 1:, :] = 0
    tensors["backbone.conv_stem.weight"][..., 1:] = 0
    model.load_state_dict(tensors)
    # The stem reads one pixel further to the upper left: an eighth of a cell in stage 3.
    assert model.plan.shifts[0] - before[0] == pytest.approx(1 / 8, abs=0.02)
    plain = create_model("timm-mobilenetv2_100", 3)
    at_first = plain._shifts[32]
    plain.load_state_dict({k: v for k, v in tensors.items() if k in plain.state_dict()}, strict=False)
    assert plain._shifts[32] - at_first == pytest.approx(1 / 32, abs=0.02)


def test_aligning_moves_up_and_left():
    maps = torch.zeros(1, 4, 4)
    maps[0, 2, 3] = 1
    moved = align_maps(maps, 0.5)
    assert moved[0, 1:3, 2:4].tolist() == [[0.25, 0.5], [0.25, 0.5]]
    assert torch.equal(align_maps(maps, 0), maps)


def centre_of_change(layers: nn.Sequential, shift: float, stride: int, spot: int, side: int) -> float:
    """Centre in pixels, along x, of what a bright spot does to the map."""
    image = torch.zeros(1, 1, side, side)
    image[..., spot - 4 : spot + 4] = 1
    with torch.no_grad():
        change = align_maps((layers(image) - layers(torch.zeros_like(image)))[:, 0].abs(), shift)[0].sum(
            dim=0
        )
    centres = (torch.arange(len(change)) + 0.5) * stride
    return float((change * centres).sum() / change.sum())


def test_a_spot_comes_out_where_it_is():
    layers = nn.Sequential(*(nn.Conv2d(1, 1, 3, 2, 1, bias=False) for _ in range(3)))
    for layer in layers:
        nn.init.constant_(layer.weight, 1 / 9)
    shift = cell_shift(layers, 8)
    assert centre_of_change(layers, shift, 8, 128, 256) == pytest.approx(128, abs=0.5)
    assert centre_of_change(layers, 0.0, 8, 128, 256) == pytest.approx(131.5, abs=0.5)


def test_object_heat_is_where_every_stage_rises_above_its_background():
    fine = torch.full((1, 4, 4), 0.2)
    fine[0, 0, 0], fine[0, 2, 3], fine[0, 3, 3] = 1.0, 0.6, 1.0
    coarse = torch.full((1, 4, 4), 0.3)
    coarse[0, 2:, 2:] = 0.8
    heat = object_heat([fine, coarse])
    assert heat.shape == (1, 4, 4)
    expected = torch.zeros(4, 4)
    expected[2, 3], expected[3, 3] = 0.5, 1.0
    torch.testing.assert_close(heat[0], expected)


def test_the_floor_of_the_object_heat_lets_one_stage_speak():
    fine = torch.zeros(1, 4, 4)
    fine[0, 0, 0], fine[0, 3, 3] = 1.0, 0.5
    coarse = torch.zeros(1, 4, 4)
    coarse[0, 3, 3] = 1.0
    assert object_heat([fine, coarse])[0].nonzero().tolist() == [[3, 3]]
    floored = object_heat([fine, coarse], floor=0.1)[0]
    # (1 + 0.1) * 0.1 and (0.5 + 0.1) * (1 + 0.1), less 0.1 * 0.1 everywhere
    assert float(floored[0, 0] / floored[3, 3]) == pytest.approx(0.1 / 0.65)


def test_a_smooth_object_heat_averages_the_finer_maps():
    fine, coarse = torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)
    fine[0, 4, 4], coarse[0, 2:7, 2:7] = 1.0, 1.0
    assert int((object_heat([fine, coarse])[0] > 0).sum()) == 1
    heat = object_heat([fine, coarse], smooth=True)[0]
    assert (heat > 0).nonzero().tolist() == [[y, x] for y in (3, 4, 5) for x in (3, 4, 5)]


def test_model_maps_are_aligned():
    model = create_model("crasmra-resnet18", 3).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        raw = [s.enhanced.mean(dim=1) for s in model._stages(x)[1]]
        maps = list(model(x, want=("stages",)).stages.values())
    assert len(maps) == 3 and min(model.plan.shifts) > 0
    for before, after, shift in zip(raw, maps, model.plan.shifts, strict=True):
        moved = align_maps(before, shift)
        low, high = moved.min(), moved.max()
        torch.testing.assert_close(after, (moved - low) / (high - low).clamp_min(1e-12))
