"""The plain backbone shows the same three stages as CRA-SMRA on it, and answers what it answers without."""

from __future__ import annotations

import pytest
import torch

from fgvc_cli.models.registry import create_model

NAMES = {
    "test_resnet": 64,
    "mobilenetv2_100": 64,
    "test_mambaout": 64,  # channels last
    "vit_tiny_patch16_224": 224,
}


def build(name: str):
    torch.manual_seed(0)
    return create_model(name, 3, input_px=NAMES[name.partition("-")[2]]).eval()


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_backbone_has_the_stages_of_cra_smra_on_it(name):
    images = torch.randn(2, 3, NAMES[name], NAMES[name])
    plain, modules = build(f"timm-{name}"), build(f"crasmra-{name}")
    keys = [*plain.state_dict()]
    with torch.no_grad():
        before = plain(images, want=("heat",))
        after = plain(images, want=("stages", "heat"))
        cells = {key: maps.shape for key, maps in modules(images, want=("stages",)).stages.items()}
    torch.testing.assert_close(after.probs, before.probs)
    torch.testing.assert_close(after.heat, before.heat)
    assert {key: maps.shape for key, maps in after.stages.items()} == cells
    assert torch.equal(after.stages["stage5"], after.heat)
    assert not torch.equal(after.stages["stage3"], after.stages["stage4"])
    assert [*plain.state_dict()] == keys, "asking for maps changes no network"


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_of_a_plain_backbone_has_gradients(name):
    answer = build(f"timm-{name}")(torch.randn(1, 3, NAMES[name], NAMES[name]), want=("features",))
    assert [*answer.features] == ["stage3", "stage4", "stage5"]
    slopes = torch.autograd.grad(answer.probs[0, 0], [stage.values for stage in answer.features.values()])
    assert all(slope.abs().sum() > 0 for slope in slopes)


def test_a_network_that_does_not_run_in_stages_shows_its_last():
    model = create_model("timm-swin_tiny_patch4_window7_224", 3, input_px=224).eval()
    with torch.no_grad():
        answer = model(torch.randn(1, 3, 224, 224), want=("stages",))
    assert [*answer.stages] == ["last_stage"]
