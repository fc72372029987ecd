"""WebDataset: tar shards as labelled sets and as sources, also broken ones."""

import csv
import io
import json
import pickle
import tarfile
from pathlib import Path

import pytest
from conftest import COLOURS
from PIL import Image

import fgvc_cli
from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.datasets.check import check_set, look_before_training
from fgvc_cli.errors import FgvcError
from fgvc_cli.sources import archives
from fgvc_cli.sources.find import find_images
from fgvc_cli.sources.images import DecodedImage, read_image


def png(colour="red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (48, 48), colour).save(stream, "PNG")
    return stream.getvalue()


def write_shard(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(first, count, label):
    """Files of so many samples; ``label`` gives ending and bytes of a class's label."""
    files = {}
    for i in range(first, first + count):
        name = list(COLOURS)[i % 3]
        files[f"{i:06d}.png"] = png(COLOURS[name])
        ending, data = label(i % 3, name)
        files[f"{i:06d}.{ending}"] = data
    return files


NAMES = {
    "cls, a name": lambda i, name: ("cls", f"{name}\n".encode()),
    "json": lambda i, name: ("json", json.dumps({"label": name, "width": 48}).encode()),
    "json, cls": lambda i, name: ("json", json.dumps({"cls": i}).encode()),
    "cls, a number": lambda i, name: ("cls", str(i).encode()),
}


@pytest.mark.parametrize("form", NAMES)
def test_labels_are_those_of_the_samples(tmp_path, form):
    write_shard(tmp_path / "s" / "000.tar", samples(0, 9, NAMES[form]))
    write_shard(tmp_path / "s" / "001.tar", samples(9, 9, NAMES[form]))
    (tmp_path / "s" / "classes.txt").write_text("\n".join(COLOURS) + "\n")
    data = load_labelled(tmp_path / "s", for_training=False)
    assert data.classes == tuple(COLOURS) and data.undivided and not data.notes[1:]
    assert [e.path for e in data.splits["test"]][:3] == [
        "000.tar/000000.png",
        "000.tar/000003.png",
        "000.tar/000006.png",
    ]
    for example in data.splits["test"]:
        image = read_image(example.where(data.root)).image
        assert image.getpixel((0, 0)) == COLOURS[data.classes[example.label]]


def test_numbers_without_a_list_of_classes_are_classes(tmp_path):
    write_shard(tmp_path / "000.tar", samples(0, 6, NAMES["cls, a number"]))
    assert load_labelled(tmp_path, for_training=False).classes == ("0", "1", "2")
    assert load_labelled(tmp_path / "000.tar", for_training=False).classes == ("0", "1", "2")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(
        FgvcError, match=r"000.tar: the label of 000002.png is 2, and .*classes.txt has 2 lines"
    ):
        load_labelled(tmp_path)


@pytest.mark.parametrize(
    "where", ["train-000.tar val-000.tar test-0.tar", "train/0.tar validation/0.tar test/0.tar"]
)
def test_shards_are_of_the_splits_that_they_are_named_after(tmp_path, where):
    for i, name in enumerate(where.split()):
        write_shard(tmp_path / name, samples(9 * i, 9, NAMES["cls, a name"]))
    assert load_labelled(tmp_path).counts() == {"train": 9, "val": 9, "test": 9}


def test_shards_without_a_split_are_divided_and_may_be_by_shard(tmp_path):
    for i in range(5):
        write_shard(tmp_path / f"{i}.tar", samples(12 * i, 12, NAMES["cls, a name"]))
    data = load_labelled(tmp_path, split_by="folder")
    shards = [{e.path.partition("/")[0] for e in data.splits[split]} for split in ("train", "val", "test")]
    assert all(shards) and len(set.union(*shards)) == sum(map(len, shards)) == 5
    write_shard(tmp_path / "val-0.tar", samples(0, 3, NAMES["cls, a name"]))
    with pytest.raises(FgvcError, match="shards of splits beside others, such as 0.tar"):
        load_labelled(tmp_path)


def test_what_is_broken_is_told_and_the_rest_is_used(tmp_path):
    files = samples(0, 9, NAMES["cls, a name"])
    files["extra.png"] = png()
    files["other.png"], files["other.json"] = png(), b"{not json"
    files["list.png"], files["list.json"] = png(), b"[1]"
    files["000000.png"] = b"no image"
    write_shard(tmp_path / "0.tar", files)
    whole = write_shard(tmp_path / "1.tar", samples(9, 9, NAMES["cls, a name"])).read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "2.tar").write_bytes(b"this is no archive" * 100)
    import gzip

    (tmp_path / "3.tar").write_bytes(gzip.compress(whole))
    data = load_labelled(tmp_path, for_training=False)
    said = "\n".join(data.notes)
    assert "3 images without a label left out, first 0.tar/extra.png" in said
    assert "1.tar: cut off" in said and "2.tar: " in said and "3.tar: compressed; gunzip it" in said
    assert 9 < len(data.splits["test"]) < 18
    results = {e.path: read_image(e.where(data.root)) for e in data.splits["test"]}
    assert results.pop("0.tar/000000.png").status == "not_an_image"
    assert sum(not isinstance(result, DecodedImage) for result in results.values()) <= 1  # the one cut off


def test_a_shard_that_changes_or_goes_is_a_failure_of_its_images(tmp_path):
    shard = write_shard(tmp_path / "0.tar", samples(0, 6, NAMES["cls, a name"]))
    load_labelled(tmp_path, for_training=False)
    path = shard / "000001.png"
    assert isinstance(read_image(path), DecodedImage)
    assert read_image(shard / "gone.png").status == "missing"
    write_shard(shard, samples(3, 30, NAMES["cls, a name"]))
    assert "changed" in read_image(path).error
    shard.unlink()
    assert read_image(path).status == "missing"


def test_a_process_that_has_not_listed_a_shard_finds_its_images(tmp_path, monkeypatch):
    shard = write_shard(tmp_path / "0.tar", samples(0, 6, NAMES["cls, a name"]))
    monkeypatch.setattr(archives, "_PLACES", {})
    assert isinstance(read_image(str(shard / "000001.png")), DecodedImage)
    assert len(pickle.dumps(archives.member_within(shard / "000001.png"))) < 400


def test_a_folder_of_classes_with_an_archive_beside_is_what_it_was(colours):
    write_shard(colours / "stray.tar", samples(0, 6, NAMES["cls, a name"]))
    data = load_labelled(colours, for_training=False)
    assert len(data.splits["test"]) == 30 and ".tar" in "".join(data.notes)


def test_train_and_eval_and_check_take_shards_as_folders(tmp_path):
    for split, count in (("train", 30), ("val", 9), ("test", 9)):
        write_shard(tmp_path / "s" / f"{split}-0.tar", samples(0, count, NAMES["cls, a name"]))
    out = tmp_path / "run"
    given = {"data": str(tmp_path / "s"), "device": "cpu", "quiet": True}
    small = {"model": "timm-resnet10t", "epochs": 1, "batch_size": 6, "input_px": 32, "pretrained": False}
    fgvc_cli.train(**given, **small, out=str(out), workers=2, recipe="paper")
    fgvc_cli.evaluate(weights=str(out), out=str(tmp_path / "scores"), **given)
    with (tmp_path / "scores" / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows][0] == "test-0.tar/000000.png" and len(rows) == 9


def test_equal_images_in_shards_of_several_splits_are_found(tmp_path):
    for split in ("train", "test"):
        write_shard(tmp_path / f"{split}-0.tar", samples(0, 9, NAMES["cls, a name"]))
    data = load_labelled(tmp_path, for_training=False)
    report = check_set(data, workers=1)
    assert not report.unreadable and {group.kind for group in report.groups} >= {"exact"}
    said = "\n".join(look_before_training(data))
    assert "images are in several splits as equal files, first train-0.tar/000000.png (train)" in said


def test_predict_reads_the_images_of_shards_and_a_broken_one_has_a_row(tmp_path):
    write_shard(tmp_path / "0.tar", samples(0, 3, NAMES["cls, a name"]))
    whole = write_shard(tmp_path / "1.tar", samples(3, 3, NAMES["cls, a name"])).read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[:-6000])
    images = find_images([str(tmp_path / "*.tar")])
    found = list(images)
    names = [each.name.removeprefix(f"{tmp_path.as_posix()}/") for each in found]
    assert names[:3] == ["0.tar/000000.png", "0.tar/000001.png", "0.tar/000002.png"] and names[-1] == "1.tar"
    assert ".cls" in "".join(images.passed_over)
    failed = [
        name
        for name, each in zip(names, found, strict=True)
        if not isinstance(read_image(each.path), DecodedImage)
    ]
    assert failed[-1] == "1.tar"
