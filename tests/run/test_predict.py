"""fgvc predict as a user meets it: exit codes, what is on stdout, stderr and disk."""

import contextlib
import csv
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

import fgvc_cli
from fgvc_cli.cli.predict import run as run_command
from fgvc_cli.command import Messages
from fgvc_cli.config import Preprocess
from fgvc_cli.engine import weights
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.models.output import ModelOutput
from fgvc_cli.run import progress as progress_module
from fgvc_cli.run.predict import PredictOptions
from fgvc_cli.run.progress import PredictProgress

ROOT = Path(__file__).parents[2]


class MeanColour(nn.Module):
    interrupt_at = None
    part_count = 0

    def forward(self, images, want=()):
        self.batches = getattr(self, "batches", 0) + 1
        if self.batches == self.interrupt_at:
            raise KeyboardInterrupt
        probs = images.mean(dim=(2, 3)).softmax(dim=1)
        return ModelOutput(
            logits={}, probs=probs, boxes=torch.tensor([[0.0, 0.0, 32.0, 32.0]]).repeat(len(images), 1)
        )


@pytest.fixture
def model(monkeypatch):
    """The weights of the command: a model of mean colours."""
    model = MeanColour().eval()
    preprocess = Preprocess(input_px=32, resize_px=32)
    model.asked = []

    def open_weights(name, options=None):
        model.asked.append(name)
        return SimpleNamespace(
            model=model, classes=("red", "green", "blue"), preprocess=preprocess, name="colours", sha256="0"
        )

    monkeypatch.setattr(weights, "open_weights", open_weights)
    monkeypatch.setattr(weights, "default_notice", lambda: "No --weights given: using 'colours'.")
    return model


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("red", "lime", "blue"):
        Image.new("RGB", (16, 12), name).save(folder / f"{name}.png")
    return folder


def run(*sources, **options):
    if isinstance(out := options.get("out", ()), Path):
        options["out"] = (out,)
    defaults = {"device": "cpu", "batch_size": 2, "workers": 0, "amp": "none"}
    return run_command(PredictOptions(sources=[str(s) for s in sources], **{**defaults, **options}))


def rows_of(text):
    return [(row["path"], row["status"], row["label"]) for row in csv.DictReader(io.StringIO(text))]


GOOD = [("blue.png", "ok", "blue"), ("lime.png", "ok", "green"), ("red.png", "ok", "red")]


def test_all_good_is_zero_and_the_file_holds_the_rows(model, photos, tmp_path, capsys):
    out = tmp_path / "p.csv"
    assert run(photos, out=out, weights="colours") == 0
    assert rows_of(out.read_text()) == GOOD
    told = capsys.readouterr()
    assert told.out == ""
    assert "3 images" in told.err
    assert "3 ok, 0 failed" in told.err
    assert f"Written to {out}" in told.err
    assert model.asked == ["colours"]


def test_without_out_rows_go_to_stdout_and_talk_to_stderr(model, photos, capsys):
    assert run(photos) == 0
    told = capsys.readouterr()
    assert rows_of(told.out) == GOOD
    assert told.out.splitlines()[1].endswith(",0.0,0.0,16.0,12.0")
    assert "No --weights given" in told.err
    assert "Written" not in told.err


def test_a_bad_file_is_a_row_a_count_and_exit_code_three(model, photos, tmp_path, capsys):
    (photos / "c.jpg").touch()
    (photos / "n.jpg").write_text("text")
    (photos / "o.jpg").write_text("text")
    assert run(photos, out=tmp_path / "p.csv") == 3
    rows = rows_of((tmp_path / "p.csv").read_text())
    assert [row for row in rows if row[1] == "ok"] == GOOD
    assert ("c.jpg", "empty", "") in rows
    assert "3 ok, 3 failed (not_an_image 2, empty 1)" in capsys.readouterr().err


def test_quiet_says_nothing(model, photos, tmp_path, capsys):
    assert run(photos, out=tmp_path / "p.csv", quiet=True) == 0
    assert capsys.readouterr() == ("", "")


