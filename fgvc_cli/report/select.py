"""What to look at next: the rows that a model doubts most, and of these such as differ from each other.

Legend: N rows, C candidates, D embedding width, n rows to pick.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fgvc_cli.command import MessageOptions, Messages, command, options
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.files import AtomicFile
from fgvc_cli.formats.csv_rows import csv_cells, csv_columns, csv_lines
from fgvc_cli.formats.outputs import read_embeddings, read_table
from fgvc_cli.formats.rows import Table
from fgvc_cli.report.page import read_labels
from fgvc_cli.report.pictures import given_boxes, recorded_images
from fgvc_cli.report.review import take_rows

Doubt = Literal["margin", "entropy", "novelty"]


@options
class SelectOptions(MessageOptions):
    """What ``fgvc select`` is asked for."""

    predictions: Path
    """What ``fgvc predict`` wrote; ``.h5`` or ``.parquet`` with ``--embeddings`` for rows that differ."""
    count: Annotated[int, Field(ge=1)] = 200
    """Rows to pick, at most."""
    out: Path | None = None
    """CSV to appear; None: to stdout."""
    doubt: Doubt = "margin"
    """margin: the two best classes are close; entropy: the probability is spread over many; novelty: the
    image is unlike those of the training."""
    pool: Annotated[int, Field(ge=1)] = 2
    """How many times ``count`` of the most doubtful rows are candidates; 1 picks by doubt alone."""
    reviewed: Path | None = None
    """Labels that are known, such as ``reviewed.csv``: these rows are left out, rows like them come last."""
    overwrite: bool = False
    """Replace ``out`` if it is there."""


@dataclass(frozen=True)
class Selection:
    """Rows that were picked, the first the most worth a look."""

    rows: tuple[int, ...]
    """Their numbers in the file."""
    paths: tuple[str, ...]
    doubt: tuple[float, ...]
    """See ``doubt_of``; the column ``novelty`` where that was asked for."""
    out: Path | None
    """The CSV that lists them; None: stdout."""


def doubt_of(prob: np.ndarray, kind: Literal["margin", "entropy"]) -> np.ndarray:
    """Doubt of each row (N,) in [0, 1] by its k best probabilities (N, k); -1 where there are none.

    ``margin``: one less the distance of the two best (Scheffer et al., 2001), of one class what it leaves
    to the others. ``entropy``: of the k best and all that they leave as one more, over the largest that it
    could be.
    """
    known = np.nan_to_num(prob.astype(np.float64))
    if kind == "margin" and known.shape[1] > 1:
        doubt = 1 - (known[:, 0] - known[:, 1])
    elif kind == "margin":
        doubt = 1 - known[:, 0]
    else:
        all_of = np.column_stack([known, np.clip(1 - known.sum(axis=1), 0, 1)])
        doubt = -(all_of * np.log(np.where(all_of > 0, all_of, 1))).sum(axis=1) / np.log(all_of.shape[1])
    return np.where(np.isnan(prob[:, 0]), -1.0, doubt)


def spread(embeddings: np.ndarray, count: int, known: np.ndarray | None = None) -> list[int]:
    """Numbers of ``count`` rows that lie far from each other: k-center greedy (Sener and Savarese, 2018).

    Each is the one farthest from those picked before; where there is none, the first row. Ties go to the
    first.

    Args:
        embeddings: (C, D); compared by their directions.
        known: (M, D) that count as picked before.
    """
    points = _directions(embeddings)
    nearest = np.full(len(points), np.inf)
    for part in np.array_split(_directions(known), max(1, len(known) // 1000)) if known is not None else ():
        nearest = np.minimum(nearest, (1 - points @ part.T).min(axis=1, initial=np.inf))
    picked: list[int] = []
    while len(picked) < min(count, len(points)):
        # Infinite distances are all alike: the first row.
        picked.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, 1 - points @ points[picked[-1]])
        nearest[picked] = -np.inf
    return picked


def _directions(embeddings: np.ndarray) -> np.ndarray:
    values = embeddings.astype(np.float32)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(lengths > 0, lengths, 1)


@command(SelectOptions)
def select(options: SelectOptions) -> Selection:
    """Pick the rows to look at next, by doubt and, where the file has embeddings, by how they differ.

    Deterministic. The CSV has the columns of ``fgvc predict``.

    Raises:
        FgvcError: predictions or labels that cannot be read, no row that is left to look at, an output that
            is there already.
    """
    messages = options.speaker
    if options.out is not None and options.out.suffix.lower() != ".csv":
        raise FgvcError(f"--out got {str(options.out)!r}, expected a name ending in .csv.", None, EXIT_USAGE)
    table = read_table(options.predictions)
    if table.info.multi_label:
        raise FgvcError(
            f"{options.predictions} is of a model that tells several labels per image; select ranks rows by "
            "one class of each."
        )
    doubt = _doubt(table, options)
    doubt[~table.answered] = -1
    seen = _seen(table, options.reviewed, messages)
    doubt[seen] = -1
    order = np.argsort(-doubt, kind="stable")[: int((doubt >= 0).sum())]
    if not len(order):
        left = "all with a prediction are reviewed" if seen.any() else "none has a prediction"
        raise FgvcError(f"{options.predictions} has no row left to look at: {left}.")
    candidates = order[: options.count * options.pool]
    picked = order[: options.count]
    if options.pool > 1 and len(candidates) > options.count:
        embeddings = read_embeddings(options.predictions, candidates)
        if embeddings is None:
            messages.note(
                f"{options.predictions.name} has no embeddings: by doubt alone. fgvc predict --out preds.h5 "
                "--embeddings stores them."
            )
        else:
            known = read_embeddings(options.predictions, np.flatnonzero(seen)) if seen.any() else None
            picked = candidates[spread(embeddings, options.count, known)]
    chosen = take_rows(table, picked.tolist())
    _write(chosen, options)
    if len(picked) < options.count:
        messages.note(f"There are only {len(picked):,} rows to look at.")
    if options.out is not None:
        messages.note(
            f"{len(picked):,} of {len(order):,} rows in {options.out}; to look at them: fgvc report "
            f"{options.predictions} --review --only {options.out}"
        )
    return Selection(
        tuple(picked.tolist()), tuple(chosen.rows.path), tuple(doubt[picked].tolist()), options.out
    )


def _doubt(table: Table, options: SelectOptions) -> np.ndarray:
    """(N,); -1 where nothing is known of it."""
    if options.doubt != "novelty":
        return doubt_of(table.rows.topk_prob, options.doubt)
    if "novelty" not in table.info.columns:
        raise FgvcError(
            f"{options.predictions} has no column novelty.",
            "It takes a model that has it: fgvc eval --split val --fit-novelty.",
        )
    return np.nan_to_num(np.array(table.rows.column("novelty")), nan=-1)


def _seen(table: Table, reviewed: Path | None, messages: Messages) -> np.ndarray:
    """(N,) bool: rows whose label is known."""
    if reviewed is None:
        return np.zeros(len(table.rows), bool)
    several = table.info.multi_label
    labels = read_labels(
        reviewed,
        table.rows.path,
        boxes=given_boxes(table),
        images=recorded_images(table),
        multi_label=several,
        on_note=messages.note,
    )
    return np.array([label is not None for label in labels])


def _write(table: Table, options: SelectOptions) -> None:
    info = table.info
    lines = [
        csv_columns(info.layout),
        *(csv_cells(row, info.layout) for row in table.rows.rows(info)),
    ]
    if options.out is None:
        csv_lines(sys.stdout.buffer, lines)
        sys.stdout.buffer.flush()
        return
    with AtomicFile(options.out, overwrite=options.overwrite) as stream:
        csv_lines(stream, lines)
