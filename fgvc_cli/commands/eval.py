"""fgvc eval: a checkpoint over a labelled split -> accuracy, with the split it was measured on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from fgvc_cli.commands.console import stderr_console
from fgvc_cli.config import TrainConfig
from fgvc_cli.data.listing import Example
from fgvc_cli.data.load import load_data
from fgvc_cli.errors import EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, FgvcError
from fgvc_cli.sections import build

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from fgvc_cli.data.labelled import LabelledSet
    from fgvc_cli.engine.checkpoint import Checkpoint
    from fgvc_cli.engine.evaluator import Evaluation

SPLITS = ("train", "val", "test", "all")


def run(
    *,
    weights: str | None,
    data: str | None,
    dataset: str | None,
    data_root: str | None,
    split: str,
    batch_size: int,
    workers: int,
    device: str,
    as_json: bool,
    stages: str | None = None,
    cascade: float | None = None,
) -> int:
    """Evaluate; without ``data`` and ``dataset``, on what the checkpoint was trained with.

    Raises:
        FgvcError: weights or data that cannot be read, an empty split, labels the checkpoint does not know.
    """
    if split not in SPLITS:
        raise FgvcError(f"--split got {split!r}, expected one of {', '.join(SPLITS)}.", None, EXIT_USAGE)
    from fgvc_cli.engine.allocator import keep_freed_memory
    from fgvc_cli.engine.device import pick_device
    from fgvc_cli.engine.weights import default_notice, open_weights

    console = stderr_console()
    if weights is None:
        console.print(default_notice(), markup=False)
    looks = {"stages": stages, "cascade": cascade}
    checkpoint = open_weights(weights, options=looks)
    target = pick_device(device)
    keep_freed_memory()
    own_data = not (data or dataset) or _is_trained_data(checkpoint, data, dataset)
    if own_data:
        labelled = _trained_data(checkpoint, data_root, split)
    else:
        labelled = _given_data(checkpoint, data, dataset, data_root)
    result = _evaluate(checkpoint, labelled, split, console, target, batch_size, workers)
    calibration = _calibration(checkpoint, split if own_data else None, looks)
    document = {
        "model": checkpoint.name,
        "weights_sha256": checkpoint.sha256,
        "dataset": labelled.name,
        "split": split,
        "metrics": result.metrics(checkpoint.temperature if calibration else None),
        "calibration": calibration,
    }
    print(json.dumps(document, indent=2) if as_json else format_metrics(document))
    return EXIT_SOME_FAILED if result.failures else EXIT_OK


def _evaluate(
    checkpoint: Checkpoint,
    labelled: LabelledSet,
    split: str,
    console: Console,
    target: torch.device,
    batch_size: int,
    workers: int,
) -> Evaluation:
    """The model over a split, with progress and unreadable photographs on the console.

    Raises:
        FgvcError: see ``known_examples``; no readable photograph.
    """
    from fgvc_cli.data.loaders import LabelledImages, build_loader
    from fgvc_cli.data.transforms import eval_transform
    from fgvc_cli.engine.evaluator import evaluate
    from fgvc_cli.engine.multilabel import label_slots

    examples = known_examples(labelled, split, checkpoint.classes)
    slots = label_slots(labelled, len(checkpoint.classes), checkpoint.multi_label)
    images = LabelledImages(labelled.root, examples, eval_transform(checkpoint.preprocess), slots)
    loader = build_loader(images, batch_size=batch_size, workers=workers)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("evaluating", total=len(examples))
        result = evaluate(
            checkpoint.model.to(target),
            loader,
            checkpoint.preprocess,
            target,
            on_batch=lambda count: progress.advance(task, count),
        )
    for failure in result.failures:
        console.print(f"warning: left out {failure}", markup=False)
    if not len(result.labels):
        raise FgvcError(f"No photograph of the {split} split could be read.", "Check the files named above.")
    return result


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
        "held_out": own_split not in (fitted["split"], "all"),
        "same_looks": all(value in (None, trained.get(name)) for name, value in looks.items()),
    }


def _is_trained_data(checkpoint: Checkpoint, data: str | None, dataset: str | None) -> bool:
    """Whether what is named is what the training named: then its own split has to be kept."""
    trained = checkpoint.metadata["config"]
    if data:
        return bool(trained["data"]) and Path(data).resolve() == Path(trained["data"]).resolve()
    return dataset == trained["dataset"]


def _given_data(
    checkpoint: Checkpoint, data: str | None, dataset: str | None, data_root: str | None
) -> LabelledSet:
    """A set named on the command line: nothing of it is dealt away, an unsplit one is all test."""
    config = TrainConfig(model=checkpoint.name, data=data, dataset=dataset, data_root=data_root)
    return load_data(config, for_training=False)


def _trained_data(checkpoint: Checkpoint, data_root: str | None, split: str) -> LabelledSet:
    """The set of the training, divided as the training divided it.

    Raises:
        FgvcError: it cannot be read, or holds other photographs by now, so that its parts would mix.
    """
    trained: dict[str, Any] = dict(checkpoint.metadata["config"])
    name = trained["data"] or trained["dataset"]
    # The folder of the training may be another machine's; then $FGVC_DATA counts, as it does for training.
    folder = trained["data_root"]
    trained["data_root"] = data_root or (folder if folder and Path(folder).is_dir() else None)
    try:
        labelled = load_data(build(TrainConfig, trained))
    except FgvcError as error:
        raise FgvcError(
            f"The checkpoint was trained on {name!r}, which cannot be read from here: {error.message}",
            "Say where it is with --data, or --dataset and --data-root.",
        ) from error
    recorded = checkpoint.metadata.get("data_sha256")
    if split != "all" and recorded and recorded != labelled.sha256():
        raise FgvcError(
            f"{name} no longer holds the photographs of the training: its {split} split made again "
            "would mix with what was trained on.",
            "Evaluate new photographs with --data FOLDER, or everything with --split all.",
        )
    return labelled


def known_examples(data: LabelledSet, split: str, classes: tuple[str, ...]) -> list[Example]:
    """The examples of a split with labels renumbered to the checkpoint's classes, matched by name.

    Raises:
        FgvcError: an empty split, or labels the checkpoint does not know.
    """
    chosen = [e for name, part in data.splits.items() if split in (name, "all") for e in part]
    if not chosen:
        filled = ", ".join(name for name, part in data.splits.items() if part)
        raise FgvcError(f"{data.name} has no {split} split.", f"Choose --split from: {filled}, all.")
    unknown = sorted({data.classes[label] for e in chosen for label in e.labels} - set(classes))
    if unknown:
        shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise FgvcError(
            f"The checkpoint does not know {len(unknown)} of the {len(data.classes)} classes of {data.name} "
            f"({shown}); it knows {len(classes)}, such as {', '.join(classes[:3])}.",
            "Evaluate on the data it was trained for, or train on this data.",
        )
    index = {name: i for i, name in enumerate(classes)}
    own = [[index[data.classes[label]] for label in e.labels] for e in chosen]
    return [Example(e.path, first, tuple(more)) for e, (first, *more) in zip(chosen, own, strict=True)]


def format_metrics(document: dict[str, Any]) -> str:
    """The printed table: every number with its split."""
    metrics: dict[str, float] = document["metrics"]
    lines = [f"{document['model']} on {document['dataset']}, {document['split']} split"]
    for name, value in metrics.items():
        if name in ("images", "unreadable"):
            lines.append(f"  {name:20s} {value:8.0f}")
        elif name.startswith(("top", "reached_", "ece", "macro_f1", "micro_f1", "map", "exact_match")):
            lines.append(f"  {name:20s} {100 * value:8.2f} %")
        else:
            lines.append(f"  {name:20s} {value:8.3f}")
    return "\n".join([*lines, *_calibration_lines(document)])


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
