"""FGVC-Aircraft 2013b: 100 aircraft variants.

Tree (as ``fgvc-aircraft-2013b.tar.gz`` unpacks)::

    fgvc-aircraft-2013b/data/
      variants.txt                     one variant per line: 707-320
      images_variant_trainval.txt      image id, variant: 1025794 707-320
      images_variant_test.txt          the same, for test
      images_box.txt                   image id, xmin ymin xmax ymax: for evaluation only
      images/1025794.jpg

Counts: 100 classes, 6,667 train (the official train and val together, as papers train on), 3,333 test.
Val is held out of these 6,667 by our seed, as for the other sets: the official train / val division is
half and half, and choosing a checkpoint does not need half of the images.
The lowest 20 pixel rows of every image are a copyright banner.

Maji, Kannala, Rahtu, Blaschko, Vedaldi: Fine-Grained Visual Classification of Aircraft. arXiv:1306.5151,
2013. For non-commercial research only. https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from fgvc_cli.data.boxes import TrueBoxes, check_box
from fgvc_cli.data.known import KnownSet, read_lines, read_pairs
from fgvc_cli.data.labelled import Example, LabelledSet


def read_aircraft(root: Path) -> LabelledSet:
    """The official listing; class names as in ``variants.txt``, spaces and slashes kept.

    Raises:
        ValueError: an image of a variant that ``variants.txt`` lacks.
    """
    variants = read_lines(root / "variants.txt")
    label_of = {variant: label for label, variant in enumerate(variants)}
    splits: dict[str, tuple[Example, ...]] = {"train": (), "val": (), "test": ()}
    for split, part in (("train", "trainval"), ("test", "test")):
        pairs = read_pairs(root / f"images_variant_{part}.txt")
        unknown = sorted({variant for _, variant in pairs} - label_of.keys())
        if unknown:
            raise ValueError(f"images_variant_{part}.txt has {unknown[0]!r}, variants.txt does not")
        splits[split] = tuple(Example(f"images/{image}.jpg", label_of[variant]) for image, variant in pairs)
    return LabelledSet("aircraft", root, tuple(variants), splits)


ENTRY = KnownSet(
    key="aircraft",
    title="FGVC-Aircraft 2013b",
    folder="fgvc-aircraft-2013b/data",
    needs=("variants.txt", "images_variant_trainval.txt", "images_variant_test.txt", "images/"),
    classes=100,
    train=6667,
    test=3333,
    source="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
    load=read_aircraft,
)


def read_aircraft_boxes(root: Path, paths: Iterable[str]) -> dict[str, TrueBoxes]:
    """The aircraft's box of each photograph. ``images_box.txt`` counts pixels from 1 and includes the last.

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
