"""The multi-stage ViT (Conde & Turgutlu 2021): look at the image, at its object, at the object's parts.

One encoder and one classifier serve all three looks, four encoder passes in all. The model's input is the
higher resolution that crops are cut from; the first look sees it reduced to the encoder's size.

Legend: B batch, n images that take a look, K classes, P parts, D width, H W the input, S side of what the
encoder sees, h w of a map.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

import torch
from torch import Tensor, nn

from fgvc_cli.attention.crops import (
    attended_pixels,
    cut_boxes,
    erase_pixels,
    follow_map,
    place_mask,
    sample_boxes,
)
from fgvc_cli.attention.objects import cut_map, locate_parts, resize
from fgvc_cli.config import MultiStageVitConfig
from fgvc_cli.models.backbones import checkpoint_gradients
from fgvc_cli.models.output import (
    FgvcModel,
    ModelOutput,
    StageMap,
    Want,
    class_probs,
    confidence,
    mean_logits,
)
from fgvc_cli.models.vit import Tail, VitStagePlan, encode, plan_encoder, plan_tail


class Looks:
    """Branch logits and their fusion; with a cascade, confident images stop early.

    Fused probabilities are the mean over the looks an image took, each the mean of its crops' probabilities.

    Args:
        logits: of the first look, (B, K).
        cascade: fused confidence from which an image takes no further look; None or 1: all take all.
        multi_label: see ``class_probs`` and ``confidence``.
    """

    def __init__(self, logits: Tensor, cascade: float | None, multi_label: bool = False):
        self._multi_label = multi_label
        self.logits: dict[str, Tensor] = {"main": logits}
        self.passes = torch.ones((), device=logits.device)
        """Encoder passes per image, the mean over the batch."""
        # A confidence of 1 is what float32 makes of a sure answer; a limit of 1 is meant as no limit.
        self._cascade = cascade if cascade is not None and cascade < 1 else None
        self._sum = class_probs(logits, multi_label)
        self._count = torch.ones(logits.shape[0], 1, device=logits.device)

    @property
    def probs(self) -> Tensor:
        """Fused, (B, K)."""
        return self._sum / self._count

    def open_rows(self) -> Tensor | None:
        """Indices (n,) of the images that go on; None: all do."""
        if self._cascade is None:
            return None
        # An image that stopped before stays stopped: nothing was added to its confidence.
        return (confidence(self.probs, self._multi_label) < self._cascade).nonzero().flatten()

    def add(self, name: str, logits: Tensor, rows: Tensor | None) -> None:
        """Enter a look: logits (n, P, K) of the images ``rows``, the crops of one image counting equally."""
        crops = logits.shape[1]
        joint = mean_logits(logits, self._multi_label)
        own = logits[:, 0] if crops == 1 else joint
        probs = class_probs(joint, self._multi_label)
        total = self._sum.shape[0]
        self.logits[name] = spread(own, rows, total)
        if rows is None:
            self._sum, self._count = self._sum + probs, self._count + 1
        else:
            self._sum = self._sum.index_add(0, rows, probs)
            self._count = self._count.index_add(0, rows, torch.ones_like(self._count[rows]))
        self.passes = self.passes + logits.shape[0] * crops / total

    def skip(self, name: str) -> None:
        """Enter a look that no image takes."""
        self.logits[name] = torch.full_like(self.logits["main"], torch.nan)


def pick(values: Tensor, rows: Tensor | None) -> Tensor:
    """The given rows of (B, ...); None: all."""
    return values if rows is None else values[rows]


def spread(values: Tensor, rows: Tensor | None, total: int) -> Tensor:
    """(n, ...) back to (total, ...), NaN in the other rows."""
    if rows is None:
        return values
    return values.new_full((total, *values.shape[1:]), torch.nan).index_copy(0, rows, values)


BRANCHES: dict[str, tuple[str, ...]] = {
    "main": ("main",),
    "main+object": ("main", "object"),
    "all": ("main", "object", "parts"),
}
"""``config.stages`` -> the looks that are taken."""

_FROM_MAP = {"heat", "boxes", "stages", "erased", "rollout"}


class Classifier(nn.Sequential):
    """The paper's MLP of two layers with ReLU, after a LayerNorm (its code): (B, D) -> (B, K)."""

    def __init__(self, width: int, num_classes: int):
        super().__init__(
            nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, num_classes)
        )


