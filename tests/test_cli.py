"""The command line as a user meets it: the whole way once, and every kind of bad input."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import fgvc
from PIL import Image

ROOT = Path(__file__).parents[1]
TRAIN = [
    "train",
    "--no-pretrained",
    "--epochs",
    "1",
    "--batch-size",
    "6",
    "--input-px",
    "32",
    "--workers",
    "0",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An Aviary of two species and a model trained on it, all through the command line."""
    root = tmp_path_factory.mktemp("world")
    made = fgvc("datasets", "make", "aviary", root / "aviary", "--species", 2, "--train", 6, "--val", 2,
                "--test", 2, "--size-px", 64)  # fmt: skip
    assert made.exit_code == 0, made.output
    model = "crasmra-mobilenetv2_035"
    trained = fgvc(*TRAIN, "--data", root / "aviary", "--model", model, "--out", root / "run")
    assert trained.exit_code == 0, trained.output
    return root, root / "run" / "model.safetensors", trained


def test_training_reports_each_split_and_where_the_model_is(world):
    root, weights, trained = world
    assert "val top-1" in trained.stdout and "test top-1" in trained.stdout
    assert str(weights) in trained.stdout
    assert "12 train, 4 val, 4 test" in trained.stderr


def test_eval_needs_the_checkpoint_and_nothing_else(world):
    result = fgvc("eval", "--weights", world[1], "--workers", 0)
    assert result.exit_code == 0
    assert "test split" in result.stdout and "top1_stage3" in result.stdout


def test_predict_and_explain_take_the_same_file(world, tmp_path):
    root, weights, _ = world
    out = tmp_path / "preds.csv"
    result = fgvc("predict", root / "aviary" / "test", "--weights", weights, "--out", out)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(out.open()))
    assert len(rows) == 4 and {row["status"] for row in rows} == {"ok"}
    assert {row["label"] for row in rows} <= {"copper-capped-linnet", "black-capped-linnet"}
    photo = next((root / "aviary" / "test").rglob("*.jpg"))
    picture = tmp_path / "why.png"
    result = fgvc("explain", photo, "--weights", weights, "--out", picture)
    assert result.exit_code == 0, result.output
    assert Image.open(picture).size[0] > 500


@pytest.fixture(scope="module")
def looks(world):
    """A tiny multi-stage ViT, trained through the same commands."""
    root, _, _ = world
    trained = fgvc(
        "train", "--no-pretrained", "--epochs", 2, "--batch-size", 6, "--input-px", 64, "--workers", 0,
        "--set", "options.encoder_px=32", "--set", "optim.freeze_epochs=1", "--model", "vitms-test_vit",
        "--data", root / "aviary", "--out", root / "looks",
    )  # fmt: skip
    assert trained.exit_code == 0, trained.output
    return root, root / "looks" / "model.safetensors"


def test_a_multi_stage_model_goes_the_same_way(looks, tmp_path):
    root, weights = looks
    result = fgvc("eval", "--weights", weights, "--workers", 0)
    assert result.exit_code == 0
    for figure in ("top1 ", "top1_main", "top1_object", "top1_parts", "passes"):
        assert figure in result.stdout
    out = tmp_path / "preds.csv"
    assert fgvc("predict", root / "aviary" / "test", "--weights", weights, "--out", out).exit_code == 0
    rows = list(csv.DictReader(out.open()))
    for row in rows:
        x1, y1, x2, y2 = (float(row[f"part_2_{edge}"]) for edge in ("x1", "y1", "x2", "y2"))
        assert float(row["box_x1"]) - 0.1 <= x1 < x2 <= float(row["box_x2"]) + 0.1
        assert 0 <= y1 < y2 <= 64
    photo = next((root / "aviary" / "test").rglob("*.jpg"))
    assert fgvc("explain", photo, "--weights", weights, "--out", tmp_path / "why.png").exit_code == 0


