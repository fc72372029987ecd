"""Listings of data sets that torchvision reads: its layout, its splits, its class names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fgvc_cli.data.listing import SPLITS, Example, LabelledSet


def read_torchvision(
    root: Path, folder: str, open_split: Callable[[Path, str], Any], splits: Mapping[str, str], files: str
) -> LabelledSet:
    """A listing by torchvision, which downloads and opens nothing here.

    Args:
        root: the set's own folder.
        folder: the name that torchvision wants for it.
        open_split: (folder above ``root``, torchvision's name of a split) -> its data set.
        splits: our split -> torchvision's.
        files: the attribute of the data set with the image files; the labels are in ``_labels``.

    Raises:
        ValueError: another name, or files that torchvision misses or finds damaged.
    """
    if root.resolve().name != folder:
        raise ValueError(f"the folder has to be called {folder}, which is where torchvision looks")
    root = root.resolve()
    listed: dict[str, tuple[Example, ...]] = dict.fromkeys(SPLITS, ())
    classes: Sequence[str] = ()
    for split, name in splits.items():
        try:
            images = open_split(root.parent, name)
        except RuntimeError as error:  # what torchvision raises for what is missing or damaged
            raise ValueError(f"{name}: {error}") from error
        paths = (Path(file).relative_to(root).as_posix() for file in getattr(images, files))
        listed[split] = tuple(
            Example(path, int(label)) for path, label in zip(paths, images._labels, strict=True)
        )
        classes = images.classes
    return LabelledSet(folder, root, tuple(classes), listed)
