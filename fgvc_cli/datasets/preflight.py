"""What a training should know of its images before it starts, in bounded time; ``check_set`` looks at all."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from fgvc_cli.data.listing import SPLITS, LabelledSet, first_names
from fgvc_cli.errors import FgvcError
from fgvc_cli.sources.images import Failure, read_image

SECONDS = 20.0
"""Most of the time that each look may take; what it did not reach is said."""
_TAIL_BYTES = 1 << 16


def look_before_training(data: LabelledSet, seconds: float = SECONDS) -> list[str]:
    """Lines for the user: images that are in several splits, and where a look ended for want of time.

    Raises:
        FgvcError: classes none of whose training images can be read.
    """
    return [*_check_classes(data, seconds), *_copies(data, seconds)]


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
    """Equal files in several splits. Thumbnails and other near copies are left to ``check_set``: to find them
    each image has to be decoded, which costs as much as an epoch's reading."""
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


def _digest(path: Path, tail: int | None) -> bytes:
    """Of the last ``tail`` bytes of a file or, None, of all; what cannot be read is equal to no other."""
    try:
        with path.open("rb") as stream:
            if tail is not None:
                stream.seek(max(0, os.fstat(stream.fileno()).st_size - tail))
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError:
        return str(path).encode("utf-8", "surrogateescape")
