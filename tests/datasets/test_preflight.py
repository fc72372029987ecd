"""What is looked at before a training: a class that cannot be read, and one image in several splits."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.datasets.preflight import look_before_training
from fgvc_cli.errors import FgvcError


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for bird in ("wren", "finch"):
            for i in range(3):
                path = tmp_path / "birds" / split / bird / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return tmp_path / "birds"


def test_nothing_is_said_of_good_images(birds: Path) -> None:
    shutil.copy(birds / "train/wren/0.png", birds / "train/wren/copy.png")  # of one split: no leak
    assert look_before_training(load_labelled(birds)) == []


def test_equal_files_in_two_splits_are_named(birds: Path) -> None:
    shutil.copy(birds / "train/wren/0.png", birds / "test/wren/other.png")
    (note,) = look_before_training(load_labelled(birds))
    assert note.startswith("1 images are in several splits as equal files")
    assert "train/wren/0.png (train) = test/wren/other.png (test)" in note


def test_a_class_of_which_nothing_can_be_read_is_refused(birds: Path) -> None:
    for i in range(3):
        (birds / "train" / "wren" / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(FgvcError, match=r"1 of 2 classes .* can be read: wren \(3, first train/wren/0.png: "):
        look_before_training(load_labelled(birds))
    shutil.copy(birds / "train/finch/2.png", birds / "train/wren/2.png")
    assert look_before_training(load_labelled(birds)) == []


def test_a_look_without_time_says_so(birds: Path) -> None:
    shutil.copy(birds / "train/wren/0.png", birds / "test/wren/other.png")
    notes = look_before_training(load_labelled(birds), seconds=-1)
    assert notes[0] == "Whether images can be read was tried for 0 of 2 classes."
    assert notes[1].startswith("Equal files were looked for in 0% of")
