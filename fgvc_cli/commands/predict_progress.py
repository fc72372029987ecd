"""How predict shows itself on stderr: a live line on a terminal, a plain one now and then elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

if TYPE_CHECKING:
    from fgvc_cli.formats.rows import Block

PLAIN_EVERY_SECONDS = 10.0
WITH_PREDICTION = ("ok", "unsure")


class PredictProgress:
    """Counts rows and tells; a context manager around the run.

    Args:
        quiet: only errors.
        live: redraw a line where stderr is a terminal; not where rows go to that terminal too.
    """

    def __init__(self, console: Console, *, quiet: bool, live: bool):
        self.console = console
        self.quiet = quiet
        self.rows = 0
        """Done, those of an earlier run included."""
        self.statuses: Counter[str] = Counter()
        self.folders_left_out = 0
        self.total: Callable[[], int | None] = lambda: None
        """How many rows there will be, where that is known by now."""
        self.passed_over: Callable[[], list[str]] = list
        """Lines on files that were met and have no row."""
        self._earlier = self._retried = 0
        self._live = live and not quiet and console.is_terminal and not console.is_dumb_terminal
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
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
    def failures(self) -> Counter[str]:
        """Rows without a prediction, by status."""
        return Counter({k: n for k, n in self.statuses.items() if k not in WITH_PREDICTION and n})

    @property
    def failed(self) -> int:
        """Failed rows so far, and folders that could not be listed."""
        return self.failures.total() + self.folders_left_out

    def resumed(self, rows: int, statuses: Counter[str]) -> None:
        """Rows that an earlier run has sealed."""
        self.rows += rows
        self._earlier += rows
        self.statuses.update(statuses)
        if rows:
            again = f", {self._retried:,} of them read again" if self._retried else ""
            self.note(f"Going on after {rows:,} images of an earlier run{again}.")

    def on_block(self, block: Block) -> None:
        """Count some rows."""
        self.count(len(block), Counter(block.status))

    def on_retried(self, block: Block) -> None:
        """Rows read again, which ``resumed`` will count."""
        self._retried += len(block)

    def count(self, rows: int, statuses: Counter[str]) -> None:
        """Count rows by status."""
        self.rows += rows
        self.statuses.update(statuses)
        if self._live:
            text = self._speed() + self._outlook()
            self._progress.update(self._task, description=text, completed=self.rows, total=self.total())
        elif time.monotonic() - self._last_line > PLAIN_EVERY_SECONDS:
            self._last_line = time.monotonic()
            self.note(self._speed() + self._outlook())

    def on_unreadable(self, folder: Path | str, error: OSError) -> None:
        """A folder that could not be listed: its images have no rows, so this is said even when quiet."""
        self.folders_left_out += 1
        self._print(f"Left out folder {folder}: {error.strerror or error}")

    def note(self, text: str) -> None:
        """One line, unless quiet."""
        if not self.quiet:
            self._print(text)

    def interrupted(self, out: Path | None, kept: bool) -> None:
        """The line after Ctrl-C."""
        self._progress.stop()
        fate = "."
        if out and kept:
            fate = f"; they are kept in {out}.partial. To go on, type the same command again."
        elif out:
            fate = f"; {out} was not written. Start again with the same command."
        self._print(f"Interrupted after {self.rows:,} images{fate}")

    def summary(self, outs: Sequence[Path]) -> None:
        """The closing lines: rows, failures by status, where they are."""
        self.note(f"{self._speed()}: {self._fates()}.")
        for line in self.passed_over():
            self.note(line)
        if self.folders_left_out:
            self.note(f"Folders that could not be listed: {self.folders_left_out:,}.")
        if outs:
            self.note(f"Written to {', '.join(map(str, outs))}.")

    def merged(self, rows: int, statuses: Counter[str], outs: Sequence[Path]) -> None:
        """The closing lines of ``fgvc merge``."""
        self.rows, self.statuses = rows, statuses
        self.note(f"{rows:,} images: {self._fates()}.")
        self.note(f"Written to {', '.join(map(str, outs))}.")

    def _fates(self) -> str:
        failures, unsure = self.failures, self.statuses["unsure"]
        failed = failures.total()
        reasons = ", ".join(f"{status} {count:,}" for status, count in failures.most_common())
        reasons = f" ({reasons})" if reasons else ""
        middle = f" {unsure:,} unsure," if unsure else ""
        return f"{self.rows - failed - unsure:,} ok,{middle} {failed:,} failed{reasons}"

    def _speed(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = (self.rows - self._earlier) / seconds
        earlier = f" ({self._earlier:,} of an earlier run)" if self._earlier else ""
        return f"{self.rows:,} images{earlier} in {seconds:.1f} s, {rate:.1f} images/s"

    def _outlook(self) -> str:
        """What has failed, and the time left where the total is known."""
        text = f", {self.failures.total():,} failed" if self.failures else ""
        total, new = self.total(), self.rows - self._earlier
        if total and new:
            left = max(0, total - self.rows) * (time.monotonic() - self._start) / new
            text += f", {self.rows / total:.0%} of {total:,}, {duration(left)} left"
        return text

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False)


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
