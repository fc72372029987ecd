"""Plain timm classifiers behind the same contract, so that a module's gain is one flag away.

Legend: B batch, K classes, D feature width, h w rows and columns of the last feature map.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

from torch import Tensor, nn

from fgvc_cli.attention.objects import locate_objects
from fgvc_cli.config import BaselineConfig
from fgvc_cli.errors import FgvcError
from fgvc_cli.models.backbones import checkpoint_gradients
from fgvc_cli.models.cells import align_maps, cell_shift, leaves
from fgvc_cli.models.output import ModelOutput, StageMap, Want, class_probs, scale_maps
from fgvc_cli.models.stage_plan import network_name
from fgvc_cli.models.vit_encoder import record_rollout
from fgvc_cli.models.vit_stages import Tail, VitStagePlan, is_vit, plan_tail


class Baseline(nn.Module):
    """A timm network with one linear classifier.

    Args:
        backbone: a timm network built without classifier.
        num_classes: K.
        config: see ``BaselineConfig``.
    """

    branches = ("main",)
    part_count = 0

    def __init__(self, backbone: nn.Module, num_classes: int, config: BaselineConfig):
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.backbone = backbone
        width = int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]
        self.heads = nn.Sequential(nn.Dropout(config.drop_rate), nn.Linear(width, num_classes))

    def forward(self, images: Tensor, want: Collection[Want] = ()) -> ModelOutput:
        """Normalised images (B, 3, H, W) -> ``ModelOutput`` with the one branch ``main``."""
        tail = self._tail_plan if "features" in want and is_vit(self.backbone) else None
        with record_rollout(self.backbone, images, wanted="rollout" in want) as record:
            features, stage = self._features(images, tail, apart="features" in want)
        pooled = self.backbone.forward_head(features, pre_logits=True)  # type: ignore[operator]
        logits = self.heads(pooled)
        probs = class_probs(logits, self.config.multi_label)
        output = ModelOutput(logits={"main": logits}, probs=probs)
        if {"heat", "boxes", "stages"} & {*want}:
            maps = self._activation(features, images).float()
            stride = round(images.shape[-1] / maps.shape[-1])
            heat = scale_maps(align_maps(maps, cell_shift(leaves(self.backbone), stride)))
            output.heat = heat if "heat" in want else None
            output.stages = {"last_stage": heat} if "stages" in want else None
            output.boxes = locate_objects(heat, images.shape[-2:]) if "boxes" in want else None
        if stage is not None:
            shift = cell_shift(leaves(self.backbone), round(images.shape[-1] / stage.shape[-1]))
            output.features = {"last_stage": StageMap(stage, shift)}
        if record:
            pooled_token = getattr(self.backbone, "global_pool", "token") == "token"
            output.rollout = record.map(class_token=pooled_token and record.prefix_tokens > 0)
        if "embedding" in want:
            output.embedding = pooled
        return output

    def for_inference(self) -> Baseline:
        """Evaluation mode."""
        return self.eval()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See ``backbones.checkpoint_gradients``."""
        checkpoint_gradients(self.backbone, enable)

    @cached_property
    def _tail_plan(self) -> VitStagePlan:
        """Proven once."""
        return plan_tail(self.backbone)

    def _features(
        self, images: Tensor, plan: VitStagePlan | None, *, apart: bool
    ) -> tuple[Tensor, Tensor | None]:
        """What the network's head takes; where ``apart``, also the map (B, C, h, w) it is computed from."""
        if not apart:
            return self.backbone.forward_features(images), None  # type: ignore[operator]
        if plan is not None:
            tail = Tail(self.backbone, plan)
            return tail(images), tail.patches
        features = self.backbone.forward_features(images)  # type: ignore[operator]
        if features.ndim != 4:
            raise FgvcError(f"{network_name(self.backbone)} has no feature map to take gradients of.")
        if getattr(self.backbone, "output_fmt", "NCHW") != "NHWC":
            return features, features
        stage = features.permute(0, 3, 1, 2)
        return stage.permute(0, 2, 3, 1), stage

    def _activation(self, features: Tensor, images: Tensor) -> Tensor:
        """Channel-averaged last features as a map (B, h, w); tokens go back to their grid."""
        if features.ndim == 3:
            tokens = features[:, int(getattr(self.backbone, "num_prefix_tokens", 0)) :].mean(dim=-1)
            height, width = images.shape[-2:]
            rows = round((tokens.shape[1] * height / width) ** 0.5)
            return tokens.view(tokens.shape[0], rows, -1)
        channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        return features.mean(dim=-1 if channels_last else 1)
