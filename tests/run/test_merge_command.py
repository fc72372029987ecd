"""Shards put together are the run in one piece, or refused with what is missing; processes end together."""

import csv
import dataclasses
import os
import time
from pathlib import Path

import h5py
import pytest
from fake_predictor import begin_shards, fake_info, outputs_in

import fgvc_cli
from fgvc_cli.cli.predict import parse_batch_size
from fgvc_cli.command import Messages
from fgvc_cli.engine.device import pick_devices
from fgvc_cli.errors import FgvcError, duration
from fgvc_cli.formats.outputs import Outputs
from fgvc_cli.run.folder import read_record, write_record
from fgvc_cli.run.progress import PredictProgress, RunResult, run_processes


def progress():
    return PredictProgress(Messages(quiet=True), live=False)


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
    time.sleep(600)


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
    assert time.monotonic() - start < 120


def test_devices_are_cards_or_the_cpu_several_times():
    assert pick_devices("cpu", 3) == ["cpu"] * 3


def test_merge_names_what_is_missing(tmp_path):
    for out, words in (
        ((), "No output"),
        ((tmp_path / "p.csv",), "no folder"),
        ((tmp_path / "p.x",), ".csv"),
    ):
        with pytest.raises(FgvcError, match=words):
            fgvc_cli.merge(out)


def test_merge_tells_what_it_put_together(tmp_path, capsys):
    out = tmp_path / "p.csv"
    root = begin_shards(out, 3, 40)
    begun_for(Outputs((out,)), root, [f"shard-{i}-of-3" for i in range(3)])
    result = fgvc_cli.merge(out)
    assert result == RunResult({"ok": 36, "truncated": 4}, (out,))
    assert (result.images, result.failed, result.exit_code) == (40, 4, 3)
    told = capsys.readouterr().err
    assert "40 images: 36 ok, 4 failed (truncated 4)." in told and f"Written to {out}." in told
    with out.open() as stream:
        assert len(list(csv.DictReader(stream))) == 40
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]
    with pytest.raises(FgvcError, match="--overwrite"):
        fgvc_cli.merge(out)


def begun_for(outputs, root, folders=("shard-0-of-2", "shard-1-of-2")):
    """What predict writes down as it adds rows."""
    for name in folders:
        record = read_record(root / name)
        write_record(root / name, dataclasses.replace(record, outputs=outputs.record(root.parent)))


@pytest.mark.parametrize("named", ["p.csv", "p.csv.partial"])
def test_merge_needs_the_first_output_alone(tmp_path, named, monkeypatch):
    """Files, extras and folders are those that the shards were begun for, wherever one types it."""
    outputs = outputs_in(tmp_path)
    begun_for(outputs, begin_shards(outputs.files[0], 2, 20, fake_info(("attention", "crop"))))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert fgvc_cli.merge(tmp_path / named).outputs == tuple(outputs.paths())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crops", "elsewhere", "maps", "p.csv", "p.h5"]
    with h5py.File(tmp_path / "p.h5") as file:
        assert {"attention", "crop"} <= set(file)


def test_a_partial_folder_may_move_with_its_outputs(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    outputs = Outputs((tmp_path / "here" / "p.csv", tmp_path / "here" / "p.jsonl"))
    begun_for(outputs, begin_shards(outputs.files[0], 2, 20))
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    assert fgvc_cli.merge("p.csv").outputs == (Path("p.csv"), Path("p.jsonl"))
    assert sorted(path.name for path in Path().iterdir()) == ["p.csv", "p.jsonl"]


def test_outputs_that_are_named_take_the_place_of_those_recorded(tmp_path):
    outputs = Outputs((tmp_path / "p.csv", tmp_path / "p.jsonl"))
    begun_for(outputs, begin_shards(outputs.files[0], 2, 20))
    assert fgvc_cli.merge([tmp_path / "p.csv", tmp_path / "q.h5"]).images == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "q.h5"]


def test_shards_begun_for_different_outputs_are_refused_until_they_are_named(tmp_path):
    one, two = Outputs((tmp_path / "p.csv",)), Outputs((tmp_path / "p.csv", tmp_path / "p.jsonl"))
    root = begin_shards(one.files[0], 2, 20)
    begun_for(one, root, ("shard-0-of-2",))
    begun_for(two, root, ("shard-1-of-2",))
    with pytest.raises(
        FgvcError, match=r"shard-1-of-2 was begun for .*p.jsonl, shard-0-of-2 for .*p.csv\. Name"
    ):
        fgvc_cli.merge(tmp_path / "p.csv")
    assert fgvc_cli.merge(two.files).outputs == two.files


def test_an_output_that_is_there_is_kept(tmp_path):
    outputs = Outputs((tmp_path / "p.csv", tmp_path / "p.jsonl"))
    begun_for(outputs, begin_shards(outputs.files[0], 2, 20))
    (tmp_path / "p.jsonl").write_text("mine")
    with pytest.raises(FgvcError, match=r"p.jsonl exists.*--overwrite"):
        fgvc_cli.merge(tmp_path / "p.csv")
    assert (tmp_path / "p.jsonl").read_text() == "mine"
    assert fgvc_cli.merge(tmp_path / "p.csv", overwrite=True).images == 20


@pytest.mark.parametrize(("text", "size"), [("auto", "auto"), ("16", 16), ("0", 0), ("-1", 0), ("x", 0)])
def test_batch_size_is_a_number_or_auto(text, size):
    if size == 0:
        with pytest.raises(FgvcError, match="expected a number from 1 or auto"):
            parse_batch_size(text)
    else:
        assert parse_batch_size(text) == size


def test_times_left_are_short():
    assert [duration(s) for s in (5.4, 100, 3600 * 3 + 1200)] == ["5 s", "2 min", "3 h 20 min"]
