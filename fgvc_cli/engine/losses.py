"""Weights per branch, fitted where the model has not trained (ours; the paper takes the plain mean)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fgvc_cli.config import Loss
from fgvc_cli.models.output import ModelOutput


def total_loss(
    output: ModelOutput, labels: Tensor, config: Loss, multi_label: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of each branch's cross entropy and of the model's penalties, and these terms by name.

    CRA-SMRA, Eq. 12: L = alpha * sum_i L_i + beta * L_all + gamma * L_div, where a branch called ``stage...``
    is an L_i (Eq. 10) and ``concat`` is L_all (Eq. 11). Any other branch weighs 1: the looks of a multi-stage
    ViT, L = L_a + L_b + sum_i L_ci (Eq. 1 of Conde & Turgutlu 2021), and the one answer of a plain baseline.

    Args:
        labels: class indices (B,), targets (B, K) of mixed images, or those of a multi-label set.
        multi_label: whether each class is a yes or no of its own, see ``label_loss``.

    Returns:
        The loss, a scalar, and the unweighted terms, detached. Where ``output.part_logits`` is there, the
        term ``parts`` comes from it, see ``part_loss``.
    """
    terms = {
        name: label_loss(logits, labels, config.label_smoothing, multi_label)
        for name, logits in output.logits.items()
    }
    if output.part_logits is not None:
        terms["parts"] = part_loss(output.part_logits, labels, config, multi_label)
    weights = {name: _branch_weight(name, config) for name in terms}
    for name, penalty in output.penalties.items():
        terms[name] = penalty
        weights[name] = config.gamma
    loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return loss, {name: term.detach() for name, term in terms.items()}


def label_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0, multi_label: bool = False) -> Tensor:
    """Cross entropy of one branch, a scalar, averaged over the batch.

    Args:
        logits: (B, K).
        labels: int64 (B,), or float (B, K) in [0, 1]: shares of the classes of mixed images, or one target
            for each label.
        smoothing: share of the target that is spread over all K classes, or over yes and no of each label.
        multi_label: binary cross entropy of each label by itself, averaged over the labels, in place of the
            softmax over the classes.
    """
    if not multi_label:
        return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
    targets = labels * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits.float(), targets)


def part_loss(part_logits: Tensor, labels: Tensor, config: Loss, multi_label: bool = False) -> Tensor:
    """Loss of each part crop as an input of its own, averaged over the batch.

    Args:
        part_logits: (B, P, K).
        labels, multi_label: as for ``total_loss``.

    Returns:
        A scalar: summed over the P parts (Eq. 1 of Conde & Turgutlu 2021), or averaged, by
        ``config.part_loss``.
    """
    parts = part_logits.shape[1]
    repeated = labels.repeat_interleave(parts, dim=0)
    mean = label_loss(part_logits.flatten(0, 1), repeated, config.label_smoothing, multi_label)
    return mean * parts if config.part_loss == "sum" else mean


def _branch_weight(name: str, config: Loss) -> float:
    if name.startswith("stage"):
        return config.alpha
    return config.beta if name == "concat" else 1.0


def fit_fuse_weights(probs: Tensor, labels: Tensor, iterations: int = 500) -> Tensor:
    """Mixture weights that make the true labels most likely.

    Expectation maximisation of a mixture with fixed components: the likelihood is concave in the weights
    and never falls, so no step size is to be chosen.

    Args:
        probs: (L, N, K), each branch's probabilities on validation images; those of the true classes alone
            will do, with labels of 0.
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
