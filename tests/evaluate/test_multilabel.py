"""Several labels per image: loss, fusion, figures in closed form, and the whole way once."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fgvc
from PIL import Image
from safetensors.torch import save

from fgvc_cli.command import Messages
from fgvc_cli.config import Loss, Preprocess, TrainConfig
from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.data.listing import NO_LABEL, Example, LabelledSet
from fgvc_cli.data.loaders import LabelledImages, build_loader
from fgvc_cli.engine.checkpoint import load_checkpoint
from fgvc_cli.engine.distributed import Silent
from fgvc_cli.engine.learner import label_loss, part_loss
from fgvc_cli.engine.run_state import finished_run
from fgvc_cli.engine.trainer import Trainer
from fgvc_cli.errors import FgvcError
from fgvc_cli.evaluate.metrics import headline, label_slots, multilabel_metrics, rank
from fgvc_cli.formats.csv_rows import csv_cells, csv_columns
from fgvc_cli.formats.jsonl import json_row
from fgvc_cli.formats.rows import Layout, Row
from fgvc_cli.models.multistage_vit import Looks
from fgvc_cli.models.output import class_probs, confidence, mean_logits
from fgvc_cli.models.registry import create_model
from fgvc_cli.models.weights import read_tensors

COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 50, 40)}


def logit(*probs: float) -> torch.Tensor:
    return torch.tensor(probs).logit()


def test_loss_is_the_mean_over_labels_of_binary_cross_entropy() -> None:
    targets = torch.tensor([[1.0, 0.0, 1.0]])
    assert label_loss(torch.zeros(1, 3), targets, multi_label=True) == pytest.approx(math.log(2))
    logits = logit(0.9, 0.2, 0.5)[None]
    expected = -(math.log(0.9) + math.log(0.8) + math.log(0.5)) / 3
    assert label_loss(logits, targets, multi_label=True) == pytest.approx(expected)
    # smoothed by 0.2: a label that is there has the target 0.9, one that is not 0.1
    smoothed = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert label_loss(logit(0.9)[None], torch.ones(1, 1), 0.2, multi_label=True) == pytest.approx(smoothed)


def test_parts_of_one_image_have_its_labels() -> None:
    part_logits = torch.stack([logit(0.9, 0.2), logit(0.6, 0.7)])[None]  # (1, 2, 2)
    targets = torch.tensor([[1.0, 0.0]])
    each = [label_loss(part_logits[:, p], targets, multi_label=True) for p in range(2)]
    assert part_loss(part_logits, targets, Loss(part_loss="sum"), True) == pytest.approx(float(sum(each)))
    assert part_loss(part_logits, targets, Loss(part_loss="mean"), True) == pytest.approx(
        float(sum(each)) / 2
    )


def test_crops_are_joined_by_their_mean_probability() -> None:
    crops = torch.stack([logit(0.9, 0.2), logit(0.5, 0.4)])[None]
    joint = mean_logits(crops, True)
    assert class_probs(joint, True)[0].tolist() == pytest.approx([0.7, 0.3])
    # far out, where a probability of exactly 1 would make the logit infinite
    far = torch.tensor([[[80.0, -80.0], [80.0, -80.0]]])
    assert mean_logits(far, True)[0].tolist() == pytest.approx([80, -80])
    single = mean_logits(crops, False).softmax(dim=-1)
    assert torch.allclose(single, crops.softmax(dim=-1).mean(dim=1))


def test_looks_fuse_sigmoids_and_stop_when_every_label_is_decided() -> None:
    assert confidence(torch.tensor([[0.99, 0.02], [0.99, 0.5]]), True).tolist() == pytest.approx([0.98, 0.5])
    looks = Looks(torch.stack([logit(0.99, 0.02), logit(0.99, 0.5)]), 0.9, multi_label=True)
    rows = looks.open_rows()
    assert rows is not None and rows.tolist() == [1]
    looks.add("object", torch.stack([logit(0.97, 0.1), logit(0.97, 0.3)])[None], rows)
    assert looks.probs[0].tolist() == pytest.approx([0.99, 0.02])
    assert looks.probs[1].tolist() == pytest.approx([(0.99 + 0.97) / 2, (0.5 + 0.2) / 2])


@pytest.mark.parametrize("name", ["crasmra-resnet10t", "timm-resnet10t", "vitms-test_vit"])
def test_models_answer_with_the_mean_of_their_branches_sigmoids(name: str) -> None:
    side = 160 if name.startswith("vitms") else 32
    model = create_model(name, 4, input_px=side, pretrained=False, options={"multi_label": True}).eval()
    with torch.inference_mode():
        output = model(torch.randn(2, 3, side, side))
    branches = torch.stack([logits.sigmoid() for logits in output.logits.values()])
    assert torch.allclose(output.probs, branches.mean(dim=0), atol=1e-5)
    assert not torch.allclose(output.probs.sum(dim=1), torch.ones(2), atol=0.05)


def test_figures_in_closed_form() -> None:
    labels = torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    probs = torch.tensor(
        [[0.9, 0.8, 0.1, 0.1], [0.7, 0.6, 0.2, 0.1], [0.1, 0.4, 0.3, 0.1], [0.2, 0.1, 0.4, 0.1]]
    )
    result = multilabel_metrics(labels, probs, {"main": probs, "late": torch.full((4, 4), torch.nan)})
    # label 0: both found; label 1: one of two found, one wrong; label 2: missed; label 3 is in no image
    assert result["macro_f1"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert result["micro_f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    # label 1 by probability: right, wrong, right
    assert result["map"] == pytest.approx((1 + (1 + 2 / 3) / 2 + 1) / 3)
    assert result["exact_match"] == 0.25
    assert result["macro_f1_main"] == result["macro_f1"] and result["reached_late"] == 0
    assert "macro_f1_late" not in result
    there = labels * probs + (1 - labels) * (1 - probs)
    assert result["bce"] == pytest.approx(float(-there.log().mean()))


def test_the_epoch_is_chosen_by_macro_f1_then_map() -> None:
    scores = [{"macro_f1": 0.5, "map": 0.9}, {"macro_f1": 0.6, "map": 0.1}, {"macro_f1": 0.6, "map": 0.2}]
    assert max(scores, key=rank) == scores[2]
    assert rank({"top1": 0.5, "nll": 1.0, "macro_f1": 0.9}) == (0.5, -1.0)
    assert headline({"val_macro_f1": 0.5, "val_map": 0.25}, "val_") == "macro F1 50.00 %, mAP 25.00 %"
    assert headline({"top1": 0.5, "macro_f1": 0.1}) == "top-1 50.00 %"


def test_targets_are_multi_hot(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_text("no image")
    examples = [
        Example("a.png", 0, (2,)),
        Example("bad.png", 1),
        Example("a.png", 1),
        Example("a.png", NO_LABEL),
    ]
    images = LabelledImages(tmp_path, examples, lambda image: torch.zeros(3, 8, 8, dtype=torch.uint8), 3)
    (batch,) = build_loader(images, batch_size=4, workers=0)
    assert batch.labels.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]] and batch.labels.dtype == torch.float32
    assert batch.indices.tolist() == [0, 2, 3] and len(batch.failures) == 1


def test_images_without_any_label_count() -> None:
    labels = torch.tensor([[1.0, 0], [0, 0], [0, 0]])
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.3], [0.2, 0.6]])
    result = multilabel_metrics(labels, probs, {})
    assert result["exact_match"] == pytest.approx(2 / 3), "the second rightly has none, the third is told one"
    assert result["micro_f1"] == pytest.approx(2 / 3) and result["macro_f1"] == result["map"] == 1
    none_at_all = multilabel_metrics(labels[1:], probs[1:], {"main": probs[1:]})
    assert none_at_all["map"] == none_at_all["macro_f1"] == 0 and none_at_all["exact_match"] == 0.5
    expected = -(math.log(0.8) + math.log(0.7)) / 2
    assert label_loss(logit(0.2, 0.3)[None], torch.zeros(1, 2), multi_label=True) == pytest.approx(expected)


def test_a_row_without_any_label_has_an_empty_column_labels() -> None:
    row = Row("a.jpg", width=8, height=8, labels=("rust", "scab"), probs=(0.4, 0.1), box=(0, 0, 8, 8))
    layout = Layout(2, multi_label=True)
    cells = dict(zip(csv_columns(layout), csv_cells(row, layout), strict=True))
    assert cells["status"] == "ok" and cells["label"] == "rust" and cells["labels"] == ""
    assert json_row(row, layout)["labels"] == [] and json_row(Row("b", "missing"), layout)["labels"] is None


def test_a_model_of_one_class_refuses_several_labels(tmp_path: Path) -> None:
    several = LabelledSet("leaves", tmp_path, ("a", "b"), {}, multi_label=True)
    with pytest.raises(FgvcError, match="leaves has several labels"):
        label_slots(several, 2, False)
    assert (label_slots(several, 2, True), label_slots(several, 2, True)) == (2, 2)


# -- the whole way --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on squares with one or two colours side by side."""
    root = tmp_path_factory.mktemp("stripes")
    rng = np.random.default_rng(0)
    lines = ["path,labels,split"]
    for i in range(30):
        names = (("blue",), ("green",), ("red",), ("blue", "green"), ("green", "red"))[i % 5]
        pixels = np.concatenate([np.full((32, 32 // len(names), 3), COLOURS[name]) for name in names], axis=1)
        noisy = (pixels + rng.normal(0, 20, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(root / f"{i}.png")
        lines.append(f"{i}.png,{'|'.join(names)},{'test' if i >= 25 else 'val' if i >= 20 else 'train'}")
    (root / "stripes.csv").write_text("\n".join(lines) + "\n")
    options = ["--no-pretrained", "--input-px", 32, "--epochs", 3, "--batch-size", 4, "--workers", 0]
    options += ["--set", "optim.lr_backbone=0.02", "--set", "optim.lr_heads=0.02"]
    options += ["--set", "preprocess.resize_px=32"]
    result = fgvc("train", "--data", root / "stripes.csv", "--model", "timm-resnet10t", *options, "--out",
                  root / "run")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "val macro F1" in result.stdout and "test macro F1" in result.stdout
    return root


def test_checkpoint_says_so_and_has_no_temperature(run: Path) -> None:
    checkpoint = load_checkpoint(run / "run" / "model.safetensors")
    assert checkpoint.multi_label and checkpoint.temperature == 1 and checkpoint.novelty is None
    assert checkpoint.metadata["options"]["multi_label"] is True
    assert "calibration" not in checkpoint.metadata
    assert {"macro_f1", "micro_f1", "map", "exact_match"} <= set(checkpoint.metadata["metrics"]["test"])
    columns = (run / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "val_map" in columns and "val_top1" not in columns


def test_eval_prints_the_figures_and_predict_the_labels(run: Path, tmp_path: Path) -> None:
    weights = run / "run" / "model.safetensors"
    measured = json.loads(fgvc("eval", "--weights", weights, "--workers", 0, "--json").stdout)
    stored = load_checkpoint(weights).metadata["metrics"]["test"]
    assert measured["metrics"]["map"] == pytest.approx(stored["map"]) and measured["split"] == "test"
    text = fgvc("eval", "--weights", weights, "--workers", 0).stdout
    assert "exact_match" in text and text.count("%") >= 5
    outs = [tmp_path / "preds.csv", tmp_path / "preds.jsonl"]
    flags = ["--weights", weights, "--top-k", 2, "--workers", 0, "--out", outs[0], "--out", outs[1]]
    result = fgvc("predict", run / "*.png", *flags)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(outs[0].open()))
    assert list(rows[0])[-1] == "labels" and len(rows) == 30
    for row, line in zip(rows, outs[1].read_text().splitlines(), strict=True):
        ranked = [(row["label"], float(row["prob"])), (row["label_2"], float(row["prob_2"]))]
        assert row["labels"] == "|".join(name for name, prob in ranked if prob > 0.5)
        assert "|".join(json.loads(line)["labels"]) == row["labels"]
    assert any(float(row["prob"]) + float(row["prob_2"]) > 1.01 for row in rows), "sigmoids, not shares"


def test_failed_rows_of_several_labels_are_mended(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("0.png", "3.png"):
        (folder / name).write_bytes((run / name).read_bytes())
    (folder / "1.png").write_text("not yet here")
    common = ("predict", folder, "--weights", run / "run" / "model.safetensors", "--workers", 0)
    outs = ("--out", tmp_path / "preds.csv")
    assert fgvc(*common, *outs).exit_code == 3
    before = list(csv.DictReader((tmp_path / "preds.csv").open()))
    assert before[1]["labels"] == ""
    (folder / "1.png").write_bytes((run / "1.png").read_bytes())
    mended = fgvc(*common, *outs, "--retry-failed")
    assert mended.exit_code == 0, mended.output
    after = list(csv.DictReader((tmp_path / "preds.csv").open()))
    assert (after[0], after[2]) == (before[0], before[2]) and after[1]["status"] == "ok"


def test_one_class_and_several_labels_do_not_mix(run: Path, tmp_path: Path) -> None:
    train = ("train", "--model", "timm-resnet10t", "--no-pretrained", "--out", tmp_path / "run", "--data")
    wrong = fgvc(*train, run / "stripes.csv", "--set", "options.multi_label=no")
    assert wrong.exit_code == 2 and "the data has several labels" in wrong.stderr
    for name in COLOURS:
        (tmp_path / "single" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (32, 32), COLOURS[name]).save(tmp_path / "single" / name / f"{i}.png")
    wrong = fgvc(*train, tmp_path / "single", "--set", "options.multi_label=yes")
    assert wrong.exit_code == 2 and "the data has one class" in wrong.stderr
    weights = run / "run" / "model.safetensors"
    folder = fgvc("eval", "--weights", weights, "--data", tmp_path / "single", "--workers", 0)
    assert folder.exit_code == 0 and "macro_f1" in folder.stdout, "one label each is a case of several"


def test_fuse_weights_are_for_one_class() -> None:
    with pytest.raises(FgvcError, match="fuse=weighted"):
        create_model(
            "crasmra-resnet10t",
            3,
            input_px=32,
            pretrained=False,
            options={"multi_label": True, "fuse": "weighted"},
        )


def colour_trainer(root: Path, csv_name: str, told: bool, **settings: object) -> Trainer:
    """In Python, with no command between."""
    data = load_labelled(root / csv_name)
    config = TrainConfig(
        model="timm-resnet10t",
        epochs=1,
        batch_size=4,
        workers=0,
        preprocess=Preprocess(input_px=32),
        **settings,
    )
    model = create_model(
        config.model,
        len(data.classes),
        input_px=32,
        pretrained=False,
        options={"multi_label": told},
    )
    return Trainer(model, config, data, root / "python", torch.device("cpu"), Silent(Messages()))


def test_a_trainer_from_python_checks_the_labels_too(run: Path) -> None:
    with pytest.raises(FgvcError, match="options.multi_label=False, but the data has several labels"):
        colour_trainer(run, "stripes.csv", False)
    with pytest.raises(FgvcError, match="sampling=balanced"):
        colour_trainer(run, "stripes.csv", True, sampling="balanced")
    lines = [line.replace("|", "-") for line in (run / "stripes.csv").read_text().splitlines()]
    (run / "single.csv").write_text("\n".join(lines).replace("labels", "label") + "\n")
    with pytest.raises(FgvcError, match="options.multi_label=True, but the data has one class"):
        colour_trainer(run, "single.csv", True)
    assert colour_trainer(run, "stripes.csv", True).learner.multi_label, "the model says it, not the config"


# -- without a test split -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untested(run: Path) -> Path:
    """A finished training on the same squares without a test split: val is all it is measured on."""
    lines = (run / "stripes.csv").read_text().replace(",test", ",train").splitlines()
    # And some without any label, in both splits; one is a copy of a blue one.
    (run / "bare").mkdir()
    for i, split in enumerate(("train",) * 4 + ("val",)):
        Image.new("RGB", (32, 32), (40 * i, 90, 90)).save(run / "bare" / f"{i}.png")
        lines.append(f"bare/{i}.png,,{split}")
    (run / "bare" / "0.png").write_bytes((run / "0.png").read_bytes())
    (run / "untested.csv").write_text("\n".join(lines) + "\n")
    options = ["--no-pretrained", "--input-px", 32, "--epochs", 1, "--batch-size", 8, "--workers", 0]
    result = fgvc("train", "--data", run / "untested.csv", "--model", "timm-resnet10t", *options, "--out",
                  run / "untested")  # fmt: skip
    assert result.exit_code == 0, result.output
    return run / "untested"


def test_eval_and_check_take_images_without_any_label(untested: Path) -> None:
    options = ("--data", untested.parent / "untested.csv", "--split", "val", "--workers", 0, "--json")
    result = fgvc("eval", "--weights", untested / "model.safetensors", *options)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["metrics"]["images"] == 6
    checked = fgvc("datasets", "check", untested.parent / "untested.csv", "--workers", 0)
    assert "29 train, 6 val images, 5 of them without a label" in checked.stdout
    assert "bare/0.png [no label] = 0.png [blue]" in checked.stdout


def test_a_training_without_a_test_split_is_finished(untested: Path) -> None:
    result = fgvc("train", "--resume", untested)
    assert result.exit_code == 0, result.output
    assert "is finished" in result.stderr.replace("\n", " ") and "val macro F1" in result.stdout


def rewritten(path: Path, out: Path, **changes: object) -> None:
    """The checkpoint with other metadata; None takes a key away."""
    tensors, header = read_tensors(path)
    document = json.loads(header["fgvc"]) | changes
    document = {key: value for key, value in document.items() if value is not None}
    out.parent.mkdir(parents=True)
    out.write_bytes(save(tensors, metadata={"fgvc": json.dumps(document)}))


def test_older_checkpoints_are_finished_by_their_figures(untested: Path, run: Path, tmp_path: Path) -> None:
    rewritten(untested / "model.safetensors", tmp_path / "several" / "model.safetensors", finished=None)
    assert finished_run(tmp_path / "several") is not None
    (tmp_path / "several" / "last").mkdir()
    (tmp_path / "several" / "last" / "state.safetensors").touch()
    assert finished_run(tmp_path / "several") is None, "its state is there still"
    rewritten(run / "run" / "model.safetensors", tmp_path / "tested" / "model.safetensors", finished=None)
    assert finished_run(tmp_path / "tested") is not None
    under_way = {"finished": False, "metrics": {"val": {}, "test": {}}}
    rewritten(untested / "model.safetensors", tmp_path / "going" / "model.safetensors", **under_way)
    assert finished_run(tmp_path / "going") is None
    one_class = {"finished": None, "options": {"multi_label": False}}
    rewritten(untested / "model.safetensors", tmp_path / "one" / "model.safetensors", **one_class)
    assert finished_run(tmp_path / "one") is None, "of one class val_fitted was written at the end"
