"""Published sets that bring boxes: CUB, Cars, Dogs and Aircraft, with their trees, counts and papers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from fgvc_cli.data.listing import Example, LabelledSet
from fgvc_cli.data.taxonomy import Taxonomy
from fgvc_cli.datasets.entries import (
    BOXES_CSV,
    Archive,
    KnownSet,
    TrueBoxes,
    check_box,
    known_taxonomy,
    read_box_table,
    read_lines,
    read_mat,
    read_pairs,
)

# Caltech-UCSD Birds-200-2011 (CUB): 200 bird species.
#
# Tree (as ``CUB_200_2011.tgz`` unpacks)::
#
#     CUB_200_2011/
#       classes.txt                class id, name:  1 001.Black_footed_Albatross
#       images.txt                 image id, path:  1 001.Black_footed_Albatross/Black_..._0046_18.jpg
#       image_class_labels.txt     image id, class id
#       train_test_split.txt       image id, 1 for train or 0 for test
#       bounding_boxes.txt         image id, x, y, width, height: for evaluation only
#       parts/parts.txt            part id, name; parts/part_locs.txt: image id, part id, x, y, 1 if visible
#       images/001.Black_footed_Albatross/...
#
# Counts: 200 classes, 5,994 train, 5,794 test, official; val is held out of train.
# Class names are the official ones without the number, underscores kept: ``Black_footed_Albatross``. The
# taxonomy has one rank, ``group``: the last word of the name, ``Albatross``.
#
# Wah, Branson, Welinder, Perona, Belongie: The Caltech-UCSD Birds-200-2011 Dataset. Technical Report
# CNS-TR-2011-001, California Institute of Technology, 2011. The images are for non-commercial research
# and education. https://www.vision.caltech.edu/datasets/cub_200_2011/


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
    # What birders call a group, by English names: no rank of biology.
    groups = {name: (name.rpartition("_")[2],) for name in names}
    tree, notes = known_taxonomy(("group",), groups, names)
    splits = {"train": split("1"), "val": (), "test": split("0")}
    return LabelledSet("cub", root, names, splits, notes=notes, taxonomy=tree)


_CUB = (
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
    points = _read_cub_points(root)
    found = {}
    for image, corner in read_pairs(root / "bounding_boxes.txt"):
        if (path := f"images/{path_of[image]}") in wanted:
            x, y, width, height = (float(value) for value in corner.split())
            box = check_box((x, y, x + width, y + height), f"image {image}")
            found[path] = TrueBoxes((box,), {}, points.get(image, {}))
    return found


def _read_cub_points(root: Path) -> dict[str, dict[str, tuple[float, float]]]:
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


# Stanford Cars: 196 car models by make, model and year.
#
# It comes in four layouts, each with boxes; images lie in ``cars_train/`` or in ``cars_train/cars_train/``::
#
#     stanford_cars/                       as torchvision's ``StanfordCars`` reads it
#       devkit/cars_meta.mat               class_names: 196 names
#       devkit/cars_train_annos.mat        annotations: bbox_x1 bbox_y1 bbox_x2 bbox_y2 class fname
#       cars_test_annos_withlabels.mat     the same, for test; or in devkit/
#       cars_train/00001.jpg ...           cars_test/00001.jpg ...
#
#     stanford_cars/                       with one list for both splits
#       cars_annos.mat                     class_names; annotations: relative_im_path bbox_... class test
#       car_ims/000001.jpg ...
#
# The nested copy on Kaggle brings ``cars_annos.mat`` beside ``cars_train/cars_train/``. That list numbers the
# images of ``car_ims/``, in another order: without the devkit nothing says which image is which, so it is
# refused rather than read with wrong labels.
#
# Counts: 196 classes, 8,144 train, 8,041 test, official; val is held out of train. In the files classes
# count from 1. The test annotations inside the devkit have no labels, hence the second file.
#
# Krause, Stark, Deng, Fei-Fei: 3D Object Representations for Fine-Grained Categorization. 3dRR workshop,
# ICCV 2013. The original page, https://ai.stanford.edu/~jkrause/cars/car_dataset.html, has gone offline;
# https://github.com/pytorch/vision/issues/7545 collects how to put the tree together.

_DEVKIT = "devkit/cars_train_annos.mat"
_ONE_LIST = "cars_annos.mat"
_WITH_LABELS = "cars_test_annos_withlabels.mat"
CAR_BOX_FILES = (_DEVKIT, _ONE_LIST)
"""Either marks a folder whose boxes ``read_car_boxes`` reads."""


class _Car(NamedTuple):
    split: str
    path: str
    row: Any


def read_cars(root: Path) -> LabelledSet:
    """The official listing of any layout; class names as in the MATLAB files.

    Raises:
        ValueError: a list whose images are not in its folders.
    """
    one_list = not (root / _DEVKIT).is_file()
    source = root / _ONE_LIST if one_list else root / "devkit" / "cars_meta.mat"
    names = np.atleast_1d(read_mat(source)["class_names"])
    splits: dict[str, list[Example]] = {"train": [], "val": [], "test": []}
    for car in _cars(root):
        # int() first: the classes are stored as uint8
        splits[car.split].append(Example(car.path, int(car.row["class"]) - 1))
    listed = {split: tuple(examples) for split, examples in splits.items()}
    return LabelledSet("cars", root, tuple(str(name) for name in names), listed)


def _cars(root: Path) -> list[_Car]:
    if (root / _DEVKIT).is_file():
        beside = root / _WITH_LABELS
        test = beside if beside.is_file() else root / "devkit" / _WITH_LABELS
        files = (("train", root / _DEVKIT), ("test", test))
        return [
            _Car(split, f"{_car_folder(root, f'cars_{split}')}/{row['fname']}", row)
            for split, file in files
            for row in _car_rows(file)
        ]
    cars = [
        _Car("test" if int(row["test"]) else "train", str(row["relative_im_path"]), row)
        for row in _car_rows(root / _ONE_LIST)
    ]
    if not (root / "car_ims").is_dir() and not all((root / car.path).is_file() for car in cars):
        raise ValueError(
            f"{_ONE_LIST} numbers the images of car_ims/, not those of cars_train/ and cars_test/: put "
            f"devkit/ and {_WITH_LABELS} beside it"
        )
    return cars


def _car_rows(file: Path) -> Any:
    return np.atleast_1d(read_mat(file)["annotations"])


def _car_folder(root: Path, name: str) -> str:
    """Where the images of a split lie: Kaggle's copy has the folder twice."""
    return f"{name}/{name}" if (root / name / name).is_dir() else name


