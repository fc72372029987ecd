"""fgvc eval --out, --against, --calibrate and boxes, as a user meets them."""

from __future__ import annotations

import csv
import importlib
import json
import shutil
from collections import Counter
from dataclasses import asdict

import h5py
import numpy as np
import pytest
from conftest import fgvc
from PIL import Image
from safetensors.torch import save_file

import fgvc_cli
from fgvc_cli.engine.checkpoint import load_checkpoint
from fgvc_cli.engine.evaluate import REPORT_FILES
from fgvc_cli.errors import FgvcError
from fgvc_cli.evaluate.confidence import Calibration
from fgvc_cli.models.weights import read_tensors, rewrite_checkpoint


def evaluate(*arguments: object):
    result = fgvc("eval", "--workers", 0, "--device", "cpu", *arguments)
    assert result.exit_code == 0, result.output
    return result


def train(data, model, out) -> str:
    result = fgvc("train", "--no-pretrained", "--epochs", 1, "--batch-size", 6, "--input-px", 32, "--workers",
                  0, "--device", "cpu", "--data", data, "--model", model, "--out", out)  # fmt: skip
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An Aviary of three species and two models of it that do not know much."""
    root = tmp_path_factory.mktemp("report")
    made = fgvc("datasets", "make", "aviary", root / "aviary", "--species", 3, "--train", 4, "--val", 2,
                "--test", 5, "--size-px", 64)  # fmt: skip
    assert made.exit_code == 0, made.output
    for name, model in (("first", "crasmra-mobilenetv2_035"), ("second", "timm-resnet10t")):
        told = train(root / "aviary", model, root / name)
        assert "no novelty is fitted: that takes 19 val images" in told
    return root


@pytest.fixture(scope="module")
def report(world):
    """What --out writes, and the printed JSON."""
    result = evaluate("--weights", world / "first/model.safetensors", "--out", world / "report", "--json")
    return world / "report", json.loads(result.stdout)


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_precision_is_chosen_recorded_and_printed(world):
    weights = world / "first/model.safetensors"
    named = {"none": "float32", "auto": "float32", "bf16": "bf16"}
    found = {amp: evaluate("--weights", weights, "--amp", amp, "--json") for amp in named}
    documents = {amp: json.loads(result.stdout) for amp, result in found.items()}
    assert {amp: document["precision"] for amp, document in documents.items()} == named
    nll = {amp: document["metrics"]["nll"] for amp, document in documents.items()}
    assert nll["auto"] == nll["none"] and 0 < abs(nll["bf16"] - nll["none"]) < 0.1
    assert "test split, computed in bf16" in evaluate("--weights", weights, "--amp", "bf16").stdout
    refused = fgvc("eval", "--weights", weights, "--device", "cpu", "--amp", "fp8")
    assert refused.exit_code == 2 and "fp8" in refused.output


def test_accuracies_are_printed_with_their_interval(world):
    printed = evaluate("--weights", world / "first/model.safetensors").stdout
    lines = {line.split()[0]: line for line in printed.splitlines() if line.startswith("  ")}
    assert all("[" in lines[name] for name in ("top1", "top5", "top1_concat", "macro_f1", "iou"))
    assert "95 % interval" in printed


def test_a_report_is_whole_and_says_what_the_json_says(report):
    folder, document = report
    assert {entry.name for entry in folder.iterdir()} == {*REPORT_FILES} - {"ranks.csv"}  # no taxonomy
    assert json.loads((folder / "metrics.json").read_text()) == document
    for name in ("confusion.png", "confused.png", "reliability.png"):
        with Image.open(folder / name) as picture:
            assert picture.format == "PNG"


def test_the_tables_agree_with_each_other_and_with_the_metrics(report):
    folder, document = report
    predictions = rows(folder / "predictions.csv")
    assert len(predictions) == document["metrics"]["images"] == 15
    right = [int(row["correct"]) for row in predictions]
    assert right == [int(row["label"] == row["guess"]) for row in predictions]
    assert np.mean(right) == pytest.approx(document["metrics"]["top1"])
    confusion = {row.pop("label"): row for row in rows(folder / "confusion.csv")}
    counted = Counter((row["label"], row["guess"]) for row in predictions)
    assert {(a, b): int(n) for a, row in confusion.items() for b, n in row.items() if int(n)} == counted
    for row in rows(folder / "per_class.csv"):
        assert int(row["images"]) == 5
        assert float(row["recall"]) == pytest.approx(counted[row["class"], row["class"]] / 5)
        others = {guess: n for (label, guess), n in counted.items() if label == row["class"] != guess}
        assert int(row["confused_images"]) == max(others.values(), default=0)
        assert not others or others[row["most_confused_with"]] == max(others.values())
    f1 = [float(row["f1"] or 0) for row in rows(folder / "per_class.csv")]
    assert np.mean(f1) == pytest.approx(document["metrics"]["macro_f1"], abs=1e-4)


def test_a_notebook_gets_what_the_command_prints(world, report, capsys):
    """Before and after a part of the room is imported, which puts the package in the function's place."""
    weights = str(world / "first/model.safetensors")
    measured = fgvc_cli.evaluate(weights, workers=0, device="cpu")
    importlib.import_module("fgvc_cli.evaluate.metrics")

    again = fgvc_cli.evaluate(weights=weights, workers=0, device="cpu")
    assert capsys.readouterr().out == ""
    documents = [json.loads(json.dumps(each)) for each in (measured.document, again.document, report[1])]
    for document in documents:
        document["metrics"].pop("images_per_second")  # is never the same
    assert documents[0] == documents[1] == documents[2]
    assert measured.metrics["top1"] == report[1]["metrics"]["top1"]
    with pytest.raises(FgvcError, match="--split got 'tset', expected train, val, test or all"):
        fgvc_cli.evaluate(weights, split="tset")


