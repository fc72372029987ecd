"""--init and the refusal of pickles."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from fgvc_cli.config import Preprocess, TrainConfig
from fgvc_cli.engine.checkpoint import load_checkpoint, save_checkpoint
from fgvc_cli.errors import FgvcError
from fgvc_cli.models.registry import create_model
from fgvc_cli.models.weights import read_tensors


@pytest.fixture
def timm_weights(tmp_path):
    import timm

    torch.manual_seed(1)
    net = timm.create_model("mobilenetv2_035", num_classes=5)
    path = tmp_path / "imagenet.safetensors"
    save_file(net.state_dict(), path, metadata={"mean": "(0.5, 0.5, 0.5)", "std": "(0.25, 0.25, 0.25)"})
    return net, path


@pytest.mark.parametrize("family", ["crasmra", "timm"])
def test_init_loads_the_backbone_and_its_statistics(family, timm_weights):
    net, path = timm_weights
    model = create_model(f"{family}-mobilenetv2_035", 3, init=path)
    assert torch.equal(model.backbone.conv_stem.weight, net.conv_stem.weight)
    assert torch.equal(model.backbone.conv_head.weight, net.conv_head.weight)
    assert (model.input_mean, model.input_std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def own_checkpoint(tmp_path):
    torch.manual_seed(2)
    model = create_model("crasmra-resnet18", 3)
    path = tmp_path / "own.safetensors"
    preprocess = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    config = TrainConfig(model="crasmra-resnet18", preprocess=preprocess)
    save_checkpoint(path, model, config=config, classes=("a", "b", "c"), dataset="d", metrics={})
    return model, path


@pytest.mark.parametrize("family", ["crasmra", "timm"])
def test_init_takes_backbone_and_statistics_of_an_own_checkpoint(family, own_checkpoint):
    first, path = own_checkpoint
    second = create_model(f"{family}-resnet18", 7, init=path)
    assert torch.equal(second.backbone.layer4[0].conv1.weight, first.backbone.layer4[0].conv1.weight)
    assert (second.input_mean, second.input_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_init_takes_cram_and_smram_where_they_fit_and_never_the_heads(own_checkpoint):
    first, path = own_checkpoint
    second = create_model("crasmra-resnet18", 3, init=path)
    assert torch.equal(second.cram[0].mlp[0].weight, first.cram[0].mlp[0].weight)
    assert torch.equal(second.smram.phi[0][0].weight, first.smram.phi[0][0].weight)
    assert not torch.equal(second.heads["concat"][1].weight, first.heads["concat"][1].weight)
    narrow = create_model("crasmra-resnet18", 3, init=path, options={"neck_channels": 64})
    assert torch.equal(narrow.cram[0].mlp[0].weight, first.cram[0].mlp[0].weight)


def test_init_of_another_architecture_says_what_does_not_fit(timm_weights):
    with pytest.raises(FgvcError, match="does not fit this backbone.*missing"):
        create_model("crasmra-resnet18", 3, init=timm_weights[1])


@pytest.mark.parametrize("read", [read_tensors, load_checkpoint])
def test_pickle_is_refused_and_the_conversion_named(read, tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(FgvcError, match="pickle.*weights_only=True"):
        read(path)
    renamed = path.rename(tmp_path / "model.safetensors")
    with pytest.raises(FgvcError, match="pickle"):
        read(renamed)


@pytest.mark.parametrize("nested", [False, True])
def test_named_conversion_command_works(nested, tmp_path):
    import re
    import subprocess
    import sys

    tensors = {"a": torch.arange(3.0)}
    torch.save({"state_dict": tensors, "epoch": 3} if nested else tensors, tmp_path / "model.pth")
    with pytest.raises(FgvcError) as caught:
        read_tensors(tmp_path / "model.pth")
    code = re.search(r'python -c "(.*)"', str(caught.value))[1]
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    tensors, _ = read_tensors(tmp_path / "model.safetensors")
    assert torch.equal(tensors["a"], torch.arange(3.0))


def test_truncated_and_missing_files(tmp_path, timm_weights):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(timm_weights[1].read_bytes()[:5000])
    with pytest.raises(FgvcError, match="not a readable safetensors file"):
        load_checkpoint(cut)
    with pytest.raises(FgvcError, match="no such file"):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(FgvcError, match="a folder"):
        load_checkpoint(tmp_path)


def test_plain_weights_are_no_checkpoint(timm_weights):
    with pytest.raises(FgvcError, match="no class names.*--init"):
        load_checkpoint(timm_weights[1])
