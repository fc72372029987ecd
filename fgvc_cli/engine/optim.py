"""Optimiser and schedule, with one parameter group per part of the model, or several for its backbone."""

from __future__ import annotations

import math
from typing import Any, Protocol

from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim import Optimizer

from fgvc_cli.config import Optim
from fgvc_cli.errors import EXIT_USAGE, FgvcError


class Schedule(Protocol):
    """What sets the learning rates of an optimiser."""

    def step_update(self, num_updates: int) -> None:
        """Set the rates of the next update; called after each one, ``num_updates`` counts from 1."""


class OneCycle:
    """One cycle (Smith & Topin 2017): each group rises to the rate it was made with over the first 30 % of
    the updates, from a 25th of it, then falls to nothing. Momentum stays.

    With frozen epochs there are two: one for what learns alone, then one for everything (fastai's
    ``fine_tune``, which the authors of the multi-stage ViT use). The shape is that of torch's ``OneCycleLR``,
    as a function of the update alone: a run can go on from any.

    Args:
        optimizer: its groups hold their largest rates.
        updates: of the whole run.
        frozen: how many of them, from the start, are the first cycle's.
    """

    def __init__(self, optimizer: Optimizer, updates: int, frozen: int = 0):
        self._optimizer = optimizer
        self._tops = [group["lr"] for group in optimizer.param_groups]
        self._updates, self._frozen = updates, frozen
        self.step_update(0)

    def step_update(self, num_updates: int) -> None:
        """See ``Schedule``; after the last update the rates stay."""
        thawed = num_updates >= self._frozen
        done = min(num_updates, self._updates - 1) - (self._frozen if thawed else 0)
        share = _one_cycle_share(done, self._updates - self._frozen if thawed else self._frozen)
        for group, top in zip(self._optimizer.param_groups, self._tops, strict=True):
            group["lr"] = top * share


def _one_cycle_share(done: int, updates: int) -> float:
    """Rate as a share of the largest, of the update that comes after ``done`` of a cycle of ``updates``."""
    if updates == 1:
        return 1.0  # where torch's has only the end, at which nothing is learnt
    first, last, rise = 1 / 25, 1 / 25e4, 0.3 * updates - 1
    if done <= rise:
        start, end, way = first, 1.0, done / rise if rise else 1.0
    else:
        start, end, way = 1.0, last, (done - rise) / (updates - 1 - rise)
    return end + (start - end) * (1 + math.cos(math.pi * way)) / 2


def parameter_groups(model: nn.Module, config: Optim) -> list[dict]:
    """Parameters by the root of their name (backbone, cram, smram, heads), each with its learning rate.

    With ``config.lr_mask``, the MLPs of CRAM's masks are a group of their own, ``mask``. With
    ``config.layer_decay`` the backbone is several groups, named ``backbone.<number>``.
    """
    roots: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            root = name.partition(".")[0]
            if root == "cram" and config.lr_mask is not None and (".mlp." in name or ".norm." in name):
                root = "mask"
            roots.setdefault(root, []).append(parameter)
    groups: list[dict] = []
    for root, parameters in roots.items():
        if root == "backbone" and config.layer_decay is not None:
            groups += _layer_groups(model.get_submodule(root), config, config.layer_decay)
        else:
            groups.append({"params": parameters, "lr": getattr(config, f"lr_{root}"), "name": root})
    return groups


def _layer_groups(backbone: nn.Module, config: Optim, decay: float) -> list[dict]:
    """timm's groups (BEiT): rate times ``decay`` per layer below the last, no weight decay for biases, norms
    and what the backbone itself exempts."""
    if not hasattr(backbone, "group_matcher"):
        raise FgvcError(
            f"optim.layer_decay={decay:g} needs a backbone that groups its parameters by layer, and "
            f"{type(backbone).__name__} does not.",
            "Leave optim.layer_decay out, or choose a ViT or ResNet of timm.",
            EXIT_USAGE,
        )
    exempt: set[str] = getattr(backbone, "no_weight_decay", set)()
    groups = param_groups_layer_decay(
        backbone, weight_decay=config.weight_decay, no_weight_decay_list=exempt, layer_decay=decay
    )
    # The scale goes into the rate and no further: timm's schedules would apply a kept ``lr_scale`` again.
    return [
        {
            "params": group["params"],
            "lr": config.lr_backbone * group["lr_scale"],
            "weight_decay": group["weight_decay"],
            "name": f"backbone.{number}",
        }
        for number, group in enumerate(groups)
    ]


def build_optimizer(model: nn.Module, config: Optim) -> Optimizer:
    """Any optimiser timm knows, over ``parameter_groups``.

    Raises:
        FgvcError: an optimiser name that timm does not know, layer decay that the backbone cannot have.
    """
    groups = parameter_groups(model, config)
    extra: dict[str, Any] = {"momentum": config.momentum} if config.name in ("momentum", "sgd") else {}
    try:
        return create_optimizer_v2(
            groups,
            opt=config.name,
            lr=config.lr_backbone,
            # Of the groups that do not carry their own.
            weight_decay=config.weight_decay,
            **extra,
        )
    except (ValueError, AssertionError, ImportError) as error:
        raise FgvcError(
            f"timm has no optimiser {config.name!r}.", "For example: --set optim.name=momentum", EXIT_USAGE
        ) from error


def build_schedule(optimizer: Optimizer, config: Optim, epochs: int, steps_per_epoch: int) -> Schedule:
    """``config.schedule`` over all updates of a run; each group keeps its own largest rate.

    Args:
        steps_per_epoch: updates of an epoch.

    ``cosine`` falls to zero after an optional linear warm-up; ``onecycle`` brings its own, see ``OneCycle``.

    Raises:
        FgvcError: a warm-up asked of one cycle.
    """
    updates = epochs * steps_per_epoch
    if config.schedule == "onecycle":
        if config.warmup_epochs:
            raise FgvcError(
                f"optim.warmup_epochs={config.warmup_epochs:g} goes with optim.schedule=cosine; "
                "one cycle rises by itself.",
                "Leave optim.warmup_epochs out.",
                EXIT_USAGE,
            )
        return OneCycle(optimizer, updates, config.freeze_epochs * steps_per_epoch)
    return CosineLRScheduler(
        optimizer,
        t_initial=updates,
        warmup_t=round(config.warmup_epochs * steps_per_epoch),
        warmup_lr_init=0.0,
        warmup_prefix=False,
        t_in_epochs=False,
    )


def largest_rates(optimizer: Optimizer) -> dict[str, float]:
    """``lr_<root>`` -> the largest current learning rate among that root's groups."""
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        column = f"lr_{group['name'].partition('.')[0]}"
        rates[column] = max(rates.get(column, 0.0), float(group["lr"]))
    return rates
