"""Attention rollout (Abnar & Zuidema 2020) as a method of explaining."""

from __future__ import annotations

from torch import Tensor, nn

from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.explain.method import Heats, Method
from fgvc_cli.explain.question import Case
from fgvc_cli.models.output import ModelOutput


class Rollout(Method):
    """Where information comes from through all layers of a ViT, whatever class is asked about."""

    name = "rollout"
    describes = "where a ViT's layers attended"
    wants = ("rollout",)

    def maps(self, model: nn.Module, images: Tensor, output: ModelOutput, case: Case) -> Heats:
        """One map on the grid of patches; of a multi-stage ViT that of its first look."""
        if output.rollout is None:
            raise FgvcError(
                "--method rollout needs a plain ViT: this model has no attention to follow through layers.",
                "Try --method occlusion or --method stages.",
                EXIT_USAGE,
            )
        return {self.name: output.rollout}
