"""Food-101: dishes, as people photographed them.

Tree (as ``food-101.tar.gz`` unpacks; torchvision's ``Food101`` reads it)::

    food-101/
      meta/train.json  meta/test.json        class -> images: {"apple_pie": ["apple_pie/1005649"]}
      images/apple_pie/1005649.jpg

Counts: 101 classes, 75,750 train, 25,250 test, official; val is held out of train. The
training labels hold some noise, left in by the authors; the test labels were cleaned.

Bossard, Guillaumin, Van Gool: Food-101 - Mining Discriminative Components with Random Forests. ECCV 2014.
https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/
"""

from __future__ import annotations

from pathlib import Path

from fgvc_cli.data.listing import LabelledSet
from fgvc_cli.datasets.registry import Archive, KnownSet
from fgvc_cli.datasets.torchvision_sets import read_torchvision


def read_food(root: Path) -> LabelledSet:
    """The official listing; class names with underscores, as the folders: ``apple_pie``."""
    from torchvision.datasets import Food101  # takes a second, for a few of the sets only

    splits = {"train": "train", "test": "test"}
    return read_torchvision(
        root, "food-101", lambda above, split: Food101(above, split), splits, "_image_files"
    )


ENTRIES = (
    KnownSet(
        key="food101",
        title="Food-101",
        folder="food-101",
        needs=("meta/train.json", "meta/test.json", "images/"),
        classes=101,
        train=75750,
        test=25250,
        source="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        load=read_food,
        archives=(
            Archive(
                "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", md5="85eeb15f3717b99a5da872d97d918f87"
            ),
        ),
    ),
)
