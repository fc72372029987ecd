"""Batch normalisation folded into the convolutions before it: fewer passes over the activations, the same
function up to rounding.

In evaluation a batch norm is a scale and a shift per channel, which the weights of the convolution before it
can carry. Which convolution that is, one forward pass tells: the one whose output tensor arrives there
untouched.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fgvc_cli.models.output import ModelOutput

TOLERANCE = 1e-3
"""Largest change of a probability, or of a map in [0, 1], that is still rounding; seen: 1e-6."""


_Model = TypeVar("_Model", bound=nn.Module)


def fold_batch_norms(model: _Model, images: Tensor) -> _Model:
    """A copy of a model in evaluation mode without those of its batch norms that follow a convolution.

    The model itself is returned where there are none, or where the copy does not answer the same: a module
    may use the output of a convolution twice. It is folded and tried on the CPU, wherever the model is: there
    float32 is float32 (a card may multiply in TensorFloat-32), and every machine folds the same norms.

    Args:
        images: float (B, 3, S, S), a batch to try it on.
    """
    if not any(map(_is_foldable, model.modules())):
        return model
    device = next(model.parameters()).device
    if device.type != "cpu":
        on_cpu = copy.deepcopy(model).cpu()
        folded = fold_batch_norms(on_cpu, images.cpu())
        return model if folded is on_cpu else folded.to(device)
    pairs, before = _pairs(model, images)
    if not pairs:
        return model
    folded = copy.deepcopy(model)
    for conv_name, norm_name in pairs:
        _fold(folded, conv_name, norm_name)
    after = _answer(folded, images)
    answers = [(before.probs, after.probs), (before.heat, after.heat)]
    same = all(
        torch.allclose(was, now, rtol=0, atol=TOLERANCE, equal_nan=True)
        for was, now in answers
        if was is not None and now is not None
    )
    return folded if same else model


def _is_foldable(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.track_running_stats


def _pairs(model: nn.Module, images: Tensor) -> tuple[list[tuple[str, str]], ModelOutput]:
    """Names of convolution and batch norm, where the output of the one is the input of the other, and the
    answer of the model meanwhile."""
    made: dict[int, tuple[str, Tensor]] = {}
    """Identity of a tensor -> whose output it is, and the tensor, which keeps the identity its own."""
    pairs: dict[str, str] = {}
    calls: dict[str, int] = {}

    def made_by(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            made[id(output)] = name, output
            calls[name] = calls.get(name, 0) + 1

        return hook

    def goes_to(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls[name] = calls.get(name, 0) + 1
            if inputs and id(inputs[0]) in made:
                pairs[made[id(inputs[0])][0]] = name

        return hook

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(made_by(name)))
        elif _is_foldable(module):
            handles.append(module.register_forward_pre_hook(goes_to(name)))
    try:
        answer = _answer(model, images)
    finally:
        for handle in handles:
            handle.remove()
    once = [(conv, norm) for conv, norm in pairs.items() if calls[conv] == calls[norm] == 1]
    return once, answer


def _fold(model: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    # timm's BatchNormAct2d goes on with these.
    rest = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    parent, _, leaf = norm_name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Sequential(*rest) if rest else nn.Identity())


@torch.inference_mode()
def _answer(model: nn.Module, images: Tensor) -> ModelOutput:
    return model(images, want=("heat",))
