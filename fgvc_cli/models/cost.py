"""What a model costs: parameters and multiply-accumulates."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from fgvc_cli.models.catalog import COST_CLASSES, Cost
from fgvc_cli.models.registry import create_model, resolve


def compute_cost(name: str, input_px: int) -> Cost:
    """Build a model of ``COST_CLASSES`` classes and count.

    Args:
        name: registry name.
        input_px: side of the input, pixels; a backbone that is built for one size is counted at its own.

    Raises:
        FgvcError: an unknown name, or a backbone that does not fit the family.
    """
    backbone = resolve(name).backbone
    model = create_model(name, COST_CLASSES)
    side = model.fixed_px or input_px
    return Cost(name, backbone, side, count_parameters(model), count_gmac(model, side))


def count_parameters(model: nn.Module) -> int:
    """Number of parameters as used for prediction; SMRAM, which trains only, is left out."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("smram."))


@torch.no_grad()
def count_gmac(model: nn.Module, input_px: int) -> float:
    """Giga multiply-accumulates of one forward pass in evaluation mode at (1, 3, input_px, input_px).

    Counts matrix products and convolutions, as the field does; shapes only, nothing is computed.
    """
    model = model.eval()
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), counter:
        model(torch.empty(1, 3, input_px, input_px))
    return counter.get_total_flops() / 2e9
