"""Oxford 102 Flowers: flowers that are common in the United Kingdom.

Tree (the one torchvision's ``Flowers102`` reads and makes)::

    flowers-102/
      imagelabels.mat        labels: 1 x 8,189, from 1
      setid.mat              trnid, valid, tstid: image numbers
      jpg/image_00001.jpg

Counts: 102 classes, 1,020 train, 1,020 val, 6,149 test, official: ten photographs per class to train on. Many
papers train on train and val together, some swap train and test; say which beside every number.

Nilsback, Zisserman: Automated Flower Classification over a Large Number of Classes. ICVGIP 2008.
https://www.robots.ox.ac.uk/~vgg/data/flowers/102/
"""

from __future__ import annotations

from pathlib import Path

from fgvc_cli.data.listing import LabelledSet
from fgvc_cli.datasets.registry import Archive, KnownSet
from fgvc_cli.datasets.torchvision_sets import read_torchvision


def read_flowers(root: Path) -> LabelledSet:
    """The official listing; the class names are torchvision's, as the files have none."""
    from torchvision.datasets import Flowers102  # takes a second, for a few of the sets only

    splits = {"train": "train", "val": "val", "test": "test"}
    return read_torchvision(
        root, "flowers-102", lambda above, split: Flowers102(above, split), splits, "_image_files"
    )


ENTRIES = (
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
        load=read_flowers,
        archives=tuple(
            Archive(f"https://www.robots.ox.ac.uk/~vgg/data/flowers/102/{file}", md5, into)
            for file, md5, into in (
                ("102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", "flowers-102"),
                ("imagelabels.mat", "e0620be6f572b9609742df49c70aed4d", "flowers-102"),
                ("setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c", "flowers-102"),
            )
        ),
    ),
)
