"""FGVC-Aircraft 2013b: 100 aircraft variants, of 70 families, by 30 manufacturers.

Tree (as ``fgvc-aircraft-2013b.tar.gz`` unpacks)::

    fgvc-aircraft-2013b/data/
      variants.txt                     one variant per line: 707-320
      images_variant_trainval.txt      image id, variant: 1025794 707-320
      images_variant_test.txt          the same, for test
      families.txt  images_family_trainval.txt  images_family_test.txt
      manufacturers.txt  images_manufacturer_trainval.txt  images_manufacturer_test.txt
      images_box.txt                   image id, xmin ymin xmax ymax: for evaluation only
      images/1025794.jpg

Counts: 6,667 train (the official train and val together, as papers train on), 3,333 test; 100 classes as
``aircraft``, which is what papers report, 70 as ``aircraft-family``, 30 as ``aircraft-manufacturer``.
Val is held out of these 6,667 by our seed, as for the other sets: the official train / val division is
half and half, and choosing a checkpoint does not need half of the images.
The lowest 20 pixel rows of every image are a copyright banner.

Maji, Kannala, Rahtu, Blaschko, Vedaldi: Fine-Grained Visual Classification of Aircraft. arXiv:1306.5151,
2013. For non-commercial research only. https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path, PurePosixPath

from fgvc_cli.data.listing import Example, LabelledSet
from fgvc_cli.datasets.boxes import TrueBoxes, check_box
from fgvc_cli.datasets.entries import Archive, KnownSet, read_lines, read_pairs


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
        splits[split] = tuple(Example(f"images/{image}.jpg", label_of[name]) for image, name in pairs)
    return LabelledSet("aircraft", root, tuple(classes), splits)


def _entry(key: str, level: str, names: str, classes: int) -> KnownSet:
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
        archives=(
            Archive(
                "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                md5="d4acdd33327262359767eeaa97a4f732",
            ),
        ),
    )


ENTRIES = (
    _entry("aircraft", "variant", "variants.txt", 100),
    _entry("aircraft-family", "family", "families.txt", 70),
    _entry("aircraft-manufacturer", "manufacturer", "manufacturers.txt", 30),
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