def read_car_boxes(root: Path, paths: Iterable[str]) -> dict[str, TrueBoxes]:
    """The car's box of each image. The files count pixels from 1 and include the last.

    Raises:
        ValueError, KeyError: lists that do not read, or a box that is none.
    """
    wanted = set(paths)
    found = {}
    for _, path, row in _cars(root):
        if path in wanted:
            x1, y1, x2, y2 = (float(row[f"bbox_{corner}"]) for corner in ("x1", "y1", "x2", "y2"))
            found[path] = TrueBoxes((check_box((x1 - 1, y1 - 1, x2, y2), path),), {})
    return found


_CAR_META = ("devkit/cars_meta.mat", _DEVKIT)
_CAR_FOLDERS = ("cars_train/", "cars_test/")

_CARS = (
    KnownSet(
        key="cars",
        title="Stanford Cars",
        folder="stanford_cars",
        needs=(*_CAR_META, _WITH_LABELS, *_CAR_FOLDERS),
        other_needs=(
            (*_CAR_META, f"devkit/{_WITH_LABELS}", *_CAR_FOLDERS),
            (_ONE_LIST, "car_ims/"),
            (_ONE_LIST, *_CAR_FOLDERS),
        ),
        classes=196,
        train=8144,
        test=8041,
        source="a mirror such as torchvision-stanford-cars on Kaggle (the original page is offline)",
        load=read_cars,
    ),
)


# Stanford Dogs: 120 breeds.
#
# ITS IMAGES COME FROM IMAGENET, so a backbone pretrained on ImageNet has seen them, the test images too:
# scores of such backbones are inflated here. Say so beside every number.
#
# Tree (``images.tar`` and ``lists.tar``, unpacked into one folder)::
#
#     stanford_dogs/
#       train_list.mat  test_list.mat      file_list: n02085620-Chihuahua/n02085620_5927.jpg; labels: from 1;
#                                          or both in lists/
#       Images/n02085620-Chihuahua/n02085620_5927.jpg
#       Annotation/n02085620-Chihuahua/n02085620_5927     XML, a box for each dog: for evaluation only
#
# Counts: 120 classes, 12,000 train, 8,580 test, official; val is held out of train.
# Class names are the folder names without the WordNet id, underscores kept: ``Norwegian_elkhound``.
#
# Khosla, Jayadevaprakash, Yao, Fei-Fei: Novel Dataset for Fine-Grained Image Categorization. FGVC
# workshop, CVPR 2011. http://vision.stanford.edu/aditya86/ImageNetDogs/


