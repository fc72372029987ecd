"""What a labelled set is: which images, which labels, which split. A pure listing, no pixel is read."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from fgvc_cli.data.taxonomy import Taxonomy
from fgvc_cli.sources.boxes import GivenBox, Region

SPLITS = ("train", "val", "test")
NO_LABEL = -1
"""``Example.label`` of an image of a multi-label set that shows nothing of what is asked for."""


class Example(NamedTuple):
    """One labelled image, or a box of one.

    ``path`` is POSIX and relative to the set's root (absolute only where a CSV names a file outside
    its own folder; ``root / path`` is right for both). ``label`` indexes ``LabelledSet.classes``, and so do
    ``more``, the other labels of an image of a multi-label set, where ``NO_LABEL`` says that it has none.
    """

    path: str
    label: int
    more: tuple[int, ...] = ()
    box: GivenBox | None = None
    banner_px: int = 0
    """Lowest rows of pixels that are no part of the image, such as a line of copyright."""

    @property
    def name(self) -> str:
        """What tells it from all others."""
        return self.path if self.box is None else f"{self.path} box {self.box.id}"

    def where(self, root: Path) -> Path | Region:
        """What to read."""
        return root / self.path if self.box is None else Region(root / self.path, self.box)

    @property
    def labels(self) -> tuple[int, ...]:
        """All labels, each once; none only in a multi-label set."""
        return () if self.label == NO_LABEL else (self.label, *self.more)


@dataclass(frozen=True)
class LabelledSet:
    """A data set as a listing.

    Args:
        name: folder or CSV name, or the key of a known set.
        root: the folder that ``Example.path`` is relative to.
        classes: class names; a label is an index into them.
        splits: ``"train"``, ``"val"`` and ``"test"``, always all three, each possibly empty.
        multi_label: whether an image may have several labels or none, each to be told by itself; then one
            with a single label is a statement too: it has no other.
        undivided: whether the source names no splits, and none were made: all images are then in ``test``.
        notes: lines that the user is to read: what was taken in another way than it is written, and what no
            score will tell.
        caveat: what has to be said beside every score on it; empty where nothing has.
        taxonomy: what the classes hang on; None where nothing says it.
        by_category: whether it is one of boxes, each of its own category, not of the class of its image.
        boxed: whether its own file says that examples are boxes.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    splits: dict[str, tuple[Example, ...]]
    multi_label: bool = False
    undivided: bool = False
    notes: tuple[str, ...] = ()
    caveat: str = ""
    taxonomy: Taxonomy | None = None
    by_category: bool = False
    boxed: bool = False

    def counts(self) -> dict[str, int]:
        """Images per split."""
        return {split: len(self.splits[split]) for split in SPLITS}

    @property
    def label_slots(self) -> int | None:
        """K, the length of a multi-hot target; None where a target is one class index."""
        return len(self.classes) if self.multi_label else None

    def label_text(self, example: Example) -> str:
        """The names of its labels, joined by ``|``."""
        return "|".join(self.classes[label] for label in example.labels)

    def sha256(self) -> str:
        """Hex digest of which image or box has which labels in which split; pixels do not count."""
        lines = [f"{s}\0{e.path}\0{self.label_text(e)}{_box_text(e)}" for s in SPLITS for e in self.splits[s]]
        return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()


def whole_images(data: LabelledSet) -> LabelledSet:
    """The images of a set of boxes, each once in its split, with the labels of all of its boxes."""
    if not any(example.box for part in data.splits.values() for example in part):
        return data
    splits: dict[str, tuple[Example, ...]] = {}
    for split, part in data.splits.items():
        images: dict[str, Example] = {}
        for example in part:
            known = images.get(example.path, example)
            first, *more = sorted({*known.labels, *example.labels}) or [NO_LABEL]
            images[example.path] = example._replace(label=first, more=tuple(more), box=None)
        splits[split] = tuple(images.values())
    return replace(data, splits=splits)


def _box_text(example: Example) -> str:
    return "" if example.box is None else f"\0{example.box.id} {example.box.edges} {example.box.margin}"


def missing_images(root: Path, paths: Iterable[str]) -> list[str]:
    """The paths that are no file below ``root``, in the order given."""
    return [path for path in paths if not os.path.isfile(os.path.join(root, path))]


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key that reads runs of digits as numbers; the name itself decides ties (``1``, ``01``)."""
    parts = re.split("([0-9]+)", name)
    # the odd parts are the digits; str.isdigit() would also take superscripts, which int() refuses
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def first_names(names: Sequence[str], limit: int = 5) -> str:
    """The first names, and how many there are more."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
