"""A training without a model's name, and how long one will take."""

from __future__ import annotations

import json

import pytest

from fgvc_cli.cli.train import run
from fgvc_cli.command import Messages
from fgvc_cli.engine import train as training
from fgvc_cli.engine.checkpoint import read_metadata
from fgvc_cli.engine.options import TrainOptions
from fgvc_cli.engine.train import in_words, with_default_model
from fgvc_cli.errors import FgvcError


def test_without_a_model_an_embedded_one_is_trained_on_and_said(colours, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "DEFAULT_MODEL_PX", 32)
    monkeypatch.setattr(training, "DEFAULT_MODEL_IMAGES", 1)
    options = TrainOptions(data=str(colours), out=tmp_path / "run", workers=0, device="cpu", epochs=1)
    assert run(options) == 0
    said = capsys.readouterr().err
    assert (
        "No --model given: crasmra-tf_efficientnet_lite0, light enough for a CPU, from the embedded groceries"
        in said
    )
    metadata = read_metadata(tmp_path / "run" / "model.safetensors")
    assert (metadata["model"], metadata["config"]["recipe"]) == ("crasmra-tf_efficientnet_lite0", "strong")
    assert metadata["config"]["init"].endswith("groceries.safetensors")


def test_the_images_that_are_told_are_those_of_the_splits_asked_for(colours, capsys):
    options = TrainOptions(data=str(colours), device="cpu", set=("val_share=0",))
    with_default_model(options, Messages())
    assert "for 24 training images" in capsys.readouterr().err


def test_settings_without_a_model_are_those_of_the_one_that_is_taken(colours, capsys):
    assert run(TrainOptions(data=str(colours), device="cpu"), show_config=True) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "crasmra-tf_efficientnet_lite0"


def test_weights_of_an_unknown_model_need_its_name(colours, tmp_path):
    with pytest.raises(FgvcError, match="only an embedded model says what it is"):
        run(TrainOptions(data=str(colours), init=str(tmp_path / "mine.safetensors"), device="cpu"))


@pytest.mark.parametrize(
    ("seconds", "said"), [(320, "5 min"), (3 * 3600 + 40 * 60, "3 h 40 min"), (50 * 3600, "2 days")]
)
def test_durations_are_said_as_people_do(seconds, said):
    assert in_words(seconds) == said


def test_a_long_training_is_told_before_it_starts(colours, tmp_path, monkeypatch, capsys):
    # As if each image took a quarter of an hour: 30 epochs of 12 and a few images are days.
    monkeypatch.setattr("fgvc_cli.engine.learner.Learner.seconds_per_image", lambda self, side: 900.0)
    monkeypatch.setattr(training, "DEFAULT_MODEL_PX", 1)
    sets = ("preprocess.resize_px=32", "optim.name=adamw")
    given = {
        "model": "timm-resnet10t",
        "data": str(colours),
        "input_px": 32,
        "workers": 0,
        "pretrained": False,
    }
    run(TrainOptions(**given, epochs=6, set=sets, out=tmp_path / "run", device="cpu"))
    said = capsys.readouterr().err
    line = next(line for line in said.splitlines() if line.startswith("About "))
    assert "for 6 epochs on cpu (0.00111 images/s in two steps tried now" in line
    assert "To shorten it: --input-px 128, --epochs" in line
    assert said.index("About ") < said.index("epoch 1/6")
