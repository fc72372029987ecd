"""Numbers as pictures: curves, confusion matrix, confused pairs, reliability, seeds of ablations. One style.

Charts are PNG bytes, drawn with matplotlib's Figure objects alone, which need no display and leave an
application's own pyplot as it is. Colours are Okabe & Ito's, apart for every kind of colour blindness; each
line also has its own marker. Confused pairs are images side by side, laid out as pages of explanations are.

Legend: K classes, B bins.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageOps
from scipy.sparse import coo_array

from fgvc_cli.charts.drawing import (
    BODY,
    GAP,
    INK,
    INNER,
    LABEL,
    PAPER,
    QUIET,
    SMALL,
    TITLE,
    TRACK,
    Section,
    beside,
    page,
    spoken,
    stack,
)
from fgvc_cli.evaluate.confidence import Reliability
from fgvc_cli.evaluate.intervals import mean_and_deviation, share_interval
from fgvc_cli.evaluate.metrics import Matrix, mistakes

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DPI = 160
MATRIX_CLASSES = 40
"""More classes than this are not named in a confusion matrix: the names could not be read."""
NAMED_CLASSES = 30
"""Then so many, those with most mistakes, are shown by name."""
CELL_CLASSES = 31
"""Up to so many rows, the counts are written into the cells."""

_FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Arial Unicode MS")
"""The first comes with matplotlib; the others, where a machine has them, for letters that it lacks."""

_SAID = {"cram": "CRAM", "smram": "SMRAM", "div": "L_div"}
"""Names of columns that are written otherwise in print."""

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": TRACK,
    "axes.axisbelow": True,
    "lines.linewidth": 2.0,
    "lines.markersize": 6,
    "legend.frameon": False,
    "savefig.dpi": DPI,
    # A class may be called $5.
    "text.parse_math": False,
}


def draw_curves(rows: Sequence[dict[str, float]], title: str = "") -> bytes:
    """How training went: loss, validation top-1 of each branch, learning rates, over the epochs.

    Args:
        rows: lines of metrics.csv; what a line lacks, or holds as NaN, is left out of its curve.
    """
    with _styled():
        figure = _figure(8.4, 10.2)
        losses, tops, rates = figure.subplots(3, 1, sharex=True, height_ratios=(1.15, 1.15, 0.75))
        _draw_series(losses, _series(rows, "loss", "Total"))
        validation = _series(rows, "val_nll", "")
        for points in validation.values():
            losses.plot(*points, color=QUIET, linestyle="--", label="Validation NLL")
        # The terms lie far below their weighted sum.
        losses.set_yscale("log")
        losses.yaxis.set_major_formatter("{x:g}")
        losses.yaxis.set_minor_formatter(_plain_between())
        _finish_axes(losses, "Loss")
        _draw_series(tops, _series(rows, "val_top1", "Fused", scale=100))
        _finish_axes(tops, f"Validation top-1, %{_mark_best(tops, rows)}")
        _draw_series(rates, _merged(_series(rows, "lr", "All")))
        _finish_axes(rates, "Largest learning rate")
        rates.set_xlabel("Epoch")
        rates.xaxis.get_major_locator().set_params(integer=True)
        return _png(figure, title)


def draw_confusion(matrix: Matrix, classes: Sequence[str], title: str = "") -> bytes:
    """Who is taken for whom: rows are the truth, shaded by the share of the row.

    Above ``MATRIX_CLASSES`` the classes with most mistakes, theirs and in their name, are shown, and all the
    others as one row and column, whose common cell stays empty. A class neither shown nor guessed is out.

    Args:
        matrix: images, int (K, K), see ``evaluate.metrics.confusion``.
    """
    seen = np.flatnonzero(matrix.sum(axis=0) + matrix.sum(axis=1))
    matrix, classes = matrix[seen][:, seen], [classes[i] for i in seen.tolist()]
    shown = len(classes) if len(classes) <= MATRIX_CLASSES else NAMED_CLASSES
    counts, names = _gather(matrix, classes, shown)
    whole = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, whole, out=np.zeros(counts.shape), where=whole > 0)
    if shown < len(classes):
        # Right ones and mistakes of the others among themselves: neither dark nor pale would be true.
        counts[-1, -1] = shares[-1, -1] = 0
        title = f"{title}: the {shown} classes with most mistakes" if title else title
    side = 2.6 + 0.36 * len(names)
    with _styled():
        figure = _figure(side + 1.2, side)
        axes = figure.subplots()
        axes.grid(False)
        image = axes.imshow(100 * shares, cmap=_paper_map(), vmin=0, vmax=100)
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0, labelsize=11)
        for edge in axes.spines.values():
            edge.set_visible(False)
        axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
        axes.grid(True, which="minor", color="white", linewidth=1.0)
        axes.tick_params(which="minor", length=0)
        if len(names) <= CELL_CLASSES:
            _write_counts(axes, counts, shares)
        axes.set_xlabel("Taken for")
        axes.set_ylabel("Truth")
        bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
        bar.set_label("% of the class")
        bar.outline.set_visible(False)
        return _png(figure, title)


def draw_reliability(panels: Sequence[tuple[str, Reliability]], title: str = "") -> bytes:
    """How often the model is right where it is so sure (Guo et al. 2017, Fig. 4), one panel beside the other.

    Each bar has its 95 % interval: a bin of few images says little. Below, how many lie in each bin.

    Args:
        panels: (name, figures), such as before and after the temperature.
    """
    with _styled():
        figure = _figure(5.2 * len(panels) + 0.6, 7.4, gap=0.06)
        grid: Any = {"sharex": True, "sharey": "row", "height_ratios": (3.2, 1), "squeeze": False}
        upper, lower = figure.subplots(2, len(panels), **grid)
        for axes, histogram, (name, figures) in zip(upper, lower, panels, strict=True):
            _draw_reliability_panel(axes, name, figures)
            _draw_histogram(histogram, figures)
        upper[0].set_ylabel("Right, %")
        lower[0].set_ylabel("Images, %")
        return _png(figure, title)


def _draw_reliability_panel(axes: Axes, name: str, figures: Reliability) -> None:
    filled = figures.images > 0
    edges = np.linspace(0, 100, len(figures.images) + 1)
    accuracy, sure = 100 * figures.accuracy[filled], 100 * figures.confidence[filled]
    images = figures.images[filled].tolist()
    ends = [share_interval(round(a * n / 100), n) for a, n in zip(accuracy, images, strict=True)]
    low, high = 100 * np.array(ends).T
    axes.plot([0, 100], [0, 100], color=QUIET, linestyle="--", linewidth=1.5)
    axes.bar(edges[:-1][filled], accuracy, edges[1], align="edge", color=COLORS[5], edgecolor="white")
    axes.vlines(sure, low, high, color=COLORS[0], linewidth=2)
    axes.plot(sure, accuracy, "o", color=COLORS[0])
    axes.set_title(name)
    axes.set_title(f"ECE {100 * figures.error:.2f} %", loc="right")
    axes.set(xlim=(0, 101), ylim=(0, 102))


def _draw_histogram(axes: Axes, figures: Reliability) -> None:
    edges = np.linspace(0, 100, len(figures.images) + 1)
    shares = 100 * figures.images / figures.images.sum()
    axes.bar(edges[:-1], shares, edges[1], align="edge", color=QUIET, edgecolor="white")
    axes.set_xlabel("Confidence, %")


Points = tuple[tuple[float, ...], tuple[float, ...]]
"""Epochs and values of one curve."""


def _series(rows: Sequence[dict[str, float]], prefix: str, whole: str, scale: float = 1) -> dict[str, Points]:
    """Label -> points of the columns ``prefix`` (labelled ``whole``) and ``prefix_<name>``."""
    series = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        if name != prefix and not name.startswith(f"{prefix}_"):
            continue
        given = [(row["epoch"], scale * row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
        label = name.removeprefix(prefix).lstrip("_")
        if given:
            epochs, values = zip(*given, strict=True)
            series[_SAID.get(label, spoken(label)) or whole] = (epochs, values)
    return series


def _merged(series: dict[str, Points]) -> dict[str, Points]:
    """Curves that lie on each other as one, with all their labels."""
    labels: dict[Points, list[str]] = {}
    for label, points in series.items():
        labels.setdefault(points, []).append(label)
    return {", ".join(names): points for points, names in labels.items()}


def _draw_series(axes: Axes, series: dict[str, Points]) -> None:
    for index, (label, (epochs, values)) in enumerate(series.items()):
        axes.plot(
            epochs,
            values,
            label=label,
            color=COLORS[index % len(COLORS)],
            marker=MARKERS[index % len(MARKERS)],
            linewidth=3.0 if index == 0 else 1.8,
            # Of many epochs some are enough to tell the lines apart.
            markevery=max(1, len(epochs) // 12),
        )


def _plain_between() -> Any:
    """Labels between the powers of ten of a logarithmic axis, where there is room, as numbers: matplotlib's
    own are formulas, which would stand there as typed."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    return Plain(labelOnlyBase=False)


