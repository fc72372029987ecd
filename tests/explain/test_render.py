"""The picture tells the truth: maps, boxes and bars are where and as large as the numbers say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fgvc_cli.charts import drawing
from fgvc_cli.charts.drawing import ACCENT, ELLIPSIS, INNER, MUTED, WIDTH, Face, color_table
from fgvc_cli.config import Preprocess
from fgvc_cli.data.geometry import input_geometry
from fgvc_cli.explain.explainer import Explanation
from fgvc_cli.explain.methods import HEAT
from fgvc_cli.explain.pages import draw_bars, draw_branches, draw_question, render
from fgvc_cli.explain.panels import BOX_LINE, UNSEEN_VEIL, draw_map, draw_photo, fit, without_frame

SQUASH = Preprocess(input_px=80, resize_px=100)
SHORTER = SQUASH.model_copy(update={"resize_rule": "shorter"})
GREY = 100
TOP = (("ant", 0.5), ("bee", 0.25), ("cat", 0.125))


def explanation(size, *, preprocess=SQUASH, maps=None, box=None, top=TOP, branches=None) -> Explanation:
    return Explanation(
        image=Image.new("RGB", size, (GREY, GREY, GREY)),
        top=top,
        branches={"main": top[0]} if branches is None else branches,
        maps={"stage3": np.zeros((8, 8), np.float32)} if maps is None else maps,
        box=box,
        geometry=input_geometry(*size, preprocess),
        input_px=preprocess.input_px,
        model="fake-model",
    )


def hot_cell(row: int, column: int, cells: int = 8) -> np.ndarray:
    heat = np.zeros((cells, cells), np.float32)
    heat[row, column] = 1
    return heat


def brightest(panel: Image.Image) -> tuple[float, float]:
    """Middle of the pixels drawn in the map's warm end, (x, y): red far above blue."""
    pixels = np.asarray(panel).astype(int)
    warm = pixels[..., 0] - pixels[..., 2]
    rows, columns = np.nonzero(warm > 0.8 * warm.max())
    return columns.mean() + 0.5, rows.mean() + 0.5


