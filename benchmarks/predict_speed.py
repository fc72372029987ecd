"""How fast predict is, beside the two things it is made of, measured in the same run.

    python benchmarks/predict_speed.py PHOTOS --weights groceries

Prints images/s of decoding and resizing alone, of the model alone on resident tensors, and of the whole
predictor with the CSV written, and the ratio of the last to the slower of the first two. Rounds are
interleaved and medians are printed, as shared machines are noisy.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fgvc_cli.data.find import Found, find_images
from fgvc_cli.data.images import DecodedImage, read_image
from fgvc_cli.data.transforms import eval_transform, normalize
from fgvc_cli.engine.allocator import keep_freed_memory
from fgvc_cli.engine.checkpoint import Checkpoint
from fgvc_cli.engine.weights import open_weights
from fgvc_cli.predict.predictor import Predictor
from fgvc_cli.predict.prefetch import map_ahead
from fgvc_cli.predict.sinks import open_sink


def main() -> None:
    """Three timings, in rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos")
    parser.add_argument("--weights", default="groceries")
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    keep_freed_memory()
    checkpoint = open_weights(arguments.weights)
    images = list(find_images([arguments.photos]))[: arguments.count]
    predictor = Predictor(checkpoint, batch_size=arguments.batch_size, workers=arguments.workers)
    jobs: dict[str, Callable[[], None]] = {
        "decode": lambda: _decode(checkpoint, images, arguments.workers),
        "forward": lambda: _forward(checkpoint, len(images), arguments.batch_size),
        "predict": lambda: _predict(predictor, images),
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(arguments.rounds + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    rates = {name: len(images) / statistics.median(times) for name, times in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:8s} {rate:8.1f} images/s")
    slower = min(rates["decode"], rates["forward"])
    print(f"predict / slower of the two: {rates['predict'] / slower:.3f}")
    # On a CPU both share the same cores, so the sum of their times is the bound that can be reached.
    bound = 1 / (1 / rates["decode"] + 1 / rates["forward"])
    print(f"predict / both one after the other: {rates['predict'] / bound:.3f}")


def _decode(checkpoint: Checkpoint, images: list[Found], workers: int) -> None:
    transform = eval_transform(checkpoint.preprocess)

    def load(found: Found) -> None:
        photo = read_image(found.path)
        if isinstance(photo, DecodedImage):
            transform(photo.image)

    for _ in map_ahead(load, images, workers=workers, window=32):
        continue


@torch.inference_mode()
def _forward(checkpoint: Checkpoint, count: int, batch_size: int) -> None:
    side = checkpoint.preprocess.input_px
    pixels = torch.zeros(batch_size, 3, side, side, dtype=torch.uint8)
    batch = normalize(pixels, checkpoint.preprocess).contiguous(memory_format=torch.channels_last)
    for start in range(0, count, batch_size):
        checkpoint.model(batch[: count - start])


def _predict(predictor: Predictor, images: list[Found]) -> None:
    with tempfile.TemporaryDirectory() as folder, open_sink(Path(folder) / "out.csv") as sink:
        sink.begin(predictor.info)
        for row in predictor.predict(images):
            sink.write(row)


if __name__ == "__main__":
    main()
