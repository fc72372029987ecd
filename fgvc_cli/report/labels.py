"""What the photographs really show, where that is known."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.data.labelled_csv import read_listing
from fgvc_cli.errors import FgvcError
from fgvc_cli.formats.rows import as_text


def read_labels(
    path: Path, names: Sequence[str], *, multi_label: bool = False
) -> list[tuple[str, ...] | None]:
    """The labels of each row, None where they are not known.

    Args:
        path: a CSV with the columns path and label, or a folder with one folder of photographs per class. Of
            a CSV, no photograph needs to be there.
        names: paths of the rows; relative to the folder, or to that of the CSV, or starting with it.
        multi_label: the CSV may have labels in place of label, with any number; else each row has one.

    Raises:
        FgvcError: labels that cannot be read, or not one of them meets a row.
    """
    if path.is_file() and path.suffix.lower() == ".csv":
        root = path.parent
        found, _ = read_listing(path)
        if found.multi_label and not multi_label:
            raise FgvcError(
                f"{path} has several labels per photograph, the predictions are of one class each.",
                "Give a column label, with one.",
            )
        by_labels = ((labels, images) for split in found.images.values() for labels, images in split.items())
        labels_of = {as_text(image): labels for labels, images in by_labels for image in images}
    else:
        root = path
        listed = load_labelled(path, for_training=False)
        examples = (example for split in listed.splits.values() for example in split)
        labels_of = {as_text(example.path): (listed.classes[example.label],) for example in examples}
    prefixes = (f"{root.as_posix()}/", f"{Path(os.path.abspath(root)).as_posix()}/")
    rows = [_lookup(name, labels_of, prefixes) for name in names]
    if all(labels is None for labels in rows):
        known = next(iter(labels_of), "nothing")
        raise FgvcError(
            f"{path} labels none of the {len(names):,} rows: it has {known!r}, the rows have {names[0]!r}.",
            "Write the paths in --labels as they are in the predictions.",
        )
    return rows


def _lookup(
    name: str, labels_of: dict[str, tuple[str, ...]], prefixes: Sequence[str]
) -> tuple[str, ...] | None:
    if name in labels_of:
        return labels_of[name]
    return next((labels_of.get(name[len(p) :]) for p in prefixes if name.startswith(p)), None)
