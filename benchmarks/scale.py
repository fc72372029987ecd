"""How a run grows: rows a second, the driver's memory and the merge, for many images and many workers.

    python benchmarks/scale.py --images 100000 1000000 --workers 1 8 64 --merge ""
    python benchmarks/scale.py --images 100000 --workers 8 --merge .h5
    python benchmarks/scale.py --images 200 40000 --store

Images, decoder and model are made up; the walk, the parts, their bookkeeping and the merge are those of
``fgvc predict --ray``. Workers are simulated: each is taken to answer ``--rate`` images a second, and the
CPU time that the driver needs for walking, handing out and committing, which is measured, passes for them
all. CPU time, as a shared machine would make waiting of it. What the workers need for their rows, on their
own nodes, is left out.

Each case runs in a process of its own, so that its peak of memory is its own.

With ``--store`` a CSV on the disk and one in a bucket take turns, twice each, in one process: the first
number of images through the embedded ``aviary``, the others with the model made up, wall time and merge
included. The S3 server is moto's, a process of this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fgvc_cli.config import Preprocess
from fgvc_cli.formats.outputs import Outputs
from fgvc_cli.formats.rows import Block, RunInfo
from fgvc_cli.run.cluster import Lost, Part, Worker, WorkerPool
from fgvc_cli.run.folder import RunFolder, partial_folder, run_identity
from fgvc_cli.run.merge import merge_run
from fgvc_cli.run.parts import PartWriter
from fgvc_cli.sources.find import Found
from fgvc_cli.store import as_path

CLASSES = tuple(f"class {i}" for i in range(200))


class SimulatedCluster:
    """A ``cluster.Cluster`` in this process: calls are made while they are waited for, one after another, in
    the order in which workers of equal speed would be through with them.

    Args:
        size: workers that find room.
        rate: images a second of each.
        dies: told of each call as it is through: (worker's number, method, part or None); True loses the
            worker, after it has done its work.
    """

    def __init__(
        self, size: int, rate: float = 1000.0, dies: Callable[[int, str, Part | None], bool] | None = None
    ):
        self.size, self.rate = size, rate
        self.dies = dies or (lambda *_: False)
        self.now = 0.0
        """Simulated seconds."""
        self.working = 0.0
        """CPU seconds that workers took."""
        self._real = time.process_time()
        self._workers: dict[int, Worker] = {}
        self._free: dict[int, float] = {}
        self._calls: dict[int, tuple[int, str, tuple[Any, ...], float]] = {}
        self._begun = 0
        self.most_under_way = 0

    def _pass(self) -> None:
        """What the driver took since it was last here has passed for all."""
        real = time.process_time()
        self.now, self._real = self.now + real - self._real, real

    def start(self) -> int:
        self._begun += 1
        self._workers[self._begun] = Worker()
        self._workers[self._begun].host = f"node-{self._begun}"
        self._free[self._begun] = self.now
        return self._begun

    def call(self, worker: int, method: str, *args: Any) -> int:
        self._pass()
        self._begun += 1
        images = len(args[1].images) if method == "complete" else 0
        self._free[worker] = max(self.now, self._free[worker]) + images / self.rate
        self._calls[self._begun] = (worker, method, args, self._free[worker])
        under_way = sum(
            len(args[1].images) for _, kind, args, _ in self._calls.values() if kind == "complete"
        )
        self.most_under_way = max(self.most_under_way, under_way)
        return self._begun

    def wait(self, calls: list[int], seconds: float) -> list[int]:
        self._pass()
        placed = sorted(self._workers)[: self.size]
        there = [call for call in calls if self._calls[call][0] in placed]
        if not there:
            self.now += seconds
            return []
        first = min(there, key=lambda call: (self._calls[call][3], call))
        self.now = max(self.now, self._calls[first][3])
        return [first]

    def take(self, call: int) -> Any:
        worker, method, args, _ = self._calls.pop(call)
        begun = time.process_time()
        answer = getattr(self._workers[worker], method)(*args)
        self.working += time.process_time() - begun
        self._real = time.process_time()
        if self.dies(worker, method, args[1] if method == "complete" else None):
            raise Lost("it died")
        return answer

    def stop(self, worker: int) -> None:
        self._workers.pop(worker, None)
        self._calls = {call: each for call, each in self._calls.items() if each[0] != worker}

    def room(self) -> int:
        return self.size - len(self._workers)


class InstantPredictor:
    """Rows at once; with maps (14, 14) and embeddings (512,) where the run has them, drawn once."""

    def __init__(self, extras: tuple[str, ...], batch: int = 256):
        self.info = RunInfo("made-up", "0" * 64, CLASSES, Preprocess(), 5, 0, extras, {"batch_size": batch})
        rng = np.random.default_rng(0)
        self.batch, self.clipped = batch, 0
        self._prob = np.sort(rng.random((batch, 5), np.float32))[:, ::-1]
        self._box = rng.random((batch, 4), np.float32) * 400
        self._maps = rng.random((batch, 14, 14)).astype(np.float16)
        self._embedding = rng.standard_normal((batch, 512)).astype(np.float32)

    def kept_decoders(self) -> Any:
        return nullcontext()

    def blocks(self, images: Any, first: int = 0) -> Iterator[Block]:
        images = list(images)
        for start in range(0, len(images), self.batch):
            names = [found.name for found in images[start : start + self.batch]]
            n, extras = len(names), self.info.extras
            yield Block(
                first=first + start,
                path=names,
                status=["ok"] * n,
                error=[""] * n,
                size=np.full((n, 2), (640, 480), np.int32),
                topk_index=np.tile(np.arange(5, dtype=np.int32), (n, 1)),
                topk_prob=self._prob[:n],
                box=self._box[:n],
                parts=np.empty((n, 0, 4), np.float32),
                attention=self._maps[:n] if "attention" in extras else None,
                embedding=self._embedding[:n] if "embedding" in extras else None,
            )


def make_instant(options: dict[str, Any], note: Callable[[str], None]) -> InstantPredictor:
    """A ``cluster.Make``."""
    return InstantPredictor(tuple(options["extras"]))


def made_up_images(count: int) -> Iterator[Found]:
    for i in range(count):
        name = f"{i // 10_000:05d}/{i:010d}.jpg"
        yield Found(Path(name), name)


class Silent:
    """What a run tells, to nobody."""

    def count(self, rows: int, statuses: Counter[str]) -> None:
        """Nothing is drawn."""

    def on_clipped(self, boxes: int) -> None:
        """There are none."""


def peak_mib() -> float:
    """Of this process since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(images: int, workers: int, rate: float, ending: str) -> dict[str, float]:
    """One case, in this process."""
    extras = ("attention", "embedding") if ending == ".h5" else ()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        outputs = Outputs((Path(folder) / f"p{ending or '.csv'}",), frozenset(extras))
        cluster, root = SimulatedCluster(workers, rate), partial_folder(outputs.files[0])
        pool = WorkerPool(cluster, make_instant, {"extras": extras}, lambda text: None)
        begun, before = time.process_time(), peak_mib()
        with pool, RunFolder(root, run_identity(pool.open(), ["made up"])) as run:
            run.survey()
            pool.complete(run.tasks(made_up_images(images)), run, Silent())
            run.finish()
            took, memory = time.process_time() - begun, peak_mib()
            assert run.rows == images
            begun, cpu = time.perf_counter(), time.process_time()
            if ending:
                merge_run(root, outputs)
            merging, cpu = time.perf_counter() - begun, time.process_time() - cpu
        found = {
            "images": images,
            "workers": workers,
            "rows_per_s": images / cluster.now,
            "of_ideal": images / cluster.now / (workers * rate),
            "driver_us_per_row": (took - cluster.working) / images * 1e6,
            "under_way": cluster.most_under_way,
            "driver_mib": memory - before,
            "peak_mib": memory,
        }
        if not ending:
            return found
        found |= {
            "merge_s": merging,
            "merge_rows_per_s": images / merging,
            "merge_rows_per_cpu_s": images / cpu,
            "merge_peak_mib": peak_mib(),
            "output_mb": outputs.files[0].stat().st_size / 1e6,
        }
        if ending == ".h5":
            with h5py.File(outputs.files[0]) as file:
                assert len(file["path"]) == images and file["attention"][-1].any()
        return found


@contextmanager
def s3_bucket() -> Iterator[str]:
    """A bucket of an S3 server in a process of its own; the URL of the bucket."""
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= keys | {"AWS_ENDPOINT_URL": address}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.2)
        boto3.client("s3").create_bucket(Bucket="bench")
        yield "s3://bench"
    finally:
        server.terminate()
        server.wait()


