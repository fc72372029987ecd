"""What explaining a folder costs beside predicting it, measured in the same run.

    python benchmarks/explain_speed.py PHOTOS --weights groceries --method features
    python benchmarks/explain_speed.py PHOTOS --weights groceries-vit --method rollout

Both as the commands do them, in one process: predict into a CSV and an HDF5 file with attention maps; explain
into a folder of strips with its table. Rounds are interleaved and medians are printed, as shared machines are
noisy; where other work runs beside, the ratio of processor time says more.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as both commands do, before torch reads it

import torch
from predict_speed import Cost, _costs, _predict

from fgvc_cli.engine.device import keep_freed_memory
from fgvc_cli.engine.weights import open_weights
from fgvc_cli.explain.options import ExplainOptions
from fgvc_cli.explain.run import explain as explain_command
from fgvc_cli.predict.predictor import Predictor
from fgvc_cli.sources.find import find_images


def main() -> None:
    """Both timings, in rounds, and their ratio."""
    arguments = _arguments()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        images = list(itertools.islice(find_images([arguments.photos]), arguments.count))
        photos = Path(folder) / "photos"
        photos.mkdir()
        for number, found in enumerate(images):
            (photos / f"{number}-{Path(found.name).name}").symlink_to(Path(str(found.path)).resolve())
        checkpoint = open_weights(arguments.weights)
        predictor = Predictor(
            checkpoint,
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            extras=("attention",),
        )
        explain = partial(_explain, arguments, photos)
        jobs = {"predict": lambda: _predict(predictor, images, ".csv", ".h5"), "explain": explain}
        print(f"{len(images)} images, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
        costs = _costs(jobs, len(images), arguments.rounds)
    for name, cost in costs.items():
        print(f"{name:8s} {1 / cost.wall:8.1f} images/s {1000 * cost.processor:8.2f} ms of processor time")
    predict, explained = costs["predict"], costs["explain"]
    ratio = Cost(explained.wall / predict.wall, explained.processor / predict.processor)
    print(f"explain / predict (goal 2): wall {ratio.wall:.2f}, processor {ratio.processor:.2f}")


def _explain(arguments: argparse.Namespace, photos: Path) -> None:
    """With the reading of the weights, which is small over so many images."""
    with tempfile.TemporaryDirectory() as folder:
        methods = (arguments.method,) if arguments.method else ()
        options = ExplainOptions(
            photos,
            weights=arguments.weights,
            out=Path(folder) / "why",
            method=methods,
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            quiet=True,
        )
        explain_command.run(options)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos")
    parser.add_argument("--weights", default="groceries")
    parser.add_argument("--method", help="as of fgvc explain; none: what the model itself shows")
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
