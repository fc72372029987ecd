"""The multi-stage ViT: passes, branches, boxes, crops, erasing, the cascade."""

from __future__ import annotations

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer

from fgvc_cli.attention.crops import cut_boxes
from fgvc_cli.attention.objects import locate_objects
from fgvc_cli.config import Loss, MultiStageVitConfig, build
from fgvc_cli.engine.learner import total_loss
from fgvc_cli.errors import FgvcError
from fgvc_cli.models.multistage_vit import MultiStageVit
from fgvc_cli.models.registry import create_model
from fgvc_cli.models.vit import RecordAttention, encode, plan_encoder
from fgvc_cli.models.weights import read_tensors

ALL = ("heat", "boxes", "parts", "stages", "object_heat", "erased", "embedding", "stats")


def tiny(seed=0, depth=3, width=32, px=64, **options) -> MultiStageVit:
    """A ViT of 8x8 patches that takes 64 px; weights large enough for maps with peaks."""
    torch.manual_seed(seed)
    net = VisionTransformer(
        img_size=px, patch_size=8, embed_dim=width, depth=depth, num_heads=4, num_classes=0
    )
    for parameter in net.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.25)
    return MultiStageVit(net, 5, build(MultiStageVitConfig, options)).eval()


def photos(count=4, px=96, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.interpolate(
        torch.randn(count, 3, 6, 6, generator=generator), px, mode="bicubic"
    )


class CountPasses:
    """How many images go through the encoder, call by call."""

    def __init__(self, model):
        self.calls: list[int] = []
        forward = model.backbone.forward_features

        def counted(x):
            self.calls.append(len(x))
            return forward(x)

        model.backbone.forward_features = counted

    @property
    def images(self) -> int:
        return sum(self.calls)


@pytest.mark.parametrize(("stages", "passes"), [("main", 1), ("main+object", 2), ("all", 4)])
def test_encoder_passes_of_each_setting(stages, passes):
    model = tiny(stages=stages)
    count = CountPasses(model)
    output = model(photos(), want=ALL)
    assert count.images == 4 * passes
    assert output.stats["passes"] == passes
    assert tuple(output.logits) == model.branches == ("main", "object", "parts")[: len(output.logits)]


def test_training_with_erasing_adds_one_pass_of_the_erased_only():
    model = tiny(erase_prob=1.0).train()
    count = CountPasses(model)
    assert model(photos()).stats["passes"] == 5
    assert count.calls == [4, 4, 4, 8]
    plain = tiny(erase_prob=0.0).train()
    plain_count = CountPasses(plain)
    plain(photos())
    assert plain_count.calls == [4, 4, 8]


@torch.no_grad()
def test_branches_are_encoder_and_classifier_over_the_crops():
    """Each branch again by hand: reduce, map, box, crop, parts, all from the higher resolution."""
    model, images = tiny(), photos()
    output = model(images, want=ALL)
    reduced = torch.nn.functional.interpolate(images, 64, mode="bilinear", antialias=True)
    embedding, heat = encode(model.backbone, model.plan, reduced, residual=0.5, first=2, values=True)
    torch.testing.assert_close(output.logits["main"], model.heads(embedding))
    torch.testing.assert_close(output.heat, heat)
    torch.testing.assert_close(output.boxes, locate_objects(heat, (96, 96)))
    crops = cut_boxes(images, output.boxes[:, None], 64)
    embedding, own = encode(model.backbone, model.plan, crops, residual=0.5, first=2, values=True)
    torch.testing.assert_close(output.logits["object"], model.heads(embedding))
    torch.testing.assert_close(output.object_heat, own)
    crops = cut_boxes(images, output.parts, 64)
    logits = model.heads(encode(model.backbone, model.plan, crops)[0]).view(4, 2, 5)
    torch.testing.assert_close(output.part_logits, logits)
    mean = logits.softmax(dim=-1).mean(dim=1)
    torch.testing.assert_close(output.logits["parts"].softmax(dim=-1), mean)
    fused = output.logits["main"].softmax(-1) + output.logits["object"].softmax(-1) + mean
    torch.testing.assert_close(output.probs, fused / 3)


def test_joint_loss_is_equation_1():
    model = tiny(erase_prob=0.0).train()
    output, labels = model(photos()), torch.tensor([0, 1, 2, 3])
    loss, terms = total_loss(output, labels, Loss())
    cross_entropy = torch.nn.functional.cross_entropy
    parts = sum(cross_entropy(output.part_logits[:, i], labels) for i in range(2))
    expected = cross_entropy(output.logits["main"], labels) + cross_entropy(output.logits["object"], labels)
    torch.testing.assert_close(loss, expected + parts)
    assert set(terms) == {"main", "object", "parts"}


def test_parts_lie_inside_the_object_and_boxes_inside_the_input():
    output = tiny()(photos(8), want=ALL)
    assert output.parts.shape == (8, 2, 4)
    assert (output.boxes >= 0).all() and (output.boxes <= 96).all()
    assert (output.parts[..., :2] >= output.boxes[:, None, :2] - 1e-3).all()
    assert (output.parts[..., 2:] <= output.boxes[:, None, 2:] + 1e-3).all()


def test_object_map_can_score_the_parts():
    from fgvc_cli.attention.objects import cut_map, locate_parts

    model = tiny(part_map="object")
    output = model(photos(), want=ALL)
    whole = torch.tensor([[0.0, 0, 64, 64]]).expand(4, 4)
    maps = cut_map(output.object_heat, whole, (64, 64), 64)
    torch.testing.assert_close(output.parts, locate_parts(maps, output.boxes))
    assert not torch.equal(output.parts, tiny()(photos(), want=ALL).parts)


def test_number_and_size_of_parts():
    output = tiny(parts=3, part_window=0.25)(photos(), want=("parts", "boxes"))
    sides = (output.boxes[:, 2:] - output.boxes[:, :2])[:, None]
    torch.testing.assert_close(
        output.parts[..., 2:] - output.parts[..., :2], (0.25 * sides).expand(4, 3, 2), atol=1e-3, rtol=0
    )


# Erasing


def test_erased_pixels_are_those_above_the_threshold():
    output = tiny(erase_threshold=0.4)(photos(), want=("erased", "heat"))
    resized = torch.nn.functional.interpolate(output.heat[:, None], 96, mode="bilinear")[:, 0]
    assert torch.equal(output.erased, resized > 0.4)
    assert output.erased.any()


def test_erasing_hides_the_peak_from_the_main_branch_and_keeps_the_boxes():
    torch.manual_seed(3)
    clean, erased = tiny(erase_prob=0.0).train(), tiny(erase_prob=1.0, erase_threshold=0.3).train()
    images = photos()
    with torch.no_grad():
        first = clean(images, want=("boxes", "heat"))
        second = erased(images, want=("boxes", "heat"))
    assert not torch.allclose(first.logits["main"], second.logits["main"])
    torch.testing.assert_close(first.heat, second.heat)
    assert torch.equal(first.boxes, second.boxes)
    torch.testing.assert_close(first.logits["object"], second.logits["object"])


def test_a_model_that_erases_nothing_shows_nothing_erased():
    assert tiny(erase_prob=0.0)(photos(), want=("erased",)).erased is None


def test_erasing_is_for_training_only():
    model = tiny(erase_prob=1.0)
    assert torch.equal(model(photos()).probs, tiny(erase_prob=0.0)(photos()).probs)


# The cascade


@torch.no_grad()
def test_cascade_stops_where_it_is_sure():
    images = photos(16)
    whole = tiny()(images, want=("stats",))
    main = whole.logits["main"].softmax(dim=-1)
    two = (main + whole.logits["object"].softmax(dim=-1)) / 2
    # Between what the image that gains most by its second look has before and after it.
    sure = torch.stack([main.amax(dim=-1), two.amax(dim=-1)])
    limit = float(sure[:, (sure[1] - sure[0]).argmax()].mean())
    model = tiny(cascade=limit)
    count = CountPasses(model)
    output = model(images, want=("stats",))
    after_main = main.amax(dim=-1) < limit
    after_object = after_main & (two.amax(dim=-1) < limit)
    assert 0 < after_object.sum() < after_main.sum() < 16
    assert count.images == 16 + after_main.sum() + 2 * after_object.sum()
    assert output.stats["passes"] == pytest.approx(count.images / 16)
    torch.testing.assert_close(output.probs[~after_main], main[~after_main])
    torch.testing.assert_close(output.probs[after_main & ~after_object], two[after_main & ~after_object])
    torch.testing.assert_close(output.probs[after_object], whole.probs[after_object])
    assert torch.equal(output.logits["object"].isnan().all(dim=-1), ~after_main)
    assert torch.equal(output.logits["parts"].isnan().all(dim=-1), ~after_object)


def test_cascade_of_one_takes_every_look_however_sure():
    model = tiny(cascade=1.0)
    torch.nn.init.zeros_(model.heads[-1].weight)
    model.heads[-1].bias.data = torch.tensor([99.0, 0, 0, 0, 0])
    output = model(photos(), want=("stats",))
    assert output.probs.max() == 1 and output.stats["passes"] == 4


@pytest.mark.parametrize("cascade", [0.0, 1.0])
def test_cascade_at_its_ends(cascade):
    images = photos()
    output = tiny(cascade=cascade)(images, want=ALL)
    if cascade == 0:
        assert output.stats["passes"] == 1
        assert output.logits["object"].isnan().all() and output.parts is None
        assert output.boxes.isfinite().all()
    else:
        assert output.stats["passes"] == 4
        torch.testing.assert_close(output.probs, tiny()(images).probs)


def test_cascade_does_not_touch_training():
    model = tiny(cascade=0.0, erase_prob=0.0).train()
    assert model(photos()).logits["parts"].isfinite().all()


# Crops that gradients flow through


def test_differentiable_crop_changes_no_prediction():
    images = photos()
    with torch.no_grad():
        assert torch.equal(tiny(differentiable_crop=True)(images).probs, tiny()(images).probs)


def test_differentiable_crop_reaches_the_map_of_erased_images_too():
    model = tiny(erase_prob=1.0, differentiable_crop=True).train()
    seen = []
    original = model.backbone.blocks[0].attn.qkv.forward

    def first_only(x):
        y = original(x)
        if not seen:
            y.retain_grad()
            seen.append(y)
        return y

    model.backbone.blocks[0].attn.qkv.forward = first_only
    model(photos()).logits["object"].square().sum().backward()
    assert (seen[0].grad.flatten(1).abs().sum(dim=1) > 0).all()


def test_differentiable_crop_goes_with_the_first_map_only():
    with pytest.raises(FgvcError, match="differentiable_crop.*part_map=main"):
        tiny(differentiable_crop=True, part_map="object")


def test_differentiable_crop_gives_the_same_answer_and_a_gradient_to_the_map():
    """With q and k of the first look as the only way to the object's logits, they get a gradient or none."""
    images = photos()
    plain, through = tiny(erase_prob=0.0).train(), tiny(erase_prob=0.0, differentiable_crop=True).train()
    outputs = [model(images) for model in (plain, through)]
    for branch in ("main", "object", "parts"):
        torch.testing.assert_close(outputs[0].logits[branch], outputs[1].logits[branch], atol=2e-2, rtol=2e-2)
    for model, reached in ((plain, False), (through, True)):
        record = []
        original = model.backbone.blocks[0].attn.qkv.forward

        def first_only(x, original=original, record=record):
            y = original(x)
            if not record:
                y.retain_grad()
                record.append(y)
            return y

        model.backbone.blocks[0].attn.qkv.forward = first_only
        model(images).logits["object"].square().sum().backward()
        grad = record[0].grad
        assert (grad is not None and grad.abs().sum() > 0) == reached


# Which ViTs


KINDS = {
    "vit_tiny_patch16_224": (1, True),
    "deit_tiny_distilled_patch16_224": (2, True),
    "vit_small_patch14_reg4_dinov2.lvd142m": (5, True),
    "vit_small_patch16_dinov3": (5, False),
    "eva02_tiny_patch14_224": (1, False),
    "vit_relpos_small_patch16_224": (0, False),
    "vit_pe_core_tiny_patch16_384": (1, False),
}
"""Name -> tokens in front of the patches, and whether the embedding is the class token."""


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_plain_vits(name):
    """Registers, two class tokens, rotary and relative positions, pooling by mean and by attention."""
    net = create_model(f"vitms-{name}", 3, options={"encoder_px": 112}).eval().backbone
    plan = plan_encoder(net)
    assert (plan.prefix_tokens, plan.class_token) == KINDS[name]
    assert plan.layers == len(net.blocks)
    with torch.inference_mode():
        embedding, heat = encode(net, plan, photos(2, 112), residual=0.5)
        expected = net.forward_head(net.forward_features(photos(2, 112)), pre_logits=True)
    assert torch.equal(embedding, expected)
    assert heat.shape == (2, *plan.grid) and heat.min() >= 0 and heat.amax(dim=(1, 2)).tolist() == [1, 1]
    assert heat.std() > 0


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_recorded_attention_is_what_the_blocks_attended_with(name):
    """The map from the recorded q and k equals one from timm's own unfused softmax."""
    from timm.layers import set_fused_attn

    model = create_model(f"vitms-{name}", 3).eval()
    images = photos(2, 224)
    with torch.inference_mode(), RecordAttention(model.plan.tokens) as record:
        model.backbone.forward_features(images)
    assert len(record.layers) == 12
    seen = []
    for block in model.backbone.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.inference_mode():
        model.backbone.forward_features(images)
    set_fused_attn(True)
    for layer, attention in zip(record.layers, seen, strict=True):
        own = ((layer.query * layer.scale) @ layer.key.transpose(-1, -2)).softmax(dim=-1)
        torch.testing.assert_close(own, attention, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["swin_tiny_patch4_window7_224", "resnet18", "xcit_nano_12_p16_224", "pit_ti_224"]
)
def test_other_networks_are_refused(name):
    with pytest.raises(FgvcError, match=f"{name} cannot be a multi-stage ViT.*--model timm-{name}"):
        create_model(f"vitms-{name}", 3)


@pytest.mark.parametrize("side", [17, 100, 102, 110])
def test_size_that_the_patches_do_not_divide_is_refused(side):
    fitting = f"{side // 16 * 16} or {side // 16 * 16 + 16}"
    with pytest.raises(FgvcError, match=f"patches of 16 px, which do not divide {side} px.*{fitting}"):
        create_model("vitms-vit_tiny_patch16_224", 3, options={"encoder_px": side})


def test_images_that_are_not_square_are_refused():
    with pytest.raises(FgvcError, match="takes 768 x 1024 px, and every look is a square"):
        create_model("vitms-vit_base_patch16_sapiens2", 3)


def test_map_of_384_px_is_24_by_24():
    model = create_model("vitms-ti16", 3).eval()
    assert model.plan.side == 384 and model.plan.grid == (24, 24) and model.plan.tokens == 577
    with torch.inference_mode():
        output = model(photos(1, 448), want=("heat", "boxes", "parts"))
    assert output.heat.shape == (1, 24, 24) and output.heat.max() == 1
    box, parts = output.boxes[0], output.parts[0]
    torch.testing.assert_close(
        (parts[:, 2:] - parts[:, :2]) / (box[2:] - box[:2]), torch.full((2, 2), 112 / 384)
    )


def test_weights_of_another_size_start_it_with_interpolated_positions(tmp_path):
    from safetensors.torch import save_file

    small = create_model("vitms-vit_tiny_patch16_224", 3)
    path = tmp_path / "small.safetensors"
    save_file({k: v for k, v in small.backbone.state_dict().items()}, path)
    large = create_model("vitms-ti16", 3, init=path)
    given = read_tensors(path)[0]
    own = large.backbone.state_dict()
    assert own["pos_embed"].shape == (1, 577, 192)
    assert torch.equal(own["pos_embed"][:, 0], given["pos_embed"][:, 0])
    assert torch.equal(own["blocks.3.attn.qkv.weight"], given["blocks.3.attn.qkv.weight"])
    expected = resample_abs_pos_embed(given["pos_embed"], [24, 24], num_prefix_tokens=1)
    torch.testing.assert_close(own["pos_embed"], expected)


def test_gradient_checkpointing_runs_blocks_again_and_changes_no_gradient():
    grads, calls = [], []
    for enable in (False, True):
        model = tiny(erase_prob=0.0).train()
        model.set_grad_checkpointing(enable)
        forward = model.backbone.blocks[0].mlp.forward
        calls.append(0)

        def counted(x, forward=forward):
            calls[-1] += 1
            return forward(x)

        model.backbone.blocks[0].mlp.forward = counted
        total_loss(model(photos()), torch.tensor([0, 1, 2, 3]), Loss())[0].backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert calls == [3, 6]
    torch.testing.assert_close(grads[0], grads[1])


def test_object_crops_are_erased_apart_and_parts_cut_from_what_is_left():
    images = photos()
    clean = tiny(erase_prob=0.0).train()
    erased = tiny(erase_prob=0.0, erase_object_prob=1.0, erase_threshold=0.3).train()
    with torch.no_grad():
        first, second = (model(images, want=("boxes", "parts")) for model in (clean, erased))
    assert torch.equal(first.boxes, second.boxes) and torch.equal(first.parts, second.parts)
    assert torch.equal(first.logits["main"], second.logits["main"])
    assert (first.logits["object"] != second.logits["object"]).any(dim=1).all()
    assert (first.logits["parts"] != second.logits["parts"]).any()
    assert float(second.stats["passes"]) == float(first.stats["passes"]) + 1
    erased.eval()
    assert torch.equal(erased(images).probs, tiny(erase_prob=0.0)(images).probs)


def test_new_models_map_the_upper_half_weighed_by_values():
    images = photos(px=64)
    maps = {}
    for first, weight in ((None, "norm"), (2, "norm"), (1, "norm"), (2, "attention")):
        model = tiny(rollout_first=first, rollout_weight=weight)
        maps[first, weight] = model(images, want=("heat",)).heat
    assert torch.equal(maps[None, "norm"], maps[2, "norm"])  # of three layers
    assert not torch.allclose(maps[2, "norm"], maps[1, "norm"])
    assert not torch.allclose(maps[2, "norm"], maps[2, "attention"])
