"""The training loop: one for every family.

The validation split chooses the checkpoint; the test split is touched once, at the end.
"""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn

from fgvc_cli.config import TrainConfig
from fgvc_cli.data.labelled import LabelledSet
from fgvc_cli.data.loaders import Batch, LabelledImages, build_loader
from fgvc_cli.data.transforms import eval_transform, normalize, train_transform
from fgvc_cli.engine.calibration import Calibration, fit_temperature
from fgvc_cli.engine.checkpoint import save_checkpoint
from fgvc_cli.engine.evaluator import Evaluation, evaluate
from fgvc_cli.engine.fusion import fit_fuse_weights
from fgvc_cli.engine.losses import total_loss
from fgvc_cli.engine.metrics_file import MetricsFile
from fgvc_cli.engine.multilabel import rank
from fgvc_cli.engine.optim import build_optimizer, build_schedule, largest_rates
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.models.weight_files import read_tensors

CHECKPOINT, METRICS, CONFIG = "model.safetensors", "metrics.csv", "config.json"
RUN_FILES = (CHECKPOINT, METRICS, CONFIG)
"""What a run folder holds."""


class Observer(Protocol):
    """Who is told how training goes; the command line shows it. A context manager around the run."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """After each update; ``epoch`` and ``step`` count from 1."""

    def on_epoch(self, epoch: int, row: dict[str, float], best: bool) -> None:
        """After each validation; ``row`` is the line written to metrics.csv."""

    def on_warning(self, message: str) -> None:
        """Something the user should know, once."""


@dataclass(frozen=True)
class TrainResult:
    """Where training ended."""

    checkpoint: Path
    best_epoch: int
    metrics: dict[str, dict[str, float]]
    """Split -> metric -> value, of the kept epoch."""


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Trainer:
    """One run: ``config`` over ``data`` into ``run_dir`` (metrics.csv, config.json, model.safetensors).

    Raises:
        FgvcError: settings of ``config`` that do not fit each other or the model.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        data: LabelledSet,
        run_dir: Path,
        device: torch.device,
        observer: Observer,
    ):
        _check_freeze(config)
        if config.grad_checkpointing:
            _checkpoint_gradients(model, config.model)
        self.config, self.data, self.run_dir = config, data, run_dir
        self.device, self.observer = device, observer
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        transform = train_transform(config.preprocess, config.augment)
        self.loader = build_loader(
            LabelledImages(data.root, data.splits["train"], transform, data.label_slots),
            batch_size=config.batch_size,
            workers=config.workers,
            shuffle_seed=config.seed,
        )
        self.optimizer = build_optimizer(self.model, config.optim)
        self.schedule = build_schedule(self.optimizer, config.optim, config.epochs, len(self.loader))
        # Those that learn once the frozen epochs are over; a backbone may have others that never do.
        self.backbone = self.model.get_submodule("backbone")
        self.freezable = [p for p in self.backbone.parameters() if p.requires_grad]
        self.ema = ModelEmaV3(self.model, config.ema_decay, use_warmup=True) if config.ema_decay else None
        self.updates = 0
        self.warned: set[str] = set()

    def run(self) -> TrainResult:
        """Train, keep the epoch that is best on validation, then test it once.

        Raises:
            FgvcError: a loss that is no longer finite, no readable photograph, an unwritable folder.
        """
        self.run_dir.mkdir(parents=True, exist_ok=True)
        (self.run_dir / CONFIG).write_text(json.dumps(self.config.model_dump(), indent=2) + "\n")
        best: tuple[float, float] | None = None
        best_epoch, validation, metrics = 0, None, {}
        with MetricsFile(self.run_dir / METRICS) as table:
            for epoch in range(1, self.config.epochs + 1):
                row = self._train_epoch(epoch)
                evaluation = self._evaluate("val")
                scores = evaluation.metrics()
                row |= {f"val_{name}": value for name, value in scores.items()}
                table.write(row)
                if best is None or rank(scores) > best:
                    best, best_epoch, validation, metrics = rank(scores), epoch, evaluation, {"val": scores}
                    self._save(metrics)
                self.observer.on_epoch(epoch, row, best_epoch == epoch)
        assert validation is not None
        return self._finish(best_epoch, validation, metrics)

    def _finish(
        self, best_epoch: int, validation: Evaluation, metrics: dict[str, dict[str, float]]
    ) -> TrainResult:
        path = self.run_dir / CHECKPOINT
        self._kept_model().load_state_dict(read_tensors(path)[0])
        if self.config.options.get("fuse") == "weighted":
            weights = fit_fuse_weights(torch.stack([*validation.branches.values()]), validation.labels)
            self._kept_model().get_buffer("heads.fuse_weights").copy_(weights)
            validation = self._evaluate("val")
        # One temperature belongs to one softmax: several labels are left as the model gives them.
        calibration = None if self.data.multi_label else self._calibrate(validation)
        temperature = calibration.temperature if calibration else None
        # Kept apart: on the images that branch weights and temperature were fitted to, no held-out figures.
        if calibration:
            metrics["val_fitted"] = validation.metrics(temperature)
        if self.data.splits["test"]:
            metrics["test"] = self._evaluate("test").metrics(temperature)
        self._save(metrics, calibration)
        return TrainResult(path, best_epoch, metrics)

    def _calibrate(self, validation: Evaluation) -> Calibration:
        temperature = fit_temperature(validation.probs, validation.labels)
        calibration = Calibration(temperature, "val", len(validation.labels))
        if calibration.clamped:
            self.observer.on_warning(
                f"the temperature that calibrates prob stopped at its limit of {temperature:g}, fitted on "
                f"{calibration.images} photographs of the val split: do not read prob as a share"
            )
        return calibration

    def _train_mode(self, epoch: int) -> None:
        """Everything learns, but for the backbone in the frozen epochs, when its batch norms rest too."""
        frozen = epoch <= self.config.optim.freeze_epochs
        self.model.train()
        if frozen:
            self.backbone.eval()
        for parameter in self.freezable:
            parameter.requires_grad_(not frozen)

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        self._train_mode(epoch)
        sums: dict[str, float] = defaultdict(float)
        images = 0
        start = time.perf_counter()
        for step, batch in enumerate(self.loader, 1):
            self._warn(batch.failures)
            if len(batch.labels) < 2:
                continue
            for name, value in self._update(batch).items():
                sums[name] += value * len(batch.labels)
            images += len(batch.labels)
            self.observer.on_step(epoch, step, len(self.loader), sums["loss"] / images)
        if not images:
            raise FgvcError("No training photograph could be read.", "Check the files named above.")
        seconds = time.perf_counter() - start
        row = {"epoch": epoch, "seconds": seconds, "images_per_second": images / seconds}
        means = {name: value / images for name, value in sums.items()}
        return row | largest_rates(self.optimizer) | means

    def _update(self, batch: Batch) -> dict[str, float]:
        """One optimiser step; the loss, its terms, and the model's stats."""
        images = normalize(batch.images.to(self.device, non_blocking=True), self.config.preprocess)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp == "bf16"):
            output = self.model(images)
        loss, terms = total_loss(output, batch.labels.to(self.device), self.config.loss)
        if not torch.isfinite(loss):
            rates = largest_rates(self.optimizer)
            raise FgvcError(
                f"The loss became {loss.item()} after {self.updates} updates.",
                f"Lower the learning rates (--set optim.{max(rates, key=lambda name: rates[name])}=...), "
                "or clip: --set optim.clip_grad=1",
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.optim.clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_grad)
        self.optimizer.step()
        self.updates += 1
        self.schedule.step_update(self.updates)
        if self.ema:
            self.ema.update(self.model, step=self.updates)
        scalars = {"loss": loss.detach(), **{f"loss_{n}": t for n, t in terms.items()}, **output.stats}
        return {name: float(value) for name, value in scalars.items()}

    def _kept_model(self) -> nn.Module:
        return self.ema.module if self.ema else self.model

    def _evaluate(self, split: str) -> Evaluation:
        loader = build_loader(
            LabelledImages(
                self.data.root,
                self.data.splits[split],
                eval_transform(self.config.preprocess),
                self.data.label_slots,
            ),
            batch_size=self.config.batch_size,
            workers=self.config.workers,
        )
        # In float32, as eval and predict: the number stored is the number that can be repeated.
        result = evaluate(self._kept_model(), loader, self.config.preprocess, self.device)
        self._warn(result.failures)
        if not len(result.labels):
            raise FgvcError(
                f"No photograph of the {split} split could be read.", "Check the files named above."
            )
        return result

    def _save(self, metrics: dict[str, dict[str, float]], calibration: Calibration | None = None) -> None:
        save_checkpoint(
            self.run_dir / CHECKPOINT,
            self._kept_model(),
            config=self.config,
            classes=self.data.classes,
            dataset=self.data.name,
            data_sha256=self.data.sha256(),
            metrics=metrics,
            calibration=calibration,
        )

    def _warn(self, failures: list[str]) -> None:
        for failure in failures:
            if failure not in self.warned:
                self.warned.add(failure)
                self.observer.on_warning(f"left out {failure}")


def _check_freeze(config: TrainConfig) -> None:
    frozen = config.optim.freeze_epochs
    if frozen >= config.epochs:
        raise FgvcError(
            f"optim.freeze_epochs={frozen} leaves no epoch of {config.epochs} in which the backbone learns.",
            f"--epochs {frozen + 1} or more, or --set optim.freeze_epochs={config.epochs - 1}.",
            EXIT_USAGE,
        )


def _checkpoint_gradients(model: nn.Module, name: str) -> None:
    if not hasattr(model, "set_grad_checkpointing"):
        raise FgvcError(
            f"{name} has no gradient checkpointing.",
            "Leave grad_checkpointing out; a smaller --batch-size needs less memory too.",
            EXIT_USAGE,
        )
    model.set_grad_checkpointing(True)  # type: ignore[operator]
