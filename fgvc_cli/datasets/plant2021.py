"""Plant Pathology 2021 (FGVC8): apple leaves with any of six labels, several at a time (multi-label).

Tree (the files of the Kaggle competition in one folder)::

    plant-pathology-2021-fgvc8/
      train.csv                              image,labels: 80077ccd8f8c5e4f.jpg,scab frog_eye_leaf_spot
      train_images/80077ccd8f8c5e4f.jpg
      test_images/ ...                       three samples, unlabelled, not used

Counts: 6 labels, ``healthy`` among them, and 18,632 labelled photographs, each with at least one. The labels
of the competition's test photographs are unpublished, so a fifth is dealt as our test split, the same for
every seed: a number on it compares with no number of the competition. Val is held out of the rest.

The code of the multi-stage ViT trains on these photographs, yet its paper's row "FGVC7 Plant Pathology" has
the counts of ``icassava2019``: three sets, never one number across them.

https://www.kaggle.com/c/plant-pathology-2021-fgvc8
"""

from __future__ import annotations

import csv
from pathlib import Path

from fgvc_cli.data.listing import Example, LabelledSet
from fgvc_cli.datasets.registry import KnownSet


def read_plant2021(root: Path) -> LabelledSet:
    """All labelled photographs as ``train``, in the order of the file; labels in alphabetical order.

    Raises:
        ValueError: a photograph without a label, or listed twice.
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


ENTRIES = (
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
