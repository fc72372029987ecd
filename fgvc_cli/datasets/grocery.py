"""Grocery Store Dataset: 81 fine classes of groceries, of 43 coarse ones, photographed in shops.

Tree (the folder ``dataset/`` of the repository, called ``grocery/``, or given itself)::

    grocery/
      classes.csv                      Class Name (str),Class ID (int),Coarse Class Name (str),
                                       Coarse Class ID (int),... ; IDs from 0
      train.txt  val.txt  test.txt     path, fine id, coarse id
      train/Fruit/Apple/Golden-Delicious/Golden-Delicious_001.jpg
      val/...  test/...

Counts: 2,640 train, 296 val, 2,485 test; all three splits are official. 81 classes as ``grocery`` (val covers
60 of them), 43 as ``grocery-coarse`` (the paper says 42; the published files have 43).

Klasson, Zhang, Kjellstrom: A Hierarchical Grocery Store Image Dataset with Visual and Semantic
Labels. WACV 2019. MIT licence. https://github.com/marcusklasson/GroceryStoreDataset
"""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

from fgvc_cli.data.listing import SPLITS, Example, LabelledSet
from fgvc_cli.datasets.registry import Archive, KnownSet, read_lines


def read_grocery(root: Path, *, coarse: bool = False) -> LabelledSet:
    """The official listing; class names as in ``classes.csv``, in the order of their IDs."""
    prefix = "Coarse Class" if coarse else "Class"
    with (root / "classes.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        name_of = {int(row[f"{prefix} ID (int)"]): row[f"{prefix} Name (str)"] for row in rows}
    label_of = {class_id: label for label, class_id in enumerate(sorted(name_of))}
    splits = {}
    for split in SPLITS:
        lines = [line.rsplit(",", 2) for line in read_lines(root / f"{split}.txt")]
        chosen = [(path, coarse_id if coarse else fine_id) for path, fine_id, coarse_id in lines]
        splits[split] = tuple(Example(path, label_of[int(class_id)]) for path, class_id in chosen)
    return LabelledSet("grocery", root, tuple(name_of[i] for i in sorted(name_of)), splits)


def _entry(key: str, title: str, classes: int, coarse: bool) -> KnownSet:
    return KnownSet(
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
            Archive("https://codeload.github.com/marcusklasson/GroceryStoreDataset/zip/refs/heads/master"),
        ),
        archive_folder="GroceryStoreDataset-master/dataset",
    )


ENTRIES = (
    _entry("grocery", "Grocery Store Dataset", 81, False),
    _entry("grocery-coarse", "Grocery Store Dataset, coarse classes", 43, True),
)
