"""``fgvc eval --out DIR``: tables for further work and pictures for a paper, all or nothing."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fgvc_cli.charts.confused import ConfusedPair, draw_confused
from fgvc_cli.charts.figures import draw_confusion, draw_reliability
from fgvc_cli.commands.eval_measure import Measured
from fgvc_cli.evaluate.calibration import apply_temperature, reliability
from fgvc_cli.evaluate.localisation import best_iou
from fgvc_cli.evaluate.metrics import Confusion, class_figures, confusion, most_confused
from fgvc_cli.files import whole_folder
from fgvc_cli.formats.rows import as_text
from fgvc_cli.sources.images import DecodedImage, read_image

if TYPE_CHECKING:
    from PIL import Image

METRICS, PER_CLASS, CONFUSION = "metrics.json", "per_class.csv", "confusion.csv"
PREDICTIONS, CONFUSION_PNG = "predictions.csv", "confusion.png"
CONFUSED_PNG, RELIABILITY_PNG = "confused.png", "reliability.png"
REPORT_FILES = (METRICS, PER_CLASS, CONFUSION, PREDICTIONS, CONFUSION_PNG, CONFUSED_PNG, RELIABILITY_PNG)
"""What a report may hold; ``confused.png`` only where there is a mistake."""

PAIRS = 6
"""Most confused pairs that are shown in photographs."""
WIDE_CLASSES = 200
"""Up to so many classes confusion.csv is the whole matrix; beyond, a line for each pair that occurs."""


def write_report(out: Path, measured: Measured, document: dict[str, Any], *, overwrite: bool) -> None:
    """Write the folder.

    Args:
        document: what ``--json`` prints.

    Raises:
        FgvcError: as ``whole_folder``.
    """
    classes = measured.checkpoint.classes
    matrix = confusion(measured.result.labels.numpy(), measured.result.guesses(), len(classes))
    about = f"{document['model']} on {document['dataset']}, {document['split']} split"
    with whole_folder(out, overwrite=overwrite, replaceable=REPORT_FILES) as folder:
        (folder / METRICS).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        _write_csv(folder / PER_CLASS, _class_rows(matrix, classes))
        _write_csv(folder / CONFUSION, _confusion_rows(matrix, classes))
        _write_csv(folder / PREDICTIONS, _prediction_rows(measured))
        (folder / CONFUSION_PNG).write_bytes(draw_confusion(matrix, classes, about))
        (folder / RELIABILITY_PNG).write_bytes(_reliability(measured, document, about))
        pairs = most_confused(matrix, PAIRS)
        if pairs:
            picture = draw_confused(_with_photos(measured, matrix, pairs), about, "most confused")
            picture.save(folder / CONFUSED_PNG, format="PNG")


def _class_rows(matrix: np.ndarray, classes: Sequence[str]) -> Iterable[Sequence[object]]:
    yield ["class", "images", "recall", "precision", "f1", "most_confused_with", "confused_images"]
    for name, row in zip(classes, class_figures(matrix), strict=True):
        shares = ["" if value is None else f"{value:.4f}" for value in (row.recall, row.precision, row.f1)]
        taken = "" if row.taken_for is None else classes[row.taken_for]
        yield [name, row.images, *shares, taken, row.taken_count]


def _confusion_rows(matrix: np.ndarray, classes: Sequence[str]) -> Iterable[Sequence[object]]:
    if len(classes) <= WIDE_CLASSES:
        yield ["label", *classes]
        for name, counts in zip(classes, matrix.tolist(), strict=True):
            yield [name, *counts]
        return
    yield ["label", "guess", "images"]
    for label, guess in zip(*np.nonzero(matrix), strict=True):
        yield [classes[label], classes[guess], int(matrix[label, guess])]


def _prediction_rows(measured: Measured) -> Iterable[Sequence[object]]:
    """One row for each readable photograph; ``prob`` with the temperature, as ``fgvc predict`` gives it."""
    classes, result = measured.checkpoint.classes, measured.result
    yield ["path", "label", "guess", "prob", "correct", *(["box_iou"] if measured.located else [])]
    guesses = result.guesses()
    probs = apply_temperature(result.probs, measured.checkpoint.temperature).numpy()
    for i, (path, label) in enumerate(zip(measured.paths(), result.labels.tolist(), strict=True)):
        guess = int(guesses[i])
        row = [as_text(path), classes[label], classes[guess], f"{probs[i, guess]:.4f}", int(guess == label)]
        located = measured.located.get(i)
        if measured.located:
            row.append("" if located is None else f"{best_iou(located.box, located.truth.objects):.4f}")
        yield row


def _reliability(measured: Measured, document: dict[str, Any], about: str) -> bytes:
    result = measured.result
    panels = [("As the model gives it", reliability(result.probs, result.labels))]
    if document["calibration"]:
        temperature = measured.checkpoint.temperature
        calibrated = reliability(apply_temperature(result.probs, temperature), result.labels)
        panels.append((f"With temperature {temperature:.3f}", calibrated))
    return draw_reliability(panels, about)


def _with_photos(measured: Measured, matrix: np.ndarray, pairs: Sequence[Confusion]) -> list[ConfusedPair]:
    """Of each pair the surest mistake, and the photograph of the other class that is recognised best."""
    classes, result = measured.checkpoint.classes, measured.result
    labels, guesses, paths = result.labels.numpy(), result.guesses(), measured.paths()
    probs = apply_temperature(result.probs, measured.checkpoint.temperature).numpy()
    drawn = []
    for label, guess, count in pairs:
        sure = probs[:, guess]
        misread = int(np.where((labels == label) & (guesses == guess), sure, -1).argmax())
        # Right ones first, else any of that class.
        of_class = labels == guess
        typical = int(np.where(of_class, sure + (guesses == guess), -1).argmax()) if of_class.any() else None
        drawn.append(
            ConfusedPair(
                label=classes[label],
                guess=classes[guess],
                count=count,
                images=int(matrix[label].sum()),
                misread=_photo(measured.root / paths[misread]),
                prob=float(sure[misread]),
                example=None if typical is None else _photo(measured.root / paths[typical]),
            )
        )
    return drawn


def _photo(file: Path) -> Image.Image | None:
    photo = read_image(file)
    return photo.image if isinstance(photo, DecodedImage) else None


def _write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
