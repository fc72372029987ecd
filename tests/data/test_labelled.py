"""Folders and CSVs: classes, splits, the seeded deal, and every refusal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fgvc_cli.data.labelled import (
    Example,
    LabelledSet,
    hold_out_validation,
    load_labelled,
    missing_images,
    natural_key,
)
from fgvc_cli.errors import EXIT_USAGE, FgvcError


def write_images(root: Path, counts: dict[str, int]) -> Path:
    """Empty files ``root/<folder>/000.jpg ...``: a listing reads no pixels."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / folder / f"{i:03}.jpg").touch()
    return root


def write_csv(root: Path, text: str, images: str = "a1 a2 a3 b1 b2 b3") -> Path:
    for name in images.split():
        (root / f"{name}.jpg").touch()
    path = root / "birds.csv"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, **options: Any) -> FgvcError:
    with pytest.raises(FgvcError) as caught:
        load_labelled(path, **options)
    assert "\n" not in str(caught.value)
    return caught.value


def of_class(listing: LabelledSet, split: str, name: str) -> list[str]:
    return [e.path for e in listing.splits[split] if listing.classes[e.label] == name]


def test_folder_is_dealt_per_class(tmp_path: Path) -> None:
    listing = load_labelled(write_images(tmp_path / "birds", {"wren": 20, "robin": 10}))
    assert (listing.name, listing.root) == ("birds", tmp_path / "birds")
    assert listing.classes == ("robin", "wren")
    assert listing.counts() == {"train": 21, "val": 3, "test": 6}
    for split, wrens, robins in (("train", 14, 7), ("val", 2, 1), ("test", 4, 2)):
        assert len(of_class(listing, split, "wren")) == wrens
        assert len(of_class(listing, split, "robin")) == robins
    everything = [e for split in listing.splits.values() for e in split]
    expected = [Example(f"robin/{i:03}.jpg", 0) for i in range(10)]
    expected += [Example(f"wren/{i:03}.jpg", 1) for i in range(20)]
    assert sorted(everything) == expected


@pytest.mark.parametrize(
    ("images", "expected"),
    # by hand: val round(n / 10) and test round(n / 5), each at least one, train served first, then val
    [(2, (1, 1, 0)), (3, (1, 1, 1)), (4, (2, 1, 1)), (7, (5, 1, 1)), (8, (5, 1, 2)), (15, (10, 2, 3))],
)
def test_small_classes_keep_a_training_image(
    tmp_path: Path, images: int, expected: tuple[int, int, int]
) -> None:
    listing = load_labelled(write_images(tmp_path, {"few": images, "many": 30}))
    assert tuple(len(of_class(listing, split, "few")) for split in ("train", "val", "test")) == expected


def test_deal_depends_on_the_seed_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_images(tmp_path / "one", {"a": 30, "b": 30})
    first = load_labelled(root, seed=3)
    assert load_labelled(root, seed=3) == first
    assert load_labelled(root, seed=4).splits["val"] != first.splits["val"]

    more = write_images(tmp_path / "two", {"a": 30, "aa": 12, "b": 30})
    joined = load_labelled(more, seed=3)
    for split in ("train", "val", "test"):
        assert of_class(joined, split, "a") == of_class(first, split, "a")
        assert of_class(joined, split, "b") == of_class(first, split, "b")

    walk = os.walk

    def backwards(*args: Any, **options: Any) -> Iterator[tuple[str, list[str], list[str]]]:
        for folder, below, files in walk(*args, **options):
            yield folder, below, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    assert load_labelled(root, seed=3) == first


def test_deal_is_pinned(tmp_path: Path) -> None:
    """A published number names its seed: the deal may not drift between versions."""
    listing = load_labelled(write_images(tmp_path, {"a": 10, "b": 10}))
    assert [e.path for e in listing.splits["val"]] == ["a/003.jpg", "b/009.jpg"]
    assert of_class(listing, "test", "a") == ["a/005.jpg", "a/006.jpg"]


