"""A training without a model's name, and how long one will take."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import train_options
from safetensors.torch import save_file
from test_recipes import config_of

from fgvc_cli.cli.train import run
from fgvc_cli.command import Messages
from fgvc_cli.engine import train as training
from fgvc_cli.engine.checkpoint import read_metadata
from fgvc_cli.engine.options import TrainOptions
from fgvc_cli.engine.train import in_words, with_default_model
from fgvc_cli.errors import FgvcError
from fgvc_cli.models.registry import create_model
from fgvc_cli.models.weights import CHECKPOINT_KEY, load_classifiers


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
    with pytest.raises(FgvcError, match="'.*mine.safetensors': no such file"):
        run(TrainOptions(data=str(colours), init=str(tmp_path / "mine.safetensors"), device="cpu"))
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "mine.safetensors")
    with pytest.raises(FgvcError, match="without --model: .* not written by fgvc train, and names no model"):
        run(TrainOptions(data=str(colours), init=str(tmp_path / "mine.safetensors"), device="cpu"))


@pytest.fixture
def trained(colours, tmp_path):
    """A model of the three colours with settings of its own."""
    given = {"model": "crasmra-resnet10t", "input_px": 32, "epochs": 1, "pretrained": False, "batch_size": 8}
    sets = [
        "preprocess.resize_px=40",
        "augment.train_px=48",
        "options.neck_channels=16",
        "options.fuse=weighted",
        "options.drop_path=0.1",
    ]
    run(train_options(sets, data=str(colours), **given, workers=0, device="cpu", out=tmp_path / "first"))
    return tmp_path / "first"


def test_a_model_that_knows_the_classes_is_gone_on_with(trained, colours, tmp_path, capsys):
    (colours / "blue").rename(colours / "Azure")
    capsys.readouterr()
    again = {
        "data": str(colours),
        "init": str(trained),
        "out": tmp_path / "again",
        "set": ("augment.flip=no",),
    }
    assert run(TrainOptions(**again, epochs=1, workers=0, device="cpu")) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "knows 2 of the 3 classes: crasmra-resnet10t, 32 px, recipe refine." in said
    assert "2 of 3 classes begin with what model.safetensors knows." in said
    first, second = (read_metadata(folder / "model.safetensors") for folder in (trained, tmp_path / "again"))
    assert second["options"] == first["options"] | {"drop_path": 0}
    assert second["preprocess"] == first["preprocess"]
    assert second["config"]["augment"]["train_px"] == 48 and not second["config"]["augment"]["flip"]
    assert second["config"]["optim"]["lr_heads"] == pytest.approx(
        config_of("crasmra-resnet10t", recipe="strong", batch_size=32).optim.lr_heads / 20
    )


def test_without_init_a_class_of_the_embedded_model_changes_nothing(colours, capsys):
    (colours / "blue").rename(colours / "Banana")  # which groceries knows
    chosen = with_default_model(TrainOptions(data=str(colours), device="cpu"), Messages())
    assert (chosen.init, chosen.recipe, chosen.set) == ("groceries", "strong", ())
    assert "No --model given" in capsys.readouterr().err


def test_going_on_takes_what_goes_with_the_data_and_with_the_recipe(trained, colours, tmp_path):
    first = read_metadata(trained / "model.safetensors")["options"]
    assert first["drop_path"] and first["fuse"] == "weighted"
    rows = [f"{p.as_posix()},{p.parent.name}" for p in sorted(colours.rglob("*.png"))]
    (tmp_path / "several.csv").write_text("\n".join(["path,labels", *rows]))
    given = {"init": str(trained), "epochs": 1, "batch_size": 8, "workers": 0, "device": "cpu"}
    several = {"data": str(tmp_path / "several.csv"), "out": tmp_path / "several"}
    whole = {"data": str(colours), "set": ("val_share=0",), "out": tmp_path / "whole"}
    for own in (several, whole):
        assert run(TrainOptions(**given, **own)) == 0
        options = read_metadata(own["out"] / "model.safetensors")["options"]
        assert (options["fuse"], options["drop_path"]) == ("mean", 0)
        assert options["neck_channels"] == first["neck_channels"]


def test_classifiers_that_do_not_fit_are_said_where_the_steps_are_small(trained, colours, tmp_path, capsys):
    given = {"data": str(colours), "init": str(trained), "epochs": 1, "workers": 0, "device": "cpu"}
    assert run(TrainOptions(**given, set=("options.neck_channels=8",), out=tmp_path / "again")) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "No classifier of model.safetensors fits this model and these classes" in said


def test_a_model_that_knows_none_of_the_classes_lends_its_network(trained, colours, tmp_path, capsys):
    for name in ("blue", "green", "red"):
        (colours / name).rename(colours / f"{name}ish")
    options = TrainOptions(data=str(colours), init=str(trained), device="cpu")
    chosen = with_default_model(options, Messages())
    assert (chosen.model, chosen.recipe, chosen.set) == ("crasmra-resnet10t", "strong", ())
    assert "none of whose classes are here" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["crasmra-resnet10t", "timm-resnet10t", "vitms-test_vit"])
def test_classifiers_are_taken_class_by_class(name, tmp_path):
    torch.manual_seed(0)
    old, new = (create_model(name, 3, input_px=64, pretrained=False) for _ in range(2))
    document = {CHECKPOINT_KEY: json.dumps({"classes": ["ant", "bee", "cat"]})}
    save_file(old.state_dict(), tmp_path / "old.safetensors", metadata=document)
    before = {key: tensor.clone() for key, tensor in new.state_dict().items()}
    assert load_classifiers(new, tmp_path / "old.safetensors", ("cat", "dog", "ant")) == 2
    heads = [key for key in before if key.startswith("heads.") and key.endswith(".weight")]
    last = [key for key in heads if len(before[key]) == 3]
    assert len(last) == (4 if name.startswith("crasmra") else 1)
    for key in last:
        assert torch.equal(new.state_dict()[key][[0, 2]], old.state_dict()[key][[2, 0]])
        assert torch.equal(new.state_dict()[key][1], before[key][1])
    for key in set(heads) - set(last):
        assert torch.equal(new.state_dict()[key], old.state_dict()[key])
    assert load_classifiers(new, tmp_path / "old.safetensors", ("eel", "fox", "gnu")) == 0
    wider = create_model(name, 4, input_px=64, pretrained=False)
    assert load_classifiers(wider, tmp_path / "old.safetensors", ("ant", "bee", "cat", "dog")) == 3


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
