"""What lies in the page, and the command that writes it, without a browser."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest
from predictions import (
    CLASSES,
    HOSTILE_CLASS,
    HOSTILE_FILE,
    SIZE,
    block,
    jpeg,
    run_info,
    several_labels,
    write_csv,
    write_h5,
)

import fgvc_cli
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.formats.outputs import SINKS, format_of, read_table
from fgvc_cli.report import page as page_module
from fgvc_cli.report.page import MAP_PX, MapReader, build_truth, cut_rows, told_sets

DTYPES = {"uint8": "u1", "int32": "<i4", "float32": "<f4"}


def data_of(text: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Header and columns, as the page's script unpacks them."""
    packed = re.search(r'id="rows">([^<]*)</script>', text)[1]
    raw = gzip.decompress(base64.b64decode(packed))
    length = int(np.frombuffer(raw[:4], "<u4")[0])
    header = json.loads(raw[4 : 4 + length])
    start = -(-(4 + length) // 8) * 8
    columns = {
        name: np.frombuffer(raw, DTYPES[column["type"]], column["length"], start + column["at"])
        for name, column in header["columns"].items()
    }
    return header, columns


@pytest.fixture
def preds(tmp_path):
    rows = block([("bee", 0.9), None, ("ant", 0.25)], parts=1, maps=True, crops=True)
    return write_h5(tmp_path / "p.h5", rows)


def test_columns_come_back_as_they_were(preds, tmp_path, capsys):
    written = fgvc_cli.report(preds, tmp_path / "p.html")
    assert (written.rows, written.holds.maps) == (3, 2)
    assert written.bytes == (tmp_path / "p.html").stat().st_size
    header, columns = data_of((tmp_path / "p.html").read_text())
    assert header["rows"] == 3 and header["classes"] == list(CLASSES) and header["map"] == [4, 2]
    assert bytes(columns["path"]).decode().split("\0") == ["000.jpg", "001.jpg", "002.jpg"]
    assert bytes(columns["error"]).decode().split("\0") == ["", "the file ends early", ""]
    assert [header["statuses"][i] for i in columns["status"]] == ["ok", "truncated", "unsure"]
    assert columns["index"].tolist() == [1, 2, -1, -1, 0, 1]
    assert columns["box"].tolist() == [100, 100, 600, 500, -1, -1, -1, -1, 100, 100, 600, 500]
    assert columns["picture_row"].tolist() == [0, 2] and columns["picture_cropped"].tolist() == [1, 1]
    assert columns["picture_input"].tolist() == [0, 0, 1200, 800] * 2
    assert "truth_count" not in columns
    said = capsys.readouterr().err
    assert "3 rows, 2 with a prediction; 2 pictures." in said
    assert "2 images could not be used (missing 2); 2 show their crop instead. --images FOLDER" in said


def test_input_of_a_centre_crop_lies_in_the_middle_of_the_image(tmp_path):
    rows = block([("bee", 0.9)], crops=True, maps=True)
    preds = write_h5(tmp_path / "p.h5", rows, input_px=64, resize_px=80, resize_rule="shorter")
    fgvc_cli.report(preds, out=tmp_path / "p.html", quiet=True)
    _, columns = data_of((tmp_path / "p.html").read_text())
    # 120 x 80 px stays as large, and 64 x 64 px of it are seen.
    assert SIZE == (120, 80) and columns["picture_input"].tolist() == [280, 80, 920, 720]


def test_the_page_may_run_its_own_script_and_nothing_else(preds, tmp_path):
    fgvc_cli.report(preds, out=tmp_path / "p.html", quiet=True)
    text = (tmp_path / "p.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    allowed = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert allowed["default-src"] == "'none'" and allowed["img-src"] == "data:"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert allowed[rule] == f"'sha256-{digest}'"
    assert set(re.findall(r"https?://[\w./]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, no address


def test_hostile_names_are_nowhere_as_html(tmp_path):
    classes = ("ant", HOSTILE_CLASS)
    rows = block([(HOSTILE_CLASS, 0.9)], classes, paths=[HOSTILE_FILE])
    preds = write_h5(tmp_path / "p.h5", rows, classes)
    fgvc_cli.report(preds, out=tmp_path / "p.html", title="</title><script>alert(1)</script>", quiet=True)
    text = (tmp_path / "p.html").read_text()
    assert HOSTILE_FILE not in text and HOSTILE_CLASS not in text
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_maps_are_bytes_and_fine_ones_are_averaged(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        coarse = np.stack([np.eye(3), np.full((3, 3), np.nan)]).astype("float16")
        fine = np.zeros((1, 2 * MAP_PX, 2 * MAP_PX), "float16")
        fine[0, 0, :2] = 1
        table = read_table(write_h5(tmp_path / "p.h5", block([("ant", 0.75)] * 2)))
        reader = MapReader(table, file.create_dataset("coarse", data=coarse))
        assert reader.size == (3, 3)
        assert list(reader.read(0)) == [255, 0, 0, 0, 255, 0, 0, 0, 255] and reader.read(1) is None
        reader = MapReader(table, file.create_dataset("fine", data=fine))
        assert reader.size == (MAP_PX, MAP_PX)
        assert reader.read(0) == bytes([128, 0]) + bytes(MAP_PX * MAP_PX - 2)


def test_labels_that_the_model_does_not_know_are_mistakes(tmp_path, preds, capsys):
    table = read_table(preds)
    truth = build_truth(table, [("wasp",), ("bee",), ("ant",)])
    assert truth.classes == (*CLASSES, "wasp") and truth.sets == ({3}, {1}, {0})
    assert truth.wrong(table).tolist() == [True, False, False]
    (tmp_path / "labels.csv").write_text("path,label\n000.jpg,wasp\n001.jpg,bee\n002.jpg,ant\n9.jpg,ant\n")
    fgvc_cli.report(preds, out=tmp_path / "p.html", labels=tmp_path / "labels.csv")
    said = capsys.readouterr().err
    assert "1 of 4 labels met no row (9.jpg)." in said
    assert "50.0% of 2 labelled rows are right. Labels that are no class of the model: 1." in said
    header, columns = data_of((tmp_path / "p.html").read_text())
    assert columns["truth_count"].tolist() == [1, 1, 1] and columns["truth_labels"].tolist() == [3, 1, 0]
    assert header["known"] == 3 and header["several"] is False


def test_of_several_labels_the_whole_set_counts(tmp_path, capsys):
    preds, labels = several_labels(tmp_path)
    table = read_table(preds)
    assert told_sets(table) == [{0, 1}, {1}, set(), set(), {0}] and cut_rows(table) == 1
    truth = build_truth(table, [("ant", "bee"), ("bee", "cat"), (), ("ant",), None])
    assert truth.known.tolist() == [True, True, True, True, False]
    assert truth.wrong(table).tolist() == [False, True, False, False, False]
    fgvc_cli.report(preds, out=tmp_path / "p.html", labels=labels)
    assert "66.7% of 3 labelled rows have exactly their labels." in capsys.readouterr().err
    header, columns = data_of((tmp_path / "p.html").read_text())
    assert columns["truth_count"].tolist() == [2, 2, 0, 1, -1]
    assert columns["truth_labels"].tolist() == [0, 1, 1, 2, 0]
    assert (header["several"], header["told_above"], header["cut"]) == (True, 0.5, 1)


def test_boxes_are_drawn_as_fgvc_explain_does():
    from fgvc_cli.explain import panels

    for name in ("BOX_EDGE", "BOX_LINE", "PART_LINES"):
        assert getattr(page_module, name) == getattr(panels, name)


def test_the_folder_of_images_is_used(tmp_path, preds, capsys):
    for name in ("000.jpg", "002.jpg"):
        (tmp_path / name).write_bytes(jpeg("blue"))
    fgvc_cli.report(preds, out=tmp_path / "p.html", images=str(tmp_path))
    _, columns = data_of((tmp_path / "p.html").read_text())
    assert columns["picture_cropped"].tolist() == [0, 0]
    assert "could not be used" not in capsys.readouterr().err


def test_fewer_pictures_are_announced(tmp_path, preds, capsys):
    fgvc_cli.report(preds, out=tmp_path / "p.html", thumbs=1)
    assert "--thumbs 1 leaves 1 without a picture; unsure ones come first." in capsys.readouterr().err
    header, columns = data_of((tmp_path / "p.html").read_text())
    assert columns["picture_row"].tolist() == [2] and header["skipped"] == 1


def test_a_csv_says_that_it_has_no_maps(tmp_path, capsys):
    preds = write_csv(tmp_path / "p.csv", block([("bee", 0.9)]))
    fgvc_cli.report(preds, out=tmp_path / "p.html")
    assert "p.csv holds no attention maps; fgvc predict --out preds.h5 --maps" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_any_format_of_predict_makes_a_page_of_the_same_rows(tmp_path, ending, capsys):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    rows = block([("bee", 0.9), None, ("ant", 0.25)], paths=["=a.jpg", "b.jpg", "c.jpg"])
    path = tmp_path / f"p{ending}"
    info = run_info(rows)
    with getattr(format_of(path), SINKS[ending][1])(path) as sink:
        sink.begin(info)
        sink.write(rows)
    fgvc_cli.report(path, out=tmp_path / "p.html")
    told = capsys.readouterr().err
    assert "3 rows, 2 with a prediction" in told and "fgvc predict --out preds.h5 --maps stores them" in told
    header, columns = data_of((tmp_path / "p.html").read_text())
    assert bytes(columns["path"]) == b"=a.jpg\0b.jpg\0c.jpg" and {"ant", "bee"} < {*header["classes"]}


def test_a_page_that_exists_is_kept_and_a_failure_leaves_none(tmp_path, preds, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fgvc_cli.report(preds, quiet=True)
    before = (tmp_path / "p.html").read_bytes()
    with pytest.raises(FgvcError, match=r"p.html exists\. Add --overwrite"):
        fgvc_cli.report(preds)
    fgvc_cli.report(preds, overwrite=True, quiet=True)
    assert (tmp_path / "p.html").read_bytes() == before  # and the same rows give the same page
    for bad in ({"images": "nowhere"}, {"labels": tmp_path / "none.csv"}):
        with pytest.raises(FgvcError):
            fgvc_cli.report(preds, out=tmp_path / "new.html", **bad)
    with pytest.raises(FgvcError, match=r"expected a name ending in \.html") as caught:
        fgvc_cli.report(preds, out=tmp_path / "new.txt")
    assert caught.value.exit_code == EXIT_USAGE
    assert not list(tmp_path.glob("new*"))


def test_a_damaged_map_or_crop_ends_in_one_line(tmp_path, preds):
    with h5py.File(preds, "r+") as file:
        file["crop"][0] = np.frombuffer(b"no jpeg", np.uint8)
    with pytest.raises(FgvcError, match="A stored crop cannot be read; the file is damaged"):
        fgvc_cli.report(preds, out=tmp_path / "p.html", quiet=True)
    assert not (tmp_path / "p.html").exists()


def test_the_room_is_called_before_and_after_its_parts_are_imported():
    """``import fgvc_cli.report.page`` puts the package in the place of the function of the same name."""
    code = """
import inspect, fgvc_cli, fgvc_cli.errors
for _ in range(2):
    try:
        fgvc_cli.report("nowhere.csv")
    except fgvc_cli.errors.FgvcError as error:
        print(error.message)
    print("thumb_px" in inspect.signature(fgvc_cli.report).parameters)
    import fgvc_cli.report.page
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.splitlines() == ["nowhere.csv does not exist.", "True"] * 2, run.stdout + run.stderr
