"""Tiny trees in exactly the official layouts of the known sets, and what they list."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.io import savemat
from torchvision.datasets import Flowers102

from fgvc_cli.datasets.entries import KnownSet
from fgvc_cli.datasets.registry import find_known

# Every tiny tree has 2 classes, 3 training images of the first, 2 of the second, and 1 + 1 for test.


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_cub(root: Path) -> None:
    birds = ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
    rows = [(0, 0), (0, 1), (0, 1), (0, 1), (1, 1), (1, 0), (1, 1)]  # class, training flag
    paths = [f"{birds[c]}/{birds[c][4:]}_{i:04}.jpg" for i, (c, _) in enumerate(rows)]
    touch(*(root / "images" / path for path in paths))
    lists = {
        "classes": [f"{i} {bird}" for i, bird in enumerate(birds, 1)],
        "images": [f"{i} {path}" for i, path in enumerate(paths, 1)],
        "image_class_labels": [f"{i} {c + 1}" for i, (c, _) in enumerate(rows, 1)],
        "train_test_split": [f"{i} {flag}" for i, (_, flag) in enumerate(rows, 1)],
    }
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")


def car_rows(classes: list[int]) -> np.ndarray:
    """The devkit's 1 x N struct array; its numbers are 1 x 1 matrices, its classes uint8."""
    boxes = [(f"bbox_{corner}", object) for corner in ("x1", "y1", "x2", "y2")]
    rows = np.empty((1, len(classes)), dtype=[*boxes, ("class", object), ("fname", object)])
    for i, number in enumerate(classes):
        box = [np.array([[value]], dtype=np.uint16) for value in (39, 116, 569, 375)]
        rows[0, i] = (*box, np.array([[number]], dtype=np.uint8), f"{i + 1:05}.jpg")
    return rows


def cells(values: list[str], shape: tuple[int, int]) -> np.ndarray:
    return np.array(values, dtype=object).reshape(shape)


def write_cars(root: Path) -> None:
    (root / "devkit").mkdir()
    names = ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"]
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": cells(names, (1, 2))})
    savemat(root / "devkit" / "cars_train_annos.mat", {"annotations": car_rows([2, 1, 1, 2, 1])})
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": car_rows([1, 2])})
    touch(*(root / "cars_train" / f"{i:05}.jpg" for i in range(1, 6)))
    touch(*(root / "cars_test" / f"{i:05}.jpg" for i in range(1, 3)))


def write_dogs(root: Path) -> None:
    breeds = ["n02085620-Chihuahua", "n02099267-flat-coated_retriever"]
    for split, labels in (("train", [1, 1, 1, 2, 2]), ("test", [1, 2])):
        files = [f"{breeds[n - 1]}/{breeds[n - 1][:9]}_{split}{i}.jpg" for i, n in enumerate(labels)]
        touch(*(root / "Images" / file for file in files))
        shape = (len(files), 1)
        listing = {
            "file_list": cells(files, shape),
            "annotation_list": cells([file[:-4] for file in files], shape),
            "labels": np.array(labels, dtype=np.uint8).reshape(shape),
        }
        savemat(root / f"{split}_list.mat", listing)


AIRCRAFT = {
    "variant": ("variants", ["707-320", "F/A-18 Model B"]),
    "family": ("families", ["Boeing 707", "F/A-18"]),
    "manufacturer": ("manufacturers", ["Boeing", "McDonnell Douglas"]),
}


