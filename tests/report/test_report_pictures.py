"""Which rows get a picture, and of what."""

from __future__ import annotations

import io
import os
import sys
import zipfile

import h5py
import numpy as np
import pytest
from PIL import Image
from predictions import block, jpeg, many, write_csv, write_h5

from fgvc_cli.errors import FgvcError
from fgvc_cli.formats.outputs import read_table
from fgvc_cli.report.pictures import PictureMaker, choose_rows

BLUE, RED = (0, 0, 254), (254, 0, 0)


def colour_and_size(webp: bytes) -> tuple[tuple[int, ...], tuple[int, int]]:
    with Image.open(io.BytesIO(webp), formats=("WEBP",)) as image:
        pixel = image.convert("RGB").resize((1, 1)).getpixel((0, 0))
        return tuple(round(value / 127) * 127 for value in pixel), image.size


def make(path, images=None, px=60):
    """Row -> (cropped, colour, size), and the failures."""
    table = read_table(path)
    maker = PictureMaker(table, images, px, workers=2)
    maker.check()
    rows = choose_rows(table, 100)
    if "crop" in table.info.extras:
        with h5py.File(path) as file:
            pictures = list(maker.make(rows, file["crop"]))
    else:
        pictures = list(maker.make(rows, None))
    made = {picture.row: (picture.cropped, *colour_and_size(picture.webp)) for picture in pictures}
    return made, dict(maker.failures)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i:03d}.jpg").write_bytes(jpeg("blue"))
    return folder


def test_images_are_shrunk_and_what_is_missing_or_changed_shows_its_crop(tmp_path, photos):
    preds = write_h5(tmp_path / "p.h5", block([("ant", 0.75)] * 3 + [None], crops=True))
    (photos / "000.jpg").write_bytes(jpeg("blue", (60, 120)))
    (photos / "001.jpg").unlink()
    made, failures = make(preds, str(photos))
    assert made == {0: (True, RED, (50, 40)), 1: (True, RED, (50, 40)), 2: (False, BLUE, (60, 40))}
    assert failures == {"changed": 1, "missing": 1}


def test_without_crops_those_rows_have_no_picture(tmp_path, photos):
    preds = write_csv(tmp_path / "p.csv", block([("ant", 0.75)] * 3))
    (photos / "001.jpg").write_bytes(b"no picture")
    made, failures = make(preds, str(photos))
    assert list(made) == [0, 2] and failures == {"not_an_image": 1}
    assert make(preds)[0] == {}  # nor below the current folder


def test_without_images_paths_are_as_they_are(tmp_path, photos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["photos/000.jpg", str(photos / "001.jpg")]
    made, failures = make(write_csv(tmp_path / "p.csv", block([("ant", 0.75)] * 2, paths=names)))
    assert list(made) == [0, 1] and not failures


def test_images_in_an_archive(tmp_path, photos):
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for name in ("002.jpg", "000.jpg", "other.jpg"):
            archive.writestr(name, jpeg("blue"))
    made, failures = make(write_csv(tmp_path / "p.csv", block([("ant", 0.75)] * 3)), str(tmp_path / "p.zip"))
    assert sorted(made) == [0, 2] and failures == {"missing": 1}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8_are_found_again(tmp_path):
    name = os.fsdecode(b"\xff.jpg")
    (tmp_path / name).write_bytes(jpeg("blue"))
    made, _ = make(write_csv(tmp_path / "p.csv", block([("ant", 0.75)], paths=[name])), str(tmp_path))
    assert made == {0: (False, BLUE, (60, 40))}


def test_no_picture_is_enlarged_and_a_panorama_keeps_a_line(tmp_path):
    rows = block([("ant", 0.75)] * 2)
    rows.size[:] = (30, 20), (2000, 3)
    (tmp_path / "000.jpg").write_bytes(jpeg("blue", (30, 20)))
    (tmp_path / "001.jpg").write_bytes(jpeg("blue", (2000, 3)))
    made, _ = make(write_csv(tmp_path / "p.csv", rows), str(tmp_path))
    assert [size for _, _, size in made.values()] == [(30, 20), (60, 1)]


def test_a_folder_that_is_not_there_is_refused_before_anything_is_made(tmp_path):
    table = many(3)
    with pytest.raises(FgvcError, match="No such file or folder"):
        PictureMaker(table, str(tmp_path / "nothing")).check()


def test_all_rows_with_a_prediction_where_they_are_few(tmp_path):
    table = read_table(write_csv(tmp_path / "p.csv", block([("ant", 0.75), None, ("bee", 0.5)])))
    assert choose_rows(table, 2) == [0, 2]


def test_half_are_the_least_sure_and_half_are_spread_over_the_classes():
    table = many(300)  # row 299 is the surest, classes in turn
    chosen = choose_rows(table, 12)
    assert chosen[:6] == [0, 1, 2, 3, 4, 5]
    assert sorted(table.rows.topk_index[chosen[6:], 0].tolist()) == [0, 0, 1, 1, 2, 2]
    assert chosen[6:] == [294, 295, 296, 297, 298, 299]
    assert choose_rows(table, 0) == []


def test_unknown_ones_come_before_the_unsure():
    table = many(300)
    table.rows.status[250] = table.rows.status[260] = "unknown"
    assert {250, 260, 0} < set(choose_rows(table, 6)) and {250, 260} < set(choose_rows(table, 4))


def test_mistakes_come_before_the_unsure_the_surest_first():
    wrong = np.zeros(300, bool)
    wrong[[100, 200]] = True
    assert {100, 200} < set(choose_rows(many(300), 6, wrong))
    assert 200 in choose_rows(many(300), 2, wrong)
