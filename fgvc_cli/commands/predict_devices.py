"""``fgvc predict --devices N``: one process per shard, their progress together, one merge at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvc_cli.commands.predict_options import PredictOptions
from fgvc_cli.commands.predict_progress import PredictProgress
from fgvc_cli.errors import EXIT_ERROR, EXIT_INTERRUPTED, FgvcError

if TYPE_CHECKING:
    from fgvc_cli.formats.rows import Block

STOP_SECONDS = 30.0
"""How long a process may take to seal what it has before it is ended."""

Work = Callable[..., None]
"""Runs in a process of its own as ``work(pipe, *arguments)``."""


def run_devices(options: PredictOptions, progress: PredictProgress) -> None:
    """Predict in ``options.devices`` processes and merge; resumable as a whole, like each of its shards.

    Raises:
        FgvcError: what a process was told, or that it died; devices that are not there.
    """
    from fgvc_cli.engine.device import pick_devices
    from fgvc_cli.run.merge import merge_shards
    from fgvc_cli.run.run_files import partial_folder

    count = options.devices or 1
    arguments = [(options, i, count, device) for i, device in enumerate(pick_devices(options.device, count))]
    with progress:
        run_processes(_seal_shard, arguments, progress)
    merge_shards(partial_folder(options.out[0]), options.outputs, overwrite=options.overwrite)
    progress.summary(options.outputs.paths())


def run_processes(work: Work, arguments: Sequence[tuple[Any, ...]], progress: PredictProgress) -> None:
    """``work(pipe, *arguments[i])`` in process i; what they send goes to the progress.

    When one fails or Ctrl-C comes, the others seal what they have and end.

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
            raise FgvcError(message, "What it sealed is kept: the same command goes on.") from None
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
    """Those that still run seal what they have and end; those that do not listen are ended."""
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


def _seal_shard(pipe: Connection, options: PredictOptions, index: int, count: int, device: str) -> None:
    """In a process of its own: predict and seal one shard."""
    signal.signal(signal.SIGTERM, _interrupt)
    from fgvc_cli.commands.predict_seal import open_folder, open_images, open_predictor, seal_rows
    from fgvc_cli.run.run_files import ShardOf

    code = 0
    try:
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // count))
        progress, shard = PipeProgress(pipe), ShardOf(index, count)
        options = dataclasses.replace(options, device=device)
        images = open_images(options, progress, shard)
        predictor = open_predictor(options, progress, shard)
        with open_folder(options, predictor, shard) as folder:
            seal_rows(options, folder, images, predictor, progress)
        for line in progress.passed_over() if index == 0 else ():  # each walks past all files
            progress.note(line)
    except FgvcError as error:
        pipe.send(("error", error.message, error.hint, error.exit_code))
    except BrokenPipeError:  # the parent is gone
        code = EXIT_ERROR
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    pipe.close()
    if code:
        os._exit(code)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
