"""Dividing examples into splits: seeded, the same on every machine; per class, or by what belongs together.

Images of one camera moments apart are all but the same image. Dealt at random, some train and some test, and
the score says how well the model knows them again, not how well it knows the species. So a burst, a camera or
a specimen may be kept in one split.
"""

from __future__ import annotations

import hashlib
import posixpath
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np

from fgvc_cli.data.listing import NO_LABEL, SPLITS, Example, first_names
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.sources.archives import open_bytes
from fgvc_cli.sources.metadata import clock_seconds, exif_date, read_taken

Division = tuple[tuple[Example, ...], tuple[Example, ...], tuple[Example, ...]]
"""Train, val and test."""


def hold_out_validation(
    train: Sequence[Example], classes: Sequence[str], *, val_share: float = 0.1, seed: int = 0
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Divide training examples into (train, val), seeded and per class.

    Each class gives ``val_share`` of its images, rounded, at least one, and keeps at least one. What
    a class gives depends on the seed, its name and its own paths only. The order is kept. An image with
    several labels counts for the rarest of them, so that this one is divided as asked; those with none are
    divided as one class. With ``val_share`` 0 nothing is held out.

    Raises:
        FgvcError: a class with fewer than two images, or a fraction outside [0, 1).
    """
    check_shares(val_share, 0.0)
    kept, val, _ = deal(train, classes, val_share, 0.0, seed)
    return kept, val


def check_shares(val_share: float, test_share: float) -> None:
    """Whether both shares leave something to train on.

    Raises:
        FgvcError: they do not.
    """
    if not (val_share >= 0 and test_share >= 0 and val_share + test_share < 1):
        raise FgvcError(
            f"The fractions for validation, {val_share:g}, and test, {test_share:g}, leave nothing to train "
            "on; expected each from 0, both together below 1.",
            exit_code=EXIT_USAGE,
        )


def deal(
    examples: Sequence[Example], classes: Sequence[str], val_share: float, test_share: float, seed: int
) -> Division:
    """Divide examples into (train, val, test), as ``hold_out_validation`` does.

    Raises:
        FgvcError: a class with fewer than two images; without val and test, one without any.
    """
    images_of = Counter(label for example in examples for label in example.labels)
    least = 2 if val_share else 1
    few = [name for label, name in enumerate(classes) if images_of[label] < least]
    if few:
        raise FgvcError(
            f"{len(few)} of {len(classes)} classes have fewer than {least} images, too few to split: "
            f"{first_names(few)}.",
            "Add images to them, or remove them from the data set.",
        )
    # Those without any label are dealt like a class; no class has the empty name.
    members: dict[str, list[Example]] = {name: [] for name in (*classes, "")}
    for example in examples:
        rarest = min(example.labels, key=lambda label: (images_of[label], label), default=None)
        members["" if rarest is None else classes[rarest]].append(example)
    val: set[Example] = set()
    test: set[Example] = set()
    for name, own in members.items():
        if len(own) < 2:  # of a class that comes with rarer ones only
            continue
        # one generator per class: adding a class leaves the deal of the others alone
        digest = hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()
        rng = random.Random(int.from_bytes(digest, "big"))
        # by random(), whose sequence Python promises to keep between versions; shuffle()'s it does not
        own = [example for _, example in sorted((rng.random(), example) for example in sorted(own))]
        n_val = min(max(1, int(len(own) * val_share + 0.5)), len(own) - 1) if val_share else 0
        n_test = max(1, int(len(own) * test_share + 0.5)) if test_share else 0
        val.update(own[:n_val])
        test.update(own[n_val : min(n_val + n_test, len(own) - 1)])
    train = tuple(e for e in examples if e not in val and e not in test)
    return train, tuple(e for e in examples if e in val), tuple(e for e in examples if e in test)


def deal_groups(
    examples: Sequence[Example],
    classes: Sequence[str],
    groups: Sequence[str],
    val_share: float,
    test_share: float,
    seed: int,
) -> Division:
    """Divide examples into (train, val, test) so that those of a group come into one of them.

    Groups go, in an order that the seed and their names decide, to the split that lacks most of their
    classes, unless it would come to hold much more than its fraction, or train would lose a class. A split
    that is empty then takes one group of each class all the same, the one that overshoots least: few large
    groups make it larger than asked. What is left is train.

    Args:
        groups: of each example.

    Raises:
        FgvcError: a class without an image, or groups that leave nothing to validate or test on.
    """
    members: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    total = Counter(label for example in examples for label in example.labels)
    empty = [name for label, name in enumerate(classes) if not total[label]]
    if empty:
        raise FgvcError(
            f"{len(empty)} of {len(classes)} classes have no image: {first_names(empty)}.",
            "Add images to them, or remove them from the data set.",
        )
    labels_of = {
        group: Counter(label for place in own for label in (examples[place].labels or (NO_LABEL,)))
        for group, own in members.items()
    }
    order = sorted(
        members,
        key=lambda group: hashlib.sha256(f"{seed}/{group}".encode("utf-8", "surrogateescape")).digest(),
    )
    target = {name: share for name, share in (("test", test_share), ("val", val_share)) if share}
    held: dict[str, Counter[int]] = {name: Counter() for name in target}
    split_of: dict[str, str] = {}
    left = Counter(total)

    def gain(name: str, own: Counter[int]) -> float:
        """By how much the split comes closer to its fraction of each class, over the group's size: 1 where
        all of the group is lacking, -1 where nothing of it is."""
        weight = better = 0.0
        for label, count in own.items():
            all_of_class = total[label] or len(examples)
            lacking = target[name] * all_of_class - held[name][label]
            better += (abs(lacking) - abs(lacking - count)) / all_of_class
            weight += count / all_of_class
        return better / weight

    # First what fits well; then, where a split is short of images, what at least brings it closer.
    for least in (0.5, 0.0):
        for group in order:
            own = labels_of[group]
            if group in split_of or any(
                left[label] <= count for label, count in own.items() if label != NO_LABEL
            ):
                continue
            short = [
                name for name in target if least or held[name].total() < target[name] * total.total() / 2
            ]
            best = max(short, key=lambda name: gain(name, own), default=None)
            if best is not None and gain(best, own) > least:
                split_of[group] = best
                held[best].update(own)
                left.subtract(own)
    # A split that nothing fits into takes, class by class, the group that makes it least too large.
    for name in (name for name in ("val", "test") if name in target and not held[name]):
        for label in sorted(total):
            free = [
                group
                for group in order
                if group not in split_of
                and label in labels_of[group]
                and not any(left[own] <= count for own, count in labels_of[group].items() if own != NO_LABEL)
            ]
            if held[name][label] or not free:
                continue
            group = max(free, key=lambda group: gain(name, labels_of[group]))
            split_of[group] = name
            held[name].update(labels_of[group])
            left.subtract(labels_of[group])
    none = [name for name in target if not held[name]]
    if none:
        raise FgvcError(
            f"The {len(members):,} groups leave no {' and no '.join(none)} split: train keeps an image of "
            "every class, and no group is divided.",
            "Split by something finer, or give the splits yourself: a column split, or train/ val/ test/.",
        )
    parts: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for example, group in zip(examples, groups, strict=True):
        parts[split_of.get(group, "train")].append(example)
    return tuple(parts["train"]), tuple(parts["val"]), tuple(parts["test"])


_READERS = 8
"""Threads that read EXIF: it is waiting for files, above all on a network drive."""
_FILE_TIME = 0x0132


@dataclass(frozen=True)
class SplitBy:
    """What images have in common that belong together."""

    kind: Literal["folder", "column", "minutes"]
    column: str | None = None
    minutes: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``folder``, ``column=NAME`` (or the bare name) or ``minutes=N``.

        Raises:
            FgvcError: none of these.
        """
        kind, _, value = (part.strip() for part in text.partition("="))
        if text.strip() == "folder":
            return cls("folder")
        if kind == "minutes":
            try:
                minutes = float(value)
            except ValueError:
                minutes = 0.0
            if 0 < minutes < float("inf"):
                return cls("minutes", minutes=minutes)
        elif kind == "column" and value:
            return cls("column", value.lower())
        elif kind and not value and "=" not in text:
            return cls("column", kind.lower())
        raise FgvcError(
            f"split_by got {text!r}, expected folder, column=NAME or minutes=N.",
            "For example: --split-by minutes=5",
            EXIT_USAGE,
        )

    @property
    def text(self) -> str:
        """As a person reads it."""
        if self.kind == "minutes":
            return f"folder and time (bursts with gaps of at most {self.minutes:g} minutes)"
        return "folder" if self.kind == "folder" else f"column {self.column}"


def group_images(
    by: SplitBy,
    root: Path,
    examples: Sequence[Example],
    column: Mapping[str, str],
    *,
    by_class_folders: bool,
) -> tuple[list[str], list[str]]:
    """The group of each example, and lines that the user is to read.

    Folders: of ``CLASS/CAMERA/x.jpg`` it is ``CAMERA``, in all classes the same one. Time: when the camera
    took it (EXIF); images of one folder are a burst while no gap between them is longer than ``by.minutes``.

    Args:
        column: path -> value of the column, where one is named.
        by_class_folders: the first folder of a path (behind ``train/``, where there is one) is a class.

    Raises:
        FgvcError: images right below their class, images without a time.
    """
    paths = [example.path for example in examples]
    if by.kind == "column":
        return _by_column(paths, column, by)
    if by.kind == "folder":
        return _by_folder(paths, examples, by_class_folders), []
    times = list(read_times(root / path for path in paths))
    if all(time is None for time in times):
        raise FgvcError(
            f"None of the {len(paths):,} images says when it was taken (EXIF): they cannot be split by time.",
            "Use --split-by folder, or a column of a .csv file.",
        )
    bursts = find_bursts(paths, times, by.minutes)
    untimed = sum(time is None for time in times)
    notes = [f"{untimed:,} images have no time in their EXIF; each stands for itself."] if untimed else []
    return bursts, notes


def _by_column(paths: Sequence[str], column: Mapping[str, str], by: SplitBy) -> tuple[list[str], list[str]]:
    # An empty cell is not one large group: nothing is known of these images.
    groups = [column.get(path) or f"\0{path}" for path in paths]
    empty = sum(not column.get(path) for path in paths)
    notes = [f"{empty:,} images have nothing in the column {by.column}; each stands for itself."]
    return groups, notes if empty else []


def _by_folder(paths: Sequence[str], examples: Sequence[Example], by_class_folders: bool) -> list[str]:
    folders = [posixpath.dirname(path) for path in paths]
    if not by_class_folders:
        return folders
    skipped = 2 if _has_split_folders(folders) else 1
    below = ["/".join(folder.split("/")[skipped:]) for folder in folders]
    labels = {example.label for example in examples}
    bare = [place for place, folder in enumerate(below) if not folder]
    if bare:
        raise FgvcError(
            f"{len({examples[place].label for place in bare})} of {len(labels)} classes have images right in "
            f"their folder, first {paths[bare[0]]}; to split by folder, expected CLASS/CAMERA/image.",
            "Sort them into a folder for each camera, visit or specimen; or use --split-by minutes=5.",
        )
    return below


def _has_split_folders(folders: Sequence[str]) -> bool:
    from fgvc_cli.data.label_files import SPLIT_NAMES

    return {folder.partition("/")[0].lower() for folder in folders} <= SPLIT_NAMES.keys()


def find_bursts(paths: Sequence[str], times: Sequence[float | None], minutes: float) -> list[str]:
    """The burst of each image: its folder and first image; one without a time is one of its own.

    Args:
        times: seconds; see ``read_times``.
        minutes: longest gap within a burst.
    """
    bursts = [f"\0{path}" for path in paths]
    by_path = sorted(range(len(paths)), key=paths.__getitem__)
    number = {folder: i for i, folder in enumerate(dict.fromkeys(map(posixpath.dirname, paths)))}
    folders = np.array([number[posixpath.dirname(paths[place])] for place in by_path], np.int64)
    moments = np.array([times[place] for place in by_path], np.float64)
    order, starts = order_bursts(folders, moments, minutes)
    first = ""
    for place, begins in zip(order.tolist(), starts.tolist(), strict=True):
        first = paths[by_path[place]] if begins else first
        bursts[by_path[place]] = first
    return bursts


def order_bursts(series: np.ndarray, times: np.ndarray, minutes: float) -> tuple[np.ndarray, np.ndarray]:
    """The images that have a time, int (M,), by series and time, and whether each begins a burst, bool (M,).

    Args:
        series: what an image's burst lies within, such as its folder, int (N,).
        times: seconds, float (N,), NaN for none; of equal ones the earlier image comes first.
        minutes: longest gap within a burst.
    """
    order = np.lexsort((times, series))
    order = order[~np.isnan(times[order])]
    starts = np.ones(len(order), bool)
    gaps = np.diff(times[order])
    starts[1:] = (np.diff(series[order]) != 0) | (gaps > 60 * minutes)
    return order, starts


def read_times(paths: Iterable[Path]) -> Iterable[float | None]:
    """When each image was taken by its EXIF, in seconds of the camera's clock; None where it does not say."""
    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(read_time, paths)


def read_time(path: Path) -> float | None:
    """When an image was taken by its EXIF; its pixels are not read."""
    from PIL import Image

    try:
        with open_bytes(path) as stream, Image.open(stream) as image:
            exif = image.getexif()
            return clock_seconds(read_taken(exif).date or exif_date(exif.get(_FILE_TIME)))
    except Exception:  # a damaged file raises anything; that it cannot be read is said where it is read
        return None