class MultiStageVit(FgvcModel):
    """Main, object and parts branches over one plain ViT.

    Args:
        backbone: a timm ViT, built for the size that its looks are to have.
        num_classes: K.
        config: see ``MultiStageVitConfig``.

    Raises:
        FgvcError: a backbone that is no plain ViT.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, config: MultiStageVitConfig):
        super().__init__(backbone, num_classes, config)
        self.plan = plan_encoder(backbone)
        self.heads = Classifier(int(backbone.num_features), num_classes)  # type: ignore[arg-type]

    config: MultiStageVitConfig

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the looks that are taken."""
        return BRANCHES[self.config.stages]

    @property
    def part_count(self) -> int:
        """P where parts are looked at, else 0."""
        return self.config.parts if "parts" in self.branches else 0

    def forward(self, images: Tensor, want: Collection[Want] = ()) -> ModelOutput:
        """Normalised images (B, 3, H, W) -> ``ModelOutput`` with the branches of ``config.stages``.

        Where a cascade stopped an image, its rows of what later looks give are NaN. In training, images
        to be erased take one more pass: their boxes come from what was erased from.
        """
        need_map = len(self.branches) > 1 or bool(_FROM_MAP & {*want})
        view = self._reduce(images)
        chosen = self._choose(len(view), view.device, self.config.erase_prob) if self.training else None
        before = view.new_empty(0)
        if chosen is not None:
            view, before = self._erase(view, chosen)
        tail = Tail(self.backbone, self._tail_plan) if "features" in want else None
        embedding, heat = self._encode(view, need_map=need_map, forward=tail)
        cascade = None if self.training else self.config.cascade
        looks = Looks(self.heads(embedding), cascade, self.config.multi_label)
        if chosen is not None:
            looks.passes = looks.passes + len(chosen) / len(view)
        output = ModelOutput(logits=looks.logits, probs=looks.probs)
        if heat is not None:
            heat = heat if chosen is None else heat.index_copy(0, chosen, before)
            self._look_again(images, heat, looks, output, want)
        output.probs = looks.probs
        output.embedding = embedding if "embedding" in want else None
        output.features = {"main": StageMap(tail.patches, 0.0)} if tail else None
        if self.training or "stats" in want:
            output.stats["passes"] = looks.passes
        return output

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See ``backbones.checkpoint_gradients``."""
        checkpoint_gradients(self.backbone, enable)

    @cached_property
    def _tail_plan(self) -> VitStagePlan:
        """Proven once."""
        return plan_tail(self.backbone)

    def _look_again(
        self, images: Tensor, heat: Tensor, looks: Looks, output: ModelOutput, want: Collection[Want]
    ) -> None:
        """Boxes from the map, the object and the parts look; what is wanted of them goes into ``output``."""
        size = (images.shape[-2], images.shape[-1])
        boxes = self.locate(heat, size, self.config.threshold)
        output.boxes = boxes if "boxes" in want else None
        output.heat = heat.detach() if "heat" in want else None
        output.stages = {"main": heat.detach()} if "stages" in want else None
        output.rollout = heat.detach() if "rollout" in want else None
        if "erased" in want and self.config.erase_prob:
            output.erased = attended_pixels(heat.detach(), size, self.config.erase_threshold)
        if self.training or "stats" in want:
            sides = boxes[:, 2:] - boxes[:, :2]
            output.stats["object_share"] = sides.prod(dim=-1).mean() / (size[0] * size[1])
        object_heat = None
        if self.training and self.config.erase_object_prob and "object" in self.branches:
            images = self._erase_objects(images, boxes, looks)
        if "object" in self.branches:
            need_map = "object_heat" in want or (self.config.part_map == "object" and self.part_count > 0)
            object_heat = self._look_at_object(images, heat, boxes, looks, need_map=need_map)
            output.object_heat = object_heat if "object_heat" in want else None
        if "parts" in self.branches:
            parts, output.part_logits = self._look_at_parts(images, heat, object_heat, boxes, looks)
            output.parts = parts if "parts" in want else None

    def _look_at_object(
        self, images: Tensor, heat: Tensor, boxes: Tensor, looks: Looks, *, need_map: bool
    ) -> Tensor | None:
        """The object look; its own map (B, h, w), over the crop, where it is needed."""
        rows = looks.open_rows()
        if rows is not None and not len(rows):
            looks.skip("object")
            return None
        crops = self._cut(pick(images, rows), pick(heat, rows), pick(boxes, rows)[:, None])
        embedding, own_heat = self._encode(crops, need_map=need_map, detach=True)
        looks.add("object", self.heads(embedding)[:, None], rows)
        return None if own_heat is None else spread(own_heat, rows, images.shape[0])

    def _look_at_parts(
        self, images: Tensor, heat: Tensor, object_heat: Tensor | None, boxes: Tensor, looks: Looks
    ) -> tuple[Tensor | None, Tensor | None]:
        """The parts look: its boxes (B, P, 4) and the logits (B, P, K) of each part."""
        rows = looks.open_rows()
        if rows is not None and not len(rows):
            looks.skip("parts")
            return None, None
        config, size = self.config, images.shape[-2:]
        if config.part_map == "object" and object_heat is not None:
            nothing = torch.zeros_like(boxes[:, 0])
            whole = torch.stack([nothing, nothing, nothing + size[1], nothing + size[0]], 1)
            maps = cut_map(pick(object_heat, rows), pick(whole, rows), size, self.plan.side)
        else:
            maps = cut_map(pick(heat.detach(), rows), pick(boxes, rows), size, self.plan.side)
        parts = locate_parts(
            maps,
            pick(boxes, rows),
            window=config.part_window,
            count=config.parts,
            max_iou=config.part_iou,
            score=config.part_score,
            aspect=config.part_aspect,
            stride=config.part_stride,
        )
        embedding, _ = self._encode(self._cut(pick(images, rows), pick(heat, rows), parts), need_map=False)
        logits = self.heads(embedding).unflatten(0, (parts.shape[0], config.parts))
        looks.add("parts", logits, rows)
        total = images.shape[0]  # len() would fix the batch of an exported graph
        return spread(parts, rows, total), spread(logits, rows, total)

    def _cut(self, images: Tensor, heat: Tensor, boxes: Tensor) -> Tensor:
        """Crops (n * P, 3, S, S) of boxes (n, P, 4), with gradients into a map that takes them."""
        if not heat.requires_grad:
            return cut_boxes(images, boxes, self.plan.side)
        followed = follow_map(boxes, heat, (images.shape[-2], images.shape[-1]))
        return sample_boxes(images, followed, self.plan.side)

    def _encode(
        self, images: Tensor, *, need_map: bool, forward: Tail | None = None, detach: bool | None = None
    ) -> tuple[Tensor, Tensor | None]:
        config = self.config
        return encode(
            self.backbone,
            self.plan,
            images,
            residual=config.residual if need_map else None,
            first=min(config.rollout_first or self.plan.layers // 2 + 1, self.plan.layers),
            values=config.rollout_weight == "norm",
            detach=not config.differentiable_crop if detach is None else detach,
            forward=forward,
        )

    def _reduce(self, images: Tensor) -> Tensor:
        """The whole input at the encoder's size."""
        side = (self.plan.side, self.plan.side)
        if tuple(images.shape[-2:]) == side:
            return images
        return resize(images, side)

    def _choose(self, batch: int, device: torch.device, prob: float) -> Tensor | None:
        """Which images of a batch are erased, or None; drawn on the CPU: every device draws the same."""
        chosen = (torch.rand(batch) < prob).nonzero().flatten()
        return chosen.to(device, non_blocking=True) if len(chosen) else None

    def _erase(self, view: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The batch with the chosen images erased (2.3), and their maps from before, (n, h, w)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.differentiable_crop):
            _, heat = self._encode(view[chosen], need_map=True)
        assert heat is not None
        mask = attended_pixels(heat.detach(), view.shape[-2:], self.config.erase_threshold)
        return view.index_copy(0, chosen, erase_pixels(view[chosen], mask)), heat

    def _erase_objects(self, images: Tensor, boxes: Tensor, looks: Looks) -> Tensor:
        """The batch with some images erased where their object crop is attended to, so that both the object
        and its parts are cut from what is left (the authors' code)."""
        chosen = self._choose(len(images), images.device, self.config.erase_object_prob)
        if chosen is None:
            return images
        whole, own = images[chosen], boxes[chosen]
        with torch.no_grad():
            crops = cut_boxes(whole, own[:, None], self.plan.side)
            _, heat = self._encode(crops, need_map=True, detach=True)
            assert heat is not None
            mask = attended_pixels(heat, crops.shape[-2:], self.config.erase_threshold)
        looks.passes = looks.passes + len(chosen) / len(images)
        return images.index_copy(0, chosen, erase_pixels(whole, place_mask(mask, own, images.shape[-2:])))
