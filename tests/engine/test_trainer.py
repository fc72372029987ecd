"""Training end to end on squares of three colours, through the command."""

from __future__ import annotations

import csv
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import train_options

import fgvc_cli
from fgvc_cli.cli.train import run as run_command
from fgvc_cli.config import TrainConfig
from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.data.listing import Example
from fgvc_cli.datasets.registry import load_data
from fgvc_cli.engine import trainer as trainer_module
from fgvc_cli.engine.checkpoint import known_examples, load_checkpoint, save_checkpoint
from fgvc_cli.engine.options import TrainOptions
from fgvc_cli.engine.train import plain_values
from fgvc_cli.engine.trainer import Trainer, unread_text
from fgvc_cli.errors import FgvcError
from fgvc_cli.evaluate.confidence import Calibration
from fgvc_cli.models.registry import create_model

TINY = {"model": "crasmra-mobilenetv2_035", "input_px": 32, "epochs": 2, "batch_size": 8, "workers": 0}
FAST = ["optim.name=adamw", "optim.lr_backbone=0.002", "optim.lr_heads=0.005", "preprocess.resize_px=32"]


def train(data, out, *sets, **flags) -> int:
    values = TINY | {"data": str(data), "pretrained": False} | flags
    return run_command(train_options([*FAST, *sets], **values, out=out, device="cpu"))


