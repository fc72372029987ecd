"""How fast predict is, beside the two things it is made of and beside a plain loop, measured in the same run.

    python benchmarks/predict_speed.py PHOTOS --weights groceries

Prints images/s of

    decode    decoding and resizing alone, in as many workers
    forward   the model alone, with boxes, on resident pixels
    predict   the whole predictor, rows into a CSV
    extras    the same with attention maps, crops, embeddings and logits
    plain     a DataLoader in the manner of timm's inference.py: threads of Pillow in worker processes,
              normalised as float32 on the host, no boxes, all rows in memory, one CSV at the end

and their ratios. Rounds are interleaved and medians are printed, as shared machines are noisy.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from fgvc_cli.config import Preprocess
from fgvc_cli.data.find import Found, find_images
from fgvc_cli.data.transforms import EvalTransform, normalize
from fgvc_cli.engine.allocator import keep_freed_memory
from fgvc_cli.engine.checkpoint import Checkpoint
from fgvc_cli.engine.device import pick_device
from fgvc_cli.engine.weights import open_weights
from fgvc_cli.predict.decode_pool import DecodePool, in_order
from fgvc_cli.predict.decoder import DecodeSettings, Rule
from fgvc_cli.predict.predictor import Predictor

EXTRAS = ("attention", "crop", "embedding", "logits")


def main() -> None:
    """Five timings, in rounds."""
    arguments = _arguments()
    keep_freed_memory()
    checkpoint = open_weights(arguments.weights)
    device = pick_device(arguments.device)
    images = list(itertools.islice(find_images([arguments.photos]), arguments.count))
    size, workers = arguments.batch_size, arguments.workers
    plain, extras = (
        Predictor(checkpoint, device=arguments.device, batch_size=size, workers=workers, extras=wanted)
        for wanted in ((), EXTRAS)
    )
    jobs: dict[str, Callable[[], None]] = {
        "decode": lambda: _decode(checkpoint.preprocess, images, workers),
        "forward": lambda: _forward(checkpoint, len(images), size, device),
        "predict": lambda: _predict(plain, images),
        "extras": lambda: _predict(extras, images),
        "plain": lambda: _plain_loop(checkpoint, images, size, workers, device),
    }
    rates = _rates(jobs, len(images), arguments.rounds)
    for name, rate in rates.items():
        print(f"{name:8s} {rate:8.1f} images/s")
    print(f"predict / slower of decode and forward: {_slower(rates):.3f}")
    # On a CPU both share the same cores, so the sum of their times is the bound that can be reached.
    bound = 1 / (1 / rates["decode"] + 1 / rates["forward"])
    print(f"predict / decode and forward one after the other: {rates['predict'] / bound:.3f}")
    print(f"predict / plain loop: {rates['predict'] / rates['plain']:.3f}")
    print(f"extras / predict: {rates['extras'] / rates['predict']:.3f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos")
    parser.add_argument("--weights", default="groceries")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def _rates(jobs: dict[str, Callable[[], None]], count: int, rounds: int) -> dict[str, float]:
    """Images/s of each job: the median of interleaved rounds, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(rounds + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return {name: count / statistics.median(times) for name, times in seconds.items()}


def _slower(rates: dict[str, float]) -> float:
    return rates["predict"] / min(rates["decode"], rates["forward"])


def _decode(preprocess: Preprocess, images: list[Found], workers: int) -> None:
    settings = DecodeSettings(Rule(preprocess.input_px, preprocess.resize_px, preprocess.resize_rule))
    pool = DecodePool(settings, workers=workers)
    for _ in in_order(lambda found: pool.load(0, found), images, window=32):
        continue
    pool.close()


@torch.inference_mode()
def _forward(checkpoint: Checkpoint, count: int, batch_size: int, device: torch.device) -> None:
    side = checkpoint.preprocess.input_px
    pixels = torch.zeros(batch_size, 3, side, side, dtype=torch.uint8, device=device)
    batch = normalize(pixels, checkpoint.preprocess).contiguous(memory_format=torch.channels_last)
    for start in range(0, count, batch_size):
        checkpoint.model(batch[: count - start], want=("boxes",))
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _predict(predictor: Predictor, images: list[Found]) -> None:
    """Blocks taken as a sink takes them; the rows written as they come."""
    with tempfile.TemporaryFile("w", encoding="utf-8", newline="") as stream:
        for block in predictor.blocks(images):
            rows = block.rows(predictor.info)
            _write(
                stream, ([row.path, row.status, *row.labels, *row.probs, *(row.box or ())] for row in rows)
            )


def _write(stream: object, rows: Iterable[list]) -> None:
    csv.writer(stream).writerows(rows)  # type: ignore[arg-type]


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
def _plain_loop(
    checkpoint: Checkpoint, images: list[Found], batch_size: int, workers: int, device: torch.device
) -> None:
    dataset = _Plain([Path(str(found.path)) for found in images], checkpoint.preprocess)
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, pin_memory=device.type == "cuda")
    probs, indices = [], []
    for batch in loader:
        best, index = checkpoint.model(batch.to(device)).probs.topk(5)
        probs.append(best.cpu())
        indices.append(index.cpu())
    rows = zip(images, torch.cat(indices).tolist(), torch.cat(probs).tolist(), strict=True)
    with tempfile.TemporaryFile("w", encoding="utf-8", newline="") as stream:
        names = checkpoint.classes
        _write(stream, ([found.name, *(names[i] for i in best), *values] for found, best, values in rows))


if __name__ == "__main__":
    main()