def test_ctrl_c_is_130_and_the_same_command_goes_on(model, photos, tmp_path, capsys):
    model.interrupt_at = 2
    out = tmp_path / "p.csv"
    assert run(photos, out=out, weights="colours") == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv.partial", "photos"]
    line = capsys.readouterr().err.splitlines()[-1]
    assert "Interrupted after 2 images" in line
    assert f"kept in {out}.partial" in line and "same command" in line
    model.interrupt_at = None
    assert run(photos, out=out, weights="colours") == 0
    assert "Resuming after 2 images" in capsys.readouterr().err
    assert rows_of(out.read_text()) == GOOD
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "photos"]


def test_ctrl_c_before_the_first_row_leaves_nothing(model, photos, tmp_path, capsys):
    model.interrupt_at = 1
    out = tmp_path / "p.csv"
    assert run(photos, out=out, weights="colours") == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
    assert f"{out} was not written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sources", "options", "words"),
    [
        (["photos"], {"out": "old.csv"}, "--overwrite"),
        (["photos"], {"out": "nowhere/p.csv"}, "mkdir"),
        (["photos"], {"out": "p.xls"}, ".csv"),
        (["nowhere"], {"out": "p.csv"}, "nowhere"),
        (["photos", "-"], {"out": "p.csv"}, "stdin"),
        ([], {"out": "p.csv"}, "No images given"),
    ],
)
def test_what_cannot_work_is_refused_before_the_weights_are_opened(
    model, photos, tmp_path, monkeypatch, sources, options, words
):
    monkeypatch.chdir(tmp_path)
    Path("old.csv").write_text("old")
    with pytest.raises(FgvcError) as caught:
        run(*sources, **{key: Path(value) for key, value in options.items()})
    assert words in str(caught.value)
    assert model.asked == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.csv", "photos"]
    assert Path("old.csv").read_text() == "old"


def test_weights_that_fail_leave_no_file(model, photos, tmp_path, monkeypatch):
    def refuse(name, options=None):
        raise FgvcError("No such weights.")

    monkeypatch.setattr(weights, "open_weights", refuse)
    with pytest.raises(FgvcError, match="No such weights"):
        run(photos, out=tmp_path / "p.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_overwrite_replaces(model, photos, tmp_path):
    out = tmp_path / "p.csv"
    out.write_text("old")
    assert run(photos, out=out, overwrite=True) == 0
    assert rows_of(out.read_text()) == GOOD


def test_a_list_on_stdin_keeps_its_order_and_misses_nothing(model, photos, monkeypatch, capsys):
    monkeypatch.chdir(photos)
    lines = b"red.png\ngone.png\nblue.png\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert run("-") == 3
    assert rows_of(capsys.readouterr().out) == [
        ("red.png", "ok", "red"),
        ("gone.png", "missing", ""),
        ("blue.png", "ok", "blue"),
    ]


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_several_outputs_hold_the_same_rows(model, photos, tmp_path, capsys):
    outs = tuple(tmp_path / name for name in ("p.csv", "p.jsonl", "p.h5"))
    assert run(photos, out=outs, weights="colours") == 0
    assert rows_of(outs[0].read_text()) == GOOD
    assert [json.loads(line)["label"] for line in outs[1].open()] == ["blue", "green", "red"]
    with h5py.File(outs[2]) as file:
        assert file["path"].asstr()[:].tolist() == ["blue.png", "lime.png", "red.png"]
        names = file.attrs["class_names"]
        assert [names[k] for k in file["topk_index"][:, 0]] == ["blue", "green", "red"]
    assert files_in(tmp_path) == ["p.csv", "p.h5", "p.jsonl", "photos"]
    assert f"Written to {outs[0]}, {outs[1]}, {outs[2]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"maps": True}, "--maps needs an .h5 or .parquet output; p.csv cannot hold it. Add --out p.h5, or"),
        ({"embeddings": True}, "--embeddings needs an .h5"),
        ({"out": (), "maps": True}, "--maps needs an output file"),
        ({"out": (), "crops_dir": Path("c")}, "--crops-dir needs an output file"),
        ({"crops_dir": Path("photos")}, "replaces no folder"),
        ({"crops_dir": Path("a/b")}, "mkdir -p a"),
        ({"maps_dir": Path("p.csv")}, "named twice"),
        ({"shard": "2/2"}, "expected i/n"),
        ({"shard": "0/2", "devices": 2}, "--devices splits"),
        ({"devices": 2, "retry_failed": True}, "one piece"),
        ({"restart": True, "retry_failed": True}, "Choose one"),
        ({"devices": 99, "device": "cuda"}, "CUDA devices"),
        ({"devices": 2, "device": "cuda:0"}, "goes with --device auto"),
    ],
)
def test_options_that_cannot_be_are_one_line_and_touch_nothing(
    model, photos, tmp_path, monkeypatch, options, words
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FgvcError) as caught:
        run("photos", **{"out": Path("p.csv"), **options})
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert files_in(tmp_path) == ["photos"] and len(files_in(photos)) == 3
    assert model.asked == []


