"""Eq. 7-9 of CRA-SMRA, with values known in closed form."""

from __future__ import annotations

import pytest
import torch

from fgvc_cli.models.cra_smra import Smram, diversity_loss, top_overlap


def test_identical_maps_give_two_thirds():
    one = torch.rand(2, 1, 49).softmax(dim=-1)
    assert diversity_loss(one.expand(2, 3, 49)).item() == pytest.approx(2 / 3, abs=1e-6)


def test_disjoint_one_hot_maps_give_zero():
    maps = torch.zeros(1, 3, 9)
    maps[0, [0, 1, 2], [4, 7, 8]] = 1
    assert diversity_loss(maps).item() == pytest.approx(0, abs=1e-7)


def test_two_of_three_alike_give_one_third():
    maps = torch.zeros(1, 3, 9)
    maps[0, [0, 1, 2], [4, 4, 8]] = 1
    assert diversity_loss(maps).item() == pytest.approx(1 / 3, abs=1e-6)


def test_loss_stays_within_its_bounds_and_averages_over_the_batch():
    maps = torch.randn(16, 3, 49, generator=torch.Generator().manual_seed(0)).mul(5).softmax(dim=-1)
    each = torch.stack([diversity_loss(m.unsqueeze(0)) for m in maps])
    assert (each >= 0).all() and (each <= 2 / 3 + 1e-6).all()
    assert diversity_loss(maps).item() == pytest.approx(each.mean().item(), abs=1e-6)


@pytest.mark.parametrize("source", ["phi", "mean"])
def test_attention_has_a_row_per_stage_at_the_last_stage_size(source):
    features = [torch.rand(2, 8, side, side) for side in (12, 6, 3)]
    attention = Smram(8, source=source).attention(features)
    assert attention.shape == (2, 3, 9)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 3))


def test_mean_source_is_the_softmax_of_the_pooled_channel_mean():
    features = [torch.rand(1, 8, side, side) for side in (4, 2, 2)]
    attention = Smram(8, source="mean").attention(features)
    pooled = features[0].mean(dim=1).view(2, 2, 2, 2).mean(dim=(1, 3)).flatten()
    torch.testing.assert_close(attention[0, 0], pooled.softmax(dim=0))


def test_only_phi_has_parameters_of_its_own():
    assert not list(Smram(8, source="mean").parameters())
    # One 1x1 convolution (weight, bias) and one BN (weight, bias) per stage.
    assert len(list(Smram(8, source="phi").parameters())) == 3 * 4


def test_gradient_pushes_shared_peaks_apart():
    features = torch.zeros(1, 1, 1, 2)
    features[..., 0] = 1.0
    stages = [features.clone().requires_grad_() for _ in range(3)]
    stages[0].data[..., 1] = 0.5
    Smram(1, source="mean")(stages).backward()
    # Stage 0 is the weakest at the shared peak; lowering the loss moves it away from there.
    assert stages[0].grad[..., 0] > 0 > stages[0].grad[..., 1]


def test_overlap_of_equal_maps_is_one_and_of_disjoint_maps_zero():
    ramp = torch.arange(100.0).view(1, 10, 10)
    assert float(top_overlap([ramp, ramp, ramp])) == 1
    other = torch.zeros(1, 10, 10)
    other[0, 0] = torch.arange(1.0, 11.0)
    third = torch.zeros(1, 10, 10)
    third[0, 5] = torch.arange(1.0, 11.0)
    assert float(top_overlap([ramp, other, third])) == 0
    assert float(top_overlap([ramp, ramp, other])) == pytest.approx(1 / 3)


def test_overlap_pools_larger_maps_to_the_last():
    small = torch.zeros(1, 4, 4)
    small[0, 1, 2] = 1
    large = small.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    assert float(top_overlap([large, small], share=1 / 16)) == 1
