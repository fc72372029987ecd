"""The published data sets, on tiny trees in exactly their official layout, and the real Grocery."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from fgvc_cli.data.known import KnownSet, find_known, known_sets, load_entry, load_known
from fgvc_cli.data.labelled import Example
from fgvc_cli.errors import EXIT_USAGE, FgvcError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"

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


def write_aircraft(root: Path) -> None:
    variants = ["707-320", "F/A-18 Model B"]
    lists = {
        "variants": variants,
        "images_variant_trainval": [f"102579{i} {variants[i > 2]}" for i in range(5)],
        "images_variant_test": [f"1514522 {variants[0]}", f"0747566 {variants[1]}"],
    }
    ids = [f"102579{i}" for i in range(5)] + ["1514522", "0747566"]
    touch(*(root / "images" / f"{image}.jpg" for image in ids))
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")


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


WRITERS: dict[str, Callable[[Path], None]] = {
    "aircraft": write_aircraft,
    "cars": write_cars,
    "cub": write_cub,
    "dogs": write_dogs,
    "grocery": write_grocery,
}

ALBATROSS = "images/001.Black_footed_Albatross/Black_footed_Albatross_000{}.jpg"
LAYSAN = "images/002.Laysan_Albatross/Laysan_Albatross_000{}.jpg"
CHIHUAHUA = "Images/n02085620-Chihuahua/n02085620_{}.jpg"
RETRIEVER = "Images/n02099267-flat-coated_retriever/n02099267_{}.jpg"
APPLE = "{}/Fruit/Apple/Golden-Delicious/00{}.jpg"
MILK = "{}/Packages/Milk/Arla, 3 % Milk/00{}.jpg"

# key: class names, training images with labels, test images with labels, in the order of the files
EXPECTED = {
    "aircraft": (
        ("707-320", "F/A-18 Model B"),
        [(f"images/102579{i}.jpg", int(i > 2)) for i in range(5)],
        [("images/1514522.jpg", 0), ("images/0747566.jpg", 1)],
    ),
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
    "grocery": (
        ("Golden-Delicious", "Arla, 3 % Milk"),
        [((APPLE, MILK)[i % 2].format("train", i), i % 2) for i in range(5)],
        [(APPLE.format("test", 0), 0), (MILK.format("test", 1), 1)],
    ),
}

every_set = pytest.mark.parametrize("key", sorted(WRITERS))


def tiny(key: str, data_root: Path) -> tuple[KnownSet, Path]:
    """The entry with tiny counts, and its tree written below ``data_root``."""
    entry = find_known(key)
    root = data_root / entry.folder
    root.mkdir(parents=True)
    WRITERS[key](root)
    return replace(entry, classes=2, train=5, test=2, val=1 if entry.val else 0), root


def refusal(entry: KnownSet, data_root: Path) -> str:
    with pytest.raises(FgvcError) as caught:
        load_entry(entry, data_root)
    message = str(caught.value)
    assert "\n" not in message
    assert entry.tree in message and entry.expected in message and entry.source in message
    return message


@every_set
def test_official_layout(tmp_path: Path, key: str) -> None:
    entry, root = tiny(key, tmp_path)
    listing = load_entry(entry, tmp_path)
    classes, train, test = EXPECTED[key]
    assert (listing.name, listing.root, listing.classes) == (key, root, classes)
    assert listing.splits["test"] == tuple(Example(*row) for row in test)
    if key == "grocery":
        assert listing.splits["train"] == tuple(Example(*row) for row in train)
        assert listing.splits["val"] == (Example("val/Packages/Milk/Arla, 3 % Milk/000.jpg", 1),)
    else:
        assert listing.counts() == {"train": 3, "val": 2, "test": 2}
        assert [e.label for e in sorted(listing.splits["val"], key=lambda e: e.label)] == [0, 1]
        both = listing.splits["train"] + listing.splits["val"]
        assert sorted(both) == sorted(Example(*row) for row in train)


@every_set
def test_data_root_may_be_any_folder_down_to_the_set(tmp_path: Path, key: str) -> None:
    entry, root = tiny(key, tmp_path)
    parts = Path(entry.folder).parts
    below = [tmp_path.joinpath(*parts[:i]) for i in range(len(parts) + 1)]
    assert below[-1] == root
    assert [load_entry(entry, folder).root for folder in below] == [root] * len(below)


def test_hold_out_follows_seed_and_share(tmp_path: Path) -> None:
    entry, _ = tiny("cub", tmp_path)
    held = {load_entry(entry, tmp_path, seed=seed).splits["val"] for seed in range(8)}
    assert len(held) > 1
    assert load_entry(entry, tmp_path, val_share=0.6).counts() == {"train": 2, "val": 3, "test": 2}


@every_set
def test_absent_set_names_tree_counts_and_source(tmp_path: Path, key: str) -> None:
    assert f"is not in {tmp_path}" in refusal(find_known(key), tmp_path)


@every_set
def test_incomplete_tree_names_what_is_missing(tmp_path: Path, key: str) -> None:
    entry, root = tiny(key, tmp_path)
    folder = entry.needs[-1]
    (root / entry.needs[0]).unlink()
    (root / folder).rename(root / "elsewhere")
    (root / folder).touch()  # a file is no folder
    assert f"at {root} lacks {entry.needs[0]}, {folder}." in refusal(entry, tmp_path)


@every_set
def test_missing_image_is_counted_and_named(tmp_path: Path, key: str) -> None:
    entry, root = tiny(key, tmp_path)
    first = EXPECTED[key][1][0][0]
    (root / first).unlink()
    (root / EXPECTED[key][2][1][0]).unlink()
    total = 8 if key == "grocery" else 7
    assert f"2 of {total} listed images are missing, first {first}." in refusal(entry, tmp_path)


@every_set
@pytest.mark.parametrize("field", ["classes", "train", "val", "test"])
def test_other_counts_than_the_official_are_refused(tmp_path: Path, key: str, field: str) -> None:
    entry, _ = tiny(key, tmp_path)
    other = replace(entry, **{field: getattr(entry, field) + 1})
    arrived = "2 classes, 5 train, 1 val, 2 test" if entry.val else "2 classes, 5 train, 2 test"
    assert f"lists {arrived}." in refusal(other, tmp_path)


def swap(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, 1))

    return edit


def cut(name: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        (root / name).write_bytes((root / name).read_bytes()[:-40])

    return edit


def relabel_test_cars(classes: list[int]) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        savemat(root / "cars_test_annos_withlabels.mat", {"annotations": car_rows(classes)})

    return edit


def two_names_for_one_dog(root: Path) -> None:
    files = cells(["n1-a/1.jpg", "n2-b/2.jpg"], (2, 1))
    savemat(root / "test_list.mat", {"file_list": files, "labels": np.array([[1], [1]])})


@pytest.mark.parametrize(
    ("key", "damage", "part"),
    [
        ("cub", swap("images.txt", "7 002.Lay", "8 002.Lay"), "list different images"),
        ("cub", swap("train_test_split.txt", "1 0", "1 2"), "flags other than 0 and 1"),
        ("cub", swap("classes.txt", "1 001.Black_footed_Albatross", "1"), "'1' is not two words"),
        ("cub", swap("image_class_labels.txt", "1 1", "1 3"), "KeyError: '3'"),
        ("aircraft", swap("variants.txt", "707-320", "707-321"), "trainval.txt has '707-320'"),
        ("grocery", swap("val.txt", ", 1, 41", ", 1"), "ValueError"),
        ("grocery", swap("classes.csv", "Class ID (int)", "id"), "KeyError: 'Class ID (int)'"),
        ("cars", cut("devkit/cars_train_annos.mat"), "cars_train_annos.mat"),
        ("cars", lambda root: savemat(root / "devkit/cars_meta.mat", {"names": 1}), "KeyError: 'class_n"),
        (
            "cars",
            relabel_test_cars([1, 3]),
            "labels from 0 to 2 for 2 classes",
        ),
        (
            "cars",
            relabel_test_cars([0, 1]),
            "labels from -1 to 1 for 2 classes",
        ),
        ("dogs", two_names_for_one_dog, "label 1 is both n02085620-Chihuahua and n1-a"),
        ("dogs", lambda root: (root / "test_list.mat").write_text("<html>404</html>"), "test_list.mat"),
    ],
)
def test_damaged_lists_are_refused(
    tmp_path: Path, key: str, damage: Callable[[Path], object], part: str
) -> None:
    entry, root = tiny(key, tmp_path)
    damage(root)
    message = refusal(entry, tmp_path)
    assert f"{entry.title} at {root} does not read (" in message
    assert part in message


def test_one_row_mat_files_read(tmp_path: Path) -> None:
    """Squeezing turns arrays of one row into scalars."""
    cars, root = tiny("cars", tmp_path)
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": car_rows([2])})
    assert load_entry(replace(cars, test=1), tmp_path).splits["test"] == (Example("cars_test/00001.jpg", 1),)
    dogs, root = tiny("dogs", tmp_path)
    file = "n02085620-Chihuahua/n02085620_test0.jpg"
    savemat(root / "test_list.mat", {"file_list": cells([file], (1, 1)), "labels": np.array([[1]])})
    assert load_entry(replace(dogs, test=1), tmp_path).splits["test"] == (Example(f"Images/{file}", 0),)


def test_registry_agrees_with_its_files_and_the_papers() -> None:
    table = {entry.key: (entry.classes, entry.train, entry.val, entry.test) for entry in known_sets()}
    assert table == {
        "aircraft": (100, 6667, 0, 3333),
        "cars": (196, 8144, 0, 8041),
        "cub": (200, 5994, 0, 5794),
        "dogs": (120, 12000, 0, 8580),
        "grocery": (81, 2640, 296, 2485),
    }
    assert all(find_known(key).key == key for key in table)


@pytest.mark.parametrize(("name", "hint"), [("cubs", "Did you mean cub or cars?"), ("CIFAR-10", None)])
def test_unknown_name(tmp_path: Path, name: str, hint: str | None) -> None:
    with pytest.raises(FgvcError) as caught:
        load_known(name, tmp_path)
    assert caught.value.exit_code == EXIT_USAGE
    assert repr(name) in caught.value.message
    assert "aircraft, cars, cub, dogs, grocery" in caught.value.message
    assert caught.value.hint == hint


@pytest.mark.parametrize("value", [None, ""])
def test_no_data_root(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("FGVC_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("FGVC_DATA", value)
    with pytest.raises(FgvcError) as caught:
        load_known("cub", None)
    assert caught.value.exit_code == EXIT_USAGE
    assert "--data-root" in str(caught.value) and "FGVC_DATA" in str(caught.value)


def test_data_root_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGVC_DATA", str(tmp_path / "set"))
    with pytest.raises(FgvcError, match="is not in .*set"):
        load_known("cub", None)
    with pytest.raises(FgvcError, match="is not in .*given"):
        load_known("cub", tmp_path / "given")


def test_real_grocery() -> None:
    if not (SHARED / "grocery" / "classes.csv").is_file():
        pytest.skip(f"the Grocery Store Dataset is not in {SHARED}")
    listing = load_known("grocery", SHARED)
    assert len(listing.classes) == len(set(listing.classes)) == 81
    assert listing.counts() == {"train": 2640, "val": 296, "test": 2485}
    assert (listing.classes[0], listing.classes[80]) == ("Golden-Delicious", "Zucchini")
    for split, examples in listing.splits.items():
        # the class of an image is also a folder of its path: a second witness for the label
        assert all(listing.classes[e.label] in e.path.split("/") for e in examples)
        assert all(e.path.startswith(f"{split}/") for e in examples)


def test_listing_imports_neither_torch_nor_scipy() -> None:
    code = (
        "import sys; from fgvc_cli.data import known, labelled; known.known_sets(); "
        "print(sorted({'torch', 'scipy', 'PIL'} & set(sys.modules)))"
    )
    repository = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
