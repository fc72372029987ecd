"""What a training writes while it runs: observers, metrics.csv, TensorBoard."""

from __future__ import annotations

import csv
import io
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.files import AtomicFile

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Observer(Protocol):
    """The command line shows what it is told. A context manager around the run."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """After each update; ``epoch`` and ``step``, in batches, count from 1."""

    def on_epoch(self, epoch: int, row: dict[str, float], best: bool) -> None:
        """After each validation; ``row`` is the line written to metrics.csv."""

    def on_warning(self, message: str) -> None:
        """Something the user should know, once."""


class MetricsFile:
    """One line per epoch, on disk as soon as it is written; the file is whole at any moment.

    Args:
        rows: lines of the epochs before, of a run that is gone on with.
    """

    def __init__(self, path: Path, rows: list[dict[str, float]] | None = None):
        self.path = path
        self.rows = list(rows or [])

    def write(self, row: dict[str, float]) -> None:
        """Append a row; what it lacks stays empty, a new column goes to the right end.

        Raises:
            FgvcError: the file cannot be written; the row is kept and comes with the next one.
        """
        self.rows.append(row)
        # A column may come late: the accuracy of a branch that no image reached before.
        columns = list(dict.fromkeys(name for line in self.rows for name in line))
        text = io.StringIO(newline="")
        table = csv.writer(text)
        table.writerow(columns)
        for line in self.rows:
            table.writerow([format(line[name], ".6g") if name in line else "" for name in columns])
        with AtomicFile(self.path, overwrite=True) as stream:
            stream.write(text.getvalue().encode())


EVENT_FILES = "events.out.tfevents.*"
"""Pattern of their names."""


class TensorBoard:
    """Writes ``events.out.tfevents...`` files into a run folder, one scalar per column and epoch.

    Args:
        first_epoch: epochs from this one on that an interrupted run left are not shown any more.

    Raises:
        FgvcError: TensorBoard is not installed.
    """

    def __init__(self, run_dir: Path, first_epoch: int = 1):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise FgvcError(
                "tensorboard=yes needs TensorBoard, which is not installed.",
                "pip install 'fgvc[tensorboard]'",
                EXIT_USAGE,
            ) from error
        # Opened with the first row: opening makes the folder.
        self._open = partial(SummaryWriter, str(run_dir), purge_step=first_epoch)
        self._writer: SummaryWriter | None = None

    def write(self, row: dict[str, float]) -> None:
        """A row of metrics.csv; ``val_top1`` is shown as ``val/top1``, ``loss`` as ``train/loss``.

        Raises:
            OSError: the event file cannot be written.
        """
        self._writer = self._writer or self._open()
        for name, value in row.items():
            if name != "epoch":
                is_val = name.startswith("val_")
                tag = f"val/{name.removeprefix('val_')}" if is_val else f"train/{name}"
                self._writer.add_scalar(tag, value, int(row["epoch"]))
        self._writer.flush()

    def close(self) -> None:
        """End the file."""
        if self._writer:
            self._writer.close()
