"""``fgvc eval``: a checkpoint over a labelled split -> accuracy, with the split it was measured on.

With ``out``, tables for further work and pictures for a paper, all or nothing.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fgvc_cli.charts.figures import ConfusedPair, draw_confused, draw_confusion, draw_reliability
from fgvc_cli.command import Messages, command
from fgvc_cli.data.geometry import input_geometry
from fgvc_cli.data.labelled import Example, LabelledSet
from fgvc_cli.data.loaders import Batch, LabelledImages, build_loader, read_example
from fgvc_cli.data.names import class_order
from fgvc_cli.data.taxonomy import Taxonomy, read_taxonomy
from fgvc_cli.data.transforms import eval_transform
from fgvc_cli.datasets.entries import TrueBoxes
from fgvc_cli.datasets.registry import load_boxes
from fgvc_cli.engine.checkpoint import (
    FORMAT,
    Checkpoint,
    GraphModel,
    choose_data,
    graph_checkpoint,
    known_examples,
)
from fgvc_cli.engine.device import (
    Amp,
    Precision,
    computing,
    fixed_precision,
    is_out_of_memory,
    keep_freed_memory,
    pick_device,
)
from fgvc_cli.engine.graph import Graph, GraphPrecision, check_runtime, is_graph, refuse
from fgvc_cli.engine.index_classes import classify_by_index
from fgvc_cli.engine.options import EvalOptions
from fgvc_cli.engine.weights import (
    default_notice,
    open_ensemble,
    open_weights,
    read_manifest,
    resolve_weights,
)
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.evaluate.confidence import (
    NO_NOVELTY,
    THRESHOLD_COLUMNS,
    Calibration,
    Novelty,
    Thresholds,
    apply_temperature,
    embed,
    fit_calibration,
    fit_examples,
    fit_novelty,
    fit_thresholds,
    reliability,
)
from fgvc_cli.evaluate.evaluator import Evaluation, Located, best_iou, localisation_metrics
from fgvc_cli.evaluate.evaluator import evaluate as evaluate_model
from fgvc_cli.evaluate.intervals import DRAWS, LEVEL, SEED, compare
from fgvc_cli.evaluate.metrics import (
    Confusion,
    class_rows,
    confusion,
    confusion_rows,
    label_slots,
    most_confused,
    rank_rows,
    taxonomy_figures,
)
from fgvc_cli.files import AtomicFile, check_folder, check_writable, whole_folder
from fgvc_cli.formats.csv_rows import csv_lines
from fgvc_cli.formats.rows import as_text
from fgvc_cli.models.weights import rewrite_checkpoint
from fgvc_cli.sources.boxes import Region
from fgvc_cli.sources.images import DecodedImage, ReadRule, read_image

METRICS, PER_CLASS, CONFUSION, RANKS = "metrics.json", "per_class.csv", "confusion.csv", "ranks.csv"
PREDICTIONS, CONFUSION_PNG = "predictions.csv", "confusion.png"
CONFUSED_PNG, RELIABILITY_PNG = "confused.png", "reliability.png"
REPORT_FILES = (
    *(METRICS, PER_CLASS, CONFUSION, PREDICTIONS, RANKS),
    *(CONFUSION_PNG, CONFUSED_PNG, RELIABILITY_PNG),
)
"""What a report may hold; ``confused.png`` only where there is a mistake, ``ranks.csv`` with a taxonomy."""

PAIRS = 6
"""Most confused pairs that are shown in images."""


@dataclass(frozen=True)
class Evaluated:
    """What a model does on a split."""

    document: dict[str, Any]
    """Everything: what ``fgvc eval --json`` prints."""
    failures: list[str]
    """Images that could not be read, and why."""

    @property
    def metrics(self) -> dict[str, float]:
        """Name -> value, shares in [0, 1]."""
        return self.document["metrics"]

    @property
    def intervals(self) -> dict[str, list[float]]:
        """Name -> its 95 % interval."""
        return self.document["intervals"]


@dataclass(frozen=True)
class Calibrated:
    """A model that was written with another temperature."""

    path: Path
    calibration: Calibration
    before: float
    """The temperature that it had."""
    ece: float
    """Calibration error on those images without any temperature, a share."""
    ece_calibrated: float
    """With the new one."""
    failures: list[str]
    """Images that could not be read, and why."""


@dataclass(frozen=True)
class Fitted:
    """What was fitted on the val split and written: ``fit_novelty``, ``thresholds``."""

    path: Path
    fit: Novelty | Thresholds
    failures: list[str]
    """Images that could not be read, and why."""


@command(EvalOptions)
def evaluate(options: EvalOptions) -> Evaluated | Calibrated | Fitted:
    """Measure a model on labelled images; without ``data`` and ``dataset``, on those of its training.

    Returns:
        The figures; with ``calibrate``, ``fit_novelty`` or ``thresholds``, what was fitted.

    Raises:
        FgvcError: options that do not go together, weights or data that cannot be read, an empty split,
            labels the checkpoint does not know, an output that is there already.
    """
    _check(options)
    messages = options.speaker
    if not options.weights:
        messages.note(default_notice())
    checkpoint, *more = _open_all(options)
    _check_labels(options, checkpoint.multi_label)
    if options.index is not None:
        if more:
            raise FgvcError(
                "--index goes with one model, whose embeddings it holds.", "Name one --weights.", EXIT_USAGE
            )
        checkpoint = classify_by_index(checkpoint, options.index, options.by or "means", messages.note)
    if options.taxonomy:
        checkpoint.metadata["taxonomy"] = read_taxonomy(options.taxonomy, checkpoint.classes).document()
    other = _open(options, options.against, {}) if options.against is not None else None
    device = pick_device(options.device)
    keep_freed_memory()
    labelled, own_data = choose_data(
        checkpoint, options.data, options.dataset, options.data_root, options.split, options
    )
    measured_by = partial(
        measure,
        labelled=labelled,
        split=options.split,
        device=device,
        amp=options.amp,
        batch_size=options.batch_size,
        workers=options.workers,
        messages=messages,
        flip=options.tta == "flip",
    )
    if options.fit_novelty is not None:
        return _fit_novelty(
            options, checkpoint, labelled, own_data, device, fixed_precision(options.amp, device), messages
        )
    if options.calibrate is not None:
        return _calibrate(options, checkpoint, own_data, measured_by)
    if options.thresholds is not None:
        return _fit_thresholds(options, checkpoint, own_data, measured_by)
    measured = measured_by(checkpoint, calibrated=bool(more))
    if more:
        measured = _mean_of(
            [measured, *(measured_by(other, locate=False, calibrated=True) for other in more)]
        )
    document = _document(options, measured, labelled, own_data)
    if other is not None:
        document["against"] = _against(options, measured, measured_by(other, locate=False))
        if own_data:
            document["against"]["notes"] = _notes(options, labelled, other)
    if options.out is not None:
        write_report(options.out, measured, document, overwrite=options.overwrite)
        messages.note(f"written: {options.out}")
    return Evaluated(document, measured.result.failures)


def _source(options: EvalOptions) -> Path:
    """The file of the one model that something is fitted to."""
    return resolve_weights(options.weights[0] if options.weights else None)[0]


def _open_all(options: EvalOptions) -> list[Checkpoint]:
    """The models, or the one graph, of ``weights``."""
    looks = _stage_options(options)
    if len(options.weights) < 2:
        return [_open(options, next(iter(options.weights), None), looks)]
    if graphs := [name for name in options.weights if is_graph(name)]:
        raise refuse("A second --weights", graphs[0])
    return open_ensemble(options.weights, options=looks)


def _open(options: EvalOptions, weights: str | None, looks: dict[str, Any]) -> Checkpoint:
    """A model, or a graph that answers as one."""
    if not is_graph(weights):
        return open_weights(weights, options=looks)
    given: dict[str, object] = {f"--{name}": value for name, value in looks.items()}
    given |= {"--calibrate": options.calibrate, "--fit-novelty": options.fit_novelty}
    given |= {"--index": options.index}
    for name, value in given.items():
        if value is not None:
            raise refuse(name, weights)
    graph = Graph(weights or "", runtime=options.runtime, device=options.device)
    if not graph.training and not (options.data or options.dataset):
        message = f"{graph.path.name} does not say what it was trained on."
        raise FgvcError(message, "Name images with --data.", EXIT_USAGE)
    return graph_checkpoint(graph)


def _stage_options(options: EvalOptions) -> dict[str, Any]:
    return {"stages": options.stages, "cascade": options.cascade}


def _check(options: EvalOptions) -> None:
    """Raise FgvcError for what can be known to fail before anything is read.

    That is an option without its other half, and an output that is there already.
    """
    named = [*options.weights, options.against]
    if not any(map(is_graph, named)):
        check_runtime(options.runtime, named[0])
    fits = _fits(options)
    if options.overwrite and options.out is None and not fits:
        names = ", ".join(("--out", *_FITS))
        raise FgvcError(f"--overwrite is for {names}.", "Leave it out.", EXIT_USAGE)
    if (options.target_precision is None) != (options.thresholds is None):
        message = "--target-precision and --thresholds go together: the precision, and the CSV to write."
        raise FgvcError(message, "--target-precision 0.95 --thresholds FILE.csv", EXIT_USAGE)
    if options.by and options.index is None:
        raise FgvcError("--by says how an index is used.", "Add --index FILE", EXIT_USAGE)
    if options.out is not None:
        check_folder(options.out, overwrite=options.overwrite, replaceable=REPORT_FILES)
    for name, path in fits.items():
        _check_fit(options, name)
        check_writable(path, overwrite=options.overwrite)


_FITS = ("--calibrate", "--fit-novelty", "--thresholds")
"""What fits something on the val split, and names the file that it is written to."""


def _fits(options: EvalOptions) -> dict[str, Path]:
    given = (options.calibrate, options.fit_novelty, options.thresholds)
    return {name: path for name, path in zip(_FITS, given, strict=True) if path is not None}


def _check_labels(options: EvalOptions, multi_label: bool) -> None:
    given: dict[str, object] = {"--out": options.out, "--against": options.against}
    given |= {"--taxonomy": options.taxonomy, "--rollup": options.rollup}
    named = [*(name for name, value in given.items() if value is not None), *_fits(options)]
    if multi_label and named:
        raise FgvcError(
            f"{named[0]} is for models that tell one class, this one tells several labels per image.",
            "Leave it out; --json prints every figure.",
            EXIT_USAGE,
        )


def _check_fit(options: EvalOptions, name: str) -> None:
    if options.split != "val":
        raise FgvcError(
            f"{name} fits on the val split of the training, not on {options.split}.",
            "Add --split val.",
            EXIT_USAGE,
        )
    # What is fitted is fitted for the looks of the training, and nothing else is measured.
    names = ("stages", "cascade", "against", "out", "index", "tta", "taxonomy", "rollup")
    given = [f"--{each}" for each in names if getattr(options, each) is not None]
    given += ["a second --weights"] if len(options.weights) > 1 else []
    given += [each for each in _fits(options) if each != name]
    if given:
        raise FgvcError(f"{name} does not go with {given[0]}.", f"Leave {given[0]} out.", EXIT_USAGE)


@dataclass
class Measured:
    """A checkpoint's answers over the readable images of a split."""

    checkpoint: Checkpoint
    root: Path
    examples: list[Example]
    """All of the split, labels in the checkpoint's numbering; ``result.indices`` points into it."""
    result: Evaluation
    precision: Precision | GraphPrecision
    located: dict[int, Located]
    """Position among the readable images -> where the model looked; of those with known boxes."""
    temperature: float = 1.0
    """That ``result.probs`` still lack to be what predict gives."""
    others: tuple[Checkpoint, ...] = ()
    """The further models that ``result.probs`` are the mean of."""

    def told(self) -> torch.Tensor:
        """The probabilities (N, K) as predict gives them."""
        return apply_temperature(self.result.probs, self.temperature)

    def readable(self) -> list[Example]:
        """The readable images, in the order of ``result``."""
        return [self.examples[index] for index in self.result.indices.tolist()]

    def right(self) -> dict[str, bool]:
        """Name of each readable image, or box, -> whether the model has it right."""
        hits = (self.result.guesses() == self.result.labels.numpy()).tolist()
        return dict(zip((example.name for example in self.readable()), hits, strict=True))

    def localisation(self) -> dict[str, Any] | None:
        """Figures and intervals of where it looked; None where no box is known."""
        if not self.located:
            return None
        metrics, intervals = localisation_metrics([*self.located.values()])
        return {"metrics": metrics, "intervals": intervals}


