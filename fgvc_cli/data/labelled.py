"""Labelled sets of the user's: a folder with one folder per class, or a file that lists images.

No pixel is read. The published data sets are in ``fgvc_cli.datasets``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from fgvc_cli.data.label_files import LABEL_FORM, SPLIT_NAMES, Entry, Labels, is_label_file, read_label_file
from fgvc_cli.data.listing import NO_LABEL, SPLITS, Example, LabelledSet, first_names, natural_key
from fgvc_cli.data.listing import missing_images as missing_images
from fgvc_cli.data.names import code_points, join_forms, look_alikes
from fgvc_cli.data.split import Division, SplitBy, check_shares, deal, deal_groups, group_images
from fgvc_cli.data.split import hold_out_validation as hold_out_validation
from fgvc_cli.errors import EXIT_USAGE, FgvcError, counted
from fgvc_cli.sources.archives import index_tar
from fgvc_cli.sources.boxes import BoxFile, BoxMatch, GivenBox, Region
from fgvc_cli.sources.find import find_images
from fgvc_cli.sources.stored import Found, Pick, is_left_behind

_EXPECTED = (
    "Give a folder with one folder of images per class, a folder of WebDataset .tar files, or a .csv file "
    f"({LABEL_FORM})."
)
SHARD = ".tar"
SHARD_CLASSES = "classes.txt"
"""Beside tar shards: line i is the name of the class that a label i stands for."""
JSON_LABELS = ("label", "cls", "class")
"""Keys of ``key.json`` that may hold the label, the first of them that is there."""

_ByClass = dict[str | None, dict[str, list[Entry]]]


def load_labelled(
    path: Path,
    *,
    val_share: float = 0.1,
    test_share: float = 0.2,
    seed: int = 0,
    for_training: bool = True,
    split_by: str | None = None,
    similar_names: Literal["refuse", "keep"] = "refuse",
    box_margin: float | None = None,
) -> LabelledSet:
    """List a folder with one folder per class, tar shards, or a CSV, JSONL or Parquet file.

    Folder: class folders at the top, or below ``train/``, ``val/`` (``valid/``, ``validation/``) and
    ``test/``. Images are found at any depth below their class folder; linked folders below that,
    archives, other files, hidden names and what systems leave behind (``LEFT_BEHIND``) are passed over and
    counted in ``notes``, and so are images beside the class folders. CSV: ``path,label``
    and perhaps ``split``; UTF-8; relative paths start at the CSV's folder; ``path,labels`` with ``a|b``
    makes a multi-label set, an empty field an image with none of the labels; with ``x1,y1,x2,y2`` a line is a
    box, all of an image in one split (see ``label_files``). Classes
    are in natural order (``x2`` before ``x10``), examples ordered by class, then path.

    Tar shards (WebDataset): one plain ``.tar`` file, or those of a folder without class folders, or of its
    folders ``train/``, ``val/``, ``test/``; a shard named ``train-000.tar`` is of that split too. The label
    of ``key.jpg`` is the text of ``key.cls``, else ``label``, ``cls`` or ``class`` of ``key.json``; numbers
    stand for lines of ``classes.txt`` beside the shards, where it is there. Images without a label, and where
    a shard is damaged, are told in ``notes``.

    Without any split the images are dealt into train, val and test, seeded and per class. A val
    split that is not there is held out of train: it chooses the checkpoint, and the test split is
    touched once, at the end. A test split that is not there beside others stays empty.

    Class names are compared in Unicode NFC: spellings that differ in form only are one class.

    Args:
        path: the folder or file.
        val_share: fraction of each class for val, in [0, 1); 0: none, where the last epoch is to be kept.
            Ignored where a val split exists.
        test_share: fraction of each class for test, in [0, 1); ignored where any split exists.
        for_training: False for a set that is only to be evaluated: nothing is dealt or held out, an unsplit
            set is all test, and a class may have one image.
        seed: of the deal; the same seed and file names give the same split on every machine.
        split_by: ``folder``, ``column=NAME`` of a file or ``minutes=N``: images of one folder, value or burst
            come into one split. See ``SplitBy``. Where a val split is given there is nothing to divide, which
            is refused; where only train (and test) is, val is taken out of train so.
        similar_names: whether classes whose names differ only by case or blanks are refused in training.
        box_margin: what is cut round the boxes of a file that has them, as a fraction of their sides.

    Raises:
        FgvcError: nothing there, fewer than two classes, classes without enough images, classes
            of val or test that train lacks, class names that look alike, a split that ``split_by`` leaves
            empty or does not make, or a malformed file (with the line number).
    """
    check_shares(val_share, test_share)
    pick = Pick()
    by = SplitBy.parse(split_by) if split_by and for_training else None
    shards: list[Path] = []
    try:
        if path.is_dir() and (shards := _find_shards(path)):
            root, name, found = path, path.resolve().name, _read_shards(path, shards, pick)
        elif path.is_dir():
            if by and by.kind == "column":
                raise FgvcError(
                    f"There is no column {by.column} to split by: {path} is a folder.",
                    "Use --split-by folder or minutes=5, or list the images in a .csv file.",
                    EXIT_USAGE,
                )
            root, name, found = path, path.resolve().name, _read_folder(path, pick, for_training)
        elif path.is_file() and path.suffix.lower() == SHARD:
            root, name, found = path.parent, path.stem, _read_shards(path.parent, [path], pick)
        elif path.is_file() and is_label_file(path):
            root, name, found = path.parent, path.stem, read_label_file(path, by.column if by else None)
        else:
            reason = (
                "is neither a folder nor a .tar, .csv, .jsonl or .parquet file"
                if path.exists()
                else "does not exist"
            )
            raise FgvcError(f"{path} {reason}.", _EXPECTED)
    except OSError as error:
        raise FgvcError(f"{error.filename or path} cannot be read: {error.strerror}.") from error
    _join_names(path, found, refuse=for_training and similar_names == "refuse")
    by_class = found.by_class()
    classes = _agree_on_classes(path, by_class) if for_training else _all_classes(path, by_class)
    index = {name: label for label, name in enumerate(classes)}
    listed = {
        split: [
            Example(
                entry.path, *_indices(names, index), entry.box and entry.box._replace(margin=box_margin or 0)
            )
            for names in sorted(by_names, key=lambda names: [natural_key(name) for name in names])
            for entry in sorted(by_names[names])
        ]
        for split, by_names in found.images.items()
    }
    if not for_training:
        train, val, test = (tuple(listed.get(split, ())) for split in SPLITS)
        test += tuple(listed.get(None, ()))
    else:
        given = None not in listed
        if given and by and listed.get("val"):
            own = ", ".join(split for split in SPLITS if listed.get(split))
            raise FgvcError(
                f"--split-by has nothing to divide: {path} comes divided into {own}.",
                "Leave it out, or put all images together; fgvc datasets check finds bursts across splits.",
                EXIT_USAGE,
            )
        train, val, test = (tuple(listed.get(split, ())) for split in SPLITS)
        if not given or not val:
            undealt = train if given else listed[None]
            test_part = 0.0 if given else test_share
            if by:
                groups, notes = group_images(
                    by, root, undealt, found.groups, by_class_folders=path.is_dir() and not shards
                )
                division = deal_groups(undealt, classes, groups, val_share, test_part, seed)
                found.notes += [*notes, _division_note(by, groups, division)]
            elif found.boxes:
                division = deal_groups(
                    undealt, classes, [e.path for e in undealt], val_share, test_part, seed
                )
            else:
                division = deal(undealt, classes, val_share, test_part, seed)
            train, val = division[:2]
            test = test if given else division[2]
        found.notes += _untested(classes, val, test, asked=not given and test_share > 0)
    splits = {"train": train, "val": val, "test": test}
    undivided = None in listed and not for_training
    if found.boxes:
        count = counted(found.boxes, "line is a box", "lines are boxes")
        found.notes.append(
            f"{path.name}: {count}; each is an image of its own, cut out with a margin of "
            f"{box_margin or 0:g} of its sides."
        )
    elif box_margin is not None:
        raise _no_boxes(str(path))
    return LabelledSet(
        name,
        root,
        classes,
        splits,
        found.multi_label,
        undivided,
        (*pick.lines(), *found.notes),
        boxed=bool(found.boxes),
    )


def with_margin(labelled: LabelledSet, margin: float) -> LabelledSet:
    """The boxes of a set with another margin than its training cut round them.

    Raises:
        FgvcError: it is one of whole images.
    """
    if not any(example.box for part in labelled.splits.values() for example in part):
        raise _no_boxes(labelled.name)
    splits = {
        split: tuple(e._replace(box=e.box and e.box._replace(margin=margin)) for e in part)
        for split, part in labelled.splits.items()
    }
    return replace(labelled, splits=splits)


def _no_boxes(name: str) -> FgvcError:
    message = f"--box-margin is for boxes, and {name} has none."
    return FgvcError(message, "Add --boxes FILE, or columns x1,y1,x2,y2.", EXIT_USAGE)


def take_boxes(labelled: LabelledSet, boxes: BoxFile) -> LabelledSet:
    """The boxes of the images of a set in place of the images, each in the split of its image.

    A box is of the class of its image; of its own category where those of the set are.

    Raises:
        FgvcError: see ``BoxMatch``; no box in any split, or of a class of train; a category that is no class.
    """
    if labelled.boxed:
        message = f"{labelled.name} has boxes of its own, and --boxes {boxes.path} names others."
        raise FgvcError(message, "Leave --boxes out, or the columns x1,y1,x2,y2.", EXIT_USAGE)
    by_category = labelled.by_category
    unique = {split: [*{e.path: e for e in part}.values()] for split, part in labelled.splits.items()}
    found = [Found(labelled.root / e.path, e.path) for part in unique.values() for e in part]
    match = BoxMatch(boxes, found)
    index = {name: label for label, name in enumerate(labelled.classes)}
    splits: dict[str, tuple[Example, ...]] = {}
    without = 0
    for split, part in unique.items():
        taken: list[Example] = []
        for example in part:
            own = _boxes_of(Found(labelled.root / example.path, example.path), match)
            without += not own
            for box in own:
                if by_category and box.label not in index:
                    raise FgvcError(f"{boxes.path}: {box.label!r} is no class of {labelled.name}.")
                label, more = (index[box.label], ()) if by_category else (example.label, example.more)
                taken.append(example._replace(label=label, more=more, box=box))
        splits[split] = tuple(taken)
    if not any(splits.values()):
        raise FgvcError(f"{boxes.path} has no box of the images of {labelled.name}.", " ".join(boxes.notes))
    kept = {label for example in splits["train"] for label in example.labels}
    gone = {label for example in labelled.splits["train"] for label in example.labels} - kept
    if gone:
        names = first_names([labelled.classes[label] for label in sorted(gone)])
        raise FgvcError(
            f"{boxes.path}: {len(gone)} of {len(labelled.classes)} classes have no box to train on: {names}.",
            "Give boxes of them, a smaller --box-conf, or remove the classes.",
        )
    notes = (*labelled.notes, *boxes.notes, *match.lines, *_without_boxes(without))
    return replace(labelled, splits=splits, notes=notes)


def _boxes_of(found: Found, match: BoxMatch) -> list[GivenBox]:
    return [row.path.box for row in match.split(found) if isinstance(row.path, Region)]


def _without_boxes(count: int) -> list[str]:
    return [f"{counted(count, 'image')} without a box left out."] if count else []


def has_class_folders(root: Path) -> bool:
    """Whether a folder has images in folders, not only beside each other."""
    below = [path for path in root.iterdir() if path.is_dir() and not is_left_behind(path.name)]
    return any(next(iter(_walk_images(path, Pick())), None) for path in below)


def load_boxes_by_category(
    root: Path,
    boxes: BoxFile,
    *,
    val_share: float = 0.1,
    test_share: float = 0.2,
    seed: int = 0,
    for_training: bool = True,
    split_by: str | None = None,
) -> LabelledSet:
    """A set of boxes, each of its own category, of the images below a folder; no image is in two splits.

    Images below ``train/``, ``val/`` and ``test/`` are divided as they lie.

    Args: as ``load_labelled``.

    Raises:
        FgvcError: boxes without a category; one category only; see ``BoxMatch`` and ``deal_groups``.
    """
    check_shares(val_share, test_share)
    by = SplitBy.parse(split_by) if split_by and for_training else None
    found = list(find_images([root]))
    match = BoxMatch(boxes, found)
    taken = [(image.name, box) for image in found for box in _boxes_of(image, match)]
    bare = [name for name, box in taken if not box.label]
    if bare:
        message = (
            f"{boxes.path}: {counted(len(bare), 'box', 'boxes')} without a category, first of {bare[0]}."
        )
        raise FgvcError(message, "Name one for each box, or sort the images into folders of classes.")
    classes = tuple(sorted({box.label for _, box in taken}, key=natural_key))
    if len(classes) < 2 and for_training:
        have = f"one category only ({classes[0]})" if classes else f"no box of an image below {root}"
        raise FgvcError(f"{boxes.path} has {have}; expected at least 2 to train on.", _EXPECTED)
    index = {name: label for label, name in enumerate(classes)}
    examples = [Example(name, index[box.label], box=box) for name, box in taken]
    examples.sort(key=lambda example: (natural_key(classes[example.label]), example.path))
    tops = {name.partition("/")[0].lower() for name, _ in taken}
    notes = [*boxes.notes, *match.lines, *_without_boxes(len(found) - len({name for name, _ in taken}))]
    given = bool(tops) and tops <= SPLIT_NAMES.keys()
    splits: dict[str, tuple[Example, ...]] = {split: () for split in SPLITS}
    if given:
        of = [SPLIT_NAMES[example.path.partition("/")[0].lower()] for example in examples]
        splits = {s: tuple(e for e, own in zip(examples, of, strict=True) if own == s) for s in SPLITS}
    elif not for_training:
        splits["test"] = tuple(examples)
    undealt = examples if not given else list(splits["train"])
    if for_training and not splits["val"]:
        groups, said = [example.path for example in undealt], list[str]()
        if by:
            groups, said = group_images(by, root, undealt, {}, by_class_folders=False)
        division = deal_groups(undealt, classes, groups, val_share, 0.0 if given else test_share, seed)
        splits |= {"train": division[0], "val": division[1]}
        splits["test"] = splits["test"] if given else division[2]
        counts = ", ".join(f"{len(splits[split]):,} {split}" for split in SPLITS)
        notes += [*said, f"Boxes divided by {by.text if by else 'image'}: {counts}."]
    name, undivided = root.resolve().name, not given and not for_training
    return LabelledSet(name, root, classes, splits, undivided=undivided, notes=tuple(notes), by_category=True)


def _join_names(path: Path, found: Labels, *, refuse: bool) -> None:
    """Make one class of names that differ by their Unicode form only.

    Raises:
        FgvcError: others look alike, and are to be refused.
    """
    names = {name for by_names in found.images.values() for own in by_names for name in own}
    class_of = join_forms(names)
    joined: dict[str, list[str]] = {}
    for name, one in sorted(class_of.items()):
        joined.setdefault(one, []).append(name)
    for one, own in sorted(joined.items()):
        if len(own) > 1:
            forms = " and ".join(code_points(name) for name in own)
            found.notes.append(f"One class {one!r} in {len(own)} Unicode forms: {forms}.")
    found.rename({}, {name: one for name, one in class_of.items() if name != one})
    for first, second, *_ in look_alikes(joined):
        both = f"{code_points(first)} and {code_points(second)}"
        message = f"{path}: the class names {both} differ only by case or blanks."
        if refuse:
            raise FgvcError(
                message,
                "If they are one class, give them one name; if they are two: --set similar_names=keep",
            )
        found.notes.append(message)


def _division_note(by: SplitBy, groups: Sequence[str], division: Division) -> str:
    sizes = Counter(groups).values()
    counts = ", ".join(f"{len(part):,} {split}" for split, part in zip(SPLITS, division, strict=True) if part)
    return (
        f"Split by {by.text}: {len(sizes):,} groups of {min(sizes):,} to {max(sizes):,} images, "
        f"none in two splits: {counts}."
    )


def _untested(
    classes: Sequence[str],
    val: Sequence[Example],
    test: Sequence[Example],
    *,
    asked: bool,
) -> list[str]:
    """What no score will tell: classes without an image in a split that others have one in.

    Args:
        asked: a test split was to be made.
    """
    notes = []
    if asked and not test:
        notes.append(
            "No test split: the classes have too few images for one; val, which chooses the epoch, is all "
            "that is scored."
        )
    for split, part, what in (
        ("val", val, "no part in choosing the epoch"),
        ("test", test, "no score tells how well the model knows them"),
    ):
        there = {label for example in part for label in example.labels}
        lacking = [name for label, name in enumerate(classes) if label not in there]
        if part and lacking:
            notes.append(
                f"{len(lacking):,} of {len(classes):,} classes without a {split} image "
                f"({first_names(lacking)}): {what}."
            )
    return notes


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


def _find_shards(root: Path) -> list[Path]:
    """The tar shards of a folder; none where it has class folders."""
    folders = [p for p in root.iterdir() if p.is_dir() and not is_left_behind(p.name)]
    of_splits = [p for p in folders if p.name.lower() in SPLIT_NAMES]
    if len(of_splits) < len(folders):
        return []
    found = [p for folder in (root, *of_splits) for p in folder.iterdir() if p.suffix.lower() == SHARD]
    if any(p.is_dir() and not is_left_behind(p.name) for folder in of_splits for p in folder.iterdir()):
        return []
    return sorted(p for p in found if p.is_file() and not is_left_behind(p.name))


def _split_of(root: Path, shard: Path) -> str | None:
    word = shard.parent.name if shard.parent != root else re.split(r"[^A-Za-z]", shard.stem)[0]
    return SPLIT_NAMES.get(word.lower())


def _read_shards(root: Path, shards: Sequence[Path], pick: Pick) -> Labels:
    """The images of tar shards, each called ``shard.tar/key.jpg``.

    Raises:
        FgvcError: a label that is no line of ``classes.txt``; shards of splits beside others.
        OSError: one cannot be opened.
    """
    names = root / SHARD_CLASSES
    lines = names.read_text(encoding="utf-8-sig").split("\n") if names.is_file() else []
    classes = [line.strip() for line in lines if line.strip()]
    found = Labels()
    bare: list[str] = []
    for shard in shards:
        index = index_tar(str(shard), pick)
        own = found.images.setdefault(_split_of(root, shard), {})
        if index.damage:
            count = counted(len(index.places), "image")
            found.notes.append(f"{shard.name}: {index.damage}; {count} before that are taken.")
        labels = _sample_labels(index.texts)
        for name in index.places:
            if (label := labels.get(_key_of(name))) is None:
                bare.append(f"{shard.name}/{name}")
                continue
            if classes and label.isdecimal():
                if int(label) >= len(classes):
                    message = (
                        f"{shard}: the label of {name} is {label}, and {names} has {len(classes)} lines."
                    )
                    raise FgvcError(message, "A label i is its line i, the first being 0.")
                label = classes[int(label)]
            own.setdefault((label,), []).append(Entry((shard / name).relative_to(root).as_posix()))
    if bare:
        found.notes.append(f"{counted(len(bare), 'image')} without a label left out, first {bare[0]}.")
    if None in found.images and len(found.images) > 1:
        named = next(shard for shard in shards if not _split_of(root, shard))
        message = f"{root} has shards of splits beside others, such as {named.name}."
        raise FgvcError(message, "Name all of them train-..., val-..., test-..., or none.")
    return found


def _key_of(name: str) -> str:
    """What the files of a sample share: the name up to the first dot behind its folder."""
    folder, slash, own = name.rpartition("/")
    return folder + slash + own.partition(".")[0]


def _sample_labels(texts: Mapping[str, bytes]) -> dict[str, str]:
    """Key of a sample -> its label, of those that have one that reads."""
    labels: dict[str, str] = {}
    for name, data in sorted(texts.items(), reverse=True):  # .json before .cls, which counts
        with contextlib.suppress(ValueError):  # of JSON and of UTF-8
            value: Any = data.decode().strip()
            if name.lower().endswith(".json"):
                document = json.loads(value)
                keys = [key for key in JSON_LABELS if key in document] if isinstance(document, dict) else []
                value = document[keys[0]] if keys else None
            if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
                labels[_key_of(name)] = str(value).strip()
    return labels


def _read_folder(root: Path, pick: Pick, for_training: bool = True) -> Labels:
    tops = sorted(p.name for p in root.iterdir() if p.is_dir() and not is_left_behind(p.name))
    folders = [name for name in tops if name.lower() in SPLIT_NAMES]
    if not folders:
        return Labels({None: _list_classes(root, root, pick)})
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
    _count_beside(root, [p for p in root.iterdir() if not p.is_dir() and not pick.leaves(p.name)], pick)
    images: dict[str | None, dict[tuple[str, ...], list[Entry]]] = {
        split: _list_classes(root, root / name, pick) for split, name in zip(splits, folders, strict=True)
    }
    return Labels(images)


def _list_classes(root: Path, top: Path, pick: Pick) -> dict[tuple[str, ...], list[Entry]]:
    """Class folder of ``top`` -> its images, relative to ``root``."""
    below = [p for p in top.iterdir() if not pick.leaves(p.name)]
    folders = sorted(p.name for p in below if p.is_dir())
    _count_beside(root, [path for path in below if path.name not in folders], pick)
    if not folders and any(_walk_images(top, Pick())):
        raise FgvcError(
            f"{top} has images but no class folders; expected one folder of images per class.",
            "Move the images into folders named after their classes, or list them in a .csv file.",
        )
    walks = {name: _walk_images(top / name, pick) for name in folders}
    return {(name,): [Entry(p.relative_to(root).as_posix()) for p in walk] for name, walk in walks.items()}


def _count_beside(root: Path, files: Iterable[Path], pick: Pick) -> None:
    """Count what lies beside class folders: an image there is of no class."""
    for path in sorted(files):
        if pick.takes(path.name):
            pick.beside_classes.append(path.relative_to(root).as_posix())


def _walk_images(top: Path, pick: Pick) -> Iterable[Path]:
    def refuse(error: OSError) -> None:
        raise error  # os.walk would pass over an unreadable folder in silence

    for folder, below, files in os.walk(top, onerror=refuse):
        below[:] = [name for name in below if not pick.leaves(name)]
        pick.linked_folders += sum(os.path.islink(os.path.join(folder, name)) for name in below)
        for name in files:
            if not pick.leaves(name) and pick.takes(name):
                yield Path(folder, name)
