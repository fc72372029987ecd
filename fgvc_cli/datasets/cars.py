"""Stanford Cars: 196 car models by make, model and year.

Tree (the one torchvision's ``StanfordCars`` reads)::

    stanford_cars/
      devkit/cars_meta.mat               class_names: 196 names
      devkit/cars_train_annos.mat        annotations: bbox_x1 bbox_y1 bbox_x2 bbox_y2 class fname
      cars_test_annos_withlabels.mat     the same, for test
      cars_train/00001.jpg ...           cars_test/00001.jpg ...

Counts: 196 classes, 8,144 train, 8,041 test, official; val is held out of train. In the files classes
count from 1. The test annotations inside the devkit have no labels, hence the second file.

Krause, Stark, Deng, Fei-Fei: 3D Object Representations for Fine-Grained Categorization. 3dRR workshop,
ICCV 2013. The original page, https://ai.stanford.edu/~jkrause/cars/car_dataset.html, has gone offline.
Mirrors exist: "rickyyyyyyy/torchvision-stanford-cars" on Kaggle is said to have the tree above;
"jessicali9530/stanford-cars-dataset" has other folders and no ``_withlabels`` file, and
https://github.com/pytorch/vision/issues/7545 collects how to put the tree together.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fgvc_cli.data.listing import Example, LabelledSet
from fgvc_cli.datasets.entries import KnownSet, read_mat


def read_cars(root: Path) -> LabelledSet:
    """The official listing; class names as in ``cars_meta.mat``."""
    names = np.atleast_1d(read_mat(root / "devkit" / "cars_meta.mat")["class_names"])
    train = _read_annotations(root / "devkit" / "cars_train_annos.mat", "cars_train")
    test = _read_annotations(root / "cars_test_annos_withlabels.mat", "cars_test")
    splits: dict[str, tuple[Example, ...]] = {"train": train, "val": (), "test": test}
    return LabelledSet("cars", root, tuple(str(name) for name in names), splits)


def _read_annotations(path: Path, folder: str) -> tuple[Example, ...]:
    rows = np.atleast_1d(read_mat(path)["annotations"])
    # int() first: the classes are stored as uint8
    return tuple(Example(f"{folder}/{row['fname']}", int(row["class"]) - 1) for row in rows)


ENTRIES = (
    KnownSet(
        key="cars",
        title="Stanford Cars",
        folder="stanford_cars",
        needs=(
            "devkit/cars_meta.mat",
            "devkit/cars_train_annos.mat",
            "cars_test_annos_withlabels.mat",
            "cars_train/",
            "cars_test/",
        ),
        classes=196,
        train=8144,
        test=8041,
        source="a mirror such as torchvision-stanford-cars on Kaggle (the original page is offline)",
        load=read_cars,
    ),
)
