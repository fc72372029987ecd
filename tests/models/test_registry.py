"""One walk over the registry: every model answers the same contract, learns, and survives its checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fgvc_cli.config import Loss, TrainConfig
from fgvc_cli.engine.checkpoint import load_checkpoint, save_checkpoint
from fgvc_cli.engine.learner import total_loss
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.models import backbones, registry
from fgvc_cli.models.catalog import FAMILY_TEXTS, LISTED, NAMED, read_costs
from fgvc_cli.models.registry import FAMILIES, compute_cost, count_gmac, count_parameters, create_model

CNNS = [
    "resnet18",
    "resnet50",
    "resnet101",
    "densenet161",
    "mobilenetv2_100",
    "efficientnet_b0",
    "convnext_tiny",
]
NAMES = [
    *(name for name in registry.NAMED if not name.startswith("vitms")),
    *(f"crasmra-{name}" for name in CNNS if name not in registry.NAMED.values()),
    "crasmra-vit_tiny_patch16_224",
    "crasmra-test_vit2",  # a register and no class token
    "vitms-vit_tiny_patch16_224",
    "timm-resnet18",
    "timm-mobilenetv2_100",
    "timm-vit_tiny_patch16_224",
]
CLASSES = ("ash", "elm", "fir")


def input_px(name: str) -> int:
    return 224 if "vit" in name else 64


@pytest.mark.parametrize("name", NAMES)
def test_contract_gradients_and_checkpoint(name, tmp_path):
    torch.manual_seed(0)
    side = input_px(name)
    model = create_model(name, len(CLASSES), input_px=side)
    images = torch.randn(4, 3, side, side)

    output = model.train()(images)
    loss, _ = total_loss(output, torch.tensor([0, 1, 2, 0]), Loss())
    loss.backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    assert {key.partition(".")[0] for key in model.state_dict()} <= {"backbone", "cram", "smram", "heads"}

    model.eval()
    path = tmp_path / "model.safetensors"
    config = TrainConfig(model=name, preprocess={"input_px": side, "resize_px": side})
    save_checkpoint(path, model, config=config, classes=CLASSES, dataset="trees", metrics={})
    checkpoint = load_checkpoint(path)
    wanted = ("heat", "boxes", "parts", "stages", "embedding")
    with torch.inference_mode():
        before, after = model(images[:2], want=wanted), checkpoint.model(images[:2], want=wanted)
    assert tuple(before.logits) == model.branches
    torch.testing.assert_close(before.probs.sum(dim=1), torch.ones(2))
    for key in ("probs", "heat", "boxes", "parts", "embedding"):
        if getattr(before, key) is None:
            assert key == "parts" and model.part_count == 0
            continue
        assert torch.equal(getattr(before, key), getattr(after, key)), key
    assert before.heat.min() >= 0 and before.heat.max() <= 1
    assert (before.boxes[:, 2:] > before.boxes[:, :2]).all() and before.boxes.max() <= side
    assert not any(isinstance(m, registry.CraSmra) and m.smram for m in checkpoint.model.modules())


def test_nothing_is_answered_that_was_not_asked_for():
    output = create_model("crasmra-resnet18", 3).eval()(torch.randn(2, 3, 64, 64))
    fields = ("heat", "boxes", "parts", "stages", "embedding")
    assert [getattr(output, f) for f in fields] == [None] * 5
    assert not output.penalties and not output.stats


def test_smram_penalty_is_there_only_in_training():
    model = create_model("crasmra-resnet18", 3)
    assert set(model.train()(torch.randn(2, 3, 64, 64)).penalties) == {"div"}
    assert not model.eval()(torch.randn(2, 3, 64, 64), want=("stats",)).penalties
    plain = create_model("crasmra-resnet18", 3, options={"smram": False})
    assert not plain.train()(torch.randn(2, 3, 64, 64)).penalties


def test_suppressed_map_is_the_input_of_the_next_stage():
    model = create_model("crasmra-resnet18", 3).eval()
    seen = []
    model.backbone.layer3.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        model(x)
        stage3 = backbones.run_stage(model.backbone, model.plan.stages[0], x)
        expected = model.cram[0](stage3).onward
    torch.testing.assert_close(seen[0], expected)
    assert not torch.allclose(seen[0], stage3)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet50", (512, 1024, 2048)),
        ("densenet161", (768, 2112, 2208)),
        ("mobilenetv2_100", (32, 96, 1280)),
    ],
)
def test_stages_of_the_paper(name, channels):
    net = backbones.build_backbone(name)
    assert backbones.plan_stages(net).channels == channels


def test_stages_have_the_sizes_of_the_paper_at_448():
    model = create_model("crasmra-r50", 3).eval()
    with torch.inference_mode():
        output = model(torch.randn(1, 3, 448, 448), want=("stages",))
    assert [m.shape[-1] for m in output.stages.values()] == [56, 28, 14]
    assert list(output.stages) == ["stage3", "stage4", "stage5"]


def test_stages_together_are_the_whole_network():
    net = backbones.build_backbone("efficientnet_b0").eval()
    plan = backbones.plan_stages(net)
    x = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        y = x
        for stage in plan.stages:
            y = backbones.run_stage(net, stage, y)
        torch.testing.assert_close(y, net.forward_features(x))


@pytest.mark.parametrize("name", ["test_vit_relpos", "hrnet_w18_small"])
def test_backbone_that_cannot_be_staged_is_refused(name):
    with pytest.raises(FgvcError, match=f"{name} cannot be run stage by stage.*--model timm-{name}"):
        create_model(f"crasmra-{name}", 3)


class AddsBetweenStages(nn.Module):
    """Its modules run one after another, but its forward does more."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.feature_info = [{"module": name} for name in "abc"]

    def forward_features(self, x):
        return self.c(self.b(self.a(x)) * 2)


