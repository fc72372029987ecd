"""fgvc predict goes on with a run, or says why it does not: batch size, list of files, cut-short merges."""

import dataclasses
import io
import json
import sys
import time
from pathlib import Path

import h5py
import pytest
from test_predict import GOOD, files_in, rows_of, run
from test_predict import model as model
from test_predict import photos as photos

import fgvc_cli
from fgvc_cli.errors import FgvcError
from fgvc_cli.run.folder import read_record, write_record


def has_list(root):
    return read_record(root).images is not None


def interrupted(model, photos, out, at=2, **options):
    """A run that ends with Ctrl-C in its batch ``at``, as soon as its list is written down."""
    forward = type(model).forward

    def waiting(self, images, want=()):
        if getattr(self, "batches", 0) + 1 == at:
            deadline = time.monotonic() + 10
            while not has_list(out.parent / f"{out.name}.partial") and time.monotonic() < deadline:
                time.sleep(0.01)
            self.batches = 0
            raise KeyboardInterrupt
        return forward(self, images, want)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "forward", waiting)
        assert run(photos, out=out, **options) == 130
    return out.parent / f"{out.name}.partial"


def test_a_run_keeps_the_batch_size_it_was_begun_with(model, photos, tmp_path, capsys):
    out = tmp_path / "p.h5"
    interrupted(model, photos, out, batch_size=2)
    with pytest.raises(FgvcError, match=r"begun with settings.batch_size 2, this is 1\. Type the command as"):
        run(photos, out=out, batch_size=1)
    for given in (None, "auto"):
        capsys.readouterr()
        interrupted(model, photos, out, at=1, batch_size=given)
        assert "Batch size 2, as this run was begun." in capsys.readouterr().err
    assert run(photos, out=out, batch_size=None) == 0
    with h5py.File(out) as file:
        assert '"batch_size": 2' in file.attrs["settings"]


def test_a_restart_takes_another_batch_size(model, photos, tmp_path):
    out = tmp_path / "p.csv"
    root = interrupted(model, photos, out, batch_size=2)
    interrupted(model, photos, out, batch_size=1, restart=True)
    assert read_record(root).run["settings"]["batch_size"] == 1


def shards_of_format_1(out):
    """What an earlier fgvc left of two shards."""
    folders = [out.parent / f"{out.name}.partial" / f"shard-{i}-of-2" for i in range(2)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"format": 1, "fgvc_version": "0.0.9"}))
        (folder / "rows-000000000000.npz").write_bytes(b"rows")
    return folders


def test_shards_of_another_format_are_restarted_one_by_one(model, photos, tmp_path):
    out = tmp_path / "p.csv"
    folders = shards_of_format_1(out)
    with pytest.raises(FgvcError, match=r"another version of fgvc \(0.0.9, run format 1"):
        run(photos, out=out, shard="0/2")
    assert [(folder / "rows-000000000000.npz").read_bytes() for folder in folders] == [b"rows"] * 2
    assert run(photos, out=out, shard="0/2", restart=True) == 0
    assert (folders[1] / "rows-000000000000.npz").read_bytes() == b"rows"
    with pytest.raises(FgvcError, match="run format 1"):
        fgvc_cli.merge(out)
    assert run(photos, out=out, shard="1/2", restart=True) == 0
    fgvc_cli.merge(out)
    assert rows_of(out.read_text()) == GOOD


def test_a_run_without_a_row_may_be_changed(model, photos, tmp_path):
    """Its first batch may have been too large for the memory, and the system ended it."""
    out = tmp_path / "p.csv"
    root = interrupted(model, photos, out, batch_size=2)
    for rows in root.glob("rows-*"):
        rows.unlink()
    assert run(photos, out=out, batch_size=1, top_k=1) == 0
    assert rows_of(out.read_text()) == GOOD


@pytest.mark.parametrize("option", [{"compile": True}, {"min_prob": 0.5}, {"fast_decode": True}])
def test_what_changes_a_row_is_refused(model, photos, tmp_path, option):
    out = tmp_path / "p.csv"
    interrupted(model, photos, out)
    with pytest.raises(FgvcError, match=f"begun with settings.{next(iter(option))} "):
        run(photos, out=out, **option)


def test_another_device_is_refused(model, photos, tmp_path):
    out = tmp_path / "p.csv"
    root = interrupted(model, photos, out)
    document = (root / "run.json").read_text()
    assert '"device": "cpu"' in document
    (root / "run.json").write_text(document.replace('"device": "cpu"', '"device": "cuda"'))
    with pytest.raises(FgvcError, match='settings.device "cuda", this is "cpu"'):
        run(photos, out=out)


def test_an_image_that_comes_or_goes_behind_the_completed_rows_is_noticed(model, photos, tmp_path, capsys):
    out = tmp_path / "p.csv"
    root = interrupted(model, photos, out)
    red = photos / "red.png"
    (photos / "z.png").write_bytes(red.read_bytes())
    with pytest.raises(FgvcError, match=r"rows 0 to 3 differ \(3 then, 4 now\)"):
        run(photos, out=out)
    (photos / "z.png").rename(tmp_path / "z.png")
    red.rename(tmp_path / "red.png")
    with pytest.raises(FgvcError, match=r"rows 0 to 2 differ \(3 then, 2 now\)"):
        run(photos, out=out)
    (tmp_path / "red.png").rename(red)
    assert run(photos, out=out) == 0
    assert "Resuming after 2 images" in capsys.readouterr().err
    assert rows_of(out.read_text()) == GOOD
    assert not root.exists()


