"""How training shows itself: a bar with the time left on a terminal, one plain line per epoch everywhere."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fgvc_cli.engine.multilabel import headline


class TrainProgress:
    """``engine.trainer.Observer`` on a console; a context manager."""

    def __init__(self, console: Console, epochs: int):
        self.console = console
        self.epochs = epochs
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.progress.stop()

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """Move the bar; ``loss`` is the epoch's mean so far."""
        self.progress.update(
            self.task,
            description=f"epoch {epoch}/{self.epochs}  loss {loss:.3f}",
            total=self.epochs * steps,
            completed=(epoch - 1) * steps + step,
        )

    def on_epoch(self, epoch: int, row: dict[str, float], best: bool) -> None:
        """One line: loss, the figure that chooses the epoch, speed, and what CRAM and SMRAM do."""
        parts = [
            f"epoch {epoch}/{self.epochs}",
            f"loss {row['loss']:.3f}",
            f"val {headline(row, 'val_')}{' *' if best else ''}",
            f"{row['images_per_second']:.1f} images/s",
        ]
        if "loss_div" in row:
            parts.append(f"L_div {row['loss_div']:.3f}")
        suppressed = [f"{value:.2f}" for name, value in row.items() if name.startswith("suppressed_")]
        if suppressed:
            parts.append("suppressed " + "/".join(suppressed))
        self.console.print("  ".join(parts))

    def on_warning(self, message: str) -> None:
        """One line."""
        self.console.print(f"warning: {message}", markup=False)
