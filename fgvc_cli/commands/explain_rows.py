"""The models of a ``fgvc explain``: from what ``--weights`` got to labelled rows of a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fgvc_cli.engine.weights import MODEL_FILE
from fgvc_cli.errors import EXIT_USAGE, FgvcError


@dataclass(frozen=True)
class ModelRow:
    """One model to explain."""

    label: str
    """In pictures, tables and file names."""
    weights: str | None
    """For ``open_weights``."""


def expand_weights(given: Sequence[str]) -> list[ModelRow]:
    """One row per model; none given is the default model.

    A text is an embedded model, a checkpoint, the folder of a training, or the folder of a table
    (``fgvc train --ablate``), which stands for all its rows with the first seed. ``LABEL=`` in front names
    a row.

    Raises:
        FgvcError: a folder without a training, two rows of one label.
    """
    if not given:
        return [ModelRow("", None)]
    rows = [row for text in given for row in _expand(text)]
    labels = [row.label for row in rows]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise FgvcError(
            f"Two --weights are called {twice!r}.", f"Name them: --weights 'A={rows[0].weights}'", EXIT_USAGE
        )
    return rows


def _expand(text: str) -> list[ModelRow]:
    label, equals, rest = text.partition("=")
    if equals and label and rest and not Path(text).exists() and "/" not in label:
        rows = _expand(rest)
        if len(rows) > 1:
            raise FgvcError(
                f"--weights {text!r} names {len(rows)} models.", "Leave the name out.", EXIT_USAGE
            )
        return [ModelRow(label, rows[0].weights)]
    path = Path(text)
    if not path.is_dir():
        # Trainings call their file all the same; the folder says which one it is.
        named = path.resolve().parent.name if path.name == MODEL_FILE else path.stem
        return [ModelRow(named if path.suffix else text, text)]
    if (path / MODEL_FILE).is_file():
        return [ModelRow(path.resolve().name, str(path / MODEL_FILE))]
    return _table_rows(path)


def _table_rows(folder: Path) -> list[ModelRow]:
    """The ended trainings of a table with its first seed, in the table's order."""
    from fgvc_cli.commands.run_folder import finished_run
    from fgvc_cli.engine.ablations import order_variants

    seeds: dict[int, list[str]] = {}
    for run in sorted(folder.glob("*-s*")):
        variant, _, seed = run.name.rpartition("-s")
        if seed.isdecimal() and finished_run(run) is not None:
            seeds.setdefault(int(seed), []).append(variant)
    if not seeds:
        raise FgvcError(
            f"--weights {folder}: a folder without a finished training.",
            "Expected a model.safetensors, the folder of a training, or that of fgvc train --ablate.",
        )
    first = min(seeds)
    names = order_variants(seeds[first])
    return [ModelRow(name, str(folder / f"{name}-s{first}" / MODEL_FILE)) for name in names]
