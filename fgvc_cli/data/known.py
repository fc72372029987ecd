"""The published data sets by name, with their official splits and counts.

A set is one file: its docstring shows the tree, and it defines ``ENTRY``, a ``KnownSet``. Its name
then goes into ``_KEYS`` below. Nothing is downloaded.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from fgvc_cli.data.labelled import LabelledSet, hold_out_validation, missing_images
from fgvc_cli.errors import EXIT_USAGE, FgvcError, nearest

# each is a module of this package; imported when asked for, since the modules import this one
_KEYS = ("aircraft", "cars", "cub", "dogs", "grocery")


@dataclass(frozen=True)
class KnownSet:
    """A published data set: where its files lie, how many there are, how to list them.

    Args:
        key: the name users type.
        title: the name in print.
        folder: its folder below the data root, POSIX.
        needs: what must exist in that folder; directories end in ``/``.
        classes, train, test: official counts; ``train`` is counted before any hold-out.
        source: where it is to be had.
        load: folder -> listing with the official splits, val empty where there is none. May raise
            OSError, ValueError, KeyError, IndexError or TypeError on malformed files.
        val: official count, or 0 where val is held out of train.
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

    @property
    def tree(self) -> str:
        """The expected tree in one line."""
        return f"{self.folder}/{{{','.join(self.needs)}}}"

    @property
    def expected(self) -> str:
        """The official counts in one line."""
        return _counts_text(self.classes, self.train, self.val, self.test)


def known_sets() -> tuple[KnownSet, ...]:
    """Every known set, by name."""
    return tuple(find_known(key) for key in _KEYS)


def find_known(name: str) -> KnownSet:
    """The entry called ``name``.

    Raises:
        FgvcError: no such name; the nearest ones are shown.
    """
    if name not in _KEYS:
        close = nearest(name, _KEYS)
        raise FgvcError(
            f"No data set is called {name!r}; known are {', '.join(_KEYS)}.",
            f"Did you mean {' or '.join(close)}?" if close else None,
            EXIT_USAGE,
        )
    entry: KnownSet = importlib.import_module(f"fgvc_cli.data.{name}").ENTRY
    return entry


def load_known(name: str, data_root: Path | None, *, val_share: float = 0.1, seed: int = 0) -> LabelledSet:
    """List a known set, with the counts of its paper or not at all.

    Official train and test splits. Val is the official one where the set has one, else held out of
    train by ``hold_out_validation``, so that the test split never chooses a checkpoint.

    Args:
        name: a key, such as ``"cub"``.
        data_root: the folder that holds the set's folder, or that folder itself; None: ``$FGVC_DATA``.
        val_share: share of each training class held out, in (0, 1); unused with an official val.
        seed: of the hold-out.

    Raises:
        FgvcError: unknown name, no data root, files missing, or counts that differ from the official.
    """
    entry = find_known(name)
    if data_root is None:
        from_environment = os.environ.get("FGVC_DATA")
        if not from_environment:
            raise FgvcError(
                f"Where the data set {name} lies is not known.",
                f"Give --data-root DIR or set FGVC_DATA=DIR, where DIR holds {entry.tree}.",
                EXIT_USAGE,
            )
        data_root = Path(from_environment).expanduser()
    return load_entry(entry, data_root, val_share=val_share, seed=seed)


def load_entry(entry: KnownSet, data_root: Path, *, val_share: float = 0.1, seed: int = 0) -> LabelledSet:
    """``load_known`` for an entry in hand."""
    root = _locate(entry, data_root)
    try:
        listing = entry.load(root)
        labels = {example.label for split in listing.splits.values() for example in split}
        if not labels <= set(range(len(listing.classes))):
            raise ValueError(f"labels from {min(labels)} to {max(labels)} for {len(listing.classes)} classes")
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise FgvcError(f"{entry.title} at {root} does not read ({reason}).", _how_to_get(entry)) from error
    _check_complete(entry, listing)
    if entry.val:
        return listing
    train, val = hold_out_validation(listing.splits["train"], listing.classes, val_share=val_share, seed=seed)
    return replace(listing, splits={**listing.splits, "train": train, "val": val})


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
    return f"{classes} classes, {train:,} train{f', {val:,} val' if val else ''}, {test:,} test"


def _how_to_get(entry: KnownSet) -> str:
    return f"Expected {entry.tree} with {entry.expected}, from {entry.source}."


def _locate(entry: KnownSet, data_root: Path) -> Path:
    """The folder that holds all of ``entry.needs``: below ``data_root``, or ``data_root`` itself."""
    parts = PurePosixPath(entry.folder).parts
    absent = {}
    for skipped in range(len(parts) + 1):
        folder = data_root.joinpath(*parts[skipped:])
        absent[folder] = [need for need in entry.needs if not _is_there(folder, need)]
    best = min(absent, key=lambda folder: len(absent[folder]))
    if len(absent[best]) == len(entry.needs):
        raise FgvcError(f"{entry.title} is not in {data_root}.", _how_to_get(entry))
    if absent[best]:
        raise FgvcError(f"{entry.title} at {best} lacks {', '.join(absent[best])}.", _how_to_get(entry))
    return best


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