def measure(
    checkpoint: Checkpoint,
    labelled: LabelledSet,
    split: str,
    *,
    device: torch.device,
    amp: Amp,
    batch_size: int,
    workers: int,
    messages: Messages,
    locate: bool = True,
    calibrated: bool = False,
    flip: bool = False,
) -> Measured:
    """The model over a split, with progress and unreadable images told.

    Args:
        amp: precision of the forward passes, without a probe.
        locate: also compare where it looked with the boxes of the set, if it has any.
        calibrated: its temperature is in the probabilities already, so that others can be added.
        flip: the mean over the image and its mirror image, both calibrated; without figures of branches,
            which are of one pass.

    Raises:
        FgvcError: see ``known_examples`` and ``load_boxes``; no readable image.
    """
    model = checkpoint.model
    precision = fixed_precision(amp, device)
    if isinstance(model, GraphModel):
        model.precision = model.graph.precision(amp)
    examples = known_examples(labelled, split, checkpoint.classes)
    # Of a given box the model sees the inside: where the object is, it has been told.
    locate = locate and not any(example.box for example in examples)
    truths = load_boxes(labelled.root, [e.path for e in examples]) if locate else {}
    slots = label_slots(labelled, len(checkpoint.classes), checkpoint.multi_label)
    preprocess = checkpoint.preprocess
    images = LabelledImages(labelled.root, examples, eval_transform(preprocess), slots, preprocess)
    loader = build_loader(images, batch_size=batch_size, workers=workers)
    try:
        with messages.bar("evaluating", len(examples)) as advance, computing(device, precision):
            result = evaluate_model(
                model.to(device),
                loader,
                checkpoint.preprocess,
                device,
                locate=bool(truths),
                temperature=checkpoint.temperature if calibrated or flip else None,
                flip=flip,
                on_batch=lambda count: advance(count),
            )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        hint = f"Try --batch-size {batch_size // 2}." if batch_size > 1 else "Try --device cpu."
        raise FgvcError(f"Out of memory with batches of {batch_size} on {device}.", hint) from error
    for failure in result.failures:
        messages.warn(f"left out {failure}")
    if not len(result.labels):
        raise FgvcError(f"No image of the {split} split could be read.", "Check the files named above.")
    if flip:
        result.branches = {}
    left = 1.0 if calibrated or flip else checkpoint.temperature
    computed = model.precision if isinstance(model, GraphModel) else precision
    measured = Measured(checkpoint, labelled.root, examples, result, computed, {}, left)
    measured.located = _locate(measured, truths, workers)
    return measured


