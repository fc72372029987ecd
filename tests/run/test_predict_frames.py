"""fgvc predict --frames, --every, --nested and --per-file: rows, shards, resuming, one answer per file."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from test_frames import video
from test_predict import model as model
from test_predict import rows_of, run
from test_predict_resume import interrupted

import fgvc_cli
from fgvc_cli.errors import FgvcError
from fgvc_cli.formats.outputs import Outputs

RED, LIME, BLUE = "red", "lime", "blue"


@pytest.fixture
def clips(tmp_path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    frames = [Image.new("RGB", (16, 12), name) for name in (LIME, BLUE, LIME, RED, LIME)]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (16, 12), RED).save(folder / "b.png")
    return folder


ROWS = [
    ("a.gif#0", "ok", "green"),
    ("a.gif#1", "ok", "blue"),
    ("a.gif#2", "ok", "green"),
    ("a.gif#3", "ok", "red"),
    ("a.gif#4", "ok", "green"),
    ("b.png", "ok", "red"),
]


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_a_row_per_frame_and_one_answer_per_file(model, clips, tmp_path):
    out, files = tmp_path / "p.csv", tmp_path / "files.csv"
    assert run(clips, out=out, frames="all", per_file=files) == 0
    assert rows_of(out.read_text()) == ROWS
    first, second = table(files)
    assert (first["path"], first["frames"], first["answered"], first["label"]) == ("a.gif", "5", "5", "green")
    assert (second["path"], second["frames"], second["label"]) == ("b.png", "1", "red")
    # All three classes are among the top 5: the mean is exact, and sums to 1.
    rows = [row for row in table(out) if row["path"].startswith("a.gif")]
    means = {}
    for row in rows:
        for rank in ("", "_2", "_3"):
            means[row[f"label{rank}"]] = means.get(row[f"label{rank}"], 0) + float(row[f"prob{rank}"]) / 5
    for rank in ("", "_2", "_3"):
        assert float(first[f"prob{rank}"]) == pytest.approx(means[first[f"label{rank}"]], abs=2e-6)
    assert sum(means.values()) == pytest.approx(1, abs=1e-5)


def test_a_file_named_twice_in_a_list_has_two_answers(model, clips, tmp_path):
    names = ("b.png", "b.png", "a.gif", "a.gif", "b.png")
    (tmp_path / "list.txt").write_text("".join(f"{clips / name}\n" for name in names))
    out, files = tmp_path / "p.csv", tmp_path / "files.csv"
    assert run(f"@{tmp_path / 'list.txt'}", out=out, frames="2", per_file=files) == 0
    counted = [(Path(row["path"]).name, row["frames"]) for row in table(files)]
    assert counted == [("b.png", "1"), ("b.png", "1"), ("a.gif", "2"), ("a.gif", "2"), ("b.png", "1")]


def test_shards_and_resuming_give_the_same(model, clips, tmp_path):
    whole = tmp_path / "whole.csv", tmp_path / "whole-files.csv"
    run(clips, out=whole[0], frames="all", per_file=whole[1])
    parts = tmp_path / "parts.csv", tmp_path / "parts-files.csv"
    for shard in ("0/2", "1/2"):
        run(clips, out=parts[0], frames="all", per_file=parts[1], shard=shard)
    assert fgvc_cli.merge(parts[0]).outputs == parts  # which the shards know
    resumed = tmp_path / "resumed.csv", tmp_path / "resumed-files.csv"
    model.batches = 0
    interrupted(model, clips, resumed[0], frames="all", per_file=resumed[1])
    assert run(clips, out=resumed[0], frames="all", per_file=resumed[1]) == 0
    for one, other in ((parts, whole), (resumed, whole)):
        assert [path.read_text() for path in one] == [path.read_text() for path in other]


def test_other_frames_are_another_run(model, clips, tmp_path):
    interrupted(model, clips, tmp_path / "p.csv", frames="all")
    with pytest.raises(FgvcError, match=r"settings.frames"):
        run(clips, out=tmp_path / "p.csv", frames="2")


def test_a_video_has_a_row_a_second_and_one_answer(model, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(video(3))
    (folder / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(90))
    Image.new("RGB", (16, 12), RED).save(folder / "z.png")
    out, files = tmp_path / "p.csv", tmp_path / "files.csv"
    assert run(folder, out=out, every="1s", per_file=files) == 3
    assert [row["path"] for row in table(out)] == ["a.mp4#0", "a.mp4#1", "a.mp4#2", "broken.mp4", "z.png"]
    one, broken, last = table(files)
    assert (one["path"], one["status"], one["frames"], one["answered"]) == ("a.mp4", "ok", "3", "3")
    assert (broken["path"], broken["frames"], broken["answered"], broken["label"]) == (
        "broken.mp4",
        "1",
        "0",
        "",
    )
    assert broken["status"] == table(out)[3]["status"] != "ok"
    assert broken["error"] == table(out)[3]["error"] != ""
    assert last["path"] == "z.png"


def test_frames_reach_decoding_processes(model, clips, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(clips / "a.gif", "a.gif")
    assert run(tmp_path / "a.zip", clips / "a.gif", out=tmp_path / "p.csv", frames="2", workers=2) == 0
    labels = [row["label"] for row in table(tmp_path / "p.csv")]
    assert labels == ["green", "blue", "green", "blue"]


def test_nested_archives_are_rows(model, clips, tmp_path, capsys):
    with zipfile.ZipFile(clips / "old.zip", "w") as archive:
        archive.write(clips / "b.png", "b.png")
    run(clips, out=tmp_path / "p.csv")
    assert "1 archive passed over (.zip 1)." in capsys.readouterr().err
    assert run(clips, out=tmp_path / "q.csv", nested=True) == 0
    assert [row["path"] for row in table(tmp_path / "q.csv")] == ["a.gif", "b.png", "old.zip/b.png"]


@pytest.mark.parametrize("options", [{"frames": "0"}, {"every": "soon"}, {"raw": "cooked"}])
def test_what_cannot_be_meant_is_refused_first(model, clips, tmp_path, options):
    with pytest.raises(FgvcError, match=f"--{next(iter(options))} got"):
        run(clips, out=tmp_path / "p.csv", **options)


def test_one_answer_per_file_goes_into_a_csv(tmp_path):
    with pytest.raises(FgvcError, match=r"--per-file expects a name ending in \.csv"):
        Outputs((tmp_path / "p.csv",), per_file=tmp_path / "files.h5").check()
    with pytest.raises(FgvcError, match="is named twice"):
        Outputs((tmp_path / "p.csv",), per_file=tmp_path / "p.csv").check()