def colored(image: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    return (np.asarray(image) == color).all(axis=-1)


def rgb(text_color: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(text_color[1:]))


# Row 2, column 6 of 8 cells of 10 px has its centre at (65, 25) of the input. Squashed, the input starts 10
# of 100 px into each side: 75 % and 35 % of the image. By the shorter side, the longer one is cut at its
# middle.
@pytest.mark.parametrize(
    ("preprocess", "size", "at"),
    [
        (SQUASH, (400, 400), (300, 140)),
        (SQUASH, (300, 600), (225, 210)),
        (SQUASH, (800, 200), (600, 70)),
        (SHORTER, (400, 400), (300, 140)),
        (SHORTER, (300, 600), (225, 255)),
        (SHORTER, (800, 200), (450, 70)),
    ],
)
@pytest.mark.parametrize("zoom", [1, 0.5])
def test_a_hot_cell_lies_over_its_place_in_the_image(preprocess, size, at, zoom):
    explained = explanation(size, preprocess=preprocess, maps={"stage3": hot_cell(2, 6)})
    panel = draw_map(explained, "stage3", (round(size[0] * zoom), round(size[1] * zoom)))
    assert brightest(panel) == pytest.approx((at[0] * zoom, at[1] * zoom), abs=2)


def test_what_the_model_did_not_see_is_pale_and_carries_no_colour():
    panel = draw_map(explanation((400, 200), preprocess=SHORTER), "stage3", (400, 200))
    pale = round(GREY + (255 - GREY) * UNSEEN_VEIL)
    pixels = np.asarray(panel).astype(int)
    # 2 px of image per input px; 80 px in the middle of 200.
    outside = np.ones((200, 400), bool)
    outside[20:180, 120:280] = False
    np.testing.assert_allclose(pixels[outside], pale, atol=1)
    assert (pixels[~outside].max(axis=-1) < pale).all()


def test_an_even_map_an_empty_one_and_nan_are_drawn_as_low():
    low = np.asarray(draw_map(explanation((100, 100)), "stage3", (100, 100)))
    maps = {"stage3": np.full((8, 8), np.nan, np.float32)}
    np.testing.assert_array_equal(
        np.asarray(draw_map(explanation((100, 100), maps=maps), "stage3", (100, 100))), low
    )


@pytest.mark.parametrize("size", [(400, 300), (200, 800), (1200, 200)])
@pytest.mark.parametrize("on_map", [False, True])
def test_the_box_is_drawn_where_it_is(size, on_map):
    box = (0.25 * size[0], 0.2 * size[1], 0.75 * size[0], 0.9 * size[1])
    explained = explanation(size, box=box)
    panel = draw_map(explained, "stage3", size, box=True) if on_map else draw_photo(explained, size)
    assert_framed(panel, box)
    line = colored(panel, BOX_LINE)
    assert not line[line.shape[0] // 2, line.shape[1] // 2 - 9 : line.shape[1] // 2 + 9].any()


def assert_framed(panel: Image.Image, box: tuple[float, float, float, float]) -> None:
    """The bright line runs inside the box all round, behind a dark edge of one or two pixels."""
    rows, columns = np.nonzero(colored(panel, BOX_LINE))
    inset = np.array(
        [columns.min() - box[0], rows.min() - box[1], box[2] - columns.max() - 1, box[3] - rows.max() - 1]
    )
    assert (inset >= 0.5).all() and (inset <= 3).all()


@pytest.mark.parametrize("size", [(400, 200), (300, 600)])
def test_a_box_scales_with_the_panel(size):
    explained = explanation((4000, 2000), box=(1000, 500, 3000, 1500))
    expected = (0.25 * size[0], 0.25 * size[1], 0.75 * size[0], 0.75 * size[1])
    assert_framed(draw_photo(explained, size), expected)


def test_without_a_box_the_image_is_left_as_it_is():
    np.testing.assert_array_equal(np.asarray(draw_photo(explanation((40, 30)), (40, 30))), GREY)


def test_bars_are_as_long_as_their_probabilities():
    bars = draw_bars((("ant", 0.5), ("bee", 0.25), ("cat", 0.0)), 400)
    first = np.nonzero(colored(bars, rgb(ACCENT)))[1]
    second = np.nonzero(colored(bars, rgb(MUTED)))[1]
    assert (first.min(), first.max() + 1) == (0, 200)
    assert (second.min(), second.max() + 1) == (0, 100)
    third_alone = draw_bars((("cat", 0.0),), 400)
    assert not colored(third_alone, rgb(ACCENT)).any()


def test_a_sure_answer_fills_its_track_and_nan_leaves_it_empty():
    assert np.nonzero(colored(draw_bars((("ant", 1.0),), 300), rgb(ACCENT)))[1].max() == 299
    assert not colored(draw_bars((("ant", float("nan")),), 300), rgb(ACCENT)).any()


def test_branches_that_agree_are_marked_and_a_single_branch_is_not_listed():
    both = {"stage3": ("ant", 0.4), "stage4": ("bee", 0.9)}
    neither = {"stage3": ("cat", 0.4), "stage4": ("bee", 0.9)}
    assert colored(draw_branches(explanation((9, 9), branches=both), 500), rgb(ACCENT)).any()
    assert not colored(draw_branches(explanation((9, 9), branches=neither), 500), rgb(ACCENT)).any()
    assert draw_branches(explanation((9, 9)), 500) is None


@pytest.mark.parametrize(
    "size", [(1, 1), (24, 16), (3, 3000), (4000, 2), (1600, 900), (300, 400), (3000, 1000), (3000, 2400)]
)
@pytest.mark.parametrize("stages", [1, 3])
def test_every_shape_of_image_makes_a_page(size, stages):
    maps = {f"stage{i}": np.eye(4, dtype=np.float32) for i in range(stages)}
    if stages > 1:
        maps[HEAT] = np.eye(7, dtype=np.float32)
    box = (0.1 * size[0], 0.1 * size[1], 0.6 * size[0], 0.8 * size[1])
    page = render(explanation(size, maps=maps, box=box), "photo.jpg")
    assert page.mode == "RGB" and page.width == WIDTH and 700 < page.height < 2600
    # The margins stay free.
    border = np.asarray(page).copy()
    border[40:-40, 40:-40] = 255
    assert (border == 255).all()


def test_each_map_gets_its_panel():
    one = {"stage3": hot_cell(1, 1), "stage4": np.zeros((8, 8), np.float32)}
    two = one | {"stage4": hot_cell(6, 6)}
    changed = np.asarray(render(explanation((300, 300), maps=one))) != np.asarray(
        render(explanation((300, 300), maps=two))
    )
    columns = np.nonzero(changed.any(axis=(0, 2)))[0]
    assert changed.any() and columns.min() > WIDTH // 2


def test_no_map_at_all_still_makes_a_page():
    assert render(explanation((30, 20), maps={})).width == WIDTH


def test_long_names_are_shortened_to_the_width_they_have():
    face = Face(28)
    name = "Northern Rough-winged Swallow, juvenile"
    short = face.shorten(name, 260)
    assert short.endswith(ELLIPSIS) and name.startswith(short[:-1].rstrip()) and len(short) > 10
    assert 200 < face.width(short) <= 260
    assert face.shorten(name, 2000) == name
    # No name, however long, reaches past its bar or into its percentage.
    long = np.asarray(draw_bars((("W" * 300, 0.5),), 500))
    plain = np.asarray(draw_bars((("W", 0.5),), 500))
    np.testing.assert_array_equal(long[:, 380:], plain[:, 380:])


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "Grünfink",
        "コーヒー豆",
        "Воробей",
        "عصفور",
        "🐦",
        "e\u0301\u0301",
        "a\nb\tc",
        "\ud800",
        "\x00",
        "",
        " ",
    ],
)
def test_any_name_can_be_drawn(name, installed, monkeypatch):
    if not installed:
        monkeypatch.setattr(drawing, "_INSTALLED", ())
    top = ((name, 0.6), (name * 40, 0.4))
    assert draw_bars(top, 400).width == 400
    branches = {name or "x": (name, 0.5), "other": (name, 0.5)}
    assert draw_branches(explanation((9, 9), top=top, branches=branches), 400).width == 400