def test_boxes_are_those_that_predict_writes(world, report):
    """The same geometry: predict's boxes against boxes.csv give the IoU of each image."""
    folder, document = report
    out = world / "preds.csv"
    weights = world / "first/model.safetensors"
    made = fgvc("predict", world / "aviary/test", "--weights", weights, "--out", out, "--workers", 0,
                "--device", "cpu")  # fmt: skip
    assert made.exit_code == 0, made.output
    truths = {row["path"]: row for row in rows(world / "aviary/boxes.csv")}
    predicted = {f"test/{row['path']}": row for row in rows(out)}
    corners = ("x1", "y1", "x2", "y2")
    for row in rows(folder / "predictions.csv"):
        ours = [float(predicted[row["path"]][f"box_{corner}"]) for corner in corners]
        true = [float(truths[row["path"]][corner]) for corner in corners]
        assert float(row["box_iou"]) == pytest.approx(overlap(ours, true), abs=0.02)
    assert document["localisation"]["metrics"]["boxes"] == 15
    assert {"iou", "iou_above_0.5", "pointing_object", "pointing_parts"} <= {
        *document["localisation"]["intervals"]
    }


def overlap(a: list[float], b: list[float]) -> float:
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    both = max(0.0, width) * max(0.0, height)
    return both / sum([(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)], -both)


def test_boxes_of_turned_images_are_upright(tmp_path, world):
    """An image stored on its side has the figures of the same image stored upright."""
    figures = []
    for name, turned in (("upright", False), ("turned", True)):
        folder = tmp_path / name
        (folder / "copper-capped-linnet").mkdir(parents=True)
        lines = ["path,x1,y1,x2,y2"]
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 255, (40, 70, 3), np.uint8)
            image, exif = Image.fromarray(pixels), Image.Exif()
            if turned:
                exif[0x0112] = 6  # to be turned clockwise
                image = image.transpose(Image.Transpose.ROTATE_90)
            image.save(folder / "copper-capped-linnet" / f"{i}.png", exif=exif)
            lines.append(f"copper-capped-linnet/{i}.png,0,0,{30 + i},40")
        (folder / "boxes.csv").write_text("\n".join(lines) + "\n")
        result = evaluate("--weights", world / "first/model.safetensors", "--data", folder, "--json")
        figures.append(json.loads(result.stdout)["localisation"]["metrics"])
    assert figures[0] == figures[1]


