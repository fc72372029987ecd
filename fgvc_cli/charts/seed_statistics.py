"""Several ways of training, several seeds of each: every seed as a point, mean and spread beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fgvc_cli.charts.figures import COLORS, MARKERS, _figure, _png, _styled
from fgvc_cli.engine.seed_statistics import mean_and_deviation
from fgvc_cli.explain.layout import QUIET


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
