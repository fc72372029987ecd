"""Published sets that need few lines each: one table, and a reader per kind of list.

Every entry of ``ENTRIES`` has its paper, its tree and what to know about its numbers in a comment above it.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.data.listing import SPLITS, Example, LabelledSet
from fgvc_cli.datasets.entries import Archive, KnownSet, known_taxonomy, read_lines
from fgvc_cli.errors import FgvcError

PLANT2020_CLASSES = ("healthy", "multiple_diseases", "rust", "scab")


def read_torchvision(
    root: Path, *, reader: str, folder: str, splits: Mapping[str, str], files: str = "_image_files"
) -> LabelledSet:
    """A listing by torchvision, which downloads and opens nothing here: its layout, splits and class names.

    Args:
        root: the set's own folder.
        reader: the class in ``torchvision.datasets``.
        folder: the name that torchvision wants for the set's folder.
        splits: our split -> torchvision's.
        files: the attribute of the data set with the image files; the labels are in ``_labels``.

    Raises:
        ValueError: another name, or files that torchvision misses or finds damaged.
    """
    import torchvision.datasets  # takes a second, for a few of the sets only

    if root.resolve().name != folder:
        raise ValueError(f"the folder has to be called {folder}, which is where torchvision looks")
    root = root.resolve()
    listed: dict[str, tuple[Example, ...]] = dict.fromkeys(SPLITS, ())
    classes: Sequence[str] = ()
    for split, name in splits.items():
        try:
            images: Any = getattr(torchvision.datasets, reader)(root.parent, name)
        except RuntimeError as error:  # what torchvision raises for what is missing or damaged
            raise ValueError(f"{name}: {error}") from error
        paths = (Path(file).relative_to(root).as_posix() for file in getattr(images, files))
        listed[split] = tuple(
            Example(path, int(label)) for path, label in zip(paths, images._labels, strict=True)
        )
        classes = images.classes
    return LabelledSet(folder, root, tuple(classes), listed)


def read_grocery(root: Path, *, coarse: bool) -> LabelledSet:
    """The official listing; class names as in ``classes.csv``, in the order of their IDs.

    The taxonomy: the coarse class, and the kind (Fruit, Vegetables, Packages) whose folder an image is in.
    """
    prefix = "Coarse Class" if coarse else "Class"
    with (root / "classes.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
        name_of = {int(row[f"{prefix} ID (int)"]): row[f"{prefix} Name (str)"] for row in rows}
    label_of = {class_id: label for label, class_id in enumerate(sorted(name_of))}
    splits: dict[str, tuple[Example, ...]] = {}
    kind_of: dict[str, str] = {}
    for split in SPLITS:
        lines = [line.rsplit(",", 2) for line in read_lines(root / f"{split}.txt")]
        chosen = [(path, coarse_id if coarse else fine_id) for path, fine_id, coarse_id in lines]
        splits[split] = tuple(Example(path, label_of[int(class_id)]) for path, class_id in chosen)
        kind_of |= {name_of[int(class_id)]: path.split("/")[1] for path, class_id in chosen}
    coarse_of = {row["Class Name (str)"]: row["Coarse Class Name (str)"] for row in rows}
    lineages = {name: (kind,) if coarse else (kind, coarse_of[name]) for name, kind in kind_of.items()}
    classes = tuple(name_of[i] for i in sorted(name_of))
    tree, notes = known_taxonomy(("kind",) if coarse else ("kind", "coarse"), lineages, classes)
    return LabelledSet("grocery", root, classes, splits, notes=notes, taxonomy=tree)


def read_folders(root: Path) -> LabelledSet:
    """The folders of three splits; classes are the folder names.

    Raises:
        ValueError: the folders do not divide the images into the three splits.
    """
    try:
        return load_labelled(root)
    except FgvcError as error:
        raise ValueError(error.message) from error


def read_plant2020(root: Path) -> LabelledSet:
    """All labelled images as ``train``, in the order of the file.

    Raises:
        ValueError: a row that does not have exactly one class.
    """
    examples = []
    with (root / "train.csv").open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            flags = [float(row[name]) for name in PLANT2020_CLASSES]
            if sorted(flags) != [0, 0, 0, 1]:
                raise ValueError(f"train.csv: {row['image_id']} has {flags}, expected one 1")
            examples.append(Example(f"images/{row['image_id']}.jpg", flags.index(1)))
    splits: dict[str, tuple[Example, ...]] = {"train": tuple(examples), "val": (), "test": ()}
    return LabelledSet("plant2020", root, PLANT2020_CLASSES, splits)


def read_plant2021(root: Path) -> LabelledSet:
    """All labelled images as ``train``, in the order of the file; labels in alphabetical order.

    Raises:
        ValueError: an image without a label, or listed twice.
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
    # Nilsback, Zisserman: Automated Flower Classification over a Large Number of Classes. ICVGIP 2008.
    # Ten images per class to train on. Many papers train on train and val together, some swap train and test;
    # say which beside every number. The files have no class names: these are torchvision's.
    #   flowers-102/imagelabels.mat        labels: 1 x 8,189, from 1
    #   flowers-102/setid.mat              trnid, valid, tstid: image numbers
    #   flowers-102/jpg/image_00001.jpg
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
        load=partial(
            read_torchvision,
            reader="Flowers102",
            folder="flowers-102",
            splits={"train": "train", "val": "val", "test": "test"},
        ),
        archives=tuple(
            Archive(f"https://www.robots.ox.ac.uk/~vgg/data/flowers/102/{file}", md5, "flowers-102")
            for file, md5 in (
                ("102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),
                ("imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
                ("setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
            )
        ),
    ),
    # Bossard, Guillaumin, Van Gool: Food-101 - Mining Discriminative Components with Random Forests. ECCV
    # 2014. The training labels hold some noise, left in by the authors; the test labels were cleaned.
    #   food-101/meta/train.json  meta/test.json        class -> images: {"apple_pie": ["apple_pie/1005649"]}
    #   food-101/images/apple_pie/1005649.jpg
    KnownSet(
        key="food101",
        title="Food-101",
        folder="food-101",
        needs=("meta/train.json", "meta/test.json", "images/"),
        classes=101,
        train=75750,
        test=25250,
        source="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        load=partial(
            read_torchvision,
            reader="Food101",
            folder="food-101",
            splits={"train": "train", "test": "test"},
        ),
        archives=(
            Archive(
                "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", md5="85eeb15f3717b99a5da872d97d918f87"
            ),
        ),
    ),
    # Parkhi, Vedaldi, Zisserman, Jawahar: Cats and Dogs. CVPR 2012. CC BY-SA 4.0. 12 breeds of cats and 25 of
    # dogs; train is the official trainval.
    #   oxford-iiit-pet/annotations/trainval.txt       image id, class from 1, species, breed
    #   oxford-iiit-pet/annotations/test.txt           the same: Abyssinian_100 1 1 1
    #   oxford-iiit-pet/images/Abyssinian_100.jpg
    KnownSet(
        key="pets",
        title="Oxford-IIIT Pets",
        folder="oxford-iiit-pet",
        needs=("annotations/trainval.txt", "annotations/test.txt", "images/"),
        classes=37,
        train=3680,
        test=3669,
        source="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        load=partial(
            read_torchvision,
            reader="OxfordIIITPet",
            folder="oxford-iiit-pet",
            splits={"train": "trainval", "test": "test"},
            files="_images",
        ),
        archives=tuple(
            Archive(f"https://www.robots.ox.ac.uk/~vgg/data/pets/data/{file}", md5, into="oxford-iiit-pet")
            for file, md5 in (
                ("images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
                ("annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f"),
            )
        ),
    ),
    # Klasson, Zhang, Kjellstrom: A Hierarchical Grocery Store Image Dataset with Visual and Semantic Labels.
    # WACV 2019. MIT licence. All three splits are official. 81 classes as ``grocery`` (val covers 60 of
    # them), 43 as ``grocery-coarse`` (the paper says 42; the published files have 43).
    #   grocery/classes.csv                      Class Name (str),Class ID (int),Coarse Class Name (str),
    #                                            Coarse Class ID (int),... ; IDs from 0
    #   grocery/train.txt  val.txt  test.txt     path, fine id, coarse id
    #   grocery/train/Fruit/Apple/Golden-Delicious/Golden-Delicious_001.jpg
    *(
        KnownSet(
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
                Archive(
                    "https://codeload.github.com/marcusklasson/GroceryStoreDataset/zip/refs/heads/master"
                ),
            ),
            archive_folder="GroceryStoreDataset-master/dataset",
        )
        for key, title, classes, coarse in (
            ("grocery", "Grocery Store Dataset", 81, False),
            ("grocery-coarse", "Grocery Store Dataset, coarse classes", 43, True),
        )
    ),
    # Mwebaze, Gebru, Frome, Nsumba, Tusubira: iCassava 2019 Fine-Grained Visual Categorization Challenge.
    # arXiv:1908.02900, 2019. Leaves of cassava, healthy or with one of four diseases; the splits that the
    # organisers published with labels after the competition, 9,430 images in all. The paper counts 9,436
    # labelled and 12,595 unlabelled ones; these two numbers stand as train and test in the "FGVC7 Plant
    # Pathology" row of the multi-stage ViT's table, so that row cannot be repeated as it stands. The Kaggle
    # competition has other folders, and a test without labels: give its ``train`` with ``--data``.
    #   cassavaleafdata/train/cbb/train-cbb-1.jpg        and cbsd, cgm, cmd, healthy
    #   cassavaleafdata/validation/cbb/...  test/cbb/...
    KnownSet(
        key="icassava2019",
        title="iCassava 2019",
        folder="cassavaleafdata",
        needs=("train/", "validation/", "test/"),
        classes=5,
        train=5656,
        val=1889,
        test=1885,
        source="https://storage.googleapis.com/emcassavadata/cassavaleafdata.zip",
        load=read_folders,
        archives=(Archive("https://storage.googleapis.com/emcassavadata/cassavaleafdata.zip"),),
    ),
    # Thapa, Zhang, Snavely, Belongie, Khan: The Plant Pathology Challenge 2020 data set to classify foliar
    # disease of apples. Applications in Plant Sciences 8(9), 2020. Each image has one class. The labels of
    # the competition's own test images are unpublished, so a fifth of each class is dealt as our test split:
    # a number on it compares with no number of the competition. NOT THE SET OF THE MULTI-STAGE VIT'S TABLE:
    # see ``icassava2019`` and ``plant2021``.
    #   plant-pathology-2020-fgvc7/train.csv     image_id,healthy,multiple_diseases,rust,scab: Train_0,0,0,0,1
    #   plant-pathology-2020-fgvc7/test.csv      image_id; unlabelled, not used
    #   plant-pathology-2020-fgvc7/images/Train_0.jpg     and Test_0.jpg ...
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
    # Plant Pathology 2021: apple leaves with any of six labels, ``healthy`` among them, several at a time
    # (multi-label), each image with at least one. Test as of 2020. The code of the multi-stage ViT trains on
    # these images, yet its paper's row "FGVC7 Plant Pathology" has the counts of ``icassava2019``: three
    # sets, never one number across them.
    #   plant-pathology-2021-fgvc8/train.csv       image,labels: 80077ccd8f8c5e4f.jpg,scab frog_eye_leaf_spot
    #   plant-pathology-2021-fgvc8/train_images/80077ccd8f8c5e4f.jpg
    #   plant-pathology-2021-fgvc8/test_images/    three samples, unlabelled, not used
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
