"""Boxes that are given: read from each kind of file, found for each image, placed in it, decoded once."""

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from fgvc_cli.errors import FgvcError
from fgvc_cli.predict.decoding import DecodePool, DecodeSettings, Rule
from fgvc_cli.sources.boxes import (
    BoxChoice,
    BoxFile,
    BoxMatch,
    GivenBox,
    Listed,
    NoBox,
    Region,
    each_box,
    read_boxes,
)
from fgvc_cli.sources.find import Found
from fgvc_cli.sources.frames import Frame
from fgvc_cli.sources.images import DecodedImage, Failure, read_image
from fgvc_cli.sources.stored import CannotRead, Stored

SETTINGS = DecodeSettings(Rule(32, 32, "squash"))


def write(path, document):
    path.write_text(json.dumps(document))
    return path


def md(path, images, **more):
    categories = {"1": "animal", "2": "person"}
    return write(path, {"images": images, "detection_categories": categories, "info": {}} | more)


def detections(*boxes):
    return [{"category": category, "conf": conf, "bbox": list(bbox)} for category, conf, bbox in boxes]


def given(file, image):
    return [(box.id, box.edges, box.label) for box in file.images[image].boxes]


def test_megadetector_is_read_with_failures_and_ids_that_a_choice_keeps(tmp_path):
    path = md(
        tmp_path / "d.json",
        [
            {
                "file": "a\\b.jpg",
                "detections": detections(("1", 0.9, (0.1, 0.2, 0.3, 0.4)), ("2", 0.8, (0, 0, 1, 1))),
            },
            {"file": "./c.jpg", "detections": None, "failure": "Failure image access"},
        ],
    )
    file = read_boxes(path)
    assert file.kind == "megadetector"
    (first, second) = file.images["a/b.jpg"].boxes
    assert first.edges == pytest.approx((0.1, 0.2, 0.4, 0.6)) and first.relative
    assert (first.id, first.label, first.score, first.image) == ("0", "animal", 0.9, "a\\b.jpg")
    assert file.images["c.jpg"].failure == "Failure image access"
    assert "2 boxes of 2 images" in file.notes[0] and "failed on 1" in file.notes[0]
    people = read_boxes(path, BoxChoice(categories=("PERSON",)))
    assert [box.id for box in people.images["a/b.jpg"].boxes] == ["1"]
    assert [box.id for box in read_boxes(path, BoxChoice(categories=("1",))).images["a/b.jpg"].boxes] == ["0"]
    sure = read_boxes(path, BoxChoice(conf=0.85))
    assert (len(sure.images["a/b.jpg"].boxes), sure.images["a/b.jpg"].left_out) == (1, 1)
    with pytest.raises(FgvcError, match="no category 'car'; it has animal, person"):
        read_boxes(path, BoxChoice(categories=("car",)))


def test_coco_is_read_as_a_set_and_as_results(tmp_path):
    annotations = [
        {"id": 7, "image_id": 1, "category_id": 3, "bbox": [10, 20, 30, 40]},
        {"id": 8, "image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5], "iscrowd": 1},
        {"id": 9, "image_id": 99, "category_id": 3, "bbox": [0, 0, 5, 5]},
    ]
    document = {"images": [{"id": 1, "file_name": "x/a.jpg"}], "categories": [{"id": 3, "name": "milk"}]}
    file = read_boxes(write(tmp_path / "c.json", document | {"annotations": annotations}))
    assert given(file, "x/a.jpg") == [("7", (10, 20, 40, 60), "milk")]
    assert math.isnan(file.images["x/a.jpg"].boxes[0].score)
    assert any("of crowds left out" in line for line in file.notes)
    assert any("the file does not list left out" in line for line in file.notes)
    results = [{"image_id": 42, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}]
    file = read_boxes(write(tmp_path / "r.json", results))
    match = BoxMatch(file, [Found(Path("/x/000042.jpg"), "000042.jpg")])
    (row,) = match.split(Found(Path("/x/000042.jpg"), "000042.jpg"))
    assert row.path.box.edges == (1, 2, 4, 6)


@pytest.mark.parametrize(
    ("numbers", "relative"), [("0.1,0.2,0.9,1.0", True), ("1,2,30,40", False), ("-3,0,1.5,700", False)]
)
def test_a_csv_is_in_fractions_where_nothing_is_above_one(tmp_path, numbers, relative):
    path = tmp_path / "b.csv"
    path.write_text(f"path,x1,y1,x2,y2,score,category,id\na.jpg,{numbers},0.5,cat,k1\nb.jpg,,,,,,,\n")
    file = read_boxes(path)
    (box,) = file.images["a.jpg"].boxes
    assert box.edges == tuple(map(float, numbers.split(",")))
    assert (box.relative, box.label, box.score, box.id) == (relative, "cat", 0.5, "k1")
    assert file.images["b.jpg"].boxes == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,x1,y1,x2,y2\na,0,0,1.2,0.5\n", "too small for pixels"),
        ("path,x1,y1,x2\na,0,0,1\n", "no column y2"),
        ("path,x1,y1,x2,y2\na,0,0,one,1\n", "line 2: '0,0,one,1' is no box"),
        ("path,x1,y1,x2,y2,id\na,0,0,9,9,q\na,0,0,9,9,q\n", "the id q is there twice"),
        ("path,x1,y1,x2,y2\n", "names no image"),
    ],
)
def test_a_csv_that_cannot_be_meant_is_refused(tmp_path, text, said):
    (tmp_path / "b.csv").write_text(text)
    with pytest.raises(FgvcError, match=said):
        read_boxes(tmp_path / "b.csv")


