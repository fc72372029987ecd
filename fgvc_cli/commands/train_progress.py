"""How training shows itself: a bar with the time left on a terminal, one plain line per epoch everywhere, and
its curves as a picture in the run folder."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fgvc_cli.engine.trainer import METRICS
from fgvc_cli.evaluate.multilabel import headline
from fgvc_cli.files import AtomicFile

CURVES = "curves.png"
"""In the run folder: what metrics.csv holds, drawn."""
CURVES_SHARE = 0.05
"""Most of the time that drawing may take: where epochs are short, not every one is drawn, but the last is."""


class TrainProgress:
    """``engine.trainer.Observer`` on a console; a context manager.

    Args:
        run_dir: where ``CURVES`` is drawn from metrics.csv.
    """

    def __init__(self, console: Console, epochs: int, run_dir: Path):
        self.console = console
        self.epochs = epochs
        self.run_dir = run_dir
        self.undrawn = False
        self.drawing = True
        self.drawn_at, self.drawing_seconds = -float("inf"), 0.0
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
        if not (self.run_dir / METRICS).exists():  # else training goes on from there
            (self.run_dir / CURVES).unlink(missing_ok=True)
        self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.progress.stop()
        if self.undrawn:
            self._draw_curves()

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
            f"{row['images_per_second']:.1f} images/s",
        ]
        if any(name.startswith("val_") for name in row):
            parts.insert(2, f"val {headline(row, 'val_')}{' *' if best else ''}")
        if "loss_div" in row:
            parts.append(f"L_div {row['loss_div']:.3f}")
        suppressed = [f"{value:.2f}" for name, value in row.items() if name.startswith("suppressed_")]
        if suppressed:
            parts.append("suppressed " + "/".join(suppressed))
        self.console.print("  ".join(parts))
        self.undrawn = True
        if self.drawing_seconds <= CURVES_SHARE * (time.monotonic() - self.drawn_at):
            self._draw_curves()

    def on_warning(self, message: str) -> None:
        """One line."""
        self.console.print(f"warning: {message}", markup=False)

    def _draw_curves(self) -> None:
        if not self.drawing:
            return
        start = time.monotonic()
        try:
            from fgvc_cli.charts.figures import draw_curves

            rows = read_metrics(self.run_dir / METRICS)
            picture = draw_curves(rows, self.run_dir.resolve().name)
            with AtomicFile(self.run_dir / CURVES, overwrite=True) as stream:
                stream.write(picture)
        # A picture must not end a training, and matplotlib, its fonts and the disk may raise anything.
        except Exception as error:
            self.drawing = False
            why = " ".join(str(error).split()) or type(error).__name__
            self.on_warning(f"no {CURVES} from here on: {why}")
        self.undrawn = False
        self.drawn_at = time.monotonic()
        self.drawing_seconds = self.drawn_at - start


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.csv; an empty cell is left out.

    Raises:
        OSError, ValueError: it cannot be read, or holds something else than numbers.
    """
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