def _mean_of(measured: Sequence[Measured]) -> Measured:
    """The mean of the probabilities of several models over the images that all could read, in the order of
    the first one's classes; boxes are the first one's, and nothing is told of branches.

    Raises:
        FgvcError: no image that all could read.
    """
    first = measured[0]
    shared = sorted(set.intersection(*({*each.result.indices.tolist()} for each in measured)))
    if not shared:
        raise FgvcError("No image could be read by all models.", "Check the files named above.")
    probs = []
    for each in measured:
        place = {index: row for row, index in enumerate(each.result.indices.tolist())}
        rows = torch.tensor([place[index] for index in shared])
        order = class_order(
            first.checkpoint.classes, each.checkpoint.classes, each.checkpoint.name, "the first"
        )
        probs.append(each.result.probs[rows][:, order])
    place = {index: row for row, index in enumerate(first.result.indices.tolist())}
    kept = torch.tensor([place[index] for index in shared])
    located = {new: first.located[old] for new, old in enumerate(kept.tolist()) if old in first.located}
    result = replace(
        first.result,
        labels=first.result.labels[kept],
        indices=first.result.indices[kept],
        probs=torch.stack(probs).mean(dim=0),
        branches={},
        stats={},
        failures=list(dict.fromkeys(line for each in measured for line in each.result.failures)),
        seconds=sum(each.result.seconds for each in measured),
    )
    others = tuple(each.checkpoint for each in measured[1:])
    return replace(first, result=result, located=located, temperature=1.0, others=others)


