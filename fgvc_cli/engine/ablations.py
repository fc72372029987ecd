"""The tables that ``fgvc train --ablate`` fills: rows as settings laid over one training.

Every row of a table is trained with the settings that the named model has by its recipe and by the command
line, and differs from it only as said here. A new table is one entry of ``ABLATIONS``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fgvc_cli.config import BaselineConfig, MultiStageVitConfig, TrainConfig, build, merge
from fgvc_cli.errors import EXIT_USAGE, FgvcError, nearest


@dataclass(frozen=True)
class Variant:
    """A row."""

    name: str
    """In tables, and in front of the seed in the name of a run folder."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Nested, laid over those of the training."""
    plain: bool = False
    """The backbone alone, with a linear classifier."""
    equal: bool = False
    """Plain, of a ViT: given as many patches as all crops of the multi-stage model have together."""


@dataclass(frozen=True)
class Ablation:
    """A table."""

    name: str
    family: str
    """Of the models that it takes apart."""
    about: str
    variants: tuple[Variant, ...]
    reference: str
    """The row that the others are compared with."""

    @property
    def paths(self) -> set[str]:
        """Settings that the rows fix, as ``--set`` names them."""
        return {path for variant in self.variants for path in _paths(variant.settings)}


@dataclass(frozen=True)
class Cell:
    """One training of a table."""

    variant: str
    seed: int
    values: dict[str, Any]
    """Of ``TrainConfig``, nested."""

    @property
    def name(self) -> str:
        """Of its run folder."""
        return f"{self.variant}-s{self.seed}"


def _option(name: str, value: Any) -> dict[str, Any]:
    return {"options": {name: value}}


def _sweep(section: str, field_name: str, values: tuple[Any, ...]) -> tuple[Variant, ...]:
    return tuple(Variant(f"{field_name}={value}", {section: {field_name: value}}) for value in values)


def _modules(attention: str, smram: bool, **options: Any) -> dict[str, Any]:
    return {"options": {"channel_attention": attention, "smram": smram, **options}}


_PAPER_MASK = {"mask_norm": "none", "min_hidden": 1}
_ALIVE_MASK = {"mask_norm": "layer", "min_hidden": 32}
_MODULE_RATES = ("lr_cram", "lr_smram", "lr_mask")
_TABLE3 = (
    Variant("plain", plain=True),
    Variant("heads", _modules("none", False)),
    Variant("cbam", _modules("cbam", False)),
    Variant("cram", _modules("cram", False)),
    Variant("cram+smram", _modules("cram", True)),
)
_DELTAS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_GAMMAS = (0.0, 0.5, 1.0, 1.5, 2.0)

ABLATIONS: dict[str, Ablation] = {
    ablation.name: ablation
    for ablation in (
        Ablation(
            "table3",
            "crasmra",
            "Table 3 of Wang et al. 2025: the backbone; with CBAM, CRAM, CRAM and SMRAM. Ours: heads, the "
            "necks and classifiers of three stages without attention, for what is theirs is not CRAM's",
            _TABLE3,
            "plain",
        ),
        Ablation(
            "masks",
            "crasmra",
            "As table3, with CRAM's MLP as the paper has it, and a normalised and wider one, which keeps "
            "its masks alive",
            (
                *_TABLE3[:3],
                Variant("cram-paper", _modules("cram", False, **_PAPER_MASK)),
                Variant("cram-alive", _modules("cram", False, **_ALIVE_MASK)),
                Variant("cram-alive+smram", _modules("cram", True, **_ALIVE_MASK)),
            ),
            "plain",
        ),
        Ablation(
            "delta",
            "crasmra",
            "Table 4: the threshold of CRAM's suppression; the values are ours, the paper's text has none",
            _sweep("options", "delta", _DELTAS),
            "delta=0.9",
        ),
        Ablation(
            "gamma",
            "crasmra",
            "Table 5: the weight of the diversity loss; values as for delta",
            _sweep("loss", "gamma", _GAMMAS),
            "gamma=1.0",
        ),
        Ablation(
            "necks",
            "crasmra",
            "Conv_layer of Eq. 3, ours",
            _sweep("options", "neck", ("light", "pmg")),
            "neck=light",
        ),
        Ablation(
            "head-pool",
            "crasmra",
            "Pooling before each head, ours",
            _sweep("options", "head_pool", ("avg", "max", "top5")),
            "head_pool=top5",
        ),
        Ablation(
            "smram-map",
            "crasmra",
            "What SMRAM's maps are made of, ours",
            _sweep("options", "smram_map", ("phi", "mean")),
            "smram_map=phi",
        ),
        Ablation(
            "stages",
            "vitms",
            "Stages of the multi-stage ViT (Conde & Turgutlu 2021), and without erasing; ours: the plain ViT "
            "on what its encoder sees, and on an image of as many patches as all its crops together. The "
            "same crops at test time alone: fgvc eval --weights RUN --stages all on a row of stages=main",
            (
                Variant("plain", plain=True),
                Variant("plain-equal", plain=True, equal=True),
                *_sweep("options", "stages", ("main", "main+object", "all")),
                Variant("no-erasing", {"options": {"stages": "all", "erase_prob": 0.0}}),
            ),
            "stages=main",
        ),
    )
}


