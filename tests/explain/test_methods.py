"""What is asked, its scores in closed form; every method on every family, and where its answer is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fgvc_cli.cli.explain import explain as explain_command
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.explain.methods import (
    CELLS,
    METHODS,
    POSITIONS,
    Case,
    GradCam,
    HiResCam,
    Occlusion,
    OcclusionBlur,
    Question,
    build_question,
    pick_methods,
    spread_losses,
)
from fgvc_cli.models.backbones import align_maps
from fgvc_cli.models.output import ModelOutput, StageMap, over_maximum
from fgvc_cli.models.registry import create_model

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]])
CLASSES = ("Ant", "bee", "honey bee")


def test_the_score_of_a_softmax_is_its_logit_over_the_others():
    score = Case(torch.tensor([0, 2])).score(LOGITS.softmax(dim=1))
    others = torch.stack([LOGITS[0, [1, 2]].logsumexp(0), LOGITS[1, [0, 1]].logsumexp(0)])
    torch.testing.assert_close(score, torch.tensor([2.0, 1.0]) - others)


def test_the_score_against_one_class_is_the_difference_of_two_logits():
    score = Case(torch.tensor([0, 2]), torch.tensor([1, 0])).score(LOGITS.softmax(dim=1))
    torch.testing.assert_close(score, torch.tensor([3.0, 1.0]))


def test_the_slope_stays_where_the_model_is_sure():
    logits = torch.tensor([[60.0, 0.0, 0.0]], requires_grad=True)
    Case(torch.tensor([0])).score(logits.softmax(dim=1)).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -0.5, -0.5]]), atol=1e-4, rtol=0)


def test_a_model_of_one_class_has_a_finite_score():
    assert Case(torch.tensor([0])).score(torch.ones(1, 1)).item() == 0


def test_the_answer_is_asked_about_unless_a_class_is_named():
    probs = LOGITS.softmax(dim=1)
    assert Question().ask(probs).targets.tolist() == [0, 1]
    assert Question(target=2).ask(probs).targets.tolist() == [2, 2]
    # Against what is itself the answer, it is the next class that is explained.
    case = Question(against=1).ask(probs)
    assert case.targets.tolist() == [0, 2] and case.rivals.tolist() == [1, 1]


def test_a_case_about_several_versions_of_each_image():
    case = Case(torch.tensor([0, 2]), torch.tensor([1, 0])).repeated(2)
    assert case.targets.tolist() == [0, 0, 2, 2] and case.rivals.tolist() == [1, 1, 0, 0]


def test_classes_are_found_whatever_their_case():
    assert build_question(CLASSES, "ant", "Honey Bee") == Question(0, 2)
    assert build_question(CLASSES, None, None) == Question()


@pytest.mark.parametrize(
    ("target", "shown"),
    [("antt", "Nearest: Ant"), ("honey", "honey bee"), ("zzz", "It knows Ant"), ("", "It")],
)
def test_an_unknown_class_shows_the_nearest(target, shown):
    with pytest.raises(FgvcError, match=shown) as caught:
        build_question(CLASSES, target, None)
    assert caught.value.exit_code == EXIT_USAGE and "--target" in str(caught.value)


def test_of_several_labels_the_score_is_the_log_odds_of_the_own_yes():
    probs = torch.tensor([[0.8, 0.5, 0.9]])
    alone = Case(torch.tensor([0]), multi_label=True).score(probs)
    assert alone.item() == pytest.approx(math.log(4), rel=1e-5)
    contrast = Case(torch.tensor([2]), torch.tensor([0]), multi_label=True)
    assert contrast.score(probs).item() == pytest.approx(math.log(9) - math.log(4), rel=1e-5)
    assert contrast.repeated(2).multi_label


FAMILIES = {
    "crasmra-test_resnet": 64,
    "crasmra-test_vit": 160,
    "vitms-test_vit": 160,
    "timm-test_resnet": 64,
    "timm-test_vit": 160,
}


@pytest.fixture(scope="module")
def families() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {name: create_model(name, 4, input_px=side).eval() for name, side in FAMILIES.items()}


def explain(method, model, images, question=None):
    with torch.no_grad():
        output = model(images, want=method.wants)
        return method.maps(model, images, output, (question or Question()).ask(output.probs))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_or_says_why_not(families, name, method):
    images = torch.randn(2, 3, FAMILIES[name], FAMILIES[name], generator=torch.Generator().manual_seed(1))
    if method == "rollout" and "resnet" in name:
        with pytest.raises(FgvcError, match="needs a plain ViT") as caught:
            explain(METHODS[method], families[name], images)
        assert caught.value.exit_code == EXIT_USAGE
        return
    heats = explain(METHODS[method], families[name], images)
    assert heats
    for heat in heats.values():
        assert heat.shape[0] == 2 and heat.ndim == 3 and not heat.requires_grad
        assert heat.isfinite().all() and heat.min() >= 0 and heat.max() <= 1


@pytest.mark.parametrize("method", [GradCam(), HiResCam()], ids=lambda method: method.name)
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_leave_nothing_behind_and_images_do_not_mix(families, name, method):
    model = families[name]
    images = torch.randn(2, 3, FAMILIES[name], FAMILIES[name], generator=torch.Generator().manual_seed(2))
    both = explain(method, model, images, Question(target=1))
    alone = explain(method, model, images[1:], Question(target=1))
    assert all(key.startswith(f"{method.name}-") for key in both)
    for key, heat in both.items():
        torch.testing.assert_close(heat[1:], alone[key], atol=1e-3, rtol=1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_features_change_no_answer_and_carry_all_of_it(families, name):
    model = families[name]
    images = torch.randn(2, 3, FAMILIES[name], FAMILIES[name])
    with torch.no_grad():
        plain = model(images)
    asked = model(images, want=("features",))
    torch.testing.assert_close(asked.probs, plain.probs, atol=1e-5, rtol=1e-4)
    for stage in asked.features.values():
        (slope,) = torch.autograd.grad(asked.probs[:, 0].sum(), stage.values, retain_graph=True)
        assert slope.abs().sum(dim=(1, 2, 3)).min() > 0


def test_rollout_of_each_family_is_that_of_its_own_encoder(families):
    images = torch.randn(1, 3, 160, 160)
    looks = families["vitms-test_vit"](images, want=("rollout", "heat"))
    assert torch.equal(looks.rollout, looks.heat)
    plain, stages = families["timm-test_vit"], families["crasmra-test_vit"]
    for model in (plain, stages):
        rollout = model(images, want=("rollout",)).rollout
        assert rollout.shape == (1, 10, 10) and rollout.max() == 1 and rollout.std() > 0
        assert model(images).rollout is None


class Patch(nn.Module):
    """For class 0 as bright as its top left quarter, for class 1 as its bottom right one."""

    def forward(self, images, want=()):
        features = F.avg_pool2d(images.mean(dim=1, keepdim=True), images.shape[-1] // 4)
        logits = torch.stack([features[..., :2, :2].sum((1, 2, 3)), features[..., 2:, 2:].sum((1, 2, 3))], 1)
        return ModelOutput(
            logits={"main": logits},
            probs=logits.softmax(dim=-1),
            features={"only": StageMap(features, 0.0)} if "features" in want else None,
        )


def test_grad_cam_is_its_equation():
    features = torch.tensor([[[[1.0, 0.0], [2.0, 0.0]], [[0.0, 3.0], [0.0, 1.0]]]])
    slopes = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]], [[-1.0, 0.0], [-1.0, 0.0]]]])
    # Weights 1 and -1/2: 1, -1.5; 2, -0.5, of which what is below 0 speaks against.
    torch.testing.assert_close(GradCam().cam(features, slopes), torch.tensor([[[0.5, 0.0], [1.0, 0.0]]]))
    assert GradCam().cam(features, -torch.ones_like(slopes)).eq(0).all()


def test_hires_cam_is_its_equation_and_not_grad_cams():
    features = torch.tensor([[[[1.0, 0.0], [2.0, 0.0]], [[4.0, 3.0], [0.0, 1.0]]]])
    slopes = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]], [[-1.0, 0.0], [-1.0, 2.0]]]])
    # 1 - 4, 0; 2, 2: what is below 0 speaks against. The means are 1 and 0, and see the left column alone.
    torch.testing.assert_close(HiResCam().cam(features, slopes), torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]))
    torch.testing.assert_close(GradCam().cam(features, slopes), torch.tensor([[[0.5, 0.0], [1.0, 0.0]]]))
    assert HiResCam().cam(features, -torch.ones_like(slopes)).eq(0).all()


class LinearHead(nn.Module):
    """The images themselves are the stage; a logit is a bias and a weight (K, C, h, w) times each place."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, images, want=()):
        features = images.detach().requires_grad_("features" in want)
        logits = torch.einsum("bchw,kchw->bk", features, self.weight) + self.bias
        return ModelOutput(
            logits={"main": logits},
            probs=logits.softmax(dim=-1),
            features={"only": StageMap(features, 0.0)} if "features" in want else None,
        )