def test_a_changed_list_is_accepted_when_asked_for(model, photos, tmp_path):
    out = tmp_path / "p.csv"
    interrupted(model, photos, out)
    (photos / "z.png").write_bytes((photos / "red.png").read_bytes())
    with pytest.raises(FgvcError, match="--accept-list goes on with the list as it is now"):
        run(photos, out=out)
    assert run(photos, out=out, accept_list=True) == 0
    assert rows_of(out.read_text()) == [*GOOD, ("z.png", "ok", "red")]


def test_without_its_list_a_run_goes_on_with_the_images_that_are_there(model, photos, tmp_path):
    """It was killed before the list was written down."""
    out = tmp_path / "p.csv"
    root = interrupted(model, photos, out)
    (photos / "z.png").write_bytes((photos / "red.png").read_bytes())
    write_record(root, dataclasses.replace(read_record(root), images=None))
    assert run(photos, out=out) == 0
    assert rows_of(out.read_text()) == [*GOOD, ("z.png", "ok", "red")]


def test_a_run_of_the_format_before_is_left_alone_and_named(model, photos, tmp_path):
    """Its state was in several files; nothing of it is mixed with new rows, and nothing is lost."""
    out = tmp_path / "p.csv"
    root = interrupted(model, photos, out)
    run_now = read_record(root).run
    (root / "run.json").write_text(json.dumps({"format": 1, **run_now}))
    (root / "list.json").write_text('{"total": 3, "marks": ["0"]}')
    (root / "origin.json").write_text('{"sources": [], "working_folder": "/"}')
    before = {path.name: path.read_bytes() for path in root.iterdir() if path.name != "lock"}
    words = (
        r"p.csv.partial was begun by another version of fgvc \(0.1.0, run format 1; this one has 2\)\. Finish"
    )
    for options in ({}, {"retry_failed": True}):
        with pytest.raises(FgvcError, match=words) as caught:
            run(photos, out=out, **options)
        assert "--restart" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(FgvcError, match=words):
        fgvc_cli.merge(out)
    assert {path.name: path.read_bytes() for path in root.iterdir() if path.name != "lock"} == before
    assert run(photos, out=out, restart=True) == 0
    assert rows_of(out.read_text()) == GOOD and files_in(tmp_path) == ["p.csv", "photos"]


def test_a_run_of_the_format_before_without_a_row_begins_anew(model, photos, tmp_path):
    out = tmp_path / "p.csv"
    root = tmp_path / "p.csv.partial"
    root.mkdir()
    (root / "run.json").write_text('{"format": 1, "settings": {}}')
    with pytest.raises(FgvcError, match="another version"):
        run(photos, out=out)
    assert run(photos, out=out, restart=True) == 0


def test_a_shard_notices_it_too(model, photos, tmp_path):
    for i in range(4):
        (photos / f"z{i}.png").write_bytes((photos / "red.png").read_bytes())
    root = tmp_path / "q.csv.partial" / "shard-1-of-2"
    model.batches, model.interrupt_at = 0, 2
    forward = type(model).forward

    def waiting(self, images, want=()):
        while not has_list(root):
            time.sleep(0.01)
        return forward(self, images, want)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "forward", waiting)
        assert run(photos, out=tmp_path / "q.csv", shard="1/2") == 130
    model.interrupt_at = None
    # The image is another shard's, and behind all that is completed.
    (photos / "z3.png").unlink()
    with pytest.raises(FgvcError, match=r"rows 0 to 6 differ \(7 then, 6 now\)"):
        run(photos, out=tmp_path / "q.csv", shard="1/2")


def test_a_restart_that_may_not_replace_an_output_discards_nothing(model, photos, tmp_path, monkeypatch):
    """A merge put the CSV in its place and was cut short before the HDF5 file was in its."""
    outs = (tmp_path / "p.csv", tmp_path / "p.h5")
    replace = Path.replace

    def full(self, target):
        if Path(target).name == "p.h5":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(FgvcError, match="No space left"):
        run(photos, out=outs)
    monkeypatch.setattr(Path, "replace", replace)
    root = tmp_path / "p.csv.partial"
    before = files_in(root)
    if not outs[0].exists():
        outs[0].write_text("the merge puts outputs in their places last one first")
    with pytest.raises(FgvcError, match=r"p.csv exists.*--overwrite"):
        run(photos, out=outs, restart=True)
    assert files_in(root) == before
    seen = model.batches
    assert run(photos, out=outs) == 0
    assert model.batches == seen and files_in(tmp_path) == ["p.csv", "p.h5", "photos"]


def test_a_list_on_stdin_has_no_record(model, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"red.png\nblue.png\nlime.png\n")))
    model.interrupt_at = 2
    assert run("-", out=tmp_path / "p.csv") == 130
    assert not has_list(tmp_path / "p.csv.partial")
