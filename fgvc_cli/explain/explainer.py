"""Images -> explanations, batch by batch: what the model answers, and what the chosen methods say.

Without chosen methods an explanation holds what the model itself shows: stage maps (Wang et al. 2025, Figs.
4-6), and the crops, their attention and the erased pixels of a multi-stage ViT (Conde & Turgutlu 2021, Figs.
3-5).

Legend: B batch, P parts, K classes, S side of the model's input, h w rows and columns of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fgvc_cli.data.geometry import Box, Geometry, input_geometry
from fgvc_cli.data.transforms import eval_transform
from fgvc_cli.engine.checkpoint import Checkpoint
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.evaluate.confidence import apply_temperature
from fgvc_cli.explain.methods import Case, Heats, Method, build_question, stage_maps, unlike
from fgvc_cli.models.fuse_batchnorm import fold_batch_norms
from fgvc_cli.models.output import SUPPRESSED, ModelOutput, Want, class_probs, normalize, summarize_stats
from fgvc_cli.retrieval.index_file import Nearest, NearestIndex
from fgvc_cli.sources.images import Reading


@dataclass(frozen=True, eq=False)
class Explanation:
    """One image explained. Maps lie over ``region``, the part of the image that the model saw."""

    image: Image.Image
    """The upright image, RGB."""
    top: tuple[tuple[str, float], ...]
    """(class name, probability), the most probable first."""
    branches: dict[str, tuple[str, float]]
    """Branch name -> its own most probable class and that probability, in the model's order; then each part
    of a model that looks at several."""
    maps: dict[str, np.ndarray]
    """Map name -> (h, w) float32 in [0, 1] over the model's input, in the order of drawing."""
    box: Box | None
    """The object, xyxy pixels of the image, end-exclusive; None where the model gives none."""
    geometry: Geometry
    """From the model's input to the image."""
    input_px: int
    """Side of the model's square input, pixels."""
    model: str
    """Registry name."""
    parts: tuple[Box, ...] = ()
    """What the model looked at again inside the object, in its order, as ``box``; empty where it did not."""
    object_map: np.ndarray | None = None
    """Where the model looked at its second look, (h, w) float32 in [0, 1] over ``box``; None without one."""
    erased: np.ndarray | None = None
    """Pixels of the model's input that training may erase, (H, W) bool; None where it erases none."""
    chosen: bool = False
    """Whether ``maps`` are those of methods that were asked for, and not what the model itself shows."""
    why: tuple[str, str | None] | None = None
    """The class that the maps speak for, and the one it is held against, None for all others; None where
    they speak for none."""
    nearest: Nearest | None = None
    """The known images closest in embedding, where an index was searched."""

    @property
    def region(self) -> Box:
        """The part of the image that the model saw, xyxy pixels of the image."""
        return self.geometry.to_photo((0, 0, self.input_px, self.input_px))


@dataclass(frozen=True, eq=False)
class LabelledExplanation:
    """What one of several models shows of an image."""

    label: str
    """Which model; empty where there is one."""
    explanation: Explanation


_OWN: tuple[Want, ...] = ("heat", "boxes", "parts", "stages", "object_heat", "erased")
"""Asked of every model; what it does not have it leaves None, and the picture goes without."""
_BOXES: tuple[Want, ...] = ("boxes", "parts")
_ALWAYS: tuple[Want, ...] = ("stats",)

COMPARED_CLASSES = 3
"""The most probable classes whose nearest known images are looked up."""


WARN_IMAGES = 8
"""Of fewer images, channels may well be suppressed alike by chance."""
FIXED_GATE = 0.01
"""Variation under which CRAM's mask counts as the same for every image, as in training."""


