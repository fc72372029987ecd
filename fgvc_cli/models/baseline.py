"""Plain timm classifiers behind the same contract, so that a module's gain is one flag away.

Legend: B batch, K classes, D feature width, h w rows and columns of the last feature map.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property

from torch import Tensor, nn

from fgvc_cli.config import BaselineConfig
from fgvc_cli.errors import FgvcError
from fgvc_cli.models.backbones import align_maps, cell_shift, checkpoint_gradients, leaves, plan_stages
from fgvc_cli.models.output import FgvcModel, ModelOutput, StageMap, Want, class_probs, scale_maps
from fgvc_cli.models.vit import (
    StagePlan,
    Tail,
    VitStagePlan,
    is_vit,
    network_name,
    plan_tail,
    record_rollout,
    run_last_block,
)

STAGES = ("stage3", "stage4", "stage5")
LAST = "last_stage"
"""The only one of a network that does not run in stages."""
_STRIDES = (4, 8, 16, 32, 64)


class Baseline(FgvcModel):
    """A timm network with one linear classifier.

    Args:
        backbone: a timm network built without classifier.
        num_classes: K.
        config: see ``BaselineConfig``.
    """

    config: BaselineConfig

    def __init__(self, backbone: nn.Module, num_classes: int, config: BaselineConfig):
        super().__init__(backbone, num_classes, config)
        self.align()
        width = int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]
        self.heads = nn.Sequential(nn.Dropout(config.drop_rate), nn.Linear(width, num_classes))

    def forward(self, images: Tensor, want: Collection[Want] = ()) -> ModelOutput:
        """Normalised images (B, 3, H, W) -> ``ModelOutput`` with the one branch ``main``."""
        # One after another where something of the stages is asked for; else as timm runs them.
        plan = self._stage_plan if {"stages", "features"} & {*want} else None
        recording = record_rollout(self.backbone, images) if "rollout" in want else nullcontext()
        with recording as record:
            features, apart = self._features(images, plan, apart="features" in want)
        pooled = self.backbone.forward_head(features, pre_logits=True)  # type: ignore[operator]
        logits = self.heads(pooled)
        probs = class_probs(logits, self.config.multi_label)
        output = ModelOutput(logits={"main": logits}, probs=probs)
        if {"heat", "boxes", "stages"} & {*want}:
            maps = self._activation(features, images).float()
            stride = round(images.shape[-1] / maps.shape[-1])
            heat = scale_maps(align_maps(maps, self._shifts.get(stride, 0.0)))
            output.heat = heat if "heat" in want else None
            output.stages = self._stage_maps(apart, heat) if "stages" in want else None
            if "boxes" in want:
                output.boxes = self.locate(heat, images.shape[-2:])
        output.features = apart if "features" in want else None
        if record:
            pooled_token = getattr(self.backbone, "global_pool", "token") == "token"
            output.rollout = record.map(class_token=pooled_token and record.prefix_tokens > 0)
        if "embedding" in want:
            output.embedding = pooled
        return output

    def align(self) -> None:
        """See ``FgvcModel.align``."""
        self._shifts = {stride: cell_shift(leaves(self.backbone), stride) for stride in _STRIDES}
        self.__dict__.pop("_stage_plan", None)  # it has shifts of its own

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See ``backbones.checkpoint_gradients``."""
        checkpoint_gradients(self.backbone, enable)

    @cached_property
    def _stage_plan(self) -> StagePlan | None:
        """The stages that CRA-SMRA has on this network, proven once; None where it does not run in stages."""
        try:
            plan = plan_stages(self.backbone, trim=False)
        except FgvcError:
            return None
        if not isinstance(plan, VitStagePlan):
            return plan
        # Gradients are taken inside the last block, see ``run_last_block``.
        depth = plan.ends[-1]
        return replace(plan, ends=(*plan.ends[:-1], depth - 1, depth), shifts=(*plan.shifts, 0.0))

    @cached_property
    def _tail_plan(self) -> VitStagePlan:
        """Proven once."""
        return plan_tail(self.backbone)

    def _features(
        self, images: Tensor, plan: StagePlan | None, *, apart: bool
    ) -> tuple[Tensor, dict[str, StageMap]]:
        """What the network's head takes, and the maps (B, C, h, w) it is computed from: those of the stages,
        of a ViT's last one what its pooling reads; without stages the last alone, where ``apart``."""
        if plan is not None:
            maps, state = [], plan.start(self.backbone, images)
            for stage in range(len(STAGES)):
                x, state = plan.run(self.backbone, stage, state)
                state = plan.put_back(state, x)
                maps.append(x)
            if isinstance(plan, VitStagePlan):
                maps[-1], state = run_last_block(self.backbone, plan, maps[-1], state)
            named = zip(STAGES, maps, plan.shifts, strict=False)
            return plan.features(state), {name: StageMap(x, shift) for name, x, shift in named}
        if apart and is_vit(self.backbone):
            tail = Tail(self.backbone, self._tail_plan)
            return tail(images), {LAST: StageMap(tail.patches, 0.0)}
        features = self.backbone.forward_features(images)  # type: ignore[operator]
        if not apart:
            return features, {}
        if features.ndim != 4:
            raise FgvcError(f"{network_name(self.backbone)} has no feature map to take gradients of.")
        channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        stage = features.permute(0, 3, 1, 2) if channels_last else features
        shift = self._shifts.get(round(images.shape[-1] / stage.shape[-1]), 0.0)
        return stage.permute(0, 2, 3, 1) if channels_last else stage, {LAST: StageMap(stage, shift)}

    def _stage_maps(self, apart: dict[str, StageMap], heat: Tensor) -> dict[str, Tensor]:
        """Channel-averaged maps (B, h, w) in [0, 1] by stage; that of the last one is the heat."""
        before = list(apart.items())[:-1] if len(apart) > 1 else []
        maps = {name: scale_maps(align_maps(x.float().mean(dim=1), shift)) for name, (x, shift) in before}
        return maps | {STAGES[-1] if maps else LAST: heat}

    def _activation(self, features: Tensor, images: Tensor) -> Tensor:
        """Channel-averaged last features as a map (B, h, w); tokens go back to their grid."""
        if features.ndim == 3:
            tokens = features[:, int(getattr(self.backbone, "num_prefix_tokens", 0)) :].mean(dim=-1)
            height, width = images.shape[-2:]
            rows = round((tokens.shape[1] * height / width) ** 0.5)
            return tokens.view(tokens.shape[0], rows, -1)
        channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        return features.mean(dim=-1 if channels_last else 1)