@pytest.mark.parametrize("pooled", [True, False])
def test_hires_cam_is_what_each_place_adds_to_the_logits_and_grad_cam_only_behind_a_mean(pooled):
    draw = torch.Generator().manual_seed(0)
    images, bias = torch.rand(2, 5, 4, 6, generator=draw), torch.randn(3, generator=draw)
    weight = torch.randn(3, 5, 4, 6, generator=draw)
    if pooled:  # global average pooling, then a linear layer
        weight = weight[..., :1, :1].expand_as(weight) / 24
    model = LinearHead(weight, bias)
    added = torch.einsum("bchw,chw->bhw", images, weight[0] - weight[2])
    logits = model(images).logits["main"]
    torch.testing.assert_close(added.sum(dim=(1, 2)) + bias[0] - bias[2], logits[:, 0] - logits[:, 2])

    expected = added.relu() / added.amax(dim=(1, 2), keepdim=True)
    (found,) = explain(HiResCam(), model, images, Question(target=0, against=2)).values()
    (means,) = explain(GradCam(), model, images, Question(target=0, against=2)).values()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    if pooled:
        torch.testing.assert_close(means, expected, atol=1e-4, rtol=1e-4)
    else:
        assert (means - expected).abs().amax(dim=(1, 2)).min() > 0.2


