"""What it takes to run a plain timm ViT stage by stage, and to see where it attended.

Stages, so that CRAM can stand between them: its suppressed map X_s of one stage is the INPUT of the next, so
a finished network's ``features_only`` extraction is not enough. The network itself stays whole, with timm's
own parameter names; a plan only says how to run it. Each kind of network has its own plan: a CNN's is in
``backbones``. A ViT is cut at three depths, its stages 3, 4 and 5. Wang et al. 2025 cut CNNs only; CRAM and
SMRAM on a Transformer are its future work (section 5), so every choice here is ours. After a stage's blocks
the patch tokens go back to their grid and pass through CRAM like any feature map; X_s becomes the patch
tokens that the next block sees. The prefix tokens (class, distillation, registers) belong to no place, so
CRAM has nothing to weigh them by: they pass unchanged. The last stage ends after the encoder's final norm.

Attention, as the encoder of a multi-stage model: fused attention never shows its softmax, so q and k are
taken where the encoder hands them over to ``scaled_dot_product_attention`` (rotated, normalised and scaled as
the architecture does it) and the map is computed beside the main pass, which stays as it is.

Legend: B batch, P prefix tokens, N patch tokens, or all tokens where attention is recorded, D width, h w rows
and columns of the patch grid, S side of the input.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from fgvc_cli.attention.rollout import LayerAttention, patch_map, rollout
from fgvc_cli.errors import EXIT_USAGE, FgvcError

_STAGES = 3
_PARTS = ("patch_embed", "_pos_embed", "norm_pre", "blocks", "norm", "num_prefix_tokens", "embed_dim")
_AFTER_FEATURES = ("attn_pool", "fc_norm", "head_drop", "head", "head_dist")


@dataclass(frozen=True)
class StagePlan(ABC):
    """How a network is cut. Running it, ``state`` is whatever this kind of network carries onward."""

    channels: tuple[int, ...]
    """Channels that each stage puts out."""
    shifts: tuple[float, ...]
    """By how many cells each stage's map lies off, see ``backbones.cell_shift``."""

    @abstractmethod
    def start(self, net: nn.Module, images: Tensor) -> Any:
        """Normalised images (B, 3, H, W) -> the state that the first stage takes."""

    @abstractmethod
    def run(self, net: nn.Module, stage: int, state: Any) -> tuple[Tensor, Any]:
        """Run a stage, counted from 0 -> its map (B, C, h, w) and the state with that map in it."""

    @abstractmethod
    def put_back(self, state: Any, onward: Tensor) -> Any:
        """The state with ``onward`` (B, C, h, w), CRAM's X_s, in the place of the stage's map."""

    @abstractmethod
    def features(self, state: Any) -> Tensor:
        """What timm's ``forward_features`` gives, of the state after the last stage."""

    def aligned(self, net: nn.Module) -> Self:
        """The plan with the ``shifts`` of the network's present weights."""
        return self


def network_name(net: nn.Module) -> str:
    """timm's name of a network, for messages."""
    return getattr(net, "pretrained_cfg", {}).get("architecture", type(net).__name__)


def not_staged(net: nn.Module, why: str) -> FgvcError:
    """The refusal of a network whose cut cannot be proven."""
    name = network_name(net)
    return FgvcError(
        f"{name} cannot be run stage by stage: {why.rstrip('.')}.",
        "Choose a CNN such as resnet50 or a ViT such as vit_small_patch16_224, "
        f"or train it plain with --model timm-{name}.",
    )


class Tokens(NamedTuple):
    """What a ViT carries from block to block."""

    sequence: Tensor
    """(B, P + N, D), prefix tokens first."""
    grid: tuple[int, int]
    """h and w; patch tokens lie row by row."""
    rope: Tensor | None
    """Rotary position embedding for every block (EVA kinds only), per block first if the blocks differ."""


