"""What learns, and one update of it: losses, model, optimiser, schedule, averages; and the memory that takes.

Legend: B batch, K classes, P parts, L branches.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from fgvc_cli.config import Loss, Preprocess, TrainConfig
from fgvc_cli.data.loaders import Batch
from fgvc_cli.data.names import class_order
from fgvc_cli.data.transforms import mix_transform
from fgvc_cli.engine.checkpoint import Checkpoint
from fgvc_cli.engine.device import (
    Precision,
    computing,
    float32_products,
    is_out_of_memory,
    release_memory,
    usual_precision,
)
from fgvc_cli.engine.distributed import ALONE, World
from fgvc_cli.engine.optim import build_optimizer, build_schedule, largest_rates
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.models.output import FgvcModel, ModelOutput, normalize, summarize_stats


def total_loss(
    output: ModelOutput, labels: Tensor, config: Loss, multi_label: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of each branch's cross entropy and of the model's penalties, and these terms by name.

    CRA-SMRA, Eq. 12: L = alpha * sum_i L_i + beta * L_all + gamma * L_div, where a branch called ``stage...``
    is an L_i (Eq. 10) and ``concat`` is L_all (Eq. 11). Any other branch weighs 1: the looks of a multi-stage
    ViT, L = L_a + L_b + sum_i L_ci (Eq. 1 of Conde & Turgutlu 2021), and the one answer of a plain baseline.

    Args:
        labels: class indices (B,), targets (B, K) of mixed images, or those of a multi-label set.
        multi_label: whether each class is a yes or no of its own, see ``label_loss``.

    Returns:
        The loss, a scalar, and the unweighted terms, detached. Where ``output.part_logits`` is there, the
        term ``parts`` comes from it, see ``part_loss``.
    """
    terms = {
        name: label_loss(logits, labels, config.label_smoothing, multi_label)
        for name, logits in output.logits.items()
    }
    if output.part_logits is not None:
        terms["parts"] = part_loss(output.part_logits, labels, config, multi_label)
    weights = {name: _branch_weight(name, config) for name in terms}
    for name, penalty in output.penalties.items():
        terms[name] = penalty
        weights[name] = config.gamma
    loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return loss, {name: term.detach() for name, term in terms.items()}


def label_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0, multi_label: bool = False) -> Tensor:
    """Cross entropy of one branch, a scalar, averaged over the batch.

    Args:
        logits: (B, K).
        labels: int64 (B,), or float (B, K) in [0, 1]: shares of the classes of mixed images, or one target
            for each label.
        smoothing: share of the target that is spread over all K classes, or over yes and no of each label.
        multi_label: binary cross entropy of each label by itself, averaged over the labels, in place of the
            softmax over the classes.
    """
    if not multi_label:
        return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
    targets = labels * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits.float(), targets)


def part_loss(part_logits: Tensor, labels: Tensor, config: Loss, multi_label: bool = False) -> Tensor:
    """Loss of each part crop as an input of its own, averaged over the batch.

    Args:
        part_logits: (B, P, K).
        labels, multi_label: as for ``total_loss``.

    Returns:
        A scalar: summed over the P parts (Eq. 1 of Conde & Turgutlu 2021), or averaged, by
        ``config.part_loss``.
    """
    parts = part_logits.shape[1]
    repeated = labels.repeat_interleave(parts, dim=0)
    mean = label_loss(part_logits.flatten(0, 1), repeated, config.label_smoothing, multi_label)
    return mean * parts if config.part_loss == "sum" else mean


def _branch_weight(name: str, config: Loss) -> float:
    if name.startswith("stage"):
        return config.alpha
    return config.beta if name == "concat" else 1.0


def fit_fuse_weights(probs: Tensor, labels: Tensor) -> Tensor:
    """Mixture weights that make the true labels most likely.

    Expectation maximisation of a mixture with fixed components: the likelihood is concave in the weights
    and never falls, so no step size is to be chosen.

    Args:
        probs: (L, N, K), each branch's probabilities on validation images; those of the true classes alone
            will do, with labels of 0.
        labels: (N,).

    Returns:
        (L,), non-negative, summing to 1.
    """
    likelihood = probs[:, torch.arange(len(labels)), labels].double().clamp_min(1e-12)
    weights = torch.full((len(probs), 1), 1 / len(probs), dtype=torch.float64)
    for _ in range(500):
        responsibility = weights * likelihood
        weights = (responsibility / responsibility.sum(dim=0)).mean(dim=1, keepdim=True)
    return weights.squeeze(1).float()