def test_a_report_is_not_written_over_unasked(world, report):
    folder, _ = report
    weights = world / "first/model.safetensors"
    again = ("eval", "--weights", weights, "--workers", 0, "--out", folder)
    refused = fgvc(*again)
    assert refused.exit_code == 1 and "--overwrite" in refused.stderr
    shutil.copytree(folder, world / "copy")
    evaluate("--weights", weights, "--out", world / "copy", "--overwrite")
    (world / "copy" / "thesis.txt").touch()
    refused = fgvc(*again[:-1], world / "copy", "--overwrite")
    assert refused.exit_code == 1 and "thesis.txt" in refused.stderr and (world / "copy/thesis.txt").exists()


def test_two_models_on_the_same_images(world):
    first, second = (world / name / "model.safetensors" for name in ("first", "second"))
    document = json.loads(evaluate("--weights", first, "--against", second, "--json").stdout)
    against = document["against"]
    alone = json.loads(evaluate("--weights", second, "--json").stdout)
    assert against["top1"] == document["metrics"]["top1"]
    assert against["other_top1"] == alone["metrics"]["top1"]
    assert against["difference"] == pytest.approx(against["top1"] - against["other_top1"])
    assert (
        sum(against[n] for n in ("both", "only_first", "only_second", "neither")) == against["images"] == 15
    )
    assert against["notes"] == []
    printed = evaluate("--weights", first, "--against", second).stdout
    assert "McNemar's exact test: p =" in printed and "on the same 15 images" in printed


def test_a_model_against_itself_shows_no_difference(world):
    weights = world / "first/model.safetensors"
    printed = evaluate("--weights", weights, "--against", weights).stdout
    assert "p = 1.000" in printed and "no difference shown" in printed


@pytest.mark.parametrize(
    ("interval", "p", "says"),
    [
        ((0.01, 0.05), 0.001, "A is right more often than B"),
        ((-0.05, -0.01), 0.001, "B is right more often than A"),
        ((-0.01, 0.05), 0.2, "no difference shown"),
        ((0.001, 0.05), 0.06, "no difference shown"),
    ],
)
def test_the_verdict_needs_both_the_interval_and_the_test(interval, p, says):
    from fgvc_cli.cli.eval import verdict

    assert verdict({"difference_interval": interval, "p_value": p, "first": "A", "second": "B"}).startswith(
        says
    )


def test_a_model_of_other_training_data_is_pointed_out(world, tmp_path):
    """Classes are matched by name, and the other may have been trained on these images."""
    mixed = tmp_path / "birds"
    for species in (world / "aviary/train").iterdir():
        shutil.copytree(species, mixed / species.name)
    shutil.copytree(mixed / species.name, mixed / "another")
    train(mixed, "timm-resnet10t", tmp_path / "run")
    pair = world / "second/model.safetensors", tmp_path / "run/model.safetensors"
    document = json.loads(evaluate("--weights", pair[0], "--against", pair[1], "--json").stdout)
    assert "may have been trained on some of these" in document["against"]["notes"][0]
    assert document["against"]["images"] == 15


def test_too_few_images_write_no_calibrated_copy(world, tmp_path):
    source, out = world / "first/model.safetensors", tmp_path / "calibrated.safetensors"
    result = fgvc("eval", "--weights", source, "--split", "val", "--calibrate", out, "--workers", 0)
    assert result.exit_code == 1 and not out.exists()
    assert "6 images of the val split are too few to fit a temperature" in result.stderr