@dataclass(frozen=True)
class VitStagePlan(StagePlan):
    """A timm ViT cut between blocks."""

    ends: tuple[int, ...]
    """Number of blocks after which each stage ends."""
    prefix_tokens: int
    """P."""

    def start(self, net: nn.Module, images: Tensor) -> Tokens:
        """Normalised images (B, 3, H, W) -> embedded tokens, before the first block."""
        parts: Any = net
        grid = parts.patch_embed.dynamic_feat_size(images.shape[-2:])
        embedded = parts._pos_embed(parts.patch_embed(images))
        sequence, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
        return Tokens(parts.norm_pre(sequence), grid, rope)

    def run(self, net: nn.Module, stage: int, state: Tokens) -> tuple[Tensor, Tokens]:
        """Run a stage's blocks, counted from 0 -> its map (B, D, h, w) and the tokens; the last is normed."""
        parts: Any = net
        x = state.sequence
        for i in range(self.ends[stage - 1] if stage else 0, self.ends[stage]):
            if state.rope is None:
                x = parts.blocks[i](x)
            else:
                x = parts.blocks[i](x, rope=state.rope[i] if net.rope_mixed else state.rope)
        if stage == len(self.ends) - 1:
            x = parts.norm(x)
        state = state._replace(sequence=x)
        return self.patches(state), state

    def patches(self, state: Tokens) -> Tensor:
        """Patch tokens on their grid (B, D, h, w)."""
        return state.sequence[:, self.prefix_tokens :].transpose(1, 2).unflatten(2, state.grid)

    def put_back(self, state: Tokens, onward: Tensor) -> Tokens:
        """The tokens with the patches of X_s (B, D, h, w) for their own; prefix tokens as they are."""
        patches = onward.flatten(2).transpose(1, 2)
        return state._replace(sequence=torch.cat([state.sequence[:, : self.prefix_tokens], patches], dim=1))

    def features(self, state: Tokens) -> Tensor:
        """All tokens (B, P + N, D)."""
        return state.sequence


def is_vit(net: nn.Module) -> bool:
    """Whether a network has the parts of a plain timm ViT: patches, prefix tokens, blocks, one width."""
    return all(hasattr(net, part) for part in _PARTS)


def plan_vit(net: nn.Module, depths: tuple[int, ...] | None = None, *, trim: bool = True) -> VitStagePlan:
    """Cut a timm ViT into three stages.

    The cut is proven, not assumed: embedding, blocks and norm one after another must give what
    ``forward_features`` gives.

    Args:
        net: a network for which ``is_vit`` holds, with real weights.
        depths: the blocks, counted from 1, after which the stages end; None: thirds of the encoder.
        trim: replace what comes after the features (pooling, its norm, classifier) by ``nn.Identity``, so
            that no parameter stays that nothing trains; else the network stays as it is.

    Raises:
        FgvcError: depths that do not fit the encoder, or a network whose blocks do not run one after another.
    """
    parts: Any = net
    ends = _stage_ends(net, len(parts.blocks), depths)
    dropout = getattr(net, "patch_drop", None)
    if not (dropout is None or isinstance(dropout, nn.Identity)):
        raise not_staged(net, "its patch dropout leaves holes in the grid of patches")
    channels, shifts = (parts.embed_dim,) * len(ends), (0.0,) * len(ends)  # a patch covers its own area
    plan = VitStagePlan(channels, shifts, ends, parts.num_prefix_tokens)
    _prove(net, plan)
    for unused in _AFTER_FEATURES if trim else ():
        if getattr(net, unused, None) is not None:
            setattr(net, unused, nn.Identity())
    return plan


def plan_tail(net: nn.Module) -> VitStagePlan:
    """A timm ViT cut in two, before its last block; nothing of it is changed. Proven, as ``plan_vit``.

    Raises:
        FgvcError: a network whose blocks do not run one after another, or that is no ViT of this kind.
    """
    parts: Any = net
    depth = len(getattr(net, "blocks", ()))
    if not is_vit(net) or depth < 2:
        raise not_staged(net, "it is not one sequence of at least two blocks")
    plan = VitStagePlan((parts.embed_dim,) * 2, (0.0, 0.0), (depth - 1, depth), parts.num_prefix_tokens)
    _prove(net, plan)
    return plan


