"""Shared by all tests: the number of processes, one torch thread in each, small labelled folders."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fgvc_cli.cli import app
from fgvc_cli.engine.options import TrainOptions

SHARED = Path(__file__).parents[1].parent / "shared"
COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 50, 40)}

MOST_PROCESSES = 4
"""Each takes a gigabyte."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the whole suite in a process per core where pytest-xdist is there, a file in one of them.

    A part of it named on the command line starts sooner in one process; so does what was asked for with
    ``-n``, ``-s`` or ``--pdb``. Files stay whole, so that what a module's fixtures train is trained once.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        # One of those processes, or a child of one, calls this hook as well: it must start none of its own.
        return
    option = config.option
    if hasattr(config, "workerinput"):  # one of those processes: it must not start others in turn
        return
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if whole and getattr(option, "numprocesses", 0) is None and option.capture != "no" and not option.usepdb:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if cores > 1:
            option.numprocesses, option.dist = min(cores, MOST_PROCESSES), "loadfile"
            # After a crash, the one that takes its place is given no work to end with, and all wait for ever.
            option.maxworkerrestart = 0


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch

    # Tiny tensors: a second thread costs more than it brings, and results stay the same on every machine.
    torch.set_num_threads(1)
    # The engine looks for devices once: where a test has made some up by then, forked processes cannot train.
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True, scope="session")
def _interrupts_arrive():
    """Also where the tests run in the background of a script, which ignores Ctrl-C for all it starts."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights, which only the project's own machines have."""
    if not SHARED.is_dir():
        pytest.skip("needs the shared folder with real images and weights, which is not here")
    return SHARED


def fgvc(*arguments: object) -> Any:
    """A command as it is typed, in this process."""
    return CliRunner().invoke(app, [str(each) for each in arguments])


def write_colours(
    root: Path, per_class: int, size_px: int = 48, classes: Iterable[str] = tuple(COLOURS)
) -> Path:
    """A class-per-folder set that any model learns at once: noisy squares of three colours."""
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.normal(COLOURS[name], 25, (size_px, size_px, 3)).clip(0, 255).astype("uint8")
            Image.fromarray(pixels).save(root / name / f"{i:03d}.png")
    return root


def train_options(sets: Iterable[str] = (), **given: Any) -> TrainOptions:
    """The options of a training from any settings: what is no option of the command goes into ``set``.

    The recipe is that of the model's paper, which changes least of what a test does not say.
    """
    given = given if "resume" in given else {"recipe": "paper"} | given
    own = {field.name for field in dataclasses.fields(TrainOptions)}
    rest = [f"{name}={value}" for name, value in given.items() if name not in own]
    return TrainOptions(**{k: v for k, v in given.items() if k in own}, set=[*sets, *rest])


@pytest.fixture
def colours(tmp_path) -> Path:
    return write_colours(tmp_path / "colours", 10)


@pytest.fixture(scope="module")
def module_colours(tmp_path_factory) -> Path:
    return write_colours(tmp_path_factory.mktemp("module") / "colours", 10)


def save_trained(
    path: Path,
    data: Path,
    *,
    seed: int = 0,
    model: str = "timm-resnet10t",
    preprocess: Any = (),
    **options: Any,
) -> Path:
    """A small checkpoint as a training on ``data``, of three classes, would leave it.

    Args:
        preprocess: settings beside the sizes.
        options: of the model.
    """
    import torch

    from fgvc_cli.config import Preprocess, TrainConfig
    from fgvc_cli.data.labelled import load_labelled
    from fgvc_cli.engine.checkpoint import save_checkpoint
    from fgvc_cli.models.registry import create_model

    torch.manual_seed(seed)
    listing = load_labelled(data)
    own = Preprocess(input_px=32, resize_px=36, **dict(preprocess))
    path.parent.mkdir(exist_ok=True)
    save_checkpoint(
        path,
        create_model(model, len(listing.classes), input_px=32, options=options),
        config=TrainConfig(model=model, data=str(data), preprocess=own),
        classes=listing.classes,
        dataset=listing.name,
        data_sha256=listing.sha256(),
        metrics={},
    )
    return path
