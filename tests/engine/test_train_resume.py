"""A run that was killed goes on as if nothing had happened."""

from __future__ import annotations

import csv
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal

import pytest
import torch
from conftest import train_options, write_colours
from safetensors import safe_open

from fgvc_cli.cli.train import run as run_command
from fgvc_cli.engine import run_state, trainer
from fgvc_cli.engine.options import TrainOptions
from fgvc_cli.engine.run_state import finished_run, state_path
from fgvc_cli.errors import EXIT_INTERRUPTED, EXIT_USAGE, FgvcError

resource = pytest.importorskip("resource", reason="kills and limits as POSIX has them")

PLAIN = {"model": "timm-test_vit", "input_px": 32, "epochs": 3, "batch_size": 4, "workers": 0}
# Everything that has a state of its own or draws at random.
SETS = [
    "preprocess.resize_px=36",
    "augment.crop=random",
    "augment.color_jitter=0.3",
    "augment.erase=0.5",
    "augment.mixup=0.2",
    "augment.cutmix=1",
    "options.drop_rate=0.2",
    "options.drop_path=0.2",
    "optim.name=adamw",
    "optim.schedule=onecycle",
    "optim.freeze_epochs=1",
    "optim.clip_grad=1",
    "ema_decay=0.9",
    "sampling=balanced",
]
TIMES = ("seconds", "images_per_second", "val_images_per_second")


def train(data, out, *sets, **flags) -> int:
    values = PLAIN | {"data": str(data), "pretrained": False} | flags
    return run_command(train_options([*SETS, *sets], **values, out=out, device="cpu"))


def resume(run, **flags) -> int:
    return run_command(TrainOptions(resume=run, device="cpu", **flags))


def read_result(run) -> tuple[dict[str, torch.Tensor], dict, list[dict[str, str]]]:
    """Weights, the checkpoint's JSON without times, the lines of metrics.csv without times."""
    with safe_open(run / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        document = json.loads(file.metadata()["fgvc"])
    for values in document["metrics"].values():
        values.pop("images_per_second")
    with (run / "metrics.csv").open() as stream:
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(stream)]
    return tensors, document, rows


