"""Several processes train as one would with the batch of all of them."""

from __future__ import annotations

import csv
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import write_colours
from safetensors.torch import load_file

from fgvc_cli.command import Messages
from fgvc_cli.config import TrainConfig, build
from fgvc_cli.data.loaders import Batch
from fgvc_cli.engine import train as training
from fgvc_cli.engine.distributed import ALONE, World, find_world
from fgvc_cli.engine.learner import Learner, Meter
from fgvc_cli.errors import EXIT_ERROR, EXIT_OK, EXIT_USAGE, FgvcError
from fgvc_cli.evaluate.confidence import apply_temperature, reliability
from fgvc_cli.evaluate.evaluator import Evaluation, join_judged
from fgvc_cli.models.registry import create_model

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")

# No batch norm, no dropout and no draw per batch: what several processes compute is then what one computes.
COMMON = [
    "--model",
    "timm-test_vit",
    "--recipe",
    "paper",
    "--no-pretrained",
    "--input-px",
    "32",
    "--workers",
    "0",
]
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
    """33 train images, one of them broken; val and test that two processes cannot halve."""
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
    told = [line for line in done.stderr.splitlines() if "left out" in line]
    assert len({*told}) == 1 and len(told) <= 2, "the one bad file, once by each process that met it"
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
            training.resume(run_dir, {}, device="cpu")
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
    monkeypatch.setattr(training, "_launch", lambda *given: launched.append(given))
    out = tmp_path / "run"
    training.train(**flags, devices=2, out=out, device="cpu")
    training.resume(out, {"workers": 1})
    assert launched == [
        (out, 2, ["--device", "cpu"]),
        (out, 2, ["--device", "auto", "--workers", "1"]),
    ]
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(FgvcError, match="started with 2 processes, this is one of 3"):
        training.resume(out, {}, device="cpu")


def test_synchronised_batch_norm_needs_cuda(data, tmp_path):
    flags = {"model": "timm-test_resnet", "data": str(data), "pretrained": False, "input_px": 32}
    with pytest.raises(FgvcError, match="needs CUDA") as caught:
        training.train(**flags, set=["sync_batchnorm=yes"], out=tmp_path / "run", device="cpu")
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


def test_the_process_that_starts_the_others_leaves_the_cards_alone(monkeypatch, tmp_path):
    """A context on the first card would take its memory from the process that trains there."""
    made, started = [], []

    def trainer(model, config, data, run_dir, device, *_):
        made.append(device)
        return SimpleNamespace(prepare=lambda: None)

    monkeypatch.setattr(training, "Trainer", trainer)
    monkeypatch.setattr(training, "make_run_dir", lambda run_dir: None)
    monkeypatch.setattr(training, "_launch", lambda *words: started.append(words))
    config = TrainConfig(model="timm-test_vit", devices=2)
    training._train(torch.nn.Linear(2, 2), config, None, tmp_path, torch.device("cuda"), ALONE, Messages())
    assert made == [torch.device("cpu")]
    assert started == [(tmp_path, 2, ["--device", "cuda"])]


@pytest.mark.parametrize("world", [ALONE, World(1, 2, 1)])
def test_one_device_for_several_processes_is_refused(monkeypatch, world):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(FgvcError, match="--device cuda:1 is one device, this trains on 2") as caught:
        training._own_device("cuda:1", TrainConfig(model="timm-test_vit", devices=2), world)
    assert caught.value.exit_code == EXIT_USAGE


def test_gradients_are_exchanged_once_per_update():
    class Watched(World):
        calls = 0

        def without_exchange(self, wrapped):
            Watched.calls += 1
            return nullcontext()

    preprocess = {"input_px": 32, "resize_px": 32}
    config = build(TrainConfig, {"model": "timm-test_resnet", "accumulate": 3, "preprocess": preprocess})
    model, cpu = create_model("timm-test_resnet", 3, input_px=32), torch.device("cpu")
    learner = Learner(model, config, classes=3, updates_per_epoch=1, device=cpu, world=Watched())
    learner.begin_epoch(1)
    made = Batch(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2).long(), torch.arange(2), [])
    few = Batch(*(column[:1] for column in made[:3]), [])
    meter = Meter()
    # The last batch is too small for batch norm: the third is the one that gradients go out with.
    learner.update([((1, i), batch) for i, batch in enumerate([made, made, made, few])], 7, meter)
    assert Watched.calls == 2 and meter.images == 6


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
    joined = join_judged([part.judged() for part in parts])
    assert joined.labels.tolist() == [0, 2, 0, 1], "in the order of the split"
    assert joined.metrics()["top1"] == 0.5
    figures = joined.metrics()
    assert figures["overlap"] == pytest.approx((3 * 0.2 + 0.6) / 4)
    assert figures["mask_variation_stage3"] == pytest.approx(1 / 3), (
        "channels that both parts always suppress"
    )
    assert figures["unreadable"] == 3
    assert joined.seconds == 0.3
    assert len(join_judged([make_evaluation([], 0).judged()]).labels) == 0


def test_what_is_gathered_does_not_grow_with_the_classes():
    sizes = []
    for classes in (10, 5000):
        probs = torch.rand(30, classes).softmax(dim=1)
        part = Evaluation(torch.arange(30) % 10, probs, {"main": probs}, {}, [], 1.0, torch.arange(30))
        sizes.append(len(pickle.dumps(part.judged(2.0))))
    assert sizes[0] == sizes[1]


def test_figures_of_parts_are_those_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    probs = (4 * torch.randn(40, 7, generator=generator)).softmax(dim=1)
    branch = probs.roll(1, 0)
    branch[::3] = torch.nan
    labels = torch.randint(0, 7, (40,), generator=generator)

    def evaluation(rows):
        indices = torch.arange(40)[rows]
        return Evaluation(labels[rows], probs[rows], {"object": branch[rows]}, {}, ["bad"], 1.0, indices)

    whole, parts = evaluation(slice(None)), [evaluation(slice(i, None, 3)) for i in range(3)]
    expected = whole.metrics(1.7)
    assert expected["top1"] == float((probs.argmax(1) == labels).double().mean())
    assert expected["nll"] == pytest.approx(float(torch.nn.functional.nll_loss(probs.log(), labels)))
    assert expected["ece"] == pytest.approx(reliability(probs, labels).error)
    calibrated = apply_temperature(probs, 1.7)
    assert expected["ece_calibrated"] == pytest.approx(reliability(calibrated, labels).error)
    assert expected["reached_object"] == 26 / 40
    found = join_judged([part.judged(1.7) for part in parts]).metrics()
    assert found.pop("unreadable") == 3 and expected.pop("unreadable") == 1
    assert found == pytest.approx(expected)


def test_a_meter_adds_what_it_loads():
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0)}, 1)
    state = meter.state()
    meter.add({"loss": torch.tensor(3.0)}, 2)
    meter.load(state, torch.device("cpu"))
    assert meter.images == 4
    assert meter.means()["loss"] == pytest.approx((1 + 6 + 1) / 4)
