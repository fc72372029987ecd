"""Plant Pathology 2020 (FGVC7): apple leaves, healthy, with rust, with scab, or with several diseases.

Tree (the files of the Kaggle competition in one folder)::

    plant-pathology-2020-fgvc7/
      train.csv              image_id,healthy,multiple_diseases,rust,scab: Train_0,0,0,0,1
      test.csv               image_id; unlabelled, not used
      images/Train_0.jpg     and Test_0.jpg ...

Counts: 4 classes, 1,821 labelled photographs, each with one class. The labels of the competition's own test
photographs are unpublished, so a fifth of each class is dealt as our test split, the same for every seed: a
number on it compares with no number of the competition. Val is held out of the rest.

NOT THE SET OF THE MULTI-STAGE VIT'S TABLE: see ``icassava2019`` and ``plant2021``.

Thapa, Zhang, Snavely, Belongie, Khan: The Plant Pathology Challenge 2020 data set to classify foliar disease
of apples. Applications in Plant Sciences 8(9), 2020. https://www.kaggle.com/c/plant-pathology-2020-fgvc7
"""

from __future__ import annotations

import csv
from pathlib import Path

from fgvc_cli.data.listing import Example, LabelledSet
from fgvc_cli.datasets.registry import KnownSet

CLASSES = ("healthy", "multiple_diseases", "rust", "scab")


def read_plant2020(root: Path) -> LabelledSet:
    """All labelled photographs as ``train``, in the order of the file.

    Raises:
        ValueError: a row that does not have exactly one class.
    """
    examples = []
    with (root / "train.csv").open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            flags = [float(row[name]) for name in CLASSES]
            if sorted(flags) != [0, 0, 0, 1]:
                raise ValueError(f"train.csv: {row['image_id']} has {flags}, expected one 1")
            examples.append(Example(f"images/{row['image_id']}.jpg", flags.index(1)))
    return LabelledSet("plant2020", root, CLASSES, {"train": tuple(examples), "val": (), "test": ()})


ENTRIES = (
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
)
