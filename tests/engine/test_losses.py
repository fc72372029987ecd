"""Eq. 10-12."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fgvc_cli.config import Loss
from fgvc_cli.engine.losses import total_loss
from fgvc_cli.models.output import ModelOutput

LABELS = torch.tensor([0, 2])


def make_output(**penalties: float) -> ModelOutput:
    torch.manual_seed(0)
    logits = {name: torch.randn(2, 3) for name in ("stage3", "stage4", "stage5", "concat")}
    tensors = {name: torch.tensor(value) for name, value in penalties.items()}
    return ModelOutput(logits=logits, probs=torch.full((2, 3), 1 / 3), penalties=tensors)


def test_total_is_alpha_stages_plus_beta_concat_plus_gamma_diversity():
    output = make_output(div=0.25)
    stages = sum(F.cross_entropy(output.logits[f"stage{i}"], LABELS) for i in (3, 4, 5))
    concat = F.cross_entropy(output.logits["concat"], LABELS)
    loss, terms = total_loss(output, LABELS, Loss(alpha=3, beta=5, gamma=7))
    assert loss.item() == pytest.approx(float(3 * stages + 5 * concat + 7 * 0.25), rel=1e-6)
    assert set(terms) == {"stage3", "stage4", "stage5", "concat", "div"}


def test_defaults_are_the_papers():
    assert (Loss().alpha, Loss().beta, Loss().gamma) == (2, 1, 1)


def test_plain_baseline_is_cross_entropy():
    output = ModelOutput(logits={"main": torch.randn(2, 3)}, probs=torch.full((2, 3), 1 / 3))
    loss, _ = total_loss(output, LABELS, Loss())
    assert loss.item() == pytest.approx(F.cross_entropy(output.logits["main"], LABELS).item())


def test_label_smoothing_reaches_every_branch():
    output = make_output()
    _, plain = total_loss(output, LABELS, Loss())
    _, smooth = total_loss(output, LABELS, Loss(label_smoothing=0.3))
    assert all(plain[name] != smooth[name] for name in plain)
