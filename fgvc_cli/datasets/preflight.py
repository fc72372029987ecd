"""What a training should know of its images before it starts, in bounded time; ``check_set`` looks at all."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fgvc_cli.data.listing import SPLITS, LabelledSet, first_names
from fgvc_cli.datasets.duplicates import Fingerprint, find_groups, fingerprint
from fgvc_cli.errors import FgvcError
from fgvc_cli.sources.images import Failure, read_image

SECONDS = 20.0
"""Most of the time that each look may take; what it did not reach is said."""
_TAIL_BYTES = 1 << 16
_READERS = 4
"""Threads that decode: Pillow lets the others run meanwhile."""


def look_before_training(data: LabelledSet, seconds: float = SECONDS) -> list[str]:
    """Lines for the user: images that are in several splits, and where a look ended for want of time.

    Raises:
        FgvcError: classes none of whose training images can be read.
    """
    return [*_check_classes(data, seconds), *_copies(data, seconds), *_near_copies(data, seconds)]


def _check_classes(data: LabelledSet, seconds: float) -> list[str]:
    """Read images of each class until one can be read, mostly the first."""
    images: dict[int, list[str]] = {}
    for example in data.splits["train"]:
        for label in example.labels:
            images.setdefault(label, []).append(example.path)
    end = time.monotonic() + seconds
    dead: list[str] = []
    for done, (label, paths) in enumerate(images.items()):
        if time.monotonic() > end:
            return [f"Whether images can be read was tried for {done:,} of {len(images):,} classes."]
        failures = [read_image(data.root / path) for path in paths[:1]]
        if isinstance(failures[0], Failure) and all(
            isinstance(read_image(data.root / path), Failure) for path in paths[1:]
        ):
            dead.append(f"{data.classes[label]} ({len(paths):,}, first {paths[0]}: {failures[0].error})")
    if dead:
        raise FgvcError(
            f"{len(dead)} of {len(data.classes)} classes have no training image that can be read: "
            f"{first_names(dead, 3)}.",
            "Replace their images, or remove the classes. fgvc datasets check DATA names every such file.",
        )
    return []


def _copies(data: LabelledSet, seconds: float) -> list[str]:
    """Equal files in several splits."""
    sizes: dict[int, list[tuple[str, str]]] = {}
    for split in SPLITS:
        for example in data.splits[split]:
            try:
                size = os.stat(data.root / example.path).st_size
            except OSError:
                continue
            sizes.setdefault(size, []).append((split, example.path))
    alike = [own for own in sizes.values() if len({split for split, _ in own}) > 1]
    end = time.monotonic() + seconds
    found: list[list[tuple[str, str]]] = []
    notes = []
    for done, own in enumerate(alike):
        if time.monotonic() > end:
            notes = [
                f"Equal files were looked for in {done / len(alike):.0%} of the images that may have one."
            ]
            break
        groups: dict[bytes, list[tuple[str, str]]] = {}
        for split, path in own:
            groups.setdefault(_digest(data.root / path, _TAIL_BYTES), []).append((split, path))
        for members in groups.values():
            if len({split for split, _ in members}) > 1:
                whole: dict[bytes, list[tuple[str, str]]] = {}
                for split, path in members:
                    whole.setdefault(_digest(data.root / path, None), []).append((split, path))
                found += [same for same in whole.values() if len({split for split, _ in same}) > 1]
    if found:
        shown = " = ".join(f"{path} ({split})" for split, path in found[0][:3])
        notes.insert(
            0,
            f"{len(found):,} images are in several splits as equal files, first {shown}: scores on them are "
            "not of unseen images. fgvc datasets check DATA --out copies.csv lists them, near copies too.",
        )
    return notes


def _near_copies(data: LabelledSet, seconds: float) -> list[str]:
    """Images of val and test that look like one of another split: thumbnails, other encodings, bursts.

    Small files come first: they take the least time, and copies of one size and quality lie side by side.
    """
    if sum(bool(data.splits[split]) for split in SPLITS) < 2:
        return []
    listed = [(split, example.path) for split in SPLITS for example in data.splits[split]]
    listed.sort(key=lambda item: _size(data.root / item[1]))
    end = time.monotonic() + seconds
    images: list[tuple[str, str]] = []
    prints: list[Fingerprint] = []
    reached = 0
    with ThreadPoolExecutor(_READERS) as pool:
        waiting = iter(listed)
        while time.monotonic() < end and (chunk := list(itertools.islice(waiting, 4 * _READERS))):
            for image, result in zip(
                chunk, pool.map(fingerprint, [data.root / path for _, path in chunk]), strict=True
            ):
                if isinstance(result, Fingerprint):
                    images.append(image)
                    prints.append(result)
            reached += len(chunk)
    notes = []
    pairs = [pair for group in find_groups(prints) for pair in _unlike_pairs(group, images, prints)]
    if pairs:
        like, own = (images[place] for place in pairs[0])
        held_out = sum(len(data.splits[split]) for split in SPLITS[1:])
        notes.append(
            f"{len(pairs):,} of {held_out:,} val and test images look like one of another split (a "
            f"thumbnail, another encoding, a burst), first {own[1]} ({own[0]}) ~ {like[1]} ({like[0]}): "
            "scores on them are not of unseen images. fgvc datasets check DATA --out copies.csv lists them."
        )
    if reached < len(listed):
        notes.append(
            f"Near copies in several splits were looked for among the {reached:,} smallest of "
            f"{len(listed):,} images ({max(seconds, 0):g} s); {len(listed) - reached:,} were not reached. "
            "fgvc datasets check DATA looks at all."
        )
    return notes


def _unlike_pairs(
    group: Sequence[int], images: Sequence[tuple[str, str]], prints: Sequence[Fingerprint]
) -> list[tuple[int, int]]:
    """For each val or test image of a group of images that look alike: one of another split, and the image.

    Equal files are none: ``_copies`` names them.
    """
    pairs = []
    for own in group:
        split = images[own][0]
        others = [other for other in group if images[other][0] != split]
        if split == "train" or not others or any(prints[o].digest == prints[own].digest for o in others):
            continue
        pairs.append((next((other for other in others if images[other][0] == "train"), others[0]), own))
    return pairs


def _size(path: Path) -> int:
    """Of a file, bytes; what is not there comes first and costs nothing."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _digest(path: Path, tail: int | None) -> bytes:
    """Of the last ``tail`` bytes of a file or, None, of all; what cannot be read is equal to no other."""
    try:
        with path.open("rb") as stream:
            if tail is not None:
                stream.seek(max(0, os.fstat(stream.fileno()).st_size - tail))
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError:
        return str(path).encode("utf-8", "surrogateescape")
