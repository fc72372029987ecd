"""fgvc datasets: make the Aviary, list the known sets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from fgvc_cli.commands.console import stderr_console
from fgvc_cli.errors import EXIT_OK

if TYPE_CHECKING:
    from fgvc_cli.datasets.registry import Presence

_NO_ROOT = "Give --data-root DIR or set FGVC_DATA=DIR to see which are here."
_PIPE_WIDTH = 200
"""Columns where stdout is no terminal: one line for each set."""


def make_aviary(out: Path, *, species: int, train: int, val: int, test: int, size_px: int, seed: int) -> int:
    """Render the Aviary into a new folder.

    Raises:
        FgvcError: a folder in use, counts out of range.
    """
    from fgvc_cli.aviary.dataset import write_aviary

    console = stderr_console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("rendering birds", total=None)
        count = write_aviary(
            out,
            species=species,
            train=train,
            val=val,
            test=test,
            size_px=size_px,
            seed=seed,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    print(f"{count:,} pictures in {out}, object and part boxes in {out / 'boxes.csv'}")
    return EXIT_OK


def list_known(data_root: str | None, *, as_json: bool) -> int:
    """Print the known data sets: which are here, with their counts checked, and how to get the others."""
    from fgvc_cli.datasets.registry import default_root, look_for_sets

    root = Path(data_root) if data_root else default_root()
    found = look_for_sets(root)
    if as_json:
        print(json.dumps([_as_json(presence) for presence in found], indent=2))
        return EXIT_OK
    table = Table(box=None, pad_edge=False)
    for column in ("name", "here", "classes", "train", "val", "test", "where, or how to get it"):
        numbers = column in ("classes", "train", "val", "test")
        table.add_column(column, overflow="fold", no_wrap=numbers, justify="right" if numbers else "left")
    for presence in found:
        entry = presence.entry
        counts = (f"{count:,}" if count else "-" for count in (entry.train, entry.val, entry.test))
        here = {"ok": "yes", "absent": "no", "broken": "broken"}[presence.state]
        table.add_row(entry.key, here, str(entry.classes), *counts, escape(_where(presence)))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    with console.capture() as text:
        console.print(table)
    print("\n".join(line.rstrip() for line in text.get().splitlines()))
    print(f"Looked below {root}; counts are checked." if root else _NO_ROOT)
    print("val -: held out of train. test -: labels unpublished, a fifth of train is dealt as test.")
    return EXIT_OK


def _where(presence: Presence) -> str:
    if presence.state == "ok":
        return str(presence.root)
    if presence.state == "broken":
        return presence.problem
    entry = presence.entry
    return f"fgvc datasets get {entry.key}" if entry.archives else f"from {entry.source}, as {entry.tree}"


def _as_json(presence: Presence) -> dict[str, Any]:
    entry = presence.entry
    return {
        "name": entry.key,
        "title": entry.title,
        "state": presence.state,
        "root": str(presence.root) if presence.root else None,
        "problem": presence.problem or None,
        "classes": entry.classes,
        "train": entry.train,
        "val": entry.val,
        "test": entry.test,
        "dealt_test": entry.dealt_test,
        "tree": entry.tree,
        "source": entry.source,
        "downloadable": bool(entry.archives),
    }