def test_images_are_found_at_depth_by_suffix_and_not_hidden(tmp_path: Path) -> None:
    root = write_images(tmp_path, {"x10/deep/er": 1, "x10": 1, "x2": 2, "x2/.thumbs": 3, ".git": 2})
    for name in ("big.JPEG", "p.png", "w.webp", "m.bmp", "t.tif", "t.tiff", "g.gif", "r.ppm"):
        (root / "x2" / name).touch()
    for name in ("notes.txt", ".hidden.jpg", "noext", "jpg"):
        (root / "x2" / name).touch()
    (root / "cover.jpg").touch()
    listing = load_labelled(root)
    assert listing.classes == ("x2", "x10")
    assert sum(listing.counts().values()) == 2 + 10
    assert "x10/deep/er/000.jpg" in {e.path for split in listing.splits.values() for e in split}


def test_natural_order() -> None:
    names = ["x10", "x2", "x02", "10", "9", "a²", "a", "٣", ""]
    assert sorted(names, key=natural_key) == ["", "9", "10", "a", "a²", "x02", "x2", "x10", "٣"]


@pytest.mark.parametrize("validation", ["val", "valid", "Validation"])
def test_split_folders_are_taken_as_they_are(tmp_path: Path, validation: str) -> None:
    counts = {"train/a": 1, "train/b": 3, f"{validation}/a": 2, "test/b": 4, "test/c": 0, "docs": 0}
    listing = load_labelled(write_images(tmp_path, counts))
    assert listing.classes == ("a", "b")
    assert listing.counts() == {"train": 4, "val": 2, "test": 4}
    assert listing.splits["val"][1] == Example(f"{validation}/a/001.jpg", 0)


def test_val_is_held_out_of_train_where_only_test_exists(tmp_path: Path) -> None:
    write_images(tmp_path, {"train/a": 20, "train/b": 10, "test/a": 5})
    listing = load_labelled(tmp_path, val_share=0.3)
    assert listing.counts() == {"train": 21, "val": 9, "test": 5}
    assert len(of_class(listing, "val", "a")) == 6
    assert {e.path.split("/")[0] for e in listing.splits["val"]} == {"train"}
    assert not set(listing.splits["val"]) & set(listing.splits["train"])


def test_test_stays_empty_beside_val_or_train_or_at_share_0(tmp_path: Path) -> None:
    with_val = load_labelled(write_images(tmp_path / "1", {"train/a": 20, "train/b": 20, "val/a": 3}))
    assert with_val.counts() == {"train": 40, "val": 3, "test": 0}
    alone = load_labelled(write_images(tmp_path / "2", {"train/a": 20, "train/b": 20}))
    assert alone.counts() == {"train": 36, "val": 4, "test": 0}
    unasked = load_labelled(write_images(tmp_path / "3", {"a": 10, "b": 10}), test_share=0.0)
    assert unasked.counts() == {"train": 18, "val": 2, "test": 0}