def test_calibrate_writes_a_copy_with_the_temperature_of_the_training(world, tmp_path, monkeypatch):
    for name in ("LEAST_IMAGES", "SURE_IMAGES"):
        monkeypatch.setattr(f"fgvc_cli.evaluate.confidence.{name}", 0)
    source = world / "first/model.safetensors"
    trained = load_checkpoint(source)
    forgotten = tmp_path / "interrupted.safetensors"
    rewrite_checkpoint(source, forgotten, {"calibration": asdict(Calibration(1.0, "val", 6))})
    out = tmp_path / "calibrated.safetensors"
    printed = evaluate("--weights", forgotten, "--split", "val", "--calibrate", out).stdout
    copy = load_checkpoint(out)
    assert copy.temperature != 1 == trained.temperature
    assert copy.metadata["calibration"]["images"] == 6 and str(out) in printed
    for key, tensor in trained.model.state_dict().items():
        assert tensor.equal(copy.model.state_dict()[key])
    assert {**copy.metadata, "calibration": None} == {**trained.metadata, "calibration": None}


@pytest.fixture(scope="module")
def measured_birds(tmp_path_factory):
    """A model with enough val images for what is fitted on them."""
    root = tmp_path_factory.mktemp("fits")
    made = fgvc("datasets", "make", "aviary", root / "birds", "--species", 3, "--train", 6, "--val", 8,
                "--test", 4, "--size-px", 64)  # fmt: skip
    assert made.exit_code == 0, made.output
    assert "no novelty" not in train(root / "birds", "timm-resnet10t", root / "run")
    return root


def test_novelty_is_fitted_by_training_and_again_into_a_copy(measured_birds, tmp_path):
    """The copy says of its val split what the threshold says, and a foreign image is unknown."""
    source = measured_birds / "run/model.safetensors"
    trained = load_checkpoint(source)
    without = tmp_path / "old.safetensors"
    tensors, header = read_tensors(source)
    document = json.loads(header["fgvc"])
    assert document["format"] == 2 and document.pop("novelty")["images"] == 24
    old = {name: values for name, values in tensors.items() if not name.startswith("novelty.")}
    save_file(old, without, metadata={"fgvc": json.dumps(document | {"format": 1})})
    assert load_checkpoint(without).novelty is None
    out = tmp_path / "new.safetensors"
    printed = evaluate("--weights", without, "--split", "val", "--fit-novelty", out).stdout
    assert "keeps 95% of 24 images of the val split" in printed and str(out) in printed
    again = load_checkpoint(out)
    assert again.novelty.means.allclose(trained.novelty.means, atol=2e-3) and again.metadata["format"] == 2
    assert again.novelty.threshold == pytest.approx(trained.novelty.threshold, rel=1e-3)
    for key, tensor in trained.model.state_dict().items():
        assert tensor.equal(again.model.state_dict()[key])

    options = {"weights": str(out), "workers": 0, "device": "cpu", "amp": "none", "quiet": True}
    found = fgvc_cli.predict_folder(measured_birds / "birds/val", **options)
    assert found.exit_code == 0 and found.statuses == {"ok": 24}  # the least number that keeps 95 % of 25
    found = fgvc_cli.predict_folder(measured_birds / "birds/val", unknown=0.01, **options)
    assert found.exit_code == 0 and found.statuses == {"unknown": 24} and found.failed == 0
    assert all(row.ok and row.labels and 0 < row.more["novelty"] <= 1 for row in found.rows)


