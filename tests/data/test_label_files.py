"""Label files of every kind, and the paths in them that are not written as the files are called."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from fgvc_cli.data.label_files import read_label_file, read_listing
from fgvc_cli.data.labelled import Example, load_labelled
from fgvc_cli.data.listing import LabelledSet
from fgvc_cli.errors import FgvcError

NFC, NFD = (unicodedata.normalize(form, "né") for form in ("NFC", "NFD"))
IMAGES = [f"{name}{i}.jpg" for name in "ab" for i in range(4)]


def touch(root: Path, names: list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def csv_of(root: Path, paths: list[str], name: str = "set.csv") -> Path:
    lines = ["path,label", *(f"{path},{'ab'[i % 2]}" for i, path in enumerate(paths))]
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root / name


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(FgvcError) as caught:
        load_labelled(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def paths_of(listing: LabelledSet) -> list[str]:
    return sorted(e.path for split in listing.splits.values() for e in split)


ROWS: list[dict[str, Any]] = [
    {"path": "a1.jpg", "label": "wren", "split": "train"},
    {"path": "a2.jpg", "label": 7, "split": "train"},
    {"path": "b1.jpg", "label": "wren", "split": "val"},
    {"path": "b2.jpg", "label": 7, "split": "test"},
]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pa = pytest.importorskip("pyarrow", reason="reads Parquet")
        import pyarrow.parquet as pq

        texts = [{k: str(v) if k == "label" else v for k, v in row.items()} for row in rows]
        pq.write_table(pa.Table.from_pylist(texts), path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".JSONL", ".parquet"])
def test_other_kinds_of_files_list_what_a_csv_would(tmp_path: Path, ending: str) -> None:
    touch(tmp_path, IMAGES)
    listing = load_labelled(write_rows(tmp_path / f"set{ending}", ROWS))
    assert listing.classes == ("7", "wren")
    assert listing.splits == {
        "train": (Example("a2.jpg", 0), Example("a1.jpg", 1)),
        "val": (Example("b1.jpg", 1),),
        "test": (Example("b2.jpg", 0),),
    }
    assert listing.notes == (
        "1 of 2 classes without a val image (7): no part in choosing the epoch.",
        "1 of 2 classes without a test image (wren): no score tells how well the model knows them.",
    )


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_labels_may_be_a_list(tmp_path: Path, ending: str) -> None:
    touch(tmp_path, IMAGES)
    rows = [
        {"path": "a0.jpg", "labels": ["rust", "scab"]},
        {"path": "a1.jpg", "labels": ["scab"]},
        {"path": "a2.jpg", "labels": ["rust"]},
        {"path": "a3.jpg", "labels": []},
        {"path": "b0.jpg", "labels": None},
    ]
    listing = load_labelled(write_rows(tmp_path / f"set{ending}", rows), for_training=False)
    assert listing.multi_label and listing.classes == ("rust", "scab")
    assert {e.path: e.labels for e in listing.splits["test"]} == {
        "a0.jpg": (0, 1),
        "a1.jpg": (1,),
        "a2.jpg": (0,),
        "a3.jpg": (),
        "b0.jpg": (),
    }


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("x.jsonl", '{"path": "a1.jpg", "label": "a"}\n{"path": \n', ["x.jsonl line 2 is no JSON", '"wren"']),
        ("x.jsonl", '["a1.jpg", "a"]\n', ["line 1 is no JSON object", '{"path": "a.jpg"']),
        ("x.jsonl", '{"file": "a1.jpg", "label": "a"}\n', ["no column path in 'file,label'"]),
        ("x.jsonl", '{"path": "a1.jpg"}\n{"path": "a2.jpg", "label": "a"}\n', ["line 1: the label is empty"]),
        ("x.parquet", "no parquet", ["is no readable Parquet file", "columns path and label"]),
        ("x.txt", "a", ["is neither a folder nor a .tar, .csv, .jsonl or .parquet file"]),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, name: str, text: str, parts: list[str]) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="reads Parquet")
    (tmp_path / name).write_text(text)
    message = refusal(tmp_path / name)
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(
    ("name", "delimiter", "word"), [("s.csv", ";", "semicolons"), ("s.tsv", "\t", "tabs")]
)
def test_other_delimiters_are_taken_and_said(tmp_path: Path, name: str, delimiter: str, word: str) -> None:
    touch(tmp_path, IMAGES)
    path = csv_of(tmp_path, IMAGES, name)
    path.write_text(path.read_text().replace(",", delimiter))
    listing = load_labelled(path)
    assert paths_of(listing) == sorted(IMAGES)
    assert listing.notes[0] == f"{name}: columns are separated by {word}."


@pytest.mark.parametrize(("written", "stored"), [(NFC, NFD), (NFD, NFC)])
def test_paths_find_files_of_either_unicode_form(tmp_path: Path, written: str, stored: str) -> None:
    touch(tmp_path, [f"{stored}/{stored}{i}.jpg" for i in range(6)])
    listing = load_labelled(csv_of(tmp_path, [f"{written}/{written}{i}.jpg" for i in range(6)]))
    assert paths_of(listing) == sorted(f"{stored}/{stored}{i}.jpg" for i in range(6))
    assert all((tmp_path / path).is_file() for path in paths_of(listing))
    assert "6 paths are written in another Unicode form than their files" in listing.notes[0]


def test_where_both_forms_are_files_each_path_is_its_own(tmp_path: Path) -> None:
    names = [f"{form}{i}.jpg" for form in (NFC, NFD) for i in range(3)]
    touch(tmp_path, names)
    if len(list(tmp_path.iterdir())) < 6:
        pytest.skip("this file system takes both forms for one name")
    listing = load_labelled(csv_of(tmp_path, names))
    assert paths_of(listing) == sorted(names) and not listing.notes


def test_ids_without_an_ending_are_completed(tmp_path: Path) -> None:
    touch(tmp_path, [f"train/00{i}.{end}" for i, end in enumerate(("jpg", "PNG", "jpg", "jpeg"))])
    touch(tmp_path, ["train/000.txt"])
    listing = load_labelled(csv_of(tmp_path, [f"train/00{i}" for i in range(4)]))
    assert paths_of(listing) == ["train/000.jpg", "train/001.PNG", "train/002.jpg", "train/003.jpeg"]
    assert listing.notes[0] == (
        "4 paths without an ending are read as the one image of that name, such as train/000 "
        "as train/000.jpg."
    )


def test_an_id_of_two_files_is_refused_with_both(tmp_path: Path) -> None:
    touch(tmp_path, ["0.jpg", "1.jpg", "1.png", "2.jpg", "3.jpg"])
    message = refusal(csv_of(tmp_path, ["0", "1", "2", "3"]))
    assert "1 on line 3 may be any of 1.jpg, 1.png." in message


def test_an_id_and_its_file_are_one_image(tmp_path: Path) -> None:
    touch(tmp_path, ["0.jpg", "1.jpg", "2.jpg"])
    message = refusal(csv_of(tmp_path, ["0.jpg", "1.jpg", "2.jpg", "0"]))
    assert "line 5: 0 is 0.jpg, which is on line 2 too" in message


def test_backslashes_are_read_as_slashes(tmp_path: Path) -> None:
    touch(tmp_path, [f"wren/{i}.jpg" for i in range(4)])
    listing = load_labelled(csv_of(tmp_path, [f"wren\\{i}.jpg" for i in range(4)]))
    assert paths_of(listing) == [f"wren/{i}.jpg" for i in range(4)]
    assert "written with backslashes" in listing.notes[0]


def test_missing_images_say_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, [f"lists/photos/{i}.jpg" for i in range(4)])
    message = refusal(csv_of(tmp_path / "lists", [f"{i}.jpg" for i in range(4)]))
    assert "4 of 4 images do not exist, first 0.jpg on line 2" in message
    assert "there is photos/0.jpg: write the paths so." in message
    monkeypatch.chdir(tmp_path)
    message = refusal(csv_of(tmp_path / "lists", [f"lists/photos/{i}.jpg" for i in range(4)]))
    assert "lies below the current folder" in message and "(photos/0.jpg)" in message
    message = refusal(csv_of(tmp_path / "lists", ["nothing.jpg", "photos/1.jpg"]))
    assert f"Relative paths start at {tmp_path / 'lists'}." in message


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na.jpg,x\n\nb.jpg,y\n\n",
        "path,label\r\na.jpg,x\r\n   \r\nb.jpg,y\r\n\r\n",
        "sep=;\npath;label\na.jpg;x\nb.jpg;y\n",
        '"sep=|"\r\npath|label\r\na.jpg|x\r\nb.jpg|y\r\n',
        "\ufeffsep=,\npath,label\na.jpg,x\nb.jpg,y\n",
    ],
)
def test_blank_lines_and_the_first_line_of_excel(tmp_path, text):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "l.csv").write_bytes(text.encode())
    found, line_of = read_listing(tmp_path / "l.csv")
    assert found.by_class() == {None: {"x": [("a.jpg", None)], "y": [("b.jpg", None)]}}
    lines = text.splitlines()
    assert all(lines[line - 1].startswith(image) for image, line in line_of.items())


NO_TEXT = {"list": ["wren"], "dict": {"a": 1}, "NaN": float("nan"), "bytes": b"wren"}


@pytest.mark.parametrize("kind", NO_TEXT)
@pytest.mark.parametrize("field", ["label", "path", "split"])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_cell_that_is_no_text_is_refused_with_its_row(tmp_path, kind, field, ending):
    rows: list[dict] = [{"path": "a.jpg", "label": "x", "split": "train"} for _ in range(2)]
    rows[1]["path"] = "b.jpg"
    rows[1][field] = NO_TEXT[kind]
    path = tmp_path / f"l.{ending}"
    if ending == "jsonl":
        if kind == "bytes":
            pytest.skip("JSON has none")
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet

        kinds = {type(row[field]) for row in rows}
        rows = rows if len(kinds) == 1 else [{**rows[0], field: None}, rows[1]]
        if kind != "NaN" and field == "path":
            rows = rows[1:]
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(FgvcError) as refused:
        read_listing(path)
    word = "row" if ending == "parquet" else "line"
    assert f"l.{ending} {word} " in refused.value.message
    if rows[0][field] is not None:
        assert f"the {field} is " in refused.value.message and "expected text" in refused.value.message
        assert kind in refused.value.message


def test_a_group_column_of_pandas_may_be_empty(tmp_path):
    rows = [{"path": f"{i}.jpg", "label": "x", "camera": float("nan") if i else 7.0} for i in range(3)]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_listing(tmp_path / "l.jsonl", "camera")[0].groups == {
        "0.jpg": "7.0",
        "1.jpg": "",
        "2.jpg": "",
    }


@pytest.mark.parametrize("second", ["b/../a.jpg", "{root}/a.jpg", "{root}/b/../a.jpg", "../{name}/a.jpg"])
def test_a_path_twice_is_noticed_however_it_is_written(tmp_path, monkeypatch, second):
    root = tmp_path / "set"
    (root / "b").mkdir(parents=True)
    (root / "a.jpg").touch()
    again = second.format(root=root, name="set")
    (root / "l.csv").write_text(f"path,label\na.jpg,x\n{again},y\n")
    monkeypatch.chdir(root / "b")
    for path in (root / "l.csv", Path("../l.csv")):
        with pytest.raises(FgvcError, match="line 3: .*a.jpg is on line 2 too"):
            read_listing(path)


def write_boxes(folder, *rows, header="path,label,x1,y1,x2,y2"):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (folder / name).touch()
    (folder / "l.csv").write_text("\n".join((header, *rows)) + "\n")
    return folder / "l.csv"


def test_a_line_with_four_edges_is_a_box_and_an_image_may_have_several(tmp_path):
    path = write_boxes(
        tmp_path, "a.jpg,x,0,0,5,5", "a.jpg,y,5,0,9,5", "b.jpg,x,,,,", "c.jpg,y,1,1,4,4", "c.jpg,y,2,2,4,4"
    )
    found, line_of = read_listing(path)
    assert found.boxes == 4 and line_of == {"a.jpg": 2, "b.jpg": 4, "c.jpg": 5}
    x, y = (found.by_class()[None][name] for name in "xy")
    assert [(e.path, e.box and (e.box.id, e.box.edges)) for e in x] == [
        ("a.jpg", ("0", (0, 0, 5, 5))),
        ("b.jpg", None),
    ]
    assert [(e.path, e.box.id) for e in y] == [("a.jpg", "1"), ("c.jpg", "0"), ("c.jpg", "1")]
    assert not any(e.box.relative for e in y)
    parts = write_boxes(tmp_path, "a.jpg,x,0,0,0.5,1", "a.jpg,y,0.5,0,1,1")
    assert all(e.box.relative for own in read_listing(parts)[0].by_class()[None].values() for e in own)


@pytest.mark.parametrize(
    "rows, said",
    [
        (("a.jpg,x,0,0,5,5", "a.jpg,y,0,0,5,5"), "line 3: a.jpg is on line 2 too; expected it once"),
        (("a.jpg,x,0,0,5,5", "a.jpg,y,,,,"), "line 3: a.jpg is on line 2 too; .* each with a box of its own"),
        (("a.jpg,x,,,,", "a.jpg,y,0,0,5,5"), "line 3: a.jpg is on line 2 too"),
        (("a.jpg,x,0,0,5,five",), "line 2: '0,0,5,five' is no box x1,y1,x2,y2"),
        (("a.jpg,x,0,0,1.5,1",), "the largest number of a box is 1.5: too small for pixels"),
    ],
)
def test_boxes_that_cannot_be(tmp_path, rows, said):
    with pytest.raises(FgvcError, match=said):
        read_listing(write_boxes(tmp_path, *rows))


def test_boxes_of_an_image_in_two_splits_or_with_one_number(tmp_path):
    split = write_boxes(
        tmp_path, "a.jpg,x,train,0,0,5,5", "a.jpg,y,test,5,0,9,5", header="path,label,split,x1,y1,x2,y2"
    )
    with pytest.raises(FgvcError, match="line 3: this box of a.jpg is for test, the one on line 2 for train"):
        read_listing(split)
    twice = write_boxes(
        tmp_path, "a.jpg,x,0,0,5,5,7", "a.jpg,y,5,0,9,5,7", header="path,label,x1,y1,x2,y2,box_id"
    )
    with pytest.raises(FgvcError, match="line 3: a.jpg has a box 7 on an earlier line too"):
        read_listing(twice)
    rows = [{"path": "a.jpg", "label": "x", "x1": 0, "y1": 0, "x2": 9, "y2": n} for n in (5, 6)]
    (tmp_path / "l.jsonl").write_text(
        "\n".join(json.dumps(row) for row in (rows[0], rows[1] | {"split": "test"}))
    )
    with pytest.raises(FgvcError, match="is for test, the one on line 1 for no split"):
        read_listing(tmp_path / "l.jsonl")


def test_one_box_twice_is_told_apart_by_its_number_as_predictions_write_it(tmp_path):
    header = "path,label,x1,y1,x2,y2,box_id"
    path = write_boxes(tmp_path, "a.jpg,x,0,0,5,5,'=1", "a.jpg,y,0,0,5,5,2", header=header)
    assert [e.box.id for own in read_listing(path)[0].by_class()[None].values() for e in own] == ["=1", "2"]


def test_boxes_of_an_image_are_of_one_group(tmp_path):
    path = write_boxes(
        tmp_path, "a.jpg,x,0,0,5,5,1", "a.jpg,y,5,0,9,5,2", header="path,label,x1,y1,x2,y2,cam"
    )
    with pytest.raises(FgvcError, match="line 3: cam is '2' for this box of a.jpg, '1' on line 2"):
        read_listing(path, "cam")


def test_what_a_review_leaves_out_does_not_take_the_other_boxes_along(tmp_path):
    header = "path,x1,y1,x2,y2,label,old_label"
    path = write_boxes(
        tmp_path,
        "a.jpg,0,0,5,5,x,y",
        "a.jpg,5,0,9,5,none of these,y",
        "b.jpg,0,0,5,5,wrong,y",
        "b.jpg,5,0,9,5,none of these,y",
        header=header,
    )
    found = read_label_file(path)
    assert [(e.path, e.box.id) for e in found.by_class()[None]["x"]] == [("a.jpg", "0")] and found.boxes == 1
    assert found.notes == [
        "l.csv: marked 'none of these' and left out: 2 boxes.",
        "l.csv: marked 'wrong' and left out: 1 box.",
    ]
