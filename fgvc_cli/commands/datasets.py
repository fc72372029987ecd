"""fgvc datasets: make the Aviary, list the known sets."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fgvc_cli.commands.console import stderr_console
from fgvc_cli.errors import EXIT_OK


def make_aviary(out: Path, *, species: int, train: int, val: int, test: int, size_px: int, seed: int) -> int:
    """Render the Aviary into a new folder.

    Raises:
        FgvcError: a folder in use, counts out of range.
    """
    from fgvc_cli.data.aviary import write_aviary

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


def list_known() -> int:
    """Print the known data sets, their expected counts and where they are to be had."""
    from fgvc_cli.data.known import known_sets

    table = Table(title="Known data sets: --dataset NAME --data-root FOLDER", title_justify="left")
    for column in ("name", "classes", "train", "test", "to be had at"):
        table.add_column(
            column, overflow="fold", justify="right" if column in ("classes", "train", "test") else "left"
        )
    for entry in known_sets():
        table.add_row(entry.key, str(entry.classes), f"{entry.train:,}", f"{entry.test:,}", entry.source)
    Console(highlight=False).print(table)
    return EXIT_OK
