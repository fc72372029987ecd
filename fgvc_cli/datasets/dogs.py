"""Stanford Dogs: 120 breeds.

ITS IMAGES COME FROM IMAGENET, so a backbone pretrained on ImageNet has seen them, the test images too:
scores of such backbones are inflated here. Say so beside every number.

Tree (``images.tar`` and ``lists.tar``, unpacked into one folder)::

    stanford_dogs/
      train_list.mat  test_list.mat      file_list: n02085620-Chihuahua/n02085620_5927.jpg; labels: from 1;
                                         or both in lists/
      Images/n02085620-Chihuahua/n02085620_5927.jpg
      Annotation/n02085620-Chihuahua/n02085620_5927     XML, a box for each dog: for evaluation only

Counts: 120 classes, 12,000 train, 8,580 test, official; val is held out of train.
Class names are the folder names without the WordNet id, underscores kept: ``Norwegian_elkhound``.

Khosla, Jayadevaprakash, Yao, Fei-Fei: Novel Dataset for Fine-Grained Image Categorization. FGVC
workshop, CVPR 2011. http://vision.stanford.edu/aditya86/ImageNetDogs/
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from fgvc_cli.data.listing import Example, LabelledSet
from fgvc_cli.datasets.boxes import TrueBoxes, check_box
from fgvc_cli.datasets.entries import Archive, KnownSet, read_mat


def read_dogs(root: Path) -> LabelledSet:
    """The official listing.

    Raises:
        ValueError: a label that stands for two folders, or a list with more files than labels.
    """
    splits: dict[str, tuple[Example, ...]] = {"train": (), "val": (), "test": ()}
    folder_of: dict[int, str] = {}
    for split in ("train", "test"):
        listed = read_mat(_list_file(root, split))
        examples = []
        pairs = zip(np.atleast_1d(listed["file_list"]), np.atleast_1d(listed["labels"]), strict=True)
        for file, number in pairs:
            label, folder = int(number) - 1, str(file).partition("/")[0]
            if folder_of.setdefault(label, folder) != folder:
                raise ValueError(f"label {label + 1} is both {folder_of[label]} and {folder}")
            examples.append(Example(f"Images/{file}", label))
        splits[split] = tuple(examples)
    # only the first hyphen ends the id: n02099267-flat-coated_retriever
    classes = tuple(folder_of[label].partition("-")[2] for label in sorted(folder_of))
    return LabelledSet("dogs", root, classes, splits)


def _list_file(root: Path, split: str) -> Path:
    """Where lists.tar was unpacked: here, or in ``lists/``."""
    below = root / "lists" / f"{split}_list.mat"
    return below if below.is_file() else root / f"{split}_list.mat"


ENTRIES = (
    KnownSet(
        key="dogs",
        title="Stanford Dogs",
        folder="stanford_dogs",
        needs=("train_list.mat", "test_list.mat", "Images/"),
        classes=120,
        train=12000,
        test=8580,
        source="http://vision.stanford.edu/aditya86/ImageNetDogs/ (images.tar, lists.tar)",
        load=read_dogs,
        other_needs=(("lists/train_list.mat", "lists/test_list.mat", "Images/"),),
        caveat="The images of Stanford Dogs are ImageNet's: models pretrained there have seen its test.",
        archives=(
            Archive("http://vision.stanford.edu/aditya86/ImageNetDogs/images.tar", into="stanford_dogs"),
            Archive("http://vision.stanford.edu/aditya86/ImageNetDogs/lists.tar", into="stanford_dogs"),
        ),
    ),
)


def read_dogs_boxes(root: Path, paths: Iterable[str]) -> dict[str, TrueBoxes]:
    """The boxes of the dogs in each image, from its XML below ``Annotation`` (unpacked annotation.tar).

    Raises:
        ValueError, SyntaxError: not such an XML.
    """
    found = {}
    for path in paths:
        file = (root / "Annotation").joinpath(*Path(path).with_suffix("").parts[1:])
        if not file.is_file():
            continue
        boxes = []
        for box in ElementTree.parse(file).getroot().iterfind("object/bndbox"):
            x1, y1, x2, y2 = (float(box.findtext(name, "nan")) for name in ("xmin", "ymin", "xmax", "ymax"))
            boxes.append(check_box((x1, y1, x2, y2), file.name))
        if boxes:
            found[path] = TrueBoxes(tuple(boxes), {})
    return found
