"""Splits that keep a camera, a specimen or a burst on one side."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from test_labelled import refusal, write_images

from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.data.split import SplitBy, find_bursts, read_time
from fgvc_cli.errors import FgvcError


def splits_of(listing, part) -> list[set[str]]:
    return [{part(e.path) for e in examples} for examples in listing.splits.values()]


def check_apart(parts: list[set[str]]) -> None:
    train, val, test = parts
    assert train and val and test
    assert not (train & val or train & test or val & test)


def test_a_folder_stays_together_in_all_classes(tmp_path: Path) -> None:
    counts = {f"{bird}/cam{i}": 3 + i % 4 for bird in ("wren", "finch") for i in range(20)}
    listing = load_labelled(write_images(tmp_path, counts), split_by="folder")
    check_apart(splits_of(listing, lambda path: path.split("/")[1]))
    total = sum(listing.counts().values())
    assert total == sum(counts.values())
    assert 0.1 < listing.counts()["test"] / total < 0.3 and 0.05 < listing.counts()["val"] / total < 0.2
    assert "20 groups of" in listing.notes[0] and "none in two splits" in listing.notes[0]
    assert load_labelled(tmp_path, split_by="folder") == listing
    assert load_labelled(tmp_path, split_by="folder", seed=1).splits != listing.splits


def test_a_column_stays_together(tmp_path: Path) -> None:
    rows = [(f"{i}.jpg", "ab"[i % 2], f"s{i // 4}") for i in range(80)]
    for image, _, _ in rows:
        (tmp_path / image).touch()
    (tmp_path / "x.csv").write_text("path,label,Specimen\n" + "\n".join(map(",".join, rows)))
    of = {image: specimen for image, _, specimen in rows}
    for text in ("column=specimen", "Specimen"):
        check_apart(splits_of(load_labelled(tmp_path / "x.csv", split_by=text), of.__getitem__))
    assert "no column camera to split by; its other columns are specimen" in str(
        refusal(tmp_path / "x.csv", split_by="camera")
    )


def photo(path: Path, time: str | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if time:
        exif.get_ifd(0x8769)[0x9003] = time
    Image.new("RGB", (4, 4)).save(path, exif=exif)


def test_a_burst_stays_together_by_exif_time(tmp_path: Path) -> None:
    for bird in ("wren", "finch"):
        for burst in range(20):
            for shot in range(3):
                name = f"{bird}/{shot}-{burst:02}.jpg"
                photo(tmp_path / name, f"2024:05:01 {burst:02}:0{shot * 2}:00")
        photo(tmp_path / bird / "untimed.jpg", None)
    listing = load_labelled(tmp_path, split_by="minutes=5")
    timed = [[e for e in part if "untimed" not in e.path] for part in listing.splits.values()]
    check_apart([{e.path.split("/")[0] + e.path[-6:] for e in part} for part in timed])
    assert "2 images have no time in their EXIF" in listing.notes[0]
    apart = load_labelled(tmp_path, split_by="minutes=1")
    assert "groups of 1 to 1 images" in apart.notes[1]


def test_gaps_make_bursts_and_folders_keep_them_apart() -> None:
    paths = ["a/1", "a/2", "a/3", "b/1", "a/4"]
    assert find_bursts(paths, [0.0, 300.0, 601.0, 10.0, None], 5) == ["a/1", "a/1", "a/3", "b/1", "\0a/4"]


@pytest.mark.parametrize(("groups", "size"), [(5, 8), (5, 10), (4, 25)])
def test_groups_larger_than_a_split_is_to_be_are_used_all_the_same(tmp_path: Path, groups, size) -> None:
    """As many a set has them: five cameras, each a fifth of its class, and a tenth asked for val."""
    birds = ("wren", "finch", "crow")
    counts = {f"{bird}/{bird}{i}": size for bird in birds for i in range(groups)}
    listing = load_labelled(write_images(tmp_path, counts), split_by="folder")
    check_apart(splits_of(listing, lambda path: path.split("/")[1]))
    assert listing.counts()["val"] == 3 * size  # one group of each class
    assert all({e.label for e in part} == {0, 1, 2} for part in listing.splits.values())


def test_val_comes_out_of_train_by_groups_where_test_is_given(tmp_path: Path) -> None:
    counts = {f"{split}/{bird}/cam{i}": 4 for split in ("train", "test") for bird in "ab" for i in range(10)}
    root = write_images(tmp_path, counts)
    listing = load_labelled(root, split_by="folder")
    cameras = splits_of(listing, lambda path: path.split("/")[2])
    assert cameras[1] and not cameras[0] & cameras[1]
    assert {e.path.split("/")[0] for e in (*listing.splits["train"], *listing.splits["val"])} == {"train"}
    assert listing.counts()["test"] == 80
    assert "none in two splits" in listing.notes[0]


def test_nothing_is_left_to_divide_where_val_is_given(tmp_path: Path) -> None:
    splits = ("train", "val", "test")
    root = write_images(tmp_path, {f"{split}/{bird}/cam": 4 for split in splits for bird in "ab"})
    rows = [
        f"{path.relative_to(root).as_posix()},{path.parts[-3]},{path.parts[-4]},c" for path in files(root)
    ]
    (root / "x.csv").write_text("path,label,split,camera\n" + "\n".join(rows))
    for source, by in ((root, "folder"), (root, "minutes=5"), (root / "x.csv", "camera")):
        refused = refusal(source, split_by=by)
        assert "comes divided into train, val, test" in str(refused) and "Leave it out" in str(refused)
    assert "There is no column nonsense to split by" in str(refusal(root, split_by="nonsense"))
    assert load_labelled(root, split_by="folder", for_training=False).counts()["val"] == 8


def files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.jpg"))


def test_what_does_not_split_says_why(tmp_path: Path) -> None:
    root = write_images(tmp_path, {"wren": 9, "finch": 9})
    assert "expected CLASS/CAMERA/image" in str(refusal(root, split_by="folder"))
    assert "None of the 18 images says when it was taken" in str(refusal(root, split_by="minutes=5"))
    assert "There is no column camera" in str(refusal(root, split_by="column=camera"))
    one = write_images(tmp_path / "one", {"wren/a": 9, "finch/a": 9})
    assert "1 groups leave no test and no val split" in str(refusal(one, split_by="folder"))
    for text in ("minutes=0", "minutes=x", "column=", "a=b", " "):
        with pytest.raises(FgvcError, match="expected folder, column=NAME or minutes=N"):
            SplitBy.parse(text)
    assert read_time(root / "wren" / "000.jpg") is None
