"""What the images really show, beside what was predicted of them: one class each, or a set of labels.

Legend: N rows, k predictions per row.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fgvc_cli.data.label_files import is_label_file, read_listing
from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.data.listing import first_names
from fgvc_cli.data.names import same_form
from fgvc_cli.errors import FgvcError
from fgvc_cli.formats.rows import TOLD_ABOVE, Table, as_text
from fgvc_cli.report.review import image_folder, image_path
from fgvc_cli.sources.stored import is_image_name


@dataclass(frozen=True)
class Truth:
    """The true label sets of the rows; of a model of one class each, sets of one."""

    sets: tuple[frozenset[int] | None, ...]
    """N sets of numbers in ``classes``; None where it is not known."""
    classes: tuple[str, ...]
    """Those of the model first, then what only the labels have."""

    @property
    def known(self) -> np.ndarray:
        """(N,) bool: rows with a label, or a statement that they have none."""
        return np.array([labels is not None for labels in self.sets], bool)

    def wrong(self, table: Table) -> np.ndarray:
        """(N,) bool: rows with a prediction and a known truth that differ: in the best class, or of a
        multi-label model in any label."""
        told = told_sets(table)
        differs = (labels is not None and labels != own for labels, own in zip(self.sets, told, strict=True))
        return table.answered & np.fromiter(differs, bool, len(told))

    def columns(self) -> dict[str, np.ndarray]:
        """``truth_count`` (N,) int32, -1 where it is not known, and ``truth_labels`` int32, row after row."""
        counts = [-1 if labels is None else len(labels) for labels in self.sets]
        flat = [label for labels in self.sets for label in sorted(labels or ())]
        return {"truth_count": np.array(counts, np.int32), "truth_labels": np.array(flat, np.int32)}


def build_truth(table: Table, labels: Sequence[tuple[str, ...] | None]) -> Truth:
    """Labels as numbers, with a class of its own for each name that the model does not know."""
    classes = list(table.info.classes)
    # Compared in Unicode NFC: the same name may be written in two ways.
    number = {same_form(name): i for i, name in enumerate(classes)}
    for name in (name for names in labels for name in names or ()):
        if number.setdefault(same_form(name), len(classes)) == len(classes):
            classes.append(name)
    sets = (
        None if names is None else frozenset(number[same_form(name)] for name in names) for names in labels
    )
    return Truth(tuple(sets), tuple(classes))


def told_sets(table: Table) -> list[frozenset[int]]:
    """What each row tells: its best class, or of a multi-label model all labels above ``TOLD_ABOVE`` among
    the k; nothing without a prediction."""
    index, prob = table.rows.topk_index, table.rows.topk_prob
    if not table.info.multi_label:
        return [frozenset((best,)) if best >= 0 else frozenset() for best in index[:, 0].tolist()]
    told = (index >= 0) & (prob > TOLD_ABOVE)
    return [frozenset(row[mask].tolist()) for row, mask in zip(index, told, strict=True)]


def cut_rows(table: Table) -> int:
    """Rows of a multi-label model all of whose k labels are told, so that more may have been."""
    if not table.info.multi_label or table.info.top_k >= len(table.info.classes):
        return 0
    return int((table.rows.topk_prob[:, -1] > TOLD_ABOVE).sum())


def read_labels(
    path: Path,
    names: Sequence[str],
    *,
    images: str | None = None,
    multi_label: bool = False,
    on_note: Callable[[str], None] = lambda note: None,
) -> list[tuple[str, ...] | None]:
    """The labels of each row, None where they are not known. Paths are compared in Unicode NFC.

    Args:
        path: a CSV, JSONL or Parquet file with path and label, or a folder with one folder of images per
            class. Of a file, no image needs to be there.
        names: paths of the rows; relative to the folder, or to that of the file, or starting with it. A path
            of a file may lack the ending.
        images: the folder that the rows' paths are relative to, where that is known: a file may write paths
            from its own folder, as a review does.
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
                f"{path} has several labels per image, the predictions are of one class each.",
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
    folder = image_folder(images, root)
    met = [_find(same_form(name), labels_of, prefixes, same_form(image_path(folder, name))) for name in names]
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


def _find(name: str, labels_of: Mapping[str, object], prefixes: Sequence[str], whole: str) -> str | None:
    """The path in ``labels_of`` that a row's name means.

    Args:
        whole: the name from the folder of the labels, if that is known.
    """
    below = [whole, name, *(name[len(prefix) :] for prefix in prefixes if name.startswith(prefix))]
    without = [os.path.splitext(own)[0] for own in below if is_image_name(own)]
    return next((own for own in (*below, *without) if own in labels_of), None)