def find_ablation(name: str) -> Ablation:
    """A table by its name.

    Raises:
        FgvcError: an unknown name, with the nearest known ones.
    """
    if name in ABLATIONS:
        return ABLATIONS[name]
    near = nearest(name, ABLATIONS)
    raise FgvcError(
        f"--ablate got {name!r}, expected {', '.join(ABLATIONS)}.",
        f"Nearest: {', '.join(near)}." if near else None,
        EXIT_USAGE,
    )


def order_variants(names: list[str]) -> list[str]:
    """Rows as the first table has them that knows them all; others by name."""
    for ablation in ABLATIONS.values():
        order = [variant.name for variant in ablation.variants]
        if {*names} <= {*order}:
            return sorted(names, key=order.index)
    return sorted(names)


def table_cells(ablation: Ablation, values: dict[str, Any], seeds: list[int]) -> list[Cell]:
    """All trainings of a table, seed by seed: a table that is cut is whole for its first seeds.

    Args:
        values: of ``TrainConfig`` for the model that is taken apart, recipe and all.

    Raises:
        FgvcError: a model of another family; settings that do not work.
    """
    family = str(values["model"]).partition("-")[0]
    if family != ablation.family:
        fitting = [other.name for other in ABLATIONS.values() if other.family == family]
        raise FgvcError(
            f"--ablate {ablation.name} takes a {ablation.family}- model apart, got {values['model']}.",
            f"For {family}- there is --ablate {', '.join(fitting)}."
            if fitting
            else f"Give --model {ablation.family}-<timm name>; the plain backbone is a row of table3.",
            EXIT_USAGE,
        )
    rows = {variant.name: _variant_values(variant, values) for variant in ablation.variants}
    return [
        Cell(variant.name, seed, rows[variant.name] | {"seed": seed})
        for seed in seeds
        for variant in ablation.variants
    ]


def _variant_values(variant: Variant, values: dict[str, Any]) -> dict[str, Any]:
    return _plain(values, variant.equal) if variant.plain else merge(values, variant.settings)


def _plain(values: dict[str, Any], equal: bool) -> dict[str, Any]:
    """The same training for the backbone alone.

    A fair baseline: its classifier, which is all of it that starts from nothing, learns at the rate of what
    the modules start from nothing, where that is higher than the rate of the heads.
    """
    from fgvc_cli.models.registry import resolve

    config: TrainConfig = build(TrainConfig, values)
    resolved = resolve(config.model)
    if resolved.family.own_size:
        values = merge(values, {"preprocess": _plain_size(config, resolved.backbone, equal)})
        rate = config.optim.lr_heads
    else:
        rate = max(config.optim.lr_heads, config.optim.lr_cram)
    options = {name: value for name, value in config.options.items() if name in BaselineConfig.model_fields}
    model = f"timm-{resolved.backbone}"
    # Rates of what it has not would only look like a difference.
    rates = {name: value for name, value in values.get("optim", {}).items() if name not in _MODULE_RATES}
    return values | {"model": model, "options": options, "optim": rates | {"lr_heads": rate}}


def _plain_size(config: TrainConfig, backbone: str, equal: bool) -> dict[str, int]:
    """Input of a plain ViT beside a multi-stage one: what its encoder sees, or as many patches as the image,
    the object and the parts have together, to the nearest whole patch."""
    import timm

    options = build(MultiStageVitConfig, config.options)
    cfg = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
    side = options.encoder_px or (cfg.input_size[-1] if cfg else config.preprocess.input_px)
    if equal:
        patch = int(found[1]) if (found := re.search(r"patch(\d+)", backbone)) else 16
        side = round(side * math.sqrt(2 + options.parts) / patch) * patch
    return {"input_px": side, "resize_px": side}


def _paths(settings: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{name}.")
        else:
            yield prefix + name
