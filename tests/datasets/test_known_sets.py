"""The published data sets, on tiny trees in exactly their official layout, and the real Grocery."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from known_trees import EXPECTED, LEAVES, VAL, WRITERS, car_rows, cells, tiny
from scipy.io import savemat
from torchvision.datasets import Flowers102

from fgvc_cli.data.listing import Example
from fgvc_cli.datasets.entries import KnownSet
from fgvc_cli.datasets.registry import find_known, known_sets, load_boxes, load_entry, load_known
from fgvc_cli.errors import EXIT_USAGE, FgvcError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"

every_set = pytest.mark.parametrize("key", sorted(WRITERS))


@pytest.fixture(autouse=True)
def _other_flower_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision knows the checksums of the real lists."""
    files = {name: (file, None) for name, (file, _) in Flowers102._file_dict.items()}
    monkeypatch.setattr(Flowers102, "_file_dict", files)


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
    banner_px = 20 if key.startswith("aircraft") else 0
    official = [Example(*row, banner_px=banner_px) for row in train]
    if key in VAL:
        assert list(listing.splits["train"]) == official
        assert listing.splits["val"] == tuple(Example(*row) for row in VAL[key])
    elif test:
        assert listing.counts() == {"train": 3, "val": 2, "test": 2}
        assert sorted(e.label for e in listing.splits["val"]) == [0, 1]
        assert sorted(listing.splits["train"] + listing.splits["val"]) == sorted(official)
    if test:
        assert listing.splits["test"] == tuple(Example(*row, banner_px=banner_px) for row in test)
    assert listing.multi_label == (key == "plant2021")


@pytest.mark.parametrize("key", ["plant2020", "plant2021"])
def test_unpublished_test_labels_are_replaced_by_a_deal_that_no_seed_moves(tmp_path: Path, key: str) -> None:
    entry, _ = tiny(key, tmp_path)
    listings = [load_entry(entry, tmp_path, seed=seed) for seed in range(6)]
    tests = {listing.splits["test"] for listing in listings}
    assert len(tests) == 1
    assert len({listing.splits["val"] for listing in listings}) > 1
    for listing in listings:
        assert all(listing.counts().values())
        everything = [e for split in listing.splits.values() for e in split]
        assert sorted(everything) == sorted(Example(*row) for row in EXPECTED[key][1])
    if key == "plant2020":
        assert sorted(e.label for e in tests.pop()) == [0, 1, 2, 3]
    assert "20% of train dealt as test" in entry.expected


def test_leaves_keep_all_their_labels(tmp_path: Path) -> None:
    entry, _ = tiny("plant2021", tmp_path)
    listing = load_entry(entry, tmp_path)
    texts = {e.path: listing.label_text(e) for split in listing.splits.values() for e in split}
    assert texts == {
        f"train_images/800{i}.jpg": "|".join(sorted(labels.split())) for i, labels in enumerate(LEAVES)
    }


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
    *others, folder = entry.needs
    lost = [others[0], folder] if len(others) > 1 else [folder]
    for need in lost:
        (root / need).rename(tmp_path / f"away-{need.strip('/').replace('/', '-')}")
    (root / folder).touch()  # a file is no folder
    assert f"at {root} lacks {', '.join(lost)}." in refusal(entry, tmp_path)


@every_set
def test_missing_image_is_counted_and_named(tmp_path: Path, key: str) -> None:
    entry, root = tiny(key, tmp_path)
    first = EXPECTED[key][1][0][0]
    second = (EXPECTED[key][2] or EXPECTED[key][1])[1][0]
    (root / first).unlink()
    (root / second).unlink()
    if key == "icassava2019":  # no list says which there are; the counts tell
        assert "2 classes, 4 train, 1 val, 1 test" in refusal(entry, tmp_path)
        return
    total = entry.train + entry.val + entry.test
    assert f"2 of {total} listed images are missing, first {first}." in refusal(entry, tmp_path)


@every_set
@pytest.mark.parametrize("field", ["classes", "train", "val", "test"])
def test_other_counts_than_the_official_are_refused(tmp_path: Path, key: str, field: str) -> None:
    entry, _ = tiny(key, tmp_path)
    other = replace(entry, **{field: getattr(entry, field) + 1})
    arrived = entry.expected.partition(", 20%")[0]
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
        ("plant2020", swap("train.csv", "0,0,0,1", "0,0,1,1"), "Train_3 has [0.0, 0.0, 1.0, 1.0]"),
        ("plant2020", swap("train.csv", "scab", "scabs"), "KeyError: 'scab'"),
        ("plant2021", swap("train.csv", "8001.jpg", "8000.jpg"), "8000.jpg is there twice"),
        ("plant2021", swap("train.csv", "8000.jpg,rust", "8000.jpg,"), "8000.jpg has no label"),
        ("flowers102", cut("setid.mat"), "OSError"),
        ("food101", cut("meta/train.json"), "JSONDecodeError"),
        ("pets", swap("annotations/test.txt", "2 2 1", "2"), "ValueError"),
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
        "aircraft-family": (70, 6667, 0, 3333),
        "aircraft-manufacturer": (30, 6667, 0, 3333),
        "cars": (196, 8144, 0, 8041),
        "cub": (200, 5994, 0, 5794),
        "dogs": (120, 12000, 0, 8580),
        "flowers102": (102, 1020, 1020, 6149),
        "food101": (101, 75750, 0, 25250),
        "grocery": (81, 2640, 296, 2485),
        "grocery-coarse": (43, 2640, 296, 2485),
        "icassava2019": (5, 5656, 1889, 1885),
        "pets": (37, 3680, 0, 3669),
        "plant2020": (4, 1821, 0, 0),
        "plant2021": (6, 18632, 0, 0),
    }
    assert all(find_known(key).key == key for key in table)