@pytest.mark.parametrize(
    "document", [{"a": 1}, "text", {"images": [{"name": "a"}]}, {"images": [], "annotations": []}]
)
def test_other_json_is_refused_in_a_line(tmp_path, document):
    with pytest.raises(FgvcError, match=r"o\.json"):
        read_boxes(write(tmp_path / "o.json", document))


def region(*edges, relative=False, margin=0.0):
    return Region(Path("a.jpg"), GivenBox("0", edges, relative, margin=margin))


def test_a_box_is_placed_with_its_margin_and_clipped():
    assert region(10, 20, 30, 40).place(100, 80)[:2] == ((10, 20, 30, 40), (10, 20, 30, 40))
    assert region(10, 20, 30, 40, margin=0.25).place(100, 80).region == (5, 15, 35, 45)
    inside = region(0.1, 0.25, 0.3, 0.5, relative=True).place(100, 80)
    assert inside.region == (10, 20, 30, 40) and inside.given == pytest.approx((10, 20, 30, 40))
    beyond = region(-5, -5, 200, 40).place(100, 80)
    assert (beyond.region, beyond.given, beyond.clipped) == ((0, 0, 100, 40), (0, 0, 100, 40), True)
    assert not region(0, 0, 100.4, 80.4).place(100, 80).clipped  # rounded by a detector
    assert region(5.2, 5.2, 5.4, 5.4).place(100, 80).region == (5, 5, 6, 6)


@pytest.mark.parametrize(
    ("edges", "said"),
    [
        ((math.nan, 0, 1, 1), "not four numbers"),
        ((5, 5, 5, 9), "is empty"),
        ((9, 5, 5, 9), "is empty"),
        ((100, 0, 120, 50), "outside the image of 100 x 80"),
    ],
)
def test_a_box_that_shows_nothing_says_why(edges, said):
    with pytest.raises(CannotRead, match=said) as caught:
        region(*edges).place(100, 80)
    assert caught.value.status == "bad_box"


def test_a_region_is_read_upright(tmp_path):
    """A box is of the image as EXIF holds it."""
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 0, 40, 10))  # above as stored; turned by EXIF 6 it is on the right
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    read = read_image(Region(tmp_path / "a.png", GivenBox("0", (10, 0, 20, 40), False)))
    assert isinstance(read, DecodedImage)
    assert read.placed.size == (20, 40)
    assert read.image.size == (10, 40)
    assert read.image.getpixel((5, 20)) == (0, 0, 255)
    gone = read_image(Region(tmp_path / "none.png", GivenBox("0", (10, 0, 20, 40), False)))
    assert isinstance(gone, Failure) and gone.status == "missing"


def boxes_for(names, path="/data/boxes/d.json"):
    images = {name: Listed((GivenBox("0", (0, 0, 1, 1), True, image=name),), image=name) for name in names}
    return BoxFile(Path(path), BoxChoice(), images, "0", "megadetector")


def matched(names, images, root="/data/photos", path="/data/boxes/d.json"):
    """What each image is called in the file; empty for none."""
    found = [Found(Path(root) / image, image) for image in images]
    match = BoxMatch(boxes_for(names, path), found)
    rows = list(each_box(found, match))
    return [row.path.image if isinstance(row.path, NoBox) else row.path.box.image for row in rows], match


@pytest.mark.parametrize(
    "names",
    [
        ["a/1.jpg", "b/1.jpg"],  # from the folder of images
        ["/data/photos/a/1.jpg", "/data/photos/b/1.jpg"],  # in full
        ["photos/a/1.jpg", "photos/b/1.jpg"],  # from the folder above
        ["D:/cards/photos/a/1.jpg", "D:/cards/photos/b/1.jpg"],  # on another machine
    ],
)
def test_paths_match_however_the_detector_wrote_them(names):
    assert matched(names, ["a/1.jpg", "b/1.jpg"])[0] == names


def test_paths_match_from_the_folder_of_the_file():
    names, match = matched(["1.jpg", "2.jpg"], ["a/1.jpg", "a/2.jpg"], path="/data/photos/a/d.json")
    assert names == ["1.jpg", "2.jpg"]
    assert match.lines == []


