"""Labelled sets: which images, which label, which split. A pure listing, no pixel is read.

``load_labelled`` reads a user's folder or CSV; the published data sets are in ``known.py``.
"""

from __future__ import annotations

import csv
import hashlib
import os
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

from fgvc_cli.data.find import EXTENSIONS
from fgvc_cli.errors import EXIT_USAGE, FgvcError

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_CSV_FORM = "a header line path,label or path,label,split, then one image per line"
_EXPECTED = f"Give a folder with one folder of images per class, or a .csv file ({_CSV_FORM})."

# split -> class name -> image paths; the key None holds everything where the source has no splits
_Found = dict[str | None, dict[str, list[str]]]


class Example(NamedTuple):
    """One labelled image.

    ``path`` is POSIX and relative to the set's root (absolute only where a CSV names a file outside
    its own folder; ``root / path`` is right for both). ``label`` indexes ``LabelledSet.classes``.
    """

    path: str
    label: int


@dataclass(frozen=True)
class LabelledSet:
    """A data set as a listing.

    Args:
        name: folder or CSV name, or the key of a known set.
        root: the folder that ``Example.path`` is relative to.
        classes: class names; a label is an index into them.
        splits: ``"train"``, ``"val"`` and ``"test"``, always all three, each possibly empty.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    splits: dict[str, tuple[Example, ...]]

    def counts(self) -> dict[str, int]:
        """Images per split."""
        return {split: len(self.splits[split]) for split in SPLITS}

    def sha256(self) -> str:
        """Hex digest of which image has which label in which split; pixels do not count."""
        lines = [f"{s}\0{e.path}\0{self.classes[e.label]}" for s in SPLITS for e in self.splits[s]]
        return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()


def load_labelled(
    path: Path,
    *,
    val_share: float = 0.1,
    test_share: float = 0.2,
    seed: int = 0,
    for_training: bool = True,
) -> LabelledSet:
    """List a folder with one folder per class, or a CSV.

    Folder: class folders at the top, or below ``train/``, ``val/`` (``valid/``, ``validation/``) and
    ``test/``. Images are found at any depth below their class folder (linked folders below that are
    not followed); hidden names and files beside the class folders are left out. CSV: ``path,label``
    and perhaps ``split``; UTF-8; relative paths start at the CSV's folder. Classes are in natural
    order (``x2`` before ``x10``), examples ordered by class, then path.

    Without any split the images are dealt into train, val and test, seeded and per class. A val
    split that is not there is held out of train: it chooses the checkpoint, and the test split is
    touched once, at the end. A test split that is not there beside others stays empty.

    Args:
        path: the folder or ``.csv`` file.
        val_share: share of each class for val, in (0, 1); ignored where a val split exists.
        test_share: share of each class for test, in [0, 1); ignored where any split exists.
        for_training: False for a set that is only to be evaluated: nothing is dealt or held out, an unsplit
            set is all test, and a class may have one image.
        seed: of the deal; the same seed and file names give the same split on every machine.

    Raises:
        FgvcError: nothing there, fewer than two classes, classes without enough images, classes
            of val or test that train lacks, or a malformed CSV (with the line number).
    """
    _check_shares(val_share, test_share)
    try:
        if path.is_dir():
            root, name, found = path, path.resolve().name, _read_folder(path, for_training)
        elif path.is_file() and path.suffix.lower() == ".csv":
            root, name, found = path.parent, path.stem, _read_csv(path)
        else:
            reason = "is neither a folder nor a .csv file" if path.exists() else "does not exist"
            raise FgvcError(f"{path} {reason}.", _EXPECTED)
    except OSError as error:
        raise FgvcError(f"{error.filename or path} cannot be read: {error.strerror}.") from error
    classes = _agree_on_classes(path, found) if for_training else _all_classes(path, found)
    index = {name: label for label, name in enumerate(classes)}
    listed = {
        split: [Example(p, index[c]) for c in sorted(by_class, key=natural_key) for p in sorted(by_class[c])]
        for split, by_class in found.items()
    }
    if not for_training:
        train, val, test = (tuple(listed.get(split, ())) for split in SPLITS)
        test += tuple(listed.get(None, ()))
    elif None in listed:
        train, val, test = _deal(listed[None], classes, val_share, test_share, seed)
    else:
        train, val, test = (tuple(listed.get(split, ())) for split in SPLITS)
        if not val:
            train, val = hold_out_validation(train, classes, val_share=val_share, seed=seed)
    return LabelledSet(name, root, classes, {"train": train, "val": val, "test": test})


def hold_out_validation(
    train: Sequence[Example], classes: Sequence[str], *, val_share: float = 0.1, seed: int = 0
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Divide training examples into (train, val), seeded and per class.

    Each class gives ``val_share`` of its images, rounded, at least one, and keeps at least one. What
    a class gives depends on the seed, its name and its own paths only. The order is kept.

    Raises:
        FgvcError: a class with fewer than two images, or a share outside (0, 1).
    """
    _check_shares(val_share, 0.0)
    kept, val, _ = _deal(train, classes, val_share, 0.0, seed)
    return kept, val


