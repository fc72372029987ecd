"""Published sets with their papers, trees and counts: first those that bring boxes, CUB, Cars, Dogs and
Aircraft, each with what it looks like in a comment above it; then one table of those that need few lines
each, and a reader per kind of list.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.data.listing import SPLITS, Example, LabelledSet
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
from fgvc_cli.errors import FgvcError

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


BOX_READERS: dict[str, Callable[[Path, Iterable[str]], dict[str, TrueBoxes]]] = {
    BOXES_CSV: read_box_table,
    "bounding_boxes.txt": read_cub_boxes,
    "images_box.txt": read_aircraft_boxes,
    "Annotation": read_dogs_boxes,
    **dict.fromkeys(CAR_BOX_FILES, read_car_boxes),
}
"""The file or folder that holds the boxes -> what reads it."""


PLANT2020_CLASSES = ("healthy", "multiple_diseases", "rust", "scab")


def read_torchvision(
    root: Path, *, reader: str, folder: str, splits: Mapping[str, str], files: str = "_image_files"
) -> LabelledSet:
    """A listing by torchvision, which downloads and opens nothing here: its layout, splits and class names.

    Args:
        root: the set's own folder.
        reader: the class in ``torchvision.datasets``.
        folder: the name that torchvision wants for the set's folder.
        splits: our split -> torchvision's.
        files: the attribute of the data set with the image files; the labels are in ``_labels``.

    Raises:
        ValueError: another name, or files that torchvision misses or finds damaged.
    """
    import torchvision.datasets  # takes a second, for a few of the sets only

    if root.resolve().name != folder:
        raise ValueError(f"the folder has to be called {folder}, which is where torchvision looks")
    root = root.resolve()
    listed: dict[str, tuple[Example, ...]] = dict.fromkeys(SPLITS, ())
    classes: Sequence[str] = ()
    for split, name in splits.items():
        try:
            images: Any = getattr(torchvision.datasets, reader)(root.parent, name)
        except RuntimeError as error:  # what torchvision raises for what is missing or damaged
            raise ValueError(f"{name}: {error}") from error
        paths = (Path(file).relative_to(root).as_posix() for file in getattr(images, files))
        listed[split] = tuple(
            Example(path, int(label)) for path, label in zip(paths, images._labels, strict=True)
        )
        classes = images.classes
    return LabelledSet(folder, root, tuple(classes), listed)


def read_grocery(root: Path, *, coarse: bool) -> LabelledSet:
    """The official listing; class names as in ``classes.csv``, in the order of their IDs.

    The taxonomy: the coarse class, and the kind (Fruit, Vegetables, Packages) whose folder an image is in.
    """
    prefix = "Coarse Class" if coarse else "Class"
    with (root / "classes.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
        name_of = {int(row[f"{prefix} ID (int)"]): row[f"{prefix} Name (str)"] for row in rows}
    label_of = {class_id: label for label, class_id in enumerate(sorted(name_of))}
    splits: dict[str, tuple[Example, ...]] = {}
    kind_of: dict[str, str] = {}
    for split in SPLITS:
        lines = [line.rsplit(",", 2) for line in read_lines(root / f"{split}.txt")]
        chosen = [(path, coarse_id if coarse else fine_id) for path, fine_id, coarse_id in lines]
        splits[split] = tuple(Example(path, label_of[int(class_id)]) for path, class_id in chosen)
        kind_of |= {name_of[int(class_id)]: path.split("/")[1] for path, class_id in chosen}
    coarse_of = {row["Class Name (str)"]: row["Coarse Class Name (str)"] for row in rows}
    lineages = {name: (kind,) if coarse else (kind, coarse_of[name]) for name, kind in kind_of.items()}
    classes = tuple(name_of[i] for i in sorted(name_of))
    tree, notes = known_taxonomy(("kind",) if coarse else ("kind", "coarse"), lineages, classes)
    return LabelledSet("grocery", root, classes, splits, notes=notes, taxonomy=tree)


def read_folders(root: Path) -> LabelledSet:
    """The folders of three splits; classes are the folder names.

    Raises:
        ValueError: the folders do not divide the images into the three splits.
    """
    try:
        return load_labelled(root)
    except FgvcError as error:
        raise ValueError(error.message) from error


def read_plant2020(root: Path) -> LabelledSet:
    """All labelled images as ``train``, in the order of the file.

    Raises:
        ValueError: a row that does not have exactly one class.
    """
    examples = []
    with (root / "train.csv").open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            flags = [float(row[name]) for name in PLANT2020_CLASSES]
            if sorted(flags) != [0, 0, 0, 1]:
                raise ValueError(f"train.csv: {row['image_id']} has {flags}, expected one 1")
            examples.append(Example(f"images/{row['image_id']}.jpg", flags.index(1)))
    splits: dict[str, tuple[Example, ...]] = {"train": tuple(examples), "val": (), "test": ()}
    return LabelledSet("plant2020", root, PLANT2020_CLASSES, splits)


def read_plant2021(root: Path) -> LabelledSet:
    """All labelled images as ``train``, in the order of the file; labels in alphabetical order.

    Raises:
        ValueError: an image without a label, or listed twice.
    """
    names_of: dict[str, list[str]] = {}
    with (root / "train.csv").open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            image, names = row["image"], sorted(set(row["labels"].split()))
            if not names or image in names_of:
                raise ValueError(f"train.csv: {image} {'is there twice' if names else 'has no label'}")
            names_of[image] = names
    classes = tuple(sorted({name for names in names_of.values() for name in names}))
    label_of = {name: label for label, name in enumerate(classes)}
    examples = []
    for image, names in names_of.items():
        first, *more = (label_of[name] for name in names)
        examples.append(Example(f"train_images/{image}", first, tuple(more)))
    splits: dict[str, tuple[Example, ...]] = {"train": tuple(examples), "val": (), "test": ()}
    return LabelledSet("plant2021", root, classes, splits, multi_label=True)


_IN_FEW_LINES = (
    # Nilsback, Zisserman: Automated Flower Classification over a Large Number of Classes. ICVGIP 2008.
    # Ten images per class to train on. Many papers train on train and val together, some swap train and test;
    # say which beside every number. The files have no class names: these are torchvision's.
    #   flowers-102/imagelabels.mat        labels: 1 x 8,189, from 1
    #   flowers-102/setid.mat              trnid, valid, tstid: image numbers
    #   flowers-102/jpg/image_00001.jpg
    KnownSet(
        key="flowers102",
        title="Oxford 102 Flowers",
        folder="flowers-102",
        needs=("imagelabels.mat", "setid.mat", "jpg/"),
        classes=102,
        train=1020,
        val=1020,
        test=6149,
        source="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        load=partial(
            read_torchvision,
            reader="Flowers102",
            folder="flowers-102",
            splits={"train": "train", "val": "val", "test": "test"},
        ),
        archives=tuple(
            Archive(f"https://www.robots.ox.ac.uk/~vgg/data/flowers/102/{file}", md5, "flowers-102")
            for file, md5 in (
                ("102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),
                ("imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
                ("setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
            )
        ),
    ),
    # Bossard, Guillaumin, Van Gool: Food-101 - Mining Discriminative Components with Random Forests. ECCV
    # 2014. The training labels hold some noise, left in by the authors; the test labels were cleaned.
    #   food-101/meta/train.json  meta/test.json        class -> images: {"apple_pie": ["apple_pie/1005649"]}
    #   food-101/images/apple_pie/1005649.jpg
    KnownSet(
        key="food101",
        title="Food-101",
        folder="food-101",
        needs=("meta/train.json", "meta/test.json", "images/"),
        classes=101,
        train=75750,
        test=25250,
        source="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        load=partial(
            read_torchvision,
            reader="Food101",
            folder="food-101",
            splits={"train": "train", "test": "test"},
        ),
        archives=(
            Archive(
                "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", md5="85eeb15f3717b99a5da872d97d918f87"
            ),
        ),
    ),
    # Parkhi, Vedaldi, Zisserman, Jawahar: Cats and Dogs. CVPR 2012. CC BY-SA 4.0. 12 breeds of cats and 25 of
    # dogs; train is the official trainval.
    #   oxford-iiit-pet/annotations/trainval.txt       image id, class from 1, species, breed
    #   oxford-iiit-pet/annotations/test.txt           the same: Abyssinian_100 1 1 1
    #   oxford-iiit-pet/images/Abyssinian_100.jpg
    KnownSet(
        key="pets",
        title="Oxford-IIIT Pets",
        folder="oxford-iiit-pet",
        needs=("annotations/trainval.txt", "annotations/test.txt", "images/"),
        classes=37,
        train=3680,
        test=3669,
        source="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        load=partial(
            read_torchvision,
            reader="OxfordIIITPet",
            folder="oxford-iiit-pet",
            splits={"train": "trainval", "test": "test"},
            files="_images",
        ),
        archives=tuple(
            Archive(f"https://www.robots.ox.ac.uk/~vgg/data/pets/data/{file}", md5, into="oxford-iiit-pet")
            for file, md5 in (
                ("images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
                ("annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f"),
            )
        ),
    ),
    # Klasson, Zhang, Kjellstrom: A Hierarchical Grocery Store Image Dataset with Visual and Semantic Labels.
    # WACV 2019. MIT licence. All three splits are official. 81 classes as ``grocery`` (val covers 60 of
    # them), 43 as ``grocery-coarse`` (the paper says 42; the published files have 43).
    #   grocery/classes.csv                      Class Name (str),Class ID (int),Coarse Class Name (str),
    #                                            Coarse Class ID (int),... ; IDs from 0
    #   grocery/train.txt  val.txt  test.txt     path, fine id, coarse id
    #   grocery/train/Fruit/Apple/Golden-Delicious/Golden-Delicious_001.jpg
    *(
        KnownSet(
            key=key,
            title=title,
            folder="grocery",
            needs=("classes.csv", "train.txt", "val.txt", "test.txt", "train/", "val/", "test/"),
            classes=classes,
            train=2640,
            val=296,
            test=2485,
            source="https://github.com/marcusklasson/GroceryStoreDataset (its folder dataset/)",
            load=partial(read_grocery, coarse=coarse),
            archives=(
                Archive(
                    "https://codeload.github.com/marcusklasson/GroceryStoreDataset/zip/refs/heads/master"
                ),
            ),
            archive_folder="GroceryStoreDataset-master/dataset",
        )
        for key, title, classes, coarse in (
            ("grocery", "Grocery Store Dataset", 81, False),
            ("grocery-coarse", "Grocery Store Dataset, coarse classes", 43, True),
        )
    ),
    # Mwebaze, Gebru, Frome, Nsumba, Tusubira: iCassava 2019 Fine-Grained Visual Categorization Challenge.
    # arXiv:1908.02900, 2019. Leaves of cassava, healthy or with one of four diseases; the splits that the
    # organisers published with labels after the competition, 9,430 images in all. The paper counts 9,436
    # labelled and 12,595 unlabelled ones; these two numbers stand as train and test in the "FGVC7 Plant
    # Pathology" row of the multi-stage ViT's table, so that row cannot be repeated as it stands. The Kaggle
    # competition has other folders, and a test without labels: give its ``train`` with ``--data``.
    #   cassavaleafdata/train/cbb/train-cbb-1.jpg        and cbsd, cgm, cmd, healthy
    #   cassavaleafdata/validation/cbb/...  test/cbb/...
    KnownSet(
        key="icassava2019",
        title="iCassava 2019",
        folder="cassavaleafdata",
        needs=("train/", "validation/", "test/"),
        classes=5,
        train=5656,
        val=1889,
        test=1885,
        source="https://storage.googleapis.com/emcassavadata/cassavaleafdata.zip",
        load=read_folders,
        archives=(Archive("https://storage.googleapis.com/emcassavadata/cassavaleafdata.zip"),),
    ),
    # Thapa, Zhang, Snavely, Belongie, Khan: The Plant Pathology Challenge 2020 data set to classify foliar
    # disease of apples. Applications in Plant Sciences 8(9), 2020. Each image has one class. The labels of
    # the competition's own test images are unpublished, so a fifth of each class is dealt as our test split:
    # a number on it compares with no number of the competition. NOT THE SET OF THE MULTI-STAGE VIT'S TABLE:
    # see ``icassava2019`` and ``plant2021``.
    #   plant-pathology-2020-fgvc7/train.csv     image_id,healthy,multiple_diseases,rust,scab: Train_0,0,0,0,1
    #   plant-pathology-2020-fgvc7/test.csv      image_id; unlabelled, not used
    #   plant-pathology-2020-fgvc7/images/Train_0.jpg     and Test_0.jpg ...
    KnownSet(
        key="plant2020",
        title="Plant Pathology 2020 (FGVC7)",
        folder="plant-pathology-2020-fgvc7",
        needs=("train.csv", "images/"),
        classes=4,
        train=1821,
        test=0,
        source="https://www.kaggle.com/c/plant-pathology-2020-fgvc7 (needs an account)",
        load=read_plant2020,
        dealt_test=0.2,
    ),
    # Plant Pathology 2021: apple leaves with any of six labels, ``healthy`` among them, several at a time
    # (multi-label), each image with at least one. Test as of 2020. The code of the multi-stage ViT trains on
    # these images, yet its paper's row "FGVC7 Plant Pathology" has the counts of ``icassava2019``: three
    # sets, never one number across them.
    #   plant-pathology-2021-fgvc8/train.csv       image,labels: 80077ccd8f8c5e4f.jpg,scab frog_eye_leaf_spot
    #   plant-pathology-2021-fgvc8/train_images/80077ccd8f8c5e4f.jpg
    #   plant-pathology-2021-fgvc8/test_images/    three samples, unlabelled, not used
    KnownSet(
        key="plant2021",
        title="Plant Pathology 2021 (FGVC8)",
        folder="plant-pathology-2021-fgvc8",
        needs=("train.csv", "train_images/"),
        classes=6,
        train=18632,
        test=0,
        source="https://www.kaggle.com/c/plant-pathology-2021-fgvc8 (needs an account)",
        load=read_plant2021,
        dealt_test=0.2,
    ),
)

ENTRIES = (*_AIRCRAFT, *_CARS, *_CUB, *_DOGS, *_IN_FEW_LINES)
