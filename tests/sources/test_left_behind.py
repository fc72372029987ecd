"""What systems leave beside images is nobody's image: folders, archives, lists of classes alike."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.sources.find import find_images
from fgvc_cli.sources.images import DecodedImage, read_image
from fgvc_cli.sources.stored import EXTENSIONS, LEFT_BEHIND, is_left_behind

ROOT = Path(__file__).parents[2]
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


def junk_and_notes(drive: Path) -> None:
    for name in ("a.txt", "b.txt", "c.CSV", "finch/README"):
        (drive / name).write_text("no image")
    for name in ("Thumbs.db", "._0.jpg", ".DS_Store"):
        (drive / name).write_bytes(b"junk")


OTHERS = "4 other files passed over (.txt 2, .csv 1, without an ending 1)."


def source_of(kind: str, drive: Path, tmp_path: Path) -> str:
    if kind == "folder":
        return str(drive)
    files = {p.relative_to(drive).as_posix(): p.read_bytes() for p in sorted(drive.rglob("*")) if p.is_file()}
    if kind == "memory":
        import fsspec

        for name, data in files.items():
            fsspec.filesystem("memory").pipe_file(f"{drive}/{name}", data)
        return f"memory:/{drive}"
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "drive.zip", "w") as archive:
            archive.mkdir("finch")
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(tmp_path / f"drive.{kind}", "w:gz" if kind == "tgz" else "w") as archive:
            archive.add(drive, ".")
    return str(tmp_path / f"drive.{kind}")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tgz", "memory"])
def test_what_is_passed_over_is_counted_by_kind(drive, tmp_path, kind):
    junk_and_notes(drive)
    images = find_images([source_of(kind, drive, tmp_path)])
    assert images.passed_over == []
    assert sorted(found.name for found in images) == WANTED
    left, others = images.passed_over
    assert others == OTHERS
    assert "entries that systems leave behind passed over (" in left
    if kind in ("folder", "memory"):  # an archive has no folders: it counts what lies in them
        assert "@eaDir 3" in left
        assert left.startswith("21 entries")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tgz", "memory"])
def test_all_files_are_tried_by_content(drive, tmp_path, kind):
    junk_and_notes(drive)
    write(drive / "z.png")
    (drive / "z.png").rename(drive / "image")
    images = find_images([source_of(kind, drive, tmp_path)], all_files=True)
    read = {found.name: read_image(found.path) for found in images}
    assert sorted(read) == sorted([*WANTED, "a.txt", "b.txt", "c.CSV", "finch/README", "image"])
    assert {name for name, photo in read.items() if isinstance(photo, DecodedImage)} == {*WANTED, "image"}
    assert len(images.passed_over) == 1


AVIARY = ("--weights", "aviary", "--unknown", "off")
"""Nothing here is a bird."""


def predict(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout, and stderr in one line."""
    command = [sys.executable, "-m", "fgvc_cli", "predict", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    return done.returncode, done.stdout, " ".join(done.stderr.split())


def test_predict_says_what_it_passed_over(drive, tmp_path):
    junk_and_notes(drive)
    code, _, told = predict(drive, *AVIARY, "--out", tmp_path / "out.csv")
    assert code == 0, told
    assert "10 ok, 0 failed" in told
    assert OTHERS in told
    assert "21 entries that systems leave behind passed over (" in told


def test_predict_tries_all_files_when_asked(drive, tmp_path):
    junk_and_notes(drive)
    code, _, told = predict(drive, *AVIARY, "--all-files", "--out", tmp_path / "out.csv")
    assert code == 3, told
    assert "10 ok, 4 failed (not_an_image 4)" in told
    assert "other files" not in told


def test_predict_prints_the_endings():
    code, printed, _ = predict("--formats")
    assert (code, printed.split()) == (0, sorted(EXTENSIONS))


def test_a_training_sees_its_images_only(drive):
    listed = load_labelled(drive)
    assert listed.classes == ("finch", "wren")
    assert sorted(example.path for split in listed.splits.values() for example in split) == WANTED


def test_names_of_other_systems():
    names = ["~snapshot", "@tmp", "a.jpg@SynoEAStream", "LOST.DIR", "found.000", "FOUND.017", "Recycled"]
    assert all(map(is_left_behind, [*names, "Temporary Items"]))
    assert not any(map(is_left_behind, ("found.jpg", "found.abc", "tmp", "snapshot", "lost.jpg")))


@pytest.mark.parametrize("splits", [("",), ("train", "test")])
def test_images_beside_the_class_folders_are_counted(tmp_path, splits):
    for split in splits:
        for name in ("finch", "wren"):
            for i in range(5):
                write(tmp_path / split / name / f"{i}.jpg")
    write(tmp_path / "stray.jpg")
    write(tmp_path / splits[0] / "b.png")
    (tmp_path / "notes.txt").touch()
    listed = load_labelled(tmp_path)
    assert sum(listed.counts().values()) == 10 * len(splits)
    first = "b.png" if splits == ("",) else "stray.jpg"
    assert f"2 images beside the class folders passed over, first {first}." in listed.notes
    assert "1 other file passed over (.txt 1)." in listed.notes
