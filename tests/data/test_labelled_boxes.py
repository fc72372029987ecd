"""Labelled sets of boxes: classes, splits, what is said of images without any; then trained and measured."""

import csv
import json
from types import SimpleNamespace

import pytest
from conftest import train_options
from PIL import Image

import fgvc_cli
from fgvc_cli.config import TrainConfig
from fgvc_cli.data.labelled import load_labelled, take_boxes
from fgvc_cli.data.listing import whole_images
from fgvc_cli.data.loaders import LabelledImages
from fgvc_cli.datasets.check import check_set, summary
from fgvc_cli.datasets.registry import load_data
from fgvc_cli.engine.checkpoint import choose_data, load_checkpoint
from fgvc_cli.engine.train import train
from fgvc_cli.errors import FgvcError
from fgvc_cli.report.wrong_labels import _groups
from fgvc_cli.sources.boxes import BoxChoice, read_boxes

COLOURS = ("red", "lime", "blue")


def write_table(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["path", "x1", "y1", "x2", "y2", "category"], *rows])
    return path


@pytest.fixture
def shelf(tmp_path):
    """Twelve images in one folder, each with three boxes of three colours."""
    folder, rows = tmp_path / "shelf", []
    folder.mkdir()
    for number in range(12):
        image = Image.new("RGB", (96, 32), "white")
        for place in range(3):
            colour = COLOURS[(place + number) % 3]
            image.paste(colour, (32 * place, 0, 32 * place + 32, 32))
            rows.append([f"{number:02}.png", 32 * place, 0, 32 * place + 32, 32, colour])
        image.save(folder / f"{number:02}.png")
    write_table(tmp_path / "shelf.csv", rows)
    return folder


def load(data, boxes, *, for_training=True, **settings):
    config = TrainConfig(model="none", data=str(data), boxes=str(boxes), **settings)
    return load_data(config, for_training=for_training)


def test_in_a_plain_folder_each_box_has_its_own_class_and_images_stay_whole(shelf, tmp_path):
    labelled = load(shelf, tmp_path / "shelf.csv")
    assert labelled.classes == ("blue", "lime", "red")
    assert sum(labelled.counts().values()) == 36
    images = {split: {example.path for example in part} for split, part in labelled.splits.items()}
    assert all(images.values())
    assert sum(map(len, images.values())) == 12  # none in two splits
    for part in labelled.splits.values():
        for example in part:
            place = int(example.box.edges[0]) // 32
            colour = COLOURS[(place + int(example.path[:2])) % 3]
            assert labelled.classes[example.label] == colour
    assert any(line.startswith("Boxes divided by image: ") for line in labelled.notes)
    again = load(shelf, tmp_path / "shelf.csv")
    assert again.sha256() == labelled.sha256()
    assert load(shelf, tmp_path / "shelf.csv", box_margin=0.2).sha256() != labelled.sha256()
    whole = load(shelf, tmp_path / "shelf.csv", for_training=False)
    assert whole.counts() == {"train": 0, "val": 0, "test": 36}


def test_split_folders_and_boxes_without_a_category(shelf, tmp_path):
    for number in range(12):
        split = "train" if number < 8 else "val" if number < 10 else "test"
        (shelf / split).mkdir(exist_ok=True)
        (shelf / f"{number:02}.png").rename(shelf / split / f"{number:02}.png")
    labelled = load(shelf, tmp_path / "shelf.csv", box_labels="box")
    assert labelled.counts() == {"train": 24, "val": 6, "test": 6}
    rows = [["00.png", 0, 0, 32, 32, ""], ["01.png", 0, 0, 32, 32, "x"]]
    with pytest.raises(FgvcError, match="1 box without a category, first of train/00.png"):
        load(shelf, write_table(tmp_path / "bare.csv", rows), box_labels="box")
    with pytest.raises(FgvcError, match="one category only"):
        load(shelf, write_table(tmp_path / "one.csv", rows[1:]), box_labels="box")