def test_another_model_or_list_is_refused_until_restart(model, photos, tmp_path, capsys):
    out = tmp_path / "p.csv"
    model.interrupt_at = 2
    assert run(photos, out=out) == 130
    model.interrupt_at = None
    with pytest.raises(FgvcError, match="top_k 3, this is 1.*--restart"):
        run(photos, out=out, top_k=1)
    (photos / "a.png").write_bytes((photos / "red.png").read_bytes())
    with pytest.raises(FgvcError, match="row 0 was blue.png, now a.png"):
        run(photos, out=out)
    assert run(photos, out=out, restart=True) == 0
    assert rows_of(out.read_text()) == [("a.png", "ok", "red"), *GOOD]


def test_a_finished_run_is_refused_before_anything_is_opened(model, photos, tmp_path):
    out = tmp_path / "p.csv"
    assert run(photos, out=out) == 0
    asked = list(model.asked)
    with pytest.raises(FgvcError, match="--overwrite"):
        run(photos, out=out)
    assert model.asked == asked


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.h5"])
def test_retry_failed_reads_only_what_failed(model, photos, tmp_path, name):
    first, whole = tmp_path / name, tmp_path / f"whole-{name}"
    bad = photos / "c.png"
    bad.write_bytes(b"")
    assert run(photos, out=first, top_k=2) == 3
    bad.write_bytes((photos / "red.png").read_bytes())
    # What was read before is not read again, whatever its file holds now.
    (photos / "blue.png").write_bytes(b"not read")
    seen = model.batches
    assert run(photos, out=first, top_k=2, retry_failed=True) == 0
    assert model.batches == seen + 1
    Image.new("RGB", (16, 12), "blue").save(photos / "blue.png")
    assert run(photos, out=whole, top_k=2) == 0
    assert table(first) == table(whole)
    with pytest.raises(FgvcError, match="--retry-failed cannot repair"):
        run(photos, out=first, top_k=1, retry_failed=True)


def table(path):
    """All that a file holds."""
    if path.suffix != ".h5":
        return path.read_text()
    with h5py.File(path) as file:
        return {name: file[name][:].tolist() for name in file}


def test_retry_failed_mends_a_run_that_is_under_way(model, photos, tmp_path):
    out = tmp_path / "p.csv"
    (photos / "a.png").write_bytes(b"")
    model.interrupt_at = 2
    assert run(photos, out=out) == 130
    model.interrupt_at = None
    (photos / "a.png").write_bytes((photos / "red.png").read_bytes())
    assert run(photos, out=out, retry_failed=True) == 0
    assert rows_of(out.read_text()) == [("a.png", "ok", "red"), *GOOD]


