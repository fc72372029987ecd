"""A training run: epochs, validation, what is kept and what is saved to go on from.

The validation split chooses the checkpoint; the test split is touched once, at the end. Everything random is
a function of the seed, the epoch and the place in it, so that a run that is gone on with from its last saved
state ends as if nothing had happened (on a CPU bit for bit).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed import DistError
from torch.utils.data import DataLoader

from fgvc_cli.config import TrainConfig, worker_count
from fgvc_cli.data.labelled import LabelledSet
from fgvc_cli.data.listing import Example
from fgvc_cli.data.loaders import (
    Batch,
    EpochDraws,
    LabelledImages,
    build_loader,
    build_train_loader,
)
from fgvc_cli.data.transforms import eval_transform, train_transform
from fgvc_cli.engine.checkpoint import read_metadata, save_checkpoint
from fgvc_cli.engine.device import Precision, computing, is_out_of_memory, usual_precision
from fgvc_cli.engine.distributed import ALONE, ProcessLost, World
from fgvc_cli.engine.learner import Learner, Meter, Teacher, fit_fuse_weights, out_of_memory
from fgvc_cli.engine.run_state import (
    CHECKPOINT,
    CONFIG,
    METRICS,
    MetricsFile,
    Observer,
    Progress,
    RunState,
    TensorBoard,
    interrupts_wait,
    remove_state,
    save_state,
    sigterm_interrupts,
    state_path,
)
from fgvc_cli.engine.weights import open_weights
from fgvc_cli.errors import EXIT_USAGE, FgvcError, counted
from fgvc_cli.evaluate.confidence import (
    NO_NOVELTY,
    TENSORS,
    Calibration,
    Novelty,
    embed,
    fit_calibration,
    fit_examples,
    fit_novelty,
)
from fgvc_cli.evaluate.evaluator import Evaluation, evaluate, join_judged
from fgvc_cli.evaluate.metrics import check_labels, rank
from fgvc_cli.files import AtomicFile, FolderLock
from fgvc_cli.models.output import FgvcModel
from fgvc_cli.models.weights import read_tensors


@dataclass(frozen=True)
class TrainResult:
    """Where training ended."""

    checkpoint: Path
    best_epoch: int
    metrics: dict[str, dict[str, float]]
    """Split -> metric -> value, of the kept epoch."""


@dataclass(frozen=True)
class Best:
    """The epoch whose model lies in the run folder."""

    epoch: int
    scores: dict[str, float]
    """On the val split."""
    validation: Evaluation | None = None
    """This process's part of it; None where it was made by an earlier process."""

    @property
    def rank(self) -> tuple[float, float]:
        """The larger, the better."""
        return rank(self.scores)


