"""Attention-guided erasing (Conde & Turgutlu 2021, section 2.3, Fig. 3).

Legend: B batch, C channels, H W rows and columns of an image, h w of a map.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def erase_pixels(images: Tensor, mask: Tensor) -> Tensor:
    """Normalised images (B, C, H, W) with the masked pixels (B, H, W) at 0, the data's mean colour."""
    return images.masked_fill(mask[:, None], 0)