def test_csv_without_splits_is_dealt_like_a_folder(tmp_path: Path) -> None:
    folder = load_labelled(write_images(tmp_path, {"a": 10, "b": 10}))
    rows = [f"{name}/{i:03}.jpg,{name}" for i in reversed(range(10)) for name in "ba"]
    path = tmp_path / "birds.csv"
    path.write_text("\n".join(["path,label", *rows]))
    listing = load_labelled(path)
    assert (listing.name, listing.root, listing.classes) == ("birds", tmp_path, folder.classes)
    assert listing.splits == folder.splits


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_with_splits(tmp_path: Path, encoding: str) -> None:
    path = write_csv(tmp_path, "", "a1 b1 é b2")
    outside = tmp_path.parent / f"{tmp_path.name}-outside.jpg"
    outside.touch()
    rows = [
        "split, path,LABEL,note",
        'train,a1.jpg,"finch, zebra",x',
        f"Train,{tmp_path.absolute()}/b1.jpg,mésange,",
        f"valid,{outside},mésange,",
        'test,./é.jpg,"finch, zebra",',
    ]
    path.write_text("\r\n".join(rows), encoding=encoding)
    listing = load_labelled(path)
    assert listing.classes == ("finch, zebra", "mésange")
    assert listing.splits == {
        "train": (Example("a1.jpg", 0), Example("b1.jpg", 1)),
        "val": (Example(outside.as_posix(), 1),),
        "test": (Example("é.jpg", 0),),
    }
    assert (listing.root / listing.splits["val"][0].path).samefile(outside)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["line 1", "no column path and label"]),
        ("path|label\na1.jpg|a\n", ["line 1", "no column path and label", "path|label"]),
        ("path,class\na1.jpg,a\n", ["line 1", "no column label", "path,class", "path,label,split"]),
        ("path,label\n", ["no images"]),
        ("sep=;\npath;label\na1.jpg;a\n;b\n", ["line 4", "the path is empty"]),
        ("path,label\na1.jpg,a\n ,b\n", ["line 3", "the path is empty"]),
        ("path,label\na1.jpg,\n", ["line 2", "the label is empty", "name the column labels"]),
        ("path,labels\na1.jpg,\na2.jpg,\n", ["the field labels is empty in all 2 lines"]),
        ("path,labels\na1.jpg\n", ["line 2: 1 values, expected 2"]),
        ("path,label\na1.jpg\n", ["line 2", "1 values, expected 2"]),
        ("path,label\na1.jpg,finch, zebra\n", ["line 2", "3 values, expected 2"]),
        ("path,label,split\na1.jpg,a,train\nb1.jpg,b,dev\n", ["line 3", "'dev'", "train, val or test"]),
        ("path,label,split\na1.jpg,a,train\nb1.jpg,b,\n", ["line 3", "unknown split ''"]),
        ("path,label\na1.jpg,a\nb1.jpg,b\n./a1.jpg,b\n", ["line 4", "a1.jpg is on line 2 too"]),
        ('path,label\na1.jpg,"a\nb1.jpg,b\n', ["not a UTF-8 CSV file"]),
        ("path,label\na1.jpg,a\nz1.jpg,b\nz2.jpg,b\n", ["2 of 3 images", "z1.jpg on line 3", "start at"]),
        ("path,label\na1.jpg,a\na2.jpg,a\n", ["one class only (a)", "at least 2"]),
        ("path,label,split\na1.jpg,a,val\nb1.jpg,b,test\n", ["no training images"]),
        (
            "path,label,split\na1.jpg,a,train\nb1.jpg,b,train\na2.jpg,c,test\nb2.jpg,b,val\n",
            ["test has 1 classes that train lacks: c"],
        ),
    ],
)
def test_csv_refusals(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = str(refusal(write_csv(tmp_path, text)))
    assert [part for part in parts if part not in message] == [], message


def test_one_image_classes_are_named_five_at_most(tmp_path: Path) -> None:
    root = write_images(tmp_path, {"a": 9, **{f"k{i}": 1 for i in range(1, 8)}, "k8": 0})
    message = str(refusal(root))
    assert "8 of 9 classes" in message
    assert "k1, k2, k3, k4, k5 and 3 more" in message
    assert "Add images" in message


@pytest.mark.parametrize("options", [{}, {"val_share": 0.0, "test_share": 0.0}, {"split_by": "folder"}])
def test_an_empty_class_folder_is_refused_by_name(tmp_path: Path, options: dict) -> None:
    root = write_images(tmp_path, {"finch/camera1": 4, "finch/camera2": 4, "robin/camera3": 4, "wren": 0})
    with pytest.raises(FgvcError, match=r"1 of 3 classes have .* images?.*: wren\.") as caught:
        load_labelled(root, **options)
    assert caught.value.hint == "Add images to them, or remove them from the data set."


def test_one_training_image_is_enough_beside_a_val_split_only(tmp_path: Path) -> None:
    counts = {"train/a": 1, "train/b": 5, "test/a": 3}
    assert "1 of 2 classes have fewer than 2 images" in str(refusal(write_images(tmp_path, counts)))
    assert load_labelled(write_images(tmp_path, {"val/b": 1})).counts() == {"train": 6, "val": 1, "test": 3}
    assert "1 classes have no training image: c" in str(refusal(write_images(tmp_path, {"train/c": 0})))


@pytest.mark.parametrize(
    ("counts", "parts"),
    [
        ({}, ["holds no images", "one folder of images per class"]),
        ({"a": 0, "b": 0}, ["holds no images"]),
        ({".": 3}, ["no class folders", "folders named after their classes"]),
        ({"a": 3}, ["one class only (a)", "one level deeper"]),
        ({"test/a": 3, "test/b": 3}, ["split folders test;", "expected train/"]),
        ({"train/a": 3, "valid/a": 1, "val/a": 1}, ["split folders train, val, valid;"]),
        ({"train": 3, "bus": 3, "car": 3}, ["train", "beside other folders of images (bus, car)"]),
        ({"train/a": 3, "train/b": 3, "test": 3}, ["test has images but no class folders"]),
        ({"train/a": 0, "train/b": 0, "test/a": 3}, ["holds no training images"]),
        (
            {"train/a": 3, "train/b": 3, **{f"test/z{i}": 1 for i in range(7)}},
            ["test has 7 classes that train lacks: z0, z1, z2, z3, z4 and 2 more", "same class names"],
        ),
    ],
)
def test_folder_refusals(tmp_path: Path, counts: dict[str, int], parts: list[str]) -> None:
    message = str(refusal(write_images(tmp_path, counts)))
    assert [part for part in parts if part not in message] == [], message


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "")
    path.write_bytes("path,label\na1.jpg,mésange\n".encode("latin-1"))
    assert "not a UTF-8 CSV file" in str(refusal(path))
    assert "does not exist" in str(refusal(tmp_path / "nowhere"))
    (tmp_path / "birds.txt").touch()
    error = refusal(tmp_path / "birds.txt")
    assert "neither a folder nor a .tar, .csv, .jsonl or .parquet file" in error.message
    assert error.hint is not None and "path,label" in error.hint