@pytest.fixture
def classes(tmp_path):
    """Ten images of each of two classes, the class right, something else left."""
    for name, colour in (("green", "lime"), ("red", "red")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(10):
            image = Image.new("RGB", (64, 32), "blue")
            image.paste(colour, (32, 0, 64, 32))
            image.save(tmp_path / "set" / name / f"{number}.png")
    return tmp_path / "set"


def boxes_of(classes, path, *, skip=()):
    images = []
    for image in sorted(classes.rglob("*.png")):
        name = image.relative_to(classes).as_posix()
        right = {"category": "1", "conf": 0.9, "bbox": [0.5, 0, 0.5, 1]}
        found = [] if name in skip else [right, {**right, "conf": 0.6}]
        images.append({"file": name, "detections": found})
    path.write_text(json.dumps({"images": images, "detection_categories": {"1": "animal"}}))
    return path


def test_with_class_folders_a_box_is_of_the_class_of_its_image(classes, tmp_path):
    boxes = boxes_of(classes, tmp_path / "d.json", skip=("red/3.png",))
    whole = load_labelled(classes)
    labelled = load(classes, boxes)
    assert labelled.classes == ("green", "red")
    for split, part in whole.splits.items():
        kept = [example for example in part if example.path != "red/3.png"]
        assert [(e.path, e.label) for e in labelled.splits[split]] == [
            (e.path, e.label) for e in kept for _ in range(2)
        ]
    assert "1 image without a box left out." in labelled.notes
    sure = load(classes, boxes, box_conf=0.7)
    assert sum(sure.counts().values()) == 19
    gone = boxes_of(classes, tmp_path / "g.json", skip=[f"red/{n}.png" for n in range(10)])
    with pytest.raises(FgvcError, match="1 of 2 classes have no box to train on: red"):
        load(classes, gone)


def test_boxes_of_a_set_of_boxes_are_exchanged_by_category(shelf, tmp_path):
    labelled = load(shelf, tmp_path / "shelf.csv")
    some = [["00.png", 0, 0, 32, 32, "red"], *([f"{n:02}.png", 0, 0, 32, 32, "lime"] for n in range(1, 12))]
    other = read_boxes(write_table(tmp_path / "other.csv", [*some, ["11.png", 0, 0, 9, 9, "mauve"]]))
    with pytest.raises(FgvcError, match="'mauve' is no class of shelf"):
        take_boxes(labelled, other)
    moved = read_boxes(tmp_path / "shelf.csv", BoxChoice(margin=0.1))
    exchanged = take_boxes(labelled, moved)
    for split, part in labelled.splits.items():
        labels = {(e.path, e.box.id): e.label for e in part}
        assert {(e.path, e.box.id): e.label for e in exchanged.splits[split]} == labels


def test_what_is_learnt_from_is_the_inside_of_the_box(classes, tmp_path):
    labelled = load(classes, boxes_of(classes, tmp_path / "d.json"))
    seen = LabelledImages(labelled.root, labelled.splits["train"], lambda image: image.getpixel((1, 1)))
    wanted = {"green": (0, 255, 0), "red": (255, 0, 0)}
    for index in range(len(seen)):
        _, label, pixel = seen[index]
        assert pixel == wanted[labelled.classes[label]]


def train_small(out, **data):
    """One epoch of a tiny network on boxes."""
    small = {"model": "timm-test_resnet", "epochs": 1, "pretrained": False, "input_px": 32, "batch_size": 8}
    train.run(train_options(**small, **data, out=out, workers=0, quiet=True))


def test_train_eval_index_and_explain_on_boxes(classes, tmp_path, monkeypatch):
    boxes = boxes_of(classes, tmp_path / "d.json")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    train_small(out, data=str(classes), boxes=boxes)
    config = json.loads((out / "config.json").read_text())
    assert (config["boxes"], config["box_category"]) == (str(boxes), [])
    quiet = {"weights": str(out), "quiet": True, "workers": 0}
    own = fgvc_cli.evaluate(**quiet, out=tmp_path / "measured")
    assert own.metrics["images"] == 8  # two boxes of each of four test images
    rows = list(csv.DictReader((tmp_path / "measured/predictions.csv").open()))
    assert [row["box_id"] for row in rows] == ["0", "1"] * 4
    assert len({(row["path"], row["box_id"]) for row in rows}) == 8
    sure = fgvc_cli.evaluate(**quiet, boxes=boxes, box_conf=0.7, against=str(out))
    assert sure.metrics["images"] == sure.document["against"]["images"] == 4
    elsewhere = fgvc_cli.evaluate(**quiet, data=str(classes / "../set"), boxes=boxes, split="all")
    assert elsewhere.metrics["images"] == 40
    indexed = fgvc_cli.index(**quiet, out=tmp_path / "i.h5", data=str(classes), boxes=boxes, split="all")
    assert indexed.images == 40
    explained = fgvc_cli.explain(
        classes / "red/0.png",
        weights=str(out),
        boxes=boxes,
        method="occlusion",
        out=tmp_path / "ex",
        quiet=True,
    )
    assert explained.statuses == {"ok": 2}
    table = list(csv.DictReader((tmp_path / "ex/index.csv").open()))
    assert [(row["box_id"], row["in_x1"], row["width"], row["picture"]) for row in table] == [
        (str(n), "32.0", "64", table[n]["picture"]) for n in (0, 1)
    ]
    assert len({row["picture"] for row in table}) == 2


def test_a_table_with_boxes_needs_no_other_file(shelf, tmp_path):
    lines = (tmp_path / "shelf.csv").read_text().splitlines()
    lines[0] = "path,x1,y1,x2,y2,label"
    (tmp_path / "own.csv").write_text("\n".join([lines[0], *(f"shelf/{line}" for line in lines[1:])]))
    labelled = load_labelled(tmp_path / "own.csv", box_margin=0.25)
    assert labelled.classes == ("blue", "lime", "red") and sum(labelled.counts().values()) == 36
    images = [{example.path for example in part} for part in labelled.splits.values()]
    assert all(images) and sum(map(len, images)) == 12, "all boxes of an image are in one split"
    assert {example.box.margin for example in labelled.splits["train"]} == {0.25}
    assert (
        "own.csv: 36 lines are boxes; each is an image of its own, cut out with a margin of 0.25"
        in "".join(labelled.notes)
    )
    with pytest.raises(FgvcError, match="own has boxes of its own, and --boxes .* names others"):
        load(tmp_path / "own.csv", tmp_path / "shelf.csv")
    (tmp_path / "whole.csv").write_text("path,label\nshelf/00.png,a\nshelf/01.png,b\n")
    with pytest.raises(FgvcError, match="--box-margin is for boxes, and .*whole.csv has none"):
        load_labelled(tmp_path / "whole.csv", for_training=False, box_margin=0.1)

    # Trained, measured and indexed by box, like a set with a file of boxes beside it.
    out = tmp_path / "run"
    train_small(out, data=str(tmp_path / "own.csv"), box_margin=0.25)
    quiet = {"weights": str(out), "quiet": True, "workers": 0}
    measured = fgvc_cli.evaluate(**quiet, split="all", out=tmp_path / "measured")
    assert measured.metrics["images"] == 36
    rows = list(csv.DictReader((tmp_path / "measured/predictions.csv").open()))
    assert {row["box_id"] for row in rows} == {"0", "1", "2"}
    wider = fgvc_cli.evaluate(**quiet, split="all", box_margin=0.5)
    assert wider.metrics["images"] == 36 and wider.metrics["nll"] != measured.metrics["nll"]
    elsewhere = {"data": str(tmp_path / "own.csv"), "box_margin": 0.1, "split": "all"}
    assert fgvc_cli.index(**quiet, out=tmp_path / "i.h5", **elsewhere).images == 36

    more = {"add": tmp_path / "own.csv", "box_margin": 0.1}
    assert fgvc_cli.index(str(out), quiet=True, workers=0, out=tmp_path / "i.h5", **more).images == 36

    # The margin of the training, or the one that is asked for.
    checkpoint = load_checkpoint(out / "model.safetensors")
    for asked, margin in ((None, 0.25), (0.5, 0.5)):
        options = SimpleNamespace(boxes=None, box_margin=asked)
        chosen, own = choose_data(checkpoint, str(tmp_path / "own.csv"), None, None, "test", options)
        assert own and {e.box.margin for e in chosen.splits["test"]} == {margin}


def test_boxes_of_one_image_are_no_copies_and_no_contradictions_of_each_other(shelf, tmp_path):
    lines = (tmp_path / "shelf.csv").read_text().splitlines()[1:]
    (tmp_path / "own.csv").write_text(
        "\n".join(["path,x1,y1,x2,y2,label", *(f"shelf/{line}" for line in lines)])
    )
    labelled = load_labelled(tmp_path / "own.csv", for_training=False)
    alone = whole_images(labelled)
    assert sum(alone.counts().values()) == 12 and {e.labels for e in alone.splits["test"]} == {(0, 1, 2)}
    # Twelve images of three pictures: each group is of images, none twice.
    report = check_set(labelled, workers=0)
    groups = [[member.example.path for member in group.members] for group in report.groups]
    assert [len(own) for own in groups] == [len(set(own)) for own in groups] == [4, 4, 4]
    assert not any(group.contradicts for group in report.groups)
    assert "12 images" in summary(report, None)
    assert _groups(["a", "b", "a", "c"], [("b", "c")]).tolist() == [0, 1, 0, 1]
