"""Optimiser and schedule from timm, with one parameter group per part of the model."""

from __future__ import annotations

from typing import Any

from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from fgvc_cli.config import Optim
from fgvc_cli.errors import EXIT_USAGE, FgvcError


def parameter_groups(model: nn.Module, config: Optim) -> list[dict]:
    """Parameters by the root of their name (backbone, cram, smram, heads), each with its learning rate."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(name.partition(".")[0], []).append(parameter)
    return [
        {"params": parameters, "lr": getattr(config, f"lr_{root}"), "name": root}
        for root, parameters in groups.items()
    ]


def build_optimizer(model: nn.Module, config: Optim) -> Optimizer:
    """Any optimiser timm knows, over ``parameter_groups``.

    Raises:
        FgvcError: an optimiser name that timm does not know.
    """
    extra: dict[str, Any] = {"momentum": config.momentum} if config.name in ("momentum", "sgd") else {}
    try:
        return create_optimizer_v2(
            parameter_groups(model, config),
            opt=config.name,
            lr=config.lr_backbone,
            weight_decay=config.weight_decay,
            **extra,
        )
    except (ValueError, AssertionError, ImportError) as error:
        raise FgvcError(
            f"timm has no optimiser {config.name!r}.", "For example: --set optim.name=momentum", EXIT_USAGE
        ) from error


def build_schedule(optimizer: Optimizer, config: Optim, epochs: int, steps_per_epoch: int) -> Scheduler:
    """Cosine decay to zero over all steps, after an optional linear warm-up; stepped per update."""
    return CosineLRScheduler(
        optimizer,
        t_initial=epochs * steps_per_epoch,
        warmup_t=round(config.warmup_epochs * steps_per_epoch),
        warmup_lr_init=0.0,
        warmup_prefix=False,
        t_in_epochs=False,
    )
