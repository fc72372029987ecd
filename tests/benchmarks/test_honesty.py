"""The measures of benchmarks/honesty.py where their value is known, and its random models."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from honesty import Bird, Model, randomised, score
from honesty_scores import correlation, curves, energy, points, ranks
from honesty_table import AGAINST, CENTRE, collect, failed, read_lines

from fgvc_cli.aviary.dataset import SPECIES, Truth, render_bird, slug
from fgvc_cli.config import Preprocess
from fgvc_cli.models.registry import create_model

SIDE = 16
QUARTER = (slice(SIDE // 2), slice(SIDE // 2))


def quarter_map() -> torch.Tensor:
    heat = torch.zeros(1, SIDE, SIDE)
    heat[(0, *QUARTER)] = 1
    return heat


def checks() -> torch.Tensor:
    """A chessboard of -1 and 1: a blur of it is nearly grey."""
    row = 1 - 2 * (torch.arange(SIDE) % 2).float()
    return (row[:, None] * row[None]).expand(1, 3, SIDE, SIDE)


def contrast_in_quarter(images: torch.Tensor) -> torch.Tensor:
    p = images[(slice(None), 0, *QUARTER)].abs().mean(dim=(1, 2))
    return torch.stack([p, 1 - p], dim=1)


def test_curves_of_a_model_that_lives_on_a_quarter_have_known_areas():
    heats = {"right": quarter_map(), "wrong": 1 - quarter_map()}
    areas, ends = curves(contrast_in_quarter, checks(), heats, 0)
    assert ends["whole"] == pytest.approx(1) and ends["grey"] == 0 and ends["blurred"] < 0.02
    # From 1 to 0 over the first quarter of the picture, or over the last.
    assert areas["right"] == pytest.approx((1 / 8, 7 / 8), abs=0.01)
    assert areas["wrong"] == pytest.approx((7 / 8, 1 / 8), abs=0.01)


def test_the_other_class_has_the_other_areas():
    areas, _ = curves(contrast_in_quarter, checks(), {"right": quarter_map()}, 1)
    assert areas["right"] == pytest.approx((7 / 8, 1 / 8), abs=0.01)


def test_the_hottest_come_first_and_equals_neither_by_row_nor_differently_each_time():
    heat = quarter_map()
    heat[0, 3, 5] = 2
    order = ranks(heat, SIDE)
    assert order[3, 5] == 0 and order[QUARTER].max() == (SIDE // 2) ** 2 - 1
    assert order.flatten().sort().values.tolist() == list(range(SIDE**2))
    flat = ranks(torch.zeros(1, 7, 7), SIDE)
    assert torch.equal(flat, ranks(torch.ones(1, 7, 7), SIDE))
    by_row = np.corrcoef(flat.flatten().numpy(), np.arange(SIDE**2))[0, 1]
    assert abs(by_row) < 0.5


def test_energy_is_the_share_inside():
    box = (0.0, 0.0, SIDE / 2, SIDE / 2)
    assert energy(quarter_map(), [box], SIDE) == pytest.approx(1)
    assert energy(torch.ones(1, 4, 4), [box, box], SIDE) == pytest.approx(1 / 4)
    assert energy(torch.zeros(1, 4, 4), [box], SIDE) == 0


def test_an_empty_map_points_nowhere():
    box = (0.0, 0.0, SIDE / 2, SIDE / 2)
    assert points(quarter_map(), [box], SIDE, "bird")["point bird"] == 1
    assert points(1 - quarter_map(), [box], SIDE, "bird")["point bird"] == 0
    assert points(torch.zeros(1, 4, 4), [box], SIDE, "bird") == {"point bird": 0, "energy bird": 0}


def test_correlation_has_no_sign_and_a_constant_map_none():
    heat = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(0))
    assert correlation(heat, heat**3) == pytest.approx(1)
    assert correlation(heat, 1 - heat) == pytest.approx(1)
    assert correlation(heat, torch.zeros(1, 6, 6)) is None


@pytest.mark.parametrize(("name", "side"), [("crasmra-test_resnet", 64), ("vitms-test_vit", 160)])
def test_a_random_model_keeps_no_weight_and_still_sees(name, side):
    torch.manual_seed(0)  # among so many weights two may be close by chance
    trained = create_model(name, 4, input_px=side).eval()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter += 0.37
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    images = torch.randn(8, 3, side, side, generator=torch.Generator().manual_seed(0))
    images *= torch.linspace(0.2, 3, 8).view(-1, 1, 1, 1)
    drawn = randomised(trained, images, 0)
    assert not drawn.training
    for key, parameter in drawn.named_parameters():
        assert not torch.isclose(parameter, before[key]).any(), key
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())
    again, other = randomised(trained, images, 0), randomised(trained, images, 1)
    first = next(iter(drawn.state_dict()))
    assert torch.equal(drawn.state_dict()[first], again.state_dict()[first])
    assert not torch.equal(drawn.state_dict()[first], other.state_dict()[first])
    with torch.no_grad():
        output = drawn(images, want=("stages",))
    # Its answer depends on the picture, so that its maps can be empty for no want of signal.
    assert output.probs.std(dim=0).max() > 1e-3
    assert all(heat.std(dim=(1, 2)).min() > 0 for heat in output.stages.values())


def test_norms_of_a_random_model_hold_the_statistics_of_the_pictures():
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)) + 2
    drawn = randomised(create_model("timm-test_resnet", 4, input_px=64), images, 0)
    first = next(name for name, m in drawn.named_modules() if isinstance(m, torch.nn.BatchNorm2d))
    seen = []
    hook = drawn.get_submodule(first).register_forward_pre_hook(lambda module, x: seen.append(x[0]))
    with torch.no_grad():
        drawn(images)
    hook.remove()
    norm = drawn.get_submodule(first)
    torch.testing.assert_close(norm.running_mean, seen[0].mean(dim=(0, 2, 3)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(norm.running_var, seen[0].var(dim=(0, 2, 3)), atol=1e-4, rtol=1e-3)
    assert norm.momentum is not None and not norm.training


def test_one_picture_is_scored_for_its_class_and_against_each_that_differs_in_one_part():
    rendering = render_bird(SPECIES[0], np.random.default_rng(0), 64)
    truth = Truth("test", slug(SPECIES[0]), rendering.box, rendering.parts)
    classes = tuple(sorted(slug(species) for species in SPECIES))
    checkpoint = SimpleNamespace(classes=classes, preprocess=Preprocess(input_px=64, resize_px=64))
    bird = Bird(truth, (64, 64), checkpoint)
    assert bird.places["bird"] == [rendering.box]
    # The copper cap against the black one, the plain breast against the spotted one.
    crown, breast = rendering.parts["crown"], rendering.parts["breast"]
    assert sorted(bird.places["telling part"]) == sorted([crown, breast])
    rivals = {classes.index("black-capped-linnet"): [crown], classes.index("spotted-linnet"): [breast]}
    assert bird.rivals == rivals

    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = Model(create_model("crasmra-test_resnet", len(classes), input_px=64).eval(), images)
    bird.target = int(model.probs(images).argmax())
    methods = ["features", "rollout", "gradcam", "hirescam", "occlusion"]
    line, heats = score(model, model, images, bird, methods, {})
    assert line["right"] == 1 and {"stage5", "gradcam-stage3", "occlusion"} <= {*heats}
    assert not [name for name in heats if "rollout" in name]
    assert line["rows"]["stage5"]["sanity"] == pytest.approx(1)  # the same weights
    assert {"noise 2 x 2", "noise 12 x 12", CENTRE} <= {*line["rows"]}
    # Maps that no class is asked of say nothing about a rival.
    contrasts = {
        f"{name}{AGAINST}" for name in heats if name.startswith(("gradcam", "hirescam", "occlusion"))
    }
    assert {*line["contrasts"]} == contrasts | {f"{CENTRE}{AGAINST}"}
    assert all(len(rows) == 2 for rows in line["contrasts"].values())

    bird.target = (bird.target + 1) % len(classes)
    line, _ = score(model, None, images, bird, ["features"], heats)
    assert line["right"] == 0 and "point telling part" not in line["rows"]["stage5"]
    assert line["rows"]["stage5"]["other picture"] == pytest.approx(1)
    assert "sanity" not in line["rows"]["stage5"]


def row(bird: float, deletion: float, cells: int = 7, **more: float) -> dict[str, float]:
    return {"point bird": bird, "deletion": deletion, "insertion": 1 - deletion, "cells": cells} | more


def part(hit: int) -> dict[str, float]:
    return {"point telling part": float(hit)}


def lines(count: int = 12) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {
            "rows": {
                "good": row(1.0, 0.1 + 0.02 * rng.random(), sanity=0.1),
                "fine": row(1.0, 0.3, 28, sanity=0.2),
                "coarse": row(1.0, 0.3, 7, sanity=math.nan),
                "picture": row(1.0, 0.1, sanity=0.9),
                "blind": row(0.2, 0.4 + 0.02 * rng.random(), sanity=0.1),
                CENTRE: row(float(index % 2), 0.4 + 0.02 * rng.random()),
                "noise 7 x 7": row(0.2, 0.5),
                "noise 28 x 28": row(0.2, 0.2, 28),
            },
            "contrasts": {
                "good, against the nearest": [part(1), part(index % 3 > 0)],
                "blind, against the nearest": [part(0), part(index % 2)],
                "centre prior, against the nearest": [part(0), part(index % 2)],
            },
        }
        for index in range(count)
    ]


def test_what_is_not_better_than_its_controls_is_said_to_fail():
    scores = collect(lines())
    assert failed(scores, "good") == []
    assert failed(scores, "blind") == ["point bird", "deletion", "insertion"]
    assert failed(scores, "picture") == ["sanity"]
    # Fine noise hides more than coarse: what beats the one need not beat the other.
    assert failed(scores, "coarse") == []
    assert failed(scores, "fine") == ["deletion", "insertion"]
    # Each picture counts once, as the mean over its rivals.
    assert scores["good, against the nearest"]["point telling part"].mean() == pytest.approx(5 / 6)
    assert failed(scores, "good, against the nearest") == []
    assert failed(scores, "blind, against the nearest") == ["point telling part"]


def test_lines_of_other_weights_are_left_out(tmp_path):
    path = tmp_path / "scores.jsonl"
    assert read_lines(path, "a") == []
    path.write_text('{"weights": "a", "picture": "1"}\n{"weights": "b", "picture": "2"}\n')
    assert [line["picture"] for line in read_lines(path, "a")] == ["1"]
