"""The published data sets by name, with their official splits and counts.

A set is one file: its docstring shows the tree, and it defines ``ENTRIES``, one ``KnownSet`` for each way to
label its images. The names then go into ``_MODULES`` below. Nothing is downloaded here.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from fgvc_cli.data.listing import LabelledSet, missing_images
from fgvc_cli.data.split import hold_out_validation
from fgvc_cli.errors import EXIT_USAGE, FgvcError, nearest

# name -> module of this package; imported when asked for, since the modules import this one
_MODULES = {
    "aircraft": "aircraft",
    "aircraft-family": "aircraft",
    "aircraft-manufacturer": "aircraft",
    "cars": "cars",
    "cub": "cub",
    "dogs": "dogs",
    "flowers102": "flowers102",
    "food101": "food101",
    "grocery": "grocery",
    "grocery-coarse": "grocery",
    "icassava2019": "icassava2019",
    "pets": "pets",
    "plant2020": "plant2020",
    "plant2021": "plant2021",
}

_DEALT_TEST_SEED = 2021
"""Of every dealt test split: one split for all, whatever the seed of a run."""


@dataclass(frozen=True)
class Archive:
    """A file at an official address.

    Args:
        url: where it is.
        md5: as published, hex; None where none is.
        into: the folder below the data root in which it is unpacked, or put where it is no archive.
    """

    url: str
    md5: str | None = None
    into: str = ""

    @property
    def file(self) -> str:
        """Its name."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class KnownSet:
    """A published data set: where its files lie, how many there are, how to list them.

    Args:
        key: the name users type.
        title: the name in print.
        folder: its folder below the data root, POSIX.
        needs: what must exist in that folder; directories end in ``/``.
        classes, train, test: official counts; ``train`` is counted before anything is held out of it.
        source: where it is to be had.
        load: folder -> listing with the official splits, val empty where there is none. May raise
            OSError, ValueError, KeyError, IndexError or TypeError on malformed files.
        val: official count, or 0 where val is held out of train.
        dealt_test: share of each class of ``train`` that becomes the test split, where the labels of the
            official one are unpublished (``test`` is 0 then). It does not depend on any seed. A number on
            it compares with no official one.
        archives: what ``fgvc datasets get`` downloads; empty where one has to ask or to sign in first.
        archive_folder: what the unpacked archives call ``folder``, where it is something else.
    """

    key: str
    title: str
    folder: str
    needs: tuple[str, ...]
    classes: int
    train: int
    test: int
    source: str
    load: Callable[[Path], LabelledSet]
    val: int = 0
    dealt_test: float = 0.0
    archives: tuple[Archive, ...] = ()
    archive_folder: str = ""

    @property
    def tree(self) -> str:
        """The expected tree in one line."""
        return f"{self.folder}/{{{','.join(self.needs)}}}"

    @property
    def expected(self) -> str:
        """The official counts in one line."""
        text = _counts_text(self.classes, self.train, self.val, self.test)
        return f"{text}, {self.dealt_test:.0%} of train dealt as test" if self.dealt_test else text


def known_sets() -> tuple[KnownSet, ...]:
    """Every known set, by name."""
    return tuple(find_known(key) for key in _MODULES)


def known_names() -> tuple[str, ...]:
    """The names of all known sets."""
    return tuple(_MODULES)


def find_known(name: str) -> KnownSet:
    """The entry called ``name``.

    Raises:
        FgvcError: no such name; the nearest ones are shown.
    """
    if name not in _MODULES:
        close = nearest(name, _MODULES)
        raise FgvcError(
            f"No data set is called {name!r}; known are {', '.join(_MODULES)}.",
            f"Did you mean {' or '.join(close)}?" if close else None,
            EXIT_USAGE,
        )
    entries: tuple[KnownSet, ...] = importlib.import_module(f"fgvc_cli.datasets.{_MODULES[name]}").ENTRIES
    return next(entry for entry in entries if entry.key == name)


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
        val_share: share of each training class held out, in (0, 1); unused with an official val.
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
    return replace(listing, name=entry.key)


def read_lines(path: Path) -> list[str]:
    """The non-blank lines of a UTF-8 list file, stripped."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Lines of ``key value``; the value may hold spaces.

    Raises:
        ValueError: a line with one word.
    """
    pairs = []
    for line in read_lines(path):
        key, gap, value = line.partition(" ")
        if not gap:
            raise ValueError(f"{path.name}: {line!r} is not two words")
        pairs.append((key, value.strip()))
    return pairs


def read_mat(path: Path) -> dict[str, Any]:
    """The variables of a MATLAB file, singleton dimensions squeezed.

    Raises:
        ValueError: not a readable MATLAB file.
    """
    from scipy.io import loadmat  # 0.2 s, for two of the sets only

    try:
        variables: dict[str, Any] = loadmat(path, squeeze_me=True)
    except Exception as error:  # a cut file surfaces as zlib.error, TypeError, MatReadError and others
        raise ValueError(f"{path.name}: {error}") from error
    return variables


def _counts_text(classes: int, train: int, val: int, test: int) -> str:
    splits = (("train", train), ("val", val), ("test", test))
    return ", ".join([f"{classes} classes", *(f"{count:,} {name}" for name, count in splits if count)])


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
    absent = {}
    for skipped in range(len(parts) + 1):
        folder = data_root.joinpath(*parts[skipped:])
        absent[folder] = [need for need in entry.needs if not _is_there(folder, need)]
    best = min(absent, key=lambda folder: len(absent[folder]))
    return best, absent[best]


def _is_there(folder: Path, need: str) -> bool:
    return (folder / need).is_dir() if need.endswith("/") else (folder / need).is_file()


def _check_complete(entry: KnownSet, listing: LabelledSet) -> None:
    counts = listing.counts()
    arrived = _counts_text(len(listing.classes), **counts)
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
