"""Shared by all tests: one torch thread, tiny labelled folders, and the way to shared images."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fgvc_cli.engine.options import TrainOptions

SHARED = Path(__file__).parents[1].parent / "shared"
COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 50, 40)}


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


def write_colours(root: Path, per_class: int, size_px: int = 48) -> Path:
    """A class-per-folder set that any model learns at once: noisy squares of three colours."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.normal(colour, 25, (size_px, size_px, 3)).clip(0, 255).astype("uint8")
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