def _locate(measured: Measured, truths: dict[str, TrueBoxes], workers: int) -> dict[int, Located]:
    """The model's boxes and peaks in pixels of each image, through the geometry of its input."""
    boxes, peaks = measured.result.boxes, measured.result.peaks
    if boxes is None:
        return {}
    chosen = [(i, each) for i, each in enumerate(measured.readable()) if each.path in truths]
    sizes = _upright_sizes(
        measured.root, [each for _, each in chosen], measured.checkpoint.preprocess, workers
    )
    located = {}
    for (i, example), size in zip(chosen, sizes, strict=True):
        if size is None:
            continue
        geometry = input_geometry(*size, measured.checkpoint.preprocess)
        x1, y1, x2, y2 = boxes[i].tolist()
        peak = None
        if peaks is not None:
            x, y = peaks[i].tolist()
            peak = geometry.to_photo((x, y, x, y))[:2]
        located[i] = Located(truths[example.path], size, geometry.to_photo((x1, y1, x2, y2)), peak)
    return located


def _upright_sizes(
    root: Path, examples: Sequence[Example], rule: ReadRule, workers: int
) -> list[tuple[int, int] | None]:
    """(width, height) of images that were read a moment ago; None where one has gone meanwhile."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        photos = pool.map(partial(read_example, root, rule=rule, prepare=_least), examples)
        return [photo.size if isinstance(photo, DecodedImage) else None for photo in photos]


def _least(image: Image.Image) -> None:
    """Only the size is wanted: of a JPEG, decode the smallest copy there is."""
    image.draft(None, (1, 1))


def _document(
    options: EvalOptions, measured: Measured, labelled: LabelledSet, own_data: bool
) -> dict[str, Any]:
    """Everything that ``--json`` prints."""
    checkpoint = measured.checkpoint
    model: object = checkpoint.model
    calibration = _calibration(checkpoint, options.split if own_data else None, _stage_options(options))
    # The figures of several passes are of their calibrated mean alone.
    fused = bool(measured.others) or options.tta is not None
    calibration = None if fused else calibration
    located = measured.localisation()
    if located is not None:
        located["source"] = labelled.name
    models = [{"model": each.name, "weights_sha256": each.sha256} for each in (checkpoint, *measured.others)]
    return {
        "model": " + ".join(each["model"] for each in models),
        "weights_sha256": "+".join(each["weights_sha256"] for each in models),
        "models": models if measured.others else None,
        "tta": options.tta,
        "dataset": labelled.name,
        "split": options.split,
        "train_images": checkpoint.metadata.get("train_images"),
        "caveat": labelled.caveat or None,
        "precision": measured.precision,
        "runtime": model.graph.settings["runtime"] if isinstance(model, GraphModel) else None,
        "metrics": measured.result.metrics(checkpoint.temperature if calibration else None),
        "intervals": measured.result.intervals(),
        "interval": {"method": "percentile bootstrap, images", "level": LEVEL, "draws": DRAWS, "seed": SEED},
        "calibration": calibration,
        "index": checkpoint.metadata.get("index"),
        "localisation": located,
        "taxonomy": _taxonomy_document(options, measured, labelled),
        "against": None,
        "failures": measured.result.failures,
    }


def _taxonomy_document(
    options: EvalOptions, measured: Measured, labelled: LabelledSet
) -> dict[str, Any] | None:
    """See ``taxonomy_figures``; None where no taxonomy is known.

    Raises:
        FgvcError: a roll-up without one.
    """
    checkpoint, tree = measured.checkpoint, measured.checkpoint.taxonomy
    if tree is None and labelled.taxonomy:
        lineages = dict(zip(labelled.classes, labelled.taxonomy.lineages, strict=True))
        with contextlib.suppress(FgvcError):  # the set may lack classes that the model knows
            tree = Taxonomy.of(labelled.taxonomy.ranks, lineages, checkpoint.classes)
    if tree is None:
        if options.rollup is not None:
            message = "--rollup needs the tree of the classes, which neither model nor data bring."
            raise FgvcError(message, "Add --taxonomy FILE.csv", EXIT_USAGE)
        return None
    return taxonomy_figures(tree, measured.result.labels.numpy(), measured.told(), options.rollup)


def _against(options: EvalOptions, measured: Measured, other: Measured) -> dict[str, Any]:
    """The comparison over the images that both could read, matched by path."""
    first, second = measured.right(), other.right()
    shared = [path for path in first if path in second]
    comparison = compare(
        np.array([first[path] for path in shared], bool), np.array([second[path] for path in shared], bool)
    )
    return {
        "first": " + ".join(options.weights) or read_manifest().default,
        "second": options.against,
        "model": other.checkpoint.name,
        "weights_sha256": other.checkpoint.sha256,
        "images": comparison.images,
        "top1": (comparison.both + comparison.only_first) / comparison.images,
        "other_top1": (comparison.both + comparison.only_second) / comparison.images,
        "difference": comparison.difference,
        "difference_interval": comparison.interval,
        "both": comparison.both,
        "only_first": comparison.only_first,
        "only_second": comparison.only_second,
        "neither": comparison.neither,
        "p_value": comparison.p_value,
        "notes": [],
    }


def _notes(options: EvalOptions, labelled: LabelledSet, other: Checkpoint) -> list[str]:
    """Whether the other model may have been trained on images of this split of the first one's data."""
    recorded = other.metadata.get("data_sha256")
    if recorded == labelled.sha256():
        return []
    why = "on other images or another division" if recorded else "without a record of the images"
    trained = f"{options.against} was trained {why} ({other.metadata['dataset']})"
    return [f"{trained}: it may have been trained on some of these"]