class Meter:
    """Sums over images, kept on the device in float64 until somebody asks.

    Reading a number back from a GPU at every step would make the CPU wait for the step to end.
    """

    def __init__(self) -> None:
        self.images = 0
        self._sums: dict[tuple[str, ...], Tensor] = {}

    def add(self, values: dict[str, Tensor], images: int) -> None:
        """Count scalars, or rates per channel (C,), that are means over ``images``."""
        scalars = {name: value for name, value in values.items() if not value.dim()}
        self._add(
            tuple(scalars), torch.stack([value.detach().double() for value in scalars.values()]) * images
        )
        for name, value in values.items():
            if value.dim():
                self._add((name,), value.detach().double() * images)
        self.images += images

    def _add(self, names: tuple[str, ...], sums: Tensor) -> None:
        self._sums[names] = self._sums[names] + sums if names in self._sums else sums

    def means(self) -> dict[str, float]:
        """Name -> mean over all images so far, rates per channel as ``summarize_stats`` has them; waits for
        the device."""
        sums: dict[str, Tensor] = {}
        for names, values in self._sums.items():
            parts = values.cpu().unbind() if len(names) == len(values) else (values.cpu(),)
            for name, value in zip(names, parts, strict=True):
                sums[name] = sums[name] + value if name in sums else value
        return summarize_stats({name: value / self.images for name, value in sums.items()})

    def joined(self, world: World) -> Meter:
        """Over the images of all processes; each has to ask."""
        whole = Meter()
        for state in world.gather(self.state()) if world.size > 1 else [self.state()]:
            whole.load(state, torch.device("cpu"))
        return whole

    def state(self) -> dict[str, Any]:
        """What ``load`` takes, as plain values."""
        return {"images": self.images, "sums": [[names, sums.tolist()] for names, sums in self._sums.items()]}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Add the sums of ``state``."""
        self.images += state["images"]
        for names, sums in state["sums"]:
            self._add(tuple(names), torch.tensor(sums, dtype=torch.float64, device=device))


def training_precision(amp: str, device: torch.device) -> Precision:
    """What ``config.amp`` means on a device."""
    named: dict[str, Precision] = {"none": "float32", "bf16": "bf16", "fp16": "fp16"}
    return named.get(amp) or usual_precision(device)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on every device.

    Args:
        seed: of 32 bits, the most that NumPy takes.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Teacher:
    """A trained model whose probabilities stand beside the labels (Hinton et al. 2015).

    It sees the very pixels that are learnt from, mixed images included (Beyer et al. 2022).

    Args:
        checkpoint: the trained model.
        classes: those of the data, in the order of its labels.
        share: of each target that is the teacher's.
        preprocess: of what learns.

    Raises:
        FgvcError: other classes, or labels of another kind.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        classes: Sequence[str],
        *,
        multi_label: bool,
        share: float,
        preprocess: Preprocess,
        device: torch.device,
    ):
        order = class_order(classes, checkpoint.classes, "The teacher", "the data have")
        if checkpoint.multi_label != multi_label:
            raise FgvcError(
                "Of teacher and model one tells a single label per image and the other several.",
                None,
                EXIT_USAGE,
            )
        self._model = checkpoint.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._share, self._classes = share, len(classes)
        self._order = torch.tensor(order, device=device)
        # From what the model sees to what the teacher is used to.
        own, other = checkpoint.preprocess, preprocess
        std = torch.tensor(own.std)
        self._scale = (torch.tensor(other.std) / std).view(3, 1, 1).to(device)
        self._shift = ((torch.tensor(other.mean) - torch.tensor(own.mean)) / std).view(3, 1, 1).to(device)

    @torch.no_grad()
    def targets(self, images: Tensor, labels: Tensor) -> Tensor:
        """Labels (B,) or (B, K) of normalised images (B, 3, H, W) -> targets (B, K) float32.

        Call it in the precision that the teacher is to compute in.
        """
        seen = images * self._scale + self._shift
        if side := self._model.fixed_px:
            seen = F.interpolate(seen, (side, side), mode="bilinear", antialias=True)
        told = self._model(seen).probs.float()[:, self._order]
        known = labels if labels.dim() == 2 else F.one_hot(labels, self._classes)
        return torch.lerp(known.float(), told, self._share)


