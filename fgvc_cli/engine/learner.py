"""What learns, and one update of it: model, optimiser, schedule, average of the weights, gradient scaler."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from fgvc_cli.config import TrainConfig
from fgvc_cli.data.loaders import Batch
from fgvc_cli.data.transforms import mix_transform, normalize
from fgvc_cli.engine.distributed import ALONE, World
from fgvc_cli.engine.losses import total_loss
from fgvc_cli.engine.meter import Meter
from fgvc_cli.engine.optim import build_optimizer, build_schedule, largest_rates
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.models.output import ModelOutput

AMP_TYPES = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on every device.

    Args:
        seed: of 32 bits, the most that NumPy takes.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Learner:
    """A model that is being trained on one device; all of it that changes is in ``state``.

    Args:
        classes: K.
        updates_per_epoch: how often ``update`` is called in an epoch.
        world: the processes that train together, this among them.

    Raises:
        FgvcError: settings of ``config`` that do not fit each other or the model.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        *,
        classes: int,
        updates_per_epoch: int,
        device: torch.device,
        world: World = ALONE,
    ):
        _check_freeze(config)
        if config.grad_checkpointing:
            _checkpoint_gradients(model, config.model)
        self.config, self.device, self.world = config, device, world
        if config.sync_batchnorm:
            model = world.synchronize_batchnorm(model)
        if device.type == "cpu" and config.amp == "bf16":
            _depthwise_in_float32(model)
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(self.model, config.optim)
        self.schedule = build_schedule(self.optimizer, config.optim, config.epochs, updates_per_epoch)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
        self.ema = ModelEmaV3(self.model, config.ema_decay, use_warmup=True) if config.ema_decay else None
        self.mix = mix_transform(config.augment, classes)
        self.multi_label = bool(model.config.multi_label)  # type: ignore[union-attr]
        self.updates = 0
        # Those that learn once the frozen epochs are over; a backbone may have others that never do.
        self.backbone = self.model.get_submodule("backbone")
        self.freezable = [p for p in self.backbone.parameters() if p.requires_grad]
        self.frozen = False
        self.forward = self._wrapped()

    @property
    def kept(self) -> nn.Module:
        """What is validated and kept."""
        return self.ema.module if self.ema else self.model

    def begin_epoch(self, epoch: int) -> None:
        """Everything learns, but for the backbone in the frozen epochs, when its batch norms rest too."""
        self.frozen = frozen = epoch <= self.config.optim.freeze_epochs
        self.model.train()
        if frozen:
            self.backbone.eval()
        changed = any(parameter.requires_grad == frozen for parameter in self.freezable)
        for parameter in self.freezable:
            parameter.requires_grad_(not frozen)
        if changed and self.world.size > 1:
            self.forward = self._wrapped()

    def _wrapped(self) -> Callable[..., ModelOutput]:
        forward = self.world.wrap(self.model)
        return torch.compile(forward) if self.config.compile else forward

    def update(self, batches: Iterable[tuple[tuple[int, ...], Batch]], expected: int, meter: Meter) -> None:
        """One optimiser step over several batches, as if they were one.

        Args:
            batches: each with the numbers that seed its dropout and its like, e.g. epoch and batch.
            expected: photographs in all of them in all processes, if all can be read. A batch of which a
                process gets fewer than two, which batch norm cannot use, is left out.
            meter: is given the loss, its terms, and the model's stats.
        """
        self.optimizer.zero_grad(set_to_none=True)
        seen = 0
        for numbers, batch in batches:
            counts = self.world.counts(len(batch.labels))
            if min(counts) >= 2:
                self._seed(*numbers)
                # The average over the processes divides by their number.
                self._add_gradients(batch, len(batch.labels) * self.world.size / expected, meter)
                seen += sum(counts)
        if seen:
            self._step(expected / seen)

    def _seed(self, *numbers: int) -> None:
        """Randomness inside the model is a function of where training stands: nothing is to be remembered."""
        sequence = np.random.SeedSequence(
            [self.config.seed, *numbers, *[self.world.rank] * (self.world.size > 1)]
        )
        seed_everything(int(sequence.generate_state(1)[0]))

    def _add_gradients(self, batch: Batch, share: float, meter: Meter) -> None:
        images = normalize(batch.images.to(self.device, non_blocking=True), self.config.preprocess)
        labels = batch.labels.to(self.device, non_blocking=True)
        if self.mix:
            images, labels = self.mix(images, labels)
        images = images.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            output = self.forward(images)
        loss, terms = total_loss(output, labels, self.config.loss, self.multi_label)
        self.scaler.scale(loss * share).backward()
        terms = {f"loss_{name}": term for name, term in terms.items()}
        meter.add({"loss": loss, **terms, **output.stats}, len(images))

    def _step(self, correction: float) -> None:
        self.scaler.unscale_(self.optimizer)
        if correction != 1:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, correction)
        if self.config.optim.clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.updates += 1
        self.schedule.step_update(self.updates)
        if self.ema:
            self.ema.update(self.model, step=self.updates)

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """The precision of the forward pass."""
        kind = self.config.amp
        with torch.autocast(self.device.type, AMP_TYPES[kind], enabled=kind != "none"):
            yield

    def check_loss(self, loss: float) -> None:
        """Refuse to go on from a loss that is no number any more.

        Raises:
            FgvcError: names what usually helps.
        """
        if np.isfinite(loss):
            return
        rates = self.rates()
        raise FgvcError(
            f"The loss became {loss} after {self.updates} updates.",
            f"Lower the learning rates (--set optim.{max(rates, key=lambda name: rates[name])}=...), "
            "or clip: --set optim.clip_grad=1",
        )

    def rates(self) -> dict[str, float]:
        """As ``largest_rates``; 0 for a backbone that is frozen."""
        rates = largest_rates(self.optimizer)
        return rates | {"lr_backbone": 0.0} if self.frozen and "lr_backbone" in rates else rates

    def state(self) -> dict[str, Any]:
        """Everything that the next update depends on: nested dicts and lists of tensors and plain values."""
        return {
            "updates": self.updates,
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a ``state`` of an equal learner."""
        self.updates = state["updates"]
        self.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def _depthwise_in_float32(model: nn.Module) -> None:
    """Leave a network's depthwise convolutions out of bf16 autocast.

    oneDNN has no fast bf16 kernels for most of their gradients: in EfficientNet-Lite0 they take two thirds
    of a step, and several times what they take in float32. Everything else keeps bf16.
    """
    for conv in model.modules():
        if isinstance(conv, nn.Conv2d) and conv.groups == conv.in_channels > 1:
            # A class rather than a hook: copies of the model (its average) keep it.
            conv.__class__ = _float32_class(type(conv))


@functools.cache
def _float32_class(base: type[nn.Conv2d]) -> type[nn.Conv2d]:
    def forward(self: nn.Conv2d, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return base.forward(self, x.float())

    return type(f"Float32{base.__name__}", (base,), {"forward": forward})


def _check_freeze(config: TrainConfig) -> None:
    frozen = config.optim.freeze_epochs
    if frozen > config.epochs:
        raise FgvcError(
            f"optim.freeze_epochs={frozen} keeps the backbone frozen longer than the {config.epochs} epochs.",
            f"--epochs {frozen + 1} or more; with --set optim.freeze_epochs={config.epochs} it never learns.",
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