def _calibrate(
    options: EvalOptions, checkpoint: Checkpoint, own_data: bool, measured_by: Callable[..., Measured]
) -> Calibrated:
    """Fit the temperature on the training's val split and write the model with it."""
    _check_own(options, own_data)
    assert options.calibrate is not None
    result = measured_by(checkpoint, locate=False).result
    calibration = fit_calibration(result.probs, result.labels, "val")
    if calibration.refused:
        raise FgvcError(f"Nothing is written: {calibration.in_words}.", "Put more images into the val split.")
    document = {"calibration": asdict(calibration)}
    rewrite_checkpoint(_source(options), options.calibrate, document, overwrite=options.overwrite)
    metrics = result.metrics(calibration.temperature)
    return Calibrated(
        options.calibrate,
        calibration,
        checkpoint.temperature,
        metrics["ece"],
        metrics["ece_calibrated"],
        result.failures,
    )


def _check_own(options: EvalOptions, own_data: bool) -> None:
    if not own_data:
        raise FgvcError(
            f"{next(iter(_fits(options)))} got other images than those of the training, whose val split it "
            "needs.",
            "Leave --data and --dataset out, or name the training's.",
            EXIT_USAGE,
        )


def _fit_novelty(
    options: EvalOptions,
    checkpoint: Checkpoint,
    labelled: LabelledSet,
    own_data: bool,
    device: torch.device,
    precision: Precision,
    messages: Messages,
) -> Fitted:
    """Fit what tells images unlike the training's, and write the model with it."""
    _check_own(options, own_data)
    assert options.fit_novelty is not None
    preprocess, failures = checkpoint.preprocess, []
    model = checkpoint.model.to(device).eval()
    splits = [known_examples(labelled, split, checkpoint.classes) for split in ("train", "val")]
    splits[0] = fit_examples(splits[0])
    with messages.bar("embedding", sum(map(len, splits))) as advance, computing(device, precision):

        def told(batches: Iterable[Batch]) -> Iterator[Batch]:
            for batch in batches:
                failures.extend(batch.failures)
                advance(len(batch.labels) + len(batch.failures))
                yield batch

        train, val = (
            embed(
                model,
                told(
                    build_loader(
                        LabelledImages(labelled.root, examples, eval_transform(preprocess), None, preprocess),
                        batch_size=options.batch_size,
                        workers=options.workers,
                    )
                ),
                preprocess,
                device,
            )
            for examples in splits
        )
        novelty = fit_novelty(train, val, len(checkpoint.classes))
    for failure in failures:
        messages.warn(f"left out {failure}")
    if novelty is None:
        raise FgvcError(f"Nothing is written: {NO_NOVELTY}.", "Put more images into the val split.")
    document = {"novelty": novelty.document(), "format": FORMAT}
    source, tensors = _source(options), novelty.tensors()
    rewrite_checkpoint(source, options.fit_novelty, document, tensors, overwrite=options.overwrite)
    return Fitted(options.fit_novelty, novelty, failures)


