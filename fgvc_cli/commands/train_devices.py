"""``fgvc train --devices N``: TorchElastic starts the processes, and again if one dies."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from rich.console import Console

from fgvc_cli.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK, FgvcError
from fgvc_cli.files import FolderLock

RESTARTS = 3
"""How often all processes start again after one died; each time from the last saved state."""
STOP_SECONDS = 15
"""How long a process may take to end after it was asked to."""
WATCH_SECONDS = 1.0
"""Between two looks whether the process that started the others is still there."""
_LAUNCHER = "FGVC_LAUNCHER"
"""Its process number, in the environment of the others."""
_GAVE_UP = "gave-up"
"""Lies beside the state when a process ended with an error that a restart would only meet again."""


class OnlyWarnings:
    """``engine.observer.Observer`` of the processes that are not the main one."""

    def __init__(self, console: Console):
        self.console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing was opened."""

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """The main process says it."""

    def on_epoch(self, epoch: int, row: dict[str, float], best: bool) -> None:
        """The main process says it."""

    def on_warning(self, message: str) -> None:
        """One line."""
        self.console.print(f"warning: {message}", markup=False)


def launch(run_dir: Path, devices: int, arguments: list[str]) -> int:
    """Train from the saved state of ``run_dir`` in ``devices`` processes of this machine.

    Args:
        arguments: of ``fgvc train --resume RUN`` beside the run folder.

    Returns:
        The exit code; a process that failed has said why.

    Raises:
        FgvcError: another process trains in the folder; processes kept dying.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from fgvc_cli.data.loaders import usable_cpus

    with FolderLock(run_dir / "last"):  # nobody else trains there
        (run_dir / "last" / _GAVE_UP).unlink(missing_ok=True)
    # Our own lines say what happened.
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // devices)))
    os.environ[_LAUNCHER] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=f"fgvc-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=RESTARTS,
        shutdown_timeout=STOP_SECONDS,
    )
    command = ["-m", "fgvc_cli", "train", "--resume", str(run_dir), *arguments]
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        if code < 0:
            raise FgvcError(
                f"A process died by {signal.Signals(-code).name}, as it did {RESTARTS} times before.",
                f"Go on with: fgvc train --resume {run_dir}",
            ) from None
        return code if code == EXIT_INTERRUPTED else EXIT_ERROR
    except SignalException:
        return EXIT_INTERRUPTED
    return EXIT_OK


@contextlib.contextmanager
def errors_end_all(run_dir: Path) -> Iterator[None]:
    """In a process of several: a user's error is the end of all, not a reason to start them again."""
    from fgvc_cli.engine.distributed import ProcessLost

    _end_with(os.environ.get(_LAUNCHER))
    try:
        yield
    except ProcessLost:
        raise
    except FgvcError as error:
        with contextlib.suppress(OSError):
            (run_dir / "last" / _GAVE_UP).write_text(f"{error}\n")
        raise


def _end_with(launcher: str | None) -> None:
    """End this process soon after the one that started it all, which may be killed without a word."""

    def watch() -> None:
        while _is_running(int(launcher or 0)):
            time.sleep(WATCH_SECONDS)
        os._exit(EXIT_ERROR)

    if launcher:
        threading.Thread(target=watch, daemon=True).start()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def gave_up(run_dir: Path) -> bool:
    """Whether the processes of this training ended with an error before this restart."""
    return (run_dir / "last" / _GAVE_UP).exists()