class Tail:
    """A ViT's ``forward_features`` that keeps the patches its pooling reads, see ``run_last_block``.

    What it returns is computed from that very tensor, so that gradients with respect to it are those of the
    network.

    Args:
        plan: from ``plan_tail``.
    """

    patches: Tensor
    """(B, D, h, w), of the last call."""

    def __init__(self, net: nn.Module, plan: VitStagePlan):
        self._net, self._plan = net, plan

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> tokens (B, P + N, D) behind the final norm."""
        patches, state = self._plan.run(self._net, 0, self._plan.start(self._net, images))
        self.patches, state = run_last_block(self._net, self._plan, patches, state)
        return state.sequence


def run_last_block(
    net: nn.Module, plan: VitStagePlan, patches: Tensor, state: Tokens
) -> tuple[Tensor, Tokens]:
    """Run the last stage of a plan, a single block, on ``patches`` (B, D, h, w) in the place of the state's.

    Returns:
        The patches (B, D, h, w) that the pooling reads, and the tokens behind the final norm. Where patches
        are pooled they are those behind that norm. A class token reads patches for the last time inside the
        block, through its first norm, and they are those behind it: a norm takes their length away, so that
        the answer has no slope along it, and in front of it slope times feature sums to 0 at every place,
        whatever the model does, but for rounding.
    """
    state, last = plan.put_back(state, patches), len(plan.ends) - 1
    if not plan.prefix_tokens or getattr(net, "global_pool", "token") != "token":
        pooled, after = plan.run(net, last, state)
        return pooled, plan.put_back(after, pooled)
    read = [patches]

    def keep(_norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if inputs[0] is not state.sequence:
            return None  # this norm stands behind the attention, which reads what enters
        normed = state._replace(sequence=output)
        read[0] = plan.patches(normed)
        return plan.put_back(normed, read[0]).sequence

    norm = getattr(net.blocks[-1], "norm1", None)  # type: ignore[index]
    handle = norm.register_forward_hook(keep) if norm is not None else None
    try:
        _, after = plan.run(net, last, state)
    finally:
        if handle is not None:
            handle.remove()
    return read[0], after


def _stage_ends(net: nn.Module, depth: int, depths: tuple[int, ...] | None) -> tuple[int, ...]:
    if depth < _STAGES:
        raise not_staged(net, f"{depth} blocks do not make {_STAGES} stages")
    thirds = tuple(round(depth * stage / _STAGES) for stage in range(1, _STAGES + 1))
    if depths is None:
        return thirds
    if depths[-1] != depth or any(a >= b for a, b in zip((0, *depths), depths, strict=False)):
        raise FgvcError(
            f"depths {_comma(depths)} do not cut {network_name(net)}: expected {_STAGES} rising block "
            f"numbers from 1, the last one {depth}, its depth.",
            f"For example: --set options.depths={_comma(thirds)}",
            EXIT_USAGE,
        )
    return depths


def _comma(numbers: tuple[int, ...]) -> str:
    return ",".join(str(number) for number in numbers)


class _BothWays(nn.Module):
    """A network whole and in stages, for the proof."""

    def __init__(self, net: nn.Module, plan: VitStagePlan):
        super().__init__()
        self.net, self.plan = net, plan

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        state = self.plan.start(self.net, images)
        for stage in range(len(self.plan.ends)):
            x, state = self.plan.run(self.net, stage, state)
            state = self.plan.put_back(state, x)
        return self.net.forward_features(images), state.sequence  # type: ignore[operator]


@torch.no_grad()
def _prove(net: nn.Module, plan: VitStagePlan) -> None:
    """Refuse a network whose stages together are not the whole, on one image of its own input size."""
    if next(net.parameters()).is_meta:
        raise ValueError("plan_vit needs real weights; move the model to meta afterwards")
    # A network that takes any size has none of its own; timm names the one it was trained with.
    size = getattr(net.patch_embed, "img_size", None) or getattr(net, "pretrained_cfg", {})["input_size"][1:]
    height, width = size
    device = next(net.parameters()).device
    probe = torch.linspace(-2, 2, 3 * height * width, device=device).view(1, 3, height, width)
    # LayerScale starts at 1e-5: a block left out, or run without its rope, would pass for rounding.
    unscaled = {f"net.{name}": torch.ones_like(p) for name, p in net.named_parameters() if p.ndim == 1}
    training = net.training
    net.eval()
    try:
        whole, staged = torch.func.functional_call(_BothWays(net, plan), unscaled, (probe,))
    except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, IndexError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise not_staged(net, f"running its blocks in order fails: {reason}") from error
    finally:
        net.train(training)
    if whole.shape != staged.shape or not torch.allclose(whole, staged, rtol=1e-4, atol=1e-5):
        raise not_staged(net, "its blocks, run one after another, do not give its features")


@dataclass(frozen=True)
class EncoderPlan:
    """What has to be known about a ViT to map its attention."""

    side: int
    """S: what the encoder takes, pixels."""
    prefix_tokens: int
    """Class, distillation and register tokens in front of the patches."""
    grid: tuple[int, int]
    """(h, w) of the patches."""
    layers: int
    class_token: bool
    """Whether the embedding is read from a class token; else it is a mean over patches."""

    @property
    def tokens(self) -> int:
        """N."""
        return self.prefix_tokens + self.grid[0] * self.grid[1]

    @property
    def read(self) -> slice:
        """Where the rollout starts: at the class token, else at all patches (ours)."""
        return slice(0, 1) if self.class_token else slice(self.prefix_tokens, self.tokens)


class RecordAttention(TorchFunctionMode):
    """While active, keeps q and k of every self-attention over ``tokens`` tokens; computes nothing itself.

    Args:
        tokens: N; attention over other numbers of tokens (pooling heads) is not kept.
        detach: whether gradients end here.
        values: keep the lengths of the value vectors too.
    """

    def __init__(self, tokens: int, *, detach: bool = True, values: bool = False):
        super().__init__()
        self.tokens, self.detach, self.values = tokens, detach, values
        self.layers: list[LayerAttention] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._keep(*args, **kwargs)
        return func(*args, **kwargs)

    def _keep(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **_: Any,
    ) -> None:
        if query.shape[-2] != self.tokens or key.shape != query.shape or is_causal:
            return
        if self.detach:
            query, key = query.detach(), key.detach()
            attn_mask = None if attn_mask is None else attn_mask.detach()
            value = value.detach()
        lengths = value.float().norm(dim=-1) if self.values else None
        self.layers.append(LayerAttention(query, key, scale or query.shape[-1] ** -0.5, attn_mask, lengths))


def plan_encoder(net: nn.Module) -> EncoderPlan:
    """Check that a timm network is a plain ViT whose attention can be mapped; nothing is computed.

    Raises:
        FgvcError: windows, hierarchies, convolutions, linear attention: anything but softmax attention over
            one grid of patches in every block.
    """
    embed, blocks = getattr(net, "patch_embed", None), getattr(net, "blocks", ())
    grid, size = getattr(embed, "grid_size", None), getattr(embed, "img_size", None)
    if not len(blocks) or not grid or not size or not hasattr(net, "num_prefix_tokens"):
        raise _not_plain(net, "it is not one sequence of blocks over one grid of patches")
    if size[0] != size[1]:
        raise _not_plain(net, f"it takes {size[1]} x {size[0]} px, and every look is a square")
    show_attention(net)
    prefix = int(net.num_prefix_tokens)  # type: ignore[arg-type]
    pooled_token = getattr(net, "global_pool", "token") == "token"
    plan = EncoderPlan(
        int(size[0]), prefix, (int(grid[0]), int(grid[1])), len(blocks), prefix > 0 and pooled_token
    )
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), RecordAttention(plan.tokens) as record:
        net.forward_features(torch.empty(1, 3, plan.side, plan.side))  # type: ignore[operator]
    if len(record.layers) != plan.layers:
        raise _not_plain(net, f"{len(record.layers)} of its {plan.layers} blocks show softmax attention")
    return plan


class RecordRollout(RecordAttention):
    """Records one pass of a ViT that is run by others, for its rollout.

    Args:
        blocks: how many blocks it has, each with softmax attention.
        grid: (h, w) of the patches; what else there is stands in front of them.
    """

    def __init__(self, tokens: int, blocks: int, grid: tuple[int, int]):
        super().__init__(tokens)
        self.blocks, self.grid = blocks, grid
        self.prefix_tokens = tokens - grid[0] * grid[1]

    @torch.no_grad()
    def map(self, *, class_token: bool) -> Tensor | None:
        """(B, h, w) in [0, 1], for the class token or all patches; None where a block hid its attention."""
        if len(self.layers) != self.blocks:
            return None
        read = slice(0, 1) if class_token else slice(self.prefix_tokens, self.tokens)
        return patch_map(rollout(self.layers, read), self.prefix_tokens, self.grid)


@contextlib.contextmanager
def record_rollout(net: nn.Module, images: Tensor) -> Iterator[RecordRollout | None]:
    """While active, what a plain ViT attends with is kept; None for other networks.

    Args:
        images: (B, 3, H, W) that the network is about to take, for the size of its grid.
    """
    embed, blocks = getattr(net, "patch_embed", None), getattr(net, "blocks", ())
    size_of = getattr(embed, "dynamic_feat_size", None)
    if size_of is None or not len(blocks) or not hasattr(net, "num_prefix_tokens"):
        yield None
        return
    show_attention(net)
    rows, columns = size_of(images.shape[-2:])
    tokens = int(net.num_prefix_tokens) + rows * columns  # type: ignore[arg-type]
    with RecordRollout(tokens, len(blocks), (rows, columns)) as record:
        yield record


def show_attention(net: nn.Module) -> None:
    """Have every attention of a timm network go through ``scaled_dot_product_attention``."""
    for module in net.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True  # type: ignore[assignment]


def encode(
    net: nn.Module,
    plan: EncoderPlan,
    images: Tensor,
    *,
    residual: float | None = None,
    first: int = 1,
    values: bool = False,
    detach: bool = True,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """One encoder pass, with the map of its attention where ``residual`` is given.

    Args:
        images: normalised (B, 3, S, S).
        residual: of the rollout; None: no map.
        first: of the rollout.
        values: whether the rollout weighs attention by the lengths of value vectors.
        detach: whether the map carries no gradient.
        forward: images -> features, in place of the network's own ``forward_features``.

    Returns:
        The embedding (B, D), and the map (B, h, w) in [0, 1] or None.
    """
    run = forward or net.forward_features
    if residual is None:
        return _embed(net, run(images)), None  # type: ignore[operator]
    with RecordAttention(plan.tokens, detach=detach, values=values) as record:
        embedding = _embed(net, run(images))  # type: ignore[operator]
    with torch.set_grad_enabled(torch.is_grad_enabled() and not detach):
        row = rollout(record.layers, plan.read, residual, first=first)
        return embedding, patch_map(row, plan.prefix_tokens, plan.grid)


def _embed(net: nn.Module, features: Tensor) -> Tensor:
    return net.forward_head(features, pre_logits=True)  # type: ignore[operator]


def _not_plain(net: nn.Module, why: str) -> FgvcError:
    name = network_name(net)
    return FgvcError(
        f"{name} cannot be a multi-stage ViT: {why}.",
        f"Choose a plain ViT such as vit_small_patch16_384, or train it plain with --model timm-{name}.",
    )
