"""The short form of a picture, and pages of chosen methods."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_stage_panels import SHAPES, explanation, full

from fgvc_cli.charts.drawing import INNER, WIDTH, spoken
from fgvc_cli.explain.methods import HEAT
from fgvc_cli.explain.outputs import PicturesFolder
from fgvc_cli.explain.pages import draw_question, draw_strip, render
from fgvc_cli.explain.panels import BOX_LINE

MAPS = {"stage3": np.eye(8, dtype=np.float32), HEAT: np.eye(4, dtype=np.float32)}


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("make", [explanation, full])
def test_every_shape_of_image_makes_a_strip(size, make):
    strip = draw_strip(make(size, maps=MAPS), "photo.jpg")
    assert strip.mode == "RGB" and strip.width == WIDTH and 100 < strip.height < 1250
    border = np.asarray(strip).copy()
    border[20:-20, 60:-60] = 255
    assert (border == 255).all()


def test_a_strip_shows_the_box_on_the_image_and_on_the_heat():
    pixels = np.asarray(draw_strip(explanation((300, 300), maps=MAPS, box=(50, 50, 250, 250))))
    columns = np.nonzero((pixels == BOX_LINE).all(axis=-1).any(axis=0))[0]
    thirds = {int(3 * (column - 64) / INNER) for column in columns}
    assert thirds == {0, 1} or thirds == {0, 2} or thirds == {0, 1, 2}
    without = np.asarray(draw_strip(explanation((300, 300), maps=MAPS)))
    assert not (without == BOX_LINE).all(axis=-1).any()


def test_methods_are_called_what_people_call_them():
    assert spoken("gradcam-stage3") == "Grad-CAM, stage 3"
    assert spoken("hirescam-stage3") == "HiResCAM, stage 3"
    assert spoken("occlusion-blur") == "Occlusion, blur"
    assert spoken(HEAT) == "Object heat" and spoken("rollout") == "Attention rollout"
    assert spoken("last_stage") == "Last stage"


def test_the_question_is_on_the_page_only_where_one_was_asked():
    plain = explanation((300, 200), maps=MAPS, chosen=True)
    asked = replace(plain, why=("a class " * 30, "another class " * 30))
    assert draw_question(plain) is None
    heading = draw_question(asked)
    assert heading.width == INNER
    assert render(asked).height > render(plain).height
    assert draw_strip(asked).height > draw_strip(plain).height


def test_chosen_maps_take_the_place_of_the_further_looks():
    looks = full((300, 300), maps=MAPS)
    assert render(replace(looks, chosen=True)).height < render(looks).height


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("size", [(300, 200), (900, 90), (200, 800)])
def test_any_number_of_chosen_maps_makes_a_page(count, size):
    maps = {f"gradcam-stage{i}": np.eye(4, dtype=np.float32) for i in range(count)}
    page = render(explanation(size, maps=maps, chosen=True, why=("ant", None)))
    assert page.width == WIDTH


def test_pictures_of_a_folder_have_one_ending(tmp_path):
    with PicturesFolder(tmp_path / "out", ".jpg") as folder:
        names = [
            folder.add(name, i, b"x") for i, name in enumerate(("d/a.b.jpg", "d/a.b.png", "c", "../e.tif"))
        ]
    assert names == ["d/a.b.jpg", "d/a.b.png.jpg", "c.jpg", "__/e.jpg"]
    written = [p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.jpg")]
    assert sorted(written) == sorted(names)
