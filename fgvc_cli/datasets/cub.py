"""Caltech-UCSD Birds-200-2011 (CUB): 200 bird species.

Tree (as ``CUB_200_2011.tgz`` unpacks)::

    CUB_200_2011/
      classes.txt                class id, name:  1 001.Black_footed_Albatross
      images.txt                 image id, path:  1 001.Black_footed_Albatross/Black_..._0046_18.jpg
      image_class_labels.txt     image id, class id
      train_test_split.txt       image id, 1 for train or 0 for test
      bounding_boxes.txt         image id, x, y, width, height: for evaluation only
      parts/parts.txt            part id, name; parts/part_locs.txt: image id, part id, x, y, 1 if visible
      images/001.Black_footed_Albatross/...

Counts: 200 classes, 5,994 train, 5,794 test, official; val is held out of train.
Class names are the official ones without the number, underscores kept: ``Black_footed_Albatross``.

Wah, Branson, Welinder, Perona, Belongie: The Caltech-UCSD Birds-200-2011 Dataset. Technical Report
CNS-TR-2011-001, California Institute of Technology, 2011. The images are for non-commercial research
and education. https://www.vision.caltech.edu/datasets/cub_200_2011/
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fgvc_cli.data.listing import Example, LabelledSet
from fgvc_cli.datasets.boxes import TrueBoxes, check_box
from fgvc_cli.datasets.entries import Archive, KnownSet, read_pairs


def read_cub(root: Path) -> LabelledSet:
    """The official listing, in the order of the image ids of ``images.txt``.

    Raises:
        ValueError: the list files disagree on which images there are, or a flag is not 0 or 1.
    """
    path_of = dict(read_pairs(root / "images.txt"))
    class_of = dict(read_pairs(root / "image_class_labels.txt"))
    flag_of = dict(read_pairs(root / "train_test_split.txt"))
    if not path_of.keys() == class_of.keys() == flag_of.keys():
        raise ValueError("images.txt, image_class_labels.txt and train_test_split.txt list different images")
    if not set(flag_of.values()) <= {"0", "1"}:
        raise ValueError("train_test_split.txt has flags other than 0 and 1")
    classes = read_pairs(root / "classes.txt")
    label_of = {class_id: label for label, (class_id, _) in enumerate(classes)}

    def split(flag: str) -> tuple[Example, ...]:
        chosen = (image for image in path_of if flag_of[image] == flag)
        return tuple(Example(f"images/{path_of[image]}", label_of[class_of[image]]) for image in chosen)

    names = tuple(name.partition(".")[2] for _, name in classes)
    return LabelledSet("cub", root, names, {"train": split("1"), "val": (), "test": split("0")})


ENTRIES = (
    KnownSet(
        key="cub",
        title="CUB-200-2011",
        folder="CUB_200_2011",
        needs=("classes.txt", "images.txt", "image_class_labels.txt", "train_test_split.txt", "images/"),
        classes=200,
        train=5994,
        test=5794,
        source="https://www.vision.caltech.edu/datasets/cub_200_2011/",
        load=read_cub,
        archives=(
            Archive(
                "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                md5="97eceeb196236b17998738112f37df78",
            ),
        ),
    ),
)


def read_cub_boxes(root: Path, paths: Iterable[str]) -> dict[str, TrueBoxes]:
    """The bird's box of each image, from ``bounding_boxes.txt``, and its parts, from ``parts/part_locs.txt``.

    Raises:
        ValueError, KeyError: a line that is not five numbers, or an image that ``images.txt`` lacks.
    """
    path_of, wanted = dict(read_pairs(root / "images.txt")), set(paths)
    points = _read_points(root)
    found = {}
    for image, corner in read_pairs(root / "bounding_boxes.txt"):
        if (path := f"images/{path_of[image]}") in wanted:
            x, y, width, height = (float(value) for value in corner.split())
            box = check_box((x, y, x + width, y + height), f"image {image}")
            found[path] = TrueBoxes((box,), {}, points.get(image, {}))
    return found


def _read_points(root: Path) -> dict[str, dict[str, tuple[float, float]]]:
    """Image id -> its visible parts of 15, such as ``beak``; empty where ``parts/`` is not there."""
    if not (root / "parts" / "part_locs.txt").is_file():
        return {}
    names = dict(read_pairs(root / "parts" / "parts.txt"))
    points: dict[str, dict[str, tuple[float, float]]] = {}
    for image, text in read_pairs(root / "parts" / "part_locs.txt"):
        part, x, y, visible = text.split()
        if visible == "1":
            points.setdefault(image, {})[names[part]] = (float(x), float(y))
    return points