class Learner:
    """A model that is being trained on one device; all of it that changes is in ``state``.

    Args:
        classes: K.
        updates_per_epoch: how often ``update`` is called in an epoch.
        world: the processes that train together, this among them.
        teacher: what it learns from beside the labels.

    Raises:
        FgvcError: settings of ``config`` that do not fit each other or the model.
    """

    def __init__(
        self,
        model: FgvcModel,
        config: TrainConfig,
        *,
        classes: int,
        updates_per_epoch: int,
        device: torch.device,
        world: World = ALONE,
        teacher: Teacher | None = None,
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
        self.precision = training_precision(config.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.ema = ModelEmaV3(self.model, config.ema_decay, use_warmup=True) if config.ema_decay else None
        self.mix = mix_transform(config.augment, classes)
        self.teacher = teacher
        self.multi_label = bool(model.config.multi_label)
        self.updates = 0
        # Those that learn once the frozen epochs are over; a backbone may have others that never do.
        self.backbone = self.model.get_submodule("backbone")
        self.freezable = [p for p in self.backbone.parameters() if p.requires_grad]
        self.frozen = False
        self._wrap()

    @property
    def kept(self) -> FgvcModel:
        """What is validated and kept."""
        average: Any = self.ema.module if self.ema else None
        return average or self.model

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
            self._wrap()

    def _wrap(self) -> None:
        self._wrapped = self.world.wrap(self.model)
        self.forward: Callable[..., ModelOutput] = (
            torch.compile(self._wrapped) if self.config.compile else self._wrapped
        )

    def update(self, batches: Iterable[tuple[tuple[int, ...], Batch]], expected: int, meter: Meter) -> None:
        """One optimiser step over several batches, as if they were one.

        Args:
            batches: each with the numbers that seed its dropout and its like, e.g. epoch and batch.
            expected: images in all of them in all processes, if all can be read. A batch of which a
                process gets fewer than two, which batch norm cannot use, is left out.
            meter: is given the loss, its terms, and the model's stats.
        """
        self.optimizer.zero_grad(set_to_none=True)
        # Of the backward pass too.
        with float32_products(self.device, self.precision):
            seen = self._add_batches(batches, expected, meter)
            if seen:
                self._step(expected / seen)

    def _add_batches(
        self, batches: Iterable[tuple[tuple[int, ...], Batch]], expected: int, meter: Meter
    ) -> int:
        """Gradients of all batches; how many images of all processes they are from."""
        seen = 0
        usable = self._usable(batches)
        following = next(usable, None)
        while following:
            (numbers, batch, images), following = following, next(usable, None)
            self._seed(*numbers)
            # Processes exchange gradients once per update, with the last batch.
            with self.world.without_exchange(self._wrapped) if following else contextlib.nullcontext():
                # The average over the processes divides by their number.
                self._add_gradients(batch, len(batch.labels) * self.world.size / expected, meter)
            seen += images
        return seen

    def _usable(
        self, batches: Iterable[tuple[tuple[int, ...], Batch]]
    ) -> Iterator[tuple[tuple[int, ...], Batch, int]]:
        """Those of which every process has enough, with the images of all processes in each."""
        for numbers, batch in batches:
            counts = self.world.counts(len(batch.labels))
            if min(counts) >= 2:
                yield numbers, batch, sum(counts)

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
        with computing(self.device, self.precision):
            if self.teacher:
                labels = self.teacher.targets(images, labels)
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

    def seconds_per_image(self, side: int) -> float | None:
        """What a step takes, by the second of two on a copy of the model; None where it cannot be tried.

        Nothing of the learner changes, randomness included.

        Args:
            side: of the input, pixels.
        """
        images = min(8, max(self.config.batch_size, 2))  # of larger batches each takes about as long
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            batch = torch.zeros(images, 3, side, side, device=self.device)
            batch = batch.contiguous(memory_format=torch.channels_last)
            seconds = 0.0
            try:
                model = copy.deepcopy(self.model).train()
                for _ in range(2):
                    start = time.perf_counter()
                    with computing(self.device, self.precision):
                        output = model(batch)
                    sum(logits.float().sum() for logits in output.logits.values()).backward()
                    if self.device.type == "cuda":
                        torch.cuda.synchronize(self.device)
                    seconds = time.perf_counter() - start
            except RuntimeError:  # too little memory for a second model, for example
                return None
        return seconds / images

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
            conv.__class__ = _float32_class(type(conv))  # type: ignore[arg-type]


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


def out_of_memory(learner: Learner, config: TrainConfig) -> FgvcError:
    """The user's line. Tries smaller batches, so the learner is not to be used after it.

    Call it outside the ``except`` block: the exception holds the activations of the step that failed.
    """
    side = config.augment.train_px or config.preprocess.input_px
    what = f"Out of memory with batches of {config.batch_size} at {side} px on {learner.device}."
    if learner.world.size > 1:
        half = max(2, config.batch_size // 2)
        keeps = f"--set accumulate={-(-config.batch_size * config.accumulate // half)}"
        return FgvcError(what, f"Try --batch-size {half}; {keeps} keeps the images per update.")
    fitting = largest_batch(learner, config.batch_size // 2, side)
    if fitting is None:
        hint = "Not even a batch of 2 fits: take a smaller --input-px or model"
        return FgvcError(
            what, hint + ("." if config.grad_checkpointing else ", or --set grad_checkpointing=yes.")
        )
    accumulate = -(-config.batch_size * config.accumulate // fitting)
    return FgvcError(
        what,
        f"A batch of {fitting} fits; --batch-size {fitting} --set accumulate={accumulate} "
        f"keeps {fitting * accumulate} images per update.",
    )


def largest_batch(learner: Learner, start: int, side: int) -> int | None:
    """Halve a batch from ``start`` until a whole update goes through.

    Args:
        start: images.
        side: of their input, pixels.

    Returns:
        A number of images, at least 2, or None.
    """
    size = start
    while size >= 2:
        if _fits(learner, size, side):
            return size
        size //= 2
    return None


def _fits(learner: Learner, size: int, side: int) -> bool:
    learner.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    release_memory(learner.device)
    batch = Batch(
        torch.zeros(size, 3, side, side, dtype=torch.uint8),
        torch.zeros(size, dtype=torch.int64),
        torch.arange(size),
        [],
    )
    try:
        learner.update([((0,), batch)], size, Meter())
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return False
        raise
    return True
