"""Class names that people and systems spell in several ways: joined with a word, or refused with both."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from test_labelled import of_class, refusal, write_csv, write_images

from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.data.names import code_points, look_alikes

NFC, NFD = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))


def test_two_unicode_forms_are_one_class_and_it_is_said(tmp_path: Path) -> None:
    root = write_images(tmp_path, {f"train/{NFC}": 5, f"train/{NFD}": 4, "train/wren": 6, f"test/{NFD}": 2})
    if len(os.listdir(root / "train")) < 3:
        pytest.skip("this file system takes both forms for one name")
    listing = load_labelled(root)
    assert listing.classes == (NFC, "wren")
    assert len(of_class(listing, "train", NFC) + of_class(listing, "val", NFC)) == 9
    assert len(of_class(listing, "test", NFC)) == 2
    note = listing.notes[0]
    assert f"One class {NFC!r} in 2 Unicode forms" in note
    assert "U+0043 U+0061 U+0066 U+00E9" in note and "U+0066 U+0065 U+0301" in note


def test_a_single_form_keeps_its_spelling_and_its_deal(tmp_path: Path) -> None:
    """Models trained before names were compared must find their splits again."""
    listing = load_labelled(write_images(tmp_path, {NFD: 10, "wren": 10}))
    assert listing.classes == (NFD, "wren") and not listing.notes


@pytest.mark.parametrize(
    ("one", "other", "points"),
    [
        ("Blue Tit", "blue tit", ["U+0042", "U+0062"]),
        ("blue tit", "blue  tit", ["U+0020 U+0074", "U+0020 U+0020"]),
        ("blue tit", "blue\u00a0tit", ["U+0020", "U+00A0"]),
        (NFC, NFD.upper(), ["U+00E9", "U+0045 U+0301"]),
    ],
)
def test_look_alikes_are_refused_as_code_points(
    tmp_path: Path, one: str, other: str, points: list[str]
) -> None:
    message = str(
        refusal(
            write_csv(tmp_path, f"path,label\na1.jpg,{one}\na2.jpg,{one}\nb1.jpg,{other}\nb2.jpg,{other}\n")
        )
    )
    assert "differ only by case or blanks" in message and "--set similar_names=keep" in message
    assert [part for part in points if part not in message] == []


def test_look_alikes_are_kept_on_request_and_named_where_nothing_is_trained(tmp_path: Path) -> None:
    root = write_images(tmp_path, {"A": 5, "a": 5, "b": 5})
    if len(os.listdir(root)) < 3:
        pytest.skip("this file system takes upper and lower case for one")
    assert "'A' (U+0041) and 'a' (U+0061)" in str(refusal(root))
    kept = load_labelled(root, similar_names="keep")
    assert kept.classes == ("A", "a", "b") and "differ only by case" in kept.notes[0]
    assert "differ only by case" in load_labelled(root, for_training=False).notes[0]


def test_names_that_differ_otherwise_are_left_alone() -> None:
    assert look_alikes(["wren", "wrens", "wren-2", "wren_2", "x1", "x01"]) == []
    assert look_alikes(["Wren ", "wren", "robin"]) == [["Wren ", "wren"]]
    assert code_points("é ") == "'é ' (U+00E9 U+0020)"