def test_evidence_however_small_is_shown_and_none_is_nothing():
    maps = torch.tensor([[[2e-30, 1e-30]], [[-1.0, 0.0]]])
    torch.testing.assert_close(over_maximum(maps), torch.tensor([[[1.0, 0.5]], [[0.0, 0.0]]]))


@pytest.mark.parametrize("method", [GradCam(), HiResCam()], ids=lambda method: method.name)
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("timm-test_resnet", "backbone.layer4"),
        ("crasmra-test_resnet", "cram.2"),
        ("crasmra-test_vit", "cram.1"),
    ],
)
def test_gradient_maps_are_the_textbooks(families, name, layer, method):
    """Hooks, a backward pass from the score written out, gradients or their means, ReLU (Eq. 1, 2)."""
    model, kept = families[name], []
    images = torch.randn(1, 3, FAMILIES[name], FAMILIES[name], generator=torch.Generator().manual_seed(3))

    def keep(module, inputs, output):
        # CRAM's input is the stage's map; of a plain network it is the layer's output.
        kept.append(inputs[0] if layer.startswith("cram") else output)
        kept[-1].retain_grad()

    features = model(images, want=("features",)).features
    stage = list(features)[int(layer[-1])] if layer.startswith("cram") else "stage5"
    with_evidence = 0
    for target in range(4):
        hook = model.get_submodule(layer).register_forward_hook(keep)
        logs = model(images).probs[0].log()
        hook.remove()
        (logs[target] - torch.cat([logs[:target], logs[target + 1 :]]).logsumexp(0)).backward()
        slopes, values = kept[-1].grad[0], kept[-1].detach()[0]
        if method.name == "gradcam":
            slopes = slopes.mean(dim=(1, 2))[:, None, None].expand_as(values)
        raw = torch.einsum("chw,chw->hw", slopes, values)
        model.zero_grad()
        expected = align_maps(raw[None], features[stage].shift)[0].relu()
        found = explain(method, model, images, Question(target=target))[f"{method.name}-{stage}"][0]
        torch.testing.assert_close(found, expected / expected.max().clamp_min(1e-12), atol=1e-3, rtol=1e-3)
        with_evidence += int(expected.max() > 0)
    assert with_evidence


