"""Grocery Store Dataset: 81 fine classes of groceries, photographed with smartphones in shops.

Tree (the folder ``dataset/`` of the repository, called ``grocery/``, or given itself)::

    grocery/
      classes.csv                      Class Name (str),Class ID (int),... ; IDs from 0
      train.txt  val.txt  test.txt     path, fine id, coarse id
      train/Fruit/Apple/Golden-Delicious/Golden-Delicious_001.jpg
      val/...  test/...

Counts: 81 classes, 2,640 train, 296 val, 2,485 test; all three splits are official. Val covers 60 of
the classes. The labels are the fine ones.

Klasson, Zhang, Kjellstrom: A Hierarchical Grocery Store Image Dataset with Visual and Semantic
Labels. WACV 2019. MIT licence. https://github.com/marcusklasson/GroceryStoreDataset
"""

from __future__ import annotations

import csv
from pathlib import Path

from fgvc_cli.data.known import KnownSet, read_lines
from fgvc_cli.data.labelled import SPLITS, Example, LabelledSet


def read_grocery(root: Path) -> LabelledSet:
    """The official listing; class names as in ``classes.csv``, in the order of their IDs."""
    with (root / "classes.csv").open(encoding="utf-8-sig", newline="") as file:
        name_of = {int(row["Class ID (int)"]): row["Class Name (str)"] for row in csv.DictReader(file)}
    label_of = {class_id: label for label, class_id in enumerate(sorted(name_of))}
    splits = {}
    for split in SPLITS:
        rows = [line.rsplit(",", 2) for line in read_lines(root / f"{split}.txt")]
        splits[split] = tuple(Example(path, label_of[int(fine)]) for path, fine, _ in rows)
    return LabelledSet("grocery", root, tuple(name_of[i] for i in sorted(name_of)), splits)


ENTRY = KnownSet(
    key="grocery",
    title="Grocery Store Dataset",
    folder="grocery",
    needs=("classes.csv", "train.txt", "val.txt", "test.txt", "train/", "val/", "test/"),
    classes=81,
    train=2640,
    val=296,
    test=2485,
    source="https://github.com/marcusklasson/GroceryStoreDataset (its folder dataset/)",
    load=read_grocery,
)
