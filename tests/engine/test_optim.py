"""Parameter groups and the schedule."""

from __future__ import annotations

import pytest

from fgvc_cli.config import Optim
from fgvc_cli.engine.optim import build_optimizer, build_schedule, parameter_groups
from fgvc_cli.errors import FgvcError
from fgvc_cli.models.registry import create_model


def test_groups_have_the_papers_learning_rates_and_hold_every_parameter_once():
    model = create_model("crasmra-resnet18", 3)
    groups = parameter_groups(model, Optim())
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates == {"backbone": 0.0002, "cram": 0.006, "smram": 0.0002, "heads": 0.002}
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


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
