"""Model names -> models, and what these take and cost.

A new backbone costs nothing: ``<family>-<timm name>`` is a name already.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from fgvc_cli.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BackboneOptions,
    BaselineConfig,
    CraSmraConfig,
    MultiStageVitConfig,
    Section,
    build,
)
from fgvc_cli.errors import EXIT_USAGE, FgvcError, nearest
from fgvc_cli.models.backbones import build_backbone
from fgvc_cli.models.baseline import Baseline
from fgvc_cli.models.catalog import COST_CLASSES, NAMED, Cost
from fgvc_cli.models.cra_smra import CraSmra
from fgvc_cli.models.multistage_vit import MultiStageVit
from fgvc_cli.models.output import FgvcModel
from fgvc_cli.models.vit import is_vit
from fgvc_cli.models.weights import load_initial_weights


@dataclass(frozen=True)
class Family:
    """A way to turn a timm backbone into a classifier."""

    config: type[Section]
    build: Callable[[nn.Module, int, Any], FgvcModel]
    own_size: Callable[[Any], int | None] | None = None
    """config -> what the backbone sees, pixels, in a family that resizes its input itself."""


FAMILIES: dict[str, Family] = {
    "crasmra": Family(CraSmraConfig, CraSmra),
    "vitms": Family(MultiStageVitConfig, MultiStageVit, own_size=lambda config: config.encoder_px),
    "timm": Family(BaselineConfig, Baseline),
}


@dataclass(frozen=True)
class Resolved:
    """What a registry name means."""

    name: str
    family: Family
    backbone: str


def resolve(name: str) -> Resolved:
    """Look a model name up without building it; a bare timm name means ``timm-<name>``.

    Raises:
        FgvcError: an unknown name, with the nearest known ones.
    """
    family, dash, backbone = name.partition("-")
    if name in NAMED:
        return Resolved(name, FAMILIES[family], NAMED[name])
    if dash and family in FAMILIES:
        _check_backbone(name, family, backbone)
        return Resolved(name, FAMILIES[family], backbone)
    if timm.is_model(name):
        return resolve(f"timm-{name}")
    near = _nearest_built(name, [*NAMED, *_examples()])
    hint = f"Nearest: {', '.join(near)}." if near else "fgvc models lists them."
    raise FgvcError(
        f"No model is called {name!r}; expected one of {', '.join(NAMED)}, "
        f"{' or '.join(f'{f}-<timm name>' for f in FAMILIES)}.",
        hint,
        EXIT_USAGE,
    )


def create_model(
    name: str,
    num_classes: int,
    *,
    input_px: int | None = None,
    pretrained: bool = False,
    init: Path | str | None = None,
    options: dict[str, Any] | None = None,
) -> FgvcModel:
    """Build a registered model.

    Args:
        name: registry name, e.g. ``crasmra-r50`` or ``timm-mobilenetv2_100``.
        num_classes: K, at least 2.
        input_px: side of the input for a backbone that is built for one, such as a ViT; position embeddings
            are interpolated to it. None: the backbone's own.
        pretrained: start the backbone from timm's weights (a download).
        init: start from this weight file instead, see ``load_initial_weights``.
        options: settings of the family's config; unknown ones are refused.

    Returns:
        A module answering ``model(images, want=...) -> ModelOutput``, see ``FgvcModel``.

    Raises:
        FgvcError: an unknown name or option, a backbone that does not fit the family, weights not to be had.
    """
    resolved = resolve(name)
    family = resolved.family
    config = build(family.config, dict(options or {}))
    side = family.own_size(config) if family.own_size else input_px
    name = _tagged(resolved.backbone, config.pretrained_tag)
    kwargs = _size_arguments(name, side) | _constructor_arguments(config)
    backbone = build_backbone(name, pretrained=pretrained and not init, **kwargs)
    cfg = getattr(backbone, "pretrained_cfg", {})
    mean, std = cfg.get("mean", IMAGENET_MEAN), cfg.get("std", IMAGENET_STD)
    if family.own_size and side:
        _check_own_size(resolved.name, backbone, side)
    model = family.build(backbone, num_classes, config)
    if init:
        mean, std = load_initial_weights(model, Path(init)) or (mean, std)
    fixed = cfg.get("fixed_input_size") and not family.own_size
    model.fixed_px = _image_size(backbone) or cfg["input_size"][-1] if fixed else None
    model.least_px = _image_size(backbone) or 0 if family.own_size else 0
    model.input_mean, model.input_std = tuple(mean), tuple(std)
    return model


def check_input_px(model: FgvcModel, input_px: int) -> None:
    """Refuse an input size that a backbone built for one size cannot take, or that is smaller than what the
    looks of a multi-stage model are to hold.

    Raises:
        FgvcError: names the size that fits.
    """
    if input_px < model.least_px:
        raise FgvcError(
            f"The input of {input_px} px is smaller than the {model.least_px} px of each look.",
            f"--input-px {model.least_px} or more, or --set options.encoder_px={input_px}.",
            EXIT_USAGE,
        )
    if model.fixed_px not in (None, input_px):
        raise FgvcError(
            f"This backbone takes {model.fixed_px} px only, the input is {input_px} px.",
            f"Give it one size: --input-px {model.fixed_px}, and no other augment.train_px.",
            EXIT_USAGE,
        )


def _tagged(backbone: str, tag: str | None) -> str:
    return f"{backbone}.{tag}" if tag and "." not in backbone else backbone


def _constructor_arguments(config: BackboneOptions) -> dict[str, Any]:
    """``BackboneOptions`` in timm's words; only what was asked for, as few networks take all."""
    kwargs: dict[str, Any] = {"drop_path_rate": config.drop_path} if config.drop_path else {}
    return kwargs | ({"pad_type": "same"} if config.padding == "same" else {})


