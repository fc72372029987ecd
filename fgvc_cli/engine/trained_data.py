"""The labelled images that go with a checkpoint: those of its training, divided as there, or others."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from fgvc_cli.config import TrainConfig, build
from fgvc_cli.data.listing import NO_LABEL, Example, LabelledSet
from fgvc_cli.data.names import same_form
from fgvc_cli.datasets.registry import load_data
from fgvc_cli.engine.checkpoint import Checkpoint
from fgvc_cli.errors import FgvcError


def choose_data(
    checkpoint: Checkpoint, data: str | None, dataset: str | None, data_root: str | None, split: str
) -> tuple[LabelledSet, bool]:
    """The images, and whether they are those of the training, divided as there.

    Without ``data`` and ``dataset``, they are; and where ``data`` is where they lie now.
    """
    if not (data or dataset) or is_trained_data(checkpoint, data, dataset):
        return trained_data(checkpoint, data_root, split), True
    moved = _moved_data(checkpoint, data) if data else None
    if moved:
        return moved, True
    return given_data(checkpoint, data, dataset, data_root), False


def is_trained_data(checkpoint: Checkpoint, data: str | None, dataset: str | None) -> bool:
    """Whether what is named is what the training named: then its own split has to be kept."""
    trained = checkpoint.metadata["config"]
    if data:
        return bool(trained["data"]) and Path(data).resolve() == Path(trained["data"]).resolve()
    return dataset == trained["dataset"]


def _moved_data(checkpoint: Checkpoint, data: str) -> LabelledSet | None:
    """The images of the training, divided as there, if ``data`` holds them.

    Taken for new ones because it moved, an unsplit folder would be measured on what was trained on, too.
    """
    trained = checkpoint.metadata["config"]
    if not trained["data"]:
        return None
    with contextlib.suppress(FgvcError):
        labelled = load_data(build(TrainConfig, {**trained, "data": data}))
        if labelled.sha256() == checkpoint.metadata.get("data_sha256"):
            return labelled
    return None


def given_data(
    checkpoint: Checkpoint, data: str | None, dataset: str | None, data_root: str | None
) -> LabelledSet:
    """A set named on the command line: nothing of it is dealt away, an unsplit one is all test."""
    config = TrainConfig(model=checkpoint.name, data=data, dataset=dataset, data_root=data_root)
    return load_data(config, for_training=False)


def trained_data(checkpoint: Checkpoint, data_root: str | None, split: str) -> LabelledSet:
    """The set of the training, divided as the training divided it.

    Raises:
        FgvcError: it cannot be read, or holds other images by now, so that its parts would mix.
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
            f"{name} no longer holds the images of the training: its {split} split made again "
            "would mix with what was trained on.",
            "Name new images with --data FOLDER, or take everything with --split all.",
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
    index = {same_form(name): i for i, name in enumerate(classes)}
    there = {data.classes[label] for e in chosen for label in e.labels}
    unknown = sorted(name for name in there if same_form(name) not in index)
    if unknown:
        shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise FgvcError(
            f"The checkpoint does not know {len(unknown)} of the {len(data.classes)} classes of {data.name} "
            f"({shown}); it knows {len(classes)}, such as {', '.join(classes[:3])}.",
            "Name data of the classes it was trained for, or train on this data.",
        )
    own = [[index[same_form(data.classes[label])] for label in e.labels] or [NO_LABEL] for e in chosen]
    return [Example(e.path, first, tuple(more)) for e, (first, *more) in zip(chosen, own, strict=True)]
