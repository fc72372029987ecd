"""What ``fgvc eval`` prints: every number with its split, and what is to be known to read it."""

from __future__ import annotations

from typing import Any

ALPHA = 0.05
"""A p value below it, and an interval without 0: together they show a difference."""

_COUNTS = ("images", "unreadable", "boxes")
_SHARES = ("top", "reached_", "ece", "macro_f1", "micro_f1", "map", "exact_match", "pointing_", "iou_above")


def format_document(document: dict[str, Any]) -> str:
    """The tables of a document as ``commands.eval`` builds it."""
    lines = [f"{document['model']} on {document['dataset']}, {document['split']} split"]
    if document.get("train_images"):
        lines.append(f"  trained on {document['train_images']:,} images")
    if document.get("caveat"):
        lines.append(f"  {document['caveat']}")
    lines += _table(document["metrics"], document["intervals"])
    located = document["localisation"]
    if located:
        lines += [f"  where it looked, against the boxes of {located['source']}"]
        lines += _table(located["metrics"], located["intervals"])
        lines += ["  ..._centred: a fixed box in the middle, 0.6 of each side"]
    if document["intervals"]:
        lines.append("  [ ]: 95 % interval, bootstrap over the photographs")
    lines += _calibration_lines(document)
    if document["against"]:
        lines += _comparison_lines(document["against"])
    return "\n".join(lines)


def verdict(against: dict[str, Any]) -> str:
    """Which of the two models is better, or that neither is shown to be."""
    low, high = against["difference_interval"]
    if low <= 0 <= high or against["p_value"] >= ALPHA:
        return "no difference shown on these photographs"
    better, other = (against["first"], against["second"])[:: 1 if low > 0 else -1]
    return f"{better} is right more often than {other} on these photographs"


def _table(metrics: dict[str, float], intervals: dict[str, list[float]]) -> list[str]:
    lines, width = [], max(20, *map(len, metrics))
    for name, value in metrics.items():
        head = f"  {name:{width}s}"
        if name in _COUNTS:
            lines.append(f"{head} {value:8,.0f}")
            continue
        share = name.startswith(_SHARES)
        text = f"{head} {100 * value:8.2f} %" if share else f"{head} {value:8.3f}"
        if name in intervals:
            low, high = intervals[name]
            ends = f"[{100 * low:.1f}, {100 * high:.1f}]" if share else f"[{low:.3f}, {high:.3f}]"
            text = f"{text:{width + 15}s}{ends}"
        lines.append(text)
    return lines


def _comparison_lines(against: dict[str, Any]) -> list[str]:
    low, high = (100 * end for end in against["difference_interval"])
    first, second = against["first"], against["second"]
    lines = [
        f"{first} against {second} ({against['model']}), on the same {against['images']:,} photographs",
        f"  top1                 {100 * against['top1']:8.2f} % against {100 * against['other_top1']:.2f} %",
        f"  difference           {100 * against['difference']:+8.2f} points  [{low:+.1f}, {high:+.1f}]",
        f"  both right {against['both']:,}, only {first} {against['only_first']:,}, "
        f"only {second} {against['only_second']:,}, neither {against['neither']:,}",
        f"  McNemar's exact test: p = {_p_text(against['p_value'])}",
        f"  {verdict(against)}",
    ]
    return lines + [f"  {note}" for note in against["notes"]]


def _p_text(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def _calibration_lines(document: dict[str, Any]) -> list[str]:
    """The temperature, where it comes from, and what is to be known to read the calibrated figures."""
    calibration: dict[str, Any] | None = document["calibration"]
    if not calibration:
        return ["  temperature: none in this checkpoint, prob is as the model gives it"]
    split, images = calibration["fitted_on"], calibration["fitted_images"]
    value = calibration["temperature"]
    lines = [f"  temperature {value:.3f}, fitted on the {split} split of the training ({images} photographs)"]
    if not calibration["held_out"]:
        lines.append("  nll_calibrated and ece_calibrated are not held out: the fit saw these photographs")
    if not calibration["same_looks"]:
        lines.append("  the temperature was fitted with other looks than these: those of the training")
    if any(name.startswith("reached_") for name in document["metrics"]):
        lines.append("  the cascade compares the confidence before the temperature")
    return lines
