"""Folders that appear complete or not at all."""

from __future__ import annotations

import errno
import os

import pytest

from fgvc_cli.errors import FgvcError
from fgvc_cli.files import check_folder, whole_folder

OURS = ("a.txt", "b.txt")


def write(out, text="new", **settings):
    with whole_folder(out, replaceable=OURS, **settings) as folder:
        assert not (out / "a.txt").exists() or (out / "a.txt").read_text() != text
        (folder / "a.txt").write_text(text)


def test_a_folder_appears_whole_and_alone(tmp_path):
    write(tmp_path / "out")
    assert (tmp_path / "out" / "a.txt").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_there_is_replaced_only_on_request_and_only_if_ours(tmp_path):
    out = tmp_path / "out"
    write(out, "old")
    (out / "b.txt").touch()
    with pytest.raises(FgvcError, match="--overwrite"):
        write(out)
    write(out, overwrite=True)
    assert [entry.name for entry in out.iterdir()] == ["a.txt"]
    (out / "photo.jpg").touch()
    with pytest.raises(FgvcError, match="photo.jpg"):
        write(out, overwrite=True)
    assert (out / "a.txt").read_text() == "new" and [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(errno.ENOSPC, "full")])
def test_a_failure_leaves_what_was_there(tmp_path, failure):
    out = tmp_path / "out"
    write(out, "old")
    with (
        pytest.raises(KeyboardInterrupt if failure is KeyboardInterrupt else FgvcError),
        whole_folder(out, overwrite=True, replaceable=OURS) as folder,
    ):
        (folder / "a.txt").write_text("half")
        raise failure
    assert (out / "a.txt").read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path, monkeypatch):
    from pathlib import Path

    out = tmp_path / "out"
    write(out, "old")
    rename = Path.rename

    def refuse(self, target):
        if self.name == ".out.tmp":
            raise OSError(errno.EIO, "bad")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(FgvcError, match="left as it was"):
        write(out, overwrite=True)
    assert (out / "a.txt").read_text() == "old"


def test_places_that_cannot_work_are_told_before(tmp_path):
    (tmp_path / "file").touch()
    for out, names in (("file", "is a file"), ("none/out", "no folder")):
        with pytest.raises(FgvcError, match=names):
            check_folder(tmp_path / out, overwrite=True, replaceable=OURS)
    if os.geteuid():  # root may write anywhere
        (tmp_path / "shut").mkdir(mode=0o500)
        with pytest.raises(FgvcError, match="Cannot write"):
            check_folder(tmp_path / "shut" / "out", overwrite=False, replaceable=OURS)