def test_looks_are_chosen_on_the_command_line(looks, tmp_path):
    root, weights = looks
    result = fgvc("eval", "--weights", weights, "--workers", 0, "--stages", "main", "--json")
    metrics = json.loads(result.stdout)["metrics"]
    assert metrics["passes"] == 1 and metrics["top1_main"] == metrics["top1"]
    assert "top1_object" not in metrics
    result = fgvc("eval", "--weights", weights, "--workers", 0, "--cascade", 0, "--json")
    metrics = json.loads(result.stdout)["metrics"]
    assert metrics["passes"] == 1 and metrics["reached_object"] == 0
    out = tmp_path / "preds.csv"
    test = root / "aviary" / "test"
    result = fgvc("predict", test, "--weights", weights, "--out", out, "--stages", "main+object")
    assert result.exit_code == 0
    assert not any(column.startswith("part_") for column in csv.DictReader(out.open()).fieldnames)
    result = fgvc("predict", test, "--weights", weights, "--cascade", 0)
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert {row["part_1_x1"] for row in rows} == {""} and all(row["box_x1"] for row in rows)


def test_training_one_look_is_a_setting(world, tmp_path):
    root, _, _ = world
    trained = fgvc(
        "train", "--no-pretrained", "--epochs", 1, "--batch-size", 6, "--input-px", 32, "--workers", 0,
        "--set", "options.encoder_px=32", "--set", "optim.freeze_epochs=0", "--model", "vitms-test_vit",
        "--stages", "main", "--data", root / "aviary", "--out", tmp_path / "run",
    )  # fmt: skip
    assert trained.exit_code == 0, trained.output
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "loss_main" in header and "loss_object" not in header


def one_line(result) -> str:
    lines = [line for line in result.stderr.splitlines() if line.startswith("fgvc: ")]
    assert len(lines) == 1, result.output
    assert "Traceback" not in result.output
    return lines[0]


BAD = [
    (["predict", "none"], 1, "none"),
    (["predict", "empty"], 1, "empty"),
    (["predict", "photo.jpg", "--weights", "aviari"], 1, "aviary"),
    (["predict", "photo.jpg", "--weights", "model.pth"], 1, "pickle"),
    (["predict", "photo.jpg", "--weights", "notes.safetensors"], 1, "not a readable safetensors"),
    (["predict", "photo.jpg", "--out", "none/preds.csv"], 1, "none"),
    (["predict", "photo.jpg", "--out", "preds.xyz"], 2, ".csv"),
    (["predict", "photo.jpg", "--device", "gpu"], 2, "cpu"),
    (["predict", "photo.jpg", "--batch-size", "big"], 2, "auto"),
    (["predict", "photo.jpg", "--crops", "--out", "preds.csv"], 2, "needs an .h5"),
    (["predict", "photo.jpg", "--shard", "3/2", "--out", "preds.csv"], 2, "i/n"),
    (["predict", "photo.jpg", "--restart"], 2, "--out"),
    (["merge", "preds.csv"], 1, "no folder preds.csv.partial"),
    (["predict", "photo.jpg", "--weights", ""], 1, "neither a file nor"),
    (["train", "--model", "timm-resnet18", "--data", ""], 2, "--data"),
    (
        ["train", "--model", "timm-test_vit", "--data", "set", "--no-pretrained", "--input-px", "96"]
        + ["--set", "augment.train_px=64"],
        2,
        "takes 96 px only, the input is 64 px",
    ),
    (["train", "--model", "crasmra-resnet18", "--data", "set", "--stages", "main"], 2, "stages"),
    (["train", "--model", "vitms-test_vit", "--data", "set", "--stages", "mian"], 2, "main+object"),
    (["predict", "photo.jpg", "--weights", "aviary", "--stages", "main"], 2, "stages=main is not for"),
    (["eval", "--weights", "aviary", "--cascade", "0.9"], 2, "has no cascade"),
    (["explain", "none.jpg"], 1, "none.jpg"),
    (["explain", "text.jpg"], 1, "text.jpg"),
    (["train", "--model", "crasmra-r5", "--data", "set", "--no-pretrained"], 2, "crasmra-r50"),
    (["train", "--model", "timm-resnet18", "--data", "none"], 1, "none"),
    (["train", "--model", "timm-resnet18", "--data", "empty"], 1, "empty"),
    (["train", "--model", "timm-resnet18", "--data", "single", "--no-pretrained"], 1, "lonely"),
    (["train", "--model", "timm-resnet18"], 2, "--data"),
    (["train", "--model", "timm-resnet18", "--dataset", "brids"], 2, "cub"),
    (["train", "--model", "timm-resnet18", "--dataset", "cub", "--data-root", "empty"], 1, "CUB_200_2011"),
    (["train", "--model", "timm-resnet18", "--data", "set", "--set", "optim.lr=1"], 2, "optim.lr"),
    (["eval", "--weights", "none.safetensors"], 1, "none.safetensors"),
    (["eval", "--weights", "aviary", "--data", "set"], 1, "does not know"),
    (["eval", "--weights", "aviary", "--split", "tset"], 2, "test"),
    (["datasets", "make", "aviary", "set"], 1, "set"),
    (["datasets", "make", "aviary", "new", "--species", "1"], 2, "2"),
    (["trian"], 2, "No such command 'trian'. Did you mean 'train'? Try: fgvc --help"),
    (["datasets", "gte", "pets"], 2, "Did you mean 'get'? Try: fgvc datasets --help"),
    (["train", "--epoch", "3"], 2, "No such option: --epoch"),
    (["train", "--epochs", "three"], 2, "'three'"),
    (["eval", "--cascade=2"], 2, ", got '2'. Try: fgvc eval --help"),
    (["train", "--epochs"], 2, "Option '--epochs' requires an argument. Try: fgvc train --help"),
    (["train", "birds"], 2, "unexpected extra argument"),
    (["predict"], 2, "Missing argument"),
    (["predict", "photo.jpg", "--workers", "-1"], 2, "'--workers'"),
    (["models", "crasmra-test_vit_relpos"], 1, "cannot be run stage by stage"),
    (["models", "vitms-resnet18"], 1, "cannot be a multi-stage ViT"),
]


