"""How fast predict is, beside the two things it is made of and beside a plain loop, measured in the same run.

    python benchmarks/predict_speed.py PHOTOS --weights groceries
    python benchmarks/predict_speed.py PHOTOS --model crasmra-r50 --input-px 448 --count 48 --batch-size 8

Prints, for each of these, images/s and the processor time of one image in all processes together,

    decode    decoding and resizing alone, in as many workers
    forward   the model alone as the checkpoint has it, with boxes, on resident pixels
    csv       predict as the command does it: rows completed in parts, merged into a CSV
    h5        the same, into a CSV and an HDF5 file with attention maps and crops
    plain     a DataLoader in the manner of timm's inference.py with its defaults: Pillow in worker processes,
              normalised as float32 on the host, no boxes, all rows in memory, one CSV at the end
    tuned     the same with the model in channels_last, which timm has as an option
    finished  what a run costs whose rows are all complete: names compared, merged; milliseconds in all

and the ratios that predict is to reach. Rounds are interleaved and medians are printed, as shared machines
are noisy; where other work runs beside, the ratios of processor time say more.
"""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

# As the command sets it, before torch reads it; for the plain loop and the model alone too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from fgvc_cli import create_model
from fgvc_cli.config import Preprocess
from fgvc_cli.data.transforms import EvalTransform
from fgvc_cli.engine.checkpoint import Checkpoint
from fgvc_cli.engine.device import keep_freed_memory, pick_device
from fgvc_cli.engine.weights import open_weights
from fgvc_cli.formats.outputs import Outputs
from fgvc_cli.models.output import normalize
from fgvc_cli.predict.decoding import DecodePool, DecodeSettings, Rule, in_order
from fgvc_cli.predict.predictor import Predictor, TrainedModel
from fgvc_cli.run.folder import RunFolder, run_identity
from fgvc_cli.run.merge import merge_run
from fgvc_cli.run.parts import PartWriter
from fgvc_cli.sources.find import Found, find_images

EXTRAS = ("attention", "crop")


class RandomWeights(NamedTuple):
    """A model that nobody trained: as fast as one that somebody did."""

    model: torch.nn.Module
    name: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    sha256: str = "0" * 64


class Cost(NamedTuple):
    """Of one image, seconds."""

    wall: float
    processor: float


