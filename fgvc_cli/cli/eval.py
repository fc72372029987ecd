"""``fgvc eval``: options, help, and the tables that it prints: every number with its split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fgvc_cli.cli.options import (
    AllWeights,
    BatchSize,
    BoxCategory,
    BoxConf,
    Boxes,
    BoxMargin,
    Cascade,
    DataRoot,
    Device,
    Index,
    IndexBy,
    RuntimeChoice,
    Stages,
    Taxonomy,
    Tta,
    Workers,
)
from fgvc_cli.errors import EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, FgvcError, counted

if TYPE_CHECKING:
    from fgvc_cli.engine.evaluate import Calibrated
    from fgvc_cli.evaluate.confidence import Novelty, Thresholds

ALPHA = 0.05
"""A p value below it, and an interval without 0: together they show a difference."""

LABELS = {"passes": "forward passes"}
"""What a figure is called in print, where its name does not say it."""

_COUNTS = ("images", "unreadable", "boxes")
_SHARES = ("top", "reached_", "ece", "macro_f1", "micro_f1", "map", "exact_match", "pointing_", "iou_above")


def evaluate(
    weights: AllWeights = None,
    data: Annotated[
        str | None, typer.Option(help="Labelled folder or CSV, or tar shards. Default: as trained.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Known set instead.")] = None,
    data_root: DataRoot = None,
    boxes: Boxes = None,
    box_conf: BoxConf = None,
    box_margin: BoxMargin = None,
    box_category: BoxCategory = None,
    split: Annotated[
        Literal["train", "val", "test", "all"], typer.Option(help="train, val, test or all.")
    ] = "test",
    against: Annotated[
        str | None,
        typer.Option(help="Second model, as --weights: compared on the same images."),
    ] = None,
    index: Index = None,
    by: IndexBy = None,
    out: Annotated[
        Path | None,
        typer.Option(help="New folder for tables (per class, confusion, predictions) and pictures."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what an earlier one wrote.")
    ] = False,
    batch_size: BatchSize = 32,
    workers: Workers = 2,
    device: Device = "auto",
    amp: Annotated[
        Literal["auto", "none", "bf16"],
        typer.Option(help="Precision: none (float32), bf16, or auto: bf16 on a GPU that has it, as predict."),
    ] = "auto",
    runtime: RuntimeChoice = "auto",
    stages: Stages = None,
    cascade: Cascade = None,
    tta: Tta = None,
    taxonomy: Taxonomy = None,
    rollup: Annotated[
        float | None,
        typer.Option(help="Also measure answers at the finest rank that is so probable, e.g. 0.9."),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="With --split val: fit the temperature, and write the model with it to this new file."
        ),
    ] = None,
    fit_novelty: Annotated[
        Path | None,
        typer.Option(
            help="With --split val: fit what tells images unlike the training's, write the model with it."
        ),
    ] = None,
    target_precision: Annotated[
        float | None, typer.Option(help="With --split val: precision to reach by --thresholds, e.g. 0.95.")
    ] = None,
    thresholds: Annotated[
        Path | None, typer.Option(help="New CSV: the least probability of each class that reaches it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Measure a model on labelled images: fused and per branch, with intervals and the split named.

    Where a set has boxes (a boxes.csv with path,x1,y1,x2,y2; CUB, Dogs, Aircraft), where the model looked is
    compared with them.
    """
    given = dict(locals())
    from fgvc_cli.cli.progress import ConsoleMessages
    from fgvc_cli.engine.options import EvalOptions

    fits = {"--calibrate": calibrate, "--fit-novelty": fit_novelty, "--thresholds": thresholds}
    for name, path in fits.items():
        if path is not None and as_json:
            raise FgvcError(f"{name} does not go with --json.", "Leave --json out.", EXIT_USAGE)
    del given["as_json"]
    options = EvalOptions(**given, messages=ConsoleMessages())
    from fgvc_cli.engine.evaluate import Calibrated, Fitted
    from fgvc_cli.engine.evaluate import evaluate as run

    evaluated = run.run(options)
    if isinstance(evaluated, Calibrated):
        print(_calibrated_text(evaluated))
    elif isinstance(evaluated, Fitted):
        print(f"{_fitted_text(evaluated.fit)}\n{evaluated.path}")
    else:
        document = evaluated.document
        print(json.dumps(document, indent=2) if as_json else format_document(document))
    return EXIT_SOME_FAILED if evaluated.failures else EXIT_OK


def _calibrated_text(calibrated: Calibrated) -> str:
    fitted = calibrated.calibration
    return (
        f"temperature {fitted.temperature:.3f} (was {calibrated.before:.3f}), fitted on "
        f"{fitted.images:,} images of the val split: ECE there {100 * calibrated.ece:.2f} % before any, "
        f"{100 * calibrated.ece_calibrated:.2f} % after\n{calibrated.path}"
    )


