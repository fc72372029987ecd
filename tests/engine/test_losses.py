"""Eq. 10-12 of CRA-SMRA, Eq. 1 of the multi-stage ViT."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fgvc_cli.config import Loss
from fgvc_cli.engine.learner import total_loss
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
    loss, _ = total_loss(output, LABELS, Loss(alpha=3, beta=5))
    assert loss.item() == pytest.approx(F.cross_entropy(output.logits["main"], LABELS).item())


def test_label_smoothing_reaches_every_branch():
    output = make_output()
    _, plain = total_loss(output, LABELS, Loss())
    _, smooth = total_loss(output, LABELS, Loss(label_smoothing=0.3))
    assert all(plain[name] != smooth[name] for name in plain)


PARTS = 3


def make_looks() -> ModelOutput:
    torch.manual_seed(0)
    part_logits = torch.randn(2, PARTS, 3)
    logits = {"main": torch.randn(2, 3), "object": torch.randn(2, 3)}
    logits["parts"] = part_logits.softmax(dim=-1).mean(dim=1).log()
    return ModelOutput(logits=logits, probs=torch.full((2, 3), 1 / 3), part_logits=part_logits)


def smooth_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> float:
    """(1 - s) * -log p_y + s * mean_k -log p_k, averaged over the rows."""
    surprise = -(logits - logits.logsumexp(dim=1, keepdim=True))
    true = surprise[torch.arange(len(labels)), labels]
    return ((1 - smoothing) * true + smoothing * surprise.mean(dim=1)).mean().item()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("part_loss", "share"), [("sum", 1), ("mean", 1 / PARTS)])
def test_looks_weigh_one_each_and_every_part_is_an_input_of_its_own(part_loss, share, smoothing):
    output = make_looks()
    config = Loss(alpha=3, beta=5, gamma=7, part_loss=part_loss, label_smoothing=smoothing)
    each = [smooth_cross_entropy(output.part_logits[:, i], LABELS, smoothing) for i in range(PARTS)]
    expected = {
        "main": smooth_cross_entropy(output.logits["main"], LABELS, smoothing),
        "object": smooth_cross_entropy(output.logits["object"], LABELS, smoothing),
        "parts": share * sum(each),
    }
    loss, terms = total_loss(output, LABELS, config)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-5)
    assert loss.item() == pytest.approx(sum(expected.values()), rel=1e-5)


def test_uniform_parts_cost_log_k_each():
    output = make_looks()
    output.part_logits = torch.zeros(2, PARTS, 3)
    _, terms = total_loss(output, LABELS, Loss(label_smoothing=0.1))
    assert terms["parts"].item() == pytest.approx(PARTS * math.log(3))


def test_a_model_without_part_logits_pays_for_its_parts_branch():
    output = make_looks()
    output.part_logits = None
    _, terms = total_loss(output, LABELS, Loss())
    assert terms["parts"].item() == pytest.approx(F.cross_entropy(output.logits["parts"], LABELS).item())


def test_gradient_of_a_part_is_that_of_its_own_cross_entropy():
    output = make_looks()
    output.part_logits.requires_grad_()
    total_loss(output, LABELS, Loss())[0].backward()
    onehot = F.one_hot(LABELS, 3).float().unsqueeze(1)
    expected = (output.part_logits.detach().softmax(dim=-1) - onehot) / len(LABELS)
    torch.testing.assert_close(output.part_logits.grad, expected)