def unread_text(unread: Sequence[Example], classes: Sequence[str]) -> str:
    """One line: how many training images could not be read, and of which classes, five at most."""
    lost = Counter(label for example in unread for label in example.labels)
    worst = sorted(lost.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{count:,} of {classes[label]}" for label, count in worst[:5])
    more = f" and of {counted(len(worst) - 5, 'more class', 'more classes')}" if len(worst) > 5 else ""
    of = f": {shown}{more}" if worst else ""
    return f"{counted(len(unread), 'training image')} could not be read{of}"


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


class Trainer:
    """One run: ``config`` over ``data`` into ``run_dir`` (metrics.csv, config.json, model.safetensors).

    Args:
        state: goes on from it.
        world: the processes that train together, this among them; only the main one writes.

    Raises:
        FgvcError: settings of ``config`` that do not fit each other or the model; a model that does not tell
            as many labels per image as ``data`` has; a state whose best model is gone.
    """

    def __init__(
        self,
        model: FgvcModel,
        config: TrainConfig,
        data: LabelledSet,
        run_dir: Path,
        device: torch.device,
        observer: Observer,
        state: RunState | None = None,
        world: World = ALONE,
    ):
        check_labels(model.config.multi_label, data.multi_label, config.sampling)
        if not data.splits["val"] and (config.patience or config.options.get("fuse") == "weighted"):
            needs = f"patience={config.patience}" if config.patience else "options.fuse=weighted"
            raise FgvcError(
                f"{needs} needs a val split, which {data.name} does not have with val_share=0.",
                "Leave it out, or hold some images out with --set val_share=0.1.",
            )
        self.config, self.data, self.run_dir = config, data, run_dir
        self.device, self.observer, self.world = device, observer, world
        self.precision: Precision = "float32" if config.amp == "none" else usual_precision(device)
        """Of validation, temperature and test: what predict and eval will use on this kind of device."""
        self.workers = worker_count(config.workers, world.here)
        self.warned: set[str] = set()
        draws = EpochDraws(
            [example.label for example in data.splits["train"]],
            batch_size=config.batch_size,
            seed=config.seed,
            epochs=config.epochs,
            balanced=config.sampling == "balanced",
            rank=world.rank,
            world=world.size,
        )
        self.learner = Learner(
            model,
            config,
            classes=len(data.classes),
            updates_per_epoch=math.ceil(len(draws) / config.accumulate),
            device=device,
            world=world,
            teacher=self._teacher() if config.teacher else None,
        )
        progress = state.progress if state else Progress()
        if state:
            self.learner.load(state.learner)
        self.best = self._stored_best(progress.best_epoch) if state else None
        transform = train_transform(config.preprocess, config.augment)
        images = LabelledImages(
            data.root, data.splits["train"], transform, data.label_slots, config.preprocess
        )
        loader = build_train_loader(images, draws, workers=self.workers)
        self.loop = TrainLoop(
            self.learner, draws, loader, observer, progress, warn=self._warn, save=self._save_state
        )
        self._warned_of_masks = False
        self.table = MetricsFile(run_dir / METRICS, progress.rows)
        # Made here, so that a missing library is told before a run folder is.
        self.board = TensorBoard(run_dir, progress.epoch) if config.tensorboard and world.is_main else None

    def _teacher(self) -> Teacher:
        return Teacher(
            open_weights(self.config.teacher, option="teacher", options=self.config.teacher_options),
            self.data.classes,
            multi_label=self.data.multi_label,
            share=self.config.loss.teacher,
            preprocess=self.config.preprocess,
            device=self.device,
        )

    def run(self) -> TrainResult:
        """Train, keep the epoch that is best on validation, then test it once.

        Raises:
            FgvcError: a loss that is no longer finite, no readable image, an unwritable folder, one that
                another process trains in, too little memory.
            KeyboardInterrupt: Ctrl-C or SIGTERM; what was done is saved.
        """
        folder = state_path(self.run_dir).parent
        folder.mkdir(parents=True, exist_ok=True)
        with FolderLock(folder) if self.world.is_main else contextlib.nullcontext():
            return self._run()

    def _run(self) -> TrainResult:
        self.prepare()
        with sigterm_interrupts():
            try:
                self._train()
            except KeyboardInterrupt:
                # Several processes are rarely interrupted at the same place.
                if self.loop.between_updates and self.world.size == 1:
                    self._save_state()
                raise
            finally:
                self.loop.close()
            result = self._finish()
        self._warn_of_unread()
        if self.world.is_main:
            remove_state(self.run_dir)
        return result

    def prepare(self) -> None:
        """Write the settings and, before the first update, a state: what it starts from may go then."""
        if self.world.is_main:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            with AtomicFile(self.run_dir / CONFIG, overwrite=True) as stream:
                stream.write((json.dumps(self.config.model_dump(), indent=2) + "\n").encode())
        if self.world.main_says(not state_path(self.run_dir).exists()):
            self._save_state()

    def _train(self) -> None:
        while not self._is_done():
            epoch = self.loop.progress.epoch
            row = self._train_epoch(epoch)
            evaluation = self._evaluate("val") if self.data.splits["val"] else None
            with interrupts_wait():
                self._close_epoch(row, evaluation)
            self.observer.on_epoch(epoch, self.table.rows[-1], self.best_epoch == epoch)
            self._warn_of_fixed_masks(epoch)

    @property
    def best_epoch(self) -> int:
        """The epoch whose model is kept; 0: none yet."""
        return self.best.epoch if self.best else 0

    def _is_done(self) -> bool:
        epochs = self.loop.progress.epoch - 1
        waited = epochs - self.best_epoch
        return epochs >= self.config.epochs or waited >= (self.config.patience or math.inf)

    def _warn_of_fixed_masks(self, epoch: int) -> None:
        """Once per run, and not for an epoch in which a mask has hardly begun to learn."""
        if self._warned_of_masks or epoch == 1 < self.config.epochs:
            return
        row = self.table.rows[-1]
        # Without a val split, what training saw; one image alone varies from no other.
        kind = "val_mask_variation_" if self.data.splits["val"] else "mask_variation_"
        several = row.get("val_images", 2) > 1
        fixed = [
            name.removeprefix(kind)
            for name, value in row.items()
            if several and name.startswith(kind) and value < 0.01
        ]
        if fixed:
            self._warned_of_masks = True
            self.observer.on_warning(
                f"CRAM is a fixed gate in {', '.join(fixed)}: under 1 % of channels are suppressed in some "
                "images and not in others (mask_variation in metrics.csv), so it re-attends to nothing. Try "
                "--set options.mask_norm=layer --set options.min_hidden=32"
            )

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        return self.loop.run_epoch()

    def _close_epoch(self, row: dict[str, float], evaluation: Evaluation | None) -> None:
        scores = self._metrics(evaluation) if evaluation else {}
        row = row | {f"val_{name}": value for name, value in scores.items()}
        found = Best(int(row["epoch"]), scores, evaluation)
        # Without a val split the last epoch is kept, as papers do that train on all official images.
        better = self.best is None or not evaluation or found.rank > self.best.rank
        if better and self.world.main_says(self._keep(found)):
            self.best = found
        self._log(row)
        self.loop.next_epoch(row, self.best_epoch)
        self._save_state()

    def _keep(self, found: Best) -> bool:
        """Where it cannot be written, what is kept stays the best of what could."""
        try:
            self._save(found, {"val": found.scores} if found.scores else {})
        except FgvcError as error:
            self.observer.on_warning(f"epoch {found.epoch} is the best but is not kept: {error.message}")
            return False
        return True

    def _log(self, row: dict[str, float]) -> None:
        if not self.world.is_main:
            self.table.rows.append(row)
            return
        try:
            self.table.write(row)
            if self.board:
                self.board.write(row)
        except (FgvcError, OSError) as error:
            self.observer.on_warning(f"the line of epoch {row['epoch']} is not written: {error}")

    def _save_state(self) -> None:
        """A full disk costs this state; the one before stays."""
        progress = self.loop.snapshot()
        if not self.world.is_main:
            return
        try:
            save_state(
                self.run_dir,
                config=self.config,
                data_sha256=self.data.sha256(),
                classes=self.data.classes,
                progress=progress,
                learner=self.learner.state(),
            )
        except FgvcError as error:
            self.observer.on_warning(error.message)

    def _stored_best(self, recorded: int) -> Best | None:
        """From the model's file: written before the state, it may be one epoch further."""
        path = self.run_dir / CHECKPOINT
        if path.is_file():
            document = read_metadata(path)
            return Best(document["epoch"], document["metrics"].get("val", {}))
        if recorded:
            raise FgvcError(
                f"{path} is gone: it held epoch {recorded}, the best one so far.",
                "Put it back, or train again with --overwrite.",
            )
        return None

    def _finish(self) -> TrainResult:
        path = self.run_dir / CHECKPOINT
        if self.best is None:
            raise FgvcError(f"No epoch could be written to {path}.", "Free space, then go on with --resume.")
        if self.world.is_main:
            stored = read_tensors(path)[0].items()
            self.learner.kept.load_state_dict({k: v for k, v in stored if not k.startswith(TENSORS)})
        self.world.copy_from_main([*self.learner.kept.state_dict().values()])
        if not self.data.splits["val"]:
            return self._finish_without_val(path, self.best)
        metrics = {"val": self.best.scores}
        validation = self.best.validation or self._evaluate("val")
        if self.config.options.get("fuse") == "weighted":
            validation = self._fit_branches(validation)
        # One temperature belongs to one softmax: several labels are left as the model gives them.
        calibration = None if self.data.multi_label else self._calibrate(validation)
        temperature = calibration.temperature if calibration else None
        # Kept apart: on the images that branch weights and temperature were fitted to, no held-out figures.
        if calibration:
            metrics["val_fitted"] = self._metrics(validation, temperature)
        if self.data.splits["test"]:
            metrics["test"] = self._metrics(self._evaluate("test"), temperature)
        self._save(self.best, metrics, calibration, self._fit_novelty(), finished=True)
        if self.board:
            self.board.close()
        return TrainResult(path, self.best.epoch, metrics)

    def _finish_without_val(self, path: Path, last: Best) -> TrainResult:
        """Nothing was held out, so nothing is fitted: no temperature, no branch weights."""
        metrics = {"test": self._evaluate("test").metrics()} if self.data.splits["test"] else {}
        self._save(last, metrics, finished=True)
        if self.board:
            self.board.close()
        return TrainResult(path, last.epoch, metrics)

    def _calibrate(self, validation: Evaluation) -> Calibration:
        calibration = fit_calibration(validation.probs, validation.labels, "val", self.world.add_up)
        if calibration.refused:
            self.observer.on_warning(calibration.in_words)
        if calibration.clamped:
            self.observer.on_warning(
                f"the temperature that calibrates prob stopped at its limit of {calibration.temperature:g}, "
                f"fitted on {calibration.images} images of the val split: do not read prob as a share"
            )
        return calibration

    def _fit_novelty(self) -> Novelty | None:
        """From training images as they are, not as they were augmented; of several labels there is none."""
        if self.data.multi_label:
            return None
        self.learner.kept.eval()

        splits = fit_examples(self.data.splits["train"]), self.data.splits["val"]
        train, val = (
            embed(self.learner.kept, self._loader(examples), self.config.preprocess, self.device)
            for examples in splits
        )
        with computing(self.device, self.precision):
            novelty = fit_novelty(train, val, len(self.data.classes), self.world.gather)
        if novelty is None:
            self.observer.on_warning(NO_NOVELTY)
        return novelty

    def _loader(self, examples: Sequence[Example]) -> DataLoader:
        """Over this process's part of some images, not augmented."""
        mine, preprocess = examples[self.world.rank :: self.world.size], self.config.preprocess
        return build_loader(
            LabelledImages(
                self.data.root, mine, eval_transform(preprocess), self.data.label_slots, preprocess
            ),
            batch_size=self.config.batch_size,
            workers=self.workers,
        )

    def _evaluate(self, split: str) -> Evaluation:
        """This process's part of a split; no process goes on where none could read any."""
        # Batch norms that are not synchronised have gone their own way; the main process's are kept.
        self.world.copy_from_main([*self.learner.kept.buffers()])
        loader = self._loader(self.data.splits[split])
        with computing(self.device, self.precision):
            part = evaluate(self.learner.kept, loader, self.config.preprocess, self.device)
        part.indices = part.indices * self.world.size + self.world.rank
        self._warn(part.failures)
        if not sum(self.world.counts(len(part.labels))):
            raise FgvcError(f"No image of the {split} split could be read.", "Check the files named above.")
        return part

    def _metrics(self, part: Evaluation, temperature: float | None = None) -> dict[str, float]:
        """Of the parts of all processes, which send what they made of each image, not of each class."""
        return join_judged(self.world.gather(part.judged(temperature))).metrics()

    def _fit_branches(self, validation: Evaluation) -> Evaluation:
        """Weigh the branches as makes val most likely, unless that costs right answers there: the surest
        branch is not always the best one."""
        weights = self.learner.kept.get_buffer("heads.fuse_weights")
        before = weights.clone()
        weights.copy_(self._fuse_weights(validation))
        fitted = self._evaluate("val")
        if self._metrics(fitted)["top1"] >= self._metrics(validation)["top1"]:
            return fitted
        weights.copy_(before)
        return validation

    def _fuse_weights(self, part: Evaluation) -> torch.Tensor:
        """Of the branches, from how likely each finds the true classes."""
        mine = [branch.gather(1, part.labels[:, None])[:, 0] for branch in part.branches.values()]
        every = self.world.gather(torch.stack(mine) if mine else None)
        likelihoods = torch.cat([one for one in every if one is not None], dim=1)
        return fit_fuse_weights(likelihoods[:, :, None], torch.zeros(likelihoods.shape[1], dtype=torch.int64))

    def _save(
        self,
        best: Best,
        metrics: dict[str, dict[str, float]],
        calibration: Calibration | None = None,
        novelty: Novelty | None = None,
        *,
        finished: bool = False,
    ) -> None:
        if not self.world.is_main:
            return
        save_checkpoint(
            self.run_dir / CHECKPOINT,
            self.learner.kept,
            config=self.config,
            classes=self.data.classes,
            dataset=self.data.name,
            data_sha256=self.data.sha256(),
            metrics=metrics,
            calibration=calibration,
            novelty=novelty,
            epoch=best.epoch,
            finished=finished,
            precision=self.precision,
            train_images=len(self.data.splits["train"]),
            taxonomy=self.data.taxonomy,
        )

    def _warn_of_unread(self) -> None:
        """Which classes lost training images to files that cannot be read, the most first."""
        unread = set().union(*self.world.gather(self.loop.unread))
        if not unread or not self.world.is_main:
            return
        train = self.data.splits["train"]
        self.observer.on_warning(unread_text([train[place] for place in unread], self.data.classes))

    def _warn(self, failures: list[str]) -> None:
        for failure in failures:
            if failure not in self.warned:
                self.warned.add(failure)
                self.observer.on_warning(f"left out {failure}")