@pytest.mark.parametrize(
    ("target", "quarter"), [(0, (slice(6), slice(6))), (1, (slice(6, 12), slice(6, 12)))]
)
def test_occlusion_finds_what_each_class_lives_on(target, quarter):
    images = torch.ones(2, 3, 48, 48)
    (heat,) = explain(Occlusion(), Patch(), images, Question(target=target)).values()
    assert heat.shape == (2, CELLS, CELLS)
    assert heat[0][quarter].min() > 0.5 and heat[0].sum() == pytest.approx(
        float(heat[0][quarter].sum()), rel=0.2
    )
    (contrast,) = explain(Occlusion(), Patch(), images, Question(target, 1 - target)).values()
    torch.testing.assert_close(heat, contrast)  # of two classes, all others are the other one


def test_behind_windows_the_model_answers_once_for_all_questions():
    images, model, method = torch.rand(2, 3, 48, 48), Patch(), Occlusion()
    hidden = method.hidden(model, images)
    assert hidden.shape == (2, POSITIONS**2, 2)
    for target in (0, 1):
        case = Question(target).ask(model(images).probs)
        (alone,) = explain(method, model, images, Question(target)).values()
        assert alone.max() == 1
        torch.testing.assert_close(method.heat(model(images).probs, hidden, case), alone)


def test_a_blur_hides_nothing_of_a_plain_picture():
    (grey,) = explain(Occlusion(), Patch(), torch.ones(1, 3, 48, 48), Question(0)).values()
    (blur,) = explain(OcclusionBlur(), Patch(), torch.ones(1, 3, 48, 48), Question(0)).values()
    assert grey.max() == 1 and blur.max() == 0


def test_a_cell_has_the_mean_of_the_windows_that_hide_it():
    losses = torch.zeros(1, POSITIONS, POSITIONS)
    losses[0, 0, 0] = 4.0
    cells = spread_losses(losses)
    assert cells.shape == (1, CELLS, CELLS)
    assert cells[0, :3, :3].tolist() == [[4, 2, 0], [2, 1, 0], [0, 0, 0]]


def test_every_method_is_listed_where_people_look():
    option = get_type_hints(explain_command, include_extras=True)["method"].__metadata__[0]
    guides = Path(__file__).parents[2] / "docs" / "guides"
    text = "".join((guides / name).read_text() for name in ("explaining.md", "maps.md"))
    assert f"Maps to draw: {', '.join(METHODS)}." in option.help
    assert f"`--method` ({', '.join(f'`{name}`' for name in METHODS)})" in text
    assert all(f"| {name} " in text for name in METHODS if METHODS[name].asks_class)


def test_methods_are_picked_once_each_and_occlusion_answers_for_a_class():
    assert [m.name for m in pick_methods(("object", "features", "object"))] == ["object", "features"]
    assert pick_methods(()) == ()
    assert [m.name for m in pick_methods((), asked=True)] == ["occlusion"]
    assert [m.name for m in pick_methods(("features", "occlusion"), asked=True)] == ["features", "occlusion"]
    with pytest.raises(FgvcError, match="nothing in features, rollout.*occlusion or .*or gradcam"):
        pick_methods(("features", "rollout"), asked=True)
    with pytest.raises(FgvcError, match="Nearest: rollout"):
        pick_methods(("roll-out",))
    with pytest.raises(FgvcError, match="Known: features, object"):
        pick_methods(("lime",))


def test_a_case_without_gradient_history_is_enough():
    """The probabilities that a case scores may come from a pass without gradients."""
    assert Case(torch.tensor([0])).score(Patch()(torch.ones(1, 3, 48, 48)).probs).shape == (1,)