def test_thresholds_of_the_val_split_are_written_and_used(measured_birds, tmp_path):
    weights, out = measured_birds / "run/model.safetensors", tmp_path / "least.csv"
    arguments = ("--weights", weights, "--split", "val", "--thresholds", out)
    printed = evaluate(*arguments, "--target-precision", 0.1).stdout
    assert "24 images of the val split" in printed and str(out) in printed
    table = rows(out)
    assert [*table[0]] == ["class", "threshold", "precision", "coverage", "images"]
    assert [row["class"] for row in table] == [*load_checkpoint(weights).classes]
    assert sum(int(row["images"]) for row in table) == 24
    again = fgvc("eval", *arguments, "--target-precision", 0.1)
    assert again.exit_code == 1 and "--overwrite" in again.stderr
    out.write_text(f"class,threshold\n{table[0]['class']},1.1\n")
    options = {"workers": 0, "device": "cpu", "amp": "none", "unknown": "off", "quiet": True}
    found = fgvc_cli.predict_folder(measured_birds / "birds/val", weights=weights, thresholds=out, **options)
    assert {row.status for row in found.rows if row.labels[0] == table[0]["class"]} <= {"unsure"}
    assert {row.status for row in found.rows if row.labels[0] != table[0]["class"]} <= {"ok"}