def read_metrics(out) -> list[dict[str, str]]:
    with (out / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def trained(module_colours):
    run = module_colours.parent / "run"
    train(module_colours, run, "options.fuse=weighted", "ema_decay=0.5", epochs=4, batch_size=4, seed=2)
    return module_colours, run


def test_run_folder_holds_what_is_promised_and_nothing_half_written(trained):
    assert sorted(p.name for p in trained[1].iterdir()) == [
        "config.json",
        "curves.png",
        "metrics.csv",
        "model.safetensors",
    ]
    rows = read_metrics(trained[1])
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    for column in ("loss", "loss_div", "suppressed_stage3", "overlap", "val_top1", "val_overlap", "lr_cram"):
        assert float(rows[-1][column]) >= 0, column


def test_training_learns(trained):
    rows = read_metrics(trained[1])
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert max(float(row["val_top1"]) for row in rows) >= 2 / 3


def test_checkpoint_holds_everything_to_predict(trained):
    checkpoint = load_checkpoint(trained[1] / "model.safetensors")
    assert checkpoint.classes == ("blue", "green", "red")
    assert checkpoint.preprocess.input_px == 32
    assert checkpoint.model.smram is None and not checkpoint.model.training
    meta = checkpoint.metadata
    assert set(meta["metrics"]) == {"val", "val_fitted", "test"}
    assert meta["config"] == json.loads((trained[1] / "config.json").read_text())
    assert meta["options"]["delta"] == 0.9
    assert len(meta["config_sha256"]) == 64


def test_fuse_weights_are_fitted_and_stored(trained):
    weights = load_checkpoint(trained[1] / "model.safetensors").model.heads.fuse_weights
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    assert not torch.allclose(weights, torch.full((4,), 0.25), atol=1e-3)


def test_eval_with_the_checkpoint_alone_repeats_the_stored_number(trained):
    path = trained[1] / "model.safetensors"
    for split in ("val", "test"):
        document = evaluate_split(path, split)
        # The fuse weights were fitted on val; the figure that chose the epoch stays apart.
        stored = load_checkpoint(path).metadata["metrics"]["val_fitted" if split == "val" else split]
        assert document["split"] == split
        for name in ("top1", "top1_concat", "macro_f1", "images", "nll", "nll_calibrated", "ece_calibrated"):
            assert document["metrics"][name] == pytest.approx(stored[name], abs=1e-6), name


def test_too_little_memory_to_evaluate_is_one_line(trained, monkeypatch):
    def no_room(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("fgvc_cli.engine.evaluate.evaluate_model", no_room)
    data, run = trained
    with pytest.raises(FgvcError, match="Out of memory with batches of 32 on cpu.*--batch-size 16"):
        fgvc_cli.evaluate(weights=str(run), data=str(data), device="cpu", workers=0, quiet=True)


def test_same_seed_same_run_and_another_seed_another(colours, tmp_path):
    losses = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(colours, tmp_path / name, seed=seed, epochs=1)
        losses[name] = read_metrics(tmp_path / name)[0]["loss"]
    assert losses["a"] == losses["b"] != losses["c"]


def test_test_split_is_touched_once_at_the_end(colours, tmp_path, monkeypatch):
    seen = []
    original = trainer_module.Trainer._evaluate
    monkeypatch.setattr(
        trainer_module.Trainer,
        "_evaluate",
        lambda self, split: (seen.append(split), original(self, split))[1],
    )
    train(colours, tmp_path / "run")
    assert seen == ["val", "val", "test"]


def test_best_validation_epoch_is_kept(colours, tmp_path, monkeypatch):
    scores = iter([0.5, 0.9, 0.7])
    label = torch.tensor([0])

    class Scored:
        def __init__(self, confidence):
            self.labels, self.probs = label, torch.tensor([[confidence, 1 - confidence]])

        def metrics(self, temperature=None):
            return {"top1": next(scores, 0.1), "nll": 1.0, "images": 1.0}

    seen = []

    def metrics_of(self, part, temperature=None):
        return part.metrics(temperature)

    def scored(self, split):
        seen.append(self.learner.model.heads["concat"][1].weight.detach().clone())
        return Scored(0.5 + 0.1 * len(seen))

    def fitted(probs, labels, split, add_up):
        return Calibration(float(probs[0, 0]), split, len(labels))

    monkeypatch.setattr(trainer_module.Trainer, "_evaluate", scored)
    monkeypatch.setattr(trainer_module.Trainer, "_metrics", metrics_of)
    monkeypatch.setattr(trainer_module, "fit_calibration", fitted)
    train(colours, tmp_path / "run", epochs=3)
    checkpoint = load_checkpoint(tmp_path / "run" / "model.safetensors")
    assert checkpoint.metadata["metrics"]["val"]["top1"] == 0.9
    kept = checkpoint.model.heads["concat"][1].weight
    assert torch.equal(kept, seen[1]) and not torch.equal(kept, seen[2])
    # The temperature is that of the kept epoch's answers, not of the last one's.
    assert checkpoint.temperature == pytest.approx(0.7)


@pytest.mark.filterwarnings("ignore:delta 0.3 suppresses every channel")
def test_a_mask_that_is_the_same_for_every_image_is_told_once(colours, tmp_path, capsys):
    train(colours, tmp_path / "run", "options.delta=0.3", epochs=3)
    told = [line for line in capsys.readouterr().err.splitlines() if "fixed gate" in line]
    assert len(told) == 1 and "CRAM is a fixed gate in stage3, stage4, stage5" in told[0]
    row = read_metrics(tmp_path / "run")[-1]
    assert (float(row["val_mask_variation_stage4"]), float(row["val_suppressed_stage4"])) == (0, 1)
    train(colours, tmp_path / "all", "options.delta=0.3", "val_share=0")
    assert "CRAM is a fixed gate in stage3, stage4, stage5" in capsys.readouterr().err


@pytest.mark.parametrize(("images", "told"), [(1, 0), (2, 1)])
def test_one_val_image_says_nothing_of_masks(images, told):
    said: list[str] = []
    trainer = SimpleNamespace(
        config=SimpleNamespace(epochs=2),
        data=SimpleNamespace(splits={"val": ["image"] * images}),
        table=SimpleNamespace(rows=[{"val_images": float(images), "val_mask_variation_stage3": 0.0}]),
        observer=SimpleNamespace(on_warning=said.append),
        _warned_of_masks=False,
    )
    trainer_module.Trainer._warn_of_fixed_masks(trainer, 2)
    assert len(said) == told


def test_baseline_trains_through_the_same_loop(colours, tmp_path):
    assert train(colours, tmp_path / "run", model="timm-mobilenetv2_035") == 0
    row = read_metrics(tmp_path / "run")[0]
    assert "loss_main" in row and "loss_div" not in row


def test_without_a_val_split_all_images_train_and_the_last_epoch_is_kept(colours, tmp_path, capsys):
    assert train(colours, tmp_path / "run", "val_share=0", model="timm-mobilenetv2_035") == 0
    metadata = load_checkpoint(tmp_path / "run" / "model.safetensors").metadata
    assert set(metadata["metrics"]) == {"test"} and metadata["epoch"] == 2 and metadata["finished"]
    assert "calibration" not in metadata and metadata["train_images"] == 24
    said = capsys.readouterr()
    assert "trained on 24 images" in said.out and "model of epoch 2, the last: " in said.out
    assert not any(name.startswith("val_") for name in read_metrics(tmp_path / "run")[0])
    with pytest.raises(FgvcError, match="patience=1 needs a val split"):
        train(colours, tmp_path / "other", "val_share=0", "patience=1")


def test_unreadable_image_is_left_out_and_named(colours, tmp_path, capsys):
    bad = next((colours / "red").iterdir())
    bad.write_bytes(b"not an image")
    assert train(colours, tmp_path / "run") == 0
    assert f"left out red/{bad.name}" in capsys.readouterr().err


def test_the_end_of_a_training_names_the_classes_that_lost_images(colours, tmp_path, capsys):
    for name, count in (("red", 3), ("blue", 2)):
        for bad in load_labelled(colours).splits["train"]:
            if bad.path.startswith(name) and count:
                (colours / bad.path).write_bytes(b"not an image")
                count -= 1
    assert train(colours, tmp_path / "run", model="timm-mobilenetv2_035", epochs=2) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "training images could not" in line]
    assert told == ["warning: 5 training images could not be read: 3 of red, 2 of blue"]


def test_of_many_classes_that_lost_images_the_five_worst_are_named():
    classes = [f"c{i}" for i in range(7)]
    unread = [Example(f"{i}-{k}.png", i) for i in range(7) for k in range(i + 1)]
    worst = "27 training images could not be read: 7 of c6, 6 of c5, 5 of c4, 4 of c3, 3 of c2 and of "
    assert unread_text(unread[1:], classes) == worst + "1 more class"
    assert unread_text(unread, classes) == worst.replace("27", "28") + "2 more classes"
    assert unread_text([Example("a.png", -1)], classes) == "1 training image could not be read"


def test_diverged_loss_is_one_clear_error(colours, tmp_path):
    with pytest.raises(FgvcError, match="loss became.*clip_grad"):
        train(colours, tmp_path / "run", "optim.lr_backbone=1e12", epochs=5)


def test_run_folder_in_use_is_refused(colours, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").touch()
    with pytest.raises(FgvcError, match="not empty.*--overwrite"):
        train(colours, tmp_path / "run")


def test_data_errors_come_before_a_run_folder_is_made(tmp_path):
    with pytest.raises(FgvcError):
        train(tmp_path / "none", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [{}, {"data": "a", "dataset": "cub"}])
def test_data_or_dataset(given):
    with pytest.raises(FgvcError, match="either --data PATH .* or --dataset NAME"):
        load_data(TrainConfig(model="timm-resnet18", **given))


def test_evaluating_other_classes_names_them(trained, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(trained[0] / "red", other / "purple")
    shutil.copytree(trained[0] / "blue", other / "blue")
    with pytest.raises(FgvcError, match="does not know 1 of the 2 classes.*purple"):
        known_examples(load_labelled(other), "all", ("blue", "green", "red"))


def test_labels_are_matched_by_name_not_by_number(trained, tmp_path):
    two = tmp_path / "two"
    for name in ("green", "red"):
        shutil.copytree(trained[0] / name, two / name)
    examples = known_examples(load_labelled(two), "all", ("blue", "green", "red"))
    assert {(e.path.split("/")[0], e.label) for e in examples} == {("green", 1), ("red", 2)}


def test_input_px_keeps_the_papers_ratio_of_resizing():
    values = plain_values(TrainOptions("timm-resnet18", input_px=224, recipe="paper"))
    assert values["preprocess"] == {"input_px": 224, "resize_px": 275}


def test_starting_weights_decide_the_statistics_unless_set(trained, colours, tmp_path):
    import timm
    from safetensors.torch import save_file

    path = tmp_path / "init.safetensors"
    net = timm.create_model("mobilenetv2_035")
    save_file(net.state_dict(), path, metadata={"mean": "(0.5, 0.5, 0.5)", "std": "(0.5, 0.5, 0.5)"})
    train(colours, tmp_path / "a", init=str(path), epochs=1)
    assert load_checkpoint(tmp_path / "a" / "model.safetensors").preprocess.mean == (0.5, 0.5, 0.5)
    train(colours, tmp_path / "b", "preprocess.mean=0.1,0.2,0.3", init=str(path), epochs=1)
    assert load_checkpoint(tmp_path / "b" / "model.safetensors").preprocess.mean == (0.1, 0.2, 0.3)


def test_interrupt_keeps_the_best_epoch_and_says_where(colours, tmp_path, monkeypatch, capsys):
    original = trainer_module.Trainer._train_epoch

    def interrupted(self, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return original(self, epoch)

    monkeypatch.setattr(trainer_module.Trainer, "_train_epoch", interrupted)
    assert train(colours, tmp_path / "run", epochs=3) == 130
    kept = tmp_path / "run" / "model.safetensors"
    assert str(kept) in capsys.readouterr().err
    assert set(load_checkpoint(kept).metadata["metrics"]) == {"val"}
    assert load_checkpoint(kept).temperature == 1
    assert len(read_metrics(tmp_path / "run")) == 1


def test_full_disk_keeps_the_last_good_checkpoint(trained, monkeypatch, tmp_path):
    path = tmp_path / "model.safetensors"
    shutil.copyfile(trained[1] / "model.safetensors", path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fgvc_cli.engine.checkpoint.save", full)
    config = TrainConfig(model="timm-resnet18")
    model = create_model("timm-resnet18", 3)
    with pytest.raises(FgvcError, match="No space left on device"):
        save_checkpoint(path, model, config=config, classes=("a", "b", "c"), dataset="d", metrics={})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def evaluate_split(weights, split="test", data=None):
    return fgvc_cli.evaluate(
        str(weights), data=data and str(data), split=split, batch_size=8, workers=0, device="cpu"
    ).document


def test_a_split_that_would_mix_with_training_is_refused(colours, tmp_path):
    train(colours, tmp_path / "run", epochs=1)
    weights = tmp_path / "run" / "model.safetensors"
    assert evaluate_split(weights)["split"] == "test"
    extra = colours / "red" / "new.png"
    shutil.copyfile(next((colours / "red").iterdir()), extra)
    for data in (None, colours):
        with pytest.raises(FgvcError, match="no longer holds the images of the training"):
            evaluate_split(weights, data=data)
    assert evaluate_split(weights, split="all")["metrics"]["images"] == 31


def test_new_images_are_evaluated_whole_whatever_their_number(trained, tmp_path):
    new = tmp_path / "new"
    (new / "red").mkdir(parents=True)
    shutil.copyfile(next((trained[0] / "red").iterdir()), new / "red" / "one.png")
    assert evaluate_split(trained[1] / "model.safetensors", data=new)["metrics"]["images"] == 1


def test_overwriting_takes_the_old_model_away_first(colours, tmp_path, monkeypatch):
    train(colours, tmp_path / "run", epochs=1)

    def interrupted(self, epoch):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer_module.Trainer, "_train_epoch", interrupted)
    values = TINY | {"data": str(colours), "pretrained": False}
    code = run_command(TrainOptions(**values, set=FAST, out=tmp_path / "run", device="cpu", overwrite=True))
    assert code == 130
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_unknown_optimiser_leaves_no_run_folder(colours, tmp_path):
    with pytest.raises(FgvcError, match="no optimiser"):
        train(colours, tmp_path / "run", "optim.name=sdg")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("bad", ["preprocess.input_px=abc", "preprocess.input_px=none", "preprocess=foo"])
def test_bad_sizes_are_one_clear_error(bad, colours, tmp_path):
    with pytest.raises(FgvcError, match="preprocess"):
        train(colours, tmp_path / "run", bad, input_px=None)


def test_three_seeds_share_one_test_split(colours):
    one, two = (load_data(TrainConfig(model="m", data=str(colours), seed=s)) for s in (0, 1))
    other = load_data(TrainConfig(model="m", data=str(colours), split_seed=1))
    assert one.sha256() == two.sha256() != other.sha256()


@pytest.mark.parametrize(("fitted", "kept"), [(0.9, 0.7), (0.8, 0.7), (0.7, 0.25)])
def test_fitted_branch_weights_may_not_cost_right_answers_on_val(fitted, kept):
    heads = torch.nn.Module()
    heads.register_buffer("fuse_weights", torch.full((4,), 0.25))
    training = SimpleNamespace(
        learner=SimpleNamespace(kept=torch.nn.ModuleDict({"heads": heads})),
        _fuse_weights=lambda validation: torch.tensor([0.7, 0.1, 0.1, 0.1]),
        _evaluate=lambda split: "by fitted weights",
        _metrics=lambda part: {"top1": fitted if part == "by fitted weights" else 0.8},
    )
    told = Trainer._fit_branches(training, "as before")
    assert heads.fuse_weights[0] == pytest.approx(kept)
    assert told == ("as before" if kept == 0.25 else "by fitted weights")
