"""A model that looks again: its crops are the image's own pixels, what is erased is what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fgvc_cli.charts.drawing import INNER, WIDTH, color_table
from fgvc_cli.config import Preprocess
from fgvc_cli.data.geometry import input_geometry
from fgvc_cli.explain.explainer import Explanation
from fgvc_cli.explain.pages import render
from fgvc_cli.explain.panels import (
    BOX_LINE,
    ERASED,
    ERASED_RIM,
    FRAME_PX,
    MIN_PANEL_PX,
    PART_LINES,
    UNMAPPED,
    UNSEEN_VEIL,
    draw_cells,
    draw_crop,
    draw_erased,
    draw_looks,
    draw_photo,
    frame,
    solid,
)

WHOLE = Preprocess(input_px=40, resize_px=40)
CUT = Preprocess(input_px=40, resize_px=80)
SHAPES = [(1, 1), (24, 16), (3, 3000), (4000, 2), (900, 90), (300, 400), (512, 512), (2000, 1500)]


def noise(size: tuple[int, int]) -> Image.Image:
    """Darker than any line or veil, no two neighbours alike."""
    pixels = np.random.default_rng(0).integers(20, 110, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def explanation(size=(200, 160), *, preprocess=WHOLE, **fields) -> Explanation:
    top = (("ant", 0.5), ("bee", 0.25))
    given = {
        "image": noise(size),
        "top": top,
        "branches": {"main": top[0], "object": top[1], "parts": top[0]},
        "maps": {"main": np.eye(4, dtype=np.float32)},
        "box": None,
        "geometry": input_geometry(*size, preprocess),
        "input_px": preprocess.input_px,
        "model": "fake-model",
    }
    return Explanation(**(given | fields))


def full(size=(200, 160), parts: int = 2, **fields) -> Explanation:
    """With everything that a model that looks again can answer."""
    width, height = size

    def box(x1: float, y1: float, x2: float, y2: float) -> tuple[float, float, float, float]:
        return x1 * width, y1 * height, x2 * width, y2 * height

    places = [box(0.1, 0.1, 0.3, 0.4), box(0.6, 0.5, 0.9, 1.0), box(0.4, 0.1, 0.5, 0.3)]
    erased = np.zeros((40, 40), bool)
    erased[8:20, 4:16] = True
    given = {
        "box": box(0.1, 0, 0.9, 1),
        "parts": tuple(places[i % 3] for i in range(parts)),
        "object_map": np.eye(5, dtype=np.float32),
        "erased": erased,
    }
    return explanation(size, **(given | fields))


def is_color(image: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    return (np.asarray(image) == color).all(axis=-1)


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """xyxy of the true pixels, end-exclusive."""
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_a_model_that_looks_once_has_no_section():
    plain = explanation(box=(10, 10, 50, 50))
    assert draw_looks(plain) is None
    page = render(plain)
    for color in (*PART_LINES[:3], ERASED):
        assert not is_color(page, color).any()
    # Header, image beside its one map, answers beside branches, one line of legend.
    assert page.size == (WIDTH, 1156)


@pytest.mark.parametrize("box", [(0, 0, 30, 20), (50, 40, 130, 120), (199, 159, 200, 160), (0, 0, 200, 160)])
def test_a_crop_is_the_images_own_pixels(box):
    explained = explanation()
    size = (box[2] - box[0], box[3] - box[1])
    crop = draw_crop(explained, solid(box, (200, 160)), size)
    np.testing.assert_array_equal(np.asarray(crop), np.asarray(explained.image.crop(box)))


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((3.2, 1.0, 3.4, 9.0), (3.2, 1.0, 4.2, 9.0)),
        ((9.9, 9.9, 10, 10), (9, 9, 10, 10)),
        ((-3, -3, 5, 20), (0, 0, 5, 10)),
        ((2.5, 2.5, 7.5, 8.5), (2.5, 2.5, 7.5, 8.5)),
    ],
)
def test_a_crop_is_inside_the_image_and_never_less_than_a_pixel(box, expected):
    assert solid(box, (10, 10)) == pytest.approx(expected)


def test_a_crops_attention_lies_over_all_of_the_crop():
    heat = np.zeros((8, 8), np.float32)
    heat[1, 6] = 1
    panel = np.asarray(draw_crop(explanation(), (40, 40, 120, 120), (80, 80), heat)).astype(int)
    warm = panel[..., 0] - panel[..., 2]
    rows, columns = np.nonzero(warm > 0.8 * warm.max())
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((65, 15), abs=2)


@pytest.mark.parametrize(("preprocess", "x0", "y0", "step"), [(WHOLE, 0, 0, 5), (CUT, 50, 50, 2.5)])
def test_the_erased_pixels_are_those_of_the_input_and_no_others(preprocess, x0, y0, step):
    erased = np.zeros((40, 40), bool)
    erased[10:30, 20:28] = True
    explained = explanation((200, 200), preprocess=preprocess, erased=erased)
    panel = draw_erased(explained, (200, 200))
    gone = is_color(panel, ERASED) | is_color(panel, ERASED_RIM)
    place = (x0 + 20 * step, y0 + 10 * step, x0 + 28 * step, y0 + 30 * step)
    assert extent(gone) == place
    assert gone.sum() == (place[2] - place[0]) * (place[3] - place[1])
    seen = np.zeros((200, 200), bool)
    seen[y0 : 200 - y0, x0 : 200 - x0] = True
    photo = np.asarray(explained.image)
    np.testing.assert_array_equal(np.asarray(panel)[seen & ~gone], photo[seen & ~gone])
    veiled = photo[~seen] + (255 - photo[~seen]) * UNSEEN_VEIL
    np.testing.assert_allclose(np.asarray(panel)[~seen], veiled, atol=1)
    # The rim is a line inside what is erased; the middle is flat.
    assert is_color(panel, ERASED).sum() > 0.75 * gone.sum()


def test_nothing_erased_leaves_the_image():
    explained = explanation(erased=np.zeros((40, 40), bool))
    np.testing.assert_array_equal(np.asarray(draw_erased(explained, (200, 160))), np.asarray(explained.image))
    with pytest.raises(ValueError, match="without erased"):
        draw_erased(explanation(), (200, 160))


def test_a_map_alone_shows_its_cells_where_the_input_lies():
    heat = np.linspace(0, 1, 4, dtype=np.float32).reshape(2, 2)
    panel = np.asarray(
        draw_cells(explanation((160, 160), preprocess=CUT, maps={"main": heat}), "main", (160, 160))
    )
    expected = np.full((160, 160, 3), UNMAPPED)
    expected[40:120, 40:120] = color_table()[[[0, 85], [170, 255]]].repeat(40, axis=0).repeat(40, axis=1)
    np.testing.assert_array_equal(panel, expected)


def test_part_boxes_are_drawn_where_they_are_each_in_its_colour():
    size = (600, 400)
    parts = ((60.0, 80.0, 180.0, 200.0), (300.0, 240.0, 480.0, 360.0))
    panel = draw_photo(explanation(size, box=(30, 40, 560, 380), parts=parts), size)
    for part, color in zip(parts, PART_LINES, strict=False):
        x1, y1, x2, y2 = (round(value) for value in part)
        # Behind a dark edge of a pixel, inside the box all round; the chip stands above it.
        chip, line = is_color(panel, color)[:y1], is_color(panel, color)[y1:]
        assert extent(line) == (x1 + 1, 1, x2 - 1, y2 - 1 - y1)
        assert extent(chip)[0] == x1 + 1 and extent(chip)[3] < y1
        middle = (slice(y1 + 20, y2 - 20), slice(x1 + 20, x2 - 20))
        np.testing.assert_array_equal(
            np.asarray(panel)[middle], np.asarray(draw_photo(explanation(size), size))[middle]
        )
    assert extent(is_color(panel, BOX_LINE)) == (31, 41, 559, 379)


def test_numbers_stay_in_the_panel_and_off_each_other():
    parts = ((0.0, 0.0, 600.0, 400.0),) * 4
    panel = draw_photo(explanation((600, 400), parts=parts), (600, 400))
    filled = [np.asarray(is_color(panel, color)).sum() for color in PART_LINES]
    # Only the fourth line is on top, yet each number has its own corner.
    assert all(count > 300 for count in filled)
    assert draw_photo(full((30, 3000)), (7, 690)).size == (7, 690)


def test_a_frame_covers_nothing_of_its_crop():
    crop = noise((30, 20))
    framed = frame(crop, PART_LINES[0])
    assert framed.size == (30 + 2 * FRAME_PX, 20 + 2 * FRAME_PX)
    inside = framed.crop((FRAME_PX, FRAME_PX, 30 + FRAME_PX, 20 + FRAME_PX))
    np.testing.assert_array_equal(np.asarray(inside), np.asarray(crop))


def test_every_look_has_its_panel_and_looks_not_taken_have_none():
    whole = draw_looks(full())
    colors = (BOX_LINE, PART_LINES[0], PART_LINES[1], ERASED)
    assert all(is_color(whole, color).sum() > 1000 for color in colors)
    no_parts = draw_looks(full(parts=0))
    assert is_color(no_parts, BOX_LINE).any() and not is_color(no_parts, PART_LINES[0]).any()
    first = draw_looks(full(parts=0, object_map=None))
    assert first.height < 0.65 * whole.height and is_color(first, ERASED).any()
    no_map = draw_looks(full(object_map=None))
    assert is_color(no_map, PART_LINES[1]).any()
    never_erased = draw_looks(full(erased=None))
    assert not is_color(never_erased, ERASED).any()
    assert draw_looks(full(maps={}, erased=None)).width <= INNER


def test_the_crops_attention_changes_its_own_panel_only():
    one, other = full(), full(object_map=np.eye(5, dtype=np.float32)[::-1].copy())
    changed = (np.asarray(draw_looks(one)) != np.asarray(draw_looks(other))).any(axis=-1)
    x1, y1, x2, y2 = extent(changed)
    crops = extent(is_color(draw_looks(one), PART_LINES[0]))
    assert y1 >= crops[1] and y2 <= crops[3] and x2 < crops[0] and x1 > INNER // 5


@pytest.mark.parametrize(
    ("size", "parts"), [*((size, 2) for size in SHAPES), ((300, 400), 16), ((900, 90), 7)]
)
def test_every_shape_of_image_makes_a_page(size, parts):
    page = render(full(size, parts=parts), "photo.jpg")
    assert page.width == WIDTH and 700 < page.height < 5200
    # The margins stay free.
    border = np.asarray(page).copy()
    border[40:-40, 40:-40] = 255
    assert (border == 255).all()


def test_panoramas_are_broken_into_rows_and_fill_the_width():
    section = draw_looks(full((3000, 600), erased=None, maps={}))
    crops = is_color(section, BOX_LINE)
    rows = np.nonzero(crops.any(axis=1))[0]
    assert rows.max() - rows.min() > MIN_PANEL_PX and section.width > 0.95 * INNER


def test_the_legend_names_what_there_is():
    page = np.asarray(render(full()))[-120:]
    assert all((page == color).all(axis=-1).any() for color in (BOX_LINE, *PART_LINES[:2], ERASED))
    without = np.asarray(render(replace(full(), erased=None)))[-120:]
    assert not (without == ERASED).all(axis=-1).any()
