"""What systems leave beside images is nobody's image: folders, archives, lists of classes alike."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from PIL import Image

from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.sources.find import find_images
from fgvc_cli.sources.stored import LEFT_BEHIND, is_left_behind

FOLDERS = ["@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", "lost+found", ".ipynb_checkpoints"]


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "green").save(path)


@pytest.fixture
def drive(tmp_path) -> Path:
    """Two classes of five images, each with what a network drive leaves there."""
    for name in ("finch", "wren"):
        for i in range(5):
            write(tmp_path / "drive" / name / f"{i}.jpg")
            for junk in FOLDERS:
                write(tmp_path / "drive" / name / junk / f"{i}.jpg" / "THUMB_M.jpg")
    for junk in FOLDERS:
        write(tmp_path / "drive" / junk / "copy.jpg")
    return tmp_path / "drive"


WANTED = [f"{name}/{i}.jpg" for name in ("finch", "wren") for i in range(5)]


def test_names_in_any_case_are_known():
    assert all(is_left_behind(name.upper()) for name in LEFT_BEHIND)
    assert is_left_behind("._finch.jpg")
    assert not any(map(is_left_behind, ("finch.jpg", "recycle", "eaDir", "macosx")))


def test_a_folder_gives_its_images_only(drive):
    assert [found.name for found in find_images([drive])] == WANTED


def test_an_archive_gives_its_images_only(drive, tmp_path):
    with zipfile.ZipFile(tmp_path / "drive.zip", "w") as archive:
        for path in sorted(drive.rglob("*.jpg")):
            if path.is_file():
                archive.write(path, path.relative_to(drive).as_posix())
    names = [found.name.split("drive.zip/")[-1] for found in find_images([tmp_path / "drive.zip"])]
    assert sorted(names) == WANTED


def test_a_training_sees_its_images_only(drive):
    listed = load_labelled(drive)
    assert listed.classes == ("finch", "wren")
    assert sorted(example.path for split in listed.splits.values() for example in split) == WANTED
