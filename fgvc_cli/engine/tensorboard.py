"""The lines of metrics.csv as TensorBoard events."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fgvc_cli.errors import EXIT_USAGE, FgvcError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

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