def test_retry_failed_replaces_only_what_it_takes_apart(model, photos, tmp_path):
    first, other = tmp_path / "p.h5", tmp_path / "other.csv"
    bad = photos / "c.png"
    bad.write_bytes(b"")
    assert run(photos, out=first) == 3
    bad.write_bytes((photos / "red.png").read_bytes())
    other.write_text("mine")
    seen, before = model.batches, first.read_bytes()
    with pytest.raises(FgvcError, match=r"other.csv exists.*--overwrite"):
        run(photos, out=(first, other), retry_failed=True)
    assert (other.read_text(), first.read_bytes(), model.batches) == ("mine", before, seen)
    assert files_in(tmp_path) == ["other.csv", "p.h5", "photos"]
    # Interrupted behind it, the same command still may replace that one, and only that one.
    model.interrupt_at = seen + 1
    assert run(photos, out=first, retry_failed=True) == 130
    with pytest.raises(FgvcError, match=r"other.csv exists.*--overwrite"):
        run(photos, out=(first, other), retry_failed=True)
    assert run(photos, out=first, retry_failed=True) == 0
    assert files_in(tmp_path) == ["other.csv", "p.h5", "photos"]


def repairable(photos):
    """A bad file among good ones, and what repairs it."""
    bad = photos / "c.png"
    bad.write_bytes(b"")
    return lambda: bad.write_bytes((photos / "red.png").read_bytes())


def test_retry_failed_repairs_all_outputs_of_a_run(model, photos, tmp_path):
    repair = repairable(photos)

    def files(stem):
        outs = tuple(tmp_path / f"{stem}{ending}" for ending in (".csv", ".h5", ".jsonl"))
        return {"out": outs, "per_file": tmp_path / f"{stem}-files.csv", "logits": True}

    assert run(photos, **files("p")) == 3
    repair()
    with pytest.raises(FgvcError, match=r"p.h5 would lose the logits of its rows. Add --logits"):
        run(photos, **files("p") | {"logits": False}, retry_failed=True)
    seen = model.batches
    assert run(photos, **files("p"), retry_failed=True) == 0
    assert model.batches == seen + 1
    assert run(photos, **files("whole")) == 0
    for ending in (".csv", ".h5", ".jsonl", "-files.csv"):
        assert table(tmp_path / f"p{ending}") == table(tmp_path / f"whole{ending}")


@pytest.mark.parametrize("option", ["out", "per_file"])
def test_retry_failed_leaves_the_table_of_another_run(model, photos, tmp_path, option):
    first, other = tmp_path / "p.h5", tmp_path / "q.csv"
    repair = repairable(photos)
    (photos / "d.png").touch()
    assert (
        run(photos, **({"out": other} if option == "out" else {"out": tmp_path / "o.csv", option: other}))
        == 3
    )
    (photos / "d.png").unlink()
    assert run(photos, out=first) == 3
    repair()
    given = {"out": (first, other)} if option == "out" else {"out": first, option: other}
    before = other.read_text()
    with pytest.raises(
        FgvcError, match=r"q.csv exists and is not of the run .*: row 2 is d.png, expected lime"
    ):
        run(photos, **given, retry_failed=True)
    assert (other.read_text(), (tmp_path / "p.h5.partial").exists()) == (before, False)
    assert run(photos, **given, retry_failed=True, overwrite=True) == 0
    assert "c.png,ok" in other.read_text()


def test_retry_failed_says_what_it_does_with_folders(model, photos, tmp_path):
    out, crops = tmp_path / "p.h5", tmp_path / "crops"
    repair = repairable(photos)
    assert run(photos, out=out, crops=True, crops_dir=crops) == 3
    repair()
    asked = list(model.asked)
    with pytest.raises(FgvcError, match=r"does not repair a folder: .*crops exists. Leave --crops-dir out"):
        run(photos, out=out, crops=True, crops_dir=crops, retry_failed=True)
    assert model.asked == asked
    assert run(photos, out=out, crops=True, crops_dir=tmp_path / "new", retry_failed=True) == 0
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["blue.png.jpg", "c.png.jpg", "lime.png.jpg", "red.png.jpg"]
    for path in crops.iterdir():
        assert path.read_bytes() == (tmp_path / "new" / path.name).read_bytes()


