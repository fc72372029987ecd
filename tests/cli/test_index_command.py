"""fgvc index from the outside, and fgvc explain --nearest behind it."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import fgvc, save_trained
from PIL import Image

import fgvc_cli
from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.engine.checkpoint import file_sha256, load_checkpoint
from fgvc_cli.errors import FgvcError
from fgvc_cli.retrieval import index_file

CPU = ("--device", "cpu", "--workers", 0)


@pytest.fixture
def world(colours, tmp_path, monkeypatch) -> tuple[Path, Path]:
    """(weights, data); the command runs in an empty folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return save_trained(tmp_path / "run" / "model.safetensors", colours), colours


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
    other = save_trained(tmp_path / "other" / "model.safetensors", data, seed=1)
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
    weights = save_trained(
        tmp_path / "run" / "model.safetensors", colours, model="vitms-test_vit", encoder_px=32
    )
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


def paint(folder: Path, colour: tuple[int, int, int], count: int, first: int = 0) -> Path:
    """Noisy squares of a colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        pixels = np.random.default_rng(i).normal(colour, 20, (48, 48, 3)).clip(0, 255).astype("uint8")
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


YELLOW = (230, 220, 30)


@pytest.fixture
def extended(world, tmp_path) -> tuple[Path, Path]:
    """(weights, folder of a class that the model does not know); their index has it."""
    weights, _ = world
    assert fgvc("index", "--weights", weights, *CPU).exit_code == 0
    paint(tmp_path / "more" / "yellow", YELLOW, 2)
    shutil.copytree(world[1] / "red", tmp_path / "more" / "red")
    assert fgvc("index", "--weights", weights, "--add", tmp_path / "more", *CPU).exit_code == 0
    return weights, tmp_path / "more"


def test_a_new_class_comes_from_a_folder_without_training(extended, tmp_path):
    weights, more = extended
    index = weights.parent / "model.index.h5"
    with h5py.File(index) as file:
        assert list(file.attrs["class_names"]) == ["blue", "green", "red", "yellow"]
        new = [i for i, path in enumerate(file["path"].asstr()[:]) if path.startswith("yellow/")]
        assert file["class_index"][new].tolist() == [[3], [3]] and len(file["thumbnail"][new[0]]) > 100
        # 7 of the 10 red ones were in it.
        assert len(file["path"]) == 21 + 3 + 2 == len(set(file["path"].asstr()[:]))
        assert file.attrs["temperature_neighbours"] > 0 and file.attrs["temperature_means"] > 0
    unseen = paint(tmp_path / "unseen" / "yellow", YELLOW, 4, first=50)
    for by in ("neighbours", "means"):
        out = f"{by}.h5"
        result = fgvc(
            "predict", unseen, "--weights", weights, "--index", index, "--by", by, "--out", out, *CPU
        )
        assert result.exit_code == 0, result.output
        with h5py.File(out) as file:
            assert list(file.attrs["class_names"]) == ["blue", "green", "red", "yellow"]
            assert (file["topk_index"][:, 0] == 3).all()
            np.testing.assert_allclose(file["topk_prob"][:].sum(axis=1), 1, atol=1e-5)
            recorded = json.loads(file.attrs["settings"])["index"]
        assert recorded["sha256"] == file_sha256(index) and recorded["by"] == by
        with h5py.File(index) as file:
            assert recorded["temperature"] == file.attrs[f"temperature_{by}"]
    result = fgvc(
        "eval", "--weights", weights, "--index", index, "--data", tmp_path / "unseen", "--device", "cpu"
    )
    assert result.exit_code == 0 and "top1                   100.00 %" in result.stdout
    assert "an index of 26 images, by means" in result.stdout
    rows = list(fgvc_cli.Predictor(weights, index=index, device="cpu", workers=0).predict(unseen))
    assert [row.labels[0] for row in rows] == ["yellow"] * 4
    result = fgvc_cli.predict_folder(unseen, weights, index=index, by="neighbours", device="cpu")
    assert [row.labels[0] for row in result.rows] == ["yellow"] * 4


def test_an_image_that_is_in_the_index_is_replaced_and_told(extended):
    weights, more = extended
    index = weights.parent / "model.index.h5"
    (more / "yellow" / "000.png").rename(more / "red" / "yellow-0.png")  # another name: both are kept
    shutil.copytree(more / "yellow", more / "gold")
    shutil.rmtree(more / "yellow")
    result = fgvc("index", "--weights", weights, "--add", more, *CPU)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stderr.split())
    assert "Added 2 images, 1 new class: gold." in text
    assert "10 images of these were in the index and were replaced, 0 of them under another label" in text
    assert "look the same as one of another name in the index" in text
    assert "red/yellow-0.png and yellow/000.png" in text
    (more / "labels.csv").write_text("path,label\nred/000.png,scarlet\n")
    result = fgvc("index", "--weights", weights, "--add", more / "labels.csv", *CPU)
    assert "1 of them under another label" in result.stderr
    with h5py.File(index) as file:
        paths = file["path"].asstr()[:].tolist()
        assert file.attrs["class_names"][file["class_index"][paths.index("red/000.png"), 0]] == "scarlet"
    assert fgvc_cli.index(str(weights), add=str(more / "labels.csv"), device="cpu", quiet=True).images == 28


def test_what_cannot_be_added_leaves_the_index_as_it_was(extended, tmp_path, monkeypatch):
    weights, more = extended
    index = weights.parent / "model.index.h5"
    before = index.read_bytes()
    (tmp_path / "bad" / "pink").mkdir(parents=True)
    (tmp_path / "bad" / "pink" / "a.jpg").write_text("no image")
    result = fgvc("index", "--weights", weights, "--add", tmp_path / "bad", *CPU)
    assert result.exit_code == 1 and "No image of bad could be read" in result.stderr
    other = save_trained(tmp_path / "other" / "model.safetensors", more.parent / "colours", seed=1)
    result = fgvc("index", "--weights", other, "--add", more, "--out", index, *CPU)
    assert result.exit_code == 1 and "index of other weights" in result.stderr
    result = fgvc("index", "--weights", other, "--add", more, *CPU)
    assert result.exit_code == 1 and "There is no index" in result.stderr
    result = fgvc("index", "--weights", weights, "--add", more, "--data", more, *CPU)
    assert result.exit_code == 2 and "got --data too" in result.stderr

    def interrupt(block):
        raise KeyboardInterrupt

    monkeypatch.setattr(index_file, "left_out", interrupt)
    assert fgvc("index", "--weights", weights, "--add", more, *CPU).exit_code == 130
    assert index.read_bytes() == before
    assert sorted(os.listdir(weights.parent)) == ["model.index.h5", "model.safetensors"]


def test_an_index_that_changed_is_another_run(extended, tmp_path):
    weights, more = extended
    index = weights.parent / "model.index.h5"
    run = ("predict", more, "--weights", weights, "--index", index, "--out", "rows.csv", *CPU)
    assert fgvc(*run, "--shard", "0/2").exit_code == 0
    paint(more / "yellow", YELLOW, 1, first=80)
    assert fgvc("index", "--weights", weights, "--add", more, *CPU).exit_code == 0
    result = fgvc(*run, "--shard", "0/2")
    assert result.exit_code == 1 and "index" in result.stderr, result.output
    assert fgvc("predict", more, "--by", "means").exit_code == 2


def test_an_index_of_several_labels_has_no_nearest_class(world, tmp_path):
    weights, data = world
    assert fgvc("index", "--weights", weights, *CPU).exit_code == 0
    (data / "several.csv").write_text("path,labels\nred/000.png,red|square\nblue/009.png,blue\n")
    result = fgvc("index", "--weights", weights, "--add", data / "several.csv", *CPU)
    assert result.exit_code == 0, result.output
    index = weights.parent / "model.index.h5"
    with h5py.File(index) as file:
        paths = file["path"].asstr()[:].tolist()
        assert file["class_index"][paths.index("red/000.png")].tolist() == [2, 3]
        green = next(i for i, path in enumerate(paths) if path.startswith("green/"))
        assert file["class_index"][green].tolist() == [1, -1]
    result = fgvc("predict", data, "--weights", weights, "--index", index)
    assert result.exit_code == 1 and "several labels" in result.stderr


def test_classes_without_an_image_are_named(world, tmp_path):
    weights, data = world
    shutil.copytree(data / "red", tmp_path / "few" / "red")
    assert (
        fgvc("index", "--weights", weights, "--data", tmp_path / "few", "--out", "few.h5", *CPU).exit_code
        == 0
    )
    result = fgvc("predict", data / "blue" / "000.png", "--weights", weights, "--index", "few.h5", *CPU)
    assert "2 of the 3 classes have no image in few.h5 and are never predicted: blue, green." in result.stderr
    assert result.stdout.splitlines()[1].split(",")[5] == "red"


def test_a_multi_stage_model_stops_where_its_index_does(colours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = save_trained(
        tmp_path / "run" / "model.safetensors", colours, model="vitms-test_vit", encoder_px=32
    )
    assert fgvc("index", "--weights", weights, *CPU).exit_code == 0
    index = weights.parent / "model.index.h5"
    how = ("--index", index, "--by", "neighbours")
    result = fgvc("predict", colours, "--weights", weights, *how, "--out", "a.h5", *CPU)
    assert result.exit_code == 0, result.output
    with h5py.File("a.h5") as file:
        assert "parts" not in file and np.isfinite(file["box"][:]).all()
        found = [file.attrs["class_names"][i] for i in file["topk_index"][:, 0]]
        paths = file["path"].asstr()[:].tolist()
    known = {*paths_of(index)}
    own = [label == path.split("/")[0] for path, label in zip(paths, found, strict=True) if path in known]
    assert len(own) == 21 and all(own), "each image that is in the index is nearest to itself"
