"""Stanford Cars: 196 car models by make, model and year.

It comes in four layouts, each with boxes; images lie in ``cars_train/`` or in ``cars_train/cars_train/``::

    stanford_cars/                       as torchvision's ``StanfordCars`` reads it
      devkit/cars_meta.mat               class_names: 196 names
      devkit/cars_train_annos.mat        annotations: bbox_x1 bbox_y1 bbox_x2 bbox_y2 class fname
      cars_test_annos_withlabels.mat     the same, for test; or in devkit/
      cars_train/00001.jpg ...           cars_test/00001.jpg ...

    stanford_cars/                       with one list for both splits
      cars_annos.mat                     class_names; annotations: relative_im_path bbox_... class test
      car_ims/000001.jpg ...

The nested copy on Kaggle brings ``cars_annos.mat`` beside ``cars_train/cars_train/``. That list numbers the
images of ``car_ims/``, in another order: without the devkit nothing says which image is which, so it is
refused rather than read with wrong labels.

Counts: 196 classes, 8,144 train, 8,041 test, official; val is held out of train. In the files classes
count from 1. The test annotations inside the devkit have no labels, hence the second file.

Krause, Stark, Deng, Fei-Fei: 3D Object Representations for Fine-Grained Categorization. 3dRR workshop,
ICCV 2013. The original page, https://ai.stanford.edu/~jkrause/cars/car_dataset.html, has gone offline;
https://github.com/pytorch/vision/issues/7545 collects how to put the tree together.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fgvc_cli.data.listing import Example, LabelledSet
from fgvc_cli.datasets.boxes import TrueBoxes, check_box
from fgvc_cli.datasets.entries import KnownSet, read_mat

_DEVKIT = "devkit/cars_train_annos.mat"
_ONE_LIST = "cars_annos.mat"
_WITH_LABELS = "cars_test_annos_withlabels.mat"
BOX_FILES = (_DEVKIT, _ONE_LIST)
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
            _Car(split, f"{_folder(root, f'cars_{split}')}/{row['fname']}", row)
            for split, file in files
            for row in _rows(file)
        ]
    cars = [
        _Car("test" if int(row["test"]) else "train", str(row["relative_im_path"]), row)
        for row in _rows(root / _ONE_LIST)
    ]
    if not (root / "car_ims").is_dir() and not all((root / car.path).is_file() for car in cars):
        raise ValueError(
            f"{_ONE_LIST} numbers the images of car_ims/, not those of cars_train/ and cars_test/: put "
            f"devkit/ and {_WITH_LABELS} beside it"
        )
    return cars


def _rows(file: Path) -> Any:
    return np.atleast_1d(read_mat(file)["annotations"])


def _folder(root: Path, name: str) -> str:
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


_META = ("devkit/cars_meta.mat", _DEVKIT)
_SPLIT_FOLDERS = ("cars_train/", "cars_test/")

ENTRIES = (
    KnownSet(
        key="cars",
        title="Stanford Cars",
        folder="stanford_cars",
        needs=(*_META, _WITH_LABELS, *_SPLIT_FOLDERS),
        other_needs=(
            (*_META, f"devkit/{_WITH_LABELS}", *_SPLIT_FOLDERS),
            (_ONE_LIST, "car_ims/"),
            (_ONE_LIST, *_SPLIT_FOLDERS),
        ),
        classes=196,
        train=8144,
        test=8041,
        source="a mirror such as torchvision-stanford-cars on Kaggle (the original page is offline)",
        load=read_cars,
    ),
)