def missing_images(root: Path, paths: Iterable[str]) -> list[str]:
    """The paths that are no file below ``root``, in the order given."""
    return [path for path in paths if not os.path.isfile(os.path.join(root, path))]


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key that reads runs of digits as numbers; the name itself decides ties (``1``, ``01``)."""
    parts = re.split("([0-9]+)", name)
    # the odd parts are the digits; str.isdigit() would also take superscripts, which int() refuses
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _some(names: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _check_shares(val_share: float, test_share: float) -> None:
    if not (val_share > 0 and test_share >= 0 and val_share + test_share < 1):
        raise FgvcError(
            f"The validation share {val_share:g} and test share {test_share:g} leave no split to train on "
            "or none to validate on; expected val above 0, test from 0, both together below 1.",
            exit_code=EXIT_USAGE,
        )


def _deal(
    examples: Sequence[Example], classes: Sequence[str], val_share: float, test_share: float, seed: int
) -> tuple[tuple[Example, ...], ...]:
    members: list[list[Example]] = [[] for _ in classes]
    for example in examples:
        members[example.label].append(example)
    few = [name for name, own in zip(classes, members, strict=True) if len(own) < 2]
    if few:
        raise FgvcError(
            f"{len(few)} of {len(classes)} classes have fewer than 2 images, too few to split: {_some(few)}.",
            "Add images to them, or remove them from the data set.",
        )
    val: set[Example] = set()
    test: set[Example] = set()
    for name, own in zip(classes, members, strict=True):
        # one generator per class: adding a class leaves the deal of the others alone
        digest = hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()
        rng = random.Random(int.from_bytes(digest, "big"))
        # by random(), whose sequence Python promises to keep between versions; shuffle()'s it does not
        own = [example for _, example in sorted((rng.random(), example) for example in sorted(own))]
        n_val = min(max(1, int(len(own) * val_share + 0.5)), len(own) - 1)
        n_test = max(1, int(len(own) * test_share + 0.5)) if test_share else 0
        val.update(own[:n_val])
        test.update(own[n_val : min(n_val + n_test, len(own) - 1)])
    train = tuple(e for e in examples if e not in val and e not in test)
    return train, tuple(e for e in examples if e in val), tuple(e for e in examples if e in test)


def _agree_on_classes(path: Path, found: _Found) -> tuple[str, ...]:
    """The class names, from train; refuse what no model could be trained or scored on."""
    of_train = found.get(None, found.get("train", {}))
    if not any(of_train.values()):
        raise FgvcError(f"{path} holds no {'images' if None in found else 'training images'}.", _EXPECTED)
    if len(of_train) < 2:
        raise FgvcError(
            f"{path} holds one class only ({next(iter(of_train))}); expected at least 2.",
            "If the classes are one level deeper, give that folder." if path.is_dir() else None,
        )
    for split in ("val", "test"):
        unknown = [name for name, images in found.get(split, {}).items() if images and name not in of_train]
        if unknown:
            raise FgvcError(
                f"{path}: {split} has {len(unknown)} classes that train lacks: {_some(sorted(unknown))}.",
                "Use the same class names in every split.",
            )
    empty = [name for name in sorted(of_train, key=natural_key) if not of_train[name]]
    # without splits the deal names these together with the classes of one image
    if empty and None not in found:
        raise FgvcError(
            f"{path}: {len(empty)} classes have no training image: {_some(empty)}.",
            "Add images to them, or remove them from the data set.",
        )
    return tuple(sorted(of_train, key=natural_key))


def _all_classes(path: Path, found: _Found) -> tuple[str, ...]:
    names = {name for by_class in found.values() for name, images in by_class.items() if images}
    if not names:
        raise FgvcError(f"{path} holds no images.", _EXPECTED)
    return tuple(sorted(names, key=natural_key))


def _read_folder(root: Path, for_training: bool = True) -> _Found:
    tops = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    folders = [name for name in tops if name.lower() in _SPLIT_NAMES]
    if not folders:
        return {None: _list_classes(root, root)}
    splits = [_SPLIT_NAMES[name.lower()] for name in folders]
    if (for_training and "train" not in splits) or len(set(splits)) < len(splits):
        raise FgvcError(
            f"{root} has the split folders {_some(folders)}; expected train/, perhaps one val/, one test/.",
            "Rename the folders, or list the images in a .csv file.",
        )
    strays = [name for name in tops if name not in folders and any(_walk_images(root / name))]
    if strays:
        raise FgvcError(
            f"{root} has split folders ({_some(folders)}) beside other folders of images ({_some(strays)}); "
            "expected one kind or the other.",
            "Move the others away, or list the images in a .csv file.",
        )
    return {split: _list_classes(root, root / name) for split, name in zip(splits, folders, strict=True)}


def _list_classes(root: Path, top: Path) -> dict[str, list[str]]:
    """Class folder of ``top`` -> its images, relative to ``root``."""
    folders = sorted(p.name for p in top.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders and any(_walk_images(top)):
        raise FgvcError(
            f"{top} has images but no class folders; expected one folder of images per class.",
            "Move the images into folders named after their classes, or list them in a .csv file.",
        )
    return {name: [p.relative_to(root).as_posix() for p in _walk_images(top / name)] for name in folders}


def _walk_images(top: Path) -> Iterable[Path]:
    def refuse(error: OSError) -> None:
        raise error  # os.walk would pass over an unreadable folder in silence

    for folder, below, files in os.walk(top, onerror=refuse):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS:
                yield Path(folder, name)


def _read_csv(path: Path) -> _Found:
    found, line_of = read_listing(path)
    missing = missing_images(path.parent, line_of)
    if missing:
        raise FgvcError(
            f"{path}: {len(missing)} of {len(line_of)} images do not exist, first {missing[0]} on line "
            f"{line_of[missing[0]]}.",
            f"Relative paths start at {path.parent}.",
        )
    return found or {None: {}}


def read_listing(path: Path) -> tuple[_Found, dict[str, int]]:
    """A CSV of labelled images as ``load_labelled`` takes it, whether or not the images are there.

    Returns:
        split -> class name -> image paths, the split None where the CSV has none; and the line of each image.

    Raises:
        FgvcError: malformed, with the line number.
    """
    found: _Found = {}
    line_of: dict[str, int] = {}
    try:
        # -sig: spreadsheets write a byte order mark; strict: a stray quote must not swallow lines
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [cell.strip().lower() for cell in next(reader, [])]
            absent = [column for column in ("path", "label") if column not in header]
            if absent:
                raise FgvcError(
                    f"{path} line 1: no column {' and '.join(absent)} in {','.join(header)!r}.",
                    f"Write {_CSV_FORM}.",
                )
            for cells in reader:
                where = f"{path} line {reader.line_num}"
                image, label, split = _read_row(cells, header, where, path.parent)
                if image in line_of:
                    raise FgvcError(f"{where}: {image} is on line {line_of[image]} too; expected it once.")
                line_of[image] = reader.line_num
                found.setdefault(split, {}).setdefault(label, []).append(image)
    except (UnicodeDecodeError, csv.Error) as error:
        raise FgvcError(f"{path} is not a UTF-8 CSV file: {error}.", f"Write {_CSV_FORM}.") from error
    return found, line_of


def _read_row(cells: list[str], header: list[str], where: str, root: Path) -> tuple[str, str, str | None]:
    if len(cells) != len(header):
        got = f"{len(cells)} values" if cells else "an empty line"
        raise FgvcError(f"{where}: {got}, expected {len(header)} ({','.join(header)}).")
    row = {column: cell.strip() for column, cell in zip(header, cells, strict=True)}
    if not row["path"] or not row["label"]:
        raise FgvcError(f"{where}: the {'label' if row['path'] else 'path'} is empty, expected one.")
    split = row.get("split")
    if split is not None and split.lower() not in _SPLIT_NAMES:
        raise FgvcError(f"{where}: unknown split {split!r}.", "Use train, val or test.")
    image = PurePath(row["path"])
    if image.is_absolute() and image.is_relative_to(root.absolute()):
        image = image.relative_to(root.absolute())
    return image.as_posix(), row["label"], None if split is None else _SPLIT_NAMES[split.lower()]
