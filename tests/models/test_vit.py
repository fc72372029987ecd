"""CRAM between the blocks of a ViT: the cut is the whole network, and X_s is what the next block sees."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.models.vision_transformer import ResPostBlock
from torch import nn

from fgvc_cli.config import CraSmraConfig, Loss, TrainConfig
from fgvc_cli.engine.checkpoint import load_checkpoint, save_checkpoint
from fgvc_cli.engine.learner import total_loss
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.models import vit
from fgvc_cli.models.backbones import build_backbone, plan_stages
from fgvc_cli.models.cra_smra import CraSmra
from fgvc_cli.models.registry import create_model

SMALL = {"img_size": 64, "depth": 4}
NO_TOKEN = {"class_token": False, "global_pool": "avg", **SMALL}
KINDS = {
    "class token": ("test_vit", {}, 1),
    "register, no class token, LayerScale": ("test_vit2", {}, 1),
    "attention pooling": ("test_vit3", {}, 1),
    "distilled": ("deit_tiny_distilled_patch16_224", SMALL, 2),
    "no prefix token": ("vit_tiny_patch16_224", NO_TOKEN, 0),
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "depth": 4}, 5),
    "convolutional stem": ("vit_tiny_r_s16_p8_224", SMALL, 1),
    "rotary positions": ("eva02_tiny_patch14_224", {"img_size": 56, "depth": 4}, 1),
    "rotary positions per block": ("vit_small_patch16_rope_mixed_224", SMALL, 1),
}


@pytest.fixture(params=KINDS)
def kind(request):
    """A network in evaluation mode, its number of prefix tokens, and images of its size."""
    torch.manual_seed(0)
    name, arguments, prefix_tokens = KINDS[request.param]
    net = build_backbone(name, **arguments).eval()
    return net, prefix_tokens, torch.randn(2, 3, *net.patch_embed.img_size)


def run_stages(net, plan, images):
    state, maps = plan.start(net, images), []
    for stage in range(3):
        x, state = plan.run(net, stage, state)
        maps.append(x)
        state = plan.put_back(state, x)
    return maps, state


def test_stages_together_are_the_whole_network(kind):
    net, prefix_tokens, images = kind
    with torch.inference_mode():
        # timm's own reading of the blocks, before anything of the network is replaced.
        ends = [round(len(net.blocks) * i / 3) for i in (1, 2, 3)]
        expected = net.forward_intermediates(images, indices=[e - 1 for e in ends], intermediates_only=True)
        features = net.forward_features(images)
        plan = plan_stages(net)
        maps, state = run_stages(net, plan, images)
    assert plan.prefix_tokens == prefix_tokens and plan.ends == tuple(ends)
    assert plan.channels == (net.embed_dim,) * 3 and plan.shifts == (0, 0, 0)
    torch.testing.assert_close(state.sequence, features)
    for x, other in zip(maps[:2], expected[:2], strict=True):
        assert x.shape == (2, net.embed_dim, *net.patch_embed.grid_size)
        torch.testing.assert_close(x, other)


def last_slopes(net, images):
    """What the tail keeps, and the slope of some mixture of the pooled features along it."""
    tail = vit.Tail(net, vit.plan_tail(net))
    features = tail(images)
    torch.testing.assert_close(features, net.forward_features(images))
    pooled = net.forward_head(features, pre_logits=True)
    score = (pooled * torch.linspace(-1, 1, pooled.shape[1])).sum()
    return tail.patches, torch.autograd.grad(score, tail.patches)[0]


def test_slope_times_patch_of_the_last_stage_says_something(kind):
    net, _, images = kind
    patches, slopes = last_slopes(net, images)
    assert patches.shape == (2, net.embed_dim, *net.patch_embed.grid_size)
    products = patches * slopes
    # In front of the norm that a class token sees them through, it is 1e-6 of its terms: rounding.
    assert products.sum(dim=1).abs().max() > 1e-3 * products.abs().sum(dim=1).max()
    assert not any(module._forward_hooks for module in net.modules())


def test_of_a_norm_behind_the_attention_the_last_block_reads_what_enters():
    torch.manual_seed(0)
    net = build_backbone("vit_tiny_patch16_224", block_fn=ResPostBlock, **SMALL).eval()
    patches, slopes = last_slopes(net, torch.randn(1, 3, 64, 64))
    with torch.no_grad():
        plan = vit.plan_tail(net)
        entering, _ = plan.run(net, 0, plan.start(net, torch.zeros(1, 3, 64, 64)))
    assert patches.shape == entering.shape and slopes.abs().sum(dim=1).min() > 0


def test_every_parameter_learns(kind):
    net, _, images = kind
    model = CraSmra(net, 3, CraSmraConfig(neck_channels=8, head_hidden=8)).train()
    total_loss(model(images), torch.tensor([0, 2]), Loss())[0].backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without


def test_patches_of_the_next_block_are_the_suppressed_map_and_prefix_tokens_pass(kind):
    net, prefix_tokens, images = kind
    model = CraSmra(net, 3, CraSmraConfig(neck_channels=8, head_hidden=8)).eval()
    left, entered = [], []
    end = model.plan.ends[0]
    net.blocks[end - 1].register_forward_hook(lambda _, args, output: left.append(output))
    net.blocks[end].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    with torch.inference_mode():
        model(images)
        x, _ = model.plan.run(net, 0, model.plan.start(net, images))
        suppressed = model.cram[0](x).onward
    assert torch.equal(entered[0][:, :prefix_tokens], left[0][:, :prefix_tokens])
    patches = entered[0][:, prefix_tokens:]
    torch.testing.assert_close(patches, suppressed.flatten(2).transpose(1, 2))
    assert not torch.allclose(patches, left[0][:, prefix_tokens:])


def test_without_attention_the_last_stage_is_the_networks_features(kind):
    net, prefix_tokens, images = kind
    model = CraSmra(net, 3, CraSmraConfig(channel_attention="none", head_hidden=8)).eval()
    seen = []
    model.cram[2].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.inference_mode():
        model(images)
        features = net.forward_features(images)
    assert torch.equal(seen[0].flatten(2).transpose(1, 2), features[:, prefix_tokens:])


def test_map_has_the_rows_and_columns_of_an_image_that_is_not_square():
    net = build_backbone("test_vit2").eval()
    plan = plan_stages(net)
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        maps, _ = run_stages(net, plan, images)
        expected = net.forward_intermediates(images, indices=[2], intermediates_only=True)[0]
    assert [x.shape for x in maps] == [(1, 64, 4, 6)] * 3
    torch.testing.assert_close(maps[0], expected)


def test_depths_cut_where_they_say_and_are_kept_in_the_checkpoint(tmp_path):
    name, options = "crasmra-test_vit", {"depths": (1, 5, 6)}
    model = create_model(name, 3, options=options).eval()
    assert model.plan.ends == (1, 5, 6)
    config = TrainConfig(model=name, options=options, preprocess={"input_px": 160, "resize_px": 160})
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, config=config, classes=("ash", "elm", "fir"), dataset="trees", metrics={})
    loaded = load_checkpoint(path).model
    images = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        assert loaded.plan.ends == (1, 5, 6)
        assert torch.equal(loaded(images).probs, model(images).probs)


@pytest.mark.parametrize("depths", [(2, 4, 5), (2, 4, 7), (4, 2, 6), (2, 2, 6), (0, 3, 6)])
def test_depths_that_do_not_fit_name_the_depth(depths):
    expected = "test_vit: expected 3 rising block numbers from 1, the last one 6.*options.depths=2,4,6"
    with pytest.raises(FgvcError, match=expected) as caught:
        create_model("crasmra-test_vit", 3, options={"depths": depths})
    assert caught.value.exit_code == EXIT_USAGE


def test_depths_of_a_cnn_are_refused():
    with pytest.raises(FgvcError, match="resnet18 has stages of its own.*Leave options.depths out"):
        create_model("crasmra-resnet18", 3, options={"depths": (1, 2, 3)})


def test_too_few_blocks_and_patch_dropout_are_refused():
    with pytest.raises(FgvcError, match="2 blocks do not make 3 stages.*--model timm-test_vit"):
        plan_stages(build_backbone("test_vit", depth=2))
    with pytest.raises(FgvcError, match="patch dropout leaves holes"):
        plan_stages(build_backbone("test_vit", patch_drop_rate=0.5))


class SkipsABlock(nn.Module):
    """Its forward leaves out what its blocks list; LayerScale makes that nearly invisible."""

    def __new__(cls):
        net = timm.create_model("test_vit2", num_classes=0)
        last = len(net.blocks) - 1
        net.forward_features = lambda x: net.norm(net.blocks[:last](net._pos_embed(net.patch_embed(x))))
        return net


@pytest.mark.parametrize("training", [True, False])
def test_network_whose_forward_does_something_else_is_refused(training):
    net = SkipsABlock().train(training)
    with pytest.raises(FgvcError, match="its blocks, run one after another, do not give its features"):
        plan_stages(net)
    assert net.training == training


def test_rotary_positions_left_out_are_noticed(monkeypatch):
    start = vit.VitStagePlan.start
    monkeypatch.setattr(vit.VitStagePlan, "start", lambda *args: start(*args)._replace(rope=None))
    with pytest.raises(FgvcError, match="do not give its features"):
        plan_stages(build_backbone("vit_small_patch16_dinov3", img_size=64, depth=3))


def test_proof_leaves_weights_and_mode_alone():
    net = build_backbone("test_vit2").train()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    plan_stages(net)
    assert net.training and all(m.training for m in net.blocks)
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())


def test_a_copy_runs_its_own_backbone():
    model = create_model("crasmra-test_vit", 3).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.backbone.norm.weight.zero_()
        images = torch.randn(1, 3, 160, 160)
        assert not torch.allclose(model(images).probs, other(images).probs)


def test_channels_last_cnn_gives_maps_with_channels_first():
    net = build_backbone("test_mambaout").eval()
    plan = plan_stages(net)
    assert plan.channels == tuple(entry["num_chs"] for entry in net.feature_info)[-3:]
    images = torch.randn(1, 3, 128, 96)
    with torch.inference_mode():
        maps, state = run_stages(net, plan, images)
        torch.testing.assert_close(state, net.forward_features(images))
    assert [x.shape[1] for x in maps] == [*plan.channels]
    assert maps[-1].shape[-2:] == (4, 3)