def test_what_makes_rows_doubtful_is_typed_recorded_and_the_same_from_python(measured_birds, tmp_path):
    weights, birds = measured_birds / "run/model.safetensors", measured_birds / "birds/test"
    first, *_, last = load_checkpoint(weights).classes
    (tmp_path / "here.txt").write_text(f"{last}\n{first}\n")
    (tmp_path / "least.csv").write_text(f"class,threshold\n{first},0.9\n")
    options = {"weights": str(weights), "workers": 0, "device": "cpu", "amp": "none", "quiet": True}
    arguments = [f"--{name}={value}" for name, value in options.items() if name != "quiet"]
    arguments += ["--classes", tmp_path / "here.txt", "--thresholds", tmp_path / "least.csv"]
    outs = ["--out", tmp_path / "p.csv", "--out", tmp_path / "p.h5"]
    typed = fgvc("predict", birds, *arguments, "--unknown", 1.5, *outs)
    assert typed.exit_code == 0, typed.output
    table = rows(tmp_path / "p.csv")
    assert {row["label"] for row in table} | {row["label_2"] for row in table} == {first, last}
    assert [*table[0]][-1] == "novelty" and "label_3" not in table[0]
    with h5py.File(tmp_path / "p.h5") as file:
        settings = json.loads(file.attrs["settings"])
    assert settings["classes"] == [first, last] and settings["unknown"] == 1.5
    assert settings["thresholds"] == {first: 0.9}
    found = fgvc_cli.predict_folder(
        birds, classes=[first, last], thresholds={first: 0.9}, unknown=1.5, **options
    )
    assert [row.status for row in found.rows] == [row["status"] for row in table]
    assert [f"{row.more['novelty']:.3f}" for row in found.rows] == [
        f"{float(r['novelty']):.3f}" for r in table
    ]
    (tmp_path / "here.txt").write_text(f"{first}s\n")
    for more, names in (
        ([], f"(nearest: {first}"),
        (["--unknown", "some"], "expected on or off or a number"),
    ):
        wrong = fgvc("predict", birds, *arguments, *more)
        assert wrong.exit_code == 2 and names in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "names"),
    [
        (["--calibrate", "new.safetensors"], 2, "--split val"),
        (["--split", "val", "--calibrate", "new.safetensors", "--json"], 2, "--json"),
        (["--split", "val", "--calibrate", "new.safetensors", "--out", "new"], 2, "--out"),
        (["--fit-novelty", "new.safetensors"], 2, "--split val"),
        (["--split", "val", "--fit-novelty", "new.safetensors"], 1, "19 val images"),
        (["--split", "val", "--fit-novelty", "a.safetensors", "--calibrate", "b.safetensors"], 2, "go with"),
        (["--split", "val", "--thresholds", "new.csv"], 2, "--target-precision 0.95"),
        (["--split", "val", "--target-precision", 0.9], 2, "--thresholds FILE.csv"),
        (["--split", "val", "--target-precision", 0.999, "--thresholds", "new.csv"], 1, "cannot be shown"),
        (["--split", "val", "--target-precision", 95, "--thresholds", "new.csv"], 2, "less than 1"),
        (["--overwrite"], 2, "--overwrite"),
        (["--out", "none/new"], 1, "mkdir -p none"),
        (["--out", "file.txt"], 1, "is a file"),
        (["--against", "aviari"], 1, "Embedded"),
        (["--against", "groceries"], 1, "does not know"),
    ],
)
def test_what_cannot_work_is_one_line(world, tmp_path, monkeypatch, arguments, code, names):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").touch()
    result = fgvc("eval", "--weights", world / "first/model.safetensors", "--workers", 0, *arguments)
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("fgvc: ")]
    assert len(lines) == 1 and names in lines[0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_only_those_of_the_trainings_data_are_calibrated_on(world, tmp_path):
    shutil.copytree(world / "aviary", tmp_path / "other")
    next((tmp_path / "other/train").rglob("*.jpg")).unlink()
    weights = world / "first/model.safetensors"
    result = fgvc("eval", "--weights", weights, "--data", tmp_path / "other", "--split", "val", "--calibrate",
                  tmp_path / "new.safetensors")  # fmt: skip
    assert result.exit_code == 2 and "those of the training" in result.stderr


def test_images_that_moved_are_divided_as_in_training(world, tmp_path):
    """Unsplit, as new images are: taken for new, those that were trained on would count."""
    shutil.copytree(world / "aviary/test", tmp_path / "here")
    train(tmp_path / "here", "timm-resnet10t", tmp_path / "run")
    weights = tmp_path / "run/model.safetensors"
    before = json.loads(evaluate("--weights", weights, "--json").stdout)
    (tmp_path / "here").rename(tmp_path / "there")
    after = json.loads(evaluate("--weights", weights, "--data", tmp_path / "there", "--json").stdout)
    assert after["intervals"] == before["intervals"] and after["metrics"]["images"] == 3
    next((tmp_path / "there").rglob("*.jpg")).unlink()
    new = json.loads(evaluate("--weights", weights, "--data", tmp_path / "there", "--json").stdout)
    assert new["metrics"]["images"] == 14


@pytest.fixture(scope="module")
def tree(world):
    """Three birds of one order; the first two share a genus, the third has none."""
    names = sorted(folder.name for folder in (world / "aviary/test").iterdir())
    path = world / "tree.csv"
    lines = [f"{name},bird,{'one' if i < 2 else ''}" for i, name in enumerate(names)]
    path.write_text("\n".join(["class,order,genus", *lines]))
    return path


def train_with_tree(world, tree, out):
    return fgvc("train", "--no-pretrained", "--epochs", 1, "--batch-size", 6, "--input-px", 32, "--workers",
                0, "--device", "cpu", "--data", world / "aviary", "--model", "timm-resnet10t", "--out", out,
                "--taxonomy", tree)  # fmt: skip


def test_a_taxonomy_is_kept_in_the_model_and_measured_at_each_rank(world, tree, tmp_path):
    first = world / "first/model.safetensors"
    given = json.loads(evaluate("--weights", first, "--taxonomy", tree, "--rollup", 0.4, "--json").stdout)
    figures = given["taxonomy"]
    assert [line["rank"] for line in figures["ranks"]] == ["class", "genus", "order"]
    assert [line["images"] for line in figures["ranks"]] == [15, 10, 15]
    assert figures["ranks"][0]["accuracy"] == given["metrics"]["top1"]
    assert figures["ranks"][2]["accuracy"] == 1
    covered = sum(line["coverage"] for line in figures["ranks"])
    assert figures["rollup"]["coverage"] == pytest.approx(covered) == 1
    assert sum(figures["mistakes"].values()) == round(15 * (1 - given["metrics"]["top1"]))

    trained = train_with_tree(world, tree, tmp_path / "run")
    assert trained.exit_code == 0, trained.output
    weights = tmp_path / "run/model.safetensors"
    kept = load_checkpoint(weights).taxonomy
    assert kept.ranks == ("order", "genus") and kept.lineages[0] == ("bird", "one")
    away = tree.rename(tmp_path / "moved.csv")
    try:
        printed = evaluate("--weights", weights, "--out", tmp_path / "report", "--rollup", 1).stdout
    finally:
        away.rename(tree)
    assert "right at each rank of the taxonomy" in printed and "rolled up at 1: " in printed
    table = rows(tmp_path / "report/ranks.csv")
    assert [row["rank"] for row in table] == ["class", "genus", "order"] and table[2]["accuracy"] == "1.0000"
    assert float(table[2]["coverage"]) == 1 and (tmp_path / "report/metrics.json").is_file()


def test_a_taxonomy_that_is_missing_or_does_not_fit_is_one_line(world, tmp_path):
    (tmp_path / "tree.csv").write_text("class,genus\nwren,Troglodytes\n")
    for arguments, says in (
        (["--rollup", 0.9], "neither model nor data bring"),
        (["--taxonomy", tmp_path / "tree.csv"], "lacks 3 of 3 classes"),
        (["--rollup", 2], "--rollup got 2.0, expected 1 at most"),
    ):
        result = fgvc("eval", "--weights", world / "second", "--workers", 0, "--device", "cpu", *arguments)
        lines = [line for line in result.stderr.splitlines() if line.startswith("fgvc: ")]
        assert result.exit_code in (1, 2) and len(lines) == 1 and says in lines[0]
    result = train_with_tree(world, tmp_path / "tree.csv", tmp_path / "run")
    assert result.exit_code == 1 and "lacks 3 of 3 classes" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flip", [False, True])
def test_the_mean_of_several_models_is_what_predict_tells(world, tmp_path, flip):
    both = [part for name in ("first", "second") for part in ("--weights", world / name)]
    both += ["--tta", "flip"] if flip else []
    document = json.loads(evaluate(*both, "--out", tmp_path / "report", "--json").stdout)
    assert [each["weights_sha256"] for each in document["models"]] == document["weights_sha256"].split("+")
    assert document["calibration"] is None and document["tta"] == ("flip" if flip else None)
    out = tmp_path / "preds.csv"
    made = fgvc("predict", world / "aviary/test", *both, "--out", out, "--workers", 0, "--device", "cpu")
    assert made.exit_code == 0, made.output
    predicted = {f"test/{row['path']}": row for row in rows(out)}
    found = rows(tmp_path / "report/predictions.csv")
    assert len(found) == 15
    for row in found:
        assert row["guess"] == predicted[row["path"]]["label"]
        assert float(row["prob"]) == pytest.approx(float(predicted[row["path"]]["prob"]), abs=1e-4)
    # No model alone has these probabilities.
    evaluate("--weights", world / "first", "--out", tmp_path / "alone")
    alone = [row["prob"] for row in rows(tmp_path / "alone/predictions.csv")]
    assert [row["prob"] for row in found] != alone
    assert "mean of the calibrated probabilities" in evaluate(*both).stdout


def test_models_of_different_classes_have_no_mean(world, tmp_path):
    result = fgvc("eval", "--weights", world / "first", "--weights", "aviary", "--workers", 0)
    assert result.exit_code == 2 and "aviary tells 12 classes" in result.stderr
    assert "first tells 3; it alone knows" in result.stderr
    pair = ("--weights", world / "first", "--weights", world / "second")
    result = fgvc("eval", *pair, "--split", "val", "--calibrate", tmp_path / "new.safetensors")
    assert result.exit_code == 2 and "--calibrate does not go with a second --weights" in result.stderr
