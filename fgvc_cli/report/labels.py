"""What the photographs really show, where that is known."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.data.labelled_csv import read_listing
from fgvc_cli.errors import FgvcError
from fgvc_cli.predict.blocks import as_text


def read_labels(path: Path, names: Sequence[str]) -> list[str | None]:
    """The label of each row, None where there is none.

    Args:
        path: a CSV with the columns path and label, or a folder with one folder of photographs per class. Of
            a CSV, no photograph needs to be there.
        names: paths of the rows; relative to the folder, or to that of the CSV, or starting with it.

    Raises:
        FgvcError: labels that cannot be read, or not one of them meets a row.
    """
    if path.is_file() and path.suffix.lower() == ".csv":
        root = path.parent
        found, _ = read_listing(path)
        if found.multi_label:
            raise FgvcError(f"{path} has several labels per photograph.", "Give a column label, with one.")
        label_of = {
            as_text(image): label
            for by_class in found.by_class().values()
            for label, images in by_class.items()
            for image in images
        }
    else:
        root = path
        listed = load_labelled(path, for_training=False)
        examples = (example for split in listed.splits.values() for example in split)
        label_of = {as_text(example.path): listed.classes[example.label] for example in examples}
    prefixes = (f"{root.as_posix()}/", f"{Path(os.path.abspath(root)).as_posix()}/")
    labels = [_lookup(name, label_of, prefixes) for name in names]
    if not any(labels):
        known = next(iter(label_of), "nothing")
        raise FgvcError(
            f"{path} labels none of the {len(names):,} rows: it has {known!r}, the rows have {names[0]!r}.",
            "Write the paths in --labels as they are in the predictions.",
        )
    return labels


def _lookup(name: str, label_of: dict[str, str], prefixes: Sequence[str]) -> str | None:
    if name in label_of:
        return label_of[name]
    return next((label_of.get(name[len(p) :]) for p in prefixes if name.startswith(p)), None)
