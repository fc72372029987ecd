"""fgvc predict beside what else classifies the same folder with the same model, measured in one run.

    python benchmarks/peers.py PHOTOS --weights groceries --write

A peer is a loop as one writes it: a DataLoader that decodes in worker processes, the model, the five best
classes, one CSV at the end, no boxes; the torch model in channels_last as timm has it, the exported graph in
onnxruntime and OpenVINO. fgvc predict does what the command does: rows completed in parts and merged into a
CSV, with boxes. ``--write`` puts the table between its marks in benchmarks/RESULTS.md. Rounds are
interleaved, medians are printed; where other work runs beside, the processor time of an image in all
processes says more than images/s.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# As the command sets it, before torch reads it; for the loops too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from PIL import Image
from predict_speed import Cost, measure_costs, plain_loop, predict_csv, write_rows
from torch.utils.data import DataLoader, Dataset

from fgvc_cli import export
from fgvc_cli.config import usable_cpus
from fgvc_cli.data.geometry import cut_input
from fgvc_cli.engine.device import keep_freed_memory
from fgvc_cli.engine.graph import Graph
from fgvc_cli.engine.weights import open_weights
from fgvc_cli.predict.predictor import Predictor
from fgvc_cli.sources.find import Found, find_images

RESULTS = Path(__file__).with_name("RESULTS.md")
BEGIN, END = "<!-- peers.py writes from here -->", "<!-- to here -->"


def main() -> None:
    """All timings and the table."""
    arguments = _arguments()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        graphs = _export(arguments, Path(folder))
        lines = _measure(arguments, graphs)
    text = "\n".join(lines)
    print(text)
    if arguments.write:
        head, _, rest = RESULTS.read_text(encoding="utf-8").partition(BEGIN)
        RESULTS.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def _export(arguments: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """The graph in float32 and in int8."""
    given: dict[str, Any] = {"weights": arguments.weights, "quiet": True}
    paths = {"float32": folder / "model.onnx", "int8": folder / "int8.onnx"}
    export(paths["float32"], **given)
    export(paths["int8"], int8=True, calibrate=arguments.calibrate or arguments.photos, **given)
    return paths


def _measure(arguments: argparse.Namespace, graphs: dict[str, Path]) -> list[str]:
    images = list(itertools.islice(find_images([arguments.photos]), arguments.count))
    size, workers = arguments.batch_size, arguments.workers
    model = open_weights(arguments.weights)
    classes = model.classes
    own = open_weights(arguments.weights).model.eval().to(memory_format=torch.channels_last)
    jobs: dict[str, Callable[[], None]] = {}
    for name, autocast in (("float32", False), ("bf16", True)):
        jobs[f"timm loop, channels_last, {name}"] = partial(
            _timm_loop, own, model, images, size, workers, autocast
        )
    for runtime, precision in (
        ("onnxruntime", "float32"),
        ("onnxruntime", "int8"),
        ("openvino", "float32"),
        ("openvino", "bf16"),
        ("openvino", "int8"),
    ):
        graph = Graph(graphs["int8" if precision == "int8" else "float32"], runtime=runtime, device="cpu")
        if precision == "bf16" and not graph.has_bf16:
            continue
        label = f"{'OpenVINO' if runtime == 'openvino' else runtime} loop, {precision}"
        jobs[label] = partial(_graph_loop, graph, precision, images, size, workers, classes)
    took: dict[str, float] = {}
    chosen: dict[str, str] = {}
    settings: list[tuple[str, Any, str, str]] = [
        ("fgvc predict, torch", arguments.weights, "auto", amp) for amp in ("none", "bf16", "auto")
    ]
    whole = graphs["float32"]
    settings += [("fgvc predict, OpenVINO", whole, "openvino", amp) for amp in ("none", "bf16", "auto")]
    settings += [("fgvc predict, OpenVINO, int8", graphs["int8"], "openvino", "none")]
    settings += [("fgvc predict, onnxruntime", whole, "onnxruntime", "none")]
    settings += [("fgvc predict, onnxruntime, int8", graphs["int8"], "onnxruntime", "none")]
    for label, weights, runtime, amp in settings:
        name = label if "int8" in label else f"{label}, {'float32' if amp == 'none' else amp}"
        start = time.perf_counter()
        with contextlib.suppress(_NoBf16):
            predictor = _predictor(weights, runtime, amp, size, workers)
            took[name], chosen[name] = time.perf_counter() - start, predictor.info.settings["precision"]
            jobs[name] = partial(predict_csv, predictor, images)
    load = os.getloadavg()[0]
    costs = measure_costs(jobs, len(images), arguments.rounds)
    return [*_table(arguments, len(images), load, costs), "", *_choices(costs, took, chosen)]


class _NoBf16(Exception):
    """This CPU has no bfloat16."""


def _predictor(weights: Any, runtime: Any, amp: Any, size: int, workers: int) -> Predictor:
    graph = str(weights).endswith(".onnx")
    if graph and amp == "bf16" and not Graph(weights, runtime=runtime, device="cpu").has_bf16:
        raise _NoBf16
    return Predictor(weights, runtime=runtime, device="cpu", batch_size=size, workers=workers, amp=amp)


def _table(arguments: argparse.Namespace, count: int, load: float, costs: dict[str, Cost]) -> list[str]:
    slowest = costs["timm loop, channels_last, float32"]
    lines = [
        f"    python benchmarks/peers.py PHOTOS --weights {arguments.weights} --count {count} "
        f"--batch-size {arguments.batch_size} --workers {arguments.workers} --rounds {arguments.rounds}",
        "",
        f"{count} images, {usable_cpus()} CPUs ({_cpu()}), load {load:.1f} at the start, "
        f"{time.strftime('%Y-%m-%d')}.",
        "",
        "| what | images/s | ms of processor time per image | images/s over the timm loop in float32 |",
        "|---|---|---|---|",
    ]
    for name, cost in costs.items():
        lines.append(
            f"| {name} | {1 / cost.wall:.1f} | {1000 * cost.processor:.1f} | {slowest.wall / cost.wall:.2f} |"
        )
    return lines


def _choices(costs: dict[str, Cost], took: dict[str, float], chosen: dict[str, str]) -> list[str]:
    """What ``--amp auto`` chose, what that is worth beside the best, and what choosing took."""
    lines = []
    for label in ("fgvc predict, torch", "fgvc predict, OpenVINO"):
        names = [
            f"{label}, {precision}" for precision in ("float32", "bf16") if f"{label}, {precision}" in costs
        ]
        auto = f"{label}, auto"
        best = min(names, key=lambda name: costs[name].wall)
        ratios = [getattr(costs[best], field) / getattr(costs[auto], field) for field in Cost._fields]
        spent = took[auto] - took[f"{label}, float32"]
        lines.append(
            f"{label}: `--amp auto` took {chosen[auto]} and {spent:.1f} s to choose. Its images/s over "
            f"those of {best.rpartition(', ')[2]}, the best: {ratios[0]:.2f} (goal 0.97); in processor time "
            f"{ratios[1]:.2f}."
        )
    return lines


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.machine()


def _timm_loop(own: Any, model: Any, images: list[Found], size: int, workers: int, autocast: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain_loop(own, model, images, size, workers, torch.device("cpu"))


class _Pixels(Dataset):
    """uint8 (3, S, S), which the graph normalises; an unreadable file ends the run."""

    def __init__(self, paths: list[Path], rule: Any):
        self.paths, self.rule = paths, rule

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        with Image.open(self.paths[index]) as image:
            return np.asarray(cut_input(image.convert("RGB"), self.rule)).transpose(2, 0, 1).copy()


def _graph_loop(
    graph: Graph, precision: str, images: list[Found], size: int, workers: int, classes: tuple[str, ...]
) -> None:
    dataset = _Pixels([Path(str(found.path)) for found in images], graph.preprocess)
    probs, indices = [], []
    for batch in DataLoader(dataset, batch_size=size, num_workers=workers):
        told = graph.run(batch.numpy(), ["probs"], precision)["probs"]
        index = np.argsort(-told, axis=1)[:, :5]
        indices.append(index)
        probs.append(np.take_along_axis(told, index, axis=1))
    write_rows(images, classes, np.concatenate(indices).tolist(), np.concatenate(probs).tolist())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos")
    parser.add_argument("--weights", default="groceries")
    parser.add_argument("--calibrate", help="images for int8; PHOTOS without it")
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="the table into RESULTS.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
