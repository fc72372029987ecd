"""Branch weights fitted on validation."""

from __future__ import annotations

import pytest
import torch

from fgvc_cli.engine.learner import fit_fuse_weights


def make_branches(n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (n,), generator=generator)
    noise = torch.randn(3, n, 4, generator=generator)
    strength = torch.tensor([3.0, 1.0, 0.0]).view(3, 1, 1)
    onehot = torch.nn.functional.one_hot(labels, 4).float()
    return (noise + strength * onehot).softmax(dim=-1), labels


def nll(probs, labels, weights):
    mixed = (probs * weights.view(-1, 1, 1)).sum(dim=0)
    return -mixed[torch.arange(len(labels)), labels].log().mean().item()


def test_weights_are_the_best_mixture():
    probs, labels = make_branches()
    weights = fit_fuse_weights(probs, labels)
    assert weights.sum().item() == pytest.approx(1) and (weights >= 0).all()
    best = nll(probs, labels, weights)
    grid = [torch.tensor([a, b, 10 - a - b]) / 10 for a in range(11) for b in range(11 - a)]
    assert best <= min(nll(probs, labels, w) for w in grid) + 1e-4
    assert weights.argmax() == 0


def test_equal_branches_keep_equal_weights():
    probs, labels = make_branches()
    weights = fit_fuse_weights(probs[:1].expand(4, -1, -1), labels)
    torch.testing.assert_close(weights, torch.full((4,), 0.25))
