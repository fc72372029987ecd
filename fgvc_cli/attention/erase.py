"""Attention-guided erasing (Conde & Turgutlu 2021, section 2.3, Fig. 3).

Legend: B batch, C channels, H W rows and columns of an image, h w of a map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def attended_pixels(heat: Tensor, size: Sequence[int], threshold: float = 0.7) -> Tensor:
    """Which pixels a map attends to above a threshold: (B, h, w) in [0, 1] -> bool (B, H, W).

    Args:
        size: (H, W) of the image, pixels.
        threshold: T.
    """
    resized = F.interpolate(heat[:, None].float(), tuple(size), mode="bilinear", align_corners=False)
    return resized[:, 0] > threshold


def place_mask(mask: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """What masks over boxes cover in the images: bool (B, S, S) and boxes (B, 4) -> bool (B, H, W).

    Args:
        boxes: xyxy pixels of the images, end-exclusive.
        size: (H, W).
    """
    inside, places = [], []
    for axis, length in ((1, size[0]), (0, size[1])):
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        at = (torch.arange(length, device=boxes.device) + 0.5 - low) / (high - low)
        inside.append((at >= 0) & (at < 1))
        places.append((at * mask.shape[-1]).long().clamp(0, mask.shape[-1] - 1))
    rows = torch.arange(len(mask), device=mask.device)[:, None, None]
    covered = mask[rows, places[0][:, :, None], places[1][:, None, :]]
    return covered & inside[0][:, :, None] & inside[1][:, None, :]


def erase_pixels(images: Tensor, mask: Tensor) -> Tensor:
    """Normalised images (B, C, H, W) with the masked pixels (B, H, W) at 0, the data's mean colour."""
    return images.masked_fill(mask[:, None], 0)
