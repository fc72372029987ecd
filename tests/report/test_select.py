"""What select picks: doubt, diversity, what is known already, and the files it reads and writes."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
from predictions import CLASSES, block, run_info, several_labels, write_csv
from typer.testing import CliRunner

import fgvc_cli
from fgvc_cli.cli import app
from fgvc_cli.errors import FgvcError
from fgvc_cli.formats.csv_rows import CsvSink
from fgvc_cli.formats.h5 import H5Sink
from fgvc_cli.formats.outputs import format_of, read_embeddings, read_table
from fgvc_cli.report.select import doubt_of, spread

PROBS = [0.9, 0.52, None, 0.6, 0.55, 0.5, 0.99, 0.7]
"""Of the best of two; by margin 5, 1, 4, 3, 7, 0, 6."""
DIRECTIONS = [[1, 0], [0, 1], None, [0.1, 1], [-1, 0], [0, 2], [0, 1], [0, -1]]


@pytest.fixture(params=["h5", "parquet"])
def preds(request, tmp_path):
    if request.param == "parquet" and importlib.util.find_spec("pyarrow") is None:
        pytest.skip("needs pyarrow: pip install 'fgvc[parquet]'")
    rows = block([None if prob is None else ("ant", prob) for prob in PROBS])
    vectors = [[np.nan, np.nan] if one is None else one for one in DIRECTIONS]
    rows.embedding = np.array(vectors, np.float32)
    out = tmp_path / f"p.{request.param}"
    sinks = {"h5": "H5Sink", "parquet": "ParquetSink"}
    with getattr(format_of(out), sinks[request.param])(out, extras={"embedding"}) as sink:
        sink.begin(run_info(rows))
        sink.write(rows)
    return out


def test_doubt_in_closed_form():
    prob = np.array([[0.5, 0.5], [0.7, 0.1], [np.nan, np.nan]], np.float32)
    assert doubt_of(prob, "margin").tolist() == pytest.approx([1, 0.4, -1])
    assert doubt_of(prob[:, :1], "margin").tolist() == pytest.approx([0.5, 0.3, -1])
    # What the two leave is a class more: 0.7, 0.1, 0.2 of three.
    entropy = -sum(p * np.log(p) for p in (0.7, 0.1, 0.2)) / np.log(3)
    assert doubt_of(prob, "entropy").tolist() == pytest.approx([np.log(2) / np.log(3), entropy, -1], abs=1e-6)
    assert doubt_of(np.full((1, 4), 0.2), "entropy")[0] == pytest.approx(1)


def test_spread_takes_the_farthest():
    angles = np.radians([0, 10, 90, 180, 95])
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * [[1], [9], [1], [1], [1]]  # lengths do not count
    assert spread(points, 3) == [0, 3, 2]
    assert spread(points, 9) == [0, 3, 2, 1, 4]
    assert spread(points, 2, known=points[[3]]) == [0, 2]
    assert spread(np.zeros((2, 2)), 2) == [0, 1]


def test_the_most_doubtful_and_such_as_differ(preds, tmp_path):
    alone = fgvc_cli.select(preds, 3, out=tmp_path / "a.csv", pool=1, quiet=True)
    assert alone.rows == (5, 1, 4) and alone.doubt == pytest.approx((1, 0.96, 0.9))
    # Of the six most doubtful, 5 and 1 point the same way.
    both = fgvc_cli.select(preds, 3, out=tmp_path / "b.csv", pool=2, quiet=True)
    assert both.rows == (5, 7, 4) and both.paths == ("005.jpg", "007.jpg", "004.jpg")
    again = fgvc_cli.select(preds, 3, out=tmp_path / "c.csv", pool=2, quiet=True)
    assert again.rows == both.rows
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "c.csv").read_bytes()
    assert fgvc_cli.select(preds, 2, out=tmp_path / "d.csv", doubt="entropy", pool=1, quiet=True).rows == (
        5,
        1,
    )


def test_what_is_known_is_left_out_and_what_is_like_it_comes_last(preds, tmp_path):
    (tmp_path / "reviewed.csv").write_text("path,label\n007.jpg,ant\n005.jpg,bee\n")
    found = fgvc_cli.select(preds, 2, out=tmp_path / "a.csv", reviewed=tmp_path / "reviewed.csv", quiet=True)
    assert set(found.rows) == {0, 4}, "left and right; up and down are known"


def test_the_csv_is_what_report_reads(preds, tmp_path, capsys):
    out = tmp_path / "todo.csv"
    fgvc_cli.select(preds, 3, out=out, pool=2)
    assert (
        f"3 of 7 rows in {out}; to look at them: fgvc report {preds} --review --only {out}"
        in capsys.readouterr().err
    )
    table = read_table(out)
    assert table.rows.path == ["005.jpg", "007.jpg", "004.jpg"] and set(table.info.classes) == {"ant", "bee"}
    made = fgvc_cli.report(preds, tmp_path / "p.html", review=True, only=out, thumbs=0, quiet=True)
    assert made.rows == 3
    assert fgvc_cli.report(out, tmp_path / "q.html", review=True, thumbs=0, quiet=True).rows == 3
    with pytest.raises(FgvcError, match=r"todo.csv exists"):
        fgvc_cli.select(preds, 3, out=out)


def test_rows_unlike_the_training_images_are_picked_by_their_novelty(tmp_path):
    rows = block([("ant", 0.9), ("bee", 0.99), None, ("cat", 0.5)])
    rows.more["novelty"] = np.array([0.8, 1.7, np.nan, 1.2])
    rows.status[1] = "unknown"
    preds = tmp_path / "p.csv"
    with CsvSink(preds) as sink:
        sink.begin(replace(run_info(rows), columns=("novelty",)))
        sink.write(rows)
    found = fgvc_cli.select(preds, 9, out=tmp_path / "a.csv", doubt="novelty", quiet=True)
    assert found.rows == (1, 3, 0) and found.doubt == pytest.approx((1.7, 1.2, 0.8))
    assert [line.rpartition(",")[2] for line in (tmp_path / "a.csv").read_text().splitlines()[1:]] == [
        "1.700000", "1.200000", "0.800000"
    ]  # fmt: skip
    assert set(fgvc_cli.select(preds, 9, out=tmp_path / "b.csv", quiet=True).rows) == {0, 1, 3}
    with pytest.raises(FgvcError, match="no column novelty"):
        plain = write_csv(tmp_path / "q.csv", block([("ant", 0.9)]))
        fgvc_cli.select(plain, 9, out=tmp_path / "c.csv", doubt="novelty")


def test_without_embeddings_doubt_alone_and_a_line_that_says_so(tmp_path, capsys):
    preds = write_csv(tmp_path / "p.csv", block([("ant", 0.9), ("bee", 0.5), None, ("cat", 0.6)]))
    result = CliRunner().invoke(app, ["select", str(preds), "--count", "1"])
    assert result.exit_code == 0
    assert [line.split(",")[0] for line in result.stdout.splitlines() if "jpg" in line] == ["001.jpg"]
    assert "p.csv has no embeddings: by doubt alone." in result.stderr
    fgvc_cli.select(preds, 9, out=tmp_path / "all.csv")
    assert "There are only 3 rows to look at." in capsys.readouterr().err


def test_nothing_to_look_at(tmp_path):
    preds = write_csv(tmp_path / "p.csv", block([("ant", 0.9), None]))
    (tmp_path / "known.csv").write_text("path,label\n000.jpg,ant\n")
    with pytest.raises(FgvcError, match="no row left to look at: all with a prediction are reviewed"):
        fgvc_cli.select(preds, reviewed=tmp_path / "known.csv", out=tmp_path / "a.csv")
    with pytest.raises(FgvcError, match="expected a name ending in .csv"):
        fgvc_cli.select(preds, out=tmp_path / "a.h5")
    with pytest.raises(FgvcError, match="--count got 0, expected 1 or more"):
        fgvc_cli.select(preds, 0)
    assert not (tmp_path / "a.csv").exists()


def test_several_labels_are_refused(tmp_path):
    preds, _ = several_labels(tmp_path)
    with pytest.raises(FgvcError, match="one class of each"):
        fgvc_cli.select(preds, 2, out=tmp_path / "a.csv")


def test_embeddings_are_read_row_by_row(tmp_path):
    rows = block([("ant", 0.9)] * 2500)
    rows.embedding = np.arange(5000, dtype=np.float32).reshape(2500, 2)
    with H5Sink(tmp_path / "p.h5", extras={"embedding"}) as sink:
        sink.begin(run_info(rows, CLASSES))
        sink.write(rows)
    asked = np.array([2400, 3, 1500, 999, 1000])
    assert read_embeddings(tmp_path / "p.h5", asked).tolist() == [[2 * i, 2 * i + 1] for i in asked]
