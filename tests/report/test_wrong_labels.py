"""Wrong labels are found by a probe that has not seen the image, and go to the desk."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import fgvc, save_trained
from PIL import Image

import fgvc_cli
from fgvc_cli.errors import FgvcError
from fgvc_cli.report.wrong_labels import _groups, out_of_fold

CPU = ("--device", "cpu", "--workers", 0)


@pytest.fixture
def weights(tmp_path, colours) -> Path:
    """As a training on the colours would leave it."""
    return save_trained(tmp_path / "model.safetensors", colours)


@pytest.fixture
def flipped(tmp_path, colours) -> Path:
    """The colours with three labels that are wrong."""
    shutil.copytree(colours, tmp_path / "set")
    for source, target in (("red/001", "blue/x1"), ("green/004", "red/x2"), ("blue/007", "green/x3")):
        (tmp_path / "set" / f"{source}.png").rename(tmp_path / "set" / f"{target}.png")
    return tmp_path / "set"


WRONG = {"blue/x1.png": "red", "red/x2.png": "green", "green/x3.png": "blue"}


def test_the_flipped_labels_are_found_written_and_looked_at(weights, flipped, tmp_path, monkeypatch):
    pytest.importorskip("cleanlab", reason="needs pip install 'fgvc[clean]'")
    monkeypatch.chdir(tmp_path)
    command = ("datasets", "check", flipped, "--weights", weights, *CPU)
    result = fgvc(*command, "--suspects", "suspects.csv")
    assert result.exit_code == 3, result.output
    assert "3 labels that are likely wrong, of 30 (linear probe on the embeddings of" in result.stdout
    assert "blue/x1.png [blue] looks like red (" in result.stdout
    with Path("suspects.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["path"]: row["label"] for row in rows} == WRONG
    assert all(row["data_label"] == row["path"].split("/")[0] for row in rows)
    quality = [float(row["label_quality"]) for row in rows]
    assert quality == sorted(quality) and quality[-1] < 0.5
    assert fgvc(*command, "--suspects", "suspects.csv").exit_code == 1, "not replaced unasked"
    document = json.loads(fgvc(*command, "--folds", 3, "--json").stdout)["wrong_labels"]
    assert {each["path"]: each["suggested"] for each in document["suspects"]} == WRONG
    assert document["judged_by"].endswith("3 folds")
    # What it says to type next shows them at the desk, in this order, beside the labels that they have.
    (line,) = [line for line in result.stdout.splitlines() if "To look at them: fgvc report" in line]
    typed = line.split("To look at them: fgvc ")[1].split()
    result = fgvc(*typed, "--out", "desk.html")
    assert result.exit_code == 0, result.output
    assert "3 rows, 3 with a prediction; 3 pictures" in result.stderr
    assert "0.0% of 3 labelled rows are right" in result.stderr


def test_from_python_and_a_clean_set(weights, colours):
    pytest.importorskip("cleanlab", reason="needs pip install 'fgvc[clean]'")
    found = fgvc_cli.wrong_labels(str(colours), str(weights), device="cpu", workers=0, quiet=True)
    assert found.images == 30 and found.suspects == ()
    assert any("trained on these very images" in note for note in found.notes)
    own = fgvc_cli.wrong_labels(str(colours), str(weights), folds=0, device="cpu", workers=0, quiet=True)
    assert own.judged_by.startswith("probabilities of")
    assert any("too sure of the labels" in note and "--folds 5" in note for note in own.notes)


def test_classes_of_one_image_cannot_be_judged(weights, flipped):
    pytest.importorskip("cleanlab", reason="needs pip install 'fgvc[clean]'")
    (flipped / "pink").mkdir()
    shutil.copy(flipped / "red" / "000.png", flipped / "pink" / "one.png")
    (flipped / "red" / "broken.png").write_text("no image")
    found = fgvc_cli.wrong_labels(str(flipped), str(weights), device="cpu", workers=0, quiet=True)
    assert found.images == 30 and "1 image of 1 class without others to judge by." in found.notes
    assert "1 image could not be read." in found.notes
    with pytest.raises(FgvcError, match="does not know 1 of the 4 classes .pink"):
        fgvc_cli.wrong_labels(str(flipped), str(weights), folds=0, device="cpu", workers=0, quiet=True)


def test_what_cannot_be_is_said_in_a_line(weights, flipped, monkeypatch):
    assert "Add --weights MODEL" in fgvc("datasets", "check", flipped, "--folds", 3).stderr
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    result = fgvc("datasets", "check", flipped, "--weights", weights)
    assert result.exit_code == 1 and "pip install 'fgvc[clean]'" in result.stderr
    assert result.stderr.count("\n") == 1


def test_images_that_are_one_stay_in_one_fold():
    groups = _groups(["a", "b", "c", "d", "e"], [("a", "c"), ("c", "e"), ("x",)])
    assert groups[0] == groups[2] == groups[4] and len({*groups.tolist()}) == 3
    # Each image has a twin, of which a probe that had seen it would know the (random) label by heart.
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(60, 40)), 2, axis=0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels = np.repeat(rng.integers(0, 2, 60), 2)
    own = np.arange(120)
    seen = out_of_fold(features, labels, own, 5)[own, labels]
    apart = out_of_fold(features, labels, own // 2, 5)[own, labels]
    assert np.median(seen) > 0.8 and np.median(apart) < 0.7


def test_probabilities_are_of_folds_that_lack_the_image():
    """One class of two images far from each other: each is judged by the other alone."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(22, 8))
    labels = np.array([0] * 10 + [1] * 10 + [2] * 2)
    calls: list[int] = []
    probs = out_of_fold(features, labels, np.arange(22), 5, lambda: calls.append(1))
    assert len(calls) == 5 and (probs[:, :2] >= 0).all()
    np.testing.assert_allclose(probs.clip(0).sum(axis=1), 1, atol=1e-6)
    with pytest.raises(FgvcError, match="No class has two images"):
        out_of_fold(features[:3], np.arange(3), np.arange(3), 5)


def test_a_box_is_judged_by_what_it_shows_and_goes_to_the_desk_as_a_box(weights, tmp_path):
    pytest.importorskip("cleanlab")
    names, colours = ("red", "green", "blue"), ("red", "lime", "blue")
    lines = ["path,label,x1,y1,x2,y2,box_id"]
    for number in range(9):
        image = Image.new("RGB", (96, 32))
        for place in range(3):
            image.paste(colours[(place + number) % 3], (32 * place, 0, 32 * place + 32, 32))
            label = names[(place + number + (number == place == 1)) % 3]
            lines.append(f"{number}.png,{label},{32 * place},0,{32 * place + 32},32,b{place}")
        image.save(tmp_path / f"{number}.png")
    (tmp_path / "own.csv").write_text("\n".join(lines))
    suspects = tmp_path / "suspects.csv"
    found = fgvc(
        "datasets", "check", tmp_path / "own.csv", "--weights", weights, "--suspects", suspects, *CPU
    )
    assert "1.png box b1 [red] looks like blue" in found.output, found.output
    [row] = csv.DictReader(suspects.open())
    assert (row["path"], row["box_id"], row["in_x1"], row["in_x2"]) == ("1.png", "b1", "32.0", "64.0")
