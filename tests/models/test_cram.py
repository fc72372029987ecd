"""Eq. 1-6 of CRA-SMRA, with values known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fgvc_cli.config import CraSmraConfig
from fgvc_cli.models.cra_smra import STAGE_MODULES, Cram, conv_layer
from fgvc_cli.models.output import summarize_stats


def make_cram(channels: int = 8, **options) -> Cram:
    torch.manual_seed(0)
    return Cram(channels, 6, CraSmraConfig(reduction=2, **options))


def logits_for(masks: list[float]) -> torch.Tensor:
    """Pre-sigmoid values whose sigmoid is ``masks``."""
    return torch.logit(torch.tensor(masks)).view(1, -1, 1, 1)


def test_mask_is_sigmoid_of_one_shared_mlp_on_average_and_maximum():
    cram, x = make_cram(), torch.randn(2, 8, 5, 4)
    fc1, _, fc2 = cram.mlp

    def mlp(v):
        hidden = torch.relu(v @ fc1.weight.flatten(1).T + fc1.bias)
        return hidden @ fc2.weight.flatten(1).T + fc2.bias

    expected = mlp(x.mean(dim=(2, 3))) + mlp(x.flatten(2).max(dim=-1).values)
    torch.testing.assert_close(cram.mask_logits(x).flatten(1), expected)


def test_mask_sum_before_the_mlp_is_another_reading():
    cram, x = make_cram(mask_sum="before_mlp"), torch.randn(2, 8, 5, 4)
    pooled = x.mean(dim=(2, 3), keepdim=True) + x.amax(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(cram.mask_logits(x), cram.mlp(pooled))


def test_mlp_shapes_follow_the_reduction_and_have_bias():
    cram = Cram(64, 6, CraSmraConfig())
    fc1, _, fc2 = cram.mlp
    assert (fc1.out_channels, fc2.out_channels) == (4, 64)
    assert fc1.bias is not None and fc2.bias is not None


def test_enhanced_is_conv_layer_of_mask_times_x_without_residual():
    cram, x = make_cram().eval(), torch.randn(2, 8, 5, 4)
    expected = cram.conv_layer(cram.mask_logits(x).sigmoid() * x)
    torch.testing.assert_close(cram(x).enhanced, expected)
    assert cram(x).enhanced.shape == (2, 6, 5, 4)


def test_suppressed_channels_of_a_hand_made_mask():
    # exp(0.85 - 0.9) = 0.951 and exp(0.80 - 0.9) = 0.905 reach 0.9; exp(0.79 - 0.9) = 0.896 does not.
    factors = make_cram(5).suppression(logits_for([0.90, 0.85, 0.80, 0.79, 0.10]))
    assert factors.flatten().tolist() == [0.5, 0.5, 0.5, 1.0, 1.0]


def test_suppressed_map_is_the_factor_times_x_and_feeds_the_same_shape():
    cram, x = make_cram(), torch.randn(2, 8, 5, 4)
    features = cram(x)
    factors = cram.suppression(cram.mask_logits(x))
    torch.testing.assert_close(features.onward, factors * x)
    torch.testing.assert_close(features.suppressed, (factors == 0.5).float().mean(dim=(0, 2, 3)))


def test_saturated_is_the_fraction_of_masks_outside_one_hundredth():
    cram = make_cram(4)
    # Whatever the image, MLP(avg) + MLP(max) is twice the bias of a second layer without weights.
    nn.init.zeros_(cram.mlp[-1].weight)
    cram.mlp[-1].bias.data = torch.logit(torch.tensor([0.995, 0.985, 0.015, 0.005])) / 2
    assert float(cram(torch.randn(3, 4, 2, 2)).saturated) == 0.5


def test_variation_counts_the_channels_that_some_images_suppress_and_others_not():
    # The second is a mean of ones as a card may round it.
    rates = torch.tensor([0.0, 1 - 2**-24, 0.25, 1.0, 0.5])
    stats = summarize_stats({"suppressed_stage3": rates, "overlap": torch.tensor(0.3)})
    assert stats == {
        "suppressed_stage3": pytest.approx(0.55),
        "mask_variation_stage3": pytest.approx(0.4),
        "overlap": pytest.approx(0.3),
    }


def test_a_floor_holds_the_hidden_width_of_narrow_stages_only():
    widths = [Cram(c, 6, CraSmraConfig(min_hidden=32)).mlp[0].out_channels for c in (40, 112, 1280)]
    assert widths == [32, 32, 80]
    assert Cram(40, 6, CraSmraConfig()).mlp[0].out_channels == 2, "the paper's C/16"


def test_a_mask_that_starts_at_zero_is_one_half_everywhere():
    cram = make_cram(mask_init="zero")
    assert (cram.mask_logits(torch.randn(2, 8, 5, 4)).sigmoid() == 0.5).all()


def test_the_normalised_mask_does_not_see_the_scale_of_the_features():
    cram, x = make_cram(mask_norm="layer"), torch.randn(2, 8, 5, 4)
    torch.testing.assert_close(cram.mask_logits(100 * x), cram.mask_logits(x), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(make_cram().mask_logits(100 * x), make_cram().mask_logits(x), atol=0.1)


def test_attention_relative_to_its_maximum_is_bounded_by_exp_minus_one():
    # I is in (0, 1), so I*/max I* = exp(I - I_max) is in (exp(-1), 1]: delta <= 0.368 spares no channel.
    masks = torch.rand(1, 200, 1, 1, generator=torch.Generator().manual_seed(1)) * 0.998 + 0.001
    attention = masks.softmax(dim=1)
    ratio = attention / attention.amax()
    torch.testing.assert_close(ratio, (masks - masks.amax()).exp())
    assert ratio.min() > math.exp(-1) and ratio.max() == 1
    with pytest.warns(UserWarning, match="suppresses every channel"):
        cram = make_cram(200, delta=0.368 - 0.001)
    assert (cram.suppression(torch.logit(masks)) == 0.5).all()


def test_default_delta_means_within_0_105_of_the_largest_mask():
    near, far = 0.9 - 0.105, 0.9 - 0.106
    factors = make_cram(3).suppression(logits_for([0.9, near, far])).flatten().tolist()
    assert factors == [0.5, 0.5, 1.0]
    assert -math.log(0.9) == pytest.approx(0.105, abs=5e-4)


def test_delta_one_suppresses_only_the_strongest():
    factors = make_cram(4, delta=1.0).suppression(logits_for([0.2, 0.7, 0.69, 0.1]))
    assert factors.flatten().tolist() == [1.0, 0.5, 1.0, 1.0]


def test_quantile_rule_suppresses_the_top_share():
    masks = torch.linspace(0.40, 0.41, 20)
    factors = make_cram(20, suppress_rule="quantile").suppression(logits_for(masks.tolist())).flatten()
    assert factors.tolist() == [1.0] * 18 + [0.5] * 2


def test_softmax_of_logits_spreads_what_the_sigmoid_flattens():
    logits = torch.tensor([4.0, 3.0, 1.0]).view(1, 3, 1, 1)
    literal = make_cram(3).suppression(logits)
    other = make_cram(3, softmax_of="logits").suppression(logits)
    assert literal.flatten().tolist() == [0.5, 0.5, 1.0]
    assert other.flatten().tolist() == [0.5, 1.0, 1.0]


def test_omega_is_the_factor_itself():
    factors = make_cram(2, omega=0.25).suppression(logits_for([0.9, 0.1])).flatten().tolist()
    assert factors == [0.25, 1.0]


def test_mlp_learns_through_enhanced_only():
    cram, x = make_cram(), torch.randn(2, 8, 5, 4, requires_grad=True)
    cram(x).onward.sum().backward()
    assert all(p.grad is None for p in cram.mlp.parameters())
    assert x.grad is not None and set(x.grad.unique().tolist()) <= {0.5, 1.0}
    cram(x).enhanced.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in cram.mlp.parameters())


def test_autocast_leaves_the_mask_in_float32():
    cram, x = make_cram(), torch.randn(4, 8, 5, 4)
    expected = cram.mask_logits(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cram.mask_logits(x), expected)
        features = cram(x)
    assert features.enhanced.dtype == torch.bfloat16
    torch.testing.assert_close(features.onward, cram.suppression(expected) * x)


@pytest.mark.parametrize(("neck", "kernels"), [("light", [1]), ("pmg", [1, 3])])
def test_necks(neck, kernels):
    layers = conv_layer(10, 16, neck)
    convs = [m for m in layers if isinstance(m, nn.Conv2d)]
    assert [c.kernel_size[0] for c in convs] == kernels
    assert convs[-1].out_channels == 16
    assert layers(torch.randn(2, 10, 7, 5)).shape == (2, 16, 7, 5)
    assert [type(m) for m in layers] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * len(kernels)


def test_light_neck_costs_1_4_gmac_on_resnet50_at_448():
    # What the paper leaves open, Conv_layer: 512, 1024, 2048 channels at 56, 28, 14 to 512.
    macs = sum(c * 512 * side * side for c, side in ((512, 56), (1024, 28), (2048, 14)))
    assert macs / 1e9 == pytest.approx(1.4, abs=0.05)
    assert CraSmraConfig().feature_channels == 512
    assert CraSmraConfig(neck="pmg").feature_channels == 1024


@pytest.mark.parametrize("name", ["cbam", "none"])
def test_replacements_keep_shapes_and_suppress_nothing(name):
    module = STAGE_MODULES[name](8, 6, CraSmraConfig(reduction=2))
    x = torch.randn(2, 8, 5, 4)
    features = module(x)
    assert features.enhanced.shape == (2, 6, 5, 4)
    assert features.onward.shape == x.shape
    assert features.suppressed is None and features.saturated is None
    assert torch.equal(features.onward, x) == (name == "none")
