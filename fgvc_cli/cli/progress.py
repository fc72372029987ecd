"""What the command line says on stderr: lines, and on a terminal bars. Data goes to stdout or files."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from fgvc_cli.command import Advance, Messages

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

    def print(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False)

    @contextlib.contextmanager
    def bar(self, text: str, total: int | None = None, *, unit: str = "images") -> Iterator[Advance]:
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
            if not live and time.monotonic() - said > PLAIN_EVERY_SECONDS:
                said = time.monotonic()
                self.note(line)

        first = text
        with progress:
            yield advance


def _pace(done: int, total: float | None, seconds: float, unit: str) -> str:
    """``1,200 images in 3.2 s, 375.0 images/s, 60% of 2,000, 2 s left``; bytes in megabytes."""
    scale, many = (1e6, "MB") if unit == "bytes" else (1, unit)
    shown = f"{done / scale:,.0f} {many} in {seconds:.1f} s, {done / scale / max(seconds, 1e-9):.1f} {many}/s"
    if not total or not done:
        return shown
    left = max(0.0, total - done) * seconds / done
    return f"{shown}, {done / total:.0%} of {total / scale:,.0f}, {duration(left)} left"


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
