"""What the model itself says about where it looked: its stage maps, and the heat that its box comes from.

Stage maps are the channel-averaged activations that Wang et al. (2025) draw in Figs. 4-6. Those of a CNN, and
the heat made of them, find what stands out: with random weights they are much the same, so they are no
evidence of what was learnt (benchmarks/RESULTS.md, "Whether the maps are honest").
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.explain.explanation import HEAT
from fgvc_cli.explain.method import Heats, Method
from fgvc_cli.explain.question import Case
from fgvc_cli.models.output import ModelOutput

_MAY_REPEAT = (HEAT, "rollout")


class Stages(Method):
    """Channel-averaged activations of each stage; of a multi-stage ViT, the attention of its first look."""

    name = "stages"
    describes = "what each stage responds to"
    wants = ("stages",)

    def maps(self, model: nn.Module, images: Tensor, output: ModelOutput, case: Case) -> Heats:
        """One map per stage, as the model names them."""
        if not output.stages:
            raise FgvcError("--method stages: this model gives no stage maps.", None, EXIT_USAGE)
        return output.stages


class ObjectHeat(Method):
    """The map that the model's own object box is cut from."""

    name = "object"
    describes = "the heat that the object box comes from"
    wants = ("heat",)

    def maps(self, model: nn.Module, images: Tensor, output: ModelOutput, case: Case) -> Heats:
        """One map."""
        if output.heat is None:
            raise FgvcError("--method object: this model gives no object heat.", None, EXIT_USAGE)
        return {HEAT: output.heat}


def stage_maps(output: ModelOutput, row: int = 0) -> dict[str, np.ndarray]:
    """The maps of one image of a batch: its stages in the model's order, then ``HEAT``.

    Returns:
        Name -> (h, w) float32 in [0, 1]; see ``unlike``.
    """
    named = dict(output.stages or {})
    if output.heat is not None:
        named[HEAT] = output.heat
    return unlike(named, row)


def unlike(heats: Heats, row: int) -> dict[str, np.ndarray]:
    """The maps of one image; the heat, or the rollout, of a model whose one stage is that map goes."""
    kept: dict[str, np.ndarray] = {}
    for name, maps in heats.items():
        heat = maps[row].float().cpu().numpy()
        repeats = name in _MAY_REPEAT and any(np.array_equal(heat, other) for other in kept.values())
        if not repeats:
            kept[name] = heat
    return kept