def _fitted_text(fit: Novelty | Thresholds) -> str:
    from fgvc_cli.evaluate.confidence import FEW_IMAGES, KEPT, Novelty

    if isinstance(fit, Novelty):
        size = sum(tensor.nbytes for tensor in fit.tensors().values()) / 1000
        return (
            f"novelty: class means of the training images, {size:.0f} KB; a threshold that keeps {KEPT:.0%} "
            f"of {fit.images:,} images of the val split"
        )
    precision = "no row" if fit.precision is None else f"precision {fit.precision:.1%}"
    lines = [
        f"thresholds for a precision of {fit.target:g}: {fit.pooled:.3f} over all classes; on the "
        f"{counted(fit.images, 'image')} of the val split, which they were fitted to, {precision}, "
        f"{fit.coverage:.1%} kept"
    ]
    for names, what in (
        (fit.few, f"fewer than {FEW_IMAGES} val images: mostly the threshold of all classes"),
        (fit.unreached, "none of their val images kept"),
    ):
        if names:
            more = ", ..." if len(names) > 3 else ""
            lines.append(
                f"  {counted(len(names), 'class', 'classes')} with {what} ({', '.join(names[:3])}{more})"
            )
    return "\n".join(lines)


def format_document(document: dict[str, Any]) -> str:
    """The tables of a document as ``fgvc_cli.evaluate`` builds it."""
    precision = "" if document["precision"] == "float32" else f", computed in {document['precision']}"
    precision += f", by {document['runtime']}" if document.get("runtime") else ""
    mirrored = ", with mirror images" if document["tta"] else ""
    lines = [f"{document['model']} on {document['dataset']}, {document['split']} split{precision}{mirrored}"]
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
        lines.append("  [ ]: 95 % interval, bootstrap over the images")
    lines += _taxonomy_lines(document["taxonomy"])
    lines += _calibration_lines(document)
    if document["against"]:
        lines += _comparison_lines(document["against"])
    return "\n".join(lines)


def verdict(against: dict[str, Any]) -> str:
    """Which of the two models is better, or that neither is shown to be."""
    low, high = against["difference_interval"]
    if low <= 0 <= high or against["p_value"] >= ALPHA:
        return "no difference shown on these images"
    better, other = (against["first"], against["second"])[:: 1 if low > 0 else -1]
    return f"{better} is right more often than {other} on these images"


def _table(metrics: dict[str, float], intervals: dict[str, list[float]]) -> list[str]:
    lines, width = [], max(20, *map(len, metrics))
    for name, value in metrics.items():
        head = f"  {LABELS.get(name, name):{width}s}"
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
        f"{first} against {second} ({against['model']}), on the same {counted(against['images'], 'image')}",
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


def _taxonomy_lines(figures: dict[str, Any] | None) -> list[str]:
    """Accuracy at each rank, how far off the mistakes are, and what rolled-up answers come to."""
    if not figures:
        return []
    lines = ["  right at each rank of the taxonomy"]
    for line in figures["ranks"]:
        text = f"    {line['rank']:18s} "
        if line["accuracy"] is None:
            lines.append(f"{text}no image has a node there")
            continue
        low, high = (100 * end for end in line["interval"])
        text += f"{100 * line['accuracy']:8.2f} %  [{low:.1f}, {high:.1f}]"
        if figures["rollup"]:
            right = line["answer_accuracy"]
            text += f"  answers {100 * line['coverage']:.1f} % of the images"
            text += "" if right is None else f", {100 * right:.1f} % of these right"
        lines.append(text)
    if figures["rollup"]:
        rolled = figures["rollup"]
        right = "" if rolled["accuracy"] is None else f", {100 * rolled['accuracy']:.1f} % of them right"
        covered = f"{100 * rolled['coverage']:.1f} % of the images"
        lines.append(f"    rolled up at {rolled['least']:g}: {covered} answered at some rank{right}")
    if figures["mistakes"]:
        steps = ", ".join(f"{count:,} at {height}" for height, count in figures["mistakes"].items())
        lines.append(
            f"    ranks to climb from a mistake to what it shares with the truth: {steps}; "
            f"mean {figures['mean_distance']:.2f}"
        )
    return lines


def _calibration_lines(document: dict[str, Any]) -> list[str]:
    """The temperature, where it comes from, and what is to be known to read the calibrated figures."""
    calibration: dict[str, Any] | None = document["calibration"]
    if document["models"] or document["tta"]:
        return ["  prob is the mean of the calibrated probabilities of all passes"]
    if index := document.get("index"):
        return [
            f"  classes of an index of {counted(index['images'], 'image')}, by {index['by']}; temperature "
            f"{index['temperature']:.3f}, chosen on it by leave-one-out"
        ]
    if not calibration:
        return ["  temperature: none in this checkpoint, prob is as the model gives it"]
    split, images = calibration["fitted_on"], calibration["fitted_images"]
    value = calibration["temperature"]
    on = counted(images, "image")
    lines = [f"  temperature {value:.3f}, fitted on the {split} split of the training ({on})"]
    if calibration["refused"]:
        lines = [f"  not calibrated: {on} of the {split} split were too few to trust a temperature"]
    if not calibration["held_out"]:
        lines.append("  nll_calibrated and ece_calibrated are not held out: the fit saw these images")
    if not calibration["same_looks"]:
        lines.append("  the temperature was fitted with other looks than these: those of the training")
    if any(name.startswith("reached_") for name in document["metrics"]):
        lines.append("  the cascade compares the confidence before the temperature")
    return lines