@pytest.mark.parametrize(("arguments", "code", "names"), BAD, ids=[" ".join(a) for a, _, _ in BAD])
def test_bad_input_is_one_line_with_its_exit_code(arguments, code, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FGVC_DATA", raising=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04 a pickle in a zip")
    (tmp_path / "notes.safetensors").write_text("not tensors at all, whatever the name says")
    photo = Image.new("RGB", (40, 40), (200, 30, 30))
    photo.save(tmp_path / "photo.jpg")
    for folder in ("set/crow", "set/finch", "single/lonely", "single/many"):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(1 if folder == "single/lonely" else 4):
            photo.save(tmp_path / folder / f"{i}.png")
    before = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")}

    result = fgvc(*arguments)

    assert result.exit_code == code, result.output
    assert names in one_line(result)
    if "Try: fgvc" in result.stderr:
        assert result.stderr.count("\n") == 1, "a usage error is all that is said"
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")} - before
    assert not left, "something half-written is left behind"


def test_unreadable_images_are_rows_and_exit_code_3(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (60, 40), (200, 30, 30)).save(folder / "a.jpg")
    (folder / "b.jpg").write_text("text")
    (folder / "c.jpg").write_bytes((folder / "a.jpg").read_bytes()[:200])
    out = tmp_path / "preds.csv"
    result = fgvc("predict", folder, "--weights", "aviary", "--unknown", "off", "--out", out)
    assert result.exit_code == 3, result.output
    rows = {row["path"]: row for row in csv.DictReader(out.open())}
    assert rows["a.jpg"]["status"] == "ok" and rows["a.jpg"]["label"]
    for name in ("b.jpg", "c.jpg"):
        assert rows[name]["status"] != "ok" and rows[name]["error"] and not rows[name]["label"]


