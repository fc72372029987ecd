"""What the command line says on stderr: lines, and on a terminal bars. Data goes to stdout or files."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from fgvc_cli.command import Advance, Messages
from fgvc_cli.errors import counted, duration

NO_FAILURE = ("ok", "unsure", "unknown", "no_box")
PLAIN_EVERY_SECONDS = 10.0
"""Where stderr is no terminal, a line this often says how far the work is."""


def stderr_console() -> Console:
    """A console on stderr; plain without a terminal, and colourless under ``NO_COLOR``."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


class ConsoleMessages(Messages):
    """Lines on stderr, and bars that are redrawn where it is a terminal, else a plain line now and then."""

    def __init__(self, *, quiet: bool = False):
        super().__init__(quiet=quiet)
        self.console = stderr_console()
        self.seconds = 0.0
        """How long the last bar was there."""

    def print(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False)

    @contextlib.contextmanager
    def bar(
        self, text: str, total: int | None = None, *, unit: str = "images", lines: bool = False
    ) -> Iterator[Advance]:
        """Draw how far the work is: how much of it, how fast, the time left where the total is known."""
        live = not self.quiet and self.console.is_terminal and not self.console.is_dumb_terminal
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=20))
        progress = Progress(
            *columns, console=self.console, transient=True, disable=not live, redirect_stdout=False
        )
        task = progress.add_task(text, total=total)
        start = said = time.monotonic()
        done = 0

        def advance(count: int = 1, *, total: int | None = None, text: str | None = None) -> None:
            nonlocal done, said
            done += count
            if total is not None:
                progress.update(task, total=total)
            known = progress.tasks[0].total
            line = f"{text or first}: {_pace(done, known, time.monotonic() - start, unit)}"
            progress.update(task, completed=done, description=line)
            if lines and not live and time.monotonic() - said > PLAIN_EVERY_SECONDS:
                said = time.monotonic()
                self.note(line)

        first = text
        try:
            with progress:
                yield advance
        finally:
            self.seconds = time.monotonic() - start

    def summary(self, statuses: Mapping[str, int], outs: Sequence[Path], *, unread_folders: int = 0) -> int:
        """Say how many images there were, how fast, what failed and where the rest is.

        Args:
            statuses: status of a row -> how many.
            unread_folders: that could not be listed, so that their images have no row.

        Returns:
            How many failed, those folders included.
        """
        rows, doubted = sum(statuses.values()), {n: statuses.get(n, 0) for n in ("unsure", "unknown")}
        without = statuses.get("no_box", 0)
        failures = {k: n for k, n in statuses.items() if k not in NO_FAILURE and n}
        failed = sum(failures.values())
        reasons = ", ".join(f"{k} {n:,}" for k, n in sorted(failures.items(), key=lambda item: -item[1]))
        middle = "".join(f" {count:,} {name}," for name, count in doubted.items() if count)
        middle += f" {counted(without, 'image')} without a box," if without else ""
        fine = rows - failed - sum(doubted.values()) - without
        fates = f"{fine:,} ok,{middle} {failed:,} failed{f' ({reasons})' if reasons else ''}"
        self.note(f"{_pace(rows, None, self.seconds, 'images')}: {fates}.")
        if unread_folders:
            self.note(f"Folders that could not be listed: {unread_folders:,}.")
        self.note(f"Written to {', '.join(map(str, outs))}.")
        return failed + unread_folders


def spare_cores() -> None:
    """Let a thread of torch that waits for another give up its core, which a reader of images can use.

    Call it before torch is imported, which reads the setting once.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _pace(done: int, total: float | None, seconds: float, unit: str) -> str:
    """``1,200 images in 3.2 s, 375.0 images/s, 60% of 2,000, 2 s left``; bytes in megabytes."""
    scale, many = (1e6, "MB") if unit == "bytes" else (1, unit)
    shown = f"{done / scale:,.0f} {many} in {seconds:.1f} s, {done / scale / max(seconds, 1e-9):.1f} {many}/s"
    if not total or not done:
        return shown
    left = max(0.0, total - done) * seconds / done
    return f"{shown}, {done / total:.0%} of {total / scale:,.0f}, {duration(left)} left"