def test_unreadable_class_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``os.walk`` alone would list such a folder as empty."""
    root = write_images(tmp_path, {"a": 3, "b": 3})
    scandir = os.scandir

    def locked(path: str) -> object:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    assert f"{root / 'b'} cannot be read: Permission denied" in str(refusal(root))


@pytest.mark.parametrize("shares", [(-0.1, 0.2), (0.5, 0.5), (0.1, -0.1), (float("nan"), 0.2)])
def test_shares_out_of_range_are_a_usage_error(tmp_path: Path, shares: tuple[float, float]) -> None:
    root = write_images(tmp_path, {"a": 10, "b": 10})
    assert refusal(root, val_share=shares[0], test_share=shares[1]).exit_code == EXIT_USAGE


def test_hold_out_keeps_order_and_ignores_it() -> None:
    train = [Example(f"{i}.jpg", i % 2) for i in range(40)]
    kept, val = hold_out_validation(train, ("a", "b"), val_share=0.25, seed=1)
    assert [sum(e.label == label for e in val) for label in (0, 1)] == [5, 5]
    assert set(kept) | set(val) == set(train) and len(kept) + len(val) == 40
    assert list(kept) == [e for e in train if e in kept]
    backwards = hold_out_validation(train[::-1], ("a", "b"), val_share=0.25, seed=1)
    assert backwards == (kept[::-1], val[::-1])
    kept, val = hold_out_validation(train, ("a", "b"), val_share=0.99)
    assert [len(kept), len(val)] == [2, 38]


def test_missing_images(tmp_path: Path) -> None:
    (tmp_path / "here.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    paths = ["gone.jpg", "here.jpg", "folder.jpg"]
    assert missing_images(tmp_path, paths) == ["gone.jpg", "folder.jpg"]


def write_multi(tmp_path: Path, *lines: str) -> Path:
    for line in lines[1:]:
        (tmp_path / line.split(",")[0]).touch()
    path = tmp_path / "leaves.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_column_labels_makes_a_multi_label_set(tmp_path: Path) -> None:
    path = write_multi(
        tmp_path,
        "path,labels,split",
        "1.jpg,scab|rust,train",
        "2.jpg, rust | rust ,train",
        "3.jpg,healthy,train",
        "4.jpg,scab,val",
        "5.jpg,rust|scab,test",
    )
    listing = load_labelled(path)
    assert listing.multi_label and listing.classes == ("healthy", "rust", "scab")
    assert listing.splits["train"] == (
        Example("3.jpg", 0),
        Example("2.jpg", 1),
        Example("1.jpg", 1, (2,)),
    )
    assert [e.labels for e in listing.splits["val"] + listing.splits["test"]] == [(2,), (1, 2)]
    assert listing.label_text(listing.splits["test"][0]) == "rust|scab"
    other = write_multi(tmp_path, "path,labels", *(f"{i}.jpg,{name}" for i, name in enumerate("abba")))
    assert load_labelled(other).multi_label


def test_column_label_is_never_taken_apart(tmp_path: Path) -> None:
    lines = [f"{i}.jpg,{name}" for i, name in enumerate(["a|b", "a|b", "c", "c"])]
    listing = load_labelled(write_multi(tmp_path, "path,label", *lines), test_share=0)
    assert listing.classes == ("a|b", "c") and not listing.multi_label


def test_deal_of_several_labels_divides_the_rarest(tmp_path: Path) -> None:
    """Every combination is there once; the rare label is with a common one always."""
    lines = [f"{i}.jpg,common" for i in range(40)] + [f"{i}.jpg,common|rare" for i in range(40, 50)]
    listing = load_labelled(write_multi(tmp_path, "path,labels", *lines), val_share=0.2, test_share=0.2)
    rare = listing.classes.index("rare")
    assert {s: sum(rare in e.labels for e in listing.splits[s]) for s in listing.splits} == {
        "train": 6,
        "val": 2,
        "test": 2,
    }
    assert listing.counts() == {"train": 30, "val": 10, "test": 10}


@pytest.mark.parametrize(("cell", "part"), [("a||b", "an empty label in 'a||b'"), ("|", "an empty label in")])
def test_bad_labels_are_named_with_their_line(tmp_path: Path, cell: str, part: str) -> None:
    with pytest.raises(FgvcError, match="line 3") as caught:
        load_labelled(write_multi(tmp_path, "path,labels", "1.jpg,a", f"2.jpg,{cell}"))
    assert part in str(caught.value)


def test_an_empty_field_of_labels_is_an_image_without_any(tmp_path: Path) -> None:
    lines = ("0.jpg,a|b,train", "1.jpg,a,train", "2.jpg,b,train", "3.jpg,,train", "4.jpg,,val", "5.jpg,,test")
    listing = load_labelled(write_multi(tmp_path, "path,labels,split", *lines))
    assert listing.classes == ("a", "b") and listing.counts() == {"train": 4, "val": 1, "test": 1}
    bare = listing.splits["train"][0]
    assert (bare.path, bare.labels, listing.label_text(bare)) == ("3.jpg", (), "")
    for_eval = load_labelled(tmp_path / "leaves.csv", for_training=False)
    assert [e.labels for e in for_eval.splits["test"]] == [()]


def test_images_without_a_label_are_dealt_like_a_class(tmp_path: Path) -> None:
    lines = [f"{i}.jpg,{'' if i % 2 else 'ab'[i // 2 % 2]}" for i in range(40)]
    listing = load_labelled(write_multi(tmp_path, "path,labels", *lines), val_share=0.2, test_share=0.2)
    bare = {split: sum(not e.labels for e in examples) for split, examples in listing.splits.items()}
    assert bare == {"train": 12, "val": 4, "test": 4}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_as_spreadsheets_write_it(tmp_path: Path, delimiter: str) -> None:
    """Other delimiters; commas behind the last column; rows that were emptied."""
    rows = [
        "path,label,,",
        "a1.jpg,a,,",
        "a2.jpg,a",
        ",,,",
        "a3.jpg,a,",
        "b1.jpg,b",
        "b2.jpg,b",
        "b3.jpg,b",
        ",,",
    ]
    listing = load_labelled(write_csv(tmp_path, "\n".join(rows).replace(",", delimiter) + "\n"))
    assert listing.classes == ("a", "b")
    assert sum(listing.counts().values()) == 6


def test_csv_with_a_comma_in_a_name_beside_other_delimiters(tmp_path: Path) -> None:
    rows = ["path;label", "a1.jpg;Wren, winter", "a2.jpg;Wren, winter", "b1.jpg;b", "b2.jpg;b"]
    assert {*load_labelled(write_csv(tmp_path, "\n".join(rows))).classes} == {"b", "Wren, winter"}


@pytest.mark.parametrize("header", ["path,label,label", "path,path,label", "path,label,split,Split"])
def test_csv_with_a_column_twice_is_refused(tmp_path: Path, header: str) -> None:
    filled = ",".join(["a1.jpg", *["a"] * header.count(",")])
    error = refusal(write_csv(tmp_path, f"{header}\n{filled}\n"))
    assert "line 1" in str(error)
    assert "is there 2 times" in str(error)


def test_csv_with_one_image_under_two_paths_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.jpg").touch()
    error = refusal(write_csv(tmp_path, "path,label\na/x.jpg,a\nb1.jpg,b\na/../a/x.jpg,b\n"))
    assert "line 4: a/../a/x.jpg is on line 2 too as a/x.jpg" in str(error)


def test_classes_that_no_score_will_tell_of_are_named(tmp_path: Path) -> None:
    listing = load_labelled(write_images(tmp_path / "1", {"a": 2, "b": 2, "c": 9}))
    assert listing.notes == (
        "2 of 3 classes without a test image (a, b): no score tells how well the model knows them.",
    )
    listing = load_labelled(write_images(tmp_path / "2", {"a": 2, "b": 2}))
    assert listing.counts() == {"train": 2, "val": 2, "test": 0}
    assert listing.notes[0].startswith("No test split: the classes have too few images for one")
    assert not load_labelled(tmp_path / "2", test_share=0.0).notes
    split = {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 0, "test/a": 1, "test/b": 1}
    assert load_labelled(write_images(tmp_path / "3", split)).notes == (
        "1 of 2 classes without a val image (b): no part in choosing the epoch.",
    )


def test_val_share_0_trains_on_everything(tmp_path: Path) -> None:
    listing = load_labelled(
        write_images(tmp_path / "1", {"train/a": 1, "train/b": 5, "test/a": 3}), val_share=0
    )
    assert listing.counts() == {"train": 6, "val": 0, "test": 3}
    listing = load_labelled(write_images(tmp_path / "2", {"a": 10, "b": 1}), val_share=0)
    assert listing.counts() == {"train": 9, "val": 0, "test": 2}
    assert load_labelled(tmp_path / "2", val_share=0, test_share=0).counts()["train"] == 11
    assert "1 of 2 classes have fewer than 1 images" in str(
        refusal(write_images(tmp_path / "3", {"a": 3, "b": 0}), val_share=0)
    )