def _fit_thresholds(
    options: EvalOptions, checkpoint: Checkpoint, own_data: bool, measured_by: Callable[..., Measured]
) -> Fitted:
    """Fit the least probability of each class and write the CSV."""
    _check_own(options, own_data)
    assert options.thresholds is not None and options.target_precision is not None
    result = measured_by(checkpoint, locate=False).result
    guess, labels = result.guesses(), result.labels.numpy()
    probs = apply_temperature(result.probs, checkpoint.temperature).numpy()
    prob = probs[np.arange(len(guess)), guess]
    fitted = fit_thresholds(prob, guess, guess == labels, checkpoint.classes, options.target_precision)
    with AtomicFile(options.thresholds, overwrite=options.overwrite) as stream:
        csv_lines(stream, [[*THRESHOLD_COLUMNS], *(each.cells() for each in fitted.classes)])
    return Fitted(options.thresholds, fitted, result.failures)


def _calibration(
    checkpoint: Checkpoint, own_split: str | None, looks: dict[str, Any]
) -> dict[str, Any] | None:
    """What the checkpoint's temperature was fitted on, and whether these figures are apart from that.

    Args:
        own_split: of the data of the training; None for other data.
        looks: as given on the command line, None where not.
    """
    fitted: dict[str, Any] | None = checkpoint.metadata.get("calibration")
    if not fitted:
        return None
    trained = checkpoint.metadata["options"]
    return {
        "temperature": checkpoint.temperature,
        "fitted_on": fitted["split"],
        "fitted_images": fitted["images"],
        "refused": bool(fitted.get("refused")),
        "held_out": own_split not in (fitted["split"], "all"),
        "same_looks": all(value in (None, trained.get(name)) for name, value in looks.items()),
    }


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
        _write_csv(folder / PER_CLASS, class_rows(matrix, classes))
        _write_csv(folder / CONFUSION, confusion_rows(matrix, classes))
        _write_csv(folder / PREDICTIONS, _prediction_rows(measured))
        if document["taxonomy"]:
            _write_csv(folder / RANKS, rank_rows(document["taxonomy"]))
        (folder / CONFUSION_PNG).write_bytes(draw_confusion(matrix, classes, about))
        (folder / RELIABILITY_PNG).write_bytes(_reliability(measured, document, about))
        pairs = most_confused(matrix, PAIRS)
        if pairs:
            picture = draw_confused(_with_photos(measured, matrix, pairs), about, "most confused")
            picture.save(folder / CONFUSED_PNG, format="PNG")