def _size_arguments(backbone: str, side: int | None) -> dict[str, Any]:
    """What makes a timm ViT of another input size."""
    if side is None or backbone.startswith("hf-hub:"):
        return {}
    cfg = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
    own = cfg is None or not cfg.fixed_input_size or cfg.input_size[-1] == side
    return {} if own else {"img_size": side}


def _image_size(backbone: nn.Module) -> int | None:
    """The input size that a backbone was built for, where it says so; pixels."""
    size = getattr(getattr(backbone, "patch_embed", None), "img_size", None)
    return int(size[0]) if size else None


def _check_own_size(name: str, backbone: nn.Module, side: int) -> None:
    built = _image_size(backbone)
    if built not in (None, side):
        raise FgvcError(
            f"{name} takes {built} px only, options.encoder_px is {side}.",
            f"Leave it out, or --set options.encoder_px={built}.",
            EXIT_USAGE,
        )


OFFER_SECONDS = 4.0
OFFERS = 3
OFFER_PARAMETERS = 100_000_000
"""What is larger is not offered to whoever has mistyped a name: to find out whether it fits takes memory."""


def _nearest_built(name: str, known: list[str]) -> list[str]:
    """The nearest names that can be built, best first; each is built to find out, while there is time."""
    found: list[str] = []
    end = time.monotonic() + OFFER_SECONDS
    for near in nearest(name, known, limit=4 * OFFERS):
        if len(found) == OFFERS or time.monotonic() > end:
            break
        if near in NAMED or _can_be_built(near):
            found.append(near)
    return found


def _can_be_built(name: str) -> bool:
    try:
        with torch.device("meta"):
            net = timm.create_model(resolve(name).backbone)
        if sum(p.numel() for p in net.parameters()) > OFFER_PARAMETERS:
            return False
        create_model(name, 2)
    except (FgvcError, RuntimeError, NotImplementedError, ValueError):
        return False
    return True


def _examples() -> list[str]:
    return [f"{family}-{b}" for family in FAMILIES for b in (*NAMED.values(), "mobilenetv2_100")]


def _check_backbone(name: str, family: str, backbone: str) -> None:
    if backbone.startswith("hf-hub:") or timm.is_model(backbone):
        return
    own = [known for known in NAMED if known.startswith(family)]
    near = _nearest_built(name, [*own, *(f"{family}-{b}" for b in timm.list_models())])
    raise FgvcError(
        f"No model is called {name!r}: timm has no backbone {backbone!r}.",
        f"Nearest: {', '.join(near or own)}." if near or own else "fgvc models lists them.",
        EXIT_USAGE,
    )


class Traits(NamedTuple):
    """Of a backbone."""

    vit: bool
    """A plain ViT, whose layers can learn at rates of their own."""
    drop_path: bool
    """Takes stochastic depth."""
    parameters: int


def backbone_traits(name: str) -> Traits:
    """Look at a timm network that has shapes and no numbers, which takes a moment whatever its size.

    Raises:
        FgvcError: an unknown name.
    """
    with torch.device("meta"):
        try:
            net, drop_path = build_backbone(name, drop_path_rate=0.1), True
        except FgvcError:
            # An unknown name is refused here again.
            net, drop_path = build_backbone(name), False
    return Traits(is_vit(net), drop_path, sum(parameter.numel() for parameter in net.parameters()))


def count_parameters(model: nn.Module) -> int:
    """Number of parameters as used for prediction; SMRAM, which trains only, is left out."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("smram."))


@torch.no_grad()
def count_gmac(model: nn.Module, input_px: int) -> float:
    """Giga multiply-accumulates of one forward pass in evaluation mode at (1, 3, input_px, input_px).

    Counts matrix products and convolutions, as the field does; shapes only, nothing is computed.
    """
    model = model.eval()
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), counter:
        model(torch.empty(1, 3, input_px, input_px))
    return counter.get_total_flops() / 2e9


def compute_cost(name: str, input_px: int) -> Cost:
    """Build a model of ``COST_CLASSES`` classes and count.

    Args:
        name: registry name.
        input_px: side of the input, pixels; a backbone that is built for one size is counted at its own.

    Raises:
        FgvcError: an unknown name, or a backbone that does not fit the family.
    """
    backbone = resolve(name).backbone
    model = create_model(name, COST_CLASSES)
    side = model.fixed_px or input_px
    return Cost(name, backbone, side, count_parameters(model), count_gmac(model, side))
