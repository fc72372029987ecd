"""fgvc index from the outside, and fgvc explain --nearest behind it."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import h5py
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import fgvc_cli
from fgvc_cli.cli import app
from fgvc_cli.config import Preprocess, TrainConfig
from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.engine.checkpoint import load_checkpoint, save_checkpoint
from fgvc_cli.errors import FgvcError
from fgvc_cli.models.registry import create_model
from fgvc_cli.retrieval import index_file

CPU = ("--device", "cpu", "--workers", 0)


def fgvc(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def save(path: Path, data: Path, seed: int = 0, name: str = "timm-resnet10t", **options: object) -> Path:
    """A checkpoint as a training of ``data`` would leave it."""
    torch.manual_seed(seed)
    preprocess = Preprocess(input_px=32, resize_px=36)
    config = TrainConfig(model=name, data=str(data), preprocess=preprocess)
    model = create_model(name, 3, input_px=32, options=options)
    path.parent.mkdir(exist_ok=True)
    save_checkpoint(
        path,
        model,
        config=config,
        classes=("blue", "green", "red"),
        dataset=data.name,
        data_sha256=load_labelled(data).sha256(),
        metrics={},
    )
    return path


@pytest.fixture
def world(colours, tmp_path, monkeypatch) -> tuple[Path, Path]:
    """(weights, data); the command runs in an empty folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return save(tmp_path / "run" / "model.safetensors", colours), colours


def paths_of(index: Path) -> list[str]:
    with h5py.File(index) as file:
        return file["path"].asstr()[:].tolist()


def test_the_default_is_the_training_split_beside_the_checkpoint(world):
    weights, data = world
    result = fgvc("index", "--weights", weights, *CPU)
    assert result.exit_code == 0, result.output
    out = weights.parent / "model.index.h5"
    assert result.stdout == "" and f"Written to {out}" in result.stderr and "21 ok" in result.stderr
    train = load_labelled(data).splits["train"]
    assert paths_of(out) == [example.path for example in train]
    assert sorted(os.listdir(weights.parent)) == ["model.index.h5", "model.safetensors"]
    again = fgvc("index", "--weights", weights, *CPU)
    assert again.exit_code == 1 and "--overwrite" in again.stderr
    result = fgvc("index", "--weights", weights, *CPU, "--overwrite", "--split", "all", "--quiet")
    assert result.exit_code == 0 and result.stderr == "" and len(paths_of(out)) == 30


def test_a_notebook_gets_the_same_index(world, capsys):
    weights, data = world
    written = fgvc_cli.index(str(weights), device="cpu", workers=0, quiet=True)
    assert written.path == weights.parent / "model.index.h5" and capsys.readouterr().err == ""
    assert (written.images, written.statuses) == (21, {"ok": 21})
    assert fgvc("index", "--weights", weights, *CPU, "--out", "typed.h5").exit_code == 0
    with h5py.File(written.path) as ours, h5py.File("typed.h5") as typed:
        assert (ours["embedding"][:] == typed["embedding"][:]).all()
    with pytest.raises(FgvcError, match="--split got 'tests', expected train, val, test or all"):
        fgvc_cli.index(str(weights), split="tests")


def test_other_images_are_all_taken_where_they_have_no_split(world, tmp_path):
    weights, data = world
    shutil.copytree(data, tmp_path / "more")
    shutil.rmtree(tmp_path / "more" / "green")
    (tmp_path / "more" / "red" / "broken.jpg").write_text("no image")
    result = fgvc("index", "--weights", weights, "--data", tmp_path / "more", "--out", "m.h5", *CPU)
    assert result.exit_code == 3 and "Left out red/broken.jpg" in result.stderr
    assert len(paths_of(Path("m.h5"))) == 20
    with h5py.File("m.h5") as file:
        assert set(file["class_index"][:, 0]) == {0, 2} and file.attrs["dataset"] == "more"
    result = fgvc(
        "index", "--weights", weights, "--data", tmp_path / "more", "--split", "val", "--out", "n.h5"
    )
    assert result.exit_code == 1 and "no val split" in result.stderr
    result = fgvc("index", "--weights", weights, "--split", "tests")
    assert result.exit_code == 2 and "'train', 'val', 'test', 'all'" in result.stderr
    assert os.listdir() == ["m.h5"]


def test_ctrl_c_leaves_nothing(world, monkeypatch):
    weights, _ = world

    def interrupt(block):
        raise KeyboardInterrupt

    monkeypatch.setattr(index_file, "left_out", interrupt)
    result = fgvc("index", "--weights", weights, *CPU)
    assert result.exit_code == 130 and "interrupted" in result.stderr
    assert os.listdir(weights.parent) == ["model.safetensors"]


