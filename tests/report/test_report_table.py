"""Reading prediction files back, and the labels beside them."""

from __future__ import annotations

import unicodedata

import h5py
import numpy as np
import pytest
from predictions import block, jpeg, write_csv, write_h5

from fgvc_cli.errors import EXIT_ERROR, EXIT_USAGE, FgvcError
from fgvc_cli.formats import rows as rows_module
from fgvc_cli.formats.outputs import read_table
from fgvc_cli.report.page import read_labels

GUESSES = [("bee", 0.9), None, ("ant", 0.25)]


def test_hdf5_and_csv_tell_the_same_rows(tmp_path):
    rows = block(GUESSES, paths=["a,b.jpg", "x\n.jpg", "\udcff.jpg"], parts=2, maps=True, crops=True)
    h5 = read_table(write_h5(tmp_path / "p.h5", rows))
    csv = read_table(write_csv(tmp_path / "p.csv", rows))
    assert h5.info.extras == ("attention", "crop") and csv.info.extras == ()
    assert h5.info.classes == ("ant", "bee", "cat")
    for table in (h5, csv):
        assert table.rows.path == ["a,b.jpg", "x\n.jpg", "\\udcff.jpg"]
        assert table.rows.status == ["ok", "truncated", "unsure"]
        assert table.rows.error == ["", "the file ends early", ""]
        assert table.answered.tolist() == [True, False, True]
        names = [[table.info.classes[i] for i in ranked if i >= 0] for ranked in table.rows.topk_index]
        assert names == [["bee", "cat"], [], ["ant", "bee"]]
        for name in ("size", "topk_prob", "box", "parts"):
            np.testing.assert_allclose(getattr(table.rows, name), getattr(rows, name), atol=1e-6)


def test_csv_in_batches_is_one_table(tmp_path, monkeypatch):
    monkeypatch.setattr("fgvc_cli.formats.rows.READ_ROWS", 2)
    table = read_table(write_csv(tmp_path / "p.csv", block([("cat", 0.5 + i / 100) for i in range(5)])))
    assert table.info.classes == ("ant", "cat")
    assert table.rows.topk_prob[:, 0].round(2).tolist() == pytest.approx([0.5, 0.51, 0.52, 0.53, 0.54])


def damage(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


H5_DAMAGE = {
    "has no class_names": lambda file: file.attrs.pop("class_names"),
    "has no topk_index": lambda file: file.pop("topk_index"),
    "has the schema 3, this fgvc reads 1 to 2": lambda file: file.attrs.__setitem__("schema_version", 3),
    "box has the shape (2, 4), for 3 rows": lambda file: file["box"].resize(2, axis=0),
    "it names class 7 of 3": lambda file: file["topk_index"].__setitem__((0, 0), 7),
    "its preprocessing is no JSON": lambda file: file.attrs.__setitem__("preprocessing", "{"),
    "Unknown setting 'zoom'": lambda file: file.attrs.__setitem__("preprocessing", '{"zoom": 1}'),
}


@pytest.mark.parametrize("message", H5_DAMAGE)
def test_hdf5_that_is_not_ours_is_refused(tmp_path, message):
    path = write_h5(tmp_path / "p.h5", block(GUESSES))
    damage(path, H5_DAMAGE[message])
    with pytest.raises(FgvcError) as caught:
        read_table(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_hdf5_that_is_cut_short_or_none_at_all_is_one_line(tmp_path):
    path = write_h5(tmp_path / "p.h5", block([("ant", 0.75)] * 500, crops=True))
    path.write_bytes(path.read_bytes()[:20_000])
    (tmp_path / "text.h5").write_text("no HDF5")
    for name in ("p.h5", "text.h5"):
        with pytest.raises(FgvcError, match="cannot be read as HDF5") as caught:
            read_table(tmp_path / name)
        assert "\n" not in str(caught.value) and "fgvc predict" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.jpg,bee\n", "line 1: expected the columns of fgvc predict"),
        ("", "line 1: expected the columns of fgvc predict"),
        ("HEADER", "holds no rows"),
        ("HEADERa.jpg,ok,\n", "line 2: 3 values, expected 11"),
        ("HEADERa.jpg,ok,,9,9,bee,much,0,0,9,9\n", "line 2: could not convert string to float: 'much'"),
        ("HEADERa.jpg,ok,,9,9,,,0,0,9,9\n", "line 2: a row of status ok without its size, a label"),
    ],
)
def test_csv_that_is_not_ours_is_refused(tmp_path, text, message):
    header = "path,status,error,width,height,label,prob,box_x1,box_y1,box_x2,box_y2\n"
    path = tmp_path / "p.csv"
    path.write_text(text.replace("HEADER", header))
    with pytest.raises(FgvcError) as caught:
        read_table(path)
    assert message in str(caught.value)


