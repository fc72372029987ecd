"""Losses over ``ModelOutput``; the same function serves every family."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fgvc_cli.config import Loss
from fgvc_cli.models.output import ModelOutput

_JOINT = ("concat", "main")


def total_loss(output: ModelOutput, labels: Tensor, config: Loss) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 12, L = alpha * sum_i L_i + beta * L_all + gamma * L_div, and its terms by name.

    A branch called ``concat`` or ``main`` is L_all (Eq. 11); every other branch is an L_i (Eq. 10). A plain
    baseline has only ``main`` and no penalty, so its loss is beta * cross entropy.

    Args:
        labels: class indices (B,).
    """
    terms = {
        name: F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
        for name, logits in output.logits.items()
    }
    weights = {name: config.beta if name in _JOINT else config.alpha for name in terms}
    for name, penalty in output.penalties.items():
        terms[name] = penalty
        weights[name] = config.gamma
    loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return loss, {name: term.detach() for name, term in terms.items()}
