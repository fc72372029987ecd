"""Columns and cells of the CSV, and the file that appears whole or not at all."""

import csv
import errno
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_predictor import fake_block, fake_info

from fgvc_cli.config import Preprocess
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.files import AtomicFile
from fgvc_cli.formats.csv_rows import CsvSink, PerFileSink, StdoutSink, csv_cells, csv_columns
from fgvc_cli.formats.outputs import Outputs
from fgvc_cli.formats.rows import Layout, Row, RunInfo, rows_block

GOOD = Row("a/b.jpg", "ok", "", 640, 480, ("cat", "dog"), (0.75, 1 / 3), (0.0, 1.26, 639.95, 480.0))
BAD = Row("a/c.jpg", "truncated", "image file is truncated")


def info(top_k=2):
    return RunInfo("m", "0" * 64, ("cat", "dog", "cow"), Preprocess(), top_k)


def block(*rows):
    return rows_block(rows, 0, info())


def write(out, rows=(GOOD, BAD), **options):
    with CsvSink(out, **options) as sink:
        sink.begin(info())
        sink.write(block(*rows))
    return out.read_bytes()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_columns_are_those_of_the_contract():
    assert ",".join(csv_columns(Layout(3))) == (
        "path,status,error,width,height,label,prob,label_2,prob_2,label_3,prob_3,box_x1,box_y1,box_x2,box_y2"
    )
    assert (
        ",".join(csv_columns(Layout(1)))
        == "path,status,error,width,height,label,prob,box_x1,box_y1,box_x2,box_y2"
    )


def test_the_whole_file(tmp_path):
    assert write(tmp_path / "p.csv").decode() == (
        "path,status,error,width,height,label,prob,label_2,prob_2,box_x1,box_y1,box_x2,box_y2\n"
        "a/b.jpg,ok,,640,480,cat,0.750000,dog,0.333333,0.0,1.3,640.0,480.0\n"
        "a/c.jpg,truncated,image file is truncated,,,,,,,,,,\n"
    )


def test_part_boxes_follow_the_box_and_are_empty_where_there_are_none():
    columns = csv_columns(Layout(1, parts=2))
    assert columns[11:] == [f"part_{k}_{edge}" for k in (1, 2) for edge in ("x1", "y1", "x2", "y2")]
    row = Row("a", "ok", "", 9, 9, ("x",), (1.0,), (0, 0, 9, 9), ((1, 2, 3, 4), (5, 6, 7, 8.25)))
    assert csv_cells(row, Layout(1, 2))[11:] == ["1.0", "2.0", "3.0", "4.0", "5.0", "6.0", "7.0", "8.2"]
    assert len(csv_cells(row, Layout(1, 2))) == len(columns)
    assert csv_cells(Row("a", "ok", "", 9, 9, ("x",), (1.0,), (0, 0, 9, 9)), Layout(1, 2))[11:] == [""] * 8
    assert csv_cells(BAD, Layout(1, 2))[11:] == [""] * 8


@pytest.mark.parametrize("row", [GOOD, BAD, Row("a", "ok", "", 1, 1, ("x", "y"), (1.0, 0.0), None)])
def test_every_row_has_a_cell_for_every_column(row):
    assert len(csv_cells(row, Layout(2))) == len(csv_columns(Layout(2)))


@pytest.mark.parametrize(
    "name", ["a,b.jpg", 'a"b.jpg', "a\nb.jpg", "a\rb.jpg", "a\r\n", "é 鳥.jpg", " a ", "\\udce9"]
)
def test_any_name_comes_back_through_a_csv_reader(tmp_path, name):
    data = write(tmp_path / "p.csv", [Row(name, "missing", "no such file"), GOOD])
    rows = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    assert [row["path"] for row in rows] == [name, "a/b.jpg"]
    assert rows[0]["status"] == "missing"


def test_a_name_that_is_not_utf8_is_written_readably(tmp_path):
    data = write(tmp_path / "p.csv", [Row(os.fsdecode(b"caf\xe9.jpg"), "missing")])
    assert data.decode().splitlines()[1].startswith("caf\\udce9.jpg,missing,")


def test_out_appears_only_when_complete_and_synced(tmp_path, monkeypatch):
    out = tmp_path / "p.csv"
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(out.exists()) or fsync(fd))
    with CsvSink(out) as sink:
        sink.begin(info())
        sink.write(block(GOOD))
        assert names_in(tmp_path) == ["p.csv.tmp"]
    assert names_in(tmp_path) == ["p.csv"]
    assert synced[0] is False


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_exception_leaves_nothing_behind_and_an_old_file_as_it_was(tmp_path, error):
    (tmp_path / "old.csv").write_text("old")
    for out in (tmp_path / "new.csv", tmp_path / "old.csv"):
        with pytest.raises(error), CsvSink(out, overwrite=True) as sink:
            sink.begin(info())
            sink.write(block(GOOD))
            raise error
    assert names_in(tmp_path) == ["old.csv"]
    assert (tmp_path / "old.csv").read_text() == "old"


