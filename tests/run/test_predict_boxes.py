"""fgvc predict --boxes: a row for each box, whatever boxes and images are, and files for other programs."""

import csv
import io
import json
import math
import zipfile

import h5py
import numpy as np
import pytest
from PIL import Image
from test_predict import model, run  # noqa: F401 - a fixture and the command

import fgvc_cli
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.formats.outputs import read_table
from fgvc_cli.run.predict import PredictOptions

HALVES = {"a/1.png": ("red", "lime"), "a/2.png": ("blue", "red"), "b/1.png": ("lime", "blue")}
"""Left and right half of each image, 40 x 20."""
LEFT, RIGHT = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 0.5, 1.0]


def draw(path, left, right):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (40, 20), left)
    image.paste(right, (20, 0, 40, 20))
    image.save(path)


@pytest.fixture
def photos(tmp_path):
    for name, halves in HALVES.items():
        draw(tmp_path / "photos" / name, *halves)
    return tmp_path / "photos"


def write_md(path, boxes, **more):
    images = [
        {
            "file": file,
            "detections": [
                {"category": category, "conf": conf, "bbox": bbox} for category, conf, bbox in found
            ],
        }
        for file, found in boxes.items()
    ]
    document = {"images": images, "detection_categories": {"1": "animal", "2": "person"}} | more
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def boxes(tmp_path):
    """Right before left in the first image, one box in the second, none in the third."""
    found = {
        "a/1.png": [("1", 0.9, RIGHT), ("1", 0.3, LEFT)],
        "a/2.png": [("2", 0.8, LEFT)],
        "b/1.png": [],
    }
    return write_md(tmp_path / "d.json", found)