@pytest.fixture
def seven(tmp_path):
    """Seven images, one of them bad, and what one process says of them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, source in enumerate(sorted((ROOT / "examples" / "photos").glob("*.jpg"))[:6]):
        (folder / f"{i}.jpg").write_bytes(source.read_bytes())
    (folder / "bad.jpg").write_text("text")
    whole = tmp_path / "whole.csv"
    result = fgvc(
        "predict",
        folder,
        "--weights",
        "aviary",
        "--amp",
        "none",
        "--workers",
        0,
        "--unknown",
        "off",
        "--out",
        whole,
    )
    assert result.exit_code == 3, result.output
    return folder, whole


def assert_same_table(left, right):
    """Batches differ between the two, and with them the last bits."""
    ours, theirs = (list(csv.DictReader(path.open())) for path in (left, right))
    for a, b in zip(ours, theirs, strict=True):
        assert [a[name] for name in ("path", "status", "label")] == [
            b[name] for name in ("path", "status", "label")
        ]
        assert a["prob"] == b["prob"] == "" or abs(float(a["prob"]) - float(b["prob"])) < 1e-4


def test_shards_and_merge_give_the_table_of_one_process(seven, tmp_path):
    folder, whole = seven
    outs = [tmp_path / "p.csv", tmp_path / "p.h5"]
    for shard in ("0/2", "1/2"):
        result = fgvc(
            "predict", folder, "--weights", "aviary", "--workers", 0, "--unknown", "off", "--shard", shard,
            "--out", outs[0], "--out", outs[1], "--maps",
        )  # fmt: skip
        assert result.exit_code in (0, 3), result.output
        assert "fgvc merge" in result.stderr and not outs[0].exists()
    result = fgvc("merge", *outs, "--maps")
    assert result.exit_code == 3, result.output
    assert_same_table(outs[0], whole)
    with h5py.File(outs[1]) as file:
        maps = file["attention"][:]
    assert maps.shape[0] == 7 and np.isnan(maps[6]).all() and 0 < maps[:6].max() <= 1


def test_several_processes_give_the_table_of_one(seven, tmp_path):
    folder, whole = seven
    out = tmp_path / "p.csv"
    result = fgvc(
        "predict", folder, "--weights", "aviary", "--workers", 0, "--device", "cpu", "--devices", 2,
        "--unknown", "off", "--out", out,
    )  # fmt: skip
    assert result.exit_code == 3, result.output
    assert_same_table(out, whole)
    assert "6 ok, 1 failed" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "photos", "whole.csv"]


def test_default_model_is_named_on_stderr(tmp_path):
    result = fgvc("predict", ROOT / "examples" / "photos" / "spotted-linnet.jpg", "--top-k", 1)
    assert result.exit_code == 0, result.output
    assert "'groceries'" in result.stderr and "fgvc train" in result.stderr
    assert result.stdout.startswith("path,status,error")


def test_first_command_of_the_readme_is_right_about_its_birds(tmp_path):
    out = tmp_path / "preds.csv"
    result = fgvc("predict", ROOT / "examples" / "photos", "--weights", "aviary", "--out", out)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(out.open()))
    right = [row["label"] == Path(row["path"]).stem for row in rows]
    assert len(rows) == 12 and sum(right) >= 11


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write anywhere")
def test_unwritable_output_folder(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    result = fgvc("predict", ROOT / "examples" / "photos", "--out", tmp_path / "locked" / "preds.csv")
    assert result.exit_code == 1
    assert "locked" in one_line(result)


def test_interrupt_exits_130_and_leaves_no_output(tmp_path):
    """A real SIGINT while a FIFO keeps the list of images open."""
    import signal
    import time

    out = tmp_path / "preds.csv"
    command = [sys.executable, "-m", "fgvc_cli", "predict", "-", "--weights", "aviary", "--out", str(out)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        # Whoever runs the tests in the background may have left SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not out.with_name("preds.csv.partial").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "nterrupted" in stderr and "Traceback" not in stderr
    assert not list(tmp_path.iterdir())


def test_models_lists_cost_and_embedded_weights():
    result = fgvc("models")
    assert result.exit_code == 0, result.output
    for part in ("crasmra-r50", "448 px", "Wang et al.", "aviary", "groceries", "81"):
        assert part in result.stdout
    fixed = fgvc("models", "timm-vit_tiny_patch16_224")
    assert fixed.exit_code == 0 and "224 px" in fixed.stdout


def test_version():
    from fgvc_cli import __version__

    assert fgvc("--version").stdout.strip() == f"fgvc {__version__}"


def test_help_is_printed_for_every_level():
    for arguments in (["--help"], ["train", "--help"], ["datasets", "make", "--help"]):
        result = fgvc(*arguments)
        assert result.exit_code == 0 and "Usage: fgvc" in result.stdout and not result.stderr
    alone = fgvc()
    assert alone.exit_code == 2 and "Commands" in alone.stdout and not alone.stderr


def test_the_package_runs_as_the_script_does():
    command = [sys.executable, "-m", "fgvc_cli", "trian"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 2
    assert result.stderr == "fgvc: No such command 'trian'. Did you mean 'train'? Try: fgvc --help\n"


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("eval", "where the model looked is compared with them."),
        (
            "predict",
            "Exit code 0: every row is ok; 3: finished, but some images failed; 130: interrupted.",
        ),
    ],
)
def test_help_breaks_lines_where_the_terminal_ends_and_nowhere_else(command, sentence, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert sentence in fgvc(command, "--help").stdout
