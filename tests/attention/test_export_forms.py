"""The forms that steps take in an exported graph give what their usual forms give."""

import pytest
import torch
import torch.nn.functional as F
from skimage.measure import label
from test_components import snake, spiral

from fgvc_cli.attention.crops import cut_boxes
from fgvc_cli.attention.objects import label_components, resize


@pytest.fixture
def exporting(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)


@pytest.mark.parametrize("size", [(14, 14), (20, 31), (64, 48), (20, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resizing_by_matrices_is_torchs_own(exporting, size, dtype):
    maps = torch.rand(2, 3, 20, 24, dtype=dtype, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(maps, size, mode="bilinear", antialias=True)
    torch.testing.assert_close(resize(maps, size), expected, rtol=0, atol=1e-6)
    assert resize(maps, size).dtype == dtype


@pytest.mark.parametrize("side", [5, 16, 40])
def test_cutting_by_matrices_is_roi_align(monkeypatch, side):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3, 2, 30, 40, generator=generator)
    corners = torch.rand(3, 4, 2, generator=generator) * torch.tensor([20.0, 15.0])
    sides = torch.rand(3, 4, 2, generator=generator) * torch.tensor([20.0, 15.0])
    boxes = torch.cat([corners, corners + sides], dim=-1)
    boxes[0, 0] = torch.tensor([0.0, 0.0, 40.0, 30.0])  # the whole image
    boxes[0, 1] = torch.tensor([39.0, 29.0, 40.0, 30.0])  # its last pixel
    boxes[0, 2] = torch.tensor([0.0, 0.0, 3.0, 30.0])  # a strip along the border
    expected = cut_boxes(images, boxes, side)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(cut_boxes(images, boxes, side), expected, rtol=0, atol=2e-5)


class _Label(torch.nn.Module):
    def forward(self, mask):
        return label_components(mask)


def test_labels_of_a_graph_are_those_of_scikit_image():
    side = 33
    generator = torch.Generator().manual_seed(2)
    noise = [torch.rand(side, side, generator=generator) < density for density in (0.2, 0.4, 0.6)]
    empty = torch.zeros(side, side, dtype=torch.bool)
    masks = torch.stack([snake(side), spiral(side), empty, ~empty, *noise])
    batch = {0: torch.export.Dim("batch", min=1)}
    graph = torch.export.export(_Label(), (masks[:2],), dynamic_shapes=(batch,)).module()
    for mask, found in zip(masks, graph(masks), strict=True):
        assert torch.equal(found >= 0, mask)
        expected = torch.from_numpy(label(mask.numpy()))[mask]
        # The same partition: as many pairs of numbers as numbers.
        pairs = set(zip(expected.tolist(), found[mask].tolist(), strict=True))
        assert len(pairs) == len(set(expected.tolist())) == len(set(found[mask].tolist()))
