"""Several processes train as one would with the batch of all of them."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import write_colours
from safetensors.torch import load_file

from fgvc_cli.commands import train as train_command
from fgvc_cli.engine.distributed import ALONE, World, find_world
from fgvc_cli.engine.meter import Meter
from fgvc_cli.errors import EXIT_ERROR, EXIT_OK, EXIT_USAGE, FgvcError
from fgvc_cli.evaluate.evaluator import Evaluation, join_evaluations

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")

# No batch norm and no dropout: what several processes compute is then what one computes.
COMMON = ["--model", "timm-test_vit", "--no-pretrained", "--input-px", "32", "--workers", "0"]
COMMON += ["--device", "cpu"]
SETS = ["preprocess.resize_px=36", "augment.crop=random", "optim.name=adamw", "optim.freeze_epochs=1"]
SETS += ["optim.schedule=onecycle", "optim.lr_backbone=0.003", "optim.clip_grad=1", "ema_decay=0.9"]
COMMON += [word for setting in SETS for word in ("--set", setting)]
TRAIN = [sys.executable, "-m", "fgvc_cli", "train"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def run(*words: object, launcher: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [*(launcher or TRAIN), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300, check=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """33 train photographs, one of them broken; val and test that two processes cannot halve."""
    root = write_colours(tmp_path_factory.mktemp("data") / "train", 11).parent
    for split in ("val", "test"):
        write_colours(root / split, 3)
    (root / "train" / "red" / "005.png").write_bytes(b"not a picture")
    return root


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Path:
    """What one process makes of batches of 8."""
    out = tmp_path_factory.mktemp("alone") / "run"
    done = run("--data", data, "--out", out, "--epochs", 3, "--batch-size", 8, *COMMON)
    assert done.returncode == EXIT_OK, done.stderr
    return out


def read_rows(run_dir: Path) -> list[dict[str, float]]:
    with (run_dir / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def assert_same_training(one: Path, other: Path) -> None:
    mine, theirs = read_rows(one), read_rows(other)
    assert len(mine) == len(theirs)
    for row, twin in zip(mine, theirs, strict=True):
        for name in row.keys() - {"seconds", "images_per_second", "val_images_per_second"}:
            assert row[name] == pytest.approx(twin[name], abs=2e-4), name
    weights, others = (load_file(path / "model.safetensors") for path in (one, other))
    assert weights.keys() == others.keys()
    assert all(torch.allclose(weights[name], others[name], atol=2e-4) for name in weights)


def test_two_processes_train_as_one_with_their_batches_together(data, alone, tmp_path):
    done = run(
        "--data", data, "--out", tmp_path / "run", "--epochs", 3, "--batch-size", 4, "--devices", 2, *COMMON
    )
    assert done.returncode == EXIT_OK, done.stderr
    assert_same_training(alone, tmp_path / "run")
    assert read_rows(tmp_path / "run")[0]["val_images"] == 9
    assert done.stdout.count("model of epoch") == done.stderr.count("2 processes, cpu") == 1
    assert 1 <= done.stderr.count("left out") <= 2  # each process says it once
    assert not (tmp_path / "run" / "last").exists()


def test_torchrun_is_the_same_thing(data, alone, tmp_path):
    launcher = [*TORCHRUN, "--nproc-per-node=2", "-m", "fgvc_cli", "train"]
    words = ["--data", data, "--out", tmp_path / "run", "--epochs", 3, "--batch-size", 4, *COMMON]
    done = run(*words, launcher=launcher)
    assert done.returncode == EXIT_OK, done.stderr
    assert_same_training(alone, tmp_path / "run")


def pid_of(rank: int, run_dir: Path) -> int | None:
    """The process of a rank of the training in ``run_dir``."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue
        if str(run_dir).encode() in command and f"\0RANK={rank}\0".encode() in b"\0" + environment:
            return int(folder.name)
    return None


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the process in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_training_goes_on_when_a_process_is_killed(rank, data, alone, tmp_path):
    run_dir = tmp_path / "run"
    with start_two(data, run_dir, epochs=3) as parent:
        os.kill(wait_for(rank, run_dir), signal.SIGKILL)
        _, stderr = parent.communicate(timeout=240)
    assert parent.returncode == EXIT_OK, stderr
    assert b"Going on in epoch" in stderr
    assert_same_training(alone, run_dir)


def start_two(data: Path, run_dir: Path, epochs: int) -> subprocess.Popen[bytes]:
    words = ["--data", data, "--out", run_dir, "--epochs", epochs, "--batch-size", 4, "--devices", 2, *COMMON]
    # Processes that decode, too: whoever ends a process ends them, and their end is no error of the user.
    command = [*TRAIN, *map(str, words), "--workers", "1", "--set", "save_minutes=0"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)


