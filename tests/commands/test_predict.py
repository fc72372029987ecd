"""fgvc predict as a user meets it: exit codes, what is on stdout, stderr and disk."""

import csv
import io
import os
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from fgvc_cli.commands import predict, predict_progress
from fgvc_cli.commands.predict_progress import PredictProgress
from fgvc_cli.config import Preprocess
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.models.output import ModelOutput
from fgvc_cli.predict.rows import Row

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
    weights = types.ModuleType("fgvc_cli.engine.weights")
    weights.asked = []
    weights.default_notice = lambda: "No --weights given: using 'colours'."

    def open_weights(name, options=None):
        weights.asked.append(name)
        return SimpleNamespace(
            model=model, classes=("red", "green", "blue"), preprocess=preprocess, name="colours", sha256="0"
        )

    weights.open_weights = open_weights
    monkeypatch.setitem(sys.modules, "fgvc_cli.engine.weights", weights)
    model.asked = weights.asked
    return model


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("red", "lime", "blue"):
        Image.new("RGB", (16, 12), name).save(folder / f"{name}.png")
    return folder


def run(*sources, **options):
    return predict.run([str(source) for source in sources], **{"device": "cpu", "batch_size": 2, **options})


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


def test_ctrl_c_is_130_one_line_and_no_file(model, photos, tmp_path, capsys):
    model.interrupt_at = 2
    out = tmp_path / "p.csv"
    assert run(photos, out=out, weights="colours") == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "Interrupted after 2 images" in line
    assert f"{out} was not written" in line


@pytest.mark.parametrize(
    ("sources", "options", "words"),
    [
        (["photos"], {"out": "old.csv"}, "--overwrite"),
        (["photos"], {"out": "nowhere/p.csv"}, "mkdir"),
        (["photos"], {"out": "p.h5"}, ".csv"),
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

    monkeypatch.setattr(sys.modules["fgvc_cli.engine.weights"], "open_weights", refuse)
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
        if Path(path).name == "locked":
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
    heavy = "{'torch', 'PIL', 'numpy', 'timm', 'pydantic'}"
    code = f"import fgvc_cli.commands.predict, sys; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


def plain_progress(monkeypatch, seconds_per_row, terminal=False, **options):
    clock = [0.0]
    monkeypatch.setattr(predict_progress.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, soft_wrap=True)
    with PredictProgress(console, **{"quiet": False, "live": True, **options}) as progress:
        for _ in range(50):
            clock[0] += seconds_per_row
            progress.on_row(Row("a", "ok"))
    progress.summary(None)
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
