"""The inner loop: updates over the batches of an epoch, from wherever a run stands."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator

from torch.distributed import DistError
from torch.utils.data import DataLoader

from fgvc_cli.data.epoch_sampler import EpochDraws
from fgvc_cli.data.loaders import Batch
from fgvc_cli.engine.device import is_out_of_memory
from fgvc_cli.engine.distributed import ProcessLost
from fgvc_cli.engine.learner import Learner, Meter, out_of_memory
from fgvc_cli.engine.logs import Observer
from fgvc_cli.engine.run_state import Progress, interrupts_wait
from fgvc_cli.errors import EXIT_USAGE, FgvcError

LOSS_SECONDS = 0.5
"""Between two looks at the loss on a GPU, which has to end its work for each."""


class TrainLoop:
    """Runs epochs; ``progress`` says where it stands, and is true whenever ``between_updates``.

    Args:
        loader: of ``Batch``, over ``draws``.
        warn: is given the line of each image that could not be read.
        save: called when ``config.save_minutes`` are over, between two updates.
    """

    def __init__(
        self,
        learner: Learner,
        draws: EpochDraws,
        loader: DataLoader,
        observer: Observer,
        progress: Progress,
        *,
        warn: Callable[[list[str]], None],
        save: Callable[[], None],
    ):
        self.learner, self.draws, self.observer, self.progress = learner, draws, observer, progress
        self.config = learner.config
        self.between_updates = True
        self._loader, self._warn, self._save = loader, warn, save
        self._batches: Iterator[Batch] | None = None
        self.unread: set[int] = set()
        """Places of the training images that could not be read, of those that this process met."""
        self._meter = Meter()
        self.world = learner.world
        if progress.meter and self.world.is_main:
            self._meter.load(progress.meter, learner.device)
        self._loss, self._loss_at = 0.0, -math.inf
        self._saved_at = time.monotonic()

    def run_epoch(self) -> dict[str, float]:
        """Do what is left of the epoch in progress.

        Returns:
            Its number, time, rates, and the means of the loss, its terms and the model's stats.

        Raises:
            FgvcError: a loss that is no longer finite, no readable image, too little memory, a decoding
                process that died.
        """
        progress, steps = self.progress, len(self.draws)
        self.learner.begin_epoch(progress.epoch)
        while progress.batches < steps:
            start = time.perf_counter()
            last = min(progress.batches + self.config.accumulate, steps)
            with interrupts_wait():
                self._update(range(progress.batches, last))
                progress.batches = last
                progress.seconds += time.perf_counter() - start
            loss = self._current_loss(at_once=last == steps)
            self.observer.on_step(progress.epoch, last, steps, loss)
            due = time.monotonic() - self._saved_at >= 60 * self.config.save_minutes
            if last < steps and self.world.main_says(due):
                self._current_loss(at_once=True)
                self._save()
                self._saved_at = time.monotonic()
        meter = self._meter.joined(self.world)
        if not meter.images:
            raise FgvcError("No training image could be read.", "Check the files named above.")
        speed = meter.images / progress.seconds
        row = {"epoch": progress.epoch, "seconds": progress.seconds, "images_per_second": speed}
        return row | self.learner.rates() | meter.means()

    def next_epoch(self, row: dict[str, float], best_epoch: int) -> None:
        """Close the epoch with its line of metrics.csv."""
        done = self.progress
        self.progress = Progress(done.epoch + 1, best_epoch=best_epoch, rows=[*done.rows, row])
        self._meter = Meter()
        self._saved_at = time.monotonic()

    def snapshot(self) -> Progress:
        """``progress`` with the sums of the epoch so far, of all processes, to be saved."""
        return dataclasses.replace(self.progress, meter=self._meter.joined(self.world).state())

    def close(self) -> None:
        """End the processes that decode."""
        self._batches = None

    def _update(self, numbers: range) -> None:
        self.between_updates = False
        failure: Exception | None = None
        try:
            expected = sum(self.draws.size(number) for number in numbers)
            self.learner.update(self._read(numbers), expected, self._meter)
        except (RuntimeError, MemoryError) as error:
            failure = self._explain(error)
            if failure is None:
                raise
        if isinstance(failure, MemoryError):
            # Only here, where the activations that the exception held are gone, can smaller batches be tried.
            raise out_of_memory(self.learner, self.config)
        if failure:
            raise failure
        self.between_updates = True

    def _read(self, numbers: range) -> Iterator[tuple[tuple[int, ...], Batch]]:
        if self._batches is None:
            self.draws.start = (self.progress.epoch, self.progress.batches)
            self._batches = iter(self._loader)
        for number in numbers:
            batch = next(self._batches)
            self._warn(batch.failures)
            self.unread.update(batch.unread)
            yield (self.progress.epoch, number), batch

    def _explain(self, error: Exception) -> Exception | None:
        """What to raise in place of an error of torch; None: the error itself."""
        if is_out_of_memory(error):
            return MemoryError()
        text = " ".join(str(error).split())
        lost = isinstance(error, DistError) or "gloo" in text or "DataLoader worker" in text
        if self.world.size > 1 and lost:
            return ProcessLost(f"Process {self.world.rank} of {self.world.size} lost others.")
        if "DataLoader worker" in text:
            return FgvcError(
                f"A process that decodes images died: {text[:200]}.",
                "Go on with --resume, perhaps with fewer --workers: each needs memory.",
            )
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            return FgvcError(
                f"The model cannot be compiled here: {text[:200]}.", "Leave compile out.", EXIT_USAGE
            )
        return None

    def _current_loss(self, *, at_once: bool) -> float:
        """Mean loss of the epoch, on a GPU as it was a moment ago."""
        waited = time.monotonic() - self._loss_at
        if self._meter.images and (at_once or self.learner.device.type == "cpu" or waited > LOSS_SECONDS):
            self._loss, self._loss_at = self._meter.means()["loss"], time.monotonic()
            self.learner.check_loss(self._loss)
        return self._loss
