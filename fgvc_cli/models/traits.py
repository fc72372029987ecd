"""What a timm backbone takes, found out without its weights."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fgvc_cli.errors import FgvcError
from fgvc_cli.models.backbones import build_backbone
from fgvc_cli.models.vit_stages import is_vit


class Traits(NamedTuple):
    """Of a backbone."""

    vit: bool
    """A plain ViT, whose layers can learn at rates of their own."""
    drop_path: bool
    """Takes stochastic depth."""


def backbone_traits(name: str) -> Traits:
    """Look at a timm network that has shapes and no numbers, which takes a moment whatever its size.

    Raises:
        FgvcError: an unknown name.
    """
    with torch.device("meta"):
        try:
            return Traits(is_vit(build_backbone(name, drop_path_rate=0.1)), True)
        except FgvcError:
            # An unknown name is refused here again.
            return Traits(is_vit(build_backbone(name)), False)