def test_what_cannot_be_a_report_is_refused(tmp_path, monkeypatch):
    with pytest.raises(FgvcError, match="does not read p.txt") as caught:
        read_table(tmp_path / "p.txt")
    assert caught.value.exit_code == EXIT_USAGE
    with pytest.raises(FgvcError, match="does not exist") as caught:
        read_table(tmp_path / "p.h5")
    assert caught.value.exit_code == EXIT_ERROR
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(FgvcError, match="is not a file"):
        read_table(tmp_path / "folder.csv")
    (tmp_path / "latin.csv").write_bytes("path,é".encode("latin-1"))
    with pytest.raises(FgvcError, match="not a UTF-8 CSV"):
        read_table(tmp_path / "latin.csv")
    monkeypatch.setattr(rows_module, "MAX_ROWS", 2)
    for path in (write_h5(tmp_path / "q.h5", block(GUESSES)), write_csv(tmp_path / "q.csv", block(GUESSES))):
        with pytest.raises(FgvcError, match="holds 3 rows; a page shows 2 at most"):
            read_table(path)


def test_labels_of_a_csv_need_no_images(tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\na.jpg,bee\nsub/b.jpg, wasp \n")
    names = ["a.jpg", "sub/b.jpg", "c.jpg", f"{tmp_path.as_posix()}/a.jpg"]
    assert read_labels(tmp_path / "labels.csv", names) == [("bee",), ("wasp",), None, ("bee",)]


def test_labels_of_a_folder_are_its_folders(tmp_path):
    (tmp_path / "set" / "bee").mkdir(parents=True)
    (tmp_path / "set" / "bee" / "a.jpg").write_bytes(jpeg("red"))
    assert read_labels(tmp_path / "set", ["bee/a.jpg", "a.jpg"]) == [("bee",), None]


def test_labels_find_rows_of_either_unicode_form_and_without_an_ending(tmp_path):
    nfc, nfd = (unicodedata.normalize(form, "né.jpg") for form in ("NFC", "NFD"))
    (tmp_path / "labels.csv").write_text(f"path,label\n{nfc},bee\nsub/7,wasp\nsub/8.tif,ant\ngone/9,ant\n")
    told = []
    names = [nfd, "sub/7.jpg", "sub/8.jpg", f"{tmp_path}/{nfd}"]
    labels = read_labels(tmp_path / "labels.csv", names, on_note=told.append)
    assert labels == [("bee",), ("wasp",), None, ("bee",)]
    assert told == ["2 of 4 labels met no row (gone/9, sub/8.tif)."]
    (tmp_path / "labels.jsonl").write_text('{"path": "sub/7.jpg", "label": "bee"}\n')
    assert read_labels(tmp_path / "labels.jsonl", names, on_note=told.append) == [None, ("bee",), None, None]
    assert len(told) == 1


def test_labels_that_meet_no_row_are_refused_with_both_names(tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\nother/a.jpg,bee\n")
    with pytest.raises(FgvcError, match=r"none of the 2 rows: it has 'other/a.jpg', the rows have 'a.jpg'"):
        read_labels(tmp_path / "labels.csv", ["a.jpg", "b.jpg"])
    with pytest.raises(FgvcError, match="does not exist"):
        read_labels(tmp_path / "nothing", ["a.jpg"])
    (tmp_path / "labels.csv").write_text("file,label\na.jpg,bee\n")
    with pytest.raises(FgvcError, match="no column path"):
        read_labels(tmp_path / "labels.csv", ["a.jpg"])


def test_label_sets_are_for_a_model_that_tells_several(tmp_path):
    (tmp_path / "labels.csv").write_text("path,labels\na.jpg,bee|ant\nb.jpg,\n")
    names = ["a.jpg", "b.jpg", "c.jpg"]
    assert read_labels(tmp_path / "labels.csv", names, multi_label=True) == [("ant", "bee"), (), None]
    assert read_labels(tmp_path / "labels.csv", ["b.jpg"], multi_label=True) == [()], "none is known too"
    with pytest.raises(FgvcError, match="has several labels per image, the predictions are of one"):
        read_labels(tmp_path / "labels.csv", names)
