"""An .h5 says where its images were, and fgvc report finds them there."""

from __future__ import annotations

import zipfile
from pathlib import Path

import h5py
import pytest
from test_predict import model as model
from test_predict import photos as photos
from test_predict import run

import fgvc_cli
from fgvc_cli.formats.outputs import read_table
from fgvc_cli.formats.rows import Origin
from fgvc_cli.report.page import report
from fgvc_cli.report.pictures import recorded_images

OUT = Path("p.h5")


@pytest.fixture(autouse=True)
def here(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recorded(path=OUT):
    with h5py.File(path) as file:
        return list(file.attrs["sources"]), file.attrs["working_folder"]


def told(capsys, *arguments, **options):
    capsys.readouterr()
    report(*arguments, out=Path("page.html"), overwrite=True, **options)
    return capsys.readouterr().err


def test_sources_are_recorded_as_typed_and_change_no_row(photos, here):
    assert run("photos", out=OUT) == 0
    assert recorded() == (["photos"], str(here))
    assert run(photos, out=Path("q.h5")) == 0
    assert recorded("q.h5") == ([str(photos)], str(here))
    with h5py.File(OUT) as one, h5py.File("q.h5") as other:
        assert one.keys() == other.keys()
        assert all((one[name][:] == other[name][:]).all() for name in one)


def test_shards_and_a_merge_elsewhere_keep_them(photos, here, monkeypatch):
    for shard in ("0/2", "1/2"):
        assert run("photos", out=here / OUT, shard=shard) == 0
    (here / "other").mkdir()
    monkeypatch.chdir(here / "other")
    assert fgvc_cli.merge(here / OUT).exit_code == 0
    assert recorded(here / OUT) == (["photos"], str(here))


def test_mended_rows_say_where_they_are_now(photos, here):
    (photos / "late.png").write_text("not yet")
    assert run("photos", out=OUT) == 3
    (photos / "late.png").write_bytes((photos / "red.png").read_bytes())
    assert run("photos", out=OUT, retry_failed=True) == 0
    assert recorded() == (["photos"], str(here))


def test_a_url_keeps_its_password_to_itself():
    sources = ["s3://key:secret@bucket/traps", "https://host/a.jpg?token=secret", "shots/what?.jpg", "a@b"]
    assert Origin.of(sources).sources == ("s3://bucket/traps", "https://host/a.jpg", "shots/what?.jpg", "a@b")


@pytest.mark.parametrize(
    "typed", [("photos",), ("photos/*.png",), ("photos/red.png", "photos"), ("all.zip",)]
)
def test_a_report_finds_the_images_by_itself(typed, photos, here, capsys, monkeypatch):
    with zipfile.ZipFile("all.zip", "w") as archive:
        for path in photos.iterdir():
            archive.write(path, path.name)
    assert run(*typed, out=OUT) == 0
    (here / "other").mkdir()
    monkeypatch.chdir(here / "other")
    said = told(capsys, here / OUT)
    assert "could not be used" not in said and "The images are those in" in said


def test_images_that_moved_with_the_file_are_found_and_others_are_not(photos, here, capsys, monkeypatch):
    (here / "project").mkdir()
    photos.rename(here / "project" / "photos")
    monkeypatch.chdir(here / "project")
    assert run("photos", out=OUT) == 0
    monkeypatch.chdir(here)
    (here / "project").rename(here / "archive")
    assert recorded_images(read_table(Path("archive/p.h5"))) == str(here / "archive" / "photos")
    (here / "archive" / "photos").rename(here / "elsewhere")
    (here / "photos").mkdir()  # of the same name, with nothing of this run
    said = told(capsys, Path("archive/p.h5"))
    assert "3 images could not be used (missing 3)" in said
    assert f"predicted from photos in {here / 'project'}, and are not there now. --images FOLDER" in said
    assert "could not be used" not in told(capsys, Path("archive/p.h5"), images="elsewhere")
