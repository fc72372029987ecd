"""Oxford-IIIT Pets: 12 breeds of cats and 25 of dogs.

Tree (the one torchvision's ``OxfordIIITPet`` reads and makes)::

    oxford-iiit-pet/
      annotations/trainval.txt       image id, class from 1, species, breed: Abyssinian_100 1 1 1
      annotations/test.txt           the same
      images/Abyssinian_100.jpg

Counts: 37 classes, 3,680 train (the official trainval), 3,669 test, official; val is held out of train.

Parkhi, Vedaldi, Zisserman, Jawahar: Cats and Dogs. CVPR 2012. CC BY-SA 4.0.
https://www.robots.ox.ac.uk/~vgg/data/pets/
"""

from __future__ import annotations

from pathlib import Path

from fgvc_cli.data.listing import LabelledSet
from fgvc_cli.datasets.registry import Archive, KnownSet
from fgvc_cli.datasets.torchvision_sets import read_torchvision


def read_pets(root: Path) -> LabelledSet:
    """The official listing; class names as torchvision writes them: ``American Bulldog``."""
    from torchvision.datasets import OxfordIIITPet  # takes a second, for a few of the sets only

    splits = {"train": "trainval", "test": "test"}
    return read_torchvision(
        root, "oxford-iiit-pet", lambda above, split: OxfordIIITPet(above, split), splits, "_images"
    )


ENTRIES = (
    KnownSet(
        key="pets",
        title="Oxford-IIIT Pets",
        folder="oxford-iiit-pet",
        needs=("annotations/trainval.txt", "annotations/test.txt", "images/"),
        classes=37,
        train=3680,
        test=3669,
        source="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        load=read_pets,
        archives=tuple(
            Archive(f"https://www.robots.ox.ac.uk/~vgg/data/pets/data/{file}", md5, into="oxford-iiit-pet")
            for file, md5 in (
                ("images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
                ("annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f"),
            )
        ),
    ),
)
