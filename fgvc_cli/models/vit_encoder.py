"""Any plain timm ViT as the encoder of a multi-stage model: an embedding, and where it attended.

Fused attention never shows its softmax, so q and k are taken where the encoder hands them over to
``scaled_dot_product_attention`` (rotated, normalised and scaled as the architecture does it) and the map is
computed beside the main pass, which stays as it is.

Legend: B batch, D width, N tokens, h w rows and columns of the patch grid, S side of the input.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from fgvc_cli.attention.rollout import LayerAttention, patch_map, rollout
from fgvc_cli.errors import FgvcError
from fgvc_cli.models.vit_stages import network_name


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
    def map(self, *, class_token: bool, residual: float = 0.5) -> Tensor | None:
        """(B, h, w) in [0, 1], for the class token or all patches; None where a block hid its attention."""
        if len(self.layers) != self.blocks:
            return None
        read = slice(0, 1) if class_token else slice(self.prefix_tokens, self.tokens)
        return patch_map(rollout(self.layers, read, residual), self.prefix_tokens, self.grid)


@contextlib.contextmanager
def record_rollout(net: nn.Module, images: Tensor, *, wanted: bool) -> Iterator[RecordRollout | None]:
    """While active, what a plain ViT attends with is kept; None for other networks, or where not wanted.

    Args:
        images: (B, 3, H, W) that the network is about to take, for the size of its grid.
    """
    embed, blocks = getattr(net, "patch_embed", None), getattr(net, "blocks", ())
    size_of = getattr(embed, "dynamic_feat_size", None)
    if not wanted or size_of is None or not len(blocks) or not hasattr(net, "num_prefix_tokens"):
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
