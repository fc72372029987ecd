"""Labelled sets of the user's: a folder with one folder per class, or a CSV. No pixel is read.

The published data sets are in ``fgvc_cli.datasets``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from fgvc_cli.data.labelled_csv import CSV_FORM, SPLIT_NAMES, Found, read_csv
from fgvc_cli.data.listing import NO_LABEL, SPLITS, Example, LabelledSet, first_names, natural_key
from fgvc_cli.data.listing import missing_images as missing_images
from fgvc_cli.data.split import check_shares, deal
from fgvc_cli.data.split import hold_out_validation as hold_out_validation
from fgvc_cli.errors import FgvcError
from fgvc_cli.sources.stored import Pick, is_image_name, is_left_behind

_EXPECTED = f"Give a folder with one folder of images per class, or a .csv file ({CSV_FORM})."

_ByClass = dict[str | None, dict[str, list[str]]]


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
    ``test/``. Images are found at any depth below their class folder; linked folders below that,
    archives, other files, hidden names and what systems leave behind (``LEFT_BEHIND``) are passed over and
    counted in ``passed_over``; images beside the class folders are left out. CSV: ``path,label``
    and perhaps ``split``; UTF-8; relative paths start at the CSV's folder; ``path,labels`` with ``a|b``
    makes a multi-label set, an empty field an image with none of the labels (see ``labelled_csv``). Classes
    are in natural order (``x2`` before ``x10``), examples ordered by class, then path.

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
    check_shares(val_share, test_share)
    pick = Pick()
    try:
        if path.is_dir():
            root, name, found = path, path.resolve().name, _read_folder(path, pick, for_training)
        elif path.is_file() and path.suffix.lower() == ".csv":
            root, name, found = path.parent, path.stem, read_csv(path)
        else:
            reason = "is neither a folder nor a .csv file" if path.exists() else "does not exist"
            raise FgvcError(f"{path} {reason}.", _EXPECTED)
    except OSError as error:
        raise FgvcError(f"{error.filename or path} cannot be read: {error.strerror}.") from error
    by_class = found.by_class()
    classes = _agree_on_classes(path, by_class) if for_training else _all_classes(path, by_class)
    index = {name: label for label, name in enumerate(classes)}
    listed = {
        split: [
            Example(image, *_indices(names, index))
            for names in sorted(by_names, key=lambda names: [natural_key(name) for name in names])
            for image in sorted(by_names[names])
        ]
        for split, by_names in found.images.items()
    }
    if not for_training:
        train, val, test = (tuple(listed.get(split, ())) for split in SPLITS)
        test += tuple(listed.get(None, ()))
    elif None in listed:
        train, val, test = deal(listed[None], classes, val_share, test_share, seed)
    else:
        train, val, test = (tuple(listed.get(split, ())) for split in SPLITS)
        if not val:
            train, val = hold_out_validation(train, classes, val_share=val_share, seed=seed)
    splits = {"train": train, "val": val, "test": test}
    undivided = None in listed and not for_training
    passed_over = tuple(pick.lines())
    return LabelledSet(name, root, classes, splits, found.multi_label, undivided, passed_over)


def _indices(names: tuple[str, ...], index: dict[str, int]) -> tuple[int, tuple[int, ...]]:
    if not names:
        return NO_LABEL, ()
    first, *more = sorted(index[name] for name in names)
    return first, tuple(more)


def _agree_on_classes(path: Path, found: _ByClass) -> tuple[str, ...]:
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
                f"{path}: {split} has {len(unknown)} classes that train lacks: "
                f"{first_names(sorted(unknown))}.",
                "Use the same class names in every split.",
            )
    empty = [name for name in sorted(of_train, key=natural_key) if not of_train[name]]
    # without splits the deal names these together with the classes of one image
    if empty and None not in found:
        raise FgvcError(
            f"{path}: {len(empty)} classes have no training image: {first_names(empty)}.",
            "Add images to them, or remove them from the data set.",
        )
    return tuple(sorted(of_train, key=natural_key))


def _all_classes(path: Path, found: _ByClass) -> tuple[str, ...]:
    names = {name for by_class in found.values() for name, images in by_class.items() if images}
    if not names:
        raise FgvcError(f"{path} holds no images.", _EXPECTED)
    return tuple(sorted(names, key=natural_key))


def _read_folder(root: Path, pick: Pick, for_training: bool = True) -> Found:
    tops = sorted(p.name for p in root.iterdir() if p.is_dir() and not is_left_behind(p.name))
    folders = [name for name in tops if name.lower() in SPLIT_NAMES]
    if not folders:
        return Found({None: _list_classes(root, root, pick)})
    splits = [SPLIT_NAMES[name.lower()] for name in folders]
    if (for_training and "train" not in splits) or len(set(splits)) < len(splits):
        raise FgvcError(
            f"{root} has the split folders {first_names(folders)}; "
            "expected train/, perhaps one val/, one test/.",
            "Rename the folders, or list the images in a .csv file.",
        )
    strays = [name for name in tops if name not in folders and any(_walk_images(root / name, Pick()))]
    if strays:
        raise FgvcError(
            f"{root} has split folders ({first_names(folders)}) beside other folders of images "
            f"({first_names(strays)}); expected one kind or the other.",
            "Move the others away, or list the images in a .csv file.",
        )
    images: dict[str | None, dict[tuple[str, ...], list[str]]] = {
        split: _list_classes(root, root / name, pick) for split, name in zip(splits, folders, strict=True)
    }
    return Found(images)


def _list_classes(root: Path, top: Path, pick: Pick) -> dict[tuple[str, ...], list[str]]:
    """Class folder of ``top`` -> its images, relative to ``root``."""
    below = [p for p in top.iterdir() if not pick.leaves(p.name)]
    folders = sorted(p.name for p in below if p.is_dir())
    for path in below:
        if path.name not in folders and not is_image_name(path.name):
            pick.takes(path.name)
    if not folders and any(_walk_images(top, Pick())):
        raise FgvcError(
            f"{top} has images but no class folders; expected one folder of images per class.",
            "Move the images into folders named after their classes, or list them in a .csv file.",
        )
    walks = {name: _walk_images(top / name, pick) for name in folders}
    return {(name,): [p.relative_to(root).as_posix() for p in walk] for name, walk in walks.items()}


def _walk_images(top: Path, pick: Pick) -> Iterable[Path]:
    def refuse(error: OSError) -> None:
        raise error  # os.walk would pass over an unreadable folder in silence

    for folder, below, files in os.walk(top, onerror=refuse):
        below[:] = [name for name in below if not pick.leaves(name)]
        pick.linked_folders += sum(os.path.islink(os.path.join(folder, name)) for name in below)
        for name in files:
            if not pick.leaves(name) and pick.takes(name):
                yield Path(folder, name)
