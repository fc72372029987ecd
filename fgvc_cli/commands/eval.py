"""fgvc eval: a checkpoint over a labelled split -> accuracy, with the split it was measured on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvc_cli.commands.console import stderr_console
from fgvc_cli.commands.eval_data import choose_data
from fgvc_cli.commands.eval_text import format_document
from fgvc_cli.errors import EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, FgvcError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fgvc_cli.commands.eval_measure import Measured
    from fgvc_cli.data.labelled import LabelledSet
    from fgvc_cli.engine.checkpoint import Checkpoint

SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class EvalRequest:
    """What the command line asks for; see ``cli/eval.py``. None: not given."""

    weights: str | None
    data: str | None
    dataset: str | None
    data_root: str | None
    split: str
    batch_size: int
    workers: int
    device: str
    as_json: bool
    stages: str | None = None
    cascade: float | None = None
    against: str | None = None
    out: Path | None = None
    overwrite: bool = False
    calibrate: Path | None = None

    @property
    def looks(self) -> dict[str, Any]:
        return {"stages": self.stages, "cascade": self.cascade}


def run(request: EvalRequest) -> int:
    """Evaluate; without ``data`` and ``dataset``, on what the checkpoint was trained with.

    Raises:
        FgvcError: options that do not go together, weights or data that cannot be read, an empty split,
            labels the checkpoint does not know, an output that is there already.
    """
    _check(request)
    from functools import partial

    from fgvc_cli.commands.eval_measure import measure
    from fgvc_cli.engine.device import keep_freed_memory, pick_device
    from fgvc_cli.engine.weights import default_notice, open_weights

    console = stderr_console()
    if request.weights is None:
        console.print(default_notice(), markup=False)
    checkpoint = open_weights(request.weights, options=request.looks)
    _check_labels(request, checkpoint.multi_label)
    other = open_weights(request.against) if request.against is not None else None
    device = pick_device(request.device)
    keep_freed_memory()
    labelled, own_data = choose_data(
        checkpoint, request.data, request.dataset, request.data_root, request.split
    )
    measured_by = partial(
        measure,
        labelled=labelled,
        split=request.split,
        device=device,
        batch_size=request.batch_size,
        workers=request.workers,
        console=console,
    )
    if request.calibrate is not None:
        return _calibrate(request, checkpoint, own_data, measured_by)
    measured = measured_by(checkpoint)
    document = _document(request, measured, labelled, own_data)
    if other is not None:
        document["against"] = _against(request, measured, measured_by(other, locate=False))
        if own_data:
            document["against"]["notes"] = _notes(request, labelled, other)
    if request.out is not None:
        from fgvc_cli.commands.eval_report import write_report

        write_report(request.out, measured, document, overwrite=request.overwrite)
        console.print(f"written: {request.out}", markup=False)
    print(json.dumps(document, indent=2) if request.as_json else format_document(document))
    return EXIT_SOME_FAILED if measured.result.failures else EXIT_OK


def _check(request: EvalRequest) -> None:
    """What can be known to fail before anything is read.

    Raises:
        FgvcError: a wrong split, an option without its other half, an output that is there already.
    """
    if request.split not in SPLITS:
        expected = f"--split got {request.split!r}, expected one of {', '.join(SPLITS)}."
        raise FgvcError(expected, None, EXIT_USAGE)
    if request.overwrite and request.out is None and request.calibrate is None:
        raise FgvcError("--overwrite is for --out and --calibrate.", "Leave it out.", EXIT_USAGE)
    if request.out is not None:
        from fgvc_cli.commands.eval_report import REPORT_FILES
        from fgvc_cli.files import check_folder

        check_folder(request.out, overwrite=request.overwrite, replaceable=REPORT_FILES)
    if request.calibrate is not None:
        from fgvc_cli.files import check_writable

        _check_calibrate(request)
        check_writable(request.calibrate, overwrite=request.overwrite)


def _check_labels(request: EvalRequest, multi_label: bool) -> None:
    given = {"--out": request.out, "--against": request.against, "--calibrate": request.calibrate}
    named = [name for name, value in given.items() if value is not None]
    if multi_label and named:
        raise FgvcError(
            f"{named[0]} is for models that tell one class, this one tells several labels per photograph.",
            "Leave it out; --json prints every figure.",
            EXIT_USAGE,
        )


def _check_calibrate(request: EvalRequest) -> None:
    if request.split != "val":
        raise FgvcError(
            f"--calibrate fits the temperature on the val split of the training, not on {request.split}.",
            "Add --split val.",
            EXIT_USAGE,
        )
    # What is fitted is fitted for the looks of the training, and nothing else is measured.
    extra: dict[str, object] = {
        "--stages": request.stages,
        "--cascade": request.cascade,
        "--against": request.against,
    }
    extra |= {"--out": request.out, "--json": request.as_json or None}
    given = [name for name, value in extra.items() if value is not None]
    if given:
        raise FgvcError(f"--calibrate does not go with {given[0]}.", f"Leave {given[0]} out.", EXIT_USAGE)


def _document(
    request: EvalRequest, measured: Measured, labelled: LabelledSet, own_data: bool
) -> dict[str, Any]:
    """Everything that ``--json`` prints."""
    from fgvc_cli.evaluate.intervals import DRAWS, LEVEL, SEED

    checkpoint = measured.checkpoint
    calibration = _calibration(checkpoint, request.split if own_data else None, request.looks)
    located = measured.localisation()
    if located is not None:
        located["source"] = labelled.name
    return {
        "model": checkpoint.name,
        "weights_sha256": checkpoint.sha256,
        "dataset": labelled.name,
        "split": request.split,
        "train_images": checkpoint.metadata.get("train_images"),
        "caveat": labelled.caveat or None,
        "metrics": measured.result.metrics(checkpoint.temperature if calibration else None),
        "intervals": measured.result.intervals(),
        "interval": {"method": "percentile bootstrap, images", "level": LEVEL, "draws": DRAWS, "seed": SEED},
        "calibration": calibration,
        "localisation": located,
        "against": None,
        "failures": measured.result.failures,
    }


def _against(request: EvalRequest, measured: Measured, other: Measured) -> dict[str, Any]:
    """The comparison over the photographs that both could read, matched by path."""
    import numpy as np

    from fgvc_cli.engine.weights import read_manifest
    from fgvc_cli.evaluate.comparison import compare

    first, second = measured.right(), other.right()
    shared = [path for path in first if path in second]
    comparison = compare(
        np.array([first[path] for path in shared], bool), np.array([second[path] for path in shared], bool)
    )
    return {
        "first": request.weights or read_manifest().default,
        "second": request.against,
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


def _notes(request: EvalRequest, labelled: LabelledSet, other: Checkpoint) -> list[str]:
    """Whether the other model may have been trained on photographs of this split of the first one's data."""
    recorded = other.metadata.get("data_sha256")
    if recorded == labelled.sha256():
        return []
    why = "on other photographs or another division" if recorded else "without a record of the photographs"
    trained = f"{request.against} was trained {why} ({other.metadata['dataset']})"
    return [f"{trained}: it may have been trained on some of these"]


