"""Figures of an evaluation, of a cascade too."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fgvc_cli.config import Preprocess
from fgvc_cli.data.loaders import Batch
from fgvc_cli.evaluate.evaluator import evaluate
from fgvc_cli.models.output import ModelOutput

K = 6
LABELS = torch.tensor([0, 1, 2, 3, 4])
GUESSES = {"main": [0, 1, 2, 0, 0], "object": [None, None, 2, 3, 0], "parts": [None, None, None, 3, 0]}
FUSED = [0, 1, 2, 3, 0]


class Cascade(nn.Module):
    """Answers with the given guess for each image in turn; None: the cascade stopped before."""

    def __init__(self, guesses: dict[str, list[int | None]], fused: list[int]):
        super().__init__()
        self.guesses, self.fused, self.seen = guesses, fused, 0

    def forward(self, images, want=()):
        rows = range(self.seen, self.seen + len(images))
        self.seen += len(images)

        def answer(guesses):
            guess = torch.tensor([-1 if guesses[row] is None else guesses[row] for row in rows])
            logits = 9.0 * F.one_hot(guess.clamp_min(0), K).float()
            return torch.where(guess[:, None] < 0, torch.nan, logits)

        logits = {name: answer(guesses) for name, guesses in self.guesses.items()}
        looks = torch.stack([~branch.isnan().any(dim=1) for branch in logits.values()]).sum(dim=0)
        stats = {"passes": looks.float().mean()} if "stats" in want else {}
        return ModelOutput(logits=logits, probs=answer(self.fused).softmax(dim=-1), stats=stats)


def measure(guesses, fused=FUSED, temperature=None) -> dict[str, float]:
    """The metrics over a batch of three and one of two."""
    images = torch.zeros(len(LABELS), 3, 4, 4, dtype=torch.uint8)
    index = torch.arange(len(LABELS))
    loader = [Batch(images[part], LABELS[part], index[part], []) for part in (slice(0, 3), slice(3, 5))]
    result = evaluate(Cascade(guesses, fused), loader, Preprocess(), torch.device("cpu"))
    return result.metrics(temperature)


def test_a_branch_is_scored_over_the_images_that_reached_it():
    metrics = measure(GUESSES)
    assert metrics["top1_main"] == pytest.approx(3 / 5)
    assert metrics["top1_object"] == pytest.approx(2 / 3)
    assert metrics["top1_parts"] == pytest.approx(1 / 2)
    assert (metrics["reached_object"], metrics["reached_parts"]) == pytest.approx((3 / 5, 2 / 5))
    assert "reached_main" not in metrics


def test_fused_figures_are_over_all_images():
    metrics = measure(GUESSES)
    assert (metrics["images"], metrics["top1"], metrics["top5"]) == (5, 4 / 5, 1)
    right, wrong = (math.log(math.exp(9) + K - 1) - logit for logit in (9, 0))
    assert metrics["nll"] == pytest.approx((4 * right + wrong) / 5, rel=1e-4)


def test_passes_are_the_mean_over_images_not_over_batches():
    assert measure(GUESSES)["passes"] == pytest.approx((1 + 1 + 2 + 3 + 3) / 5)


def test_a_branch_that_no_image_reached_has_no_accuracy():
    metrics = measure(GUESSES | {"parts": [None] * 5})
    assert metrics["reached_parts"] == 0 and "top1_parts" not in metrics
    json.dumps(metrics, allow_nan=False)


def test_without_a_cascade_nothing_is_said_of_reach():
    metrics = measure({"main": [0, 1, 2, 0, 0], "concat": [0, 0, 0, 3, 4]})
    assert (metrics["top1_main"], metrics["top1_concat"]) == pytest.approx((3 / 5, 3 / 5))
    assert not any(name.startswith("reached") for name in metrics)


def test_confidence_is_measured_as_it_is_and_with_the_temperature():
    plain, calibrated = measure(GUESSES), measure(GUESSES, temperature=3.0)
    for metrics, suffix, logit in ((plain, "", 9), (calibrated, "_calibrated", 3)):
        confidence = math.exp(logit) / (math.exp(logit) + K - 1)
        assert metrics[f"ece{suffix}"] == pytest.approx(abs(4 / 5 - confidence), abs=1e-6)
        wrong = -math.log((1 - confidence) / (K - 1))
        nll = (-4 * math.log(confidence) + wrong) / 5
        assert metrics[f"nll{suffix}"] == pytest.approx(nll, rel=1e-4)
    assert not any(name.endswith("_calibrated") for name in plain)
    for name in plain.keys() - {"images_per_second"}:
        assert calibrated[name] == plain[name], name
