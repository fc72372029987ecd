"""CUDA against the CPU: the same weights and images give the same answers. Skipped without a GPU."""

from __future__ import annotations

import copy

import pytest
import torch

from fgvc_cli.config import Loss, Preprocess, TrainConfig
from fgvc_cli.engine.checkpoint import load_checkpoint, save_checkpoint
from fgvc_cli.engine.device import computing, float32_products
from fgvc_cli.engine.learner import total_loss
from fgvc_cli.models.fuse_batchnorm import fold_batch_norms
from fgvc_cli.models.registry import create_model
from fgvc_cli.predict.predictor import Predictor
from fgvc_cli.sources.find import find_images

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and there is none")

MODELS = {
    "crasmra-resnet18": 128,
    "crasmra-mobilenetv2_100": 128,
    "crasmra-vit_tiny_patch16_224": 224,
    "vitms-vit_tiny_patch16_224": 288,
    "timm-resnet18": 128,
}


@pytest.fixture(autouse=True)
def _full_precision():
    """TensorFloat-32 keeps ten bits of a product; what is compared here is float32."""
    with float32_products(torch.device("cuda"), "float32"):
        yield


def build(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    images = torch.nn.functional.interpolate(torch.randn(4, 3, 12, 12), MODELS[name], mode="bicubic")
    return create_model(name, 5, options={"erase_prob": 0} if name.startswith("vitms") else None), images


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.float().cpu(), expected.float()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


@pytest.mark.parametrize("name", MODELS)
def test_answers_of_cuda_are_those_of_the_cpu(name):
    model, images = build(name)
    model.eval()
    want = ("heat", "boxes", "parts", "embedding")
    with torch.inference_mode():
        expected = model(images, want=want)
        found = model.cuda()(images.cuda(), want=want)
    for field in ("probs", "heat", "embedding"):
        assert error(getattr(found, field), getattr(expected, field)) < 1e-3, field
    # Boxes follow the map's cells: rounding may move an edge by a pixel, not by more.
    for field in ("boxes", "parts"):
        if getattr(expected, field) is not None:
            torch.testing.assert_close(
                getattr(found, field).cpu(), getattr(expected, field), atol=2.5, rtol=0
            )


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_stays_near_float32(name):
    model, images = build(name)
    model.eval()
    with torch.inference_mode():
        expected = model(images)
        with computing(torch.device("cuda"), "bf16"):
            found = model.cuda()(images.cuda())
    assert error(found.probs, expected.probs) < 5e-2


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_cuda_are_those_of_the_cpu(name):
    model, images = build(name)
    model.train()
    twin = copy.deepcopy(model).cuda()
    labels = torch.tensor([0, 1, 2, 3])
    losses = []
    for net, device in ((model, "cpu"), (twin, "cuda")):
        loss, _ = total_loss(net(images.to(device)), labels.to(device), Loss())
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    pairs = zip(model.named_parameters(), twin.named_parameters(), strict=True)
    grads = [(mine.grad, theirs.grad) for (_, mine), (_, theirs) in pairs]
    whole = [torch.cat([g.flatten().float().cpu() for g in side]) for side in zip(*grads, strict=True)]
    assert error(whole[1], whole[0]) < 2e-2


@pytest.mark.parametrize("name", ["crasmra-resnet18", "timm-resnet18"])
def test_the_same_batch_norms_are_folded_on_cuda(name):
    model, images = build(name)
    model.eval()
    with float32_products(torch.device("cuda"), "bf16"):
        found = fold_batch_norms(copy.deepcopy(model).cuda(), images[:1].cuda())
    expected = fold_batch_norms(model, images[:1])
    assert [key for key, _ in found.named_parameters()] == [key for key, _ in expected.named_parameters()]
    assert found.get_parameter("backbone.conv1.bias").is_cuda


def test_rows_of_cuda_are_those_of_the_cpu(colours, tmp_path):
    model, _ = build("vitms-vit_tiny_patch16_224")
    path = tmp_path / "model.safetensors"
    config = TrainConfig(
        model="vitms-vit_tiny_patch16_224", preprocess=Preprocess(input_px=288, resize_px=288)
    )
    save_checkpoint(path, model, config=config, classes=tuple("abcde"), dataset="colours", metrics={})
    rows = {
        device: list(Predictor(load_checkpoint(path), device=device).predict(find_images([str(colours)])))
        for device in ("cpu", "cuda")
    }
    assert len(rows["cpu"]) == 30
    for mine, theirs in zip(rows["cpu"], rows["cuda"], strict=True):
        assert mine.path == theirs.path and mine.labels[0] == theirs.labels[0]
        assert theirs.probs == pytest.approx(mine.probs, abs=1e-3)
        assert len(theirs.parts) == 2
