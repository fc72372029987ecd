"""Where the cells of a feature map lie in the model's input.

A map is drawn, and a box is cut from it, as if cell i covered pixels s*i to s*(i+1), s the map's stride. A
strided convolution with symmetric padding centres cell i at pixel s*i instead, half a cell too far to the
lower right: 16 pixels at stride 32. ``cell_shift`` finds by how much, ``align_maps`` moves the map.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STRIDED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


def cell_shift(modules: Iterable[nn.Module], stride: int) -> float:
    """By how much of a cell a map lies too far to the lower right when its cells are taken as areas.

    Follows the main path: strided layers in the order of definition until their strides multiply to
    ``stride``; 0 where they do not.

    Args:
        modules: the leaves that lead to the map, in order.
        stride: pixels of the input per cell.
    """
    jump, origin = 1, 0.0
    for module in modules:
        if not isinstance(module, _STRIDED) or jump >= stride:
            continue
        step, kernel = _first(module.stride), _first(module.kernel_size)
        if step == 1:
            continue
        # timm's Same layers pad on the fly, less on the left where the sum is odd.
        same = type(module).__name__.endswith("Same") or module.padding == "same"
        left = (kernel - step) // 2 if same else _first(module.padding)
        origin += jump * ((kernel - 1) / 2 - left)
        jump *= step
    return ((stride - 1) / 2 - origin) / stride if jump == stride else 0.0


def align_maps(maps: Tensor, shift: float) -> Tensor:
    """Move maps (B, h, w) up and left by ``shift`` cells, bilinearly; the border repeats. Same shape."""
    if shift == 0:
        return maps
    height, width = maps.shape[-2:]
    ys = (torch.arange(height, device=maps.device) + 0.5 + shift) / height * 2 - 1
    xs = (torch.arange(width, device=maps.device) + 0.5 + shift) / width * 2 - 1
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).expand(maps.shape[0], -1, -1, -1)
    moved = F.grid_sample(
        maps.float().unsqueeze(1), grid.float(), mode="bilinear", padding_mode="border", align_corners=False
    )
    return moved.squeeze(1)


def leaves(module: nn.Module) -> list[nn.Module]:
    """Modules without children on the main path, in the order of definition; shortcuts are left out."""
    return [
        child
        for name, child in module.named_modules()
        if not any(True for _ in child.children()) and "downsample." not in name and "shortcut." not in name
    ]


def _first(value: int | tuple[int, ...] | str) -> int:
    if isinstance(value, str):
        return 0
    return value if isinstance(value, int) else value[0]