def _mark_best(axes: Axes, rows: Sequence[dict[str, float]]) -> str:
    """Mark the epoch that is kept, the best on validation as the trainer ranks them, and return it in words
    for the title: a second title on the right would lie over the first where the legend is wide."""
    ranked = [row for row in rows if math.isfinite(row.get("val_top1", math.nan))]
    if not ranked:
        return ""
    best = max(ranked, key=lambda row: (row["val_top1"], -row.get("val_nll", 0.0)))
    axes.axvline(best["epoch"], color=QUIET, linestyle=":", linewidth=1.5)
    return f" (best: {100 * best['val_top1']:.2f} after epoch {best['epoch']:.0f})"


def _finish_axes(axes: Axes, title: str) -> None:
    axes.set_title(title)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=11)


def _gather(matrix: Matrix, classes: Sequence[str], shown: int) -> tuple[np.ndarray, list[str]]:
    """The ``shown`` classes with most mistakes, in their own order, and the rest as one last class."""
    names = [_short(name) for name in classes]
    cells = coo_array(matrix)
    if shown >= len(classes):
        return cells.toarray(), names
    labels, guesses, counts = mistakes(matrix)
    wrong = np.bincount(np.concatenate([labels, guesses]), np.tile(counts, 2), minlength=len(classes))
    kept = np.sort(np.argsort(-wrong, kind="stable")[:shown])
    place = np.full(len(classes), shown)
    place[kept] = np.arange(shown)
    gathered = np.zeros((shown + 1, shown + 1), np.int64)
    np.add.at(gathered, (place[cells.row], place[cells.col]), cells.data)
    return gathered, [*(names[i] for i in kept), f"{len(classes) - shown} others"]


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    for row, column in zip(*np.nonzero(counts), strict=True):
        ink = "white" if shares[row, column] > 0.5 else INK
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=10, color=ink)


