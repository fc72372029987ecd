"""Channel re-attention (CRAM), Wang et al. 2025, 3.1, and what Table 3 puts in its place.

Legend: B batch, C channels of the stage, Ca unified channels, H W rows and columns.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from timm.layers.cbam import CbamModule
from torch import Tensor, nn

from fgvc_cli.config import CraSmraConfig


class StageFeatures(NamedTuple):
    """What a stage module hands on."""

    enhanced: Tensor
    """X_e (B, Ca, H, W), to the head and to SMRAM."""
    onward: Tensor
    """X_s (B, C, H, W), the input of the next stage."""
    suppressed_share: Tensor | None
    """Scalar, the share of channels that Eq. 5 suppressed; None without suppression."""


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
        hidden = max(1, channels // config.reduction)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1)
        )
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
                return self.mlp(average + maximum)
            return self.mlp(average) + self.mlp(maximum)

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
        """(B, C, H, W) -> X_e (B, Ca, H, W), X_s (B, C, H, W) and the suppressed share."""
        logits = self.mask_logits(x)
        enhanced = self.conv_layer(logits.sigmoid().to(x.dtype) * x)
        factors = self.suppression(logits)
        share = (factors != 1).float().mean()
        return StageFeatures(enhanced, factors.to(x.dtype) * x, share)


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
        return StageFeatures(self.conv_layer(refined), refined, None)


class PlainStage(nn.Module):
    """No attention: the stage's map through Conv_layer, and unchanged to the next stage."""

    def __init__(self, channels: int, out_channels: int, config: CraSmraConfig):
        super().__init__()
        self.conv_layer = conv_layer(channels, out_channels, config.neck)

    def forward(self, x: Tensor) -> StageFeatures:
        """(B, C, H, W) -> X_e (B, Ca, H, W) and x itself."""
        return StageFeatures(self.conv_layer(x), x, None)


STAGE_MODULES: dict[str, type[nn.Module]] = {"cram": Cram, "cbam": CbamStage, "none": PlainStage}
