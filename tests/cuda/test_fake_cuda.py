"""Every family, answer and precision on fake CUDA tensors: devices never mix, and the host waits no oftener
than is listed here."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, fake_cuda, to_fake_cuda
from torch.utils._pytree import tree_leaves

from fgvc_cli.config import Preprocess, TrainConfig, build
from fgvc_cli.data.loaders import Batch
from fgvc_cli.engine.learner import Learner, Meter
from fgvc_cli.evaluate.evaluator import evaluate
from fgvc_cli.explain.methods import METHODS, Question
from fgvc_cli.formats.rows import RunInfo
from fgvc_cli.models.fuse_batchnorm import fold_batch_norms
from fgvc_cli.models.output import WANTS, ModelOutput
from fgvc_cli.models.registry import create_model
from fgvc_cli.predict.forward import Forward

MODELS = {
    "cnn": ("crasmra-test_resnet", 96, {}),
    "cbam": ("crasmra-test_resnet", 96, {"channel_attention": "cbam"}),
    "vit": ("crasmra-test_vit", 160, {}),
    "plain": ("timm-test_resnet", 96, {}),
    "stages": ("vitms-test_vit", 192, {}),
    "cascade": ("vitms-test_vit", 192, {"cascade": 0.9}),
    "object map": ("vitms-test_vit", 192, {"part_map": "object"}),
    "otsu": ("vitms-test_vit", 192, {"threshold": "otsu"}),
    "differentiable": ("vitms-test_vit", 192, {"differentiable_crop": True}),
}
"""Name -> model, input in pixels, its options."""

FAMILIES = ("cnn", "vit", "plain", "stages")
BATCH = 4
NONE: Counter[str] = Counter()
OTSU = Counter({"cuda->cpu attention/objects.py": 1, "cpu->cuda attention/objects.py": 1})
"""Thresholds other than the mean need a histogram of each map, made by scikit-image."""

PREDICT_WAITS = {"cascade": Counter({"nonzero models/multistage_vit.py": 2}), "otsu": OTSU}
"""Of one batch of fgvc predict, all that there are: who goes on is for the host to know."""

TRAIN_WAITS = {"differentiable": Counter({"item attention/crops.py": 2}), "otsu": OTSU}
"""Of the forward and backward pass of one batch: the largest box decides how densely crops are sampled."""

SETTINGS = {
    "none": {"amp": "none", "accumulate": 2, "augment": {"mixup": 0.2, "cutmix": 1.0}},
    "bf16": {"amp": "bf16", "optim": {"clip_grad": 1.0}},
    "fp16": {"amp": "fp16", "optim": {"clip_grad": 1.0, "name": "adamw"}},
}
STEP_WAITS = {"fp16": Counter({"item engine/learner.py": 1})}
"""Of one step of the optimiser: whether a gradient overflowed is for the host to know."""


def build_model(kind: str) -> tuple[torch.nn.Module, int]:
    name, px, options = MODELS[kind]
    return create_model(name, 10, input_px=px, options=options), px


@pytest.mark.parametrize("kind", MODELS)
def test_every_answer_is_computed_on_the_card_in_every_precision(kind):
    model, px = build_model(kind)
    with fake_cuda(), torch.inference_mode():
        model = model.eval().to(CUDA)
        every = (torch.float32, torch.bfloat16, torch.float16)
        for dtype in every if kind in FAMILIES else every[1:2]:
            with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                output: ModelOutput = model(torch.empty(BATCH, 3, px, px, device=CUDA), want=WANTS)
            for field in dataclasses.fields(output):
                for value in tree_leaves(getattr(output, field.name)):
                    assert not isinstance(value, torch.Tensor) or value.is_cuda, (dtype, field.name)


@pytest.mark.parametrize("kind", MODELS)
def test_host_waits_of_a_predicted_batch(kind, monkeypatch):
    model, px = build_model(kind)
    preprocess = Preprocess(input_px=px, resize_px=px)
    extras = ("attention", "embedding", "logits")
    info = RunInfo(kind, "0", tuple("abcdefghij"), preprocess, 5, model.part_count, extras)
    pixels = [np.zeros((px, px, 3), np.uint8)] * BATCH
    # Folded on the CPU with numbers, which fake tensors do not have.
    model = fold_batch_norms(model.eval(), torch.randn(1, 3, px, px))
    monkeypatch.setattr("fgvc_cli.predict.forward.fold_batch_norms", lambda model, _: model)
    with fake_cuda() as seen:
        forward = Forward(model, info, CUDA, size=BATCH, pad=True, compiled=False, tell=print)
        forward.temperature = 1.3
        for forward.precision in ("float32", "bf16"):
            seen.waits.clear()
            (piece,) = forward.launch(pixels).pieces
            assert not piece.packed.is_cuda and not piece.attention.is_cuda
            assert seen.waits <= PREDICT_WAITS.get(kind, NONE)


@pytest.mark.parametrize(
    ("kind", "amp"),
    [(kind, amp) for kind in FAMILIES for amp in SETTINGS]
    + [(kind, "bf16") for kind in MODELS if kind not in FAMILIES],
)
def test_host_waits_of_a_training_step(kind, amp):
    name, px, options = MODELS[kind]
    settings = {"model": name, "options": options, "preprocess": {"input_px": px, "resize_px": px}}
    config = build(TrainConfig, settings | SETTINGS[amp])

    def batches():
        for number in range(config.accumulate):
            images, labels = torch.empty(BATCH, 3, px, px, dtype=torch.uint8), torch.zeros(BATCH).long()
            yield (1, number), Batch(images, labels, torch.arange(BATCH), [])

    model, _ = build_model(kind)
    with fake_cuda() as seen:
        learner = Learner(model, config, classes=10, updates_per_epoch=10, device=CUDA)
        learner.begin_epoch(1)
        seen.waits.clear()
        learner.update(batches(), BATCH * config.accumulate, Meter())
        with_gradient = [p.grad is not None for p in learner.model.parameters()]
    assert sum(with_gradient) > 0.9 * len(with_gradient)
    bound = STEP_WAITS.get(amp, NONE)
    for _ in range(config.accumulate):
        bound = bound + TRAIN_WAITS.get(kind, NONE)
    assert seen.waits <= bound


@pytest.mark.parametrize("kind", FAMILIES)
def test_evaluation_and_methods_of_explaining_mix_no_devices(kind):
    model, px = build_model(kind)
    batch = Batch(torch.empty(2, 3, px, px, dtype=torch.uint8), torch.zeros(2).long(), torch.arange(2), [])
    with fake_cuda():
        model = model.eval().to(CUDA)
        found = evaluate(model, [batch], Preprocess(input_px=px, resize_px=px), CUDA, locate=True)
        assert len(found.probs) == len(found.boxes) == 2
        images = torch.empty(2, 3, px, px, device=CUDA)
        for method in METHODS.values():
            # Gradients; a hundred forward passes; a CNN has no attention.
            if "cam" in method.name or method.name.startswith("occlusion"):
                continue
            if method.name == "rollout" and kind in ("cnn", "plain"):
                continue
            with torch.no_grad():
                output = model(images, want=("boxes", "parts", *method.wants))
                maps = method.maps(model, images, output, Question(None, None, False).ask(output.probs))
            assert all(values.is_cuda for values in maps.values())


def test_fake_cuda_sees_what_it_is_for():
    """Mixed devices fail, and each way to wait is counted."""
    with fake_cuda() as seen:
        on_card = torch.ones(3, device=CUDA)
        with pytest.raises(RuntimeError):
            on_card + torch.ones(3)
        float(on_card.sum())
        on_card[on_card > 0]
        torch.equal(on_card, on_card)
        on_card.cpu()
        torch.ones(3).to(CUDA)
        on_card.to("cpu", non_blocking=True)
        torch.ones(3)[torch.ones(3).long()].to(CUDA, non_blocking=True)
        kinds = {what.split()[0] for what in seen.waits}
        assert kinds == {"item", "mask", "equal", "cuda->cpu", "cpu->cuda"}
    model = torch.nn.Linear(2, 2)
    with fake_cuda():
        assert to_fake_cuda(model, torch._guards.detect_fake_mode()).weight.is_cuda
