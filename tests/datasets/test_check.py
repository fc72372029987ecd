"""Checking a labelled set: copies found, other images left alone, near search against all pairs."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.datasets import check as fingerprint_pool
from fgvc_cli.datasets.check import (
    MAX_GREY,
    Fingerprint,
    as_document,
    check_set,
    find_groups,
    fingerprint,
    fingerprint_all,
    perceptual_hash,
    summary,
    write_findings,
)
from fgvc_cli.sources.images import Failure


def picture(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Soft coloured blobs: like images, most of what there is lies in the low frequencies."""
    grid = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


@pytest.fixture
def flawed(tmp_path: Path) -> Path:
    """A set with one flaw of each kind."""
    root = tmp_path / "set"
    for number, name in enumerate(["crow", "finch"]):
        for i in range(6):
            save(picture(10 * number + i), root / "train" / name / f"{i}.jpg", quality=90)
        for i in range(2):
            save(picture(100 + 10 * number + i), root / "test" / name / f"{i}.jpg", quality=90)
    rare = root / "train" / "wren"
    save(picture(200), rare / "0.jpg")
    save(picture(201), rare / "1.jpg")
    (root / "test" / "finch" / "copy.jpg").write_bytes((root / "test" / "finch" / "0.jpg").read_bytes())
    save(picture(2).resize((160, 120)), root / "test" / "crow" / "small.png")
    save(picture(13), root / "train" / "crow" / "wrong.jpg", quality=40)
    (root / "train" / "finch" / "cut.jpg").write_bytes(
        (root / "train" / "finch" / "1.jpg").read_bytes()[:900]
    )
    return root


def paths_of(groups: list) -> list[list[str]]:
    return [[member.example.path for member in group.members] for group in groups]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_flaw_is_found_and_nothing_else(flawed: Path, workers: int) -> None:
    report = check_set(load_labelled(flawed, for_training=False), workers=workers)
    assert not report.clean
    assert [(m.example.path, f.status) for m, f in report.unreadable] == [
        ("train/finch/cut.jpg", "truncated")
    ]
    assert paths_of(report.of("exact")) == [["test/finch/0.jpg", "test/finch/copy.jpg"]]
    assert paths_of(report.of("near")) == [
        ["train/crow/2.jpg", "test/crow/small.png"],
        ["train/crow/wrong.jpg", "train/finch/3.jpg"],
    ]
    leak, wrong = report.of("near")
    assert (leak.splits, leak.contradicts) == (("train", "test"), False)
    assert (wrong.splits, wrong.contradicts) == (("train",), True)
    assert report.tiny == {"wren": 2}


def test_a_good_set_is_clean(flawed: Path) -> None:
    for bad in ("test/finch/copy.jpg", "test/crow/small.png", "train/crow/wrong.jpg", "train/finch/cut.jpg"):
        (flawed / bad).unlink()
    data = load_labelled(flawed, for_training=False)
    assert check_set(data, workers=0, min_images=2).clean
    assert not check_set(data, workers=0, min_images=3).clean


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda image, path: image.save(path, quality=30), True),
        (lambda image, path: image.resize((150, 110)).save(path), True),
        (lambda image, path: image.convert("L").save(path), False),  # another colour is another leaf
        (lambda image, path: image.transpose(Image.Transpose.ROTATE_90).save(path), False),
    ],
    ids=["quality", "size", "grey", "turned"],
)
def test_what_counts_as_a_copy(tmp_path: Path, change, found: bool) -> None:
    original = fingerprint(save(picture(1), tmp_path / "a.png"))
    change(picture(1), tmp_path / "b.jpg")
    copy = fingerprint(tmp_path / "b.jpg")
    assert find_groups([original, copy]) == ([[0, 1]] if found else [])