def wait_for(rank: int, run_dir: Path) -> int:
    """The process of a rank, once the training has done an epoch."""
    deadline = time.monotonic() + 120
    while not (run_dir / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    found = pid_of(rank, run_dir)
    assert found is not None
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes in /proc")
def test_no_process_outlives_the_one_that_started_them(data, tmp_path):
    run_dir = tmp_path / "run"
    with start_two(data, run_dir, epochs=1000) as parent:
        wait_for(1, run_dir)
        with pytest.raises(FgvcError, match="is in use by process"):
            train_command.resume(run_dir, {}, sets=[], out=None, device="cpu", overwrite=False)
        parent.kill()
    deadline = time.monotonic() + 60
    while any(pid_of(rank, run_dir) for rank in (0, 1)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [rank for rank in (0, 1) if pid_of(rank, run_dir)]


def test_an_error_of_the_user_ends_all_without_another_start(data, tmp_path):
    words = ["--data", data, "--out", tmp_path / "run", "--epochs", 2, "--batch-size", 4, "--devices", 2]
    done = run(*words, *COMMON, "--set", "optim.lr_heads=1e30", "--set", "optim.clip_grad=none")
    assert done.returncode == EXIT_ERROR
    assert "The loss became" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Going on" not in done.stderr


def test_resume_wants_as_many_processes_as_began(data, tmp_path, monkeypatch):
    flags = {"model": "timm-test_vit", "data": str(data), "pretrained": False, "input_px": 32, "epochs": 2}
    launched = []
    monkeypatch.setattr(train_command, "launch", lambda *given: launched.append(given) or EXIT_OK)
    out = tmp_path / "run"
    train_command.run(flags | {"devices": 2}, sets=[], out=out, device="cpu", overwrite=False)
    train_command.resume(out, {"workers": 1}, sets=[], out=None, device="auto", overwrite=False)
    assert launched == [
        (out, 2, ["--device", "cpu"]),
        (out, 2, ["--device", "auto", "--workers", "1"]),
    ]
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(FgvcError, match="started with 2 processes, this is one of 3"):
        train_command.resume(out, {}, sets=[], out=None, device="cpu", overwrite=False)


def test_synchronised_batch_norm_needs_cuda(data, tmp_path):
    flags = {"model": "timm-test_resnet", "data": str(data), "pretrained": False, "input_px": 32}
    with pytest.raises(FgvcError, match="needs CUDA") as caught:
        train_command.run(
            flags, sets=["sync_batchnorm=yes"], out=tmp_path / "run", device="cpu", overwrite=False
        )
    assert caught.value.exit_code == EXIT_USAGE
    assert not (tmp_path / "run").exists()


def test_world_is_what_torchelastic_says(monkeypatch):
    assert find_world() == ALONE == World(0, 1, 0)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    world = find_world()
    assert world == World(5, 8, 1)
    assert not world.is_main


def test_alone_nothing_is_exchanged():
    model = torch.nn.Linear(2, 2)
    assert ALONE.counts(3) == [3]
    assert ALONE.gather("x") == ["x"]
    assert ALONE.wrap(model) is model
    assert not ALONE.main_says(False)


def make_evaluation(labels: list[int], overlap: float, first: int = 0) -> Evaluation:
    probs = torch.full((len(labels), 3), 0.1)
    probs[:, 0] = 0.8
    if not labels:
        probs = torch.empty(0, 1)
    branches = {"main": probs} if labels else {}
    rates = torch.tensor([0.0, 1.0, overlap], dtype=torch.float64)
    stats = {"overlap": torch.tensor(overlap), "suppressed_stage3": rates} if labels else {}
    return Evaluation(
        labels=torch.tensor(labels),
        probs=probs,
        branches=branches,
        stats=stats,
        failures=[f"{len(labels)} bad"],
        seconds=len(labels) / 10,
        indices=first + 2 * torch.arange(len(labels)),
    )


def test_joined_evaluation_counts_every_image_once():
    parts = [make_evaluation([0, 0, 1], 0.2), make_evaluation([2], 0.6, 1), make_evaluation([], 0)]
    joined = join_evaluations(parts)
    assert joined.labels.tolist() == [0, 2, 0, 1], "in the order of the split"
    assert joined.metrics()["top1"] == 0.5
    figures = joined.metrics()
    assert figures["overlap"] == pytest.approx((3 * 0.2 + 0.6) / 4)
    assert figures["mask_variation_stage3"] == pytest.approx(1 / 3), (
        "channels that both parts always suppress"
    )
    assert joined.failures == ["3 bad", "1 bad", "0 bad"]
    assert joined.seconds == 0.3
    assert len(join_evaluations([make_evaluation([], 0)]).labels) == 0


def test_a_meter_adds_what_it_loads():
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0)}, 1)
    state = meter.state()
    meter.add({"loss": torch.tensor(3.0)}, 2)
    meter.load(state, torch.device("cpu"))
    assert meter.images == 4
    assert meter.means()["loss"] == pytest.approx((1 + 6 + 1) / 4)
