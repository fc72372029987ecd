"""Parameter groups and the schedule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fgvc_cli.config import Optim
from fgvc_cli.engine.optim import OneCycle, build_optimizer, build_schedule, largest_rates, parameter_groups
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.models.registry import create_model


def test_groups_have_the_papers_learning_rates_and_hold_every_parameter_once():
    model = create_model("crasmra-resnet18", 3)
    groups = parameter_groups(model, Optim())
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates == {"backbone": 0.0002, "cram": 0.006, "smram": 0.0002, "heads": 0.002}
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_the_mlps_of_the_masks_are_a_group_of_their_own_where_asked():
    model = create_model("crasmra-resnet18", 3, options={"mask_norm": "layer"})
    groups = {g["name"]: g for g in parameter_groups(model, Optim(lr_mask=0.1))}
    assert (groups["mask"]["lr"], groups["cram"]["lr"]) == (0.1, 0.006)
    parts = [part for stage in model.cram for part in (stage.mlp, stage.norm)]
    masks = {id(p) for part in parts for p in part.parameters()}
    assert {id(p) for p in groups["mask"]["params"]} == masks
    assert "mask" not in {g["name"] for g in parameter_groups(model, Optim())}


def test_baseline_classifier_gets_the_same_raised_rate():
    rates = {g["name"]: g["lr"] for g in parameter_groups(create_model("timm-resnet18", 3), Optim())}
    assert rates == {"backbone": 0.0002, "heads": 0.002}


def test_sgd_of_the_paper():
    optimizer = build_optimizer(create_model("timm-resnet18", 3), Optim())
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 1e-5, False)


def test_any_timm_optimiser_and_a_clear_refusal():
    model = create_model("timm-resnet18", 3)
    assert type(build_optimizer(model, Optim(name="adamw"))).__name__ == "AdamW"
    with pytest.raises(FgvcError, match="no optimiser 'sdg'"):
        build_optimizer(model, Optim(name="sdg"))


def test_cosine_falls_from_each_rate_to_zero_after_warm_up():
    config = Optim(warmup_epochs=1)
    optimizer = build_optimizer(create_model("crasmra-resnet18", 3), config)
    schedule = build_schedule(optimizer, config, epochs=4, steps_per_epoch=10)
    assert all(group["lr"] == 0 for group in optimizer.param_groups)
    seen = []
    for step in range(1, 40):
        schedule.step_update(step)
        seen.append([group["lr"] for group in optimizer.param_groups])
    tops = [max(column) for column in zip(*seen, strict=True)]
    assert tops == pytest.approx([0.0002, 0.006, 0.0002, 0.002], rel=0.2)
    backbone = [row[0] for row in seen]
    assert backbone[:9] == sorted(backbone[:9]) and backbone[10:] == sorted(backbone[10:], reverse=True)
    assert backbone[-1] < 0.01 * 0.0002


def run_rates(config: Optim, updates: int) -> list[list[float]]:
    """The rates of each group at each update, as the trainer meets them."""
    optimizer = build_optimizer(create_model("crasmra-resnet18", 3), config)
    schedule = build_schedule(optimizer, config, epochs=2, steps_per_epoch=updates // 2)
    seen = []
    for update in range(1, updates + 1):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step_update(update)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
        seen[-1] if config.schedule == "onecycle" else [0.0] * 4
    )
    return seen


def test_one_cycle_rises_to_each_groups_rate_and_falls_to_nothing():
    tops = [0.0002, 0.006, 0.0002, 0.002]
    seen = run_rates(Optim(schedule="onecycle"), updates=20)
    assert seen[0] == pytest.approx([top / 25 for top in tops])
    assert seen[5] == pytest.approx(tops)
    assert seen[-1] == pytest.approx([top / 25e4 for top in tops])
    # Halfway down, between update 5 and update 19: the mean of top and bottom.
    assert seen[12] == pytest.approx([top * (1 + 1 / 25e4) / 2 for top in tops])


def test_frozen_epochs_have_a_cycle_of_their_own():
    tops = [0.0002, 0.006, 0.0002, 0.002]
    seen = run_rates(Optim(schedule="onecycle", freeze_epochs=1), updates=40)
    for start in (0, 20):
        assert seen[start] == pytest.approx([top / 25 for top in tops])
        assert seen[start + 5] == pytest.approx(tops)
        assert seen[start + 19] == pytest.approx([top / 25e4 for top in tops])


def test_a_cycle_of_a_single_update_learns_at_the_full_rate():
    tops = [0.0002, 0.006, 0.0002, 0.002]
    frozen, thawed = run_rates(Optim(schedule="onecycle", freeze_epochs=1), updates=2)
    assert frozen == thawed == pytest.approx(tops)


@pytest.mark.parametrize("updates", [2, 3, 5, 10, 31])
def test_one_cycle_is_that_of_torch(updates):
    ours, theirs = (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3) for _ in range(2))
    schedule = OneCycle(ours, updates)
    expected = torch.optim.lr_scheduler.OneCycleLR(theirs, 0.3, total_steps=updates, cycle_momentum=False)
    for update in range(1, updates):
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"])
        theirs.step(), expected.step()
        schedule.step_update(update)
    assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"])


@pytest.mark.parametrize(
    "config", [Optim(), Optim(warmup_epochs=0.5), Optim(schedule="onecycle", freeze_epochs=1)]
)
def test_a_schedule_may_go_on_from_any_update(config):
    rates = []
    for steps in ([1, 2, 3, 4, 5, 6, 7], [7]):
        optimizer = build_optimizer(create_model("timm-test_vit", 3), config)
        schedule = build_schedule(optimizer, config, epochs=2, steps_per_epoch=5)
        for step in steps:
            schedule.step_update(step)
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates[0] == rates[1]


def test_one_cycle_leaves_momentum_alone():
    config = Optim(schedule="onecycle", momentum=0.7)
    optimizer = build_optimizer(create_model("timm-resnet18", 3), config)
    schedule = build_schedule(optimizer, config, epochs=1, steps_per_epoch=10)
    optimizer.step()
    schedule.step_update(1)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.7}


def test_cosine_is_stepped_the_same_way():
    seen = run_rates(Optim(), updates=20)
    assert seen[10] == pytest.approx([rate / 2 for rate in seen[0]])


def test_warm_up_of_one_cycle_is_refused():
    config = Optim(schedule="onecycle", warmup_epochs=1)
    with pytest.raises(FgvcError, match="warmup_epochs=1 goes with.*cosine") as caught:
        run_rates(config, updates=20)
    assert caught.value.exit_code == EXIT_USAGE


def rates_by_parameter(model: nn.Module, config: Optim) -> dict[str, tuple[float, float]]:
    """Parameter name -> (learning rate, weight decay) in the optimiser."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, config).param_groups
    held = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(held) == sorted(names.values())
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_layer_decay_falls_by_its_factor_per_layer_of_the_backbone_alone():
    model = create_model("timm-test_vit", 3)
    blocks = len(model.backbone.blocks)
    config = Optim(name="adamw", layer_decay=0.5, lr_backbone=0.01, weight_decay=0.1)
    found = rates_by_parameter(model, config)
    for block in range(blocks):
        rate = 0.01 * 0.5 ** (blocks - 1 - block)
        assert found[f"backbone.blocks.{block}.attn.qkv.weight"] == pytest.approx((rate, 0.1))
        assert found[f"backbone.blocks.{block}.norm1.weight"] == pytest.approx((rate, 0.0))
    stem = 0.01 * 0.5**blocks
    assert found["backbone.patch_embed.proj.weight"] == pytest.approx((stem, 0.1))
    # Three axes, no 1-D tensor: exempt because the backbone says so.
    assert found["backbone.pos_embed"] == pytest.approx((stem, 0.0))
    # Other parts stay as they are without layer decay: one rate, the common weight decay.
    assert found["heads.1.weight"] == found["heads.1.bias"] == (0.002, 0.1)


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_layer_decay_survives_every_schedule(schedule):
    config = Optim(layer_decay=0.5, schedule=schedule)
    optimizer = build_optimizer(create_model("timm-test_vit", 3), config)
    before = [group["lr"] for group in optimizer.param_groups]
    step = build_schedule(optimizer, config, epochs=1, steps_per_epoch=20).step_update
    for update in range(1, 13):
        optimizer.step()
        step(update)
    after = [group["lr"] for group in optimizer.param_groups]
    shares = [new / old for new, old in zip(after, before, strict=True)]
    assert shares == pytest.approx([shares[0]] * len(shares)) and 0 < shares[0] < 1


def test_one_rate_per_root_is_reported_the_largest():
    config = Optim(layer_decay=0.5)
    optimizer = build_optimizer(create_model("crasmra-resnet18", 3), config)
    names = [group["name"] for group in optimizer.param_groups]
    assert sum(name.startswith("backbone.") for name in names) == len(names) - 3 > 2
    expected = {"lr_backbone": 0.0002, "lr_cram": 0.006, "lr_smram": 0.0002, "lr_heads": 0.002}
    assert largest_rates(optimizer) == expected
    optimizer.param_groups[0]["lr"] = 1.0
    assert math.isclose(largest_rates(optimizer)["lr_backbone"], 1.0)


def test_layer_decay_needs_a_backbone_with_layers():
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "heads": nn.Linear(2, 2)})
    assert len(parameter_groups(model, Optim())) == 2
    with pytest.raises(FgvcError, match="layer_decay=0.5 needs.*Linear does not") as caught:
        build_optimizer(model, Optim(layer_decay=0.5))
    assert caught.value.exit_code == EXIT_USAGE
