"""What a model costs: parameters and multiply-accumulates."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode


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