def test_retry_failed_does_not_replace_an_output_beside_a_run_under_way(model, photos, tmp_path):
    out = tmp_path / "p.csv"
    model.interrupt_at = 2
    assert run(photos, out=out) == 130
    out.write_text("mine")
    with pytest.raises(FgvcError, match=r"p.csv exists.*--overwrite"):
        run(photos, out=out, retry_failed=True)
    assert out.read_text() == "mine"


def test_retry_failed_needs_something_to_mend(model, photos, tmp_path):
    with pytest.raises(FgvcError, match="Run without it first"):
        run(photos, out=tmp_path / "p.csv", retry_failed=True)
    assert files_in(tmp_path) == ["photos"]


def test_torchrun_gives_each_process_its_shard(model, photos, tmp_path, monkeypatch, capsys):
    out = tmp_path / "p.csv"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(FgvcError, match="RANK is not set"):
        run(photos, out=out)
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert run(photos, out=out, device="auto") == 0
    assert files_in(tmp_path / "p.csv.partial") == ["shard-0-of-2", "shard-1-of-2"]
    assert f"Shard 1/2 is complete. When all are: fgvc merge {out}" in capsys.readouterr().err
    with pytest.raises(FgvcError, match="Under torchrun rows go to a file"):
        run(photos)


def test_dash_beside_other_sources_is_a_usage_error(model, photos):
    with pytest.raises(FgvcError) as caught:
        run(photos, "-")
    assert caught.value.exit_code == EXIT_USAGE


def test_a_folder_that_cannot_be_listed_is_said_and_is_no_success(
    model, photos, monkeypatch, tmp_path, capsys
):
    (photos / "locked").mkdir()
    scandir = os.scandir

    def deny(path):
        if path == photos / "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    assert run(photos, out=tmp_path / "p.csv", quiet=True) == 3
    assert rows_of((tmp_path / "p.csv").read_text()) == GOOD
    (line,) = capsys.readouterr().err.splitlines()
    assert "locked: Permission denied" in line


