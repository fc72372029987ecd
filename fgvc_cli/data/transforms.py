"""Photograph -> model input, and boxes back from the input to the photograph.

Images travel as uint8 (3, S, S); normalisation happens where the model is (``normalize``), which moves a
quarter of the bytes. Legend: S side of the input, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from fgvc_cli.config import Augment, Preprocess

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Geometry:
    """Where the model's input lies in a photograph: input = photo * scale - offset, per axis."""

    width: int
    height: int
    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float

    def to_photo(self, box: Sequence[float]) -> tuple[float, float, float, float]:
        """An xyxy box of input pixels in pixels of the upright photograph, clipped to it."""
        x1, y1, x2, y2 = box

        def back(value: float, offset: float, scale: float, limit: int) -> float:
            return min(max((value + offset) / scale, 0.0), float(limit))

        return (
            back(x1, self.offset_x, self.scale_x, self.width),
            back(y1, self.offset_y, self.scale_y, self.height),
            back(x2, self.offset_x, self.scale_x, self.width),
            back(y2, self.offset_y, self.scale_y, self.height),
        )


def resized_size(width: int, height: int, preprocess: Preprocess) -> tuple[int, int]:
    """(width, height) in pixels after the resize rule."""
    side = preprocess.resize_px
    if preprocess.resize_rule == "squash":
        return side, side
    factor = side / min(width, height)
    return max(side, round(width * factor)), max(side, round(height * factor))


def input_geometry(width: int, height: int, preprocess: Preprocess) -> Geometry:
    """The geometry of the evaluation transform for a photograph of this size."""
    new_width, new_height = resized_size(width, height, preprocess)
    return Geometry(
        width,
        height,
        new_width / width,
        new_height / height,
        (new_width - preprocess.input_px) // 2,
        (new_height - preprocess.input_px) // 2,
    )


@dataclass(frozen=True)
class EvalTransform:
    """Resize by the rule, cut the centre: upright RGB image -> uint8 (3, S, S)."""

    preprocess: Preprocess

    def __call__(self, image: Image.Image) -> Tensor:
        """The model's input."""
        geometry = input_geometry(image.width, image.height, self.preprocess)
        side = self.preprocess.input_px
        left, top = int(geometry.offset_x), int(geometry.offset_y)
        # Resizing just the part that is kept equals resize-then-crop, and never builds a huge strip
        # for a panorama.
        source = (
            left / geometry.scale_x,
            top / geometry.scale_y,
            min((left + side) / geometry.scale_x, image.width),
            min((top + side) / geometry.scale_y, image.height),
        )
        resized = image.resize((side, side), Image.Resampling.BILINEAR, box=source)
        return v2.functional.pil_to_tensor(resized)


def eval_transform(preprocess: Preprocess) -> Transform:
    """What prediction and evaluation do to a photograph; it travels to worker processes of any kind."""
    return EvalTransform(preprocess)


def train_transform(preprocess: Preprocess, augment: Augment) -> Transform:
    """The augmented training transform: upright RGB image -> uint8 (3, T, T), T = augment.train_px or S."""
    side = augment.train_px or preprocess.input_px
    resize_px = round(preprocess.resize_px * side / preprocess.input_px)
    steps: list[torch.nn.Module] = []
    if augment.crop == "resized":
        steps.append(v2.RandomResizedCrop(side, scale=(augment.scale_min, 1.0), antialias=True))
    else:
        whole = [resize_px, resize_px] if preprocess.resize_rule == "squash" else [resize_px]
        steps.append(v2.Resize(whole, antialias=True))
        steps.append(v2.CenterCrop(side) if augment.crop == "center" else v2.RandomCrop(side))
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip())
    if augment.rand_augment:
        steps.append(v2.RandAugment(num_ops=2, magnitude=augment.rand_augment))
    if augment.color_jitter:
        j = augment.color_jitter
        steps.append(v2.ColorJitter(brightness=j, contrast=j, saturation=j))
    steps.append(v2.PILToTensor())
    if augment.erase:
        steps.append(v2.RandomErasing(p=augment.erase))
    return v2.Compose(steps)


def normalize(images: Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 (B, 3, S, S) -> float32 with the checkpoint's mean and std, on the tensor's own device."""
    mean = torch.tensor(preprocess.mean, device=images.device).view(3, 1, 1) * 255
    std = torch.tensor(preprocess.std, device=images.device).view(3, 1, 1) * 255
    return (images.float() - mean) / std
