"""Model names -> models. A new backbone costs nothing: ``<family>-<timm name>`` is a name already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import nn

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
from fgvc_cli.models.cra_smra import CraSmra
from fgvc_cli.models.multistage_vit import MultiStageVit
from fgvc_cli.models.weights import load_initial_weights

CRA_SMRA_PAPER = "Wang et al. 2025"
MULTI_STAGE_PAPER = "Conde & Turgutlu 2021"


@dataclass(frozen=True)
class Family:
    """A way to turn a timm backbone into a classifier."""

    config: type[Section]
    build: Callable[[nn.Module, int, Any], nn.Module]
    paper: str
    describe: str
    example: str
    """A timm name that fits, for messages."""
    own_size: Callable[[Any], int | None] | None = None
    """config -> what the backbone sees, pixels, in a family that resizes its input itself."""


FAMILIES: dict[str, Family] = {
    "crasmra": Family(
        CraSmraConfig,
        CraSmra,
        CRA_SMRA_PAPER,
        "CRA-SMRA on a timm CNN or ViT that runs in stages",
        "resnet18",
    ),
    "vitms": Family(
        MultiStageVitConfig,
        MultiStageVit,
        MULTI_STAGE_PAPER,
        "multi-stage ViT: photograph, object, parts",
        "deit_tiny_patch16_224",
        own_size=lambda config: config.encoder_px,
    ),
    "timm": Family(BaselineConfig, Baseline, "-", "plain timm backbone with a linear classifier", "resnet18"),
}

NAMED: dict[str, str] = {
    "crasmra-r50": "resnet50",
    "crasmra-r101": "resnet101",
    "crasmra-d161": "densenet161",
    "vitms-b16": "vit_base_patch16_384",
    "vitms-s16": "vit_small_patch16_384",
    "vitms-ti16": "vit_tiny_patch16_384",
}
"""The papers' models: registry name -> timm backbone; the family is the part before the first dash."""


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
    near = nearest(name, [*NAMED, *_examples()])
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
) -> nn.Module:
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
        A module answering ``model(images, want=...) -> ModelOutput``. ``model.input_mean`` and
        ``model.input_std`` are those of the backbone's weights.

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
    model.fixed_px = _image_size(backbone) or cfg["input_size"][-1] if fixed else None  # type: ignore[assignment]
    model.least_px = _image_size(backbone) or 0 if family.own_size else 0  # type: ignore[assignment]
    model.input_mean, model.input_std = tuple(mean), tuple(std)  # type: ignore[assignment]
    return model


def check_input_px(model: nn.Module, input_px: int) -> None:
    """Refuse an input size that a backbone built for one size cannot take, or that is smaller than what the
    looks of a multi-stage model are to hold.

    Raises:
        FgvcError: names the size that fits.
    """
    least = int(model.least_px)  # type: ignore[arg-type]
    if input_px < least:
        raise FgvcError(
            f"The input of {input_px} px is smaller than the {least} px of each look.",
            f"--input-px {least} or more, or --set options.encoder_px={input_px}.",
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


def _examples() -> list[str]:
    return [f"{family}-{b}" for family in FAMILIES for b in (*NAMED.values(), "mobilenetv2_100")]


def _check_backbone(name: str, family: str, backbone: str) -> None:
    if backbone.startswith("hf-hub:") or timm.is_model(backbone):
        return
    own = [known for known in NAMED if known.startswith(family)]
    near = nearest(name, [*own, *(f"{family}-{b}" for b in timm.list_models())])
    raise FgvcError(
        f"No model is called {name!r}: timm has no backbone {backbone!r}.",
        f"Nearest: {', '.join(near)}." if near else "fgvc models lists them.",
        EXIT_USAGE,
    )