def _short(name: str, limit: int = 24) -> str:
    name = name.replace("_", " ")
    return name if len(name) <= limit else f"{name[: limit - 1].rstrip()}…"


def _paper_map() -> Any:
    """White to dark blue, even in lightness."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("paper", ["#ffffff", "#9fc8e4", COLORS[0], "#06243b"])


def _styled() -> AbstractContextManager[None]:
    from matplotlib import rc_context
    from matplotlib.font_manager import fontManager

    installed = {*fontManager.get_font_names()}
    return rc_context(_STYLE | {"font.sans-serif": [name for name in _FONTS if name in installed]})


def _figure(width: float, height: float, gap: float = 0.02) -> Figure:
    """A figure in inches that draws without a display; ``gap`` is that between columns, a share of one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=gap))
    FigureCanvasAgg(figure)
    return figure


def _set_title(figure: Figure, title: str) -> None:
    """A title above all, in as many lines as the width of the figure asks for."""
    text = figure.suptitle(title, x=0.01, ha="left", fontsize=15, fontweight="bold")
    room = 0.97 * figure.bbox.width
    letters = len(title)
    while text.get_window_extent().width > room and letters > 8:
        letters -= 1
        text.set_text(textwrap.fill(title, letters))


def _png(figure: Figure, title: str) -> bytes:
    if title:
        _set_title(figure, title)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # Letters that no typeface has are boxes; that is plain to see.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # Without the writer's version: equal numbers give equal files.
        figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def draw_spread(
    names: Sequence[str],
    groups: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    reference: str,
    title: str = "",
) -> bytes:
    """PNG: a row per name from top to bottom, a panel per group; bars are one sample standard deviation.

    Args:
        names: in order; one without values keeps its row.
        groups: such as split -> name -> per cent of each seed.
        reference: its mean is a dashed line.
    """
    with _styled():
        figure = _figure(2.2 + 4.4 * len(groups), 1.7 + 0.5 * len(names), gap=0.06)
        panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for axes, (group, values) in zip(panels, groups.items(), strict=True):
            for place, name in enumerate(names):
                own = list(values.get(name, ()))
                if not own:
                    continue
                mean, deviation = mean_and_deviation(own)
                color = COLORS[1] if name == reference else COLORS[0]
                axes.plot(own, [place + 0.22] * len(own), MARKERS[0], color=color, alpha=0.45, markersize=5)
                bar = None if math.isnan(deviation) else deviation
                axes.errorbar(mean, place, xerr=bar, fmt=MARKERS[3], color=color, capsize=5, markersize=7)
                axes.annotate(
                    f"{mean:.1f}",
                    (mean, place),
                    xytext=(0, 7),
                    textcoords="offset points",
                    ha="center",
                    fontsize=10,
                )
                if name == reference:
                    axes.axvline(mean, color=QUIET, linestyle="--", linewidth=1.2, zorder=0)
            axes.set_title(group)
            axes.set_xlabel("Top-1, %")
            axes.margins(x=0.12)
            axes.grid(False, axis="y")
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.4, -0.6)
        return _png(figure, title)