def _prediction_rows(measured: Measured) -> Iterable[Sequence[object]]:
    """One row for each readable image; ``prob`` with the temperature, as ``fgvc predict`` gives it."""
    classes, result = measured.checkpoint.classes, measured.result
    boxes = any(example.box for example in measured.examples)
    columns = ["path", *(["box_id"] if boxes else []), "label", "guess", "prob", "correct"]
    yield [*columns, *(["box_iou"] if measured.located else [])]
    guesses = result.guesses()
    probs = measured.told().numpy()
    for i, (example, label) in enumerate(zip(measured.readable(), result.labels.tolist(), strict=True)):
        guess = int(guesses[i])
        row: list[object] = [as_text(example.path), *([example.box and example.box.id] if boxes else [])]
        row += [classes[label], classes[guess], f"{probs[i, guess]:.4f}", int(guess == label)]
        located = measured.located.get(i)
        if measured.located:
            row.append("" if located is None else f"{best_iou(located.box, located.truth.objects):.4f}")
        yield row


def _reliability(measured: Measured, document: dict[str, Any], about: str) -> bytes:
    result = measured.result
    panels = [("As the model gives it", reliability(result.probs, result.labels))]
    if document["calibration"]:
        calibrated = reliability(measured.told(), result.labels)
        panels.append((f"With temperature {measured.temperature:.3f}", calibrated))
    return draw_reliability(panels, about)


def _with_photos(measured: Measured, matrix: np.ndarray, pairs: Sequence[Confusion]) -> list[ConfusedPair]:
    """Of each pair the surest mistake, and the image of the other class that is recognised best."""
    classes, result = measured.checkpoint.classes, measured.result
    labels, guesses, examples = result.labels.numpy(), result.guesses(), measured.readable()
    probs = measured.told().numpy()
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
                misread=_photo(examples[misread].where(measured.root)),
                prob=float(sure[misread]),
                example=None if typical is None else _photo(examples[typical].where(measured.root)),
            )
        )
    return drawn


def _photo(file: Path | Region) -> Image.Image | None:
    photo = read_image(file)
    return photo.image if isinstance(photo, DecodedImage) else None


def _write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