def test_a_turned_phone_image_is_its_upright_copy(tmp_path: Path) -> None:
    """EXIF says how to hold it; both look the same."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = save(picture(1), tmp_path / "a.jpg", quality=95)
    turned = save(picture(1).transpose(Image.Transpose.ROTATE_90), tmp_path / "b.jpg", exif=exif, quality=95)
    assert find_groups([fingerprint(upright), fingerprint(turned)]) == [[0, 1]]


def test_hash_has_half_its_bits_and_ignores_brightness() -> None:
    grey = np.asarray(picture(5, (32, 32)).convert("L"), np.float32)
    bits, sure = perceptual_hash(grey)
    assert sure.bit_count() > 60
    assert bits.bit_count() in (31, 32, 33)
    assert perceptual_hash(grey * 0.5 + 20)[0] == bits
    # a cosine of one low frequency: beside the mean, it alone stands out
    x = np.cos(np.pi * (np.arange(32) + 0.5) / 32 * 3)
    wave, _ = perceptual_hash(np.tile(x, (32, 1)).astype(np.float32) * 100 + 128)
    assert wave >> 60 & 1 == 1, "the fourth column of the first row"


def random_prints(count: int, rng: np.random.Generator) -> list[Fingerprint]:
    """Some far apart, some around each other at all distances near the limits."""
    prints = []
    for i in range(count):
        if prints and rng.random() < 0.5:
            base = prints[int(rng.integers(len(prints)))]
            bits = base.bits
            for place in rng.choice(64, int(rng.integers(0, 13)), replace=False):
                bits ^= 1 << int(place)
            grey = np.frombuffer(base.thumb, np.uint8).astype(int) + int(rng.integers(-10, 11))
            thumb = grey.clip(0, 255).astype(np.uint8)
        else:
            bits, thumb = int(rng.integers(0, 2**63)), rng.integers(0, 256, 192, np.uint8)
        prints.append(Fingerprint(i.to_bytes(16, "big"), bits, thumb.tobytes()))
    return prints


def all_pairs_groups(prints: list[Fingerprint], max_bits: int) -> list[list[int]]:
    group = list(range(len(prints)))
    thumbs = [np.frombuffer(p.thumb, np.uint8).astype(float) for p in prints]
    for i in range(len(prints)):
        for j in range(i):
            close = np.abs(thumbs[i] - thumbs[j]).mean() <= MAX_GREY
            if close and (prints[i].bits ^ prints[j].bits).bit_count() <= max_bits:
                old, new = group[i], group[j]
                group = [new if g == old else g for g in group]
    members = [[i for i, g in enumerate(group) if g == own] for own in sorted(set(group))]
    return sorted(m for m in members if len(m) > 1)


@pytest.mark.parametrize("max_bits", [0, 4, 8])
def test_search_finds_what_all_pairs_find(monkeypatch: pytest.MonkeyPatch, max_bits: int) -> None:
    prints = random_prints(300, np.random.default_rng(max_bits))
    expected = all_pairs_groups(prints, max_bits)
    assert len(expected) > 5
    assert find_groups(prints, max_bits=max_bits) == expected
    # the pieces in which it works make no difference
    monkeypatch.setattr("fgvc_cli.datasets.check._ROWS", 7)
    monkeypatch.setattr("fgvc_cli.datasets.check._COLUMNS", 11)
    monkeypatch.setattr("fgvc_cli.datasets.check._EDGES", 3)
    assert find_groups(prints, max_bits=max_bits) == expected
    assert find_groups([]) == []


def test_twenty_thousand_images_take_a_moment() -> None:
    rng = np.random.default_rng(0)
    thumbs = rng.integers(0, 256, (20_000, 1), np.uint8) * np.ones(192, np.uint8)
    hashes = rng.integers(0, 2**63, 20_000)
    prints = [Fingerprint(b"", int(h), t.tobytes()) for h, t in zip(hashes, thumbs, strict=True)]
    prints += [prints[7]] * 20_000  # and as many of one kind
    start = time.process_time()
    groups = find_groups(prints)
    assert time.process_time() - start < 5
    assert groups == [[7, *range(20_000, 40_000)]]


def take(root: Path, name: str, when: str | None, seed: int) -> None:
    """A JPEG that its EXIF dates."""
    exif = Image.Exif()
    if when:
        exif.get_ifd(0x8769)[0x9003] = f"2024:05:01 {when}"
    save(picture(seed), root / name, exif=exif)


@pytest.fixture
def cameras(tmp_path: Path) -> Path:
    """Two bursts in two splits each; the others are whole, of other folders or without a time."""
    root = tmp_path / "cameras"
    shots = {
        "train/wren/cam1/a.jpg": "10:00:00",
        "train/wren/cam1/b.jpg": "10:04:00",
        "test/wren/cam1/c.jpg": "10:08:30",
        "test/wren/cam1/a.jpg": "15:00:00",  # of the name of another; hours later
        "train/wren/cam2/d.jpg": "15:01:00",  # another camera
        "train/finch/e.jpg": "09:00:00",
        "val/finch/f.jpg": "09:05:00",
        "test/finch/g.jpg": "09:10:01",
        "train/finch/h.jpg": None,
        "test/finch/h.jpg": None,
    }
    for seed, (name, when) in enumerate(shots.items()):
        take(root, name, when, seed)
    return root


def test_bursts_in_several_splits_are_counted_and_named(cameras: Path, tmp_path: Path) -> None:
    report = check_set(load_labelled(cameras, for_training=False), workers=0, min_images=1)
    assert not report.groups and not report.clean
    assert paths_of(report.bursts) == [
        ["train/finch/e.jpg", "val/finch/f.jpg"],
        ["train/wren/cam1/a.jpg", "train/wren/cam1/b.jpg", "test/wren/cam1/c.jpg"],
    ]
    assert (report.timed, report.in_bursts, report.held_out_in_bursts) == (8, 5, 2)
    text = summary(report, None)
    counts = "one folder, gaps of at most 5 minutes; 8 of 10 images have an EXIF time"
    first = "train/finch/e.jpg (2024-05-01T09:00:00), val/finch/f.jpg (2024-05-01T09:05:00)"
    assert f"       2 bursts across splits ({counts})\n      1 train, 1 val: {first}\n" in text
    assert "2 train, 1 test: train/wren/cam1/a.jpg (" in text
    assert "2 of 5 val and test images are in these" in text and "--split-by minutes=5" in text
    found = as_document(report)["bursts"]
    assert (found["minutes"], found["with_time"], found["held_out_images"]) == (5, 8, 2)
    assert found["suggestion"] == "--split-by minutes=5"
    assert found["across_splits"][1]["splits"] == ["train", "test"]
    assert found["across_splits"][1]["images"][2] == {
        "path": "test/wren/cam1/c.jpg",
        "split": "test",
        "labels": ["wren"],
        "taken": "2024-05-01T10:08:30",
    }
    write_findings(report, tmp_path / "found.csv")
    rows = (tmp_path / "found.csv").read_text().splitlines()
    assert "burst,1,val/finch/f.jpg,val,finch,train+val,no,2024-05-01T09:05:00" in rows and len(rows) == 6


def test_a_shorter_gap_parts_bursts_and_none_is_not_looked_for(cameras: Path) -> None:
    data = load_labelled(cameras, for_training=False)
    shorter = check_set(data, workers=0, min_images=1, minutes=4)
    assert shorter.clean and shorter.in_bursts == 2
    assert "0 bursts across splits" in summary(shorter, None)
    assert as_document(shorter)["bursts"]["suggestion"] is None
    off = check_set(data, workers=0, min_images=1, minutes=0)
    assert off.clean and "burst" not in summary(off, None)


def test_bursts_of_an_undivided_set_are_no_finding_but_a_reason_to_split_by_time(cameras: Path) -> None:
    take(cameras / "train", "wren/cam2/i.jpg", "15:03:00", 50)
    report = check_set(load_labelled(cameras / "train", for_training=False), workers=0, min_images=1)
    assert report.clean and report.in_bursts == 4
    text = summary(report, None)
    assert "       4 images in bursts (one folder, gaps of at most 5 minutes; 5 of 6 images have" in text
    assert "fgvc train --data ... --split-by minutes=5" in text and "across splits (one" not in text
    assert as_document(report)["bursts"]["suggestion"] == "--split-by minutes=5"


def _die_on_bad(path: Path) -> Fingerprint | Failure:
    if path.name == "bad.png":
        os._exit(9)
    return fingerprint(path)


def test_a_decoder_that_dies_costs_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [save(picture(i), tmp_path / f"{i}.png") for i in range(5)]
    paths.insert(2, save(picture(9), tmp_path / "bad.png"))
    monkeypatch.setattr(fingerprint_pool, "fingerprint", _die_on_bad)
    # forked, they see the replaced function; the product spawns
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(fingerprint_pool.multiprocessing, "get_context", lambda kind: fork)
    monkeypatch.setattr(fingerprint_pool, "_CHUNK", 2)
    results = list(fingerprint_all(paths, workers=1))
    assert [getattr(r, "status", "ok") for r in results] == ["ok", "ok", "crashed", "ok", "ok", "ok"]


def blob(rng, sky, height: float, size: float) -> Image.Image:
    """Something soft, somewhere on an even ground."""
    y, x = np.mgrid[:160, :192] / 32
    (cx, cy), aspect = 1 + np.array([4, 2.8]) * rng.random(2), 0.5 + rng.random()
    bump = np.exp(-(((x - cx) ** 2 * aspect + (y - cy) ** 2 / aspect) / size**2))[..., None]
    return Image.fromarray((sky + height * bump).clip(0, 255).astype(np.uint8))


def all_bits(prints: list[Fingerprint]) -> list[Fingerprint]:
    return [replace(own, sure=2**64 - 1) for own in prints]


def test_thumbnails_of_flat_images_are_found(tmp_path):
    """Most of their frequencies are all but the median: on which side they fall is chance."""
    rng = np.random.default_rng(3)
    for i in range(12):
        image = blob(rng, 100 + 100 * rng.random(3), 6, 0.5)
        image.save(tmp_path / f"{i:02}.png")
        image.resize((48, 40), Image.Resampling.LANCZOS).save(tmp_path / f"{i:02}-thumb.jpg", quality=75)
    prints = [fingerprint(path) for path in sorted(tmp_path.iterdir())]
    found = find_groups(prints)
    assert all(group in [[2 * i, 2 * i + 1] for i in range(12)] for group in found)
    assert len(found) > len(find_groups(all_bits(prints)))
    assert len(found) >= 11


def test_small_things_on_one_ground_are_not_taken_for_one_another(tmp_path):
    rng = np.random.default_rng(3)
    for i in range(24):
        blob(rng, 200 + np.zeros(3), -120, 0.3).save(tmp_path / f"{i:02}.png")
    prints = [fingerprint(path) for path in sorted(tmp_path.iterdir())]
    assert find_groups(prints) == find_groups(all_bits(prints))
