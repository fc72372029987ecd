"""CRA-SMRA (Wang et al., Neural Processing Letters 57:43, 2025) on any timm CNN or ViT that runs in stages.

Legend: B batch, K classes, Ca unified channels, h w rows and columns of a stage map.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from itertools import combinations
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from timm.layers.cbam import CbamModule
from torch import Tensor, nn

from fgvc_cli.config import CraSmraConfig
from fgvc_cli.models.backbones import align_maps, plan_stages
from fgvc_cli.models.output import (
    SUPPRESSED,
    FgvcModel,
    ModelOutput,
    StageMap,
    Want,
    class_probs,
    over_maximum,
    scale_maps,
)
from fgvc_cli.models.vit import record_rollout


class StageFeatures(NamedTuple):
    """What a stage module hands on."""

    enhanced: Tensor
    """X_e (B, Ca, H, W), to the head and to SMRAM."""
    onward: Tensor
    """X_s (B, C, H, W), the input of the next stage."""
    suppressed: Tensor | None
    """(C,), the fraction of the images in which Eq. 5 suppressed each channel; None without suppression."""
    saturated: Tensor | None
    """Scalar, the fraction of channels whose I lies outside [0.01, 0.99]; None without a mask."""


def conv_layer(channels: int, out_channels: int, neck: str) -> nn.Sequential:
    """Conv_layer of Eq. 3: (B, C, H, W) -> (B, Ca, H, W).

    The paper says only that it adjusts the channel number. ``light``: one 1x1 convolution; ``pmg``: the block
    of the paper's relatives, 1x1 to Ca/2 then 3x3 to Ca. Each with BN and ReLU.
    """

    def block(cin: int, cout: int, kernel: int) -> list[nn.Module]:
        conv = nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=False)
        return [conv, nn.BatchNorm2d(cout), nn.ReLU(inplace=True)]

    if neck == "light":
        return nn.Sequential(*block(channels, out_channels, 1))
    return nn.Sequential(*block(channels, out_channels // 2, 1), *block(out_channels // 2, out_channels, 3))


class Cram(nn.Module):
    """Channel re-attention module, Eq. 1-6.

    One mask I strengthens the informative channels for this stage's output X_e and, turned round,
    suppresses them in what the next stage sees, X_s, so that it must find evidence elsewhere.

    Args:
        channels: C of the stage.
        out_channels: Ca of X_e.
        config: the open points; see ``CraSmraConfig``.
    """

    def __init__(self, channels: int, out_channels: int, config: CraSmraConfig):
        super().__init__()
        hidden = max(config.min_hidden, channels // config.reduction)
        # One for both pooled vectors, as the MLP is shared.
        self.norm = nn.LayerNorm(channels) if config.mask_norm == "layer" else None
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1)
        )
        if config.mask_init == "zero":
            for parameter in self.mlp[-1].parameters():
                nn.init.zeros_(parameter)
        self.conv_layer = conv_layer(channels, out_channels, config.neck)
        self.mask_sum = config.mask_sum
        self.softmax_of = config.softmax_of
        self.suppress_rule = config.suppress_rule
        self.delta = config.delta
        self.omega = config.omega
        if self.suppress_rule == "threshold" and self.softmax_of == "mask" and self.delta <= math.exp(-1):
            warnings.warn(
                f"delta {self.delta} suppresses every channel: I*/max I* is never below exp(-1) = 0.368.",
                stacklevel=2,
            )

    def mask_logits(self, x: Tensor) -> Tensor:
        """The mask before its sigmoid (Eq. 1-2): (B, C, H, W) -> (B, C, 1, 1)."""
        # In float32 whatever the autocast: bf16 cannot tell channels near the threshold apart.
        with torch.autocast(x.device.type, enabled=False):
            average = x.float().mean(dim=(2, 3), keepdim=True)
            maximum = x.float().amax(dim=(2, 3), keepdim=True)
            if self.mask_sum == "before_mlp":
                return self._mlp(average + maximum)
            return self._mlp(average) + self._mlp(maximum)

    def _mlp(self, pooled: Tensor) -> Tensor:
        if self.norm is not None:
            pooled = self.norm(pooled.flatten(1))[..., None, None]
        return self.mlp(pooled)

    def suppression(self, logits: Tensor) -> Tensor:
        """S of Eq. 4-5, piecewise constant, so it carries no gradient: (B, C, 1, 1) -> (B, C, 1, 1)."""
        scores = logits.detach().float()
        if self.softmax_of == "mask":
            scores = scores.sigmoid()
        attention = scores.softmax(dim=1)
        if self.suppress_rule == "threshold":
            chosen = attention >= self.delta * attention.amax(dim=1, keepdim=True)
        else:
            count = max(1, round((1 - self.delta) * attention.shape[1]))
            top = attention.topk(count, dim=1).indices
            chosen = torch.zeros_like(attention, dtype=torch.bool).scatter_(1, top, True)
        return torch.where(chosen, self.omega, 1.0)

    def forward(self, x: Tensor) -> StageFeatures:
        """(B, C, H, W) -> X_e (B, Ca, H, W), X_s (B, C, H, W) and what the mask did."""
        logits = self.mask_logits(x)
        mask = logits.sigmoid()
        enhanced = self.conv_layer(mask.to(x.dtype) * x)
        factors = self.suppression(logits)
        suppressed = (factors != 1).float().mean(dim=(0, 2, 3))
        saturated = ((mask.detach() - 0.5).abs() > 0.49).float().mean()
        return StageFeatures(enhanced, factors.to(x.dtype) * x, suppressed, saturated)


class CbamStage(nn.Module):
    """CBAM (Woo et al. 2018, timm's) where CRAM stands, the comparison of Table 3.

    CBAM has one output; it goes both to the head, through the same Conv_layer, and to the next stage.
    """

    def __init__(self, channels: int, out_channels: int, config: CraSmraConfig):
        super().__init__()
        self.cbam = CbamModule(channels, rd_ratio=1 / config.reduction)
        self.conv_layer = conv_layer(channels, out_channels, config.neck)

    def forward(self, x: Tensor) -> StageFeatures:
        """(B, C, H, W) -> X_e (B, Ca, H, W) and the refined map (B, C, H, W)."""
        refined = self.cbam(x)
        return StageFeatures(self.conv_layer(refined), refined, None, None)


class PlainStage(nn.Module):
    """No attention: the stage's map through Conv_layer, and unchanged to the next stage."""

    def __init__(self, channels: int, out_channels: int, config: CraSmraConfig):
        super().__init__()
        self.conv_layer = conv_layer(channels, out_channels, config.neck)

    def forward(self, x: Tensor) -> StageFeatures:
        """(B, C, H, W) -> X_e (B, Ca, H, W) and x itself."""
        return StageFeatures(self.conv_layer(x), x, None, None)


STAGE_MODULES: dict[str, type[nn.Module]] = {"cram": Cram, "cbam": CbamStage, "none": PlainStage}


class Smram(nn.Module):
    """Makes the stages look at different places, Eq. 7-9.

    Args:
        channels: Ca of every stage's X_e.
        stages: number of stages.
        source: ``phi``, a learnt 1x1 convolution and BN per stage (paper), or ``mean``, the channel mean of
            X_e (ours). With ``phi`` the convolution alone can lower the loss while the features stay as
            they are; ``mean`` leaves only the features to do it.
    """

    def __init__(self, channels: int, stages: int = 3, source: str = "phi"):
        super().__init__()
        self.source = source
        self.phi = nn.ModuleList()
        if source == "phi":
            self.phi.extend(
                nn.Sequential(nn.Conv2d(channels, 1, 1), nn.BatchNorm2d(1)) for _ in range(stages)
            )

    def attention(self, features: Sequence[Tensor]) -> Tensor:
        """P of Eq. 7: stage maps X_e (B, Ca, H_l, W_l) -> (B, stages, N), each row summing to 1."""
        height, width = features[-1].shape[-2:]
        pooled = [F.adaptive_avg_pool2d(x, (height, width)) for x in features]
        if self.source == "phi":
            maps = [phi(x) for phi, x in zip(self.phi, pooled, strict=True)]
        else:
            maps = [x.mean(dim=1, keepdim=True) for x in pooled]
        return torch.cat(maps, dim=1).flatten(2).float().softmax(dim=-1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """L_div of Eq. 9, averaged over the batch: a scalar in [0, 1 - 1/stages]."""
        return diversity_loss(self.attention(features))


def diversity_loss(attention: Tensor) -> Tensor:
    """Eq. 7 (cross-channel max pooling), 8 and 9: P (B, stages, N) -> scalar.

    Identical maps give 1 - 1/stages (2/3 for three), disjoint maps 0.
    """
    matching = attention.amax(dim=1).sum(dim=-1) / attention.shape[1]
    return (1 - matching).mean()


@torch.no_grad()
def top_overlap(maps: Sequence[Tensor], share: float = 0.1) -> Tensor:
    """How much the stages' strongest positions coincide, whatever SMRAM's own maps say.

    Args:
        maps: channel-averaged stage maps (B, H_l, W_l), pooled here to the size of the last.
        share: share of positions that count as strongest.

    Returns:
        Scalar in [0, 1]: mean over pairs of stages and images of |A and B| / |A|. Chance level is ``share``.
    """
    height, width = maps[-1].shape[-2:]
    flat = [F.adaptive_avg_pool2d(m.float().unsqueeze(1), (height, width)).flatten(1) for m in maps]
    count = max(1, round(share * flat[-1].shape[1]))
    tops = [torch.zeros_like(m).scatter_(1, m.topk(count, dim=1).indices, 1.0) for m in flat]
    pairs = [(a * b).sum(dim=1).mean() / count for a, b in combinations(tops, 2)]
    return torch.stack(pairs).mean()


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


class CraSmra(FgvcModel):
    """Backbone of which the last three stages (3, 4, 5) each pass through CRAM, with SMRAM while training.

    Args:
        backbone: a timm CNN or ViT, cut by ``plan_stages``.
        num_classes: K.
        config: the open points; see ``CraSmraConfig``.

    Raises:
        FgvcError: a backbone that cannot be run stage by stage, or ``config.depths`` that do not fit it.
    """

    branches = BRANCHES
    config: CraSmraConfig

    def __init__(self, backbone: nn.Module, num_classes: int, config: CraSmraConfig):
        super().__init__(backbone, num_classes, config)
        self.plan = plan_stages(backbone, config.depths)
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
        recording = record_rollout(self.backbone, images) if "rollout" in want else nullcontext()
        with recording as record:
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
            heat = object_heat(maps, floor=self.config.heat_floor, smooth=self.config.heat_smooth)
            output.heat = heat if "heat" in want else None
            if "boxes" in want:
                output.boxes = self.locate(heat, images.shape[-2:])
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

    def align(self) -> None:
        """See ``FgvcModel.align``."""
        self.plan = self.plan.aligned(self.backbone)

    def for_inference(self) -> Self:
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
            if stage.suppressed is not None and stage.saturated is not None:
                stats[f"{SUPPRESSED}_{name}"] = stage.suppressed
                stats[f"mask_saturated_{name}"] = stage.saturated
        return stats


def object_heat(maps: list[Tensor], *, floor: float = 0.0, smooth: bool = False) -> Tensor:
    """Where the object is: stage maps in [0, 1] -> one map (B, h, w) of the first one's size, in [0, 1].

    The paper draws the stages apart (Figs. 4-6); one map for the object box is ours: the product of what
    rises above each map's median, so that a place counts where all stages look. On the Aviary it finds the
    object far better than the stages' mean or any one of them (benchmarks/RESULTS.md).

    Args:
        floor: what a place keeps of each map, of its maximum, where it does not rise: 0 lets each stage veto.
        smooth: average each map over about a cell of the next one first.
    """
    if smooth:
        maps = [_average(m, 2 * (len(maps) - i) - 1) for i, m in enumerate(maps)]
    size = maps[0].shape[-2:]
    resized = torch.stack([F.interpolate(m.unsqueeze(1), size, mode="bilinear").squeeze(1) for m in maps])
    cells = resized.flatten(2)
    # The median as the largest of the smaller half, which exported graphs have an operator for.
    smaller = cells.topk((cells.shape[-1] + 1) // 2, dim=-1, largest=False, sorted=False).values
    background = smaller.amax(dim=-1)[..., None, None]
    risen = (resized - background).clamp_min(0)
    if floor:
        risen = over_maximum(risen.flatten(0, 1)).view_as(risen) + floor
    return scale_maps(risen.prod(dim=0))


def _average(maps: Tensor, cells: int) -> Tensor:
    """Maps (B, h, w) averaged over a square of an odd number of cells; the border repeats."""
    margin = (cells // 2,) * 4
    return F.avg_pool2d(F.pad(maps[:, None], margin, mode="replicate"), cells, stride=1)[:, 0]
