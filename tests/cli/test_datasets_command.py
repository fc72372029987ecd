"""fgvc datasets list and get, as a user meets them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import conftest
import numpy as np
import pytest
from known_trees import tar_of, tiny
from PIL import Image
from range_server import serve

from fgvc_cli.datasets import registry as known
from fgvc_cli.datasets.entries import Archive
from fgvc_cli.datasets.registry import find_known


def fgvc(*arguments: object):
    return conftest.fgvc("datasets", *arguments)


@pytest.fixture
def small_cub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with a tiny CUB that counts as official."""
    entry, root = tiny("cub", tmp_path / "data")
    monkeypatch.setitem(known.ENTRIES, "cub", entry)
    monkeypatch.setenv("FGVC_DATA", str(tmp_path / "data"))
    return root


def states(*arguments: object) -> dict[str, str]:
    result = fgvc("list", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return {row["name"]: row["state"] for row in json.loads(result.stdout)}


def test_list_says_what_is_here_and_whole(small_cub: Path) -> None:
    assert states()["cub"] == "ok"
    assert {state for name, state in states().items() if name != "cub"} == {"absent"}
    text = fgvc("list").stdout
    row = next(line for line in text.splitlines() if line.startswith("cub "))
    assert row.split()[1:] == ["yes", "2", "5", "-", "2", str(small_cub)]
    assert "fgvc datasets get pets" in text and "kaggle.com/c/plant-pathology-2021" in text
    assert fgvc().stdout == text, "fgvc datasets alone lists too"


def test_list_says_what_is_broken(small_cub: Path) -> None:
    next((small_cub / "images").rglob("*.jpg")).unlink()
    assert states()["cub"] == "broken"
    assert "1 of 7 listed images are missing" in " ".join(fgvc("list").stdout.split())
    shutil.rmtree(small_cub / "images")
    assert states()["cub"] == "broken"
    shutil.rmtree(small_cub)
    assert states()["cub"] == "absent"


def test_list_without_a_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FGVC_DATA", raising=False)
    result = fgvc()
    assert result.exit_code == 0 and "--data-root DIR" in result.stdout
    assert set(states().values()) == {"absent"}
    assert set(states()) == set(known.ENTRIES)


def test_the_list_takes_its_options_with_and_without_its_name(small_cub: Path, monkeypatch) -> None:
    monkeypatch.delenv("FGVC_DATA")
    root = small_cub.parent
    assert states("--data-root", root)["cub"] == "ok"
    assert fgvc("--data-root", root, "--json").stdout == fgvc("list", "--data-root", root, "--json").stdout
    wrong = fgvc("--data-root", root, "check", "cub")
    assert wrong.exit_code == 2 and "Give --data-root behind the command: fgvc datasets check" in wrong.stderr


def test_get_brings_a_set_and_then_leaves_it(small_cub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as site:
        site.files["/cub.tgz"] = tar_of(small_cub, "CUB_200_2011")
        entry = replace(find_known("cub"), archives=(Archive(f"{site.url}/cub.tgz"),))
        monkeypatch.setitem(known.ENTRIES, "cub", entry)
        shutil.rmtree(small_cub)
        result = fgvc("get", "cub")
        assert result.exit_code == 0, result.output
        assert "2 classes, 5 train, 2 test" in result.stdout and "fgvc train --dataset cub" in result.stdout
        assert states()["cub"] == "ok"
        again = fgvc("get", "cub")
        assert again.exit_code == 0 and "is there already" in again.stdout
        assert len(site.asked) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["get", "cup"], 2, "Did you mean cub"),
        (["get", "cub"], 2, "--data-root"),
        (["get", "cars"], 1, "Kaggle"),
        (["get", "plant2021", "--data-root", "."], 1, "plant-pathology-2021-fgvc8"),
    ],
)
def test_get_refuses_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, part: str
) -> None:
    monkeypatch.delenv("FGVC_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    result = fgvc(*arguments)
    assert result.exit_code == code, result.output
    assert part in result.stderr and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_get_offline_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(find_known("cub"), archives=(Archive("http://127.0.0.1:9/cub.tgz"),))
    monkeypatch.setitem(known.ENTRIES, "cub", entry)
    for data_root in (tmp_path, tmp_path / "new" / "data"):
        result = fgvc("get", "cub", "--data-root", data_root)
        assert result.exit_code == 1 and result.stderr.count("\n") == 1
        assert "127.0.0.1:9 cannot be reached" in result.stderr
        assert not list(tmp_path.iterdir()), "nor a data root that was not there"


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(grid).resize((80, 60), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(12):
        split = "test" if i % 4 == 3 else "train"
        paint(tmp_path / "photos" / split / ("crow", "finch")[i % 2] / f"{i}.png", i)
    return tmp_path / "photos"


def test_check_of_a_clean_folder(photos: Path) -> None:
    result = fgvc("check", photos, "--workers", 0, "--min-images", 2)
    assert result.exit_code == 0, result.output
    assert "photos: 2 classes, 9 train, 3 test images" in result.stdout
    assert "0 groups across splits" in result.stdout


def test_check_names_a_leak_and_writes_it(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "train" / "crow" / "0.png", photos / "test" / "finch" / "same.png")
    out = tmp_path / "report.csv"
    options = ("--workers", 0, "--min-images", 2, "--out", out)
    result = fgvc("check", photos, *options)
    assert result.exit_code == 3, result.output
    leak = "train+test: train/crow/0.png [crow] = test/finch/same.png [finch]"
    assert result.stdout.count(leak) == 3, "as equal files, across splits, and with different labels"
    assert out.read_text().splitlines()[1:] == [
        "exact,1,train/crow/0.png,train,crow,train+test,yes,",
        "exact,1,test/finch/same.png,test,finch,train+test,yes,",
    ]
    assert fgvc("check", photos, *options).exit_code == 1, "the report is not replaced unasked"
    document = json.loads(fgvc("check", photos, *options, "--overwrite", "--json").stdout)
    assert document["clean"] is False and document["groups"][0]["splits"] == ["train", "test"]
    assert document["groups"][0]["images"][1] == {
        "path": "test/finch/same.png",
        "split": "test",
        "labels": ["finch"],
    }


def test_check_finds_bursts_by_the_gap_that_is_given(photos: Path) -> None:
    shots = {"train/finch/1.png": "10:00:00", "train/crow/0.png": "10:02:00", "test/finch/3.png": "10:06:00"}
    for name, when in shots.items():
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9003] = f"2024:05:01 {when}"
        with Image.open(photos / name) as image:
            image.save((photos / name).with_suffix(".jpg"), exif=exif)
        (photos / name).unlink()
    options = ("--workers", 0, "--min-images", 2)
    assert fgvc("check", photos, *options).exit_code == 0, "6 minutes in one folder, 2 in two"
    result = fgvc("check", photos, *options, "--minutes", 6)
    assert result.exit_code == 3 and "1 train, 1 test: train/finch/1.jpg (2024" in result.stdout
    assert "--split-by minutes=6" in result.stdout
    assert fgvc("check", photos, *options, "--minutes", 0).exit_code == 0


def test_check_of_a_csv_and_of_a_known_set(photos: Path, small_cub: Path, tmp_path: Path) -> None:
    table = tmp_path / "some.csv"
    rows = [f"photos/train/crow/{i}.png,a|b" for i in (0, 2, 4)] + ["photos/train/finch/1.png,b"]
    table.write_text("\n".join(["path,labels", *rows]) + "\n")
    result = fgvc("check", table, "--workers", 0, "--min-images", 4)
    assert result.exit_code == 3 and "a: 3" in result.stdout and "1 tiny classes" in result.stdout
    known_set = fgvc("check", "cub", "--workers", 0)
    assert known_set.exit_code == 3 and "7 unreadable" in known_set.stdout, "its images are empty files"
    mistyped = fgvc("check", "cup")
    assert mistyped.exit_code == 2 and "Did you mean cub" in mistyped.stderr
    assert "cup is neither a file or folder here nor a known set (" in mistyped.stderr
    assert "Give a folder with one folder of images per class" in fgvc("check", "zzzzzz").stderr
    assert fgvc("check", tmp_path / "none").exit_code == 1


def test_check_of_an_undivided_folder_names_no_split(tmp_path: Path) -> None:
    for i in range(8):
        paint(tmp_path / "photos" / ("crow", "finch")[i % 2] / f"{i}.png", i)
    shutil.copy(tmp_path / "photos" / "crow" / "0.png", tmp_path / "photos" / "finch" / "same.png")
    options = (tmp_path / "photos", "--workers", 0, "--out", tmp_path / "report.csv")
    result = fgvc("check", *options)
    assert "photos: 2 classes, 9 images, not divided into splits" in result.stdout
    assert "crow/0.png [crow] = finch/same.png [finch]" in result.stdout and "crow: 4" in result.stdout
    assert "train" not in result.stdout and " test" not in result.stdout and "test:" not in result.stdout
    assert "exact,1,crow/0.png,,crow,,yes," in (tmp_path / "report.csv").read_text().splitlines()
    document = json.loads(fgvc("check", *options, "--overwrite", "--json").stdout)
    assert document["images"] == {"all": 9} and document["groups"][0]["images"][0]["split"] is None