def assert_same(run, expected) -> None:
    found, wanted = read_result(run), read_result(expected)
    assert found[0].keys() == wanted[0].keys()
    assert all(torch.equal(found[0][name], tensor) for name, tensor in wanted[0].items())
    assert found[2] == wanted[2]
    for document in (found[1], wanted[1]):
        document.pop("config"), document.pop("config_sha256")
    assert found[1] == wanted[1]
    assert not state_path(run).parent.exists()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The data and a run without any interruption."""
    folder = tmp_path_factory.mktemp("straight")
    data = write_colours(folder / "colours", 8)
    assert train(data, folder / "run") == 0
    return data, folder / "run"


def stop_at(monkeypatch, update: int) -> None:
    """Ctrl-C while that update of the process is computed."""
    original = trainer.Learner.update
    calls = []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == update:
            signal.raise_signal(signal.SIGINT)
        original(self, *args)

    monkeypatch.setattr(trainer.Learner, "update", interrupted)


# Of 4 batches per epoch and 3 epochs: within the frozen one, at its end, and within the others.
@pytest.mark.parametrize("update", [1, 4, 6, 12])
def test_interrupted_run_goes_on_bit_for_bit(update, straight, tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, update)
    assert train(straight[0], tmp_path / "run") == EXIT_INTERRUPTED
    monkeypatch.undo()
    assert f"To go on: fgvc train --resume {tmp_path / 'run'}" in capsys.readouterr().err.replace("\n", "")
    # The update during which Ctrl-C came is done and saved.
    state = run_state.load_state(tmp_path / "run")
    assert state.learner["updates"] == update
    assert resume(tmp_path / "run", workers=1) == 0
    assert_same(tmp_path / "run", straight[1])


def test_interrupted_while_validating_and_while_testing(straight, tmp_path, monkeypatch):
    for split in ("val", "test"):
        run = tmp_path / split
        original = trainer.Trainer._evaluate

        def interrupted(self, asked, split=split, original=original):
            if asked == split:
                raise KeyboardInterrupt
            return original(self, asked)

        monkeypatch.setattr(trainer.Trainer, "_evaluate", interrupted)
        assert train(straight[0], run) == EXIT_INTERRUPTED
        monkeypatch.undo()
        resume(run)
        assert_same(run, straight[1])


def test_killed_between_the_model_and_the_state(straight, tmp_path, monkeypatch):
    """The kept model is then one epoch ahead of the state."""
    original = trainer.save_state

    class Killed(Exception):
        """In place of SIGKILL."""

    def killed(*args, progress, **kwargs):
        if progress.epoch == 3:
            raise Killed
        original(*args, progress=progress, **kwargs)

    monkeypatch.setattr(trainer, "save_state", killed)
    with pytest.raises(Killed):
        train(straight[0], tmp_path / "run")
    monkeypatch.undo()
    assert run_state.load_state(tmp_path / "run").progress.epoch == 2
    resume(tmp_path / "run")
    assert_same(tmp_path / "run", straight[1])


def in_a_process(function, *arguments, **keywords) -> multiprocessing.Process:
    """Started by fork: a copy of this process, so that nothing is to be imported again."""

    def silently():
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1), os.dup2(nowhere, 2)
        os._exit(function(*arguments, **keywords))

    process = multiprocessing.get_context("fork").Process(target=silently)
    process.start()
    return process


@pytest.mark.parametrize("workers", [0, 1])
def test_killed_at_random_moments_and_resumed(workers, straight, tmp_path):
    """SIGKILL, again and again until the run gets through, with a saving after every update."""
    run, rng = tmp_path / "run", random.Random(workers)
    reached = []
    for attempt in itertools.count():
        if state_path(run).exists():
            process = in_a_process(resume, run, workers=workers)
        else:
            process = in_a_process(train, straight[0], run, "save_minutes=0", workers=workers)
        process.join(rng.uniform(0.1, 0.5 + 0.1 * attempt))
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        if state_path(run).exists():
            reached.append(run_state.load_state(run).learner["updates"])
        elif (run / "model.safetensors").exists() and finished_run(run):
            break  # killed on its way out, with nothing left to do
        elif run.exists():
            shutil.rmtree(run)
    assert process.exitcode == 0 or finished_run(run)
    assert reached == sorted(reached) and len({*reached}) >= 2, reached
    assert_same(run, straight[1])


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names what is synced by /proc")
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_killed_inside_a_saving(moment, straight, tmp_path, monkeypatch):
    """Once with the new state written but not renamed, once just after the rename."""
    run = tmp_path / "run"
    stop_at(monkeypatch, 6)
    train(straight[0], run)
    monkeypatch.undo()
    good = state_path(run).read_bytes()
    owner, name = (os, "fsync") if moment == "fsync" else (type(run), "replace")
    original = getattr(owner, name)

    def deadly(what, *arguments):
        at = os.readlink(f"/proc/self/fd/{what}") if moment == "fsync" else str(what)
        result = original(what, *arguments)
        if at.endswith("state.safetensors.tmp"):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    monkeypatch.setattr(owner, name, deadly)
    process = in_a_process(resume, run)
    process.join()
    monkeypatch.undo()
    assert process.exitcode == -signal.SIGKILL
    assert (state_path(run).read_bytes() == good) == (moment == "fsync")
    assert resume(run) == 0
    assert_same(run, straight[1])


def test_full_disk_costs_the_state_being_written_and_not_the_last_good_one(
    straight, tmp_path, monkeypatch, capsys
):
    """The file size limit cuts a real write short; the run goes on and ends as it would have."""
    run = tmp_path / "run"
    stop_at(monkeypatch, 6)
    train(straight[0], run)
    monkeypatch.undo()
    good = state_path(run).read_bytes()
    original = trainer.save_state

    def cut(*args, **kwargs):
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(good) // 2, resource.RLIM_INFINITY))
        try:
            original(*args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    monkeypatch.setattr(trainer, "save_state", cut)
    monkeypatch.setattr(trainer, "remove_state", lambda run: None)
    assert resume(run) == 0
    monkeypatch.undo()
    warning = capsys.readouterr().err.replace("\n", " ")
    assert "warning: Could not write" in warning and "File too large" in warning
    assert state_path(run).read_bytes() == good
    assert {path.name for path in state_path(run).parent.iterdir()} == {"state.safetensors", "lock"}
    run_state.remove_state(run)
    assert_same(run, straight[1])


def test_full_disk_for_the_best_model_warns_and_keeps_the_best_that_was_written(
    straight, tmp_path, monkeypatch, capsys
):
    original = trainer.save_checkpoint

    def full(*args, epoch, metrics, **kwargs):
        if epoch == 1:
            raise FgvcError("Could not write model.safetensors: No space left on device.")
        original(*args, epoch=epoch, metrics=metrics, **kwargs)

    monkeypatch.setattr(trainer, "save_checkpoint", full)
    assert train(straight[0], tmp_path / "run") == 0
    assert "epoch 1 is the best but is not kept: Could not write" in capsys.readouterr().err
    assert read_result(tmp_path / "run")[1]["epoch"] > 1


def test_when_no_model_could_be_written_the_state_stays(straight, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise FgvcError("Could not write model.safetensors: No space left on device.")

    monkeypatch.setattr(trainer, "save_checkpoint", full)
    with pytest.raises(FgvcError, match="No epoch could be written.*--resume"):
        train(straight[0], tmp_path / "run")
    assert state_path(tmp_path / "run").is_file()


def test_state_within_an_epoch_is_saved_by_the_clock(straight, tmp_path, monkeypatch):
    saved = []
    original = trainer.save_state

    def recorded(*args, progress, **kwargs):
        saved.append((progress.epoch, progress.batches))
        original(*args, progress=progress, **kwargs)

    monkeypatch.setattr(trainer, "save_state", recorded)
    train(straight[0], tmp_path / "often", "save_minutes=0", "optim.freeze_epochs=0", epochs=1)
    assert saved == [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]
    saved.clear()
    train(straight[0], tmp_path / "seldom", "optim.freeze_epochs=0", epochs=1)
    assert saved == [(1, 0), (2, 0)]


def interrupt_and_keep(straight, run, monkeypatch) -> None:
    stop_at(monkeypatch, 6)
    train(straight[0], run)
    monkeypatch.undo()


def test_changed_images_are_refused(straight, tmp_path, monkeypatch):
    data = write_colours(tmp_path / "colours", 8)
    stop_at(monkeypatch, 1)
    train(data, tmp_path / "run")
    monkeypatch.undo()
    (data / "red" / "000.png").rename(data / "red" / "new.png")
    with pytest.raises(FgvcError, match="images, labels or splits of colours are not those"):
        resume(tmp_path / "run")
    data.rename(tmp_path / "elsewhere")
    with pytest.raises(FgvcError, match="cannot be read: .*colours does not exist") as caught:
        resume(tmp_path / "run")
    assert f"fgvc train --resume {tmp_path / 'run'} --data FOLDER" in str(caught.value)
    # The same images elsewhere are the same data.
    assert resume(tmp_path / "run", data=str(straight[0])) == 0


def test_a_finished_run_says_so_and_shows_its_result(straight, capsys):
    assert resume(straight[1]) == 0
    captured = capsys.readouterr()
    assert "is finished" in captured.err.replace("\n", " ")
    assert "test top-1" in captured.out and "model of epoch" in captured.out


def test_a_damaged_state_is_one_clear_line(straight, tmp_path, monkeypatch):
    interrupt_and_keep(straight, tmp_path / "run", monkeypatch)
    path = state_path(tmp_path / "run")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FgvcError, match="not a readable safetensors file"):
        resume(tmp_path / "run")


def test_the_best_model_must_be_there(straight, tmp_path, monkeypatch):
    interrupt_and_keep(straight, tmp_path / "run", monkeypatch)
    (tmp_path / "run" / "model.safetensors").unlink()
    with pytest.raises(FgvcError, match="is gone: it held epoch 1"):
        resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("flags", "sets", "named"), [({"epochs": 9}, [], "--epochs"), ({}, ["optim.lr_heads=1"], "--set")]
)
def test_other_settings_are_refused(flags, sets, named, straight):
    with pytest.raises(FgvcError, match=f"run's own settings, got {named}") as caught:
        run_command(TrainOptions(resume=straight[1], device="cpu", set=sets, **flags))
    assert caught.value.exit_code == EXIT_USAGE


def test_a_used_folder_names_resume(straight, tmp_path, monkeypatch):
    interrupt_and_keep(straight, tmp_path / "run", monkeypatch)
    with pytest.raises(FgvcError, match="fgvc train --resume .*run; or choose"):
        train(straight[0], tmp_path / "run")