def test_an_embedded_model_keeps_its_index_in_the_current_folder(world):
    result = fgvc("explain", world[1] / "red" / "000.png", "--weights", "aviary", "--nearest", 2)
    assert result.exit_code == 1
    assert "no index aviary.index.h5" in result.stderr
    assert "fgvc index --weights aviary --out aviary.index.h5" in result.stderr
    assert result.stderr.count("\n") == 1 and os.listdir() == []


@pytest.mark.parametrize("index", [None, "elsewhere.h5"])
def test_explain_prints_the_nearest_behind_its_classes(world, index):
    weights, data = world
    fgvc("index", "--weights", weights, *CPU, *(("--out", index) if index else ()))
    photo = data / load_labelled(data).splits["train"][0].path
    plain = fgvc("explain", photo, "--weights", weights, "--device", "cpu", "--out", "a.png")
    with_index = ("--index", index) if index else ("--nearest", 6)
    result = fgvc("explain", photo, "--weights", weights, "--device", "cpu", "--out", "b.png", *with_index)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(plain.stdout) and "nearest" not in plain.stdout
    lines = result.stdout.removeprefix(plain.stdout).splitlines()
    cells = [line.split("\t") for line in lines]
    assert len(cells) == 6 and {row[0] for row in cells} == {"nearest"}
    own = photo.relative_to(data).as_posix()
    assert cells[0][2] == "blue" and own not in [row[3] for row in cells], "no image is near itself"
    similarities = [float(row[1]) for row in cells]
    assert similarities == sorted(similarities, reverse=True)
    with Image.open("a.png") as before, Image.open("b.png") as after:
        assert after.height > before.height + 600 and after.width == before.width


@pytest.mark.parametrize("page", ["strip", "full"])
def test_a_folder_has_a_table_of_the_nearest_and_a_row_on_each_page(world, page):
    weights, data = world
    fgvc("index", "--weights", weights, *CPU)
    red = data / "red"
    for out, options in (("plain", ()), ("near", ("--nearest", 3))):
        result = fgvc(
            "explain", red, "--weights", weights, "--device", "cpu", "--page", page, "--out", out, *options
        )
        assert result.exit_code == 0, result.output
    assert set(os.listdir("near")) - set(os.listdir("plain")) == {"nearest.csv"}
    assert Path("near/index.csv").read_bytes() == Path("plain/index.csv").read_bytes()
    for name in os.listdir("plain"):
        if name.endswith(".png"):
            with Image.open(f"plain/{name}") as before, Image.open(f"near/{name}") as after:
                assert after.height > before.height + 200
    rows = list(csv.DictReader(Path("near/nearest.csv").read_text().splitlines()))
    assert len(rows) == 10 * 4 * 3 and {row["rank"] for row in rows} == {"1", "2", "3"}
    trained = {e.path for e in load_labelled(data).splits["train"]}
    for row in rows:
        assert row["of"] in ("", row["label"]) and row["nearest"] in trained
        assert row["nearest"].split("/")[0] == row["label"]
    assert all(row["nearest"] != f"red/{row['path']}" for row in rows), "no image is near itself"


def test_an_index_of_other_weights_is_refused_and_nothing_is_left(world, tmp_path):
    weights, data = world
    fgvc("index", "--weights", weights, *CPU)
    other = save(tmp_path / "other" / "model.safetensors", data, seed=1)
    theirs = weights.parent / "model.index.h5"
    result = fgvc("explain", data / "red" / "000.png", "--weights", other, "--index", theirs)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert "index of other weights" in result.stderr and "--overwrite" in result.stderr
    result = fgvc("explain", data / "red", "--weights", other, "--index", theirs)
    assert result.exit_code == 1 and "index of other weights" in result.stderr
    assert os.listdir() == []
    result = fgvc("explain", data / "red" / "000.png", "--weights", weights, "--nearest", 0)
    assert result.exit_code == 2


def test_a_multi_stage_model_takes_one_look_for_its_index(colours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = save(tmp_path / "run" / "model.safetensors", colours, name="vitms-test_vit", encoder_px=32)
    from fgvc_cli.models.multistage_vit import MultiStageVit

    def never(*_):
        raise AssertionError("looked again")

    with monkeypatch.context() as patch:
        patch.setattr(MultiStageVit, "_cut", never)
        assert fgvc("index", "--weights", weights, *CPU).exit_code == 0
    assert load_checkpoint(weights).model.config.stages == "all"
    photo = colours / load_labelled(colours).splits["train"][0].path
    result = fgvc("explain", photo, "--weights", weights, "--device", "cpu", "--nearest", 1)
    assert result.exit_code == 0, result.output
    # The answer took all stages; the embedding is that of the first, as the index has it.
    kind, similarity, *_ = result.stdout.splitlines()[-1].split("\t")
    assert kind == "nearest" and float(similarity) > 0.99
