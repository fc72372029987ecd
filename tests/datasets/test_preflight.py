"""What is looked at before a training: a class that cannot be read, and one image in several splits."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.datasets import check
from fgvc_cli.datasets.check import look_before_training
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
    assert "among the 0 smallest of 19 images (0 s); 19 were not reached" in notes[2]
    assert notes[2].endswith("fgvc datasets check DATA looks at all.") and len(notes) == 3


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Soft blobs as large JPEGs: what images are to a perceptual hash."""
    seed = 0
    for split in ("train", "val", "test"):
        for bird in ("wren", "finch"):
            for i in range(2):
                path = tmp_path / "photos" / split / bird / f"{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                grid = np.random.default_rng(seed := seed + 1).integers(0, 256, (6, 8, 3), np.uint8)
                Image.fromarray(grid).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=92)
    return tmp_path / "photos"


def test_a_thumbnail_of_a_training_image_in_test_is_named(photos: Path) -> None:
    assert look_before_training(load_labelled(photos)) == []
    with Image.open(photos / "train/wren/1.jpg") as image:
        image.thumbnail((96, 96))
        image.save(photos / "test/wren/small.jpg", quality=70)
    (note,) = look_before_training(load_labelled(photos))
    assert note.startswith("1 of 9 val and test images look like one of another split")
    assert "first test/wren/small.jpg (test) ~ train/wren/1.jpg (train)" in note


def test_near_copies_within_a_split_and_equal_files_are_not_told_as_near_copies(photos: Path) -> None:
    with Image.open(photos / "train/wren/1.jpg") as image:
        image.resize((320, 240)).save(photos / "train/wren/half.jpg")
    assert look_before_training(load_labelled(photos)) == []
    shutil.copy(photos / "train/wren/1.jpg", photos / "test/wren/same.jpg")
    (note,) = look_before_training(load_labelled(photos))
    assert note.startswith("1 images are in several splits as equal files")


def test_the_look_for_near_copies_ends_in_time_and_begins_with_small_files(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(20):
        Image.new("RGB", (8, 8), (i * 12, 255 - i * 12, 90)).save(photos / "train" / "wren" / f"t{i:02}.png")
    seen = []
    whole = check.fingerprint

    def slow(path: Path):
        seen.append(path)
        time.sleep(0.05)
        return whole(path)

    monkeypatch.setattr(check, "fingerprint", slow)
    notes = look_before_training(load_labelled(photos), seconds=0.1)
    assert len(seen) == 16 and {path.suffix for path in seen} == {".png"}
    assert "among the 16 smallest of 32 images (0.1 s); 16 were not reached" in notes[-1]
