"""Attention rollout (Abnar & Zuidema 2020) of one output row, in N^2 per layer instead of N^3.

The whole product of a ViT's L attention matrices is (N, N); a map needs one row of it. Starting from that row
at the last layer and multiplying downwards costs a vector-matrix product per layer. The matrices themselves
are computed from q and k, because fused attention never shows them.

Legend: B batch, M heads, N tokens, d width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 2**30}
"""Attention matrices held at a time: on the CPU about what its cache holds, which is fastest there."""


class LayerAttention(NamedTuple):
    """What one layer attended with."""

    query: Tensor
    """(B, M, N, d)."""
    key: Tensor
    """(B, M, N, d)."""
    scale: float
    """Factor on the products, usually d ** -0.5."""
    bias: Tensor | None = None
    """Added to the scaled products, broadcastable to (B, M, N, N); relative positions for example."""
    value_norm: Tensor | None = None
    """Length of each value vector, (B, M, N); None: attention counts as it is."""


def rollout(
    layers: Sequence[LayerAttention], start: slice, residual: float = 0.5, *, first: int = 1
) -> Tensor:
    """The row ``s @ A_L @ ... @ A_1``, A_l = (1 - residual) * mean over heads of softmax + residual * I.

    The rows of each A_l sum to 1 as they are, so normalising them changes nothing. Where a layer has a
    ``value_norm``, attention is weighed by it (Kobayashi et al. 2020), and its rows are normalised again: a
    token that is attended to but hands on next to nothing counts next to nothing.

    Args:
        layers: from the first to the last.
        start: the output tokens that the map is for, which share s equally: ``slice(0, 1)`` is the class
            token, all patches are right for a model that reads their mean.
        residual: share of the identity.
        first: the lowest layer that enters, from 1. Lower ones mix places that have not found their meaning
            yet. The last layer always enters.

    Returns:
        (B, N) float32, rows summing to 1. Gradients flow if q and k carry them.
    """
    batch, _, tokens, _ = layers[-1].query.shape
    row = torch.zeros(batch, tokens, device=layers[-1].query.device)
    row[:, start] = 1 / len(range(tokens)[start])
    # Queries of the last layer that do not count are not needed: for a class token, all but one.
    last = layers[-1]._replace(query=layers[-1].query[:, :, start])
    if last.bias is not None and last.bias.shape[-2] == tokens:
        last = last._replace(bias=last.bias[..., start, :])
    seen = _step(last, row[:, start])
    row = (1 - residual) * seen + residual * row
    for layer in reversed(layers[first - 1 : -1]):
        row = (1 - residual) * _step(layer, row) + residual * row
    return row


def _step(layer: LayerAttention, weights: Tensor) -> Tensor:
    """``weights`` (B, R) over the queries -> (B, N): their weighted attention, the mean over heads."""
    query, key, scale, bias, value_norm = layer
    batch, heads, rows, _ = query.shape
    matrix_bytes = 4 * heads * rows * key.shape[-2]
    count = max(1, _CHUNK_BYTES.get(query.device.type, _CHUNK_BYTES["cpu"]) // matrix_bytes)
    # An exported graph takes batches of any size, so none in chunks.
    whole = torch.compiler.is_exporting()
    chunks = [slice(None)] if whole else [slice(i, i + count) for i in range(0, batch, count)]
    parts = []
    # Autocast would round the weights to bfloat16 twelve times.
    with torch.autocast(query.device.type, enabled=False):
        for chunk in chunks:
            products = (query[chunk] * scale) @ key[chunk].transpose(-1, -2)
            if bias is not None:
                products = products + (bias[chunk] if bias.ndim == 4 and bias.shape[0] == batch else bias)
            attention = products.softmax(dim=-1, dtype=torch.float32)
            if value_norm is not None:
                attention = attention * value_norm[chunk, :, None].float()
                attention = attention / attention.sum(dim=-1, keepdim=True).clamp_min(1e-12)
            parts.append((weights[chunk, None, None] @ attention).squeeze(-2).mean(dim=1))
    return torch.cat(parts)


def patch_map(row: Tensor, prefix_tokens: int, grid: tuple[int, int]) -> Tensor:
    """A rollout row (B, N) -> map (B, h, w) in [0, 1]: the patch tokens on their grid, over their maximum."""
    patches = row[:, prefix_tokens:].unflatten(1, grid)
    return patches / patches.amax(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
