"""Labelled sets by name or by path: the published ones with their official splits and counts, and boxes.

Nothing is downloaded here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from fgvc_cli.config import TrainConfig
from fgvc_cli.data.labelled import has_class_folders, load_boxes_by_category, load_labelled, take_boxes
from fgvc_cli.data.listing import LabelledSet, missing_images
from fgvc_cli.data.split import hold_out_validation
from fgvc_cli.data.taxonomy import read_taxonomy
from fgvc_cli.datasets import published
from fgvc_cli.datasets.entries import KnownSet, TrueBoxes, counts_text
from fgvc_cli.errors import EXIT_USAGE, FgvcError, nearest
from fgvc_cli.sources.boxes import open_boxes

ENTRIES = {entry.key: entry for entry in sorted(published.ENTRIES, key=lambda entry: entry.key)}
"""Every known set by the name that users type, in alphabetical order."""

_DEALT_TEST_SEED = 2021
"""Of every dealt test split: one split for all, whatever the seed of a run."""


def known_sets() -> tuple[KnownSet, ...]:
    """Every known set, by name."""
    return tuple(ENTRIES.values())


def known_names() -> tuple[str, ...]:
    """The names of all known sets."""
    return tuple(ENTRIES)


def find_known(name: str) -> KnownSet:
    """The entry called ``name``.

    Raises:
        FgvcError: no such name; the nearest ones are shown.
    """
    if name not in ENTRIES:
        close = nearest(name, ENTRIES)
        raise FgvcError(
            f"No data set is called {name!r}; known are {', '.join(ENTRIES)}.",
            f"Did you mean {' or '.join(close)}?" if close else None,
            EXIT_USAGE,
        )
    return ENTRIES[name]


def default_root() -> Path | None:
    """The data root that the environment names."""
    named = os.environ.get("FGVC_DATA")
    return Path(named).expanduser() if named else None


def load_known(name: str, data_root: Path | None, *, val_share: float = 0.1, seed: int = 0) -> LabelledSet:
    """List a known set, with the counts of its paper or not at all.

    Official train and test splits (see ``KnownSet.dealt_test`` where the test labels are unpublished). Val is
    the official one where the set has one, else held out of train by ``hold_out_validation``, so that the
    test split never chooses a checkpoint.

    Args:
        name: a key, such as ``"cub"``.
        data_root: the folder that holds the set's folder, or that folder itself; None: ``$FGVC_DATA``.
        val_share: fraction of each training class held out, in [0, 1), 0 for none; unused with an official
            val.
        seed: of the hold-out.

    Raises:
        FgvcError: unknown name, no data root, files missing, or counts that differ from the official.
    """
    entry = find_known(name)
    data_root = data_root or default_root()
    if data_root is None:
        raise FgvcError(
            f"Where the data set {name} lies is not known.",
            f"Give --data-root DIR or set FGVC_DATA=DIR, where DIR holds {entry.tree}.",
            EXIT_USAGE,
        )
    return load_entry(entry, data_root, val_share=val_share, seed=seed)


def load_entry(entry: KnownSet, data_root: Path, *, val_share: float = 0.1, seed: int = 0) -> LabelledSet:
    """``load_known`` for an entry in hand."""
    listing = read_official(entry, data_root)
    if entry.dealt_test:
        train, test = hold_out_validation(
            listing.splits["train"], listing.classes, val_share=entry.dealt_test, seed=_DEALT_TEST_SEED
        )
        listing = replace(listing, splits={**listing.splits, "train": train, "test": test})
    if entry.val:
        return listing
    train, val = hold_out_validation(listing.splits["train"], listing.classes, val_share=val_share, seed=seed)
    return replace(listing, splits={**listing.splits, "train": train, "val": val})


def read_official(entry: KnownSet, data_root: Path) -> LabelledSet:
    """The listing as published, checked: counts as the official ones, every image there.

    Raises:
        FgvcError: files missing or malformed, or counts that differ.
    """
    root = locate(entry, data_root)
    try:
        listing = entry.load(root)
        # Of a published set every image has one: a number below 0 is a mistake here, not an image without.
        examples = [example for split in listing.splits.values() for example in split]
        labels = {label for example in examples for label in (example.label, *example.more)}
        if not labels <= set(range(len(listing.classes))):
            raise ValueError(f"labels from {min(labels)} to {max(labels)} for {len(listing.classes)} classes")
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise FgvcError(f"{entry.title} at {root} does not read ({reason}).", _how_to_get(entry)) from error
    _check_complete(entry, listing)
    return replace(listing, name=entry.key, caveat=entry.caveat)


def _how_to_get(entry: KnownSet) -> str:
    how = f"; to download it: fgvc datasets get {entry.key}" if entry.archives else ""
    return f"Expected {entry.tree} with {entry.expected}, from {entry.source}{how}."


def locate(entry: KnownSet, data_root: Path) -> Path:
    """The folder that holds all of ``entry.needs``: below ``data_root``, or ``data_root`` itself.

    Raises:
        FgvcError: there is none, or it lacks some.
    """
    folder, absent = lacking(entry, data_root)
    if len(absent) == len(entry.needs):
        raise FgvcError(f"{entry.title} is not in {data_root}.", _how_to_get(entry))
    if absent:
        raise FgvcError(f"{entry.title} at {folder} lacks {', '.join(absent)}.", _how_to_get(entry))
    return folder


def lacking(entry: KnownSet, data_root: Path) -> tuple[Path, list[str]]:
    """The folder that is most like the set, below ``data_root`` or itself, and the needs it lacks."""
    parts = PurePosixPath(entry.folder).parts
    folders = [data_root.joinpath(*parts[skipped:]) for skipped in range(len(parts) + 1)]
    absent: list[tuple[bool, int, int, Path, list[str]]] = []
    for needs in (entry.needs, *entry.other_needs):
        for folder in folders:
            lost = [need for need in needs if not _is_there(folder, need)]
            # A whole layout first, then the one of which most is there.
            absent.append((bool(lost), len(lost) - len(needs), len(absent), folder, lost))
    *_, folder, lost = min(absent)
    return folder, lost


def _is_there(folder: Path, need: str) -> bool:
    return (folder / need).is_dir() if need.endswith("/") else (folder / need).is_file()


def _check_complete(entry: KnownSet, listing: LabelledSet) -> None:
    counts = listing.counts()
    arrived = counts_text(len(listing.classes), **counts)
    if (len(listing.classes), counts) != (
        entry.classes,
        {"train": entry.train, "val": entry.val, "test": entry.test},
    ):
        # a cut download must not turn into a number in a table
        raise FgvcError(f"{entry.title} at {listing.root} lists {arrived}.", _how_to_get(entry))
    paths = [example.path for split in listing.splits.values() for example in split]
    missing = missing_images(listing.root, paths)
    if missing:
        raise FgvcError(
            f"{entry.title} at {listing.root}: {len(missing):,} of {len(paths):,} listed images are missing, "
            f"first {missing[0]}.",
            _how_to_get(entry),
        )


@dataclass(frozen=True)
class Presence:
    """A known set and what is there of it."""

    entry: KnownSet
    state: Literal["ok", "absent", "broken"]
    """``ok``: its counts are the official ones and every image is there. ``broken``: something else is."""
    root: Path | None = None
    """Its folder, where it is ok."""
    problem: str = ""
    """One line, where it is broken."""


def look_for_sets(data_root: Path | None) -> list[Presence]:
    """Every known set, by name; all are absent without a data root."""
    return [look_for(entry, data_root) for entry in known_sets()]


def look_for(entry: KnownSet, data_root: Path | None) -> Presence:
    """What is there of one set."""
    if data_root is None:
        return Presence(entry, "absent")
    _, absent = lacking(entry, data_root)
    # Folders such as images/ and train/ are many sets' own: some of them are no sign of this one.
    if absent and not (data_root / entry.folder).is_dir():
        return Presence(entry, "absent")
    try:
        return Presence(entry, "ok", read_official(entry, data_root).root)
    except FgvcError as error:
        return Presence(entry, "broken", problem=error.message)


def load_data(config: TrainConfig, *, for_training: bool = True) -> LabelledSet:
    """List the set under ``config.data`` or ``config.dataset``, with the tree of ``config.taxonomy``.

    Args:
        for_training: see ``load_labelled``; a known set always has its own splits.

    Raises:
        FgvcError: neither or both are named, the set cannot be listed, or a taxonomy does not fit it.
    """
    data = _load_data(config, for_training)
    if config.taxonomy is None:
        return data
    if data.multi_label:
        raise FgvcError(
            f"A taxonomy is for one class per image; {data.name} has several labels.",
            "Leave --taxonomy out.",
            EXIT_USAGE,
        )
    return replace(data, taxonomy=read_taxonomy(config.taxonomy, data.classes))


def _load_data(config: TrainConfig, for_training: bool) -> LabelledSet:
    boxes = open_boxes(config)
    if bool(config.data) == bool(config.dataset):
        raise FgvcError(
            "Give either --data PATH (a class-per-folder folder or a CSV with path,label[,split]) "
            "or --dataset NAME.",
            "For example: fgvc train --data birds --model crasmra-r50",
            EXIT_USAGE,
        )
    if config.dataset:
        if config.split_by:
            raise FgvcError(
                f"--split-by is for data of your own; {config.dataset} has its published splits.",
                "Leave it out.",
                EXIT_USAGE,
            )
        root = Path(config.data_root) if config.data_root else None
        known = load_known(config.dataset, root, val_share=config.val_share, seed=config.split_seed)
        return known if boxes is None else take_boxes(known, boxes)
    path = Path(config.data or "")
    divide: dict[str, Any] = {
        "val_share": config.val_share,
        "test_share": config.test_share,
        "seed": config.split_seed,
    }
    own = config.box_labels == "box" or (
        config.box_labels == "auto" and path.is_dir() and not has_class_folders(path)
    )
    if boxes is not None and own:
        return load_boxes_by_category(
            path, boxes, for_training=for_training, split_by=config.split_by, **divide
        )
    labelled = load_labelled(
        path,
        for_training=for_training,
        split_by=config.split_by,
        similar_names=config.similar_names,
        box_margin=config.box_margin if boxes is None else None,
        **divide,
    )
    return labelled if boxes is None else take_boxes(labelled, boxes)


def load_boxes(root: Path, paths: Iterable[str]) -> dict[str, TrueBoxes]:
    """The boxes of those images of a set that have any.

    Args:
        root: the set's folder.
        paths: relative to ``root``, POSIX, as ``Example.path``.

    Returns:
        Path -> boxes; empty for a set without.

    Raises:
        FgvcError: a file of boxes that does not read.
    """
    for marker, read in published.BOX_READERS.items():
        if (root / marker).exists():
            try:
                return read(root, paths)
            except (OSError, ValueError, KeyError, SyntaxError) as error:
                why = " ".join(f"{type(error).__name__}: {error}".split())
                raise FgvcError(
                    f"The boxes in {root / marker} do not read ({why}).",
                    "Mend the file, or move it away to evaluate without boxes.",
                ) from error
    return {}
