"""timm backbones: built, given weights, cut into stages that run one after another, and where the cells of
their maps lie.

A CNN is cut between its modules, here; a ViT between its blocks, in ``vit``.

A map is drawn, and a box is cut from it, as if cell i covered pixels s*i to s*(i+1), s the map's stride. A
strided convolution with symmetric padding centres cell i at pixel s*i instead, half a cell too far to the
lower right: 16 pixels at stride 32. TensorFlow's SAME padding errs by as much the other way, but weights that
were trained with it have learnt kernels that are heavier at the upper left and make up for most of it.
``cell_shift`` finds by how much a map lies off, ``align_maps`` moves it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgvc_cli.errors import EXIT_USAGE, FgvcError, nearest
from fgvc_cli.models.vit import StagePlan, is_vit, network_name, not_staged, plan_vit
from fgvc_cli.sources.remote import offline_at_once

_PROBE_PX = 96
_OPTION_OF = {"drop_path_rate": "drop_path", "pad_type": "padding"}


@dataclass(frozen=True)
class ModuleStagePlan(StagePlan):
    """A network whose modules run one after another, each map being all that the next stage needs."""

    stages: tuple[tuple[str, ...], ...]
    """Module names of each stage in running order."""
    strides: tuple[int, ...]
    """Pixels of the input per cell of each stage's map."""
    channels_last: bool = False
    """Whether the network's own maps are (B, H, W, C); the plan turns them."""

    def start(self, net: nn.Module, images: Tensor) -> Tensor:
        """The images themselves."""
        return images

    def run(self, net: nn.Module, stage: int, state: Tensor) -> tuple[Tensor, Tensor]:
        """Run a stage, counted from 0 -> its map (B, C, H, W), and the same as the network has it."""
        x = run_stage(net, self.stages[stage], state)
        return (x.permute(0, 3, 1, 2) if self.channels_last else x), x

    def put_back(self, state: Tensor, onward: Tensor) -> Tensor:
        """X_s itself, as the network has its maps."""
        return onward.permute(0, 2, 3, 1) if self.channels_last else onward

    def features(self, state: Tensor) -> Tensor:
        """The last map, as the network has it."""
        return state

    def aligned(self, net: nn.Module) -> Self:
        """The plan with the ``shifts`` of the network's present weights."""
        shifts = []
        before: list[nn.Module] = []
        for stage, stride in zip(self.stages, self.strides, strict=True):
            before += [leaf for module in stage for leaf in leaves(net.get_submodule(module))]
            shifts.append(cell_shift(before, stride))
        return replace(self, shifts=tuple(shifts))


