"""A run in several processes on one machine, their progress together (``fgvc predict --devices N``)."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from fgvc_cli.errors import FgvcError
from fgvc_cli.formats.rows import Block
from fgvc_cli.run.progress import PredictProgress

STOP_SECONDS = 30.0
"""How long a process may take to commit what it has before it is ended."""

Work = Callable[..., None]
"""Runs in a process of its own as ``work(pipe, *arguments)``."""


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

    def note(self, text: str) -> None:
        """A line for people."""
        self._pipe.send(("note", text))

    def resumed(self, rows: int, statuses: Counter[str]) -> None:
        """Rows of an earlier run."""
        self._pipe.send(("resumed", rows, statuses))

    def on_block(self, block: Block) -> None:
        """New rows."""
        self._pipe.send(("rows", len(block), Counter(block.status), self.total()))

    def on_retried(self, block: Block) -> None:
        """Rows read again."""

    def on_unreadable(self, folder: Path | str, error: OSError) -> None:
        """A folder that could not be listed."""
        self._pipe.send(("unreadable", str(folder), error.errno, error.strerror or str(error)))