def test_of_several_ends_the_longest_one_counts():
    names, match = matched(["x/a/1.jpg", "x/b/1.jpg"], ["1.jpg"], root="/data/cards/b")
    assert names == ["x/b/1.jpg"]
    assert "1 image of d.json with 1 box not among the images, first x/a/1.jpg." in match.lines


def test_absolute_paths_of_a_list_match_those_of_another_machine():
    images = ["/data/cards/a/1.jpg", "/data/cards/b/1.jpg", "/data/cards/b/2.jpg"]
    names = ["D:/field/cards/a/1.jpg", "D:/field/cards/b/1.jpg", "D:/field/cards/c/2.jpg"]
    found, match = matched(names, images, root="/")
    assert found == [*names[:2], ""]
    assert any("first D:/field/cards/c/2.jpg" in line for line in match.lines)


def test_what_may_be_one_of_several_is_not_guessed():
    names, match = matched(["x/1.jpg", "y/1.jpg", "2.jpg"], ["1.jpg", "2.jpg", "3.jpg"])
    assert names == ["", "2.jpg", ""]
    assert any(
        line.startswith("1 image may be one of several in d.json, first 1.jpg") for line in match.lines
    )
    assert any(line.startswith("1 image not in d.json, first 3.jpg") for line in match.lines)
    names, match = matched(["1.jpg", "k.jpg"], ["a/1.jpg", "b/1.jpg", "k.jpg"])  # one entry, two images
    assert names == ["", "", "k.jpg"]
    assert any("2 images may be one of several" in line for line in match.lines)


def test_an_end_that_another_image_has_in_full_is_not_taken():
    names, _ = matched(["1.jpg"], ["1.jpg", "sub/1.jpg"])
    assert names == ["1.jpg", ""]


def test_a_file_of_other_images_is_refused():
    with pytest.raises(FgvcError, match=r"None of the 2 images .* it names q\.jpg, an image is a\.jpg"):
        matched(["q.jpg"], ["a.jpg", "b.jpg"])


def test_frames_take_the_boxes_of_their_time():
    boxes = tuple(GivenBox(str(i), (0, 0, 1, 1), True, frame=i, image="v.mp4") for i in (0, 9, 11, 31))
    listed = {"v.mp4": Listed(boxes, rate=10.0, image="v.mp4")}
    file = BoxFile(Path("/d.json"), BoxChoice(), listed, "0", "megadetector")
    samples = [Found(Frame(Path("/v.mp4"), n, 1.0), f"v.mp4#{n}") for n in range(4)]
    rows = list(each_box(samples, BoxMatch(file, samples)))
    ids = [row.path.reason if isinstance(row.path, NoBox) else row.path.box.id for row in rows]
    # Frames 9 and 11 are as near to the first second: the earlier one. None is near the second one.
    assert ids == ["0", "9", "no box is of this frame", "31"]
    pages = [Found(Frame(Path("/p.gif"), n), f"p.gif#{n}") for n in range(2)]
    listed = {"p.gif": Listed((GivenBox("0", (0, 0, 1, 1), True),))}
    file = BoxFile(Path("/d.json"), BoxChoice(), listed, "0", "csv")
    assert [isinstance(row.path, NoBox) for row in each_box(pages, BoxMatch(file, pages))] == [False, True]


@dataclass(frozen=True, slots=True)
class Counted(Stored):
    """Counts how often it is opened."""

    name: str

    def open(self):
        OPENED.append(self.name)
        stream = io.BytesIO()
        Image.new("RGB", (30, 20), "red").save(stream, "PNG")
        return io.BytesIO(stream.getvalue())


OPENED: list[str] = []


@pytest.mark.parametrize("workers", [0, 2])
def test_the_boxes_of_an_image_are_cut_from_one_decoded_copy(workers):
    OPENED.clear()
    edges = [(0, 0, 5, 5), (5, 5, 25, 15), (40, 0, 50, 9), (0, 0, 30, 20)]
    found = [
        Found(Region(Counted(f"i{image}"), GivenBox(str(i), box, False)), f"i{image}")
        for image in range(6)
        for i, box in enumerate(edges)
    ]
    pool = DecodePool(SETTINGS, workers=workers)
    try:
        loaded = [future.result() for future in [pool.load(i, each) for i, each in enumerate(found)]]
    finally:
        pool.close()
    assert sorted(OPENED) == [f"i{image}" for image in range(6)]
    assert [item.decoded.placed and item.decoded.placed.region for item in loaded] == [
        (0, 0, 5, 5),
        (5, 5, 25, 15),
        None,
        (0, 0, 30, 20),
    ] * 6
    assert [item.decoded.failure is None for item in loaded] == [True, True, False, True] * 6
