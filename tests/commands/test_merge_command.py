"""Shards put together are the run in one piece, or refused with what is missing; processes end together."""

import csv
import os
import sys
import time
from pathlib import Path

import pytest
from fgvc_cli.commands.predict_devices import run_processes
from fgvc_cli.commands.predict_options import PredictOptions, parse_batch_size
from fgvc_cli.commands.predict_progress import PredictProgress, duration
from rich.console import Console

from fgvc_cli.commands import merge
from fgvc_cli.engine.device import pick_devices
from fgvc_cli.errors import FgvcError


def progress():
    return PredictProgress(Console(file=open(os.devnull, "w"), stderr=False), quiet=False, live=False)


def counting(pipe, index, rows):
    for _ in range(rows):
        pipe.send(("rows", 1, {"ok": 1}, rows))
    pipe.send(("note", f"from {index}"))


def failing(pipe, index, how):
    if index == 0:
        if how == "error":
            pipe.send(("error", "No such weights.", "Try others.", 1))
        else:
            os._exit(7)
    time.sleep(60)


def test_processes_are_counted_together():
    told = progress()
    run_processes(counting, [(0, 5), (1, 7)], told)
    assert (told.rows, told.statuses["ok"], told.total()) == (12, 12, 12)


@pytest.mark.parametrize(
    ("how", "words"),
    [("error", "Shard 0/2: No such weights. Try others."), ("death", r"shard 0/2 died \(exit code 7\)")],
)
def test_when_one_process_fails_the_others_end(how, words):
    start = time.monotonic()
    with pytest.raises(FgvcError, match=words):
        run_processes(failing, [(0, how), (1, how)], progress())
    assert time.monotonic() - start < 20


def test_devices_are_cards_or_the_cpu_several_times():
    assert pick_devices("cpu", 3) == ["cpu"] * 3


def test_merge_names_what_is_missing(tmp_path):
    for out, words in (
        ((), "No output"),
        ((tmp_path / "p.csv",), "no folder"),
        ((tmp_path / "p.x",), ".csv"),
    ):
        with pytest.raises(FgvcError, match=words):
            merge.run(PredictOptions(sources=(), out=out))


def test_merge_tells_what_it_put_together(tmp_path, capsys):
    sys.path.insert(0, str(Path(__file__).parents[1] / "predict"))
    from fake_predictor import begin_shards

    out = tmp_path / "p.csv"
    begin_shards(out, 3, 40)
    assert merge.run(PredictOptions(sources=(), out=(out,))) == 3
    told = capsys.readouterr().err
    assert "40 images: 36 ok, 4 failed (truncated 4)." in told and f"Written to {out}." in told
    with out.open() as stream:
        assert len(list(csv.DictReader(stream))) == 40
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]
    with pytest.raises(FgvcError, match="--overwrite"):
        merge.run(PredictOptions(sources=(), out=(out,)))


@pytest.mark.parametrize(("text", "size"), [("auto", "auto"), ("16", 16), ("0", 0), ("-1", 0), ("x", 0)])
def test_batch_size_is_a_number_or_auto(text, size):
    if size == 0:
        with pytest.raises(FgvcError, match="expected a number from 1 or auto"):
            parse_batch_size(text)
    else:
        assert parse_batch_size(text) == size


def test_times_left_are_short():
    assert [duration(s) for s in (5.4, 100, 3600 * 3 + 1200)] == ["5 s", "2 min", "3 h 20 min"]
