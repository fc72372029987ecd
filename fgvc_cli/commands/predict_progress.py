"""How predict shows itself on stderr: a live line on a terminal, a plain one now and then elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

if TYPE_CHECKING:
    from fgvc_cli.predict.rows import Row

PLAIN_EVERY_SECONDS = 10.0


class PredictProgress:
    """Counts rows and tells; a context manager around the run.

    The total is unknown, as folders are walked lazily.

    Args:
        quiet: only errors.
        live: redraw a line where stderr is a terminal; not where rows go to that terminal too.
    """

    def __init__(self, console: Console, *, quiet: bool, live: bool):
        self.console = console
        self.quiet = quiet
        self.rows = 0
        self.failures: Counter[str] = Counter()
        self.folders_left_out = 0
        self._live = live and not quiet and console.is_terminal and not console.is_dumb_terminal
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not self._live,
            redirect_stdout=False,
        )
        self._task = self._progress.add_task("starting", total=None)
        self._start = self._last_line = time.monotonic()

    def __enter__(self) -> PredictProgress:
        self._start = self._last_line = time.monotonic()
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    @property
    def failed(self) -> int:
        """Failed rows so far, and folders that could not be listed."""
        return self.failures.total() + self.folders_left_out

    def on_row(self, row: Row) -> None:
        """Count one row."""
        self.rows += 1
        if not row.ok:
            self.failures[row.status] += 1
        if self._live:
            self._progress.update(self._task, description=self._speed())
        elif time.monotonic() - self._last_line > PLAIN_EVERY_SECONDS:
            self._last_line = time.monotonic()
            self.note(self._speed())

    def on_unreadable(self, folder: Path, error: OSError) -> None:
        """A folder that could not be listed: its images have no rows, so this is said even when quiet."""
        self.folders_left_out += 1
        self._print(f"Left out folder {folder}: {error.strerror or error}")

    def note(self, text: str) -> None:
        """One line, unless quiet."""
        if not self.quiet:
            self._print(text)

    def interrupted(self, out: Path | None) -> None:
        """The line after Ctrl-C."""
        fate = f"; {out} was not written. Start again with the same command." if out else "."
        self._print(f"Interrupted after {self.rows:,} images{fate}")

    def summary(self, out: Path | None) -> None:
        """The closing lines: rows, failures by status, where they are."""
        failed = self.failures.total()
        reasons = ", ".join(f"{status} {count:,}" for status, count in self.failures.most_common())
        reasons = f" ({reasons})" if reasons else ""
        self.note(f"{self._speed()}: {self.rows - failed:,} ok, {failed:,} failed{reasons}.")
        if self.folders_left_out:
            self.note(f"Folders that could not be listed: {self.folders_left_out:,}.")
        if out:
            self.note(f"Written to {out}.")

    def _speed(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        return f"{self.rows:,} images in {seconds:.1f} s, {self.rows / seconds:.1f} images/s"

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False)
