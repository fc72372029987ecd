"""The file that a run goes on from, and what is said where there is none."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from fgvc_cli.attention.objects import locate_objects
from fgvc_cli.cli.train import run as run_command
from fgvc_cli.config import TrainConfig, build
from fgvc_cli.engine.checkpoint import load_checkpoint, save_checkpoint
from fgvc_cli.engine.options import TrainOptions
from fgvc_cli.engine.run_state import (
    STATE_KEY,
    Progress,
    load_state,
    make_run_dir,
    pack,
    save_state,
    state_path,
    unpack,
)
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.models.registry import create_model
from fgvc_cli.models.weights import CHECKPOINT_KEY, read_tensors


def test_any_tree_survives_packing():
    tensor = torch.arange(24.0).view(1, 2, 3, 4)
    spread = tensor.contiguous(memory_format=torch.channels_last)
    tree = {
        "state": {0: {"a": tensor, "b": spread, "step": 3}},
        "betas": (0.9, 0.5),
        "none": [None, True, "x"],
    }
    tensors = {}
    document = json.loads(json.dumps(pack(tree, tensors)))
    back = unpack(document, tensors)
    assert back["betas"] == (0.9, 0.5) and back["none"] == [None, True, "x"]
    assert torch.equal(back["state"][0]["a"], tensor) and back["state"][0]["step"] == 3
    assert back["state"][0]["b"].stride() == spread.stride() != tensor.stride()
    with pytest.raises(TypeError, match="holds a set"):
        pack({1}, {})


def test_a_folder_without_a_state_is_one_clear_line(tmp_path):
    (tmp_path / "crasmra-birds").mkdir()
    (tmp_path / "model.safetensors").touch()
    causes = {
        "crasmra-birds": "holds nothing to go on from: there is no last/state.safetensors in it",
        "crasmra-brids": "there is no such folder. Did you mean .*crasmra-birds",
        "nosuch": "there is no such folder. Give the run folder",
        "none/nosuch": "there is no such folder. Give the run folder",
        "model.safetensors": "is a file, expected a run folder",
    }
    for name, what in causes.items():
        folder = tmp_path / name
        with pytest.raises(FgvcError, match=what) as caught:
            run_command(TrainOptions(resume=folder, device="cpu"))
        assert caught.value.exit_code == EXIT_USAGE


def test_a_missing_folder_is_named_before_a_missing_model():
    with pytest.raises(FgvcError, match="nowhere"):
        run_command(TrainOptions(data="nowhere"))


def test_without_model_or_resume_both_are_named():
    with pytest.raises(FgvcError, match="--model NAME, or --resume RUN"):
        run_command(TrainOptions())


def test_overwriting_takes_the_old_state_away(tmp_path):
    path = state_path(tmp_path)
    path.parent.mkdir()
    for old in (path, tmp_path / "metrics.csv", tmp_path / "events.out.tfevents.1"):
        old.touch()
    make_run_dir(tmp_path)
    assert not any(tmp_path.iterdir())


def test_runs_and_checkpoints_from_before_a_setting_keep_what_it_was(tmp_path):
    name, px = "vitms-vit_tiny_patch16_224", 64
    model = create_model(name, 2, options={"encoder_px": 32, "stages": "main"})
    assert model.config.closing == "binary"
    options = model.config.model_dump()
    old = {key: value for key, value in options.items() if key not in ("closing", "closing_px", "min_area")}
    config = build(
        TrainConfig, {"model": name, "options": options, "preprocess": {"input_px": px, "resize_px": px}}
    )
    progress = Progress()
    save_state(tmp_path, config=config, data_sha256="", classes=("a", "b"), progress=progress, learner={})
    save_checkpoint(
        tmp_path / "model.safetensors", model, config=config, classes=("a", "b"), dataset="d", metrics={}
    )
    assert load_state(tmp_path).config.options["closing"] == "binary"
    assert load_checkpoint(tmp_path / "model.safetensors").model.config.closing == "binary"
    for path, key in ((state_path(tmp_path), STATE_KEY), (tmp_path / "model.safetensors", CHECKPOINT_KEY)):
        tensors, header = read_tensors(path)
        document = json.loads(header[key])
        document["config"]["options"] = old
        if key == CHECKPOINT_KEY:
            document["options"] = old
        save_file(tensors, path, metadata={key: json.dumps(document)})
    resumed = load_state(tmp_path).config.options
    assert (resumed["closing"], resumed["min_area"]) == ("cells", 0.01)
    checkpoint = load_checkpoint(tmp_path / "model.safetensors")
    assert (checkpoint.model.config.closing, checkpoint.model.config.min_area) == ("cells", 0.01)
    with torch.inference_mode():
        images = torch.randn(4, 3, px, px)
        output = checkpoint.model(images, want=("heat", "boxes"))
    expected = locate_objects(output.heat, (px, px), closing="cells", min_area=0.01)
    assert torch.equal(output.boxes, expected)
