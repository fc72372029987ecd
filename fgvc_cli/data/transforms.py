"""Image -> model input, as tensors; ``geometry`` says where the input lies and brings boxes back.

Images travel as uint8 (3, S, S); normalisation happens where the model is (``models.output.normalize``),
which moves a quarter of the bytes. Legend: S side of the input, B batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from fgvc_cli.config import Augment, Preprocess
from fgvc_cli.data.geometry import cut_input, resized_size

Transform = Callable[[Image.Image], Tensor]

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Normalised images (B, 3, S, S) and labels (B,) -> mixed images and targets (B, K), rows summing to 1."""


@dataclass(frozen=True)
class EvalTransform:
    """Resize by the rule, cut the centre: upright RGB image -> uint8 (3, S, S)."""

    preprocess: Preprocess

    def __call__(self, image: Image.Image) -> Tensor:
        """The model's input."""
        return v2.functional.pil_to_tensor(cut_input(image, self.preprocess))


def eval_transform(preprocess: Preprocess) -> Transform:
    """What prediction and evaluation do to an image; it travels to worker processes of any kind."""
    return EvalTransform(preprocess)


class _ResizeAndCut(torch.nn.Module):
    """As evaluation does it, of the centre or of a place drawn at random: the resized image is never built,
    which of an image of 30,000 x 12 takes gigabytes."""

    def __init__(self, preprocess: Preprocess, *, at_random: bool):
        super().__init__()
        self.preprocess = preprocess
        self.at_random = at_random

    def forward(self, image: Image.Image) -> Image.Image:
        if not self.at_random:
            return cut_input(image, self.preprocess)
        width, height = resized_size(image.width, image.height, self.preprocess)
        # The draws of torchvision's RandomCrop, in its order.
        top, left = (self._draw(length - self.preprocess.input_px) for length in (height, width))
        return cut_input(image, self.preprocess, corner=(left, top))

    def _draw(self, room: int) -> int:
        return int(torch.randint(0, room + 1, (1,))) if room else 0


class _AddNoise(torch.nn.Module):
    """Gaussian noise on uint8 (3, T, T).

    Args:
        deviation: standard deviation, of the range 0 to 1.
    """

    def __init__(self, deviation: float):
        super().__init__()
        self.deviation = deviation

    def forward(self, image: Tensor) -> Tensor:
        noisy = image.float() + torch.randn(image.shape) * (255 * self.deviation)
        return noisy.round().clamp(0, 255).to(torch.uint8)


def train_transform(preprocess: Preprocess, augment: Augment) -> Transform:
    """The augmented training transform: upright RGB image -> uint8 (3, T, T), T = augment.train_px or S."""
    side = augment.train_px or preprocess.input_px
    resize_px = round(preprocess.resize_px * side / preprocess.input_px)
    steps: list[torch.nn.Module] = []
    if augment.crop == "resized":
        steps.append(v2.RandomResizedCrop(side, scale=(augment.scale_min, 1.0), antialias=True))
    else:
        resized = preprocess.model_copy(update={"input_px": side, "resize_px": max(resize_px, side)})
        steps.append(_ResizeAndCut(resized, at_random=augment.crop == "random"))
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip())
    if augment.rand_augment:
        steps.append(v2.RandAugment(num_ops=2, magnitude=augment.rand_augment))
    if augment.color_jitter:
        j = augment.color_jitter
        steps.append(v2.ColorJitter(brightness=j, contrast=j, saturation=j))
    steps.append(v2.PILToTensor())
    if augment.noise:
        steps.append(_AddNoise(augment.noise))
    if augment.erase:
        steps.append(v2.RandomErasing(p=augment.erase))
    return v2.Compose(steps)


def mix_transform(augment: Augment, classes: int) -> Mix | None:
    """Mixup, CutMix, or for each batch one of them at random; None where ``augment`` asks for neither.

    Args:
        classes: K.
    """
    kinds: list[torch.nn.Module] = []
    if augment.mixup:
        kinds.append(v2.MixUp(alpha=augment.mixup, num_classes=classes))
    if augment.cutmix:
        kinds.append(v2.CutMix(alpha=augment.cutmix, num_classes=classes))
    if not kinds:
        return None
    return kinds[0] if len(kinds) == 1 else v2.RandomChoice(kinds)
