"""Charts: legible PNGs of what they are given, whatever that is."""

from __future__ import annotations

import io
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from fgvc_cli.charts import figures as charts
from fgvc_cli.charts.figures import draw_confusion, draw_curves, draw_reliability
from fgvc_cli.evaluate.confidence import reliability

ROWS = [
    {"epoch": 1, "loss": 2.0, "loss_stage3": 1.5, "lr_backbone": 0.01, "val_top1": 0.2, "val_nll": 2.0},
    {"epoch": 2, "loss": 1.0, "loss_stage3": 0.7, "lr_backbone": 0.1, "val_top1": 0.6, "val_nll": 1.1,
     "val_top1_stage3": 0.5},
    {"epoch": 3, "loss": float("nan"), "lr_backbone": 0.01, "val_top1": 0.5, "val_nll": 1.0},
]  # fmt: skip


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    assert image.format == "PNG" and min(image.size) > 500
    assert np.asarray(image.convert("L")).std() > 5, "an empty picture"
    return image


def texts(monkeypatch, draw) -> list[str]:
    """Every text that a chart holds."""
    from matplotlib.text import Text

    figures = []

    def keep(figure, title):
        figures.append(figure)
        return b""

    with monkeypatch.context() as patched:
        patched.setattr(charts, "_png", keep)
        draw()
    return [text.get_text() for text in figures[0].findobj(Text) if text.get_text()]


def test_curves_name_each_line_and_mark_the_kept_epoch(monkeypatch):
    opened(draw_curves(ROWS, "run"))
    said = texts(monkeypatch, lambda: draw_curves(ROWS))
    assert {"Loss", "Total", "Stage 3", "Validation NLL", "Fused", "Largest learning rate"} <= {*said}
    assert "Validation top-1, % (best: 60.00 after epoch 2)" in said


def drawn(monkeypatch, draw):
    """The figure of a chart, laid out as it is saved."""
    figures = []
    set_title = charts._set_title

    def keep(figure, title):
        figures.append(figure)
        set_title(figure, title)

    with monkeypatch.context() as patched:
        patched.setattr(charts, "_set_title", keep)
        draw()
    return figures[0]


@pytest.mark.parametrize("span", [1.2, 2, 8, 300])
def test_ticks_of_the_loss_are_numbers(span, monkeypatch):
    rows = [{"epoch": i, "loss": 0.6 * span ** (1 - i / 5)} for i in range(6)]
    figure = drawn(monkeypatch, lambda: draw_curves(rows, "run"))
    axis = figure.axes[0].yaxis
    labels = [
        t.get_text() for t in (*axis.get_majorticklabels(), *axis.get_minorticklabels()) if t.get_text()
    ]
    assert labels and all(float(label) > 0 for label in labels)


LONG = "runs/crasmra-mobilenetv2_100-birds of the north sea, test split, 103 images, temperature 1.31"


def test_no_title_is_cut_or_lies_over_another(monkeypatch):
    rows = [{"epoch": i, "loss": 1.0, "lr_backbone": 1e-3, "lr_cram": 1e-3, "lr_smram": 1e-3, "val_top1": 0.5,
             "val_top1_stage3": 0.4} for i in (1, 2)]  # fmt: skip
    for draw in (
        lambda: draw_confusion(np.array([[41, 7], [0, 53]]), ["Gull", "Tern"], LONG),
        lambda: draw_curves(rows, LONG),
    ):
        figure = drawn(monkeypatch, draw)
        pen = figure.canvas.get_renderer()
        titles = [t for axes in figure.axes for t in (axes.title, axes._left_title, axes._right_title)]
        boxes = [t.get_window_extent(pen) for t in (figure._suptitle, *titles) if t.get_text()]
        assert figure._suptitle.get_text().replace("\n", " ") == LONG
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)
        assert all(box.y0 >= 0 and box.y1 <= figure.bbox.height for box in boxes)
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_curves_of_one_epoch_or_of_many():
    opened(draw_curves(ROWS[:1]))
    opened(draw_curves([{**ROWS[1], "epoch": i} for i in range(300)]))
    opened(draw_curves([]))


def test_confusion_holds_every_count(monkeypatch):
    matrix = np.array([[41, 7], [0, 53]])
    opened(draw_confusion(matrix, ["Gull", "Tern"]))
    said = texts(monkeypatch, lambda: draw_confusion(np.pad(matrix, (0, 1)), ["Gull", "Tern", "Auk"]))
    assert {"Gull", "Tern", "41", "7", "53"} <= {*said} and said.count("0") <= 1  # of the scale
    assert "Auk" not in said


def test_many_classes_are_gathered_and_none_is_lost(monkeypatch):
    rng = np.random.default_rng(0)
    matrix = np.diag(rng.integers(5, 9, 60)) + (rng.random((60, 60)) < 0.02)
    counts, names = charts._gather(matrix, [str(i) for i in range(60)], 30)
    assert counts.shape == (31, 31) and counts.sum() == matrix.sum()
    assert names[-1] == "30 others" and len(names) == 31
    kept = [int(name) for name in names[:-1]]
    assert (counts[:-1, :-1] == matrix[np.ix_(kept, kept)]).all()
    mistakes = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
    assert min(mistakes[kept]) >= max(mistakes[[i for i in range(60) if i not in kept]])
    assert "30 others" in texts(monkeypatch, lambda: draw_confusion(matrix, names[:-1] * 2))


def test_names_are_text_whatever_they_are(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(draw_confusion(np.eye(3, dtype=int), ["$5_bill$", "鳥", "x" * 99]))
    said = texts(monkeypatch, lambda: draw_confusion(np.eye(2, dtype=int), ["a_b", "x" * 99]))
    assert "a b" in said and max(map(len, said)) < 30


def test_reliability_shows_both_panels_with_their_error(monkeypatch):
    probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    figures = reliability(probs, torch.tensor([0, 1, 1]))
    panels = [("before", figures), ("after", figures)]
    opened(draw_reliability(panels))
    said = texts(monkeypatch, lambda: draw_reliability(panels))
    assert said.count(f"ECE {100 * figures.error:.2f} %") == 2 and {"before", "after"} <= {*said}


def test_equal_numbers_give_equal_files():
    assert draw_curves(ROWS) == draw_curves(ROWS)


def test_no_display_and_no_pyplot():
    draw_curves(ROWS)
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize("count", [1, 3])
def test_confused_pairs_of_any_number_and_without_images(count):
    from fgvc_cli.charts.drawing import WIDTH
    from fgvc_cli.charts.figures import ConfusedPair, draw_confused

    photo = Image.new("RGB", (40, 90), (10, 200, 30))
    pair = ConfusedPair("Gull_" + "x" * 60, "Tern", 3, 9, photo, 0.7, None)
    picture = draw_confused([pair] * count, "on a set", "most confused")
    assert picture.width == WIDTH
    colours = {colour for _, colour in picture.getcolors(1 << 24)}
    assert (10, 200, 30) in colours
    assert picture.height > 500 * ((count + 1) // 2)