@dataclass(frozen=True)
class StageMask:
    """What the mask of one CRAM stage did over the explained images, as in ``metrics.csv`` and ``eval``."""

    stage: str
    images: int
    suppressed: float
    """Fraction of channels that Eq. 5 suppressed, the mean over the images."""
    mask_saturated: float
    """Fraction of channels whose I lies outside [0.01, 0.99], the mean over the images."""
    mask_variation: float
    """Fraction of channels that are suppressed in some of the images and not in others; 0 for one image."""

    @property
    def is_fixed(self) -> bool:
        """Whether the mask is a fixed gate: the same for every image, of enough images to tell."""
        return self.images >= WARN_IMAGES and self.mask_variation < FIXED_GATE

    def __str__(self) -> str:
        """One plain line."""
        text = (
            f"CRAM, {self.stage}: {100 * self.suppressed:.1f} % of channels suppressed, "
            f"{100 * self.mask_saturated:.1f} % of the mask saturated (within 0.01 of 0 or 1)"
        )
        if self.images == 1:
            return text
        varying = (
            f"{100 * self.mask_variation:.1f} % of channels suppressed in some of the {self.images:,} images"
        )
        return f"{text}, {varying} and not in others"


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image ready for the model."""

    image: Image.Image
    """Upright, RGB; what is drawn."""
    pixels: Tensor
    """uint8 (3, S, S)."""
    path: str = ""
    """Where it was read from, so that an index that holds it does not find it near itself."""


class Explainer:
    """A trained model that explains itself.

    Args:
        checkpoint: its model on any device, in evaluation mode.
        methods: whose maps to draw; none: what the model itself shows.
        target: class to explain, None for the most probable one of each image.
        against: class to contrast it with, None for all others.
        top_k: how many classes to name; no more than the checkpoint has.
        index: known images to compare with, see ``nearest``; it stays the caller's to close.
        neighbours: how many of them, of each of the ``COMPARED_CLASSES`` most probable classes and overall.

    Raises:
        FgvcError: a class that the checkpoint does not know.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        methods: Sequence[Method] = (),
        target: str | None = None,
        against: str | None = None,
        top_k: int = 5,
        index: NearestIndex | None = None,
        neighbours: int = 6,
    ):
        self.checkpoint = checkpoint
        self._index, self._neighbours = index, neighbours
        self.methods = tuple(methods)
        self.question = build_question(
            checkpoint.classes, target, against, multi_label=checkpoint.multi_label
        )
        self._top_k = min(top_k, len(checkpoint.classes))
        self._transform = eval_transform(checkpoint.preprocess)
        own = _BOXES if self.methods else _OWN
        wanted = [*own, *_ALWAYS, *(want for method in self.methods for want in method.wants)]
        wanted += ["embedding"] if index else []
        self._want: tuple[Want, ...] = tuple(dict.fromkeys(wanted))
        self._explained = 0
        self._stats: dict[str, Tensor] = {}

    @property
    def reading(self) -> Reading:
        """How files become the images that ``prepare`` takes."""
        preprocess = self.checkpoint.preprocess
        return Reading(preprocess.color_profile, preprocess.raw)

    def prepare(self, image: Image.Image, longest_px: int | None = None, path: str = "") -> Prepared:
        """An upright RGB image for ``explain``; safe to call from any thread.

        Args:
            longest_px: a larger image is kept reduced to this length of its longer side, for many
                images in little memory. The model sees what it would see of the whole one.
            path: of the file, so that it is not compared with itself.
        """
        pixels = self._transform(image)
        if longest_px and max(image.size) > longest_px:
            factor = longest_px / max(image.size)
            size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
            image = image.resize(size, Image.Resampling.BOX, reducing_gap=1.0)
        return Prepared(image, pixels, path)

    def speed_up(self) -> None:
        """For many images: batch norms are folded into convolutions, as ``predict`` does, which moves
        probabilities by about 1e-6."""
        model, side = self.checkpoint.model, self.checkpoint.preprocess.input_px
        noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(_device(model))
        self.checkpoint.model = fold_batch_norms(model, noise).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def explain(self, photos: Sequence[Prepared]) -> list[Explanation]:
        """One explanation for each image of a batch, in order.

        A look that a cascade did not take (its logits are NaN) is left out: its branch, its boxes, its map.

        Raises:
            FgvcError: a method that cannot explain this model, an index for a model without embeddings.
        """
        model, preprocess = self.checkpoint.model, self.checkpoint.preprocess
        pixels = torch.stack([photo.pixels for photo in photos]).to(_device(model))
        images = normalize(pixels, preprocess)
        output: ModelOutput = model(images, want=self._want)
        self._count(output.stats, len(photos))
        case = self.question.ask(output.probs)
        heats: Heats = {}
        for method in self.methods:
            heats |= method.maps(model, images, output, case)
        nearest = self._nearest(output, [photo.path for photo in photos])
        explained = [self._one(photo, output, heats, case, row) for row, photo in enumerate(photos)]
        return [replace(each, nearest=near) for each, near in zip(explained, nearest, strict=True)]

    def masks(self) -> tuple[StageMask, ...]:
        """What CRAM's masks did over all images explained so far, by stage; none for a model without."""
        if not self._explained:
            return ()
        stats = summarize_stats({name: total / self._explained for name, total in self._stats.items()})
        kind = f"{SUPPRESSED}_"
        return tuple(
            StageMask(
                stage=(stage := name.removeprefix(kind)),
                images=self._explained,
                suppressed=value,
                mask_saturated=stats[f"mask_saturated_{stage}"],
                mask_variation=stats[f"mask_variation_{stage}"],
            )
            for name, value in stats.items()
            if name.startswith(kind)
        )

    def _count(self, stats: dict[str, Tensor], images: int) -> None:
        self._explained += images
        for name, mean in stats.items():
            total = mean.detach().double().cpu() * images
            self._stats[name] = self._stats[name] + total if name in self._stats else total

    def _nearest(self, output: ModelOutput, paths: Sequence[str]) -> Sequence[Nearest | None]:
        """What the index holds closest to each image."""
        if self._index is None:
            return [None] * len(output.probs)
        if output.embedding is None:
            raise FgvcError(
                f"--nearest compares embeddings, and {self.checkpoint.name} gives none.",
                "Leave it out.",
                EXIT_USAGE,
            )
        count = min(COMPARED_CLASSES, self._top_k)
        likeliest = output.probs.float().topk(count).indices.tolist()
        classes = [[self.checkpoint.classes[i] for i in indices] for indices in likeliest]
        embeddings = output.embedding.float().cpu().numpy()
        found = self._index.search(embeddings, classes, count=self._neighbours + 1)
        return [near.without(path, self._neighbours) for near, path in zip(found, paths, strict=True)]

    def _one(self, photo: Prepared, output: ModelOutput, heats: Heats, case: Case, row: int) -> Explanation:
        checkpoint = self.checkpoint
        geometry = input_geometry(photo.image.width, photo.image.height, checkpoint.preprocess)
        looked = output.parts if looks_taken(output, "parts", row) else None
        object_map = output.object_heat if looks_taken(output, "object", row) else None
        return Explanation(
            image=photo.image,
            top=self._top(output.probs[row]),
            branches=_branches(output, checkpoint, row),
            maps=unlike(heats, row) if self.methods else stage_maps(output, row),
            box=None if output.boxes is None else _photo_boxes(output.boxes[row : row + 1], geometry)[0],
            geometry=geometry,
            input_px=checkpoint.preprocess.input_px,
            model=checkpoint.name,
            parts=() if looked is None else _photo_boxes(looked[row], geometry),
            object_map=None if object_map is None else object_map[row].float().cpu().numpy(),
            erased=None if output.erased is None else output.erased[row].cpu().numpy(),
            chosen=bool(self.methods),
            why=self._why(case, row),
        )

    def _top(self, probs: Tensor) -> tuple[tuple[str, float], ...]:
        """The most probable classes; calibrated, as in ``predict``."""
        calibrated = apply_temperature(probs[None], self.checkpoint.temperature)[0]
        # The order comes from before: a temperature can make two close probabilities equal.
        indices = probs.float().topk(self._top_k).indices.tolist()
        return tuple((self.checkpoint.classes[i], float(calibrated[i])) for i in indices)

    def _why(self, case: Case, row: int) -> tuple[str, str | None] | None:
        if not any(method.asks_class for method in self.methods):
            return None
        classes = self.checkpoint.classes
        rival = None if case.rivals is None else classes[int(case.rivals[row])]
        return classes[int(case.targets[row])], rival