def test_a_reader_that_goes_away_ends_it_quietly(model, photos, monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert run(photos, quiet=True) == 1
        stdout.write("Python's last flush")
    assert capsys.readouterr().err == ""


def test_the_command_imports_nothing_heavy():
    heavy = "{'torch', 'PIL', 'numpy', 'timm', 'h5py'}"
    code = f"import fgvc_cli.cli.predict, sys; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


def test_threads_of_the_model_that_wait_leave_the_cores_to_the_decoders(model, photos, monkeypatch):
    for before, after in ((None, "passive"), ("active", "active")):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        if before:
            monkeypatch.setenv("OMP_WAIT_POLICY", before)
        assert run(photos, quiet=True) == 0
        assert os.environ["OMP_WAIT_POLICY"] == after


class Lines(Messages):
    """Messages to a console of one's own."""

    def __init__(self, stream, terminal=False, *, quiet=False):
        super().__init__(quiet=quiet)
        self.console = Console(file=stream, force_terminal=terminal, soft_wrap=True)

    def print(self, text):
        self.console.print(text, markup=False)


def plain_progress(monkeypatch, seconds_per_row, terminal=False, **options):
    clock = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    messages = Lines(stream, terminal, quiet=options.pop("quiet", False))
    with PredictProgress(messages, **{"live": True, **options}) as progress:
        for _ in range(50):
            clock[0] += seconds_per_row
            progress.count(1, Counter(ok=1))
    progress.summary(())
    return stream.getvalue()


def test_without_a_terminal_there_is_a_plain_line_now_and_then(monkeypatch):
    lines = plain_progress(monkeypatch, seconds_per_row=0.5).splitlines()
    assert lines == [
        "21 images in 10.5 s, 2.0 images/s",
        "42 images in 21.0 s, 2.0 images/s",
        "50 images in 25.0 s, 2.0 images/s: 50 ok, 0 failed.",
    ]


def test_a_terminal_shared_with_the_rows_gets_no_live_line(monkeypatch):
    assert "\x1b[?25l" in plain_progress(monkeypatch, 0.01, terminal=True)
    assert "\x1b[?25l" not in plain_progress(monkeypatch, 0.01, terminal=True, live=False)
    assert plain_progress(monkeypatch, 0.01, terminal=True, quiet=True) == ""


def test_the_time_left_and_what_failed_are_told_where_the_total_is_known(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    with PredictProgress(Lines(stream), live=True) as progress:
        progress.total = lambda: 200
        progress.resumed(80, Counter(ok=80))
        clock[0] = 20.0
        progress.count(20, Counter(ok=13, truncated=2, unsure=1, unknown=4))
    progress.summary([Path("p.csv")])
    assert stream.getvalue().splitlines() == [
        "Resuming after 80 images of an earlier run.",
        "100 images (80 of an earlier run) in 20.0 s, 1.0 images/s, 2 failed, 50% of 200, 2 min left",
        "100 images (80 of an earlier run) in 20.0 s, 1.0 images/s: 93 ok, 1 unsure, 4 unknown, "
        "2 failed (truncated 2).",
        "Written to p.csv.",
    ]
    assert progress.failed == 2


def test_a_second_ctrl_c_ends_at_once():
    code = """
import os, signal, time
from fgvc_cli.cli.predict import second_ctrl_c_ends
signal.signal(signal.SIGINT, signal.default_int_handler)
with second_ctrl_c_ends():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
    except KeyboardInterrupt:
        print("first", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=25)
    assert (done.returncode, done.stdout, done.stderr) == (130, "first\n", "")


def test_a_notebook_gets_rows_counts_and_files(model, photos, tmp_path, capsys):
    given = {"device": "cpu", "batch_size": 2, "workers": 0, "amp": "none", "quiet": True}
    result = fgvc_cli.predict_folder(photos, top_k=1, **given)
    assert [(row.path, row.labels) for row in result.rows] == [
        ("blue.png", ("blue",)),
        ("lime.png", ("green",)),
        ("red.png", ("red",)),
    ]
    assert (result.images, result.failed, result.exit_code, result.outputs) == (3, 0, 0, ())
    (photos / "c.jpg").touch()
    result = fgvc_cli.predict_folder([photos], out=tmp_path / "p.csv", **given)
    assert result.statuses == {"ok": 3, "empty": 1} and result.exit_code == 3 and result.rows == ()
    assert result.outputs == (tmp_path / "p.csv",) and len(rows_of(result.outputs[0].read_text())) == 4
    assert capsys.readouterr() == ("", "")


def test_a_notebook_is_told_of_wrong_options_and_interrupts(model, photos, tmp_path):
    import inspect

    names = inspect.signature(fgvc_cli.predict_folder).parameters
    assert {"sources", "weights", "out", "top_k", "retry_failed"} < set(names)
    for wrong, words in (
        ({"top_k": 0}, "--top-k got 0, expected 1 or more"),
        ({"amp": "fp8"}, "--amp got 'fp8', expected auto, none or bf16"),
        ({"restart": True}, "--restart needs an output file"),
        ({"batch_size": "x"}, "--batch-size got 'x', expected a whole number or auto"),
        ({"batch_size": 0}, "--batch-size got 0, expected 1 or more or auto"),
        ({"min_prob": "high"}, "--min-prob got 'high', expected a number"),
        ({"quiet": "perhaps"}, "--quiet got 'perhaps', expected True or False"),
        ({"taxonomy": ["a"]}, r"--taxonomy got \['a'\], expected text"),
        ({"out": 5}, "--out got 5, expected a path, or several"),
        ({"frames": 0}, "--frames got '0', expected"),
    ):
        with pytest.raises(FgvcError, match=words):
            fgvc_cli.predict_folder(photos, **wrong)
    for wrong in (5, [photos, 5]):
        with pytest.raises(FgvcError, match=r"--sources got .*5\]?, expected a path, or several"):
            fgvc_cli.predict_folder(wrong)
    with pytest.raises(TypeError, match="topk"):
        fgvc_cli.predict_folder(photos, topk=1)
    model.interrupt_at = 1
    with pytest.raises(KeyboardInterrupt):
        fgvc_cli.predict_folder(photos, device="cpu", workers=0, amp="none", quiet=True)


def test_a_notebook_gives_paths_and_numbers_where_the_command_line_has_text(model, photos, tmp_path):
    given = {"device": "cpu", "workers": 0, "amp": "none", "quiet": True}
    Image.new("RGB", (16, 12), "red").save(
        photos / "z.gif", save_all=True, append_images=[Image.new("RGB", (16, 12))]
    )
    result = fgvc_cli.predict_folder(photos, weights=tmp_path / "model", frames=2, **given)
    assert [row.path for row in result.rows][-2:] == ["z.gif#0", "z.gif#1"]
    assert model.asked == [str(tmp_path / "model")]


@pytest.mark.parametrize(
    "name", ["ablate", "evaluate", "explain", "export", "index", "merge", "predict_folder", "report", "train"]
)
def test_a_notebook_can_look_up_the_types_of_a_command(name):
    import inspect
    import typing

    function = getattr(fgvc_cli, name)
    signature, hints = inspect.signature(function), typing.get_type_hints(function)
    assert set(hints) == {*signature.parameters, "return"}
    types = [
        *(each.annotation for each in signature.parameters.values()),
        signature.return_annotation,
        *hints.values(),
    ]
    assert not [each for each in types if isinstance(each, str) or each is inspect.Parameter.empty]


def on_terminal(*sources, **options):
    """What a run prints on stdout, where that is a terminal."""
    import pty

    ours, theirs = pty.openpty()
    with pytest.MonkeyPatch.context() as patch, open(theirs, "w") as stdout:
        patch.setattr(sys, "stdout", stdout)
        code = run(*sources, quiet=True, **options)
        stdout.flush()
        os.set_blocking(ours, False)
        pieces = []
        with contextlib.suppress(BlockingIOError):
            while True:
                pieces.append(os.read(ours, 1 << 16))
    os.close(ours)
    return code, b"".join(pieces).decode().replace("\r\n", "\n")


@pytest.mark.skipif(os.name != "posix", reason="terminals of POSIX")
def test_one_image_on_a_terminal_is_a_readable_line(model, photos, capsys):
    code, text = on_terminal(photos / "red.png", top_k=2)
    assert code == 0
    name, _, guesses = text.partition(": ")
    assert name == str(photos / "red.png")
    assert re.fullmatch(r"red \d\d\.\d%, (green|blue) \d\.\d%\n", guesses), guesses
    code, text = on_terminal(photos / "red.png", min_prob=0.99, top_k=1)
    assert text.endswith("% (unsure)\n")
    (photos / "odd\x1b[2J.png").write_text("text")
    code, text = on_terminal(photos / "odd\x1b[2J.png")
    assert code == 3 and "\x1b" not in text and "odd\\x1b[2J.png: not_an_image: " in text
    assert len(text.splitlines()) == 1


@pytest.mark.skipif(os.name != "posix", reason="terminals of POSIX")
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_several_images_on_a_terminal_and_one_in_a_pipe_are_csv(model, photos, batch_size, capsys):
    assert rows_of(on_terminal(photos, batch_size=batch_size)[1]) == GOOD
    assert run(photos / "red.png", quiet=True) == 0
    assert rows_of(capsys.readouterr().out) == [(str(photos / "red.png"), "ok", "red")]