def _calibrate(
    request: EvalRequest, checkpoint: Checkpoint, own_data: bool, measured_by: Callable[..., Measured]
) -> int:
    """Fit the temperature on the training's val split and write the model with it."""
    from fgvc_cli.engine.weights import resolve_weights
    from fgvc_cli.evaluate.calibration import Calibration, fit_temperature, write_calibrated

    if not own_data:
        raise FgvcError(
            "--calibrate got other photographs than those of the training, whose val split it needs.",
            "Leave --data and --dataset out, or name the training's.",
            EXIT_USAGE,
        )
    assert request.calibrate is not None
    result = measured_by(checkpoint, locate=False).result
    calibration = Calibration(fit_temperature(result.probs, result.labels), "val", len(result.labels))
    source = resolve_weights(request.weights)[0]
    write_calibrated(source, request.calibrate, calibration, overwrite=request.overwrite)
    before, after = (result.metrics(calibration.temperature)[name] for name in ("ece", "ece_calibrated"))
    print(
        f"temperature {calibration.temperature:.3f} (was {checkpoint.temperature:.3f}), fitted on "
        f"{calibration.images:,} photographs of the val split: ECE there {100 * before:.2f} % before any, "
        f"{100 * after:.2f} % after\n{request.calibrate}"
    )
    return EXIT_SOME_FAILED if result.failures else EXIT_OK


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
