"""What the training loop costs beside the computing itself, as ratios in one run.

    python benchmarks/train_loop.py --backbone mobilenetv2_100 --input-px 160

The same batches go through a plain timm loop, our loop around the same backbone, and one around CRA-SMRA,
all from memory and in turn; then our loop decodes them from files, with workers. Medians over the rounds. The
ratios are also given in CPU seconds of this process, which other programs on the machine hardly disturb.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from PIL import Image

from fgvc_cli.config import Optim, Preprocess, TrainConfig
from fgvc_cli.data.labelled import Example
from fgvc_cli.data.loaders import Batch, EpochDraws, LabelledImages, build_train_loader
from fgvc_cli.data.transforms import train_transform
from fgvc_cli.engine.device import keep_freed_memory
from fgvc_cli.engine.learner import Learner
from fgvc_cli.engine.run_state import Progress
from fgvc_cli.engine.trainer import TrainLoop
from fgvc_cli.models.output import normalize
from fgvc_cli.models.registry import create_model

CLASSES = 81


@dataclass
class Seconds:
    """Of an epoch."""

    wall: float = 0.0
    cpu: float = 0.0
    """Of this process, all threads."""


class Silent:
    """An observer that shows nothing."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing to close."""

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """Nothing to show."""

    on_epoch = on_warning = on_step


class Again:
    """A loader that gives the same batches in every epoch, from memory."""

    def __init__(self, batches: list[Batch]):
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield from self.batches


def main() -> None:
    """Run every variant in turn and print medians and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--input-px", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, Path(folder))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Print what was measured."""
    images = write_photographs(folder, arguments)
    start = time.perf_counter()
    loader, draws = files(images, arguments)
    next(iter(loader))
    first = time.perf_counter() - start
    batches = list(build_train_loader(images, EpochDraws(**draw_settings(images, arguments, 1)), workers=0))
    loops = {
        "our loop": ours(f"timm-{arguments.backbone}", Again(batches), draws, arguments),
        "CRA-SMRA": ours(f"crasmra-{arguments.backbone}", Again(batches), draws, arguments),
        "from files": ours(f"timm-{arguments.backbone}", loader, draws, arguments),
    }
    plain = plain_loop(batches, arguments)
    times: dict[str, list[Seconds]] = {name: [] for name in ("plain timm", *loops)}
    for _ in range(arguments.rounds + 1):
        times["plain timm"].append(plain())
        for name, loop in loops.items():
            times[name].append(run_epoch(loop, arguments.device))
    # The first round warms up.
    medians = {name: statistics.median(value.wall for value in values[1:]) for name, values in times.items()}
    count = arguments.batch_size * arguments.batches
    for name, seconds in medians.items():
        print(f"{name:10s} {count / seconds:8.1f} images/s")
    print(f"our loop / plain timm: {ratio(times, 'our loop', 'plain timm')}")
    print(f"CRA-SMRA / plain timm: {ratio(times, 'CRA-SMRA', 'plain timm')}")
    print(f"from files / from memory: {ratio(times, 'from files', 'our loop')}")
    step = medians["our loop"] / arguments.batches
    print(f"time to first batch: {first:.2f} s, {first / step:.1f} steps")


def ratio(times: dict[str, list[Seconds]], above: str, below: str) -> str:
    """Median and range of the rounds' own ratios, which what else runs on the machine disturbs least."""
    pairs = [*zip(times[above][1:], times[below][1:], strict=True)]
    walls = sorted(a.wall / b.wall for a, b in pairs)
    cpu = statistics.median(a.cpu / b.cpu for a, b in pairs)
    return f"{statistics.median(walls):.3f} ({walls[0]:.3f} to {walls[-1]:.3f}), {cpu:.3f} in CPU seconds"


def write_photographs(folder: Path, arguments: argparse.Namespace) -> LabelledImages:
    """JPEGs of 500 x 400 pixels, smooth as photographs are, as a training set."""
    torch.manual_seed(0)
    examples = []
    for number in range(arguments.batch_size * arguments.batches):
        noise = F.interpolate(torch.rand(1, 3, 20, 25), (400, 500), mode="bicubic").clamp(0, 1)
        pixels = (255 * noise[0]).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=90)
        examples.append(Example(f"{number}.jpg", number % CLASSES))
    config = make_config("timm", arguments)
    transform = train_transform(config.preprocess, config.augment)
    return LabelledImages(folder, examples, transform, rule=config.preprocess)


def make_config(model: str, arguments: argparse.Namespace) -> TrainConfig:
    """The settings of all variants."""
    side = arguments.input_px
    return TrainConfig(
        model=model,
        preprocess=Preprocess(input_px=side, resize_px=round(side * 1.15)),
        optim=Optim(lr_backbone=1e-4),
        batch_size=arguments.batch_size,
        epochs=arguments.rounds + 1,
    )


def draw_settings(images: LabelledImages, arguments: argparse.Namespace, epochs: int) -> dict:
    """Arguments of ``EpochDraws``."""
    labels = [example.label for example in images.examples]
    return {"labels": labels, "batch_size": arguments.batch_size, "seed": 0, "epochs": epochs}


def files(images: LabelledImages, arguments: argparse.Namespace) -> tuple:
    """A loader that decodes, and its draws."""
    draws = EpochDraws(**draw_settings(images, arguments, arguments.rounds + 1))
    return build_train_loader(images, draws, workers=arguments.workers), draws


def ours(model: str, loader: object, draws: EpochDraws, arguments: argparse.Namespace) -> TrainLoop:
    """Our loop around a model."""
    learner = Learner(
        create_model(model, CLASSES),
        make_config(model, arguments),
        classes=CLASSES,
        updates_per_epoch=arguments.batches,
        device=torch.device(arguments.device),
    )
    quiet = {"warn": lambda failures: None, "save": lambda: None}
    return TrainLoop(learner, draws, loader, Silent(), Progress(), **quiet)  # type: ignore[arg-type]


def run_epoch(loop: TrainLoop, device: str) -> Seconds:
    """Time of the next epoch."""
    with timed(device) as seconds:
        row = loop.run_epoch()
    loop.next_epoch(row, 0)
    return seconds


@contextlib.contextmanager
def timed(device: str) -> Iterator[Seconds]:
    """Time of a block, with the work of a GPU done."""
    seconds = Seconds()
    synchronise(device)
    wall, cpu = time.perf_counter(), time.process_time()
    yield seconds
    synchronise(device)
    seconds.wall, seconds.cpu = time.perf_counter() - wall, time.process_time() - cpu


def plain_loop(batches: list[Batch], arguments: argparse.Namespace) -> Callable[[], Seconds]:
    """The few lines that everybody writes first, over the same batches."""
    model = timm.create_model(arguments.backbone, num_classes=CLASSES).to(arguments.device)
    model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-5)
    preprocess = make_config("timm", arguments).preprocess

    def epoch() -> Seconds:
        with timed(arguments.device) as seconds:
            for batch in batches:
                images = normalize(batch.images.to(arguments.device, non_blocking=True), preprocess)
                images = images.contiguous(memory_format=torch.channels_last)
                loss = F.cross_entropy(model(images), batch.labels.to(arguments.device, non_blocking=True))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
        return seconds

    return epoch


def synchronise(device: str) -> None:
    """Wait for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
