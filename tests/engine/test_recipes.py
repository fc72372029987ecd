"""Recipes: what they give, whom they are for, how rates follow the batch."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import train_options

from fgvc_cli.config import TrainConfig, build
from fgvc_cli.engine.optim import build_optimizer, build_schedule
from fgvc_cli.engine.options import RECIPES, AblateOptions, Setup, TrainOptions, find_recipe
from fgvc_cli.engine.train import plain_values, resolved_config, settings_text, with_data
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.models import registry
from fgvc_cli.models.registry import backbone_traits, create_model


def config_of(model: str, *sets: str, **flags) -> TrainConfig:
    return build(TrainConfig, plain_values(train_options(sets, model=model, **flags)))


def test_the_papers_sizes_keep_their_ratio():
    config = config_of("crasmra-resnet18")
    assert (config.recipe, config.preprocess.resize_px, config.preprocess.input_px) == (
        "crasmra-paper",
        550,
        448,
    )
    assert config_of("timm-resnet18", input_px=224).preprocess.resize_px == 275
    config = config_of("vitms-test_vit")
    assert (config.recipe, config.preprocess.resize_px, config.epochs) == ("vitms-paper", 448, 30)


def test_the_papers_recipe_pins_what_the_papers_day_had():
    options = config_of("crasmra-r50").options
    assert (options["pretrained_tag"], options["head_pool"], options["min_hidden"]) == ("tv_in1k", "max", 1)
    assert config_of("timm-resnet101").options == {"pretrained_tag": "tv_in1k"}, "a fair baseline"
    assert "pretrained_tag" not in config_of("crasmra-d161").options


def test_a_tag_chooses_the_weights_of_a_name_without_one(monkeypatch):
    asked = []
    build = registry.build_backbone
    monkeypatch.setattr(
        registry, "build_backbone", lambda name, **kw: asked.append(name) or build(name, **kw)
    )
    create_model("timm-resnet50", 3, options={"pretrained_tag": "tv_in1k"})
    create_model("timm-resnet50.a1_in1k", 3, options={"pretrained_tag": "tv_in1k"})
    assert asked == ["resnet50.tv_in1k", "resnet50.a1_in1k"]
    with pytest.raises(FgvcError, match="no weights called 'resnet50.nothing'"):
        create_model("timm-resnet50", 3, options={"pretrained_tag": "nothing"})


def test_a_probe_leaves_the_backbone_alone_to_the_end():
    config = config_of("timm-resnet10t", recipe="probe", epochs=3)
    assert (config.epochs, config.optim.freeze_epochs) == (3, 3)


@pytest.mark.parametrize(("epochs", "frozen"), [(None, 2), (3, 2), (2, 1), (1, 0)])
def test_a_short_run_freezes_fewer_epochs(epochs, frozen):
    assert config_of("vitms-test_vit", epochs=epochs).optim.freeze_epochs == frozen
    given = [f"epochs={epochs}"] if epochs else []
    assert config_of("vitms-test_vit", *given).optim.freeze_epochs == frozen


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_a_config_for_each_of_its_families(name):
    for family in RECIPES[name].families:
        settings = RECIPES[name].settings(Setup(family=family, input_px=64, drop_path=True, vit=True))
        config = build(TrainConfig, {"model": f"{family}-test_vit"} | settings)
        assert config.preprocess.input_px == 64


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_where_it_comes_from(name):
    head, _, rest = RECIPES[name].text.partition("\n\n")
    assert "\n" not in head and len(head) <= 110
    assert "Source: " in rest and "Command: fgvc train" in rest and "not measured" in " ".join(rest.split())


def test_rates_of_strong_grow_with_the_square_root_of_the_images_of_an_update():
    base = config_of("crasmra-resnet10t", recipe="strong").optim
    for sets in (["batch_size=128"], ["accumulate=4"], ["batch_size=64", "devices=2"]):
        scaled = config_of("crasmra-resnet10t", *sets, recipe="strong").optim
        assert scaled.lr_backbone == pytest.approx(2 * base.lr_backbone)
        assert scaled.lr_heads == pytest.approx(2 * base.lr_heads)
    halved = config_of("crasmra-resnet10t", recipe="strong", batch_size=16).optim
    assert halved.lr_cram == pytest.approx(base.lr_cram / math.sqrt(2), rel=1e-3)
    under_torchrun = plain_values(TrainOptions("crasmra-resnet10t", recipe="strong"), processes=4)
    assert under_torchrun["optim"]["lr_cram"] == pytest.approx(2 * base.lr_cram)
    assert under_torchrun["devices"] == 4


@pytest.mark.parametrize("data", [{"multi_label": True, "splits": {"val": [1]}}, {"splits": {"val": []}}])
def test_branch_weights_that_cannot_be_fitted_are_equal_unless_they_were_asked_for(data):
    labelled = SimpleNamespace(**{"multi_label": False} | data)
    assert with_data(config_of("crasmra-resnet10t", recipe="strong"), labelled).options["fuse"] == "mean"
    asked = config_of("crasmra-resnet10t", "options.fuse=weighted", recipe="strong")
    assert with_data(asked, labelled).options["fuse"] == "weighted"
    fitted = SimpleNamespace(multi_label=False, splits={"val": [1]})
    assert with_data(config_of("crasmra-resnet10t", recipe="strong"), fitted).options["fuse"] == "weighted"


@pytest.mark.parametrize("batch", [8, 200])
def test_rates_of_the_papers_do_not_follow_the_batch(batch):
    for model in ("crasmra-resnet10t", "vitms-test_vit"):
        assert config_of(model, batch_size=batch).optim == config_of(model).optim


def test_what_is_set_lies_over_the_recipe():
    config = config_of(
        "timm-resnet10t", "optim.lr_heads=0.5", "ema_decay=none", recipe="strong", batch_size=64
    )
    assert config.optim.lr_heads == 0.5 and config.ema_decay is None
    assert config.optim.name == "adamw" and config.batch_size == 64
    assert config_of("timm-resnet10t", "recipe=strong").recipe == "strong"


def test_strong_gives_a_backbone_only_what_it_takes():
    densenet = config_of("crasmra-densenet121", recipe="strong")
    assert "drop_path" not in densenet.options and densenet.optim.layer_decay is None
    cnn = config_of("timm-resnet10t", recipe="strong")
    assert cnn.options == {"drop_path": 0.1} and cnn.optim.layer_decay is None
    vit = config_of("vitms-test_vit", recipe="strong")
    assert vit.options == {"drop_path": 0.1} and vit.optim.schedule == "onecycle"


@pytest.mark.parametrize(
    ("model", "backbone", "parts"),
    [
        ("crasmra-mobilenetv2_100", 2e-3, 8e-3),
        ("timm-tf_efficientnet_lite0", 2e-3, 8e-3),
        ("crasmra-r50", 5e-4, 2e-3),
        ("vitms-vit_tiny_patch16_224", 1e-4, 1e-3),
    ],
)
def test_rates_of_strong_are_those_that_were_measured_with_such_networks(model, backbone, parts):
    optim = config_of(model, recipe="strong").optim
    assert (optim.lr_backbone, optim.lr_heads, optim.lr_cram) == (backbone, parts, parts)


def test_strong_keeps_masks_from_saturating():
    living = config_of("crasmra-resnet10t", recipe="strong")
    assert (living.options["mask_norm"], living.options["min_hidden"]) == ("layer", 32)
    assert living.optim.lr_mask == living.optim.lr_backbone < living.optim.lr_cram
    assert config_of("timm-resnet10t", recipe="strong").optim.lr_mask is None


@pytest.mark.parametrize("model", ["crasmra-resnet10t", "vitms-test_vit", "timm-resnet10t"])
def test_strong_is_taken_where_no_recipe_is_named_and_the_papers_for_a_table(model):
    assert plain_values(TrainOptions(model))["recipe"] == "strong"
    papers = "vitms-paper" if model.startswith("vitms") else "crasmra-paper"
    assert plain_values(AblateOptions(model))["recipe"] == papers
    assert plain_values(AblateOptions(model, recipe="strong"))["recipe"] == "strong"
    assert plain_values(TrainOptions(model, recipe="paper"))["recipe"] == papers


@pytest.mark.parametrize(
    "model",
    ["crasmra-resnet10t", "crasmra-test_vit", "vitms-test_vit", "timm-test_vit", "crasmra-densenet121"],
)
def test_strong_trains_every_family(model):
    """The optimiser and the schedule take what the recipe says, down to the shortest run."""
    values = plain_values(TrainOptions(model, recipe="strong", epochs=1, input_px=160))
    config = build(TrainConfig, values)
    built = create_model(model, 3, input_px=160, options=config.options)
    optimizer = build_optimizer(built, config.optim)
    schedule = build_schedule(optimizer, config.optim, config.epochs, 20)
    rates = []
    for update in range(1, 21):
        schedule.step_update(update)
        rates.append(max(group["lr"] for group in optimizer.param_groups))
    assert max(rates) == pytest.approx(config.optim.lr_heads, rel=0.1)
    assert rates[0] < rates[1] and rates[-1] < 0.02 * max(rates)


def test_traits_are_found_without_weights():
    assert backbone_traits("vit_large_patch16_384")[:2] == (True, True)
    assert backbone_traits("vgg11")[:2] == (False, False)
    with pytest.raises(FgvcError, match="resnet5"):
        backbone_traits("resnet5x")


@pytest.mark.parametrize(
    ("name", "family", "message"),
    [
        ("strng", "timm", "Nearest: strong"),
        ("crasmra", "crasmra", "Nearest: crasmra-paper"),
        ("zzz", "timm", "fgvc recipes"),
        ("vitms-paper", "crasmra", "Those that fit: crasmra-paper, probe, strong"),
    ],
)
def test_a_wrong_name_is_one_line_with_the_nearest(name, family, message):
    with pytest.raises(FgvcError, match=message) as caught:
        find_recipe(name, family)
    assert caught.value.exit_code == EXIT_USAGE


def test_settings_are_shown_as_they_are_typed():
    sets = ["preprocess.mean=0.1,0.2,0.3", "options.delta=0.8", "seed=3"]
    config = resolved_config(plain_values(train_options(sets, model="crasmra-resnet10t", input_px=64)))
    text = settings_text(config)
    assert text.splitlines()[0] == "Recipe crasmra-paper; what is not the default:"
    shown = [part for line in text.splitlines()[1:] for part in line.split()]
    assert "preprocess.mean=0.1,0.2,0.3" in shown and "options.delta=0.8" in shown and "seed=3" in shown
    assert not any(part.startswith(("model=", "optim.")) for part in shown)
    again = resolved_config(plain_values(train_options(shown, model="crasmra-resnet10t")))
    assert again == config


def test_init_takes_the_name_of_an_embedded_model_or_a_run_folder(tmp_path):
    model = TrainOptions("crasmra-resnet10t", init="groceries")
    path = Path(plain_values(model)["init"])
    assert path.is_file() and path.suffix == ".safetensors"
    (tmp_path / "model.safetensors").touch()
    by_set = TrainOptions("crasmra-resnet10t", set=[f"init={tmp_path}"])
    assert plain_values(by_set)["init"] == str(tmp_path / "model.safetensors")
    assert build(TrainConfig, plain_values(TrainOptions("crasmra-resnet10t", set=["init=none"]))).init is None
    with pytest.raises(FgvcError, match="--init 'grocery' is neither a file nor an embedded model"):
        plain_values(TrainOptions("crasmra-resnet10t", init="grocery"))


def test_cars_are_cut_from_512_px_by_themselves():
    def side(**given) -> int:
        return plain_values(TrainOptions("vitms-vit_tiny_patch16_224", **given))["preprocess"]["input_px"]

    assert side(dataset="cars") == 512
    assert side(dataset="cars", input_px=320) == 320
    assert side(dataset="cub") == 448


def test_published_multi_stage_recipes_pin_what_the_paper_says():
    for name in ("vitms-paper", "vitms-authors"):
        options = RECIPES[name].settings(Setup(family="vitms"))["options"]
        assert (options["rollout_first"], options["rollout_weight"]) == (1, "attention")
        assert (options["closing"], options["part_score"]) == ("binary", "mean")


def test_the_authors_train_dogs_and_cars_in_their_own_ways():
    dogs, cars = (
        RECIPES["vitms-authors"].settings(Setup(family="vitms", dataset=d)) for d in ("dogs", "cars")
    )
    assert [(s["epochs"], s["optim"]["freeze_epochs"]) for s in (dogs, cars)] == [(6, 2), (56, 24)]
    tops = [s["optim"]["lr_heads"] * s["optim"]["freeze_rate"] for s in (dogs, cars)]
    assert tops == pytest.approx([3e-3, 1e-2])