def read_dogs(root: Path) -> LabelledSet:
    """The official listing.

    Raises:
        ValueError: a label that stands for two folders, or a list with more files than labels.
    """
    splits: dict[str, tuple[Example, ...]] = {"train": (), "val": (), "test": ()}
    folder_of: dict[int, str] = {}
    for split in ("train", "test"):
        listed = read_mat(_dogs_list_file(root, split))
        examples = []
        pairs = zip(np.atleast_1d(listed["file_list"]), np.atleast_1d(listed["labels"]), strict=True)
        for file, number in pairs:
            label, folder = int(number) - 1, str(file).partition("/")[0]
            if folder_of.setdefault(label, folder) != folder:
                raise ValueError(f"label {label + 1} is both {folder_of[label]} and {folder}")
            examples.append(Example(f"Images/{file}", label))
        splits[split] = tuple(examples)
    # only the first hyphen ends the id: n02099267-flat-coated_retriever
    classes = tuple(folder_of[label].partition("-")[2] for label in sorted(folder_of))
    return LabelledSet("dogs", root, classes, splits)


def _dogs_list_file(root: Path, split: str) -> Path:
    """Where lists.tar was unpacked: here, or in ``lists/``."""
    below = root / "lists" / f"{split}_list.mat"
    return below if below.is_file() else root / f"{split}_list.mat"


_DOGS = (
    KnownSet(
        key="dogs",
        title="Stanford Dogs",
        folder="stanford_dogs",
        needs=("train_list.mat", "test_list.mat", "Images/"),
        classes=120,
        train=12000,
        test=8580,
        source="http://vision.stanford.edu/aditya86/ImageNetDogs/ (images.tar, lists.tar)",
        load=read_dogs,
        other_needs=(("lists/train_list.mat", "lists/test_list.mat", "Images/"),),
        caveat="The images of Stanford Dogs are ImageNet's: models pretrained there have seen its test.",
        archives=(
            Archive("http://vision.stanford.edu/aditya86/ImageNetDogs/images.tar", into="stanford_dogs"),
            Archive("http://vision.stanford.edu/aditya86/ImageNetDogs/lists.tar", into="stanford_dogs"),
        ),
    ),
)


def read_dogs_boxes(root: Path, paths: Iterable[str]) -> dict[str, TrueBoxes]:
    """The boxes of the dogs in each image, from its XML below ``Annotation`` (unpacked annotation.tar).

    Raises:
        ValueError, SyntaxError: not such an XML.
    """
    found = {}
    for path in paths:
        file = (root / "Annotation").joinpath(*Path(path).with_suffix("").parts[1:])
        if not file.is_file():
            continue
        boxes = []
        for box in ElementTree.parse(file).getroot().iterfind("object/bndbox"):
            x1, y1, x2, y2 = (float(box.findtext(name, "nan")) for name in ("xmin", "ymin", "xmax", "ymax"))
            boxes.append(check_box((x1, y1, x2, y2), file.name))
        if boxes:
            found[path] = TrueBoxes(tuple(boxes), {})
    return found


# FGVC-Aircraft 2013b: 100 aircraft variants, of 70 families, by 30 manufacturers.
#
# Tree (as ``fgvc-aircraft-2013b.tar.gz`` unpacks)::
#
#     fgvc-aircraft-2013b/data/
#       variants.txt                     one variant per line: 707-320
#       images_variant_trainval.txt      image id, variant: 1025794 707-320
#       images_variant_test.txt          the same, for test
#       families.txt  images_family_trainval.txt  images_family_test.txt
#       manufacturers.txt  images_manufacturer_trainval.txt  images_manufacturer_test.txt
#       images_box.txt                   image id, xmin ymin xmax ymax: for evaluation only
#       images/1025794.jpg
#
# Counts: 6,667 train (the official train and val together, as papers train on), 3,333 test; 100 classes as
# ``aircraft``, which is what papers report, 70 as ``aircraft-family``, 30 as ``aircraft-manufacturer``.
# Val is held out of these 6,667 by our seed, as for the other sets: the official train / val division is
# half and half, and choosing a checkpoint does not need half of the images.
# The lowest 20 pixel rows of every image are a copyright banner, which training and evaluation do not see.
#
# Maji, Kannala, Rahtu, Blaschko, Vedaldi: Fine-Grained Visual Classification of Aircraft. arXiv:1306.5151,
# 2013. For non-commercial research only. https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/