def explain_photo(
    checkpoint: Checkpoint,
    image: Image.Image,
    *,
    top_k: int = 5,
    index: NearestIndex | None = None,
    neighbours: int = 6,
) -> Explanation:
    """What the model itself shows of one upright RGB image; arguments as of ``Explainer``."""
    explainer = Explainer(checkpoint, top_k=top_k, index=index, neighbours=neighbours)
    return explainer.explain([explainer.prepare(image)])[0]


def looks_taken(output: ModelOutput, branch: str, row: int) -> bool:
    """Whether an image went through a branch; where a cascade stops before it, its row is NaN."""
    logits = output.logits.get(branch)
    return logits is None or not bool(logits[row].isnan().any())


def _branches(output: ModelOutput, checkpoint: Checkpoint, row: int) -> dict[str, tuple[str, float]]:
    """What each branch that looked says alone; several parts (P, K) also one by one."""
    rows = {name: logits[row] for name, logits in output.logits.items() if looks_taken(output, name, row)}
    parts = output.part_logits
    if parts is not None and parts.shape[1] > 1 and looks_taken(output, "parts", row):
        rows |= {f"part_{number}": each for number, each in enumerate(parts[row], start=1)}
    best = {name: class_probs(logits, checkpoint.multi_label).max(dim=-1) for name, logits in rows.items()}
    return {
        name: (checkpoint.classes[int(found.indices)], float(found.values)) for name, found in best.items()
    }


def _photo_boxes(boxes: Tensor, geometry: Geometry) -> tuple[Box, ...]:
    """Boxes (P, 4) of the model's input in pixels of the image."""
    return tuple(geometry.to_photo((x1, y1, x2, y2)) for x1, y1, x2, y2 in boxes.tolist())


def _device(model: torch.nn.Module) -> torch.device:
    first = next(chain(model.parameters(), model.buffers()), None)
    return first.device if first is not None else torch.device("cpu")