def test_accents_survive_without_installed_fonts_as_their_base_letters(monkeypatch):
    monkeypatch.setattr(drawing, "_INSTALLED", ())
    np.testing.assert_array_equal(
        np.asarray(draw_bars((("Grünfink", 0.6),), 400)), np.asarray(draw_bars((("Grunfink", 0.6),), 400))
    )


def test_a_panel_keeps_the_images_aspect():
    assert fit((3000, 1000), (600, 600)) == (600, 200)
    assert fit((10, 40), (600, 600)) == (150, 600)
    assert fit((1, 100_000), (600, 600)) == (1, 600)


def test_the_legend_shows_the_map_from_low_to_high():
    page = np.asarray(render(explanation((300, 300))))
    low, high = color_table()[0], color_table()[-1]
    lows = np.nonzero((page == low).all(axis=-1))[1]
    highs = np.nonzero((page == high).all(axis=-1))[1]
    assert lows.max() < highs.min() < INNER // 2


def test_a_bright_frame_of_a_stage_is_not_drawn():
    """What convolutions make of their padding; the object inside keeps its place, and the colours theirs."""
    heat = np.pad(hot_cell(5, 20, 26) * 0.5, 1, constant_values=1.0)
    drawn = without_frame("stage3", heat)
    assert drawn.shape == heat.shape and drawn.max() == drawn[6, 21] == 1
    assert drawn[0].max() == drawn[-1].max() == drawn[:, 0].max() == drawn[:, -1].max() == 0
    assert without_frame(HEAT, heat) is heat, "boxes and other maps are as they are"
    assert (
        without_frame("stage5", heat[:7, :7]) is not None
        and (without_frame("stage5", heat[:7, :7]) == heat[:7, :7]).all()
    )
    assert not without_frame("stage3", np.full((14, 14), 0.5)).any(), "a map of nothing stays one"
    x, y = brightest(draw_map(explanation((280, 280), maps={"stage3": heat}), "stage3", (280, 280)))
    assert (x, y) == pytest.approx((14 + 252 * 21.5 / 28, 14 + 252 * 6.5 / 28), abs=30)


def test_a_class_held_against_none_is_asked_about_alone(monkeypatch):
    said: list[str] = []
    draw = Face.draw

    def keep(face, pen, at, text, *rest, **named):
        said.append(text)
        return draw(face, pen, at, text, *rest, **named)

    monkeypatch.setattr(Face, "draw", keep)
    draw_question(replace(explanation((80, 80)), why=("gull", None)))
    assert said == ["Why", "gull"]
    draw_question(replace(explanation((80, 80)), why=("gull", "tern")))
    assert said[2:] == ["Why", "gull", "and not", "tern"]
