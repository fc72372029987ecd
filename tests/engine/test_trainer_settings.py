"""What a run may be told: frozen epochs, one cycle, layer decay, checkpointing, accumulation, patience ..."""

from __future__ import annotations

import csv
import os
import signal
import sys

import pytest
import torch
from conftest import train_options

from fgvc_cli.cli.train import run as run_command
from fgvc_cli.config import Loss
from fgvc_cli.data.loaders import LabelledImages
from fgvc_cli.engine import trainer as trainer_module
from fgvc_cli.engine.checkpoint import read_metadata
from fgvc_cli.engine.learner import total_loss
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.models.registry import create_model

TINY = {"input_px": 32, "epochs": 3, "batch_size": 8, "workers": 0, "pretrained": False}
SETS = ["optim.name=adamw", "optim.weight_decay=0.1", "preprocess.resize_px=32"]
CRASMRA, PLAIN = "crasmra-mobilenetv2_035", "timm-mobilenetv2_035"


def train(data, out, *sets, model=PLAIN, **flags) -> int:
    values = TINY | {"data": str(data), "model": model} | flags
    return run_command(train_options([*SETS, *sets], **values, out=out, device="cpu"))


def read_metrics(out) -> list[dict[str, str]]:
    with (out / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


def record_epochs(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """The model's tensors before the first epoch and after each."""
    states = []
    original = trainer_module.Trainer._train_epoch

    def tensors(model):
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def recorded(self, epoch):
        if not states:
            states.append(tensors(self.learner.model))
        row = original(self, epoch)
        states.append(tensors(self.learner.model))
        return row

    monkeypatch.setattr(trainer_module.Trainer, "_train_epoch", recorded)
    return states


def moved(before, after, root) -> set[str]:
    return {name for name in before if name.startswith(root) and not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("model", [PLAIN, CRASMRA])
def test_frozen_backbone_is_bit_identical_and_then_learns(model, colours, tmp_path, monkeypatch):
    states = record_epochs(monkeypatch)
    train(colours, tmp_path / "run", "optim.freeze_epochs=2", model=model, ema_decay=0.5)
    assert len(states) == 4
    assert not moved(states[0], states[2], "backbone")
    assert moved(states[0], states[1], "heads")
    backbone = {name for name in states[0] if name.startswith("backbone")}
    assert moved(states[2], states[3], "backbone") == backbone
    rows = read_metrics(tmp_path / "run")
    assert [(float(row["lr_backbone"]), float(row["lr_heads"]) > 0) for row in rows[:2]] == [(0, True)] * 2


def test_without_frozen_epochs_the_backbone_learns_at_once(colours, tmp_path, monkeypatch):
    states = record_epochs(monkeypatch)
    train(colours, tmp_path / "run", epochs=1)
    assert moved(states[0], states[1], "backbone") == {n for n in states[0] if n.startswith("backbone")}


def test_what_never_learns_is_not_thawed(colours, tmp_path, monkeypatch):
    original = trainer_module.Trainer.__init__
    made = []

    def fixed_stem(self, model, *args, **kwargs):
        model.backbone.conv_stem.weight.requires_grad_(False)
        made.append(model)
        original(self, model, *args, **kwargs)

    monkeypatch.setattr(trainer_module.Trainer, "__init__", fixed_stem)
    train(colours, tmp_path / "run", "optim.freeze_epochs=1", epochs=2)
    resting = [name for name, parameter in made[0].named_parameters() if not parameter.requires_grad]
    assert resting == ["backbone.conv_stem.weight"]


@pytest.mark.parametrize("frozen", [4, 9])
def test_freezing_for_longer_than_the_run_is_refused(frozen, colours, tmp_path):
    with pytest.raises(
        FgvcError, match=f"freeze_epochs={frozen} keeps the backbone frozen longer than the 3.*--epochs"
    ) as caught:
        train(colours, tmp_path / "run", f"optim.freeze_epochs={frozen}")
    assert caught.value.exit_code == EXIT_USAGE
    assert not (tmp_path / "run").exists()


def test_one_cycle_with_layer_decay_keeps_one_rate_column_per_root(colours, tmp_path):
    train(colours, tmp_path / "run", "optim.schedule=onecycle", "optim.layer_decay=0.5", model=CRASMRA)
    rows = read_metrics(tmp_path / "run")
    rates = [name for name in rows[0] if name.startswith("lr_")]
    assert sorted(rates) == ["lr_backbone", "lr_cram", "lr_heads", "lr_smram"]
    tops = {"lr_backbone": 0.0002, "lr_cram": 0.006, "lr_heads": 0.002, "lr_smram": 0.0002}
    for name, top in tops.items():
        # The last update's rate, which one cycle ends with.
        assert float(rows[-1][name]) == pytest.approx(top / 25e4, rel=1e-3), name


def test_diverged_loss_names_the_fastest_part(colours, tmp_path):
    with pytest.raises(FgvcError, match="optim.lr_heads=.*clip_grad"):
        train(colours, tmp_path / "run", "optim.name=momentum", "optim.lr_heads=1e30")


def gradients(model, images, labels) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    total_loss(model(images), labels, Loss())[0].backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("name", "block"), [("test_vit", "blocks.0"), ("mobilenetv2_035", "blocks.1.0")])
def test_checkpointed_gradients_are_the_same(name, block):
    torch.manual_seed(0)
    model = create_model(f"timm-{name}", 3, options={"drop_rate": 0.5}).train()
    images, labels = torch.randn(4, 3, 160, 160), torch.tensor([0, 1, 2, 0])
    calls = []
    model.backbone.get_submodule(block).register_forward_pre_hook(lambda *_: calls.append(1))
    plain = gradients(model, images, labels)
    assert len(calls) == 1
    model.set_grad_checkpointing(True)
    checkpointed = gradients(model, images, labels)
    assert len(calls) == 3, "the block was not computed again in the backward pass"
    torch.testing.assert_close(checkpointed, plain)
    model.set_grad_checkpointing(False)
    gradients(model, images, labels)
    assert len(calls) == 4


def test_the_trainer_asks_for_checkpointing_and_trains_frozen_and_thawed(colours, tmp_path, monkeypatch):
    asked = []
    original = trainer_module.Trainer._train_epoch

    def recorded(self, epoch):
        asked.append(self.learner.model.backbone.grad_checkpointing)
        return original(self, epoch)

    monkeypatch.setattr(trainer_module.Trainer, "_train_epoch", recorded)
    train(colours, tmp_path / "a", "optim.freeze_epochs=1", epochs=2, grad_checkpointing=True)
    train(colours, tmp_path / "b", epochs=1)
    assert asked == [True, True, False]
    assert len(read_metrics(tmp_path / "a")) == 2


def test_a_family_without_checkpointing_says_so(colours, tmp_path):
    with pytest.raises(FgvcError, match=f"{CRASMRA} has no gradient checkpointing") as caught:
        train(colours, tmp_path / "run", model=CRASMRA, grad_checkpointing=True)
    assert caught.value.exit_code == EXIT_USAGE
    assert not (tmp_path / "run").exists()


def test_a_timm_network_without_checkpointing_says_so():
    with pytest.raises(FgvcError, match="timm's DLA has no gradient checkpointing"):
        create_model("timm-dla46_c", 3).set_grad_checkpointing(True)


def test_looks_train_with_every_setting_and_a_cascade_shows_its_reach(colours, tmp_path):
    sets = ["options.encoder_px=32", "options.cascade=0", "loss.label_smoothing=0.1"]
    sets += ["optim.schedule=onecycle", "optim.freeze_epochs=1", "optim.layer_decay=0.75"]
    run = {"model": "vitms-test_vit", "input_px": 48, "epochs": 2, "grad_checkpointing": True}
    train(colours, tmp_path / "run", "preprocess.resize_px=48", *sets, **run)
    for row in read_metrics(tmp_path / "run"):
        terms = [float(row[f"loss_{name}"]) for name in ("main", "object", "parts")]
        assert float(row["loss"]) == pytest.approx(sum(terms), rel=1e-4)
        # A cascade is for prediction: training takes all looks, validation at confidence 0 only the first.
        # Four looks, and one more for each image that was erased.
        assert 4 < float(row["passes"]) < 5 and float(row["val_passes"]) == 1
        assert (row["val_reached_object"], row["val_reached_parts"]) == ("0", "0")
        assert "val_top1_main" in row and "val_top1_parts" not in row
        assert [name for name in row if name.startswith("lr_")] == ["lr_backbone", "lr_heads"]


def test_accumulation_makes_fewer_updates_over_the_same_images(colours, tmp_path, monkeypatch):
    taken = []
    original = trainer_module.Learner.update

    def recorded(self, batches, expected, meter):
        original(self, batches, expected, meter)
        taken.append((expected, meter.images))

    monkeypatch.setattr(trainer_module.Learner, "update", recorded)
    train(colours, tmp_path / "run", "optim.schedule=onecycle", epochs=2, batch_size=4, accumulate=2)
    # 21 images: five batches of 4 (the last one alone is left out), two to an update.
    assert taken == [(8, 8), (8, 16), (4, 20)] * 2
    # The schedule counts updates, not batches: it comes to its end.
    assert float(read_metrics(tmp_path / "run")[-1]["lr_heads"]) == pytest.approx(0.002 / 25e4, rel=1e-3)


def test_patience_ends_a_run_that_no_longer_improves(colours, tmp_path, monkeypatch):
    accuracies = iter([0.5, 0.6, 0.6, 0.4, 0.9, 0.9])
    real = trainer_module.Trainer._metrics

    def scored(self, part, temperature=None):
        return real(self, part, temperature) | {"top1": next(accuracies), "nll": 1.0}

    monkeypatch.setattr(trainer_module.Trainer, "_metrics", scored)
    assert train(colours, tmp_path / "run", epochs=9, patience=2) == 0
    assert [row["val_top1"] for row in read_metrics(tmp_path / "run")] == ["0.5", "0.6", "0.6", "0.4"]
    assert read_metadata(tmp_path / "run" / "model.safetensors")["epoch"] == 2


@pytest.mark.parametrize(
    "sets",
    [
        ["sampling=balanced"],
        ["augment.mixup=0.2", "augment.cutmix=1"],
        ["amp=fp16", "optim.schedule=onecycle"],
        ["amp=bf16", "accumulate=3"],
    ],
)
@pytest.mark.parametrize("model", [CRASMRA, "vitms-test_vit"])
def test_every_family_trains_with_it(sets, model, colours, tmp_path, recwarn):
    size = {"input_px": 48} if model.startswith("vitms") else {}
    own = ["options.encoder_px=32", "preprocess.resize_px=48"] if size else []
    assert train(colours, tmp_path / "run", *own, *sets, model=model, epochs=1, **size) == 0
    assert float(read_metrics(tmp_path / "run")[0]["loss"]) > 0
    assert not [str(warning.message) for warning in recwarn if "lr_scheduler" in str(warning.message)]


def test_tensorboard_gets_every_number_of_every_epoch(colours, tmp_path):
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(colours, tmp_path / "run", epochs=2, tensorboard=True)
    events = loading.EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    rows = read_metrics(tmp_path / "run")
    for tag, column in (("val/top1", "val_top1"), ("train/loss", "loss"), ("train/lr_heads", "lr_heads")):
        points = [(event.step, event.value) for event in events.Scalars(tag)]
        assert points == [(i + 1, pytest.approx(float(row[column]), rel=1e-4)) for i, row in enumerate(rows)]
    assert len(events.Tags()["scalars"]) == len(rows[0]) - 1


def test_tensorboard_that_is_missing_is_told_before_a_folder_is_made(colours, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(FgvcError, match=r"not installed.*pip install 'fgvc\[tensorboard\]'") as caught:
        train(colours, tmp_path / "run", tensorboard=True)
    assert caught.value.exit_code == EXIT_USAGE and not (tmp_path / "run").exists()


def test_out_of_memory_is_one_line_with_the_batch_that_fits(colours, tmp_path, monkeypatch):
    original = trainer_module.Learner._add_gradients

    def limited(self, batch, share, meter):
        if len(batch.labels) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        original(self, batch, share, meter)

    monkeypatch.setattr(trainer_module.Learner, "_add_gradients", limited)
    with pytest.raises(
        FgvcError, match="Out of memory with batches of 16.*--batch-size 4 --set accumulate=4"
    ):
        train(colours, tmp_path / "run", batch_size=16)


def test_a_decoder_that_dies_is_one_line(colours, tmp_path, monkeypatch):
    def deadly(self, place):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(LabelledImages, "_read", deadly)
    with pytest.raises(FgvcError, match="process that decodes images died.*--resume"):
        train(colours, tmp_path / "run", workers=1)


def test_what_cannot_be_compiled_is_one_line(colours, tmp_path, monkeypatch):
    def broken(model):
        def run(images):
            raise torch._dynamo.exc.BackendCompilerFailed(
                torch.compile, RuntimeError("Failed to find C++ compiler"), None
            )

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(FgvcError, match="cannot be compiled here: .*C\\+\\+ compiler.*Leave compile out"):
        train(colours, tmp_path / "run", compile=True)


def test_a_teacher_is_named_like_weights_and_recorded(colours, tmp_path):
    assert train(colours, tmp_path / "teacher", "epochs=1") == 0
    sets = ["epochs=1", f"teacher={tmp_path / 'teacher'}", "loss.teacher=0.9"]
    assert train(colours, tmp_path / "told", *sets) == 0
    assert read_metadata(tmp_path / "told" / "model.safetensors")["config"]["teacher"].endswith("teacher")
    with pytest.raises(FgvcError, match="The teacher tells 81 classes, the data have 3") as error:
        train(colours, tmp_path / "none", "teacher=groceries")
    assert error.value.exit_code == EXIT_USAGE
    assert not (tmp_path / "none").exists()
