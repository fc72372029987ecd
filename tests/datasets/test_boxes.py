"""Known boxes, from tiny trees in exactly the published layouts and from a table of one's own."""

from __future__ import annotations

import pytest

from fgvc_cli.aviary.dataset import PARTS, read_boxes, write_aviary
from fgvc_cli.datasets.registry import load_boxes
from fgvc_cli.errors import FgvcError

DOG = """<annotation>
  <folder>02085620</folder>
  <filename>n02085620_{name}</filename>
  <size><width>360</width><height>300</height><depth>3</depth></size>
  {objects}
</annotation>
"""
OBJECT = """<object>
    <name>Chihuahua</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>
    <bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>
  </object>"""


def test_cub_gives_corner_and_size(tmp_path):
    (tmp_path / "images.txt").write_text("1 001.Gull/a.jpg\n2 001.Gull/b.jpg\n")
    (tmp_path / "bounding_boxes.txt").write_text("1 60.0 27.0 325.0 304.0\n2 139.0 30.0 153.0 264.0\n")
    boxes = load_boxes(tmp_path, ["images/001.Gull/b.jpg"])
    assert boxes == {"images/001.Gull/b.jpg": (((139, 30, 292, 294),), {}, {})}
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "parts.txt").write_text("2 beak\n11 right eye\n")
    (tmp_path / "parts" / "part_locs.txt").write_text("2 2 150.5 40.0 1\n2 11 0.0 0.0 0\n1 2 9.0 9.0 1\n")
    assert load_boxes(tmp_path, boxes)["images/001.Gull/b.jpg"].points == {"beak": (150.5, 40.0)}


def test_aircraft_counts_from_one_and_includes_the_end(tmp_path):
    (tmp_path / "images_box.txt").write_text("1025794 3 144 998 431\n0747566 1 1 10 20\n")
    boxes = load_boxes(tmp_path, ["images/1025794.jpg", "images/0747566.jpg", "images/9.jpg"])
    assert boxes["images/1025794.jpg"].objects == ((2, 143, 998, 431),)
    assert boxes["images/0747566.jpg"].objects == ((0, 0, 10, 20),)
    assert len(boxes) == 2


def test_dogs_may_be_several(tmp_path):
    folder = tmp_path / "Annotation" / "n02085620-Chihuahua"
    folder.mkdir(parents=True)
    objects = "".join(OBJECT.format(*box) for box in ((25, 10, 276, 200), (300, 1, 350, 99)))
    (folder / "n02085620_7").write_text(DOG.format(name="7", objects=objects))
    (folder / "n02085620_8").write_text(DOG.format(name="8", objects=""))
    paths = [f"Images/n02085620-Chihuahua/n02085620_{i}.jpg" for i in (7, 8, 9)]
    boxes = load_boxes(tmp_path, paths)
    assert boxes == {paths[0]: (((25, 10, 276, 200), (300, 1, 350, 99)), {}, {})}


def test_an_aviary_reads_as_its_own_reader_does(tmp_path):
    write_aviary(tmp_path / "birds", species=2, train=1, val=0, test=1, size_px=64)
    truths = read_boxes(tmp_path / "birds")
    boxes = load_boxes(tmp_path / "birds", truths)
    assert boxes.keys() == truths.keys()
    for path, truth in truths.items():
        assert boxes[path] == ((truth.box,), truth.parts, {})
        assert tuple(boxes[path].parts) == PARTS


def test_a_table_of_ones_own(tmp_path):
    (tmp_path / "boxes.csv").write_text(
        "note,path,x1,y1,x2,y2,eye_x1,eye_y1,eye_x2,eye_y2\n"
        "x,a.jpg,0,0,9.5,9,1,1,2,2\nx,a.jpg,10,0,19,9,,,,\nx,b.jpg,0,0,1,1,,,,\n"
    )
    boxes = load_boxes(tmp_path, ["a.jpg", "none.jpg"])
    assert boxes == {"a.jpg": (((0, 0, 9.5, 9), (10, 0, 19, 9)), {"eye": (1, 1, 2, 2)}, {})}


def test_a_set_without_boxes_has_none(tmp_path):
    assert load_boxes(tmp_path, ["a.jpg"]) == {}


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("boxes.csv", "path,x1,y1,x2\na.jpg,0,0,1\n", "no column y2"),
        ("boxes.csv", "path,x1,y1,x2,y2\na.jpg,0,0,1,x\n", "line 2"),
        ("boxes.csv", "path,x1,y1,x2,y2\na.jpg,5,0,1,9\n", "line 2"),
        ("boxes.csv", "path,x1,y1,x2,y2\na.jpg,,,,\n", "line 2 has no box"),
        ("boxes.csv", "path,x1,y1,x2,y2\na.jpg,0,0,nan,9\n", "line 2"),
        ("images_box.txt", "a 1 2 3\n", "images_box.txt"),
        ("bounding_boxes.txt", "1 1 2 3 4\n", "bounding_boxes.txt"),
    ],
)
def test_boxes_that_do_not_read_are_user_errors(name, text, names, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(FgvcError, match=names) as caught:
        load_boxes(tmp_path, ["a.jpg", "images/a.jpg"])
    assert "move it away" in str(caught.value)


def test_a_cut_xml_is_a_user_error(tmp_path):
    folder = tmp_path / "Annotation" / "n1-Pug"
    folder.mkdir(parents=True)
    (folder / "n1_1").write_text("<annotation><object>")
    with pytest.raises(FgvcError, match="Annotation"):
        load_boxes(tmp_path, ["Images/n1-Pug/n1_1.jpg"])
