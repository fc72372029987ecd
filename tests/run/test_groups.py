"""--group: images taken together get one answer, however the run came to its end."""

import csv
import io
import json

import h5py
import numpy as np
import pytest
from PIL import Image
from test_predict import model as model
from test_predict import run
from test_predict_resume import interrupted

import fgvc_cli
from fgvc_cli.errors import FgvcError
from fgvc_cli.formats.rows import COLUMNS
from fgvc_cli.run import merge as merge_module
from fgvc_cli.run.merge import find_groups, group_minutes

SHOTS = {  # name -> colour, time of the camera's clock, camera
    "cam/a.png": ((255, 0, 0), "07:04:00", "A"),
    "cam/b.png": ((0, 255, 0), "07:00:00", "A"),
    "cam/below/z.png": ((0, 0, 255), "07:01:00", "A"),
    "cam/c.png": ((255, 60, 0), "07:08:59", "A"),
    "cam/d.png": ((0, 0, 255), "07:14:00", "A"),
    "cam/e.png": ((0, 0, 255), "07:01:30", "B"),
    "cam/f.png": ((0, 255, 0), None, "A"),
    "g.png": ((0, 0, 255), "07:00:00", "A"),
}
GROUPS = {
    "cam/a.png": "cam#0001",
    "cam/b.png": "cam#0001",
    "cam/c.png": "cam#0001",
    "cam/e.png": "cam#0002",
    "cam/d.png": "cam#0003",
    "cam/below/z.png": "cam/below#0001",
    "cam/f.png": "",
    "cam/h.png": "",
    "g.png": ".#0001",
}


@pytest.fixture
def shots(tmp_path):
    root = tmp_path / "shots"
    for name, (colour, time, camera) in SHOTS.items():
        exif = Image.Exif()
        exif[0x110] = camera
        exif[0x8769] = {0x9003: f"2024:05:06 {time}"} if time else {}
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 12), colour).save(root / name, exif=exif)
    (root / "cam/h.png").write_bytes(b"junk")
    return root


def rows_of(path) -> dict[str, dict[str, str]]:
    return {row["path"]: row for row in csv.DictReader(io.StringIO(path.read_text()))}


def test_images_of_a_folder_and_camera_with_no_longer_gap_are_one_group(model, shots, tmp_path):
    out = tmp_path / "p.csv"
    assert run(shots, out=(out, tmp_path / "p.jsonl"), group="minutes=5", top_k=3, batch_size=3) == 3
    rows = rows_of(out)
    assert {name: row["group"] for name, row in rows.items()} == GROUPS
    together = [rows[f"cam/{name}.png"] for name in "abc"]
    means = dict.fromkeys(("red", "green", "blue"), 0.0)
    for row in together:
        for rank in ("", "_2", "_3"):
            means[row[f"label{rank}"]] += float(row[f"prob{rank}"]) / 3
    best = max(means, key=lambda name: means[name])
    assert best == "red" and {row["label"] for row in together} == {"red", "green"}
    for row in together:
        assert row["group_label"] == "red"
        assert float(row["group_prob"]) == pytest.approx(means["red"], abs=2e-6)
    alone = rows["cam/d.png"]
    assert (alone["group_label"], alone["group_prob"]) == (alone["label"], alone["prob"])
    assert rows["cam/f.png"]["group_label"] == rows["cam/h.png"]["group_prob"] == ""
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert {line["path"]: line["group"] for line in lines} == {n: g or None for n, g in GROUPS.items()}


def test_a_class_outside_the_top_k_counts_as_nothing(model, shots, tmp_path):
    """As in --per-file, whose rule it is."""
    out = tmp_path / "p.csv"
    assert run(shots, out=out, group="minutes=5", top_k=1) == 3
    rows = rows_of(out)
    red = [float(rows[f"cam/{name}.png"]["prob"]) for name in "ac"]
    assert float(rows["cam/b.png"]["group_prob"]) == pytest.approx(sum(red) / 3, abs=2e-6)


@pytest.mark.parametrize("count", [2, 3])
def test_shards_and_a_run_that_was_interrupted_come_to_the_same_bytes(
    model, shots, tmp_path, count, monkeypatch
):
    monkeypatch.setattr(merge_module, "MERGE_ROWS", 4)
    whole, again, pieces = (tmp_path / f"{name}.csv" for name in ("whole", "again", "pieces"))
    interrupted(model, shots, again, group="minutes=5")
    assert run(shots, out=whole, group="minutes=5") == 3
    with pytest.raises(FgvcError, match=r"settings\.group\.minutes"):
        run(shots, out=again, group="minutes=6")
    assert run(shots, out=again, group="minutes=5") == 3
    for index in range(count):
        run(shots, out=pieces, group="minutes=5", shard=f"{index}/{count}")
    assert fgvc_cli.merge(pieces, quiet=True).outputs == (pieces,)
    assert whole.read_bytes() == again.read_bytes() == pieces.read_bytes()


@pytest.mark.parametrize("ending", ["csv", "h5"])
def test_what_is_read_again_joins_its_group(model, shots, tmp_path, ending):
    out, whole = (tmp_path / f"{name}.{ending}" for name in ("p", "whole"))
    picture = (shots / "cam/b.png").read_bytes()
    (shots / "cam/b.png").write_bytes(b"junk")
    assert run(shots, out=out, group="minutes=5", top_k=3) == 3
    (shots / "cam/b.png").write_bytes(picture)
    assert run(shots, out=out, group="minutes=5", top_k=3, retry_failed=True) == 3
    assert run(shots, out=whole, group="minutes=5", top_k=3) == 3
    if ending == "csv":
        mended, fresh = rows_of(out), rows_of(whole)
        # The probabilities of a CSV have six digits, and so has their mean.
        for name, row in fresh.items():
            prob, again = row.pop("group_prob"), mended[name].pop("group_prob")
            assert (prob == again == "") or float(again) == pytest.approx(float(prob), abs=2e-6)
        assert mended == fresh
    else:
        with h5py.File(out) as ours, h5py.File(whole) as theirs:
            assert list(ours["group"].asstr()) == list(theirs["group"].asstr())
            np.testing.assert_array_equal(ours["group_prob"][:], theirs["group_prob"][:])


def test_only_what_is_open_is_kept(model, shots, tmp_path):
    """The rows are read twice, one block at a time; a group's sums go with its last row."""
    out = tmp_path / "p.csv"
    run(shots, out=out, group="minutes=5", shard="0/2")
    blocks = list(
        merge_module.interleaved([merge_module.list_parts(tmp_path / "p.csv.partial/shard-0-of-2")])
    )
    reads = []
    groups = find_groups(lambda: reads.append(1) or iter(blocks), 5)
    assert len(reads) == 2 and groups.of_row.dtype == np.int32
    marked = groups.mark(blocks[0], ("red", "green", "blue"))
    assert set(marked.more) <= set(COLUMNS) and len(marked.more["group"]) == len(blocks[0])


def test_what_cannot_be_grouped_is_told_at_once(shots):
    for text in ("5", "minutes=", "minutes=0", "minutes=inf", "hours=1"):
        with pytest.raises(FgvcError, match="expected minutes=N"):
            group_minutes(text)
    assert group_minutes("minutes=0.5") == 0.5
    with pytest.raises(FgvcError, match="--group needs an output file"):
        run(shots, group="minutes=5")
    with pytest.raises(FgvcError, match="--taxonomy is for --rollup"):
        run(shots, taxonomy="tree.csv")
