"""What every model takes, is and answers: a base class and one small named structure, for all families.

Legend: B batch, K classes, h w rows and columns of a map, P parts, D embedding width, S side of the
input.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgvc_cli.attention.objects import locate_objects
from fgvc_cli.config import IMAGENET_MEAN, IMAGENET_STD, BackboneOptions, Preprocess, Triple

Want = Literal[
    "heat", "boxes", "parts", "stages", "object_heat", "erased", "embedding", "stats", "features", "rollout"
]
WANTS: tuple[Want, ...] = get_args(Want)


class StageMap(NamedTuple):
    """A feature map that everything after it is computed from."""

    values: Tensor
    """(B, C, h, w), in the graph of the logits: their gradient with respect to it is that of the stage."""
    shift: float
    """By how many cells it lies off, see ``backbones.align_maps``."""


@dataclass
class ModelOutput:
    """The answer of ``model(images, want=...)``.

    ``logits`` and ``probs`` are always there, and ``part_logits`` from a model that looks at parts; every
    other field only when its name is in ``want`` (``penalties`` only in training mode). A model without
    parts leaves ``parts`` None.
    """

    logits: dict[str, Tensor]
    """Branch name -> (B, K), unnormalised. The family's order: stages then concat; main, object, parts.
    A row is NaN where a cascade stopped before that branch."""
    probs: Tensor
    """Fused probabilities (B, K); rows sum to 1, but for a multi-label model, where each stands alone."""
    heat: Tensor | None = None
    """Where the model looked, (B, h, w), each map scaled to [0, 1]."""
    boxes: Tensor | None = None
    """Object boxes (B, 4) float, xyxy in pixels of the model's input, end-exclusive."""
    parts: Tensor | None = None
    """Part boxes (B, P, 4), as ``boxes``."""
    part_logits: Tensor | None = None
    """What each part crop says alone, (B, P, K); ``logits["parts"]`` gives their mean probabilities."""
    object_heat: Tensor | None = None
    """Where the model looked inside the object box at its second look, (B, h, w) over ``boxes``."""
    erased: Tensor | None = None
    """Pixels that attention-guided erasing takes away in training, bool (B, H, W) over the input."""
    stages: dict[str, Tensor] | None = None
    """Stage name -> (B, h, w), channel-averaged activation, each map scaled to [0, 1]."""
    features: dict[str, StageMap] | None = None
    """Stage name -> the stage's own map. Of a ViT's last stage the patches that its pooling reads: of a
    class token, which reads none that come out of the last block, those behind that block's first norm."""
    rollout: Tensor | None = None
    """Attention rollout of the first look, (B, h, w) in [0, 1]; None where attention cannot be mapped."""
    embedding: Tensor | None = None
    """The pooled feature in front of the last head, (B, D)."""
    penalties: dict[str, Tensor] = field(default_factory=dict)
    """Scalar loss terms that the model computes itself while training, e.g. ``div`` (Eq. 9)."""
    stats: dict[str, Tensor] = field(default_factory=dict)
    """Worth logging, means over the images: scalars (``overlap``, ``mask_saturated_stage3``), or one rate per
    channel (``suppressed_stage3``, (C,)), of which ``summarize_stats`` makes scalars; training or
    ``want=("stats",)``."""


SUPPRESSED = "suppressed"
"""How a rate of suppression per channel is called among the stats, with the stage behind it."""
_ROUNDING = 1e-6
"""A mean of ones may be a little less than 1: a card multiplies their sum with the rounded 1 / n."""


def summarize_stats(means: Mapping[str, Tensor]) -> dict[str, float]:
    """``ModelOutput.stats``, averaged over all images of a split -> scalars.

    Of ``suppressed_<stage>``, the mean over the channels, and ``mask_variation_<stage>``: the fraction of
    channels that are suppressed in some of the images and not in others. Where that is 0, the suppression is
    the same for every image, and CRAM re-attends to nothing.
    """
    result: dict[str, float] = {}
    for name, value in means.items():
        result[name] = float(value.mean())
        kind, _, stage = name.partition("_")
        if kind == SUPPRESSED and value.dim():
            varying = (value > _ROUNDING) & (value < 1 - _ROUNDING)
            result[f"mask_variation_{stage}"] = float(varying.double().mean())
    return result


