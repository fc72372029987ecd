"""The table of ``honesty.py``: means over pictures, and what fails against the controls."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgvc_cli.evaluate.intervals import mean_interval

CENTRE = "centre prior"
AGAINST = ", against the nearest"
"""Behind the name of a map that answers why the own class and not one that differs in a single part."""
CONTROLS = (CENTRE, "noise")
FAILS_ABOVE = 0.5
"""Correlation with the map of random weights."""
JUDGED = {
    "point bird": 1,
    "point telling part": 1,
    "energy telling part": 1,
    "deletion": -1,
    "insertion": 1,
}
"""Tests held against the controls; -1 where less is better."""
PLACES = ("bird", "any part", "telling part")
COLUMNS = (
    *(f"point {place}" for place in PLACES),
    *(f"energy {place}" for place in PLACES),
    *("deletion", "insertion", "sanity", "other picture"),
)
Scores = dict[str, dict[str, np.ndarray]]
"""Map -> column -> one value for each picture, NaN where it was not scored."""


def read_lines(path: Path, weights: str) -> list[dict[str, Any]]:
    """The pictures that are done with these weights."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line for line in lines if line["weights"] == weights]


def collect(lines: Sequence[dict[str, Any]]) -> Scores:
    """Columns by map; a contrast counts once per picture, as the mean over its rivals."""
    scores: Scores = defaultdict(lambda: defaultdict(lambda: np.full(len(lines), np.nan)))
    for index, line in enumerate(lines):
        for name, row in line["rows"].items():
            for column, value in row.items():
                scores[name][column][index] = np.nan if value is None else value
        for name, rivals in line["contrasts"].items():
            for column in rivals[0]:
                scores[name][column][index] = np.mean([row[column] for row in rivals])
    return scores


def failed(scores: Scores, name: str) -> list[str]:
    """Tests in which a map is not shown to beat the better control, or to change with the weights."""
    fails = []
    for column, sign in JUDGED.items():
        values = scores[name].get(column)
        held = [scores[control][column] for control in _rivals(scores, name) if column in scores[control]]
        if values is None or not held:
            continue
        best = max(held, key=lambda each: sign * np.nanmean(each))
        if not _above_zero(sign * (values - best)):
            fails.append(column)
    sanity = scores[name].get("sanity")
    if sanity is not None and np.isfinite(sanity).any() and np.nanmean(sanity) > FAILS_ABOVE:
        fails.append("sanity")
    return fails


def _rivals(scores: Scores, name: str) -> list[str]:
    """The controls of a map: the middle, and the noise whose cells are nearest to its own in size.

    Coarse noise leaves whole parts where fine noise leaves none, so the one is no measure of the other. A
    contrast has the middle alone, held to the same part.
    """
    if name.endswith(AGAINST):
        return [f"{CENTRE}{AGAINST}"] if f"{CENTRE}{AGAINST}" in scores else []
    noises = [control for control in scores if control.startswith("noise")]
    cells = _cells(scores, name)
    noises.sort(key=lambda noise: abs(np.log(_cells(scores, noise) / cells)))
    return [control for control in scores if control == CENTRE] + noises[:1]


def _cells(scores: Scores, name: str) -> float:
    return float(np.nanmean(scores[name]["cells"])) if "cells" in scores[name] else 1.0


def _above_zero(differences: np.ndarray) -> bool:
    """Whether the 95 % interval of the mean lies above 0."""
    known = differences[np.isfinite(differences)]
    interval = mean_interval(known)
    if interval is None:
        return len(known) > 0 and bool(known[0] > 0)
    return interval.low > 0


def print_table(scores: Scores) -> None:
    """One line for each map; behind a sanity figure, on how many pictures both maps were more than empty."""
    shown = [column for column in COLUMNS if any(column in row for row in scores.values())]
    print("| map | " + " | ".join(shown) + " | fails |")
    print("|---" * (len(shown) + 2) + "|")
    for name, row in scores.items():
        cells = [_cell(column, row.get(column)) for column in shown]
        control = name.startswith(CONTROLS)
        fails = "" if control else ", ".join(failed(scores, name))
        print(f"| {name} | " + " | ".join(cells) + f" | {fails} |")


def _cell(column: str, values: np.ndarray | None) -> str:
    if values is None or not np.isfinite(values).any():
        return ""
    count = f" ({np.isfinite(values).sum()})" if column == "sanity" else ""
    return f"{np.nanmean(values):.3f}{count}"
