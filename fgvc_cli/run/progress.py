"""What a run tells while it works and what it comes to, in one process or in several on one machine
(``fgvc predict --devices N``)."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainValidator
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from fgvc_cli.command import Messages
from fgvc_cli.errors import EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, FgvcError, counted, duration
from fgvc_cli.formats.rows import NO_BOX, UNKNOWN, UNSURE, Block, Row, has_failed
from fgvc_cli.store import as_path

PLAIN_EVERY_SECONDS = 10.0

STOP_SECONDS = 30.0
"""How long a process may take to commit what it has before it is ended."""

Work = Callable[..., None]
"""Runs in a process of its own as ``work(pipe, *arguments)``."""


def _several(value: Any) -> tuple[str, ...]:
    """Paths and names as texts, of one or of several."""
    if value is None:
        return ()
    several = (value,) if isinstance(value, str | os.PathLike) else value
    try:
        return tuple(map(os.fspath, several))
    except TypeError:
        raise ValueError("a path, or several") from None


def _outputs(value: Any) -> tuple[Path, ...]:
    """Files, and folders of Parquet parts, which alone have no ending and are typed with a slash.

    Raises:
        FgvcError: one of both is missing.
    """
    given = value if isinstance(value, list | tuple) else _several(value)
    paths = []
    for each in given:
        try:
            path = as_path(each)
        except TypeError:
            raise ValueError("a path, or several") from None
        # A path object has lost its slash; what is typed has it.
        if isinstance(each, str) and each.endswith("/") != (path.suffix == ""):
            raise _slash(each)
        paths.append(path)
    return tuple(paths)


def _slash(text: str) -> FgvcError:
    if text.endswith("/"):
        message = f"{text} is a folder of Parquet parts, whose name has no dot."
        return FgvcError(message, f"Type {text.rstrip('/').rpartition('.')[0]}/", EXIT_USAGE)
    message = f"Cannot write {text}: expected a name with an ending, such as {text}.csv."
    return FgvcError(message, f"Type {text}/ for a folder of Parquet parts.", EXIT_USAGE)


Paths = Annotated[tuple[Path, ...], PlainValidator(_outputs)]
"""Files, and folders of parts, on a disk or as URLs; in Python one alone will do."""

MaybePath = Annotated[Path | None, PlainValidator(lambda value: None if value is None else as_path(value))]
"""A file, on a disk or as a URL."""

Sources = Annotated[tuple[str, ...], BeforeValidator(_several)]
"""Folders, files, globs, archives, URLs, lists; in Python one alone will do, and paths too."""


@dataclass(frozen=True)
class RunResult:
    """What a run came to."""

    statuses: dict[str, int]
    """How many rows have which status: ``ok``, ``unsure``, ``unknown``, or why there is no prediction."""
    outputs: tuple[Path, ...] = ()
    """Files and folders that hold the rows; none without ``out``, and of a shard, which waits for
    ``merge``."""
    rows: tuple[Row, ...] = ()
    """The rows themselves, where they went nowhere else."""
    folders_left_out: int = 0
    """Folders that could not be listed, whose images have no row."""

    @property
    def images(self) -> int:
        """How many rows there are: one per image, or per given box."""
        return sum(self.statuses.values())

    @property
    def failed(self) -> int:
        """Images without a prediction, and folders that could not be listed."""
        failed = sum(count for status, count in self.statuses.items() if has_failed(status))
        return failed + self.folders_left_out

    @property
    def exit_code(self) -> int:
        """That of the command line: 0, or 3 where something failed."""
        return EXIT_SOME_FAILED if self.failed else EXIT_OK


class PredictProgress:
    """Counts rows and says how far they are; a context manager around the run.

    Args:
        messages: who says it.
        live: redraw a line where the messages go to a terminal; not where rows go to that terminal too.
    """

    def __init__(self, messages: Messages, *, live: bool):
        self.messages = messages
        self.rows = 0
        """Done, those of an earlier run included."""
        self.statuses: Counter[str] = Counter()
        self.folders_left_out = 0
        self.total: Callable[[], int | None] = lambda: None
        """How many rows there will be, where that is known by now."""
        self.passed_over: Callable[[], list[str]] = list
        """Lines on files that were met and have no row."""
        self.what = "image"
        """What a row is of: ``image``, or ``box``."""
        self.clipped = 0
        """Given boxes that reached beyond their image."""
        self._earlier = 0
        console: Console | None = getattr(messages, "console", None)
        self._live = (
            live
            and not messages.quiet
            and console is not None
            and console.is_terminal
            and not console.is_dumb_terminal
        )
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
        """Rows that lack a prediction, by status."""
        return Counter({k: n for k, n in self.statuses.items() if has_failed(k) and n})

    @property
    def failed(self) -> int:
        """Failed rows so far, and folders that could not be listed."""
        return self.failures.total() + self.folders_left_out

    def resumed(self, rows: int, statuses: Counter[str], retried: int = 0) -> None:
        """Rows that an earlier run has completed, beside those that are read again."""
        self.rows += rows
        self._earlier += rows
        self.statuses.update(statuses)
        if rows or retried:
            again = f", {retried:,} of them read again" if retried else ""
            self.note(f"Resuming after {self._counted(rows + retried)} of an earlier run{again}.")

    def on_block(self, block: Block) -> None:
        """Count some rows."""
        self.count(len(block), Counter(block.status))

    def on_clipped(self, boxes: int) -> None:
        """Boxes that were clipped to their image."""
        self.clipped += boxes

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
        self.messages.print(f"Left out folder {folder}: {error.strerror or error}")

    def note(self, text: str) -> None:
        """One line, unless quiet."""
        self.messages.note(text)

    def interrupted(self, out: Path | None, kept: bool) -> None:
        """The line after Ctrl-C."""
        self._progress.stop()
        fate = "."
        if out and kept:
            fate = f"; they are kept in {out}.partial. To go on, type the same command again."
        elif out:
            fate = f"; {out} was not written. Start again with the same command."
        self.messages.print(f"Interrupted after {self._counted(self.rows)}{fate}")

    def summary(self, outs: Sequence[Path]) -> None:
        """The closing lines: rows, failures by status, where they are."""
        self.note(f"{self._speed()}: {self._fates()}.")
        for line in self.passed_over():
            self.note(line)
        if self.clipped:
            what = counted(self.clipped, "box", "boxes")
            self.note(f"Clipped to the image by more than a pixel: {what}; in_x1 to in_y2 are what was left.")
        if self.folders_left_out:
            self.note(f"Folders that could not be listed: {self.folders_left_out:,}.")
        if outs:
            self.note(f"Written to {', '.join(map(str, outs))}.")

    def merged(self, statuses: Counter[str], outs: Sequence[Path]) -> RunResult:
        """The closing lines of ``fgvc merge``, and what it came to."""
        self.rows, self.statuses = statuses.total(), statuses
        self.note(f"{self._counted(self.rows)}: {self._fates()}.")
        self.note(f"Written to {', '.join(map(str, outs))}.")
        return self.result(outs)

    def result(self, outs: Sequence[Path], rows: Sequence[Row] = ()) -> RunResult:
        """What the run came to."""
        return RunResult(dict(self.statuses), tuple(outs), tuple(rows), self.folders_left_out)

    def _fates(self) -> str:
        failures, doubted = self.failures, {name: self.statuses[name] for name in (UNSURE, UNKNOWN)}
        failed = failures.total()
        reasons = ", ".join(f"{status} {count:,}" for status, count in failures.most_common())
        reasons = f" ({reasons})" if reasons else ""
        without = self.statuses[NO_BOX]
        middle = "".join(f" {count:,} {name}," for name, count in doubted.items() if count)
        middle += f" {counted(without, 'image')} without a box," if without else ""
        fine = self.rows - failed - sum(doubted.values()) - without
        return f"{fine:,} ok,{middle} {failed:,} failed{reasons}"

    def _speed(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = (self.rows - self._earlier) / seconds
        earlier = f" ({self._earlier:,} of an earlier run)" if self._earlier else ""
        return f"{self._counted(self.rows)}{earlier} in {seconds:.1f} s, {rate:.1f} {self._plural}/s"

    @property
    def _plural(self) -> str:
        return "boxes" if self.what == "box" else "images"

    def _counted(self, rows: int) -> str:
        return counted(rows, self.what, self._plural)

    def _outlook(self) -> str:
        """What has failed, and the time left where the total is known."""
        text = f", {self.failures.total():,} failed" if self.failures else ""
        total, new = self.total(), self.rows - self._earlier
        if total and new:
            left = max(0, total - self.rows) * (time.monotonic() - self._start) / new
            text += f", {self.rows / total:.0%} of {total:,}, {duration(left)} left"
        return text


def run_processes(work: Work, arguments: Sequence[tuple[Any, ...]], progress: PredictProgress) -> None:
    """``work(pipe, *arguments[i])`` in process i; what they send goes to the progress.

    When one fails or Ctrl-C comes, the others commit what they have and end.

    Raises:
        FgvcError: the error that a process sent, or how it died.
    """
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = []
    pipes: dict[Connection, int] = {}
    totals: dict[int, int | None] = dict.fromkeys(range(len(arguments)))
    progress.total = lambda: None if None in totals.values() else sum(t or 0 for t in totals.values())
    try:
        # Ctrl-C reaches the whole group of the terminal; the children get their own word from here.
        with _ignored_sigint():
            for i, given in enumerate(arguments):
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=work, args=(theirs, *given), name=f"shard {i}")
                process.start()
                theirs.close()
                processes.append(process)
                pipes[ours] = i
        while pipes:
            for ready in wait(list(pipes)):
                assert isinstance(ready, Connection)
                _take(ready, pipes, processes, totals, progress)
    finally:
        _end(processes)


def _take(
    pipe: Connection,
    pipes: dict[Connection, int],
    processes: Sequence[BaseProcess],
    totals: dict[int, int | None],
    progress: PredictProgress,
) -> None:
    """One message, or the end of a process."""
    index = pipes[pipe]
    try:
        kind, *values = pipe.recv()
    except (EOFError, ConnectionResetError):
        del pipes[pipe]
        processes[index].join()
        if code := processes[index].exitcode:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            message = f"The process of shard {index}/{len(processes)} died ({how})."
            raise FgvcError(message, "What it completed is kept: the same command resumes.") from None
        return
    if kind == "rows":
        totals[index] = values.pop()
        progress.count(*values)
    elif kind == "resumed":
        progress.resumed(*values)
    elif kind == "clipped":
        progress.on_clipped(values[0])
    elif kind == "unreadable" and index == 0:
        progress.on_unreadable(values[0], OSError(*values[1:]))
    elif kind == "note" and index == 0:
        progress.note(values[0])
    elif kind == "error":
        message, hint, code = values
        raise FgvcError(f"Shard {index}/{len(processes)}: {message}", hint, code)


def _end(processes: Sequence[BaseProcess]) -> None:
    """Those that still run commit what they have and end; those that do not listen are ended."""
    for process in processes:
        if process.is_alive():
            process.terminate()
    for process in processes:
        process.join(STOP_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


@contextlib.contextmanager
def _ignored_sigint() -> Any:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class PipeProgress:
    """What ``PredictProgress`` is told in a process of its own, sent on; a parent that is gone ends it."""

    def __init__(self, pipe: Connection):
        self._pipe = pipe
        self.total: Callable[[], int | None] = lambda: None
        self.passed_over: Callable[[], list[str]] = list
        self.what = "image"

    def on_clipped(self, boxes: int) -> None:
        """Boxes that were clipped to their image."""
        self._pipe.send(("clipped", boxes))

    def note(self, text: str) -> None:
        """A line for people."""
        self._pipe.send(("note", text))

    def resumed(self, rows: int, statuses: Counter[str], retried: int = 0) -> None:
        """Rows of an earlier run."""
        self._pipe.send(("resumed", rows, statuses))

    def on_block(self, block: Block) -> None:
        """New rows."""
        self._pipe.send(("rows", len(block), Counter(block.status), self.total()))

    def on_unreadable(self, folder: Path | str, error: OSError) -> None:
        """A folder that could not be listed."""
        self._pipe.send(("unreadable", str(folder), error.errno, error.strerror or str(error)))