def rows_in(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def short(rows):
    return [(row["path"], row["box_id"], row["status"], row["label"]) for row in rows]


ALL = [
    ("a/1.png", "0", "ok", "green"),
    ("a/1.png", "1", "ok", "red"),
    ("a/2.png", "0", "ok", "blue"),
    ("b/1.png", "", "no_box", ""),
]


def test_a_row_for_each_box_in_pixels_of_the_whole_image(model, photos, boxes, tmp_path, capsys):  # noqa: F811
    assert run(photos, boxes=boxes, out=tmp_path / "p.csv") == 0
    rows = rows_in(tmp_path / "p.csv")
    assert short(rows) == ALL
    first = rows[0]
    assert [first[f"in_{edge}"] for edge in ("x1", "y1", "x2", "y2")] == ["20.0", "0.0", "40.0", "20.0"]
    assert (first["width"], first["height"]) == ("40", "20")
    # The model's box is the whole of what it sees.
    assert [first[f"box_{edge}"] for edge in ("x1", "y1", "x2", "y2")] == ["20.0", "0.0", "40.0", "20.0"]
    assert (first["given_label"], first["given_score"], first["given_path"]) == (
        "animal",
        "0.9000",
        "a/1.png",
    )
    assert rows[3]["error"] == "the file of boxes has none of it"
    told = capsys.readouterr().err
    assert "d.json: 3 boxes of 3 images." in told
    assert "4 boxes in" in told and "3 ok, 1 image without a box, 0 failed" in told


def test_boxes_are_chosen_and_widened(model, photos, boxes, tmp_path):  # noqa: F811
    assert run(photos, boxes=boxes, box_conf=0.5, box_category=["animal"], out=tmp_path / "p.csv") == 0
    assert short(rows_in(tmp_path / "p.csv")) == [ALL[0], ("a/2.png", "", "no_box", ""), ALL[3]]
    assert "1 box, none of the score and category" in rows_in(tmp_path / "p.csv")[1]["error"]
    assert run(photos, boxes=boxes, box_margin=2, out=tmp_path / "wide.csv") == 0
    wide = rows_in(tmp_path / "wide.csv")[0]
    assert (wide["in_x1"], wide["box_x1"]) == ("20.0", "0.0")  # the box stays, what is seen grows
    with pytest.raises(FgvcError, match="--box-conf chooses among boxes"):
        PredictOptions([str(photos)], box_conf=0.5)
    for other in ({"per_file": tmp_path / "f.csv", "frames": "all"}, {"fast_decode": True}):
        with pytest.raises(FgvcError, match="--boxes") as caught:
            PredictOptions([str(photos)], boxes=boxes, out=(tmp_path / "q.csv",), **other)
        assert caught.value.exit_code == EXIT_USAGE


def test_bad_boxes_are_rows_and_clipped_ones_are_counted(model, photos, tmp_path, capsys):  # noqa: F811
    table = tmp_path / "b.csv"
    table.write_text(
        "path,x1,y1,x2,y2\na/1.png,0,0,20,20\na/1.png,50,0,60,9\na/1.png,5,5,5,9\na/2.png,nan,0,9,9\n"
        "a/2.png,-9,-9,20,99\ngone.png,0,0,9,9\nb/1.png,,,,\n"
    )
    draw(photos / "c.png", "red", "red")
    (photos / "c.png").write_bytes(b"no image")
    assert run(photos, boxes=table, out=tmp_path / "p.csv") == 3
    rows = rows_in(tmp_path / "p.csv")
    assert [(row["path"], row["box_id"], row["status"]) for row in rows] == [
        ("a/1.png", "0", "ok"),
        ("a/1.png", "1", "bad_box"),
        ("a/1.png", "2", "bad_box"),
        ("a/2.png", "0", "bad_box"),
        ("a/2.png", "1", "ok"),
        ("b/1.png", "", "no_box"),
        ("c.png", "", "no_box"),
    ]
    assert "outside the image of 40 x 20: 50 0 60 9 pixels" in rows[1]["error"]
    assert [rows[4][f"in_{edge}"] for edge in ("x1", "y1", "x2", "y2")] == ["0.0", "0.0", "20.0", "20.0"]
    told = capsys.readouterr().err
    assert "Clipped to the image by more than a pixel: 1 box" in told
    assert "1 image of b.csv with 1 box not among the images, first gone.png" in told
    assert "1 image not in b.csv, first c.png: no_box." in told


def test_a_broken_image_is_a_row_for_each_of_its_boxes(model, photos, boxes, tmp_path):  # noqa: F811
    (photos / "a/1.png").write_bytes(b"")
    assert run(photos, boxes=boxes, out=(tmp_path / "p.csv", tmp_path / "p.md.json")) == 3
    assert short(rows_in(tmp_path / "p.csv"))[:2] == [("a/1.png", str(i), "empty", "") for i in (0, 1)]
    draw(photos / "a/1.png", *HALVES["a/1.png"])
    # What had no box has not failed, and is not read again.
    out = {"out": tmp_path / "p.csv", "boxes": boxes, "retry_failed": True}
    assert run(photos, **out) == 0
    assert short(rows_in(tmp_path / "p.csv")) == ALL


def test_resume_takes_the_same_boxes_and_refuses_others(model, photos, boxes, tmp_path):  # noqa: F811
    out = tmp_path / "p.csv"
    model.interrupt_at = 2
    assert run(photos, boxes=boxes, out=out) == 130
    model.interrupt_at = None
    with pytest.raises(FgvcError, match="settings.boxes.margin"):
        run(photos, boxes=boxes, out=out, box_margin=0.5)
    changed = json.loads(boxes.read_text())
    boxes.write_text(json.dumps(changed | {"info": {"note": "again"}}))
    with pytest.raises(FgvcError, match="settings.boxes.sha256"):
        run(photos, boxes=boxes, out=out)
    boxes.write_text(json.dumps(changed))
    with pytest.raises(FgvcError, match="begun with"):
        run(photos, out=out)
    before = model.batches
    assert run(photos, boxes=boxes, out=out) == 0
    assert short(rows_in(out)) == ALL
    assert model.batches - before == 1  # the first two boxes were not looked at again


def test_shards_and_merge_give_the_same_rows(model, photos, boxes, tmp_path):  # noqa: F811
    out = (tmp_path / "p.csv", tmp_path / "p.md.json", tmp_path / "p.h5")
    for index in (1, 0):
        assert run(photos, boxes=boxes, out=out, shard=f"{index}/2") == 0
    result = fgvc_cli.merge(out[0], quiet=True)
    assert result.statuses == {"ok": 3, "no_box": 1}
    assert result.exit_code == 0
    assert short(rows_in(out[0])) == ALL
    with h5py.File(out[2]) as file:
        assert file.attrs["schema_version"] == 2
        assert file["box_id"].asstr()[:].tolist() == ["0", "1", "0", ""]
        assert file["given_box"][0].tolist() == [20, 0, 40, 20] and np.isnan(file["given_box"][3]).all()
        assert json.loads(file.attrs["settings"])["boxes"]["margin"] == 0.0
    assert read_table(out[2]).rows.more["box_id"] == ["0", "1", "0", ""]
    images = json.loads(out[1].read_text())["images"]
    assert [len(image["detections"]) for image in images] == [2, 1, 0]


def test_several_processes_give_the_same_rows(photos, boxes, tmp_path):
    """With a model that another process can open too."""
    options = {"boxes": boxes, "weights": "aviary", "quiet": True, "workers": 0, "amp": "none"}
    fgvc_cli.predict_folder(photos, out=tmp_path / "one.csv", **options)
    fgvc_cli.predict_folder(photos, out=tmp_path / "two.csv", devices=2, device="cpu", **options)
    one, two = rows_in(tmp_path / "one.csv"), rows_in(tmp_path / "two.csv")
    assert [row["label"] for row in one] == [row["label"] for row in two]
    assert len(one) == 4 and one[0]["box_id"] == "0"


@pytest.mark.parametrize("source", ["archive", "list"])
def test_boxes_of_archives_and_lists(model, photos, boxes, tmp_path, source):  # noqa: F811
    names = sorted(HALVES)
    if source == "archive":
        with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
            for name in names:
                archive.write(photos / name, name)
        given = tmp_path / "all.zip"
    else:
        (tmp_path / "list.txt").write_text("".join(f"{photos / name}\n" for name in names))
        given = f"@{tmp_path / 'list.txt'}"
    assert run(given, boxes=boxes, out=tmp_path / "p.csv", workers=1) == 0
    rows = short(rows_in(tmp_path / "p.csv"))
    assert [row[1:] for row in rows] == [row[1:] for row in ALL]


def test_boxes_of_frames(model, tmp_path):  # noqa: F811
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    (tmp_path / "photos").mkdir()
    frames[0].save(tmp_path / "photos/x.gif", save_all=True, append_images=frames[1:])
    one = {"category": "1", "conf": 0.9, "bbox": [0, 0, 1, 1], "frame_number": 1}
    images = [{"file": "x.gif", "detections": [one]}]
    (tmp_path / "d.json").write_text(json.dumps({"images": images, "detection_categories": {"1": "a"}}))
    assert run(tmp_path / "photos", boxes=tmp_path / "d.json", frames="all", out=tmp_path / "p.csv") == 0
    assert short(rows_in(tmp_path / "p.csv")) == [
        ("x.gif#0", "", "no_box", ""),
        ("x.gif#1", "0", "ok", "blue"),
    ]


def test_crops_are_cut_inside_the_box_and_each_has_a_file(model, photos, boxes, tmp_path):  # noqa: F811
    assert run(photos, boxes=boxes, out=tmp_path / "p.h5", crops=True, crops_dir=tmp_path / "crops") == 0
    files = sorted(
        path.relative_to(tmp_path / "crops").as_posix() for path in (tmp_path / "crops").rglob("*.jpg")
    )
    assert files == ["a/1.png-0.jpg", "a/1.png-1.jpg", "a/2.png-0.jpg"]
    crop = Image.open(tmp_path / "crops/a/1.png-0.jpg")
    assert crop.size == (20, 20)
    red, green, _ = crop.getpixel((2, 10))
    assert green > 200 and red < 50


def test_crops_show_the_box_with_its_margin_not_the_object_in_it(model, photos, boxes, tmp_path):  # noqa: F811
    whole = model.forward

    def forward(images, want=()):
        output = whole(images, want)
        output.boxes = output.boxes / 2
        return output

    model.forward = forward
    assert run(photos, boxes=boxes, out=tmp_path / "p.csv", crops_dir=tmp_path / "crops", box_margin=0.5) == 0
    assert rows_in(tmp_path / "p.csv")[0]["box_x2"] == "25.0"  # 30 pixels from 10 on are seen
    assert Image.open(tmp_path / "crops/a/1.png-0.jpg").size == (30, 20)


def test_rows_in_python_carry_their_box(model, photos, boxes):  # noqa: F811
    result = fgvc_cli.predict_folder(photos, boxes=boxes, workers=0, quiet=True)
    assert [row.more.get("box_id") for row in result.rows] == ["0", "1", "0", None]
    assert result.rows[0].more["given_box"] == (20, 0, 40, 20)


def test_megadetector_goes_round_with_its_own_detections_kept(model, photos, boxes, tmp_path):  # noqa: F811
    before = json.loads(boxes.read_text())
    before["images"].append({"file": "gone/9.jpg", "detections": None, "failure": "Failure image access"})
    before["info"] = {"detector": "md_v5a", "format_version": "1.3"}
    before["classification_categories"] = {"0": "fox", "4": "red"}
    boxes.write_text(json.dumps(before))
    out = tmp_path / "p.md.json"
    assert run(photos, boxes=boxes, box_conf=0.5, out=out) == 0
    after = json.loads(out.read_text())
    names = after["classification_categories"]
    assert names == {"0": "fox", "4": "red", "5": "green", "6": "blue"}
    assert (after["info"]["detector"], after["info"]["format_version"]) == ("md_v5a", "1.3")
    assert after["detection_categories"] == before["detection_categories"]
    best = []
    for image in after["images"]:
        for one in image["detections"] or ():
            guesses = one.pop("classifications", None)
            best.append(guesses and names[guesses[0][0]])
            assert guesses is None or [prob for _, prob in guesses] == sorted(
                (p for _, p in guesses), reverse=True
            )
    assert best == ["green", None, "blue"]  # the box of little confidence was not looked at, and is there
    assert after["images"] == before["images"]
    again = fgvc_cli.predict_folder(photos, boxes=out, workers=0, quiet=True)
    assert [row.labels[:1] for row in again.rows] == [("green",), ("red",), ("blue",), ()]


def test_a_box_file_that_is_gone_costs_no_row(model, photos, boxes, tmp_path):  # noqa: F811
    out = (tmp_path / "p.csv", tmp_path / "p.md.json")
    for index in (0, 1):
        run(photos, boxes=boxes, out=out, shard=f"{index}/2")
    text = boxes.read_text()
    boxes.unlink()
    with pytest.raises(FgvcError, match=r"d\.json, whose boxes it is about, is gone"):
        fgvc_cli.merge(out[0], quiet=True)
    assert not out[0].exists()
    boxes.write_text(text)
    fgvc_cli.merge(out[0], quiet=True)
    assert short(rows_in(out[0])) == ALL and out[1].exists()


@pytest.mark.parametrize("given", [True, False])
def test_coco_and_label_studio(model, photos, tmp_path, given):  # noqa: F811
    document = {
        "images": [{"id": 70 + i, "file_name": name} for i, name in enumerate(sorted(HALVES))],
        "categories": [{"id": 9, "name": "green"}, {"id": 4, "name": "thing"}],
        "annotations": [{"id": 5, "image_id": 70, "category_id": 4, "bbox": [20, 0, 20, 20]}],
    }
    coco = tmp_path / "c.json"
    coco.write_text(json.dumps(document))
    (photos / "bad.png").write_bytes(b"")
    out = (tmp_path / "p.coco.json", tmp_path / "p.ls.json", tmp_path / "p.md.json")
    assert run(photos, boxes=coco if given else None, out=out) == (0 if given else 3)
    found = json.loads(out[0].read_text())
    names = {each["id"]: each["name"] for each in found["categories"]}
    files = {each["id"]: each["file_name"] for each in found["images"]}
    rows = [
        (files[each["image_id"]], names[each["category_id"]], each["bbox"]) for each in found["annotations"]
    ]
    tasks = json.loads(out[1].read_text())
    detections = json.loads(out[2].read_text())
    assert len(tasks) == len(found["images"]) == 4
    values = {
        task["data"]["image"]: [one["value"] for one in task["predictions"][0]["result"]]
        for task in tasks
        if "predictions" in task
    }
    if given:
        assert rows == [("a/1.png", "green", [20, 0, 20, 20])]
        assert (names[9], files[70]) == ("green", "a/1.png")
        percent = {"x": 50, "y": 0, "width": 50, "height": 100, "rotation": 0, "rectanglelabels": ["green"]}
        assert values == {"a/1.png": [percent]}
        assert detections["detection_categories"] == {"1": "thing"}
        (one,) = detections["images"][0]["detections"]
        assert (one["bbox"], one["conf"]) == ([0.5, 0, 0.5, 1], 1.0)
    else:
        # Of each image the model's own box: here all of it.
        assert [row[0] for row in rows] == sorted(HALVES)
        assert all(row[2] == [0, 0, 40, 20] for row in rows)
        assert detections["detection_categories"] == {"1": "object"}
        assert detections["images"][-1]["file"] == "bad.png" or detections["images"][2]["file"] == "bad.png"
        bad = next(image for image in detections["images"] if image["file"] == "bad.png")
        assert bad["detections"] is None and bad["failure"].startswith("empty: ")
        assert math.isclose(values["a/1.png"][0]["width"], 100)
    for path in out:
        with pytest.raises(FgvcError, match="fgvc report does not read"):
            read_table(path)
    # A data set that fgvc wrote is one that it reads.
    assert run(photos, boxes=out[0], out=tmp_path / "again.csv") == 0


def test_retry_does_not_replace_a_file_that_it_cannot_read(model, photos, boxes, tmp_path):  # noqa: F811
    out = (tmp_path / "p.csv", tmp_path / "p.md.json")
    assert run(photos, boxes=boxes, out=out) == 0
    with pytest.raises(FgvcError, match=r"cannot tell whether .*p\.md\.json"):
        run(photos, boxes=boxes, out=out, retry_failed=True)
    assert run(photos, boxes=boxes, out=out, retry_failed=True, overwrite=True) == 0
    assert short(rows_in(out[0])) == ALL