PAIR_COLUMNS = 2
_BETWEEN_PAIRS = 2 * GAP
_CARD = (INNER - (PAIR_COLUMNS - 1) * _BETWEEN_PAIRS) // PAIR_COLUMNS
_TILE = (_CARD - GAP // 2) // 2


@dataclass(frozen=True, eq=False)
class ConfusedPair:
    """Images are upright RGB, of any size; None where there is none to show."""

    label: str
    guess: str
    count: int
    """Images of ``label`` that were taken for ``guess``."""
    images: int
    """Images of ``label``."""
    misread: Image.Image | None
    prob: float
    """How sure the model was of ``guess`` for the misread one."""
    example: Image.Image | None
    """Of ``guess``, for comparison."""


def draw_confused(pairs: Sequence[ConfusedPair], title: str = "", note: str = "") -> Image.Image:
    """The pairs two by two, row by row: RGB, ``layout.WIDTH`` pixels wide.

    Args:
        pairs: at least one.
        title, note: the line above, in bold and after it.
    """
    cards = [_draw_card(pair) for pair in pairs]
    rows: list[Section | None] = [
        beside(cards[i : i + PAIR_COLUMNS], _BETWEEN_PAIRS) for i in range(0, len(cards), PAIR_COLUMNS)
    ]
    return page(stack([_header(title, note), *rows]))


def _header(title: str, note: str) -> Section:
    section = Image.new("RGB", (INNER, round(TITLE.px * 1.3)), PAPER)
    draw = ImageDraw.Draw(section)
    note = BODY.shorten(note, INNER / 2) if note else ""
    TITLE.draw(draw, (0, TITLE.px), TITLE.shorten(title, INNER - BODY.width(note) - 2 * GAP), INK)
    BODY.draw(draw, (INNER, TITLE.px), note, QUIET, anchor="rs")
    return section


def _draw_card(pair: ConfusedPair) -> Section:
    """Who is taken for whom and how often, above the two images; under each, what it is."""
    head = Image.new("RGB", (_CARD, round(LABEL.px * 1.5)), PAPER)
    draw = ImageDraw.Draw(head)
    said = f"{pair.count} of {pair.images} taken for {_spaced(pair.guess)}"
    LABEL.draw(draw, (0, LABEL.px), LABEL.shorten(said, _CARD), INK)
    left = _draw_tile(pair.misread, _spaced(pair.label), f"misread, {100 * pair.prob:.0f} % sure")
    right = _draw_tile(pair.example, _spaced(pair.guess), "for comparison")
    return stack([head, beside([left, right], GAP // 2)], 0)


def _draw_tile(photo: Image.Image | None, name: str, note: str) -> Section:
    """An image cut to a square about its middle, with two lines under it."""
    pitch = round(SMALL.px * 1.4)
    tile = Image.new("RGB", (_TILE, _TILE + 2 * pitch + 8), PAPER)
    if photo is None:
        tile.paste(TRACK, (0, 0, _TILE, _TILE))
        SMALL.draw(ImageDraw.Draw(tile), (_TILE / 2, _TILE / 2), "none in this split", QUIET, anchor="mm")
        note = ""
    else:
        tile.paste(ImageOps.fit(photo, (_TILE, _TILE), Image.Resampling.LANCZOS), (0, 0))
    draw = ImageDraw.Draw(tile)
    LABEL.draw(draw, (0, _TILE + pitch), LABEL.shorten(name, _TILE), INK)
    SMALL.draw(draw, (0, _TILE + 2 * pitch), SMALL.shorten(note, _TILE), QUIET)
    return tile


def _spaced(name: str) -> str:
    return name.replace("_", " ")
