"""CRA-SMRA (Wang et al., Neural Processing Letters 57:43, 2025) on any timm CNN or ViT that runs in stages.

Legend: B batch, K classes, Ca unified channels, h w rows and columns of a stage map.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgvc_cli.attention.objects import locate_objects
from fgvc_cli.config import CraSmraConfig
from fgvc_cli.models.backbones import plan_stages
from fgvc_cli.models.cells import align_maps
from fgvc_cli.models.cram import STAGE_MODULES, StageFeatures
from fgvc_cli.models.output import ModelOutput, StageMap, Want, class_probs, scale_maps
from fgvc_cli.models.smram import Smram, top_overlap
from fgvc_cli.models.vit_encoder import record_rollout

BRANCHES = ("stage3", "stage4", "stage5", "concat")


def pool_features(x: Tensor, how: str) -> Tensor:
    """Pool in front of a head: (B, Ca, h, w) -> (B, Ca); ``top5`` is the mean of the 5 largest."""
    flat = x.flatten(2)
    if how == "avg":
        return flat.mean(dim=-1)
    if how == "max":
        return flat.amax(dim=-1)
    return flat.topk(min(5, flat.shape[-1]), dim=-1).values.mean(dim=-1)


class Head(nn.Sequential):
    """Classifier of the paper's relatives, which the paper leaves unstated: (B, D) -> (B, K)."""

    def __init__(self, channels: int, hidden: int, num_classes: int):
        super().__init__(
            nn.BatchNorm1d(channels),
            nn.Linear(channels, hidden),
            nn.BatchNorm1d(hidden),
            nn.ELU(inplace=True),
            nn.Linear(hidden, num_classes),
        )


class CraSmra(nn.Module):
    """Backbone of which the last three stages (3, 4, 5) each pass through CRAM, with SMRAM while training.

    Args:
        backbone: a timm CNN or ViT, cut by ``plan_stages``.
        num_classes: K.
        config: the open points; see ``CraSmraConfig``.

    Raises:
        FgvcError: a backbone that cannot be run stage by stage, or ``config.depths`` that do not fit it.
    """

    branches = BRANCHES
    part_count = 0

    def __init__(self, backbone: nn.Module, num_classes: int, config: CraSmraConfig):
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.plan = plan_stages(backbone, config.depths)
        self.backbone = backbone
        ca = config.feature_channels
        module = STAGE_MODULES[config.channel_attention]
        self.cram = nn.ModuleList(module(channels, ca, config) for channels in self.plan.channels)
        self.smram = Smram(ca, len(self.cram), config.smram_map) if config.smram else None
        self.heads = nn.ModuleDict(
            {
                name: Head(ca * (len(self.cram) if name == "concat" else 1), config.head_hidden, num_classes)
                for name in BRANCHES
            }
        )
        # Equal weights are the paper's mean; ``fuse=weighted`` fits them on a validation split.
        self.heads.register_buffer("fuse_weights", torch.full((len(BRANCHES),), 1 / len(BRANCHES)))

    def forward(self, images: Tensor, want: Collection[Want] = ()) -> ModelOutput:
        """Normalised images (B, 3, H, W) -> ``ModelOutput`` with branches stage3, stage4, stage5, concat."""
        with record_rollout(self.backbone, images, wanted="rollout" in want) as record:
            maps_before, stages = self._stages(images)
        enhanced = [stage.enhanced for stage in stages]
        pooled = [pool_features(x, self.config.head_pool) for x in enhanced]
        joined = torch.cat(pooled, dim=1)
        logits = {name: self.heads[name](x) for name, x in zip(BRANCHES, [*pooled, joined], strict=True)}
        output = ModelOutput(logits=logits, probs=self.fuse(logits))
        maps = self._maps(enhanced) if {"heat", "boxes", "stages"} & {*want} else []
        if "stages" in want:
            output.stages = dict(zip(BRANCHES, maps, strict=False))
        if "heat" in want or "boxes" in want:
            heat = object_heat(maps)
            output.heat = heat if "heat" in want else None
            output.boxes = locate_objects(heat, images.shape[-2:]) if "boxes" in want else None
        if "features" in want:
            named = zip(BRANCHES, maps_before, self.plan.shifts, strict=False)
            output.features = {name: StageMap(x, shift) for name, x, shift in named}
        # The heads pool the patches; CRAM weighs channels and moves nothing from place to place.
        output.rollout = record.map(class_token=False) if record else None
        if "embedding" in want:
            output.embedding = joined
        if self.training and self.smram is not None:
            output.penalties["div"] = self.smram(enhanced)
        if self.training or "stats" in want:
            output.stats = self._stats(stages)
        return output

    def fuse(self, logits: dict[str, Tensor]) -> Tensor:
        """One answer from four: branch logits (B, K) -> probabilities (B, K), by ``config.fuse``."""
        stacked = torch.stack([logits[name].float() for name in BRANCHES])
        if self.config.fuse == "logits":
            return class_probs(stacked.sum(dim=0), self.config.multi_label)
        weights = self.heads.get_buffer("fuse_weights").view(-1, 1, 1)
        return (class_probs(stacked, self.config.multi_label) * weights).sum(dim=0)

    def for_inference(self) -> CraSmra:
        """Evaluation mode with SMRAM taken out: the paper builds it only into the training graph."""
        self.smram = None
        return self.eval()

    def _stages(self, images: Tensor) -> tuple[list[Tensor], list[StageFeatures]]:
        """The map of each stage in front of its module, (B, C, h, w), and what the module made of it."""
        maps: list[Tensor] = []
        stages: list[StageFeatures] = []
        state = self.plan.start(self.backbone, images)
        for index, cram in enumerate(self.cram):
            x, state = self.plan.run(self.backbone, index, state)
            maps.append(x)
            stages.append(cram(x))
            state = self.plan.put_back(state, stages[-1].onward)
        return maps, stages

    def _maps(self, enhanced: list[Tensor]) -> list[Tensor]:
        """Channel-averaged X_e of each stage (Figs. 4-6), each cell in its place, (B, h, w) in [0, 1]."""
        pairs = zip(enhanced, self.plan.shifts, strict=True)
        return [scale_maps(align_maps(x.float().mean(dim=1), shift)) for x, shift in pairs]

    @torch.no_grad()
    def _stats(self, stages: list[StageFeatures]) -> dict[str, Tensor]:
        stats = {"overlap": top_overlap([stage.enhanced.mean(dim=1) for stage in stages])}
        for name, stage in zip(BRANCHES, stages, strict=False):
            if stage.suppressed_share is not None:
                stats[f"suppressed_{name}"] = stage.suppressed_share
        return stats


def object_heat(maps: list[Tensor]) -> Tensor:
    """Where the object is: stage maps in [0, 1] -> one map (B, h, w) of the first one's size, in [0, 1].

    The paper draws the stages apart (Figs. 4-6); one map for the object box is ours: the product of what
    rises above each map's median, so that a place counts where all stages look. On the Aviary it finds the
    object far better than the stages' mean or any one of them (benchmarks/RESULTS.md).
    """
    size = maps[0].shape[-2:]
    resized = torch.stack([F.interpolate(m.unsqueeze(1), size, mode="bilinear").squeeze(1) for m in maps])
    cells = resized.flatten(2)
    # The median as the largest of the smaller half, which exported graphs have an operator for.
    smaller = cells.topk((cells.shape[-1] + 1) // 2, dim=-1, largest=False, sorted=False).values
    background = smaller.amax(dim=-1)[..., None, None]
    return scale_maps((resized - background).clamp_min(0).prod(dim=0))