def predict_made_up(images: int, out: str) -> None:
    """What ``fgvc predict`` does with rows that are there at once."""
    outputs, predictor = Outputs((as_path(out),)), InstantPredictor(())
    root = partial_folder(outputs.files[0])
    with RunFolder(root, run_identity(predictor.info, ["made up"])) as run:
        run.survey()
        for task in run.tasks(made_up_images(images)):
            with PartWriter(run.path, first=task.first) as writer:
                for block in predictor.blocks(task.images, first=task.first):
                    writer.add(block)
                    run.count(len(block), block.status)
                writer.flush()
        run.finish()
        merge_run(root, outputs)


def predict_really(images: int, out: str) -> None:
    """``fgvc predict`` of the photos of the examples, again and again."""
    from fgvc_cli.run.predict import predict_folder

    photos = sorted((Path(__file__).parents[1] / "examples" / "photos").glob("*.jpg"))
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listed:
        listed.writelines(f"{photos[i % len(photos)]}\n" for i in range(images))
        listed.flush()
        predict_folder(f"@{listed.name}", weights="aviary", out=out, amp="none", quiet=True)


def measure_store(images: list[int]) -> Iterator[dict[str, float]]:
    """Rows a second into a CSV on the disk and into one in a bucket, by turns."""
    with s3_bucket() as bucket, tempfile.TemporaryDirectory(dir=".") as folder:
        for which, count in enumerate(images):
            predict = predict_made_up if which else predict_really
            predict(16, f"{folder}/warm.csv"), predict(16, f"{bucket}/warm{which}.csv")
            Path(folder, "warm.csv").unlink()
            seconds = dict.fromkeys((folder, bucket), 0.0)
            for turn in range(2):
                for where in seconds:
                    begun = time.perf_counter()
                    predict(count, f"{where}/{which}-{turn}.csv")
                    seconds[where] += time.perf_counter() - begun
            rates = {f"{name}_rows_per_s": 2 * count / seconds[where]
                     for name, where in (("disk", folder), ("bucket", bucket))}  # fmt: skip
            yield {"images": count, **rates}


def show(found: dict[str, float]) -> None:
    print("  ".join(f"{name} {value:,.4g}" if value < 10 else f"{name} {value:,.0f}"
                    for name, value in found.items()), flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rate", type=float, default=500.0, help="images a second of each worker")
    parser.add_argument("--merge", default=".csv", choices=(".csv", ".h5", ""), help="output, or none at all")
    parser.add_argument("--case", action="store_true", help="one case, in this process")
    parser.add_argument("--store", action="store_true", help="a CSV on the disk and one in a bucket")
    options = parser.parse_args()
    if options.store:
        for found in measure_store(options.images):
            show(found)
        return
    if options.case:
        print(json.dumps(measure(options.images[0], options.workers[0], options.rate, options.merge)))
        return
    for images in options.images:
        for workers in options.workers:
            case = ["--case", "--images", str(images), "--workers", str(workers), "--merge", options.merge]
            command = [sys.executable, __file__, *case, "--rate", str(options.rate)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout)
            show(found)


if __name__ == "__main__":
    # Pickled by name, as workers get it.
    sys.modules["scale"] = sys.modules["__main__"]
    make_instant.__module__ = "scale"
    main()