class FgvcModel(nn.Module, ABC):
    """Base of every family.

    Args:
        backbone: a timm network.
        num_classes: K.
        config: the family's settings.
    """

    fixed_px: int | None = None
    """The only input size that the backbone takes, pixels; None: it takes others."""
    least_px: int = 0
    """Smallest input, pixels."""
    input_mean: Triple = IMAGENET_MEAN
    """Per-channel mean of the input in [0, 1] that the weights expect."""
    input_std: Triple = IMAGENET_STD
    """Standard deviation, likewise."""

    def __init__(self, backbone: nn.Module, num_classes: int, config: BackboneOptions):
        super().__init__()
        self.config: Any = config
        self.num_classes = num_classes
        self.backbone = backbone

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the branches, in the order of ``ModelOutput.logits``."""
        return ("main",)

    @property
    def part_count(self) -> int:
        """P where parts are looked at, else 0."""
        return 0

    @abstractmethod
    def forward(self, images: Tensor, want: Collection[Want] = ()) -> ModelOutput:
        """Normalised images (B, 3, H, W) -> ``ModelOutput``, with what is wanted."""

    def for_inference(self) -> Self:
        """Evaluation mode, without what only training needs."""
        return self.eval()

    def locate(self, heat: Tensor, size: Sequence[int], threshold: str = "mean") -> Tensor:
        """Object boxes by the rule of the model's config, see ``locate_objects``."""
        rule = self.config
        return locate_objects(
            heat, size, threshold, closing=rule.closing, closing_px=rule.closing_px, min_area=rule.min_area
        )

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As torch's; then ``align``."""
        result = super().load_state_dict(*args, **kwargs)
        self.align()
        return result

    def align(self) -> None:
        """Find out anew where the cells of maps lie, which depends on the weights, see ``cell_shift``."""


def class_probs(logits: Tensor, multi_label: bool) -> Tensor:
    """Logits (..., K) -> float32 probabilities: of one class among K, or of each label by itself."""
    return logits.float().sigmoid() if multi_label else logits.float().softmax(dim=-1)


def mean_logits(logits: Tensor, multi_label: bool) -> Tensor:
    """Logits (n, P, K) of P crops -> logits (n, K) whose probabilities are the mean of the crops'."""
    crops = math.log(logits.shape[1])
    if not multi_label:
        return logits.float().log_softmax(dim=-1).logsumexp(dim=1) - crops
    there = F.logsigmoid(logits.float()).logsumexp(dim=1)
    return there - F.logsigmoid(-logits.float()).logsumexp(dim=1)


def confidence(probs: Tensor, multi_label: bool) -> Tensor:
    """How sure an answer (B, K) is, (B,): of its class, or of the label that is least decided."""
    return probs.maximum(1 - probs).amin(dim=-1) if multi_label else probs.amax(dim=-1)


def scale_maps(maps: Tensor) -> Tensor:
    """Each (h, w) map of (B, h, w) shifted and scaled to [0, 1]; a constant map becomes zeros."""
    low = maps.amin(dim=(-2, -1), keepdim=True)
    span = maps.amax(dim=(-2, -1), keepdim=True) - low
    return (maps - low) / span.clamp_min(1e-12)


def over_maximum(maps: Tensor) -> Tensor:
    """Each (h, w) map of (B, h, w) without what is below 0, over its maximum: 0 stays what it was.

    For maps whose zero means no evidence; a map without any becomes zeros.
    """
    positive = maps.float().clamp_min(0)
    top = positive.amax(dim=(-2, -1), keepdim=True)
    # Evidence may be as small as the gradient of a branch that hardly counts; only nothing is nothing.
    return positive / torch.where(top > 0, top, 1)


def normalize(images: Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 (B, 3, S, S) -> float32 with the checkpoint's mean and std, on the tensor's own device."""
    # Few bytes, copied at once to where the driver takes them from: the host does not wait for the device.
    scale = torch.tensor([preprocess.mean, preprocess.std]).to(images.device, non_blocking=True)
    mean, std = scale.view(2, 3, 1, 1) * 255
    return (images.float() - mean) / std
