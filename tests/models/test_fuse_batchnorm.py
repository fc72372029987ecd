"""Folded batch norms: the same answers; where they would not be the same, the model as it was."""

import pytest
import torch
from torch import nn

from fgvc_cli import create_model
from fgvc_cli.models.fuse_batchnorm import fold_batch_norms
from fgvc_cli.models.output import ModelOutput


class Net(nn.Module):
    """convolution, batch norm; ``twice`` uses what comes from the convolution beside the norm too."""

    def __init__(self, twice=False, shared=False):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.again = nn.Conv2d(4, 4, 1) if shared else None
        self.twice = twice

    def forward(self, images, want=()):
        raw = self.conv(images)
        maps = self.norm(raw)
        if self.again:
            maps = self.norm(self.again(maps))
        if self.twice:
            maps = maps + raw
        return ModelOutput(logits={}, probs=maps.mean(dim=(2, 3)).softmax(dim=1))


def randomise(model):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return model.eval()


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_a_convolution_carries_the_scale_and_shift_of_its_batch_norm():
    model = randomise(Net())
    weight = model.conv.weight.clone()
    folded = fold_batch_norms(model, IMAGES)
    scale = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    torch.testing.assert_close(folded.conv.weight, weight * scale[:, None, None, None])
    torch.testing.assert_close(folded.conv.bias, model.norm.bias - model.norm.running_mean * scale)
    assert norms(folded) == 0 and norms(model) == 1
    assert model.conv.weight.equal(weight) and model.conv.bias is None


@pytest.mark.parametrize("options", [{"twice": True}, {"shared": True}])
def test_what_cannot_be_folded_is_left_as_it_is(options):
    model = randomise(Net(**options))
    assert fold_batch_norms(model, IMAGES) is model


@pytest.mark.parametrize("name", ["crasmra-resnet10t", "crasmra-mobilenetv2_035", "timm-densenet121"])
def test_whole_models_answer_the_same(name):
    model = randomise(create_model(name, num_classes=5, pretrained=False, input_px=64))
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    folded = fold_batch_norms(model, images[:1])
    assert folded is not model and norms(folded) < norms(model)
    with torch.inference_mode():
        before, after = (each(images, want=("heat", "boxes")) for each in (model, folded))
    torch.testing.assert_close(after.probs, before.probs, rtol=0, atol=1e-5)
    torch.testing.assert_close(after.heat, before.heat, rtol=0, atol=2e-3)
