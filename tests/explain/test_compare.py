"""Several models on one image, a row each."""

from __future__ import annotations

import numpy as np
import pytest
from test_stage_panels import CUT, SHAPES, explanation, full

from fgvc_cli.charts.drawing import WIDTH
from fgvc_cli.explain.explainer import LabelledExplanation
from fgvc_cli.explain.methods import HEAT
from fgvc_cli.explain.pages import draw_comparison
from fgvc_cli.explain.panels import BOX_LINE

STAGES = {f"stage{i}": np.eye(16 >> i, dtype=np.float32) for i in (1, 2, 3)}


def rows(size, *preprocess) -> list[LabelledExplanation]:
    width, height = size
    given = {"maps": STAGES, "box": (0, 0, width / 2, height / 2)}
    plain = explanation(size, **given)
    others = [explanation(size, preprocess=each, **given) for each in preprocess]
    return [LabelledExplanation(f"model {i}", each) for i, each in enumerate([plain, *others])]


@pytest.mark.parametrize("size", SHAPES)
def test_every_shape_of_image_makes_a_figure(size):
    figure = draw_comparison([*rows(size, CUT), LabelledExplanation("looks again", full(size))], "photo.jpg")
    assert figure.mode == "RGB" and figure.width == WIDTH and 200 < figure.height < 4000
    border = np.asarray(figure).copy()
    border[20:-20, 60:-60] = 255
    assert (border == 255).all()


def test_each_row_has_the_box_of_its_model_on_the_image():
    pixels = np.asarray(draw_comparison(rows((300, 200), CUT, CUT)))
    lines = (pixels == BOX_LINE).all(axis=-1)
    starts = np.flatnonzero(np.diff(lines.any(axis=1).astype(int)) == 1)
    assert len(starts) == 3
    assert np.flatnonzero(lines.any(axis=0)).max() < WIDTH / 4


def test_columns_are_named_once_where_all_rows_have_the_same():
    alike = draw_comparison(rows((300, 200), CUT))
    other = rows((300, 200), CUT)
    other[1] = LabelledExplanation("model 1", explanation((300, 200), maps={"main": STAGES["stage1"]}))
    assert draw_comparison(other).height > alike.height


def test_the_heat_is_not_one_of_the_stages():
    with_heat = [
        LabelledExplanation(row.label, explanation((300, 200), maps=STAGES | {HEAT: STAGES["stage1"]}))
        for row in rows((300, 200), CUT)
    ]
    assert draw_comparison(with_heat).size == draw_comparison(rows((300, 200), CUT)).size


def test_rows_that_speak_for_different_classes_each_say_which():
    def height(*classes: str) -> int:
        fields = {"maps": STAGES, "chosen": True}
        explained = [explanation((300, 200), why=(name, None), **fields) for name in classes]
        return draw_comparison([LabelledExplanation(str(i), e) for i, e in enumerate(explained)]).height

    once, each = height("ant", "ant"), height("ant", "bee")
    assert each - once > 30