_AIRCRAFT_BANNER_PX = 20


def read_aircraft(root: Path, level: str, names: str) -> LabelledSet:
    """The official listing; class names as in the file ``names``, spaces and slashes kept.

    Args:
        level: ``variant``, ``family`` or ``manufacturer``.
        names: the file that lists its classes.

    Raises:
        ValueError: an image of a class that the file lacks.
    """
    classes = read_lines(root / names)
    label_of = {name: label for label, name in enumerate(classes)}
    splits: dict[str, tuple[Example, ...]] = {"train": (), "val": (), "test": ()}
    for split, part in (("train", "trainval"), ("test", "test")):
        pairs = read_pairs(root / f"images_{level}_{part}.txt")
        unknown = sorted({name for _, name in pairs} - label_of.keys())
        if unknown:
            raise ValueError(f"images_{level}_{part}.txt has {unknown[0]!r}, {names} does not")
        splits[split] = tuple(
            Example(f"images/{image}.jpg", label_of[name], banner_px=_AIRCRAFT_BANNER_PX)
            for image, name in pairs
        )
    tree, notes = _aircraft_taxonomy(root, level, splits, classes)
    return LabelledSet("aircraft", root, tuple(classes), splits, notes=notes, taxonomy=tree)


def _aircraft_taxonomy(
    root: Path, level: str, splits: dict[str, tuple[Example, ...]], classes: list[str]
) -> tuple[Taxonomy | None, tuple[str, ...]]:
    """Manufacturer and family of each class, from the lists of the same images at these levels; none of a
    manufacturer, nor where the lists are not there."""
    ranks = ("manufacturer", "family")[: ("manufacturer", "family", "variant").index(level)]
    named = {rank: [root / f"images_{rank}_{part}.txt" for part in ("trainval", "test")] for rank in ranks}
    if not ranks or not all(file.is_file() for files in named.values() for file in files):
        return None, ()
    above = {rank: {image: name for file in files for image, name in read_pairs(file)}
             for rank, files in named.items()}  # fmt: skip
    lineages = {
        classes[example.label]: [above[rank].get(PurePosixPath(example.path).stem, "") for rank in ranks]
        for examples in splits.values()
        for example in examples
    }
    return known_taxonomy(ranks, lineages, classes)


def _aircraft_entry(key: str, level: str, names: str, classes: int) -> KnownSet:
    return KnownSet(
        key=key,
        title="FGVC-Aircraft 2013b" + ("" if level == "variant" else f" by {level}"),
        folder="fgvc-aircraft-2013b/data",
        needs=(names, f"images_{level}_trainval.txt", f"images_{level}_test.txt", "images/"),
        classes=classes,
        train=6667,
        test=3333,
        source="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        load=partial(read_aircraft, level=level, names=names),
        caveat="The banner, 20 rows at the foot of each image, is cut off; fgvc predict leaves it there.",
        archives=(
            Archive(
                "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                md5="d4acdd33327262359767eeaa97a4f732",
            ),
        ),
    )


_AIRCRAFT = (
    _aircraft_entry("aircraft", "variant", "variants.txt", 100),
    _aircraft_entry("aircraft-family", "family", "families.txt", 70),
    _aircraft_entry("aircraft-manufacturer", "manufacturer", "manufacturers.txt", 30),
)


def read_aircraft_boxes(root: Path, paths: Iterable[str]) -> dict[str, TrueBoxes]:
    """The aircraft's box of each image. ``images_box.txt`` counts pixels from 1 and includes the last.

    Raises:
        ValueError: a line that is not five numbers.
    """
    path_of = {PurePosixPath(path).stem: path for path in paths}
    found = {}
    for image, corners in read_pairs(root / "images_box.txt"):
        if image in path_of:
            x1, y1, x2, y2 = (float(value) for value in corners.split())
            found[path_of[image]] = TrueBoxes((check_box((x1 - 1, y1 - 1, x2, y2), f"image {image}"),), {})
    return found


ENTRIES = (*_AIRCRAFT, *_CARS, *_CUB, *_DOGS)

BOX_READERS: dict[str, Callable[[Path, Iterable[str]], dict[str, TrueBoxes]]] = {
    BOXES_CSV: read_box_table,
    "bounding_boxes.txt": read_cub_boxes,
    "images_box.txt": read_aircraft_boxes,
    "Annotation": read_dogs_boxes,
    **dict.fromkeys(CAR_BOX_FILES, read_car_boxes),
}
"""The file or folder that holds the boxes -> what reads it."""
