"""Weights per branch, fitted where the model has not trained (ours; the paper takes the plain mean)."""

from __future__ import annotations

import torch
from torch import Tensor


def fit_fuse_weights(probs: Tensor, labels: Tensor, iterations: int = 500) -> Tensor:
    """Mixture weights that make the true labels most likely.

    Expectation maximisation of a mixture with fixed components: the likelihood is concave in the weights
    and never falls, so no step size is to be chosen.

    Args:
        probs: (L, N, K), each branch's probabilities on validation images.
        labels: (N,).

    Returns:
        (L,), non-negative, summing to 1.
    """
    likelihood = probs[:, torch.arange(len(labels)), labels].double().clamp_min(1e-12)
    weights = torch.full((len(probs), 1), 1 / len(probs), dtype=torch.float64)
    for _ in range(iterations):
        responsibility = weights * likelihood
        weights = (responsibility / responsibility.sum(dim=0)).mean(dim=1, keepdim=True)
    return weights.squeeze(1).float()