def test_network_whose_forward_does_more_than_its_modules_is_refused():
    with pytest.raises(FgvcError, match="do not give its features"):
        backbones.plan_stages(AddsBetweenStages())


@pytest.mark.parametrize(
    ("option", "value"),
    [("channel_attention", "cbam"), ("channel_attention", "none"), ("smram", False), ("neck", "pmg")],
)
def test_ablations_change_the_model(option, value):
    torch.manual_seed(0)
    model = create_model("crasmra-resnet18", 3, options={option: value})
    assert getattr(model.config, option) == value
    kinds = {type(m).__name__ for m in model.modules()}
    assert ("Cram" in kinds) == (option != "channel_attention")
    assert ("Smram" in kinds) == (option != "smram")
    output = model.train()(torch.randn(2, 3, 64, 64))
    assert set(output.logits) == {"stage3", "stage4", "stage5", "concat"}
    total_loss(output, torch.tensor([0, 1]), Loss())[0].backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("pool", ["avg", "max", "top5"])
def test_head_pooling(pool):
    from fgvc_cli.models.cra_smra import pool_features

    x = torch.tensor([[[[7.0, 6.0, 5.0], [4.0, 3.0, 2.0]]]])
    assert pool_features(x, pool).item() == {"avg": 4.5, "max": 7.0, "top5": 5.0}[pool]


def test_fused_output_is_the_mean_of_four_softmax():
    model = create_model("crasmra-resnet18", 3).eval()
    output = model(torch.randn(2, 3, 64, 64))
    mean = sum(logits.softmax(dim=1) for logits in output.logits.values()) / 4
    torch.testing.assert_close(output.probs, mean)


def test_fuse_logits_and_weighted():
    logits = {"stage3": [2.0, 0.0], "stage4": [0.0, 1.0], "stage5": [0.0, 1.0], "concat": [0.0, 1.0]}
    tensors = {k: torch.tensor([v]) for k, v in logits.items()}
    summed = create_model("crasmra-resnet18", 2, options={"fuse": "logits"})
    torch.testing.assert_close(summed.fuse(tensors), torch.tensor([[2.0, 3.0]]).softmax(dim=1))
    weighted = create_model("crasmra-resnet18", 2, options={"fuse": "weighted"})
    weighted.heads.fuse_weights.copy_(torch.tensor([1.0, 0, 0, 0]))
    torch.testing.assert_close(weighted.fuse(tensors), tensors["stage3"].softmax(dim=1))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("crasmra-r5", "crasmra-r50"),
        ("crasmra-resnet5", "crasmra-resnet50"),
        ("timm-mobilenetv2_10", "timm-mobilenetv2_100"),
        ("crasma-r50", "crasmra-r50"),
    ],
)
def test_unknown_model_shows_the_nearest(name, shown):
    with pytest.raises(FgvcError, match=shown) as caught:
        create_model(name, 3)
    assert caught.value.exit_code == EXIT_USAGE


def test_input_size_of_a_fixed_backbone_is_checked():
    model = create_model("timm-vit_tiny_patch16_224", 3)
    registry.check_input_px(model, 224)
    with pytest.raises(FgvcError, match="takes 224 px only, the input is 448.*--input-px 224"):
        registry.check_input_px(model, 448)
    registry.check_input_px(create_model("timm-resnet18", 3), 448)