def write_aircraft(root: Path) -> None:
    for level, (file, names) in AIRCRAFT.items():
        lists = {
            file: names,
            f"images_{level}_trainval": [f"102579{i} {names[i > 2]}" for i in range(5)],
            f"images_{level}_test": [f"1514522 {names[0]}", f"0747566 {names[1]}"],
        }
        for name, lines in lists.items():
            (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    ids = [f"102579{i}" for i in range(5)] + ["1514522", "0747566"]
    touch(*(root / "images" / f"{image}.jpg" for image in ids))


def write_grocery(root: Path) -> None:
    listed = {"train": [0, 1, 0, 1, 0], "val": [1], "test": [0, 1]}
    folders = ["Fruit/Apple/Golden-Delicious", "Packages/Milk/Arla, 3 % Milk"]
    for split, fines in listed.items():
        paths = [f"{split}/{folders[fine]}/{i:03}.jpg" for i, fine in enumerate(fines)]
        touch(*(root / path for path in paths))
        lines = [f"{path}, {fine}, {fine + 40}" for path, fine in zip(paths, fines, strict=True)]
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    header = "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),Iconic Image"
    rows = ['"Arla, 3 % Milk",1,Milk,41,/b.jpg', "Golden-Delicious,0,Apple,40,/a.jpg"]
    (root / "classes.csv").write_text("\n".join([header, *rows]))


def write_plant2020(root: Path) -> None:
    header = "image_id,healthy,multiple_diseases,rust,scab"
    flags = ["1,0,0,0", "0,1,0,0", "0,0,1,0", "0,0,0,1"]
    rows = [f"Train_{i},{flags[i % 4]}" for i in range(12)]
    (root / "train.csv").write_text("\n".join([header, *rows]) + "\n")
    (root / "test.csv").write_text("image_id\nTest_0\n")
    touch(*(root / "images" / f"Train_{i}.jpg" for i in range(12)), root / "images" / "Test_0.jpg")


LEAVES = ["rust", "scab", "scab frog_eye_leaf_spot", "rust", "scab", "rust frog_eye_leaf_spot", "rust"]
LEAVES += ["frog_eye_leaf_spot", "scab"]


def write_plant2021(root: Path) -> None:
    rows = [f"800{i}.jpg,{labels}" for i, labels in enumerate(LEAVES)]
    (root / "train.csv").write_text("\n".join(["image,labels", *rows]) + "\n")
    touch(*(root / "train_images" / f"800{i}.jpg" for i in range(len(LEAVES))))
    touch(root / "test_images" / "85f8.jpg")


def write_icassava(root: Path) -> None:
    listed = {"train": [0, 0, 0, 1, 1], "validation": [1], "test": [0, 1]}
    for split, labels in listed.items():
        for i, label in enumerate(labels):
            name = ("cbb", "healthy")[label]
            touch(root / split / name / f"{split}-{name}-{i}.jpg")


def write_flowers(root: Path) -> None:
    labels = np.array([[1, 2, 1, 2, 1, 102, 1, 2, 2]], dtype=np.uint8)
    savemat(root / "imagelabels.mat", {"labels": labels})
    ids = {"trnid": [3, 1, 2, 4, 5], "valid": [6, 9], "tstid": [7, 8]}
    savemat(root / "setid.mat", {name: np.array([values], dtype=np.uint16) for name, values in ids.items()})
    touch(*(root / "jpg" / f"image_{i:05}.jpg" for i in range(1, 10)))


def write_pets(root: Path) -> None:
    train = ["Abyssinian_100 1 1 1", "Abyssinian_101 1 1 1", "american_bulldog_10 2 2 1"]
    train += ["Abyssinian_102 1 1 1", "american_bulldog_11 2 2 1"]
    lists = {"trainval": train, "test": ["Abyssinian_201 1 1 1", "american_bulldog_201 2 2 1"]}
    (root / "annotations").mkdir()
    for name, lines in lists.items():
        (root / "annotations" / f"{name}.txt").write_text("\n".join(lines) + "\n")
        touch(*(root / "images" / f"{line.split()[0]}.jpg" for line in lines))


def write_food(root: Path) -> None:
    lists = {
        "train": {"waffles": ["waffles/1", "waffles/2"], "apple_pie": [f"apple_pie/{i}" for i in range(3)]},
        "test": {"apple_pie": ["apple_pie/9"], "waffles": ["waffles/9"]},
    }
    (root / "meta").mkdir()
    for split, images in lists.items():
        (root / "meta" / f"{split}.json").write_text(json.dumps(images))
        touch(*(root / "images" / f"{image}.jpg" for own in images.values() for image in own))


WRITERS: dict[str, Callable[[Path], None]] = {
    "aircraft": write_aircraft,
    "aircraft-family": write_aircraft,
    "aircraft-manufacturer": write_aircraft,
    "cars": write_cars,
    "cub": write_cub,
    "dogs": write_dogs,
    "flowers102": write_flowers,
    "food101": write_food,
    "grocery": write_grocery,
    "grocery-coarse": write_grocery,
    "icassava2019": write_icassava,
    "pets": write_pets,
    "plant2020": write_plant2020,
    "plant2021": write_plant2021,
}

# counts of the trees that differ from 2 classes, 5 train, 2 test
COUNTS: dict[str, dict[str, int]] = {
    "flowers102": {"classes": 102, "val": 2},
    "grocery": {"val": 1},
    "grocery-coarse": {"val": 1},
    "icassava2019": {"val": 1},
    "plant2020": {"classes": 4, "train": 12, "test": 0},
    "plant2021": {"classes": 3, "train": 9, "test": 0},
}
VAL = {
    "flowers102": [("jpg/image_00006.jpg", 101), ("jpg/image_00009.jpg", 1)],
    "grocery": [("val/Packages/Milk/Arla, 3 % Milk/000.jpg", 1)],
    "grocery-coarse": [("val/Packages/Milk/Arla, 3 % Milk/000.jpg", 1)],
    "icassava2019": [("validation/healthy/validation-healthy-0.jpg", 1)],
}

ALBATROSS = "images/001.Black_footed_Albatross/Black_footed_Albatross_000{}.jpg"
LAYSAN = "images/002.Laysan_Albatross/Laysan_Albatross_000{}.jpg"
CHIHUAHUA = "Images/n02085620-Chihuahua/n02085620_{}.jpg"
RETRIEVER = "Images/n02099267-flat-coated_retriever/n02099267_{}.jpg"
APPLE = "{}/Fruit/Apple/Golden-Delicious/00{}.jpg"
MILK = "{}/Packages/Milk/Arla, 3 % Milk/00{}.jpg"

GROCERY = (
    [((APPLE, MILK)[i % 2].format("train", i), i % 2) for i in range(5)],
    [(APPLE.format("test", 0), 0), (MILK.format("test", 1), 1)],
)
PLANES = (
    [(f"images/102579{i}.jpg", int(i > 2)) for i in range(5)],
    [("images/1514522.jpg", 0), ("images/0747566.jpg", 1)],
)
CASSAVA = "{0}/{1}/{0}-{1}-{2}.jpg"

# key: class names, training images with labels, test images with labels, in the order of the files
EXPECTED: dict[str, tuple[tuple[str, ...], list, list]] = {
    "aircraft": (("707-320", "F/A-18 Model B"), *PLANES),
    "aircraft-family": (("Boeing 707", "F/A-18"), *PLANES),
    "aircraft-manufacturer": (("Boeing", "McDonnell Douglas"), *PLANES),
    "cars": (
        ("AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"),
        [(f"cars_train/0000{i}.jpg", label) for i, label in enumerate((1, 0, 0, 1, 0), 1)],
        [("cars_test/00001.jpg", 0), ("cars_test/00002.jpg", 1)],
    ),
    "cub": (
        ("Black_footed_Albatross", "Laysan_Albatross"),
        [*((ALBATROSS.format(i), 0) for i in (1, 2, 3)), *((LAYSAN.format(i), 1) for i in (4, 6))],
        [(ALBATROSS.format(0), 0), (LAYSAN.format(5), 1)],
    ),
    "dogs": (
        ("Chihuahua", "flat-coated_retriever"),
        [(CHIHUAHUA.format(f"train{i}"), 0) for i in range(3)]
        + [(RETRIEVER.format(f"train{i}"), 1) for i in (3, 4)],
        [(CHIHUAHUA.format("test0"), 0), (RETRIEVER.format("test1"), 1)],
    ),
    "flowers102": (
        tuple(Flowers102.classes),
        [(f"jpg/image_0000{i}.jpg", label) for i, label in ((3, 0), (1, 0), (2, 1), (4, 1), (5, 0))],
        [("jpg/image_00007.jpg", 0), ("jpg/image_00008.jpg", 1)],
    ),
    "food101": (
        ("apple_pie", "waffles"),
        [("images/waffles/1.jpg", 1), ("images/waffles/2.jpg", 1)]
        + [(f"images/apple_pie/{i}.jpg", 0) for i in range(3)],
        [("images/apple_pie/9.jpg", 0), ("images/waffles/9.jpg", 1)],
    ),
    "grocery": (("Golden-Delicious", "Arla, 3 % Milk"), *GROCERY),
    "grocery-coarse": (("Apple", "Milk"), *GROCERY),
    "icassava2019": (
        ("cbb", "healthy"),
        [(CASSAVA.format("train", "cbb", i), 0) for i in range(3)]
        + [(CASSAVA.format("train", "healthy", i), 1) for i in (3, 4)],
        [(CASSAVA.format("test", "cbb", 0), 0), (CASSAVA.format("test", "healthy", 1), 1)],
    ),
    "pets": (
        ("Abyssinian", "American Bulldog"),
        [(f"images/Abyssinian_{i}.jpg", 0) for i in (100, 101)]
        + [("images/american_bulldog_10.jpg", 1), ("images/Abyssinian_102.jpg", 0)]
        + [("images/american_bulldog_11.jpg", 1)],
        [("images/Abyssinian_201.jpg", 0), ("images/american_bulldog_201.jpg", 1)],
    ),
    "plant2020": (
        ("healthy", "multiple_diseases", "rust", "scab"),
        [(f"images/Train_{i}.jpg", i % 4) for i in range(12)],
        [],
    ),
    "plant2021": (
        ("frog_eye_leaf_spot", "rust", "scab"),
        [
            ("train_images/8000.jpg", 1),
            ("train_images/8001.jpg", 2),
            ("train_images/8002.jpg", 0, (2,)),
            ("train_images/8003.jpg", 1),
            ("train_images/8004.jpg", 2),
            ("train_images/8005.jpg", 0, (1,)),
            ("train_images/8006.jpg", 1),
            ("train_images/8007.jpg", 0),
            ("train_images/8008.jpg", 2),
        ],
        [],
    ),
}


def tar_of(folder: Path, name: str) -> bytes:
    """The folder as a .tar.gz, called ``name`` in it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tarred:
        tarred.add(folder, name)
    return stream.getvalue()


def tiny(key: str, data_root: Path) -> tuple[KnownSet, Path]:
    """The entry with tiny counts, and its tree written below ``data_root``."""
    entry = find_known(key)
    root = data_root / entry.folder
    root.mkdir(parents=True)
    WRITERS[key](root)
    counts = {"classes": 2, "train": 5, "test": 2, "val": 0} | COUNTS.get(key, {})
    return replace(entry, **counts), root
