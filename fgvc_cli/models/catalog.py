"""Names of models, what the families are for, what each listed model costs. Nothing heavy is imported here.

The costs are recorded in ``costs.json``, as building six models to list them took half a minute;
``python benchmarks/model_costs.py --write`` measures them again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IN_WORDS = (
    "Two kinds of model tell look-alike classes apart: crasmra-, a CNN that looks once and is fast (take it "
    "for millions of images, or on a CPU), and vitms-, a ViT that looks again at the object and its parts, "
    "slower and more accurate in our measurements (take it where accuracy counts)."
)

NAMED: dict[str, str] = {
    "crasmra-r50": "resnet50",
    "crasmra-r101": "resnet101",
    "crasmra-d161": "densenet161",
    "vitms-b16": "vit_base_patch16_384",
    "vitms-s16": "vit_small_patch16_384",
    "vitms-ti16": "vit_tiny_patch16_384",
}
"""The papers' models: registry name -> timm backbone; the family is the part before the first dash."""

LISTED: dict[str, int] = dict.fromkeys(NAMED, 448) | {
    "crasmra-mobilenetv2_100": 224,
    "vitms-vit_tiny_patch16_224": 448,
    "timm-resnet50": 448,
}
"""What ``fgvc models`` lists -> side of the input that its cost is recorded for, pixels."""

COSTS_FILE = Path(__file__).with_name("costs.json")
COST_CLASSES = 200
"""K of the models whose cost is recorded."""


@dataclass(frozen=True)
class FamilyText:
    """A family as ``fgvc models`` describes it."""

    describe: str
    example: str
    """A timm name that fits, for messages."""


FAMILY_TEXTS = {
    "crasmra": FamilyText("CRA-SMRA (Wang et al. 2025) on a CNN or ViT that runs in stages", "resnet18"),
    "vitms": FamilyText(
        "multi-stage ViT (Conde & Turgutlu 2021): image, object, parts", "deit_tiny_patch16_224"
    ),
    "timm": FamilyText("plain backbone with a linear classifier, to compare with", "resnet18"),
}


@dataclass(frozen=True)
class Cost:
    """What one forward pass in evaluation mode takes, see ``registry.compute_cost``."""

    name: str
    backbone: str
    """timm name."""
    input_px: int
    """Side of the input, pixels."""
    parameters: int
    gmac: float
    """Giga multiply-accumulates."""


def read_costs() -> list[Cost]:
    """The recorded cost of each listed model, in their order."""
    document: dict[str, dict[str, Any]] = json.loads(COSTS_FILE.read_text(encoding="utf-8"))
    return [Cost(name=name, **document[name]) for name in LISTED]