def test_an_existing_file_is_refused_on_entering_and_overwrite_is_named(tmp_path):
    out = tmp_path / "p.csv"
    out.write_text("old")
    with pytest.raises(FgvcError, match="--overwrite"), CsvSink(out):
        pytest.fail("entered")
    assert out.read_text() == "old"
    assert names_in(tmp_path) == ["p.csv"]
    assert write(out, overwrite=True).startswith(b"path,")


def test_a_missing_folder_is_refused_and_named(tmp_path):
    with pytest.raises(FgvcError, match="mkdir -p .*nowhere"), CsvSink(tmp_path / "nowhere" / "p.csv"):
        pytest.fail("entered")


def test_a_folder_or_fifo_in_the_place_is_never_replaced(tmp_path):
    (tmp_path / "d.csv").mkdir()
    os.mkfifo(tmp_path / "f.csv")
    for name in ("d.csv", "f.csv"):
        with pytest.raises(FgvcError, match="not a regular file"), CsvSink(tmp_path / name, overwrite=True):
            pytest.fail("entered")
    assert names_in(tmp_path) == ["d.csv", "f.csv"]


def test_a_folder_that_cannot_be_written_is_refused_on_entering(tmp_path):
    # A folder in the place of the partial file stands for missing rights, which root always has.
    (tmp_path / "p.csv.tmp").mkdir()
    with pytest.raises(FgvcError, match="p.csv"), CsvSink(tmp_path / "p.csv"):
        pytest.fail("entered")


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "p.csv").symlink_to(tmp_path / "real" / "target.csv")
    write(tmp_path / "p.csv")
    assert (tmp_path / "p.csv").is_symlink()
    assert names_in(tmp_path / "real") == ["target.csv"]


def full_disk(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_at_the_end_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, function):
    target = os if function == "fsync" else Path
    monkeypatch.setattr(target, function, full_disk)
    with pytest.raises(FgvcError, match="No space left"):
        write(tmp_path / "p.csv")
    assert names_in(tmp_path) == []


def test_a_full_disk_in_the_middle_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    sink = CsvSink(tmp_path / "p.csv")
    kept = "it is left as it was. The rows are kept: .* type the same command again"
    with pytest.raises(FgvcError, match=f"No space left on device; {kept}"), sink:
        sink.begin(info())
        monkeypatch.setattr(sink, "_stream", type("Full", (), {"write": full_disk})())
        sink.write(block(GOOD))
    assert names_in(tmp_path) == []


def test_an_unknown_ending_names_the_known_ones(tmp_path):
    with pytest.raises(FgvcError, match=r"\.csv, \.jsonl, \.h5") as caught:
        Outputs((tmp_path / "p.xlsx",)).check()
    assert caught.value.exit_code == EXIT_USAGE


def test_stdout_gets_rows_as_they_come(capfdbinary):
    with StdoutSink() as sink:
        sink.begin(info())
        assert capfdbinary.readouterr().out.startswith(b"path,status")
        sink.write(block(GOOD))
        assert capfdbinary.readouterr().out.startswith(b"a/b.jpg,ok,,640,480,cat,0.750000")
    print("stdout is still open")
    assert b"open" in capfdbinary.readouterr().out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_stdout_is_one_line(monkeypatch):
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(FgvcError, match="stdout.*No space left"), StdoutSink() as sink:
            sink.begin(info())
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_atomic_file_hands_out_the_stream(tmp_path):
    with AtomicFile(tmp_path / "a.bin") as stream:
        stream.write(b"\x00\xff")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff"


def test_full_disk_inside_the_block_is_explained_and_leaves_nothing(tmp_path):
    out = tmp_path / "a.bin"
    with pytest.raises(FgvcError, match="Could not write .*a.bin: No space left"), AtomicFile(out):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_file_of_frames_is_unsure_by_the_mean_probability_and_unknown_by_the_mean_novelty(tmp_path):
    settings = {"frames": {}, "min_prob": 0.5, "thresholds": {"cat": 0.8}, "unknown": 1.0}
    info = fake_info(top_k=1, columns=("novelty",), **settings)
    frames = {"sure": [(0, 0.9, 0.2), (0, 0.8, 1.6)], "class": [(0, 0.75, 0.2), (0, 0.7, 0.2)]}
    frames |= {"other": [(1, 0.75, 0.2)], "low": [(1, 0.4, 0.2)], "foreign": [(0, 0.9, 1.9), (0, 0.9, 0.2)]}
    rows = [(f"{name}.gif#{i}", *frame) for name, own in frames.items() for i, frame in enumerate(own)]
    block = fake_block(info, [name for name, *_ in rows])
    block.topk_index[:, 0], block.topk_prob[:, 0] = [row[1] for row in rows], [row[2] for row in rows]
    block.more["novelty"] = np.array([row[3] for row in rows])
    with PerFileSink(tmp_path / "p.csv") as sink:
        sink.begin(info)
        sink.write(block)
    table = csv.DictReader((tmp_path / "p.csv").open())
    found = {row["path"].removesuffix(".gif"): row["status"] for row in table}
    assert found == {"sure": "ok", "class": "unsure", "other": "ok", "low": "unsure", "foreign": "unknown"}
