"""What it takes to run a network stage by stage, so that CRAM can stand between its stages.

CRAM's suppressed map X_s of one stage is the INPUT of the next (method.md A), so a finished network's
``features_only`` extraction is not enough. The network itself stays whole, with timm's own parameter
names; a plan only says how to run it. Each kind of network has its own plan.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from fgvc_cli.errors import FgvcError


@dataclass(frozen=True)
class StagePlan(ABC):
    """How a network is cut. Running it, ``state`` is whatever this kind of network carries onward."""

    channels: tuple[int, ...]
    """Channels that each stage puts out."""
    shifts: tuple[float, ...]
    """By how many cells each stage's map lies off, see ``cells.cell_shift``."""

    @abstractmethod
    def start(self, net: nn.Module, images: Tensor) -> Any:
        """Normalised images (B, 3, H, W) -> the state that the first stage takes."""

    @abstractmethod
    def run(self, net: nn.Module, stage: int, state: Any) -> tuple[Tensor, Any]:
        """Run a stage, counted from 0 -> its map (B, C, h, w) and the state with that map in it."""

    @abstractmethod
    def put_back(self, state: Any, onward: Tensor) -> Any:
        """The state with ``onward`` (B, C, h, w), CRAM's X_s, in the place of the stage's map."""

    @abstractmethod
    def features(self, state: Any) -> Tensor:
        """What timm's ``forward_features`` gives, of the state after the last stage."""

    def aligned(self, net: nn.Module) -> Self:
        """The plan with the ``shifts`` of the network's present weights."""
        return self


def network_name(net: nn.Module) -> str:
    """timm's name of a network, for messages."""
    return getattr(net, "pretrained_cfg", {}).get("architecture", type(net).__name__)


def not_staged(net: nn.Module, why: str) -> FgvcError:
    """The refusal of a network whose cut cannot be proven."""
    name = network_name(net)
    return FgvcError(
        f"{name} cannot be run stage by stage: {why.rstrip('.')}.",
        "Choose a CNN such as resnet50 or a ViT such as vit_small_patch16_224, "
        f"or train it plain with --model timm-{name}.",
    )
