"""Every command reads colour profiles and camera RAW as the checkpoint of its model says."""

from __future__ import annotations

import json

import conftest
import numpy as np
import pytest
from PIL import Image

from fgvc_cli.config import Preprocess, stored_config, stored_preprocess
from fgvc_cli.data import loaders
from fgvc_cli.engine.checkpoint import load_checkpoint, read_metadata
from fgvc_cli.engine.weights import resolve_weights
from fgvc_cli.explain import run as explain_run
from fgvc_cli.predict import decoding
from fgvc_cli.sources import images
from fgvc_cli.sources.images import TO_SHOW, read_image

CPU = ("--device", "cpu", "--workers", 0)


def fgvc(*arguments: object):
    result = conftest.fgvc(*arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def rules(monkeypatch) -> set[tuple[str, str]]:
    """How images were read meanwhile."""
    seen = set()

    def reading(path, prepare=None, rule=TO_SHOW, **options):
        seen.add((rule.color_profile, rule.raw))
        return read_image(path, prepare, rule, **options)

    for module in (loaders, decoding, explain_run, images):
        monkeypatch.setattr(module, "read_image", reading)
    return seen


def test_each_command_reads_as_the_checkpoint_says(colours, tmp_path, rules):
    rule = ("ignore", "develop")  # neither is what a file is read by without a model
    path = conftest.save_trained(
        tmp_path / "m.safetensors", colours, preprocess=dict(color_profile=rule[0], raw=rule[1])
    )
    commands = {
        "predict": ("predict", colours, "--weights", path, "--out", tmp_path / "p.h5", *CPU),
        "eval": ("eval", "--weights", path, "--data", colours, *CPU),
        "index": ("index", "--weights", path, "--data", colours, "--out", tmp_path / "i.h5", *CPU),
        "folder": ("explain", colours / "red", "--weights", path, "--out", tmp_path / "e", *CPU),
    }
    for name, command in commands.items():
        rules.clear()
        fgvc(*command)
        assert rules == {rule}, name
    rules.clear()
    page = ("--out", tmp_path / "e.png", "--device", "cpu")
    fgvc("explain", colours / "red/000.png", "--weights", path, *page)
    assert rule in rules


def test_a_training_reads_as_it_will_be_read_and_records_it(colours, tmp_path, rules):
    tiny = ("--model", "timm-resnet10t", "--no-pretrained", "--epochs", 1, "--input-px", 32)
    fgvc("train", "--data", colours, *tiny, "--batch-size", 8, *CPU, "--out", tmp_path / "a")
    assert rules == {("srgb", "preview")}
    assert load_checkpoint(tmp_path / "a/model.safetensors").preprocess.color_profile == "srgb"


def test_raw_on_request_is_recorded(colours, tmp_path, rules):
    import h5py

    path = conftest.save_trained(tmp_path / "m.safetensors", colours)
    fgvc("predict", colours, "--weights", path, "--raw", "develop", "--out", tmp_path / "p.h5", *CPU)
    assert rules == {("srgb", "develop")}
    with h5py.File(tmp_path / "p.h5") as file:
        assert json.loads(file.attrs["preprocessing"])["raw"] == "develop"


def test_what_was_stored_before_there_was_a_choice_ignores_profiles():
    assert Preprocess().color_profile == "srgb"
    assert stored_preprocess({"input_px": 64}).color_profile == "ignore"
    assert stored_preprocess({"color_profile": "srgb"}).color_profile == "srgb"
    assert stored_config({"model": "timm-resnet10t"}).preprocess.color_profile == "ignore"


@pytest.mark.parametrize("name", ["aviary", "groceries", "groceries-vit"])
def test_embedded_weights_read_as_they_were_trained(name):
    path, _ = resolve_weights(name)
    assert stored_preprocess(read_metadata(path)["preprocess"]).color_profile == (
        "ignore" if name == "aviary" else "srgb"
    )


def test_a_wide_gamut_reaches_the_model_in_srgb(tmp_path):
    from icc_profiles import converted, rgb_profile

    plain = Image.new("RGB", (40, 40), (200, 60, 60))
    wide = tmp_path / "wide.png"
    profile = rgb_profile("Display P3")
    converted(plain, profile).save(wide, icc_profile=profile)
    for color_profile in ("srgb", "ignore"):
        rule = decoding.Rule(32, 32, "squash", color_profile)
        pixels = decoding.Decoder(decoding.DecodeSettings(rule)).load(0, wide).pixels
        off = np.abs(pixels.astype(int) - (200, 60, 60)).max()
        assert off <= 2 if color_profile == "srgb" else off > 8
