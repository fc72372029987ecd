"""Settings: the paper's defaults, validation, --set."""

from __future__ import annotations

import math

import pytest

from fgvc_cli.config import CraSmraConfig, Preprocess, SetText, TrainConfig, apply_sets, build, config_sha256
from fgvc_cli.errors import EXIT_USAGE, FgvcError


def test_defaults_are_the_recipe_of_the_paper():
    config = TrainConfig(model="crasmra-r50")
    assert (config.preprocess.resize_px, config.preprocess.input_px) == (550, 448)
    assert config.preprocess.resize_rule == "squash" and config.augment.crop == "center"
    assert (config.epochs, config.batch_size) == (200, 20)
    assert (config.optim.momentum, config.optim.weight_decay) == (0.9, 1e-5)
    options = CraSmraConfig()
    assert (options.omega, options.delta, options.reduction) == (0.5, 0.9, 16)
    assert (options.mask_sum, options.softmax_of, options.suppress_rule) == ("after_mlp", "mask", "threshold")
    assert math.exp(-1) < options.delta


def test_set_reaches_nested_fields_and_converts():
    values = apply_sets(
        {"model": "m"},
        ["optim.lr_cram=0.01", "preprocess.mean=0.1,0.2,0.3", "ema_decay=none", "augment.flip=no"],
    )
    config = build(TrainConfig, values)
    assert config.optim.lr_cram == 0.01
    assert config.preprocess.mean == (0.1, 0.2, 0.3)
    assert config.ema_decay is None and config.augment.flip is False


def test_set_does_not_change_what_it_was_given():
    values = {"model": "m", "optim": {"name": "adamw"}}
    apply_sets(values, ["optim.name=sgd"])
    assert values["optim"]["name"] == "adamw"


@pytest.mark.parametrize(
    ("assignment", "section", "value"),
    [
        ("amp=none", None, "none"),
        ("ema_decay=none", None, None),
        ("init=a,b.safetensors", None, "a,b.safetensors"),
        ("options.channel_attention=none", "options", "none"),
        ("options.neck_channels=none", "options", None),
    ],
)
def test_none_and_commas_mean_what_the_field_says(assignment, section, value):
    config = build(TrainConfig, apply_sets({"model": "m"}, [assignment]))
    name = assignment.partition("=")[0].rpartition(".")[2]
    holder = build(CraSmraConfig, config.options) if section else config
    assert getattr(holder, name) == value


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optim.lr_crma=1", "Unknown setting 'optim.lr_crma'.*lr_cram"),
        ("epochs=many", "epochs got 'many'.*integer"),
        ("epochs=0", "epochs got '0'.*greater than or equal to 1"),
        ("preprocess.resize_px=100", "resize_px 100 is smaller than input_px 448"),
        ("optim.lr_cram", "expected section.field=value"),
        ("epochs.more=1", "epochs is a single value"),
        ("augment.crop=middle", "augment.crop got 'middle'.*'center', 'random' or 'resized'"),
    ],
)
def test_bad_settings_are_one_line_that_names_them(assignment, message):
    with pytest.raises(FgvcError, match=message) as caught:
        build(TrainConfig, apply_sets({"model": "m", "epochs": 3}, [assignment]))
    assert caught.value.exit_code == EXIT_USAGE
    assert "\n" not in str(caught.value)


def test_three_numbers_may_be_given_where_none_is_the_default():
    config = build(CraSmraConfig, {"depths": SetText("2,4,6")})
    assert config.depths == (2, 4, 6)
    assert build(CraSmraConfig, {"depths": SetText("none")}).depths is None


@pytest.mark.parametrize(
    ("assignment", "hint"),
    [
        ("optim.lr_hed=1", "optim.lr_heads"),
        ("lr_heads=1", "optim.lr_heads"),
        ("cascade=0.5", "options.cascade="),
    ],
)
def test_unknown_settings_name_the_nearest_as_they_are_typed(assignment, hint):
    with pytest.raises(FgvcError, match=hint):
        build(TrainConfig, apply_sets({"model": "vitms-s16"}, [assignment]))


def test_hash_names_the_run():
    one, other = TrainConfig(model="a"), TrainConfig(model="a", seed=1)
    assert config_sha256(one) == config_sha256(TrainConfig(model="a")) != config_sha256(other)


def test_zero_std_is_refused():
    with pytest.raises(FgvcError, match="std must be positive"):
        build(Preprocess, {"std": (0.2, 0.0, 0.2)})
