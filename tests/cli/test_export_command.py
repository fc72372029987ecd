"""fgvc export from the outside: what it prints, what it refuses, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect

import conftest
import pytest
import torch

import fgvc_cli
from fgvc_cli.command import Messages
from fgvc_cli.config import Preprocess
from fgvc_cli.engine import export
from fgvc_cli.engine.checkpoint import Checkpoint
from fgvc_cli.errors import FgvcError
from fgvc_cli.models.registry import create_model


def fgvc(*arguments: object):
    return conftest.fgvc("export", *arguments)


@pytest.fixture
def opened(monkeypatch) -> list[dict]:
    """The options of each opening; a tiny plain network is what is opened."""
    asked: list[dict] = []
    torch.manual_seed(0)
    model = create_model("timm-resnet10t", 3, input_px=32).for_inference()
    checkpoint = Checkpoint(
        model, "timm-resnet10t", ("a", "b", "c"), Preprocess(input_px=32, resize_px=40), "0" * 64
    )

    def open_weights(weights, *, options=None):
        asked.append(options)
        return checkpoint

    monkeypatch.setattr("fgvc_cli.engine.export.open_weights", open_weights)
    return asked


def test_a_checked_graph_is_written_and_reported(opened, colours, tmp_path):
    (colours / "green" / "broken.jpg").write_bytes(b"no image")
    out = tmp_path / "model.pt2"
    result = fgvc("--weights", "aviary", "--out", out, "--check", colours)
    assert result.exit_code == 0, result.output
    assert "checked against the model on 30 images" in result.stdout
    assert "(B, 3, 32, 32) RGB, uint8" in result.stdout and "0.0 MB" not in result.stdout
    assert result.stderr.count("\n") == 1 and "left out green/broken.jpg" in result.stderr
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    assert torch.export.load(out).module()(images)["probs"].shape == (2, 3)
    again = fgvc("--weights", "aviary", "--out", out)
    assert again.exit_code == 1 and "exists" in again.stderr and "--overwrite" in again.stderr


def test_a_graph_that_is_not_the_model_is_not_left_behind(opened, tmp_path, monkeypatch):
    def open_wrong(path):
        graph = export.FORMATS[".pt2"].open(path)
        return lambda images: graph(images) | {"probs": graph(images)["probs"].flip(1)}

    wrong = export.FORMATS[".pt2"]._replace(open=open_wrong)
    monkeypatch.setattr(export, "pick_format", lambda out: wrong)
    result = fgvc("--weights", "aviary", "--out", tmp_path / "model.pt2")
    assert result.exit_code == 1
    assert "The graph is not the model" in result.stderr and "generated" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "model.tflite"], "expected a name ending in .onnx or .pt2. For example: --out model.onnx"),
        (["--out", "model"], "expected a name ending in .onnx or .pt2"),
        (["--out", "model.pt2", "--pixels", "bf16"], "'bf16' is not one of 'uint8', 'float'"),
    ],
)
def test_usage_errors_exit_2_in_one_line(opened, arguments, says):
    result = fgvc("--weights", "aviary", *arguments)
    assert result.exit_code == 2 and says in result.stderr
    assert result.stderr.count("\n") == 1 and not opened


def test_missing_packages_are_named_before_anything_is_loaded(opened, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "onnx" in name else find(name))
    result = fgvc("--weights", "aviary", "--out", tmp_path / "model.onnx")
    assert result.exit_code == 1 and not opened
    assert "needs onnx, onnxscript, onnxruntime" in result.stderr
    assert "pip install 'fgvc[export]'" in result.stderr


def test_a_check_without_images_writes_nothing(opened, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no image")
    result = fgvc("--weights", "aviary", "--out", tmp_path / "model.pt2", "--check", tmp_path / "photos")
    assert result.exit_code == 1 and "No image of" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    result = fgvc("--weights", "aviary", "--out", tmp_path / "model.pt2", "--check", tmp_path / "nowhere")
    assert result.exit_code != 0 and "nowhere" in result.stderr


def test_a_cascade_is_left_out_with_a_word(monkeypatch, tmp_path, capsys):
    asked = []

    @dataclasses.dataclass
    class Config:
        cascade: float | None = 0.5

    class Model:
        config = Config()

    class Opened:
        model = Model()

    def open_weights(weights, *, options=None):
        asked.append(options)
        return Opened()

    monkeypatch.setattr("fgvc_cli.engine.export.open_weights", open_weights)
    options = export.ExportOptions(tmp_path / "model.pt2", weights="aviary", stages="main")
    export._open_all_stages(options, Messages())
    assert asked == [{"stages": "main"}, {"stages": "main", "cascade": 1.0}]
    assert "cascade of 0.5 is left out" in capsys.readouterr().err


def test_a_notebook_gets_what_the_command_line_prints(opened, tmp_path, capsys):
    """The same names, text in place of a path too; a choice that is none is refused in the same words."""
    exported = fgvc_cli.export(str(tmp_path / "model.pt2"), weights="aviary", pixels="float")
    printed = fgvc("--weights", "aviary", "--out", tmp_path / "again.pt2", "--pixels", "float").stdout
    assert f"checked against the model on {exported.difference.images} images" in printed
    assert exported.metadata["input"] in printed and exported.format in printed
    assert (tmp_path / "model.pt2").stat().st_size == exported.bytes
    with pytest.raises(FgvcError, match="--pixels got 'bf16', expected uint8 or float"):
        fgvc_cli.export("model.pt2", pixels="bf16")
    with pytest.raises(FgvcError, match="--tolerance got 2, expected 1 at most"):
        fgvc_cli.export("model.pt2", tolerance=2)
    with pytest.raises(TypeError, match="weight"):
        fgvc_cli.export("model.pt2", weight="aviary")
    assert "tolerance: " in str(inspect.signature(fgvc_cli.export))