def test_input_smaller_than_its_looks_is_refused():
    model = create_model("vitms-vit_tiny_patch16_224", 3)
    registry.check_input_px(model, 224)
    with pytest.raises(FgvcError, match="160 px is smaller than the 224 px of each look.*encoder_px=160"):
        registry.check_input_px(model, 160)


def test_unknown_weights_of_a_known_backbone_show_those_there_are():
    with pytest.raises(FgvcError, match="no weights called 'resnet18.nope'.*resnet18.a1_in1k"):
        create_model("timm-resnet18.nope", 3)


def test_unknown_option_is_refused_with_the_nearest():
    with pytest.raises(FgvcError, match="delta"):
        create_model("crasmra-resnet18", 3, options={"dleta": 0.8})
    with pytest.raises(FgvcError, match="delta.*less than or equal to 1"):
        create_model("crasmra-resnet18", 3, options={"delta": 1.8})


def test_pretrained_offline_names_init_and_no_pretrained(monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr("socket.getaddrinfo", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for proxy in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
    with pytest.raises(FgvcError, match="--init FILE.*--no-pretrained"):
        create_model("timm-resnet18", 3, pretrained=True)


def test_same_padding_is_tensorflows():
    images = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    own, same = (
        create_model("timm-mobilenetv2_100", 3, options={"padding": padding}).eval()
        for padding in ("own", "same")
    )
    same.load_state_dict(own.state_dict())
    assert [type(m).__name__ for m in same.backbone.modules()].count("Conv2dSame") == 5
    with torch.no_grad():
        assert not torch.allclose(own(images).probs, same(images).probs, atol=1e-4)


def test_stochastic_depth_reaches_the_backbone():
    model = create_model("timm-resnet18", 3, options={"drop_path": 0.2})
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("name", "option", "argument"),
    [("timm-resnet18", "padding", "pad_type"), ("crasmra-densenet121", "drop_path", "drop_path_rate")],
)
def test_backbone_that_takes_no_such_option(name, option, argument):
    with pytest.raises(FgvcError, match=f"takes no {argument}") as caught:
        create_model(name, 3, options={option: {"padding": "same", "drop_path": 0.1}[option]})
    assert f"options.{option}" in caught.value.hint


def test_a_bare_timm_name_is_the_plain_backbone():
    assert registry.resolve("resnet18").name == "timm-resnet18"
    assert registry.resolve("mobilenetv2_100").backbone == "mobilenetv2_100"


@pytest.mark.parametrize("name", ["crasmra-test_vit_relpo", "vitms-resnet5", "crasmra-r5", "vitms-b61"])
def test_names_offered_can_be_built(name):
    with pytest.raises(FgvcError, match="No model is called") as caught:
        create_model(name, 2)
    offered = str(caught.value.hint).removeprefix("Nearest: ").rstrip(".").split(", ")
    assert offered and not offered[0].startswith("fgvc models")
    for near in offered:
        create_model(near, 2)


def test_plain_resnet50_costs_what_the_field_says():
    model = create_model("timm-resnet50", 1000)
    assert count_parameters(model) == 25_557_032
    assert count_gmac(model, 224) == pytest.approx(4.1, abs=0.05)


def test_light_neck_and_cram_add_1_4_gmac_to_resnet50_at_448():
    plain = count_gmac(create_model("timm-resnet50", 200), 448)
    ours = count_gmac(create_model("crasmra-r50", 200), 448)
    assert ours - plain == pytest.approx(1.4, abs=0.05)


def test_smram_is_not_counted():
    with_smram = create_model("crasmra-resnet18", 3)
    without = create_model("crasmra-resnet18", 3, options={"smram": False})
    assert count_parameters(with_smram) == count_parameters(without)


@pytest.mark.parametrize("name", ["crasmra-r50", "crasmra-mobilenetv2_100", "vitms-ti16"])
def test_what_is_recorded_is_what_is_counted(name):
    """After a change of an architecture: python benchmarks/model_costs.py --write."""
    recorded = next(cost for cost in read_costs() if cost.name == name)
    counted = compute_cost(name, LISTED[name])
    assert (recorded.backbone, recorded.input_px, recorded.parameters) == (
        counted.backbone,
        counted.input_px,
        counted.parameters,
    )
    assert recorded.gmac == pytest.approx(counted.gmac, abs=0.0006)


def test_every_named_model_is_listed_and_every_family_described():
    assert set(NAMED) <= set(LISTED) == {cost.name for cost in read_costs()}
    assert set(FAMILY_TEXTS) == set(FAMILIES)
