"""What the photographs really show, where that is known."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fgvc_cli.data.label_files import is_label_file, read_listing
from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.data.listing import first_names
from fgvc_cli.data.names import same_form
from fgvc_cli.errors import FgvcError
from fgvc_cli.formats.row_blocks import as_text
from fgvc_cli.sources.stored import is_image_name


def read_labels(
    path: Path,
    names: Sequence[str],
    *,
    multi_label: bool = False,
    on_note: Callable[[str], None] = lambda note: None,
) -> list[tuple[str, ...] | None]:
    """The labels of each row, None where they are not known. Paths are compared in Unicode NFC.

    Args:
        path: a CSV, JSONL or Parquet file with path and label, or a folder with one folder of photographs per
            class. Of a file, no photograph needs to be there.
        names: paths of the rows; relative to the folder, or to that of the file, or starting with it. A path
            of a file may lack the ending.
        multi_label: the file may have labels in place of label, with any number; else each row has one.
        on_note: gets one line where labels met no row.

    Raises:
        FgvcError: labels that cannot be read, or not one of them meets a row.
    """
    if path.is_file() and is_label_file(path):
        root = path.parent
        found, _ = read_listing(path)
        if found.multi_label and not multi_label:
            raise FgvcError(
                f"{path} has several labels per photograph, the predictions are of one class each.",
                "Give a column label, with one.",
            )
        by_labels = ((labels, images) for split in found.images.values() for labels, images in split.items())
        labels_of = {_key(image): labels for labels, images in by_labels for image in images}
    else:
        root = path
        listed = load_labelled(path, for_training=False)
        examples = (example for split in listed.splits.values() for example in split)
        labels_of = {_key(example.path): (listed.classes[example.label],) for example in examples}
    prefixes = tuple(
        same_form(prefix) for prefix in (f"{root.as_posix()}/", f"{Path(os.path.abspath(root)).as_posix()}/")
    )
    met = [_find(same_form(name), labels_of, prefixes) for name in names]
    if not any(met):
        known = next(iter(labels_of), "nothing")
        raise FgvcError(
            f"{path} labels none of the {len(names):,} rows: it has {known!r}, the rows have {names[0]!r}.",
            "Write the paths in --labels as they are in the predictions.",
        )
    unmet = sorted(labels_of.keys() - set(met))
    if unmet:
        on_note(f"{len(unmet):,} of {len(labels_of):,} labels met no row ({first_names(unmet, 3)}).")
    return [labels_of[key] if key else None for key in met]


def _key(image: str) -> str:
    return same_form(as_text(image))


def _find(name: str, labels_of: Mapping[str, object], prefixes: Sequence[str]) -> str | None:
    """The path in ``labels_of`` that a row's name means."""
    below = [name, *(name[len(prefix) :] for prefix in prefixes if name.startswith(prefix))]
    without = [os.path.splitext(own)[0] for own in below if is_image_name(own)]
    return next((own for own in (*below, *without) if own in labels_of), None)
