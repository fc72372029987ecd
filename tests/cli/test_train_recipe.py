"""fgvc recipes, --recipe and --show-config as a user meets them."""

from __future__ import annotations

import json

import pytest
from conftest import fgvc

from fgvc_cli.engine.checkpoint import read_metadata
from fgvc_cli.engine.options import RECIPES

TINY = ["--no-pretrained", "--input-px", 32, "--batch-size", 8, "--workers", 0, "--epochs", 1]


def test_recipes_are_listed_and_told():
    listed = fgvc("recipes")
    assert listed.exit_code == 0 and all(name in listed.stdout for name in RECIPES)
    told = fgvc("recipes", "strong")
    assert told.exit_code == 0 and "Source:" in told.stdout and "not measured" in told.stdout
    wrong = fgvc("recipes", "stronk")
    assert wrong.exit_code == 2 and "Nearest: strong." in wrong.stderr


@pytest.mark.parametrize("model", ["timm-resnet10t", "crasmra-resnet10t"])
def test_what_is_shown_is_what_is_kept(model, colours, tmp_path):
    arguments = ["--model", model, "--recipe", "strong", *TINY, "--set", "optim.lr_heads=0.01"]
    shown = fgvc("train", *arguments, "--show-config")
    assert shown.exit_code == 0, shown.output
    out = tmp_path / "run"
    trained = fgvc("train", *arguments, "--data", colours, "--out", out)
    assert trained.exit_code == 0, trained.output
    written = json.loads((out / "config.json").read_text())
    assert json.loads(shown.stdout) | {"data": str(colours)} == written
    kept = read_metadata(out / "model.safetensors")["config"]
    assert kept == written and kept["recipe"] == "strong" and kept["optim"]["lr_heads"] == 0.01
    block = trained.stderr.partition("Recipe strong; what is not the default:")[2]
    assert "optim.lr_heads=0.01" in block and "optim.name=adamw" in block


def test_showing_needs_no_data_and_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = fgvc("train", "--model", "vitms-test_vit", "--input-px", 160, "--show-config")
    assert json.loads(result.stdout)["recipe"] == "strong"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "strng"], "Nearest: strong"),
        (["--recipe", "vitms-paper"], "crasmra-paper, probe, strong"),
        (["--recipe", "strong", "--set", "optim.lr=1"], "optim.lr"),
        (["--recipe", "strong", "--epochs", "many"], "epochs"),
    ],
)
def test_a_wrong_recipe_is_one_line(arguments, message):
    result = fgvc("train", "--model", "crasmra-resnet10t", *arguments, "--show-config")
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.output


def test_a_run_that_is_gone_on_with_takes_no_recipe(tmp_path):
    for option in (("--recipe", "strong"), ("--show-config",)):
        result = fgvc("train", "--resume", tmp_path, *option)
        assert result.exit_code == 2 and f"got {option[0]}" in result.stderr