@pytest.mark.parametrize(("name", "hint"), [("cubs", "Did you mean cub or cars?"), ("CIFAR-10", None)])
def test_unknown_name(tmp_path: Path, name: str, hint: str | None) -> None:
    with pytest.raises(FgvcError) as caught:
        load_known(name, tmp_path)
    assert caught.value.exit_code == EXIT_USAGE
    assert repr(name) in caught.value.message
    assert "cars, cub, dogs, flowers102" in caught.value.message
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
        "import sys; from fgvc_cli.data import labelled; from fgvc_cli.datasets import registry; "
        "registry.known_sets(); "
        "print(sorted({'torch', 'scipy'} & set(sys.modules)))"
    )
    repository = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


BOX = (38, 115, 569, 375)
"""Of every tiny car: the files count from 1 and include the last pixel."""


def test_cars_as_the_devkit_and_as_the_nested_copy(tmp_path: Path) -> None:
    entry, root = tiny("cars", tmp_path)
    flat = load_entry(entry, tmp_path)
    (root / "cars_test_annos_withlabels.mat").rename(root / "devkit" / "cars_test_annos_withlabels.mat")
    assert load_entry(entry, tmp_path) == flat
    for name in ("cars_train", "cars_test"):
        (root / name).rename(root / "away")
        (root / name).mkdir()
        (root / "away").rename(root / name / name)
    nested = load_entry(entry, tmp_path)
    first = "cars_test/cars_test/00001.jpg"
    assert nested.counts() == flat.counts() and nested.splits["test"][0] == Example(first, 0)
    assert load_boxes(root, [first])[first].objects == (BOX,)


def test_cars_in_one_list_and_never_with_its_numbers_on_other_images(tmp_path: Path) -> None:
    entry = replace(find_known("cars"), classes=2, train=5, test=2)
    root = tmp_path / "stanford_cars"
    listed = [(2, 0), (1, 0), (1, 0), (2, 0), (1, 0), (1, 1), (2, 1)]
    old = car_rows([number for number, _ in listed])
    rows = np.empty(old.shape, dtype=[*old.dtype.descr[:-1], ("relative_im_path", object), ("test", object)])
    for i, (_, test) in enumerate(listed):
        path = f"car_ims/{i + 1:06}.jpg"
        rows[0, i] = (*tuple(old[0, i])[:-1], path, np.array([[test]], dtype=np.uint8))
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    savemat(root / "cars_annos.mat", {"annotations": rows, "class_names": cells(["A", "B"], (1, 2))})
    listing = load_entry(entry, tmp_path)
    assert listing.classes == ("A", "B")
    assert listing.splits["test"] == (Example("car_ims/000006.jpg", 0), Example("car_ims/000007.jpg", 1))
    assert load_boxes(root, ["car_ims/000007.jpg"])["car_ims/000007.jpg"].objects == (BOX,)
    (root / "car_ims").rename(root / "cars_train")
    (root / "cars_test").mkdir()
    assert "numbers the images of car_ims/" in refusal(entry, tmp_path)


def test_dogs_with_their_lists_in_a_folder_and_with_their_caveat(tmp_path: Path) -> None:
    entry, root = tiny("dogs", tmp_path)
    before = load_entry(entry, tmp_path)
    (root / "lists").mkdir()
    for name in ("train_list.mat", "test_list.mat"):
        (root / name).rename(root / "lists" / name)
    assert load_entry(entry, tmp_path) == before
    assert "ImageNet" in before.caveat


def test_no_val_on_request(tmp_path: Path) -> None:
    entry, _ = tiny("cub", tmp_path)
    assert load_entry(entry, tmp_path, val_share=0).counts() == {"train": 5, "val": 0, "test": 2}


def test_lists_that_tell_a_tree_bring_it(tmp_path: Path) -> None:
    boeing, hornet = ("Boeing", "Boeing 707"), ("McDonnell Douglas", "F/A-18")
    expected = {
        "grocery": (("kind", "coarse"), (("Fruit", "Apple"), ("Packages", "Milk"))),
        "grocery-coarse": (("kind",), (("Fruit",), ("Packages",))),
        "aircraft": (("manufacturer", "family"), (boeing, hornet)),
        "aircraft-family": (("manufacturer",), (boeing[:1], hornet[:1])),
        "cub": (("group",), (("Albatross",), ("Albatross",))),
    }
    for key in ("aircraft-manufacturer", "dogs", *expected):
        (tmp_path / key).mkdir()
        tree = load_entry(tiny(key, tmp_path / key)[0], tmp_path / key).taxonomy
        assert (tree and (tree.ranks, tree.lineages)) == expected.get(key)


def test_the_banner_of_aircraft_is_known_and_said_beside_its_scores(tmp_path: Path) -> None:
    data = load_entry(tiny("aircraft", tmp_path)[0], tmp_path)
    assert {each.banner_px for examples in data.splits.values() for each in examples} == {20}
    assert "20 rows" in data.caveat


def test_aircraft_without_its_other_lists_or_with_lists_that_are_no_tree(tmp_path: Path) -> None:
    entry, root = tiny("aircraft", tmp_path)
    family = root / "images_family_trainval.txt"
    family.write_text(family.read_text().replace("F/A-18", "Boeing 707"))
    (root / "images_family_test.txt").write_text("1514522 Boeing 707\n0747566 Boeing 707\n")
    listing = load_entry(entry, tmp_path)
    assert listing.taxonomy is None and "family 'Boeing 707' below two of manufacturer" in listing.notes[0]
    family.unlink()
    assert load_entry(entry, tmp_path).taxonomy is None
