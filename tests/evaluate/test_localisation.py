"""Boxes and peaks against known boxes."""

from __future__ import annotations

import pytest
import torch

from fgvc_cli.datasets.entries import TrueBoxes
from fgvc_cli.evaluate.evaluator import (
    Located,
    best_iou,
    centred_box,
    inside,
    localisation_metrics,
    part_boxes,
    peaks,
)

LEFT, RIGHT = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0)


def test_iou_is_with_the_nearest_of_several_objects():
    assert best_iou((20, 0, 30, 5), [LEFT, RIGHT]) == pytest.approx(0.5)
    assert best_iou((10, 0, 20, 10), [LEFT, RIGHT]) == 0


def test_a_box_ends_before_its_end():
    assert inside((0, 0), [LEFT]) and inside((9.9, 9.9), [LEFT])
    assert not inside((10, 5), [LEFT]) and inside((20, 5), [LEFT, RIGHT])


def test_figures_by_hand():
    parts = {"bill": (0.0, 0.0, 2.0, 2.0)}
    located = [
        Located(TrueBoxes((LEFT,), parts), (20, 10), LEFT, (1, 1)),  # exact; on the object and a part
        Located(TrueBoxes((LEFT,), parts), (20, 10), (0, 0, 10, 5), (5, 5)),  # IoU 0.5 is not above 0.5
        Located(TrueBoxes((LEFT,), {}), (20, 10), (10, 0, 20, 10), (15, 5)),
    ]
    figures, intervals = localisation_metrics(located)
    assert figures["boxes"] == 3
    assert figures["iou"] == pytest.approx(0.5)
    assert figures["iou_above_0.5"] == pytest.approx(1 / 3)
    assert figures["pointing_object"] == pytest.approx(2 / 3)
    assert figures["pointing_parts"] == pytest.approx(1 / 2)
    assert figures["pointing_chance"] == pytest.approx(0.5)
    # (4, 2, 16, 8) meets (0, 0, 10, 10) in 6 x 6 of 72 + 100 - 36.
    assert figures["iou_centred"] == pytest.approx(36 / 136)
    assert centred_box((20, 10)) == pytest.approx((4, 2, 16, 8))
    for name in ("iou", "iou_above_0.5", "pointing_object", "pointing_parts"):
        assert intervals[name].holds(figures[name])


def test_a_model_without_a_map_has_no_pointing_figures():
    figures, _ = localisation_metrics([Located(TrueBoxes((LEFT,), {}), (20, 10), LEFT, None)])
    assert figures["iou"] == 1 and not any(name.startswith("pointing") for name in figures)


def test_a_peak_is_the_middle_of_its_cell():
    heat = torch.zeros(2, 2, 4)
    heat[0, 1, 3] = heat[1, 0, 0] = 1
    assert peaks(heat, 80).tolist() == [[70, 60], [10, 20]]


def test_a_part_known_as_a_point_is_a_square_around_it():
    truth = TrueBoxes(((0.0, 0.0, 100.0, 60.0),), {}, {"beak": (50.0, 30.0)})
    assert part_boxes(truth) == [(42.0, 22.0, 58.0, 38.0)]
    hits = [Located(truth, (100, 60), (0.0, 0.0, 9.0, 9.0), peak) for peak in ((57.0, 30.0), (59.0, 30.0))]
    assert localisation_metrics(hits)[0]["pointing_parts"] == 0.5
