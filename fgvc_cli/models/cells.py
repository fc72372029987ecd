"""Where the cells of a feature map lie in the model's input.

A map is drawn, and a box is cut from it, as if cell i covered pixels s*i to s*(i+1), s the map's stride. A
strided convolution with symmetric padding centres cell i at pixel s*i instead, half a cell too far to the
lower right: 16 pixels at stride 32. TensorFlow's SAME padding errs by as much the other way, but weights that
were trained with it have learnt kernels that are heavier at the upper left and make up for most of it.
``cell_shift`` finds by how much a map lies off, ``align_maps`` moves it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STRIDED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


def cell_shift(modules: Iterable[nn.Module], stride: int) -> float:
    """By how much of a cell a map lies too far to the lower right when its cells are taken as areas.

    Follows the main path: layers in the order of definition until their strides multiply to ``stride``; 0
    where they do not. What paddings move is known; what the weights move is taken as the centroid of a
    kernel's magnitudes. Against the shift at which the maps of an image and of its 180-degree turn agree best
    (cells of stages 3, 4, 5): tf_efficientnet_lite0 -0.10, -0.20, -0.15 here, 0.1, -0.2, -0.1 measured; a
    MobileNetV2 with weights of SAME padding and symmetric padding 0.57, 0.74, 0.70 and 0.6, 0.7, 0.7.

    Args:
        modules: the leaves that lead to the map, in order; those after it are not looked at.
        stride: pixels of the input per cell.
    """
    jump, origin, learnt = 1, 0.0, 0.0
    for module in modules:
        if not isinstance(module, _STRIDED):
            continue
        step, kernel = _first(module.stride), _first(module.kernel_size)
        if jump * step > stride:
            break
        if isinstance(module, nn.Conv2d) and kernel > step:  # a patch covers its own area
            learnt += jump * _centroid(module.weight)
        if step == 1:
            continue
        # timm's Same layers pad on the fly, less on the left where the sum is odd.
        same = type(module).__name__.endswith("Same") or module.padding == "same"
        left = (kernel - step) // 2 if same else _first(module.padding)
        origin += jump * ((kernel - 1) / 2 - left)
        jump *= step
    if jump != stride:
        return 0.0
    half = stride / 2
    return ((stride - 1) / 2 - origin - min(max(learnt, -half), half)) / stride


@torch.no_grad()
def _centroid(weight: Tensor) -> float:
    """Centroid of a kernel's magnitudes (out, in, k, k), pixels right of and below its middle, their mean."""
    magnitudes = weight.detach().float().abs().sum(dim=(0, 1))
    places = torch.arange(weight.shape[-1], device=weight.device) - (weight.shape[-1] - 1) / 2
    rows = torch.arange(weight.shape[-2], device=weight.device) - (weight.shape[-2] - 1) / 2
    moment = (magnitudes.sum(dim=0) * places).sum() + (magnitudes.sum(dim=1) * rows).sum()
    return float(moment / (2 * magnitudes.sum().clamp_min(1e-12)))


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