def build_backbone(name: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A timm network without its classifier.

    Args:
        kwargs: of timm's constructor; an ``img_size`` is left out where it takes none.

    Raises:
        FgvcError: an unknown name (nearest shown), pretrained weights that cannot be had, an ``img_size``
            that the patches do not divide.
    """
    if not name.startswith("hf-hub:") and not timm.is_model(name):
        near = nearest(name.partition(".")[0], timm.list_models())
        hint = f"Nearest: {', '.join(near)}." if near else "See timm.list_models()."
        raise FgvcError(f"timm has no backbone called {name!r}.", hint)
    architecture, dot, _ = name.partition(".")
    if dot and not name.startswith("hf-hub:") and name not in timm.list_pretrained(f"{architecture}.*"):
        known = ", ".join(timm.list_pretrained(f"{architecture}.*")[:4])
        raise FgvcError(f"timm has no weights called {name!r}.", f"Known: {known}.", EXIT_USAGE)
    download = pretrained or name.startswith("hf-hub:")
    try:
        with offline_at_once() if download else contextlib.nullcontext():
            net = _create(name, pretrained, kwargs)
    except FgvcError:
        raise
    except Exception as error:
        # Hubs fail in many ways (name lookup, proxy, timeout, missing file), each with its own exception.
        if not download:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise FgvcError(
            f"The ImageNet weights of {name} could not be downloaded ({reason}).",
            "Give a weight file with --init FILE, or train from random weights with --no-pretrained.",
        ) from error
    if "img_size" in kwargs:
        _check_patches(net, kwargs["img_size"])
    return net


def checkpoint_gradients(net: nn.Module, enable: bool) -> None:
    """Let a timm network compute its activations again in the backward pass instead of keeping them.

    Gradients stay the same. Batch norms see each batch twice, so their running means move faster.

    Raises:
        FgvcError: a network to which timm gives no checkpointing.
    """
    try:
        net.set_grad_checkpointing(enable)  # type: ignore[operator]
    except (AssertionError, AttributeError) as error:
        raise FgvcError(
            f"timm's {type(net).__name__} has no gradient checkpointing.",
            "Leave grad_checkpointing out; a smaller --batch-size needs less memory too.",
            EXIT_USAGE,
        ) from error


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **kwargs)
    except TypeError as error:
        refused = [key for key in kwargs if f"'{key}'" in str(error)]
        if refused != ["img_size"]:
            _explain_refused(name, refused)
            raise
    return _create(name, pretrained, {key: value for key, value in kwargs.items() if key != "img_size"})


def _explain_refused(name: str, refused: list[str]) -> None:
    for key in set(refused) & set(_OPTION_OF):
        raise FgvcError(f"timm's {name} takes no {key}.", f"Leave options.{_OPTION_OF[key]} out.", EXIT_USAGE)


def _check_patches(net: nn.Module, side: int) -> None:
    ratio = getattr(getattr(net, "patch_embed", None), "feat_ratio", None)
    patch = ratio() if callable(ratio) else 1
    if side % patch:
        near = side // patch * patch
        fitting = " or ".join(str(size) for size in (near, near + patch) if size)
        raise FgvcError(
            f"{network_name(net)} cuts patches of {patch} px, which do not divide {side} px.",
            f"Sizes that fit: {fitting}.",
            EXIT_USAGE,
        )


def plan_stages(net: nn.Module, depths: tuple[int, ...] | None = None, *, trim: bool = True) -> StagePlan:
    """Cut a timm network into stages 3, 4 and 5; the last ends where its features end.

    The cut is proven, not assumed: running the stages one after another must give what
    ``forward_features`` gives.

    Args:
        net: the network, with real weights.
        depths: on a ViT, the blocks, counted from 1, after which its stages end; None: thirds.
        trim: replace modules after the last stage (pooling, classifier) by ``nn.Identity``, so that no
            parameter stays that nothing trains; else the network stays as it is.

    Raises:
        FgvcError: a network that does not run in stages one after another, or depths that do not fit it.
    """
    if is_vit(net):
        return plan_vit(net, depths, trim=trim)
    if hasattr(net, "patch_embed") and hasattr(net, "blocks"):
        raise not_staged(net, "its blocks cannot be run one by one from patch tokens alone")
    if depths is not None:
        raise FgvcError(
            f"depths cut a ViT between its blocks; {network_name(net)} has stages of its own.",
            "Leave options.depths out.",
            EXIT_USAGE,
        )
    return _plan_modules(net, trim=trim)


def _plan_modules(net: nn.Module, *, trim: bool) -> ModuleStagePlan:
    """Cut a network at the last three of the boundaries that timm's own ``feature_info`` names."""
    count = 3
    info = getattr(net, "feature_info", None)
    if not info or len(list(info)) < count:
        raise not_staged(net, f"it names fewer than {count} feature stages")
    boundaries = [entry["module"] for entry in info][-count:]
    modules = list(_walk(net, "", [entry["module"] for entry in info]))
    missing = [boundary for boundary in boundaries if boundary not in modules]
    if missing:
        raise not_staged(net, f"its stage {missing[0]!r} is not a module of its own")
    cuts = [modules.index(boundary) + 1 for boundary in boundaries]
    cuts[-1] = _find_end(net, modules, cuts[-1])
    for unused in modules[cuts[-1] :] if trim else ():
        _replace_with_identity(net, unused)
    stages = tuple(tuple(modules[a:b]) for a, b in zip([0, *cuts], cuts, strict=False))
    channels_last = getattr(net, "output_fmt", "NCHW") == "NHWC"
    channels, strides = _measure_stages(net, stages, channels_last)
    plan = ModuleStagePlan(channels, (0.0,) * count, stages, strides, channels_last)
    return plan.aligned(net)


def run_stage(net: nn.Module, modules: tuple[str, ...], x: Tensor) -> Tensor:
    """Run the named modules of ``net`` one after another: (B, C, H, W) -> (B, C', H', W')."""
    for module in modules:
        x = net.get_submodule(module)(x)
    return x


def _walk(net: nn.Module, prefix: str, features: list[str]) -> Iterator[str]:
    """Names of modules in definition order, opening only containers that hold a stage boundary."""
    for child_name, child in net.named_children():
        full = prefix + child_name
        if any(feature.startswith(full + ".") for feature in features):
            yield from _walk(child, full + ".", features)
        else:
            yield full


@torch.no_grad()
def _find_end(net: nn.Module, modules: list[str], first: int) -> int:
    """How many modules reproduce ``forward_features``; at least ``first``."""
    if next(net.parameters()).is_meta:
        raise ValueError("plan_stages needs real weights; move the model to meta afterwards")
    training = net.training
    net.eval()
    try:
        probe = torch.linspace(-2, 2, 3 * _PROBE_PX**2, device=_device(net)).view(1, 3, _PROBE_PX, _PROBE_PX)
        expected = net.forward_features(probe)  # type: ignore[operator]
        x = run_stage(net, tuple(modules[:first]), probe)
        for end in range(first, len(modules) + 1):
            if x.shape == expected.shape and torch.allclose(x, expected, rtol=1e-4, atol=1e-5):
                return end
            if end < len(modules):
                x = net.get_submodule(modules[end])(x)
    except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, IndexError) as error:
        reason = str(error).strip() or type(error).__name__
        raise not_staged(net, f"running its modules in order fails: {reason.splitlines()[0]}") from error
    finally:
        net.train(training)
    raise not_staged(net, "its modules, run one after another, do not give its features")


@torch.no_grad()
def _measure_stages(
    net: nn.Module, stages: tuple[tuple[str, ...], ...], channels_last: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels and stride of each stage's map."""
    training = net.training
    net.eval()
    x = torch.zeros(1, 3, _PROBE_PX, _PROBE_PX, device=_device(net))
    channels, strides = [], []
    for stage in stages:
        x = run_stage(net, stage, x)
        channels.append(x.shape[-1 if channels_last else 1])
        strides.append(round(_PROBE_PX / x.shape[1 if channels_last else 2]))
    net.train(training)
    return tuple(channels), tuple(strides)


def _replace_with_identity(net: nn.Module, name: str) -> None:
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, nn.Identity())


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


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