def main() -> None:
    """All timings, in rounds, and their ratios."""
    arguments = _arguments()
    keep_freed_memory()
    trained = _trained(arguments)
    device = pick_device(arguments.device)
    images = list(itertools.islice(find_images([arguments.photos]), arguments.count))
    size, workers = arguments.batch_size, arguments.workers
    own = copy.deepcopy(trained.model).eval().to(device).to(memory_format=torch.channels_last)
    contiguous = copy.deepcopy(trained.model).eval().to(device)
    csv_only, extras = (
        Predictor(trained, device=arguments.device, batch_size=size, workers=workers, extras=wanted)
        for wanted in ((), EXTRAS)
    )
    jobs: dict[str, Callable[[], None]] = {
        "decode": lambda: _decode(trained.preprocess, images, workers),
        "forward": lambda: _forward(own, trained.preprocess, len(images), size, device),
        "csv": lambda: predict_csv(csv_only, images),
        "h5": lambda: _predict(extras, images, ".csv", ".h5"),
        "plain": lambda: plain_loop(contiguous, trained, images, size, workers, device),
        "tuned": lambda: plain_loop(own, trained, images, size, workers, device),
    }
    print(f"{len(images)} images, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    costs = measure_costs(jobs, len(images), arguments.rounds)
    for name, cost in costs.items():
        print(f"{name:8s} {1 / cost.wall:8.1f} images/s {1000 * cost.processor:8.2f} ms of processor time")
    _print_ratios(costs)
    print(f"finished {1000 * _finished(extras, images):8.0f} ms for all {len(images)} (goal 2000)")


def _print_ratios(costs: dict[str, Cost]) -> None:
    both = Cost(*(costs["decode"][i] + costs["forward"][i] for i in range(2)))
    slower = Cost(*(max(costs["decode"][i], costs["forward"][i]) for i in range(2)))
    print(f"{'ratio':58s}  wall  processor")
    for label, limit, what in (
        ("csv / forward (goal 0.95 where the model is the limit)", costs["forward"], costs["csv"]),
        ("csv / slower of decode and forward (goal 0.90)", slower, costs["csv"]),
        ("csv / decode and forward one after the other", both, costs["csv"]),
        ("csv / plain loop", costs["plain"], costs["csv"]),
        ("h5 with maps and crops / plain loop (goal 1.3)", costs["plain"], costs["h5"]),
        ("h5 with maps and crops / tuned plain loop", costs["tuned"], costs["h5"]),
        ("h5 with maps and crops / csv (goal 0.90)", costs["csv"], costs["h5"]),
    ):
        print(f"{label:58s} {limit.wall / what.wall:5.2f} {limit.processor / what.processor:10.2f}")


def _trained(arguments: argparse.Namespace) -> TrainedModel:
    if not arguments.model:
        return open_weights(arguments.weights)
    px = arguments.input_px
    return RandomWeights(
        create_model(arguments.model, num_classes=200, input_px=px).eval(),
        arguments.model,
        tuple(f"class {i}" for i in range(200)),
        Preprocess(input_px=px, resize_px=px),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos")
    parser.add_argument("--weights", default="groceries")
    parser.add_argument("--model", help="a registry name, with random weights, instead of --weights")
    parser.add_argument("--input-px", type=int, default=448, help="with --model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def measure_costs(jobs: dict[str, Callable[[], None]], count: int, rounds: int) -> dict[str, Cost]:
    """Of each job: the medians of interleaved rounds, after one to warm up."""
    taken: dict[str, list[Cost]] = {name: [] for name in jobs}
    for round_ in range(rounds + 1):
        for name, job in jobs.items():
            start, before = time.perf_counter(), _processor_seconds()
            job()
            if round_:
                taken[name].append(Cost(time.perf_counter() - start, _processor_seconds() - before))
    return {
        name: Cost(*(statistics.median(each[i] for each in costs) / count for i in range(2)))
        for name, costs in taken.items()
    }


def _processor_seconds() -> float:
    """Of this process and of the children that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _decode(preprocess: Preprocess, images: list[Found], workers: int) -> None:
    settings = DecodeSettings(Rule(preprocess.input_px, preprocess.resize_px, preprocess.resize_rule))
    pool = DecodePool(settings, workers=workers)
    for _ in in_order(partial(pool.load, 0), images, window=32):
        continue
    pool.close()


@torch.inference_mode()
def _forward(
    model: torch.nn.Module, preprocess: Preprocess, count: int, batch_size: int, device: torch.device
) -> None:
    side = preprocess.input_px
    pixels = torch.zeros(batch_size, 3, side, side, dtype=torch.uint8, device=device)
    batch = normalize(pixels, preprocess).contiguous(memory_format=torch.channels_last)
    for start in range(0, count, batch_size):
        model(batch[: count - start], want=("boxes",))
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def predict_csv(predictor: Predictor, images: list[Found]) -> None:
    """As the command does it, into a CSV."""
    _predict(predictor, images, ".csv")


def _predict(predictor: Predictor, images: list[Found], *endings: str) -> None:
    """Into completed parts and from there into the outputs, as the command does."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = Outputs(
            tuple(Path(folder) / f"p{end}" for end in endings), frozenset(predictor.info.extras)
        )
        root = Path(folder) / "partial"
        with RunFolder(root, run_identity(predictor.info, ["photos"])) as run:
            _complete(run, predictor, images)
            merge_run(root, outputs)


def _complete(run: RunFolder, predictor: Predictor, images: list[Found]) -> None:
    with PartWriter(run.path) as writer:
        for block in predictor.blocks(images):
            writer.add(block)
            run.count(len(block), block.status)
        writer.flush()
    run.finish()


def _finished(predictor: Predictor, images: list[Found]) -> float:
    """Seconds of going on with a run that has all its rows and lacks the merge."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "partial"
        with RunFolder(root, run_identity(predictor.info, ["photos"])) as run:
            _complete(run, predictor, images)
        start = time.perf_counter()
        with RunFolder(root, run_identity(predictor.info, ["photos"])) as run:
            run.survey()
            assert not list(run.tasks(iter(images)))
            merge_run(root, Outputs((Path(folder) / "p.csv",)))
        return time.perf_counter() - start


def write_rows(images: list[Found], names: Sequence[str], indices: list, probs: list) -> None:
    """One CSV with all rows."""
    rows = zip(images, indices, probs, strict=True)
    with tempfile.TemporaryFile("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(
            [found.name, *(names[i] for i in best), *values] for found, best, values in rows
        )


class _Plain(Dataset):
    """float32 (3, S, S), normalised on the host; an unreadable file ends the run."""

    def __init__(self, paths: list[Path], preprocess: Preprocess):
        self.paths = paths
        self.cut = EvalTransform(preprocess)
        self.finish = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Normalize(preprocess.mean, preprocess.std)]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            return self.finish(self.cut(image.convert("RGB")))


@torch.inference_mode()
def plain_loop(
    model: torch.nn.Module,
    trained: TrainedModel | Checkpoint,
    images: list[Found],
    batch_size: int,
    workers: int,
    device: torch.device,
) -> None:
    """In the manner of timm's inference.py, with the model as it is given."""
    dataset = _Plain([Path(str(found.path)) for found in images], trained.preprocess)
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, pin_memory=device.type == "cuda")
    probs, indices = [], []
    for batch in loader:
        best, index = model(batch.to(device)).probs.topk(5)
        probs.append(best.cpu())
        indices.append(index.cpu())
    write_rows(images, trained.classes, torch.cat(indices).tolist(), torch.cat(probs).tolist())


if __name__ == "__main__":
    main()
