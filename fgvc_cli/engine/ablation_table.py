"""What the finished trainings of an ablation say: lines by seed and split, and by row of the table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgvc_cli.engine.run_state import METRICS
from fgvc_cli.evaluate.intervals import Interval, mean_and_deviation, paired_interval, verdict
from fgvc_cli.files import AtomicFile

SPLITS = ("val", "test")
"""A choice may be made by val; test is what it is then worth. With ``fuse=weighted`` val is scored with equal
weights, for the others are fitted to it, and test with those."""


@dataclass(frozen=True)
class Score:
    """One training on one split."""

    variant: str
    seed: int
    split: str
    metrics: dict[str, float]
    """As in the checkpoint: shares in [0, 1]."""
    seconds: float
    """Of training, without validation; NaN where metrics.csv is gone."""


@dataclass(frozen=True)
class Line:
    """One row of the table on one split: means over the seeds, shares in [0, 1], deviations of the sample."""

    variant: str
    split: str
    seeds: int
    top1: float
    top1_deviation: float
    macro_f1: float
    macro_f1_deviation: float
    seconds: float
    difference: float | None
    """Of top-1, less that of the reference with the same seeds; None for the reference and without such."""
    interval: Interval | None
    """95 % of the difference, see ``paired_interval``."""
    verdict: str


def read_scores(run_dir: Path, variant: str, seed: int, metadata: dict[str, Any]) -> list[Score]:
    """Of a finished run folder; ``metadata`` is its checkpoint's."""
    seconds = _seconds(run_dir / METRICS)
    return [
        Score(variant, seed, split, metadata["metrics"][split], seconds)
        for split in SPLITS
        if split in metadata["metrics"]
    ]


def summarise(scores: Sequence[Score], variants: Iterable[str], reference: str) -> list[Line]:
    """Split by split, in the order of ``variants``; what has no score has no line."""
    return [
        _line(scores, variant, split, reference)
        for split in SPLITS
        for variant in variants
        if any(score.variant == variant and score.split == split for score in scores)
    ]


def top1_by_seed(scores: Sequence[Score], variant: str, split: str) -> dict[int, float]:
    """Seed -> top-1, a share."""
    return {s.seed: s.metrics["top1"] for s in scores if (s.variant, s.split) == (variant, split)}


def _line(scores: Sequence[Score], variant: str, split: str, reference: str) -> Line:
    own = [score for score in scores if (score.variant, score.split) == (variant, split)]
    tops, theirs = top1_by_seed(scores, variant, split), top1_by_seed(scores, reference, split)
    pairs = [tops[seed] - theirs[seed] for seed in tops if seed in theirs and variant != reference]
    top1, deviation = mean_and_deviation([*tops.values()])
    f1, f1_deviation = mean_and_deviation([score.metrics["macro_f1"] for score in own])
    return Line(
        variant,
        split,
        len(own),
        top1,
        deviation,
        f1,
        f1_deviation,
        mean_and_deviation([score.seconds for score in own])[0],
        mean_and_deviation(pairs)[0] if pairs else None,
        paired_interval(pairs),
        verdict(pairs) if pairs else "",
    )


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """``variant,seed,split,top1,macro_f1,<branches>,images,seconds``; shares with six digits.

    Raises:
        FgvcError: it cannot be written.
    """
    branches = dict.fromkeys(name for s in scores for name in s.metrics if name.startswith("top1_"))
    columns = ["top1", "macro_f1", *branches, "images"]
    rows = [
        [s.variant, s.seed, s.split, *(_number(s.metrics.get(c)) for c in columns), _number(s.seconds)]
        for s in scores
    ]
    _write_csv(path, ["variant", "seed", "split", *columns, "seconds"], rows)


def write_summary(path: Path, lines: Sequence[Line]) -> None:
    """The fields of ``Line``, the interval as ``low`` and ``high``.

    Raises:
        FgvcError: it cannot be written.
    """
    numbers = ("top1", "top1_deviation", "macro_f1", "macro_f1_deviation", "seconds", "difference")
    rows = [
        [line.variant, line.split, line.seeds, *(_number(getattr(line, name)) for name in numbers)]
        + [_number(end) for end in line.interval or (None, None)]
        + [line.verdict]
        for line in lines
    ]
    _write_csv(path, ["variant", "split", "seeds", *numbers, "low", "high", "verdict"], rows)


def summary_text(lines: Sequence[Line], reference: str) -> str:
    """The table for people: per cent, mean +- sample standard deviation."""
    width = max(len(line.variant) for line in lines)
    text = []
    for split in dict.fromkeys(line.split for line in lines):
        text.append(
            f"{split:<{width}}  seeds  {'top-1 %':<13}  {'macro F1 %':<13}  less {reference}, points (95 %)"
        )
        for line in (line for line in lines if line.split == split):
            top1 = _percent(line.top1, line.top1_deviation)
            f1 = _percent(line.macro_f1, line.macro_f1_deviation)
            row = f"{line.variant:<{width}}  {line.seeds:>5}  {top1:<13}  {f1:<13}  {_difference(line)}"
            text.append(row.rstrip())
        text.append("")
    return "\n".join(text[:-1])


def _percent(mean: float, deviation: float) -> str:
    spread = "" if math.isnan(deviation) else f" +- {100 * deviation:.2f}"
    return f"{100 * mean:.2f}{spread}"


def _difference(line: Line) -> str:
    if line.difference is None:
        return ""
    ends = f" [{100 * line.interval.low:+.2f}, {100 * line.interval.high:+.2f}]" if line.interval else ""
    return f"{100 * line.difference:+.2f}{ends} {line.verdict}"


def _seconds(path: Path) -> float:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return sum(float(row["seconds"]) for row in csv.DictReader(file))
    except OSError:
        return math.nan


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else format(value, ".6g")


def _write_csv(path: Path, columns: list[str], rows: list[list[Any]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns, *rows])
    with AtomicFile(path, overwrite=True) as stream:
        stream.write(text.getvalue().encode())
