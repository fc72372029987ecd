"""The rollout of one row against the whole product of matrices, and its closed forms."""

from __future__ import annotations

import pytest
import torch

from fgvc_cli.attention import rollout as module
from fgvc_cli.attention.rollout import LayerAttention, patch_map, rollout

CLASS_TOKEN = slice(0, 1)


def make_layers(count=4, batch=3, heads=2, tokens=10, width=8, seed=0, bias=False):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return [
        LayerAttention(
            2 * draw(batch, heads, tokens, width),
            draw(batch, heads, tokens, width),
            width**-0.5,
            draw(heads, tokens, tokens) if bias else None,
        )
        for _ in range(count)
    ]


def full_product(layers, residual):
    """Abnar & Zuidema as they write it: N^3 per layer, rows normalised, in float64."""
    product = None
    for query, key, scale, bias, lengths in layers:
        products = (query.double() @ key.double().transpose(-1, -2)) * scale
        attention = (products + (0 if bias is None else bias.double())).softmax(dim=-1)
        if lengths is not None:
            attention = attention * lengths[:, :, None].double()
            attention = attention / attention.sum(dim=-1, keepdim=True)
        attention = attention.mean(dim=1)
        mixed = (1 - residual) * attention + residual * torch.eye(attention.shape[-1], dtype=torch.float64)
        mixed = mixed / mixed.sum(dim=-1, keepdim=True)
        product = mixed if product is None else mixed @ product
    return product


@pytest.mark.parametrize("residual", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("bias", [False, True])
def test_class_token_row_equals_the_full_product(residual, bias):
    layers = make_layers(bias=bias)
    expected = full_product(layers, residual)[:, 0]
    torch.testing.assert_close(
        rollout(layers, CLASS_TOKEN, residual).double(), expected, atol=1e-6, rtol=1e-5
    )


def test_mean_row_of_a_model_without_class_token_equals_the_mean_of_rows():
    layers = make_layers(seed=1)
    expected = full_product(layers, 0.5)[:, 2:].mean(dim=1)
    torch.testing.assert_close(rollout(layers, slice(2, 10)).double(), expected, atol=1e-6, rtol=1e-5)


def test_rows_sum_to_one_and_chunks_change_nothing(monkeypatch):
    layers = make_layers(batch=5)
    whole = rollout(layers, CLASS_TOKEN)
    torch.testing.assert_close(whole.sum(dim=1), torch.ones(5))
    monkeypatch.setattr(module, "_CHUNK_BYTES", {"cpu": 4 * 2 * 10 * 10 * 2})
    torch.testing.assert_close(rollout(layers, CLASS_TOKEN), whole)


def test_identity_alone_leaves_the_start():
    start = torch.zeros(10)
    start[3] = 1
    assert torch.equal(rollout(make_layers(), slice(3, 4), residual=1.0), start.expand(3, 10))


def test_uniform_attention_spreads_evenly():
    """q = 0: each layer is the mean; one layer of 0.5 leaves half of the row where it was."""
    query = torch.zeros(1, 1, 4, 2)
    row = rollout([LayerAttention(query, query, 1.0)], CLASS_TOKEN)
    torch.testing.assert_close(row, torch.tensor([[0.625, 0.125, 0.125, 0.125]]))


def test_lengths_of_values_weigh_attention():
    layers = [
        layer._replace(value_norm=torch.rand(3, 2, 10, generator=torch.Generator().manual_seed(i)))
        for i, layer in enumerate(make_layers(seed=3))
    ]
    expected = full_product(layers, 0.5)[:, 0]
    torch.testing.assert_close(rollout(layers, CLASS_TOKEN).double(), expected, atol=1e-6, rtol=1e-5)
    # What is attended to and hands on nothing is not on the map.
    mute = torch.tensor([4])
    muted = [layer._replace(value_norm=layer.value_norm.index_fill(2, mute, 0)) for layer in layers]
    assert rollout(muted, CLASS_TOKEN)[:, 4].tolist() == [0, 0, 0]


@pytest.mark.parametrize("first", [1, 3, 4])
def test_lower_layers_can_be_left_out(first):
    layers = make_layers(seed=4)
    expected = full_product(layers[first - 1 :], 0.5)[:, 0]
    found = rollout(layers, CLASS_TOKEN, first=first)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)


def test_gradients_reach_q_and_k():
    layers = make_layers()
    for layer in layers:
        layer.query.requires_grad_()
        layer.key.requires_grad_()
    rollout(layers, CLASS_TOKEN)[:, 5].sum().backward()
    assert all(layer.query.grad.abs().sum() > 0 and layer.key.grad.abs().sum() > 0 for layer in layers)


def test_patch_map_of_384_px_is_24_by_24_without_the_prefix_tokens():
    row = torch.rand(2, 1 + 576)
    row[:, 0] = 9
    heat = patch_map(row, 1, (24, 24))
    assert heat.shape == (2, 24, 24)
    assert heat.amax(dim=(1, 2)).tolist() == [1, 1]
    torch.testing.assert_close(heat[0] * row[0, 1:].max(), row[0, 1:].view(24, 24))
