"""Does fgvc work on a GPU, and how fast? To be run first on any machine that has one.

    python benchmarks/gpu_check.py --out gpu.json                 # one GPU, about 7 minutes
    python benchmarks/gpu_check.py --device cpu --quick           # its own logic, small models, a minute

One JSON, printed and written to ``--out`` as it grows. Each section stands alone: one that fails holds an
``error``, those that would begin after ``--seconds`` are left out.

matrix_tflops: rate of a large matrix product, the measure of what follows.
agreement: rows on the device against those of the CPU in float32, in each precision.
predict: images/s of the bare forward pass, with upload and download, and from files; fraction of the card's
matrix rate; host waits per batch.
training: images/s of whole update steps beside a plain timm loop in the same precision.
decoding: images/s of one core.
one_process_group: what training calls of NCCL, in a group of one.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import timm.layers
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.io import decode_jpeg, read_file

from fgvc_cli.config import Augment, Loss, Preprocess, TrainConfig, usable_cpus
from fgvc_cli.config import build as build_section
from fgvc_cli.data.geometry import cut_input
from fgvc_cli.data.loaders import Batch
from fgvc_cli.data.transforms import train_transform
from fgvc_cli.engine.learner import Learner, Meter, total_loss
from fgvc_cli.engine.weights import open_weights
from fgvc_cli.models.output import normalize
from fgvc_cli.models.registry import count_gmac, create_model
from fgvc_cli.predict.predictor import Predictor
from fgvc_cli.sources.find import Found, find_images
from fgvc_cli.sources.images import read_image

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 200


class Check:
    """The device, the sizes of a run, and what it measures with."""

    def __init__(self, device: str, quick: bool, work: Path):
        self.device, self.quick, self.work = torch.device(device), quick, work
        self.cnn = ("crasmra-test_resnet", 64) if quick else ("crasmra-r50", 448)
        self.vit = ("vitms-test_vit", 160) if quick else ("vitms-b16", 384)
        self.cores = usable_cpus()
        self.matrix_tflops: dict[str, float] = {}

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize(self.device)

    def begin_peak(self) -> None:
        gc.collect()
        if self.on_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float | None:
        return round(torch.cuda.max_memory_allocated() / 1e9, 2) if self.on_cuda else None

    def rate(self, step: Callable[[], object], images: int, seconds: float = 6.0) -> float:
        """Images/s of ``step``, which takes so many, over about ``seconds`` behind a warm-up."""
        for _ in range(1 if self.quick else 3):
            step()
        self.synchronize()
        start, count = time.perf_counter(), 0
        while count < 2 or time.perf_counter() - start < (0.2 if self.quick else seconds):
            step()
            count += 1
            if count % 16 == 0:
                self.synchronize()
        self.synchronize()
        return round(count * images / (time.perf_counter() - start), 1)

    def waits(self, step: Callable[[], object]) -> dict[str, int] | None:
        """Where one call makes the host wait, as torch's sync debug mode tells: file:line -> times."""
        if not self.on_cuda:
            return None
        step()
        self.synchronize()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            step()
            torch.cuda.set_sync_debug_mode("default")
        found = Counter(
            f"{w.filename.rpartition('/fgvc_cli/')[2]}:{w.lineno}"
            for w in seen
            if "synchroniz" in str(w.message)
        )
        return {"total": sum(found.values()), **found}

    def images(self, count: int) -> list[Found]:
        """So many rendered images, a few dozen over and over."""
        folder = self.work / "aviary"
        if not folder.exists():
            made = [sys.executable, "-m", "fgvc_cli", "datasets", "make", "aviary", str(folder)]
            few = ["--train", "1", "--val", "0", "--test", "0" if self.quick else "4"]
            subprocess.run([*made, *few], check=True, capture_output=True, cwd=ROOT)
        found = list(find_images([str(folder)]))
        return [found[i % len(found)] for i in range(count)]


class RandomWeights:
    """A model with random weights, as a Predictor takes it."""

    def __init__(self, name: str, px: int):
        self.model, self.name, self.sha256 = build_model(name, px), name, "0"
        self.classes = tuple(f"c{i}" for i in range(CLASSES))
        self.preprocess = Preprocess(input_px=px, resize_px=px)


def build_model(name: str, px: int) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, CLASSES, input_px=px).eval()


def matrix_rate(check: Check) -> dict[str, float]:
    """TFLOP/s of a large matrix product, by type."""
    side = 512 if check.quick else 8192
    whole = torch.randn(side, side, device=check.device)
    for dtype in (torch.bfloat16, torch.float32):
        square = whole.to(dtype)
        products = check.rate(lambda square=square: square @ square, 1, 1.5)
        check.matrix_tflops[str(dtype).removeprefix("torch.")] = round(products * 2 * side**3 / 1e12, 2)
    return check.matrix_tflops


def agreement(check: Check) -> dict[str, Any]:
    """Rows of the device against those of the CPU in float32, and whether batch norms were fused."""
    few = 2 if check.quick else 16
    models: dict[str, tuple[Any, int]] = {"aviary": (open_weights("aviary"), 3 if check.quick else 60)}
    if not check.quick:
        models["groceries-vit"] = (open_weights("groceries-vit"), few)
    models |= {name: (RandomWeights(name, px), few) for name, px in (check.cnn, check.vit)}
    found = {}
    for name, (trained, count) in models.items():
        truth, _ = predict_rows(check, trained, "cpu", "none", count)
        for amp in ("none", "bf16"):
            rows, settings = predict_rows(check, trained, str(check.device), amp, count)
            found[f"{name} {amp}"] = compare_rows(truth, rows) | {
                key: settings.get(key) for key in ("precision", "tf32", "batch_norm")
            }
    return found


def predict_rows(check: Check, trained: Any, device: str, amp: str, count: int) -> tuple[list, dict]:
    trained = copy.copy(trained)
    trained.model = copy.deepcopy(trained.model)
    workers = 0 if check.quick else min(8, check.cores)
    predictor = Predictor(trained, device=device, amp=amp, batch_size=min(16, count), workers=workers)
    return list(predictor.predict(check.images(count))), predictor.info.settings


def compare_rows(truth: list, found: list) -> dict[str, Any]:
    pairs = [(a, b) for a, b in zip(truth, found, strict=True) if a.ok and b.ok]
    moved, boxes, parts = [], [], []
    for mine, theirs in pairs:
        probs = dict(zip(theirs.labels, theirs.probs, strict=True))
        moved += [abs(probs.get(label, p) - p) for label, p in zip(mine.labels, mine.probs, strict=True)]
        if mine.box and theirs.box:
            boxes.append(max(abs(x - y) for x, y in zip(mine.box, theirs.box, strict=True)))
        for one, other in zip(mine.parts or (), theirs.parts or (), strict=True):
            parts.append(max(abs(x - y) for x, y in zip(one, other, strict=True)))
    return {
        "images": len(pairs),
        "same_top1": sum(a.labels[0] == b.labels[0] for a, b in pairs),
        "largest_prob_change": float(f"{max(moved):.2g}"),
        "median_box_change_px": round(float(np.median(boxes)), 2) if boxes else None,
        "boxes_moved_over_3px": sum(change > 3 for change in boxes),
        "parts_moved_over_3px": sum(change > 3 for change in parts),
    }


def predict(check: Check) -> dict[str, Any]:
    """Images/s of the forward pass alone, with upload and download, and from files."""
    found = {}
    for name, px in (check.cnn, check.vit):
        check.begin_peak()
        trained = RandomWeights(name, px)
        here: dict[str, Any] = {"gmac": round(count_gmac(copy.deepcopy(trained.model), px), 2)}
        for batch in (4,) if check.quick else (16, 64, 256):
            here[f"batch {batch}"] = forward_rates(check, trained, batch, here["gmac"])
        count = 8 if check.quick else 6000
        for label, batch, workers in (
            ("batch 16, 2 workers", 16, 2),
            ("batch 64, all cores", 64, check.cores),
        ):
            batch, workers = (4, 0) if check.quick else (batch, workers)
            predictor = Predictor(
                trained, device=str(check.device), amp="bf16", batch_size=batch, workers=workers
            )
            list(predictor.blocks(check.images(batch if check.quick else 2 * batch)))
            start, cpu = time.perf_counter(), time.process_time()
            images = check.images(count if workers > 2 or check.quick else count // 6)
            done = sum(len(block) for block in predictor.blocks(images))
            seconds, own = time.perf_counter() - start, time.process_time() - cpu
            here[f"from files, {label}"] = {
                "images_per_second": round(done / seconds, 1),
                "parent_cpu_us_per_image": round(1e6 * own / done),
            }
        if check.on_cuda and not check.quick:
            start = time.perf_counter()
            predictor = Predictor(trained, device=str(check.device), amp="bf16", workers=check.cores)
            seconds = round(time.perf_counter() - start, 1)
            here["auto"] = {"batch": predictor.batch_size, "seconds": seconds, "peak_gb": check.peak_gb()}
        found[name] = here
    return found


def forward_rates(check: Check, trained: RandomWeights, batch: int, gmac: float) -> dict[str, Any]:
    px = trained.preprocess.input_px
    predictor = Predictor(trained, device=str(check.device), amp="bf16", batch_size=batch, workers=0)
    forward = predictor._forward
    pixels = list(np.random.default_rng(0).integers(0, 256, (batch, px, px, 3), np.uint8))
    on_device = torch.from_numpy(np.stack(pixels)).to(check.device).permute(0, 3, 1, 2)
    flights: deque = deque()

    @torch.inference_mode()
    def alone() -> None:
        with torch.autocast(check.device.type, torch.bfloat16):
            forward._plain[0](normalize(on_device, trained.preprocess), want=forward._want())

    def launched() -> None:
        flights.append(forward.launch(pixels))
        if len(flights) > 1:
            flights.popleft().answers()

    rates: dict[str, Any] = {
        "forward": check.rate(alone, batch),
        "with_upload_and_download": check.rate(launched, batch),
        "batch_norm": predictor.info.settings["batch_norm"],
        "peak_gb": check.peak_gb(),
        "waits_per_batch": check.waits(launched),
    }
    if top := check.matrix_tflops.get("bfloat16"):
        rates["fraction_of_matrix_rate"] = round(rates["forward"] * gmac * 2e9 / (top * 1e12), 3)
    return rates


def decoding(check: Check) -> dict[str, Any]:
    """Images/s of one core, as predict and as training read them; nvJPEG for comparison."""
    torch.set_num_threads(1)
    source = Image.open(sorted((ROOT / "examples/photos").glob("*.jpg"))[0]).convert("RGB")
    rule, found = Preprocess(), {}
    strong = train_transform(rule, Augment(crop="resized", color_jitter=0.3))
    for size in ((500, 375), (1024, 768), (4032, 3024))[: 1 if check.quick else 3]:
        grain = np.random.default_rng(0).integers(-6, 7, (size[1], size[0], 1))
        path = check.work / f"{size[0]}.jpg"
        noisy = np.asarray(source.resize(size)).astype(np.int16) + grain
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        here: dict[str, Any] = {
            "predict": check.rate(
                lambda path=path: np.asarray(cut_input(read_image(path).image, rule)), 1, 1
            ),
            "train, strong augmentation": check.rate(lambda path=path: strong(read_image(path).image), 1, 1),
        }
        if check.on_cuda:
            encoded = [read_file(str(path))] * 64
            try:
                nvjpeg = check.rate(lambda encoded=encoded: decode_jpeg(encoded, device="cuda"), 64, 2)
                here["nvjpeg, batches of 64"] = nvjpeg
            except RuntimeError as error:
                here["nvjpeg"] = str(error)[:200]
        found[f"{size[0]}x{size[1]}"] = here
    torch.set_num_threads(check.cores)
    return found


def training(check: Check) -> dict[str, Any]:
    """Whole update steps, and a plain timm network in a plain loop beside them."""
    adamw = {"optim": {"name": "adamw", "clip_grad": 1.0}}
    cases: list[tuple[str, int, int, str, dict]] = []
    for (name, px), settings, small in ((check.cnn, {}, 20), (check.vit, adamw, 16)):
        sizes = ((4, "bf16"),) if check.quick else ((small, "none"), (small, "bf16"), (64, "bf16"))
        cases += [(name, px, batch, amp, settings) for batch, amp in sizes]
    if check.on_cuda and not check.quick:
        cases.append((*check.cnn, 20, "fp16", {"optim": {"clip_grad": 5.0}, "accumulate": 2}))
    found: dict[str, Any] = {}
    for name, px, batch, amp, settings in cases:
        check.begin_peak()
        try:
            found[f"{name} batch {batch} {amp}"] = step_rates(check, name, px, batch, amp, settings)
        except Exception as error:
            found[f"{name} batch {batch} {amp}"] = {"error": f"{type(error).__name__}: {error}"[:300]}
    for batch in (4,) if check.quick else (20, 64):
        check.begin_peak()
        rate = plain_rate(check, batch)
        found[f"plain timm loop, batch {batch} bf16"] = {
            "images_per_second": rate,
            "peak_gb": check.peak_gb(),
        }
    return found


def step_rates(check: Check, name: str, px: int, batch: int, amp: str, settings: dict) -> dict[str, Any]:
    values = {"model": name, "preprocess": {"input_px": px, "resize_px": px}, "batch_size": batch, "amp": amp}
    config = build_section(TrainConfig, values | settings)
    learner = Learner(
        build_model(name, px), config, classes=CLASSES, updates_per_epoch=1000, device=check.device
    )
    learner.begin_epoch(1)
    images, labels = torch.randint(0, 256, (batch, 3, px, px), dtype=torch.uint8), torch.arange(batch)
    if check.on_cuda:
        images, labels = images.pin_memory(), labels.pin_memory()
    made, meter = Batch(images, labels, torch.arange(batch), []), Meter()
    numbers = iter(range(10**9))

    def step() -> None:
        learner.update([((1, next(numbers)), made)], batch, meter)

    before = [p.detach().clone() for p in learner.model.parameters()]
    rates = {
        "images_per_second": check.rate(step, batch),
        "peak_gb": check.peak_gb(),
        "waits_per_step": check.waits(step),
    }
    pairs = list(zip(before, learner.model.named_parameters(), strict=True))
    rates["parameters_unmoved"] = [name for old, (name, new) in pairs if bool((old == new).all())][:5]
    return rates


def plain_rate(check: Check, batch: int) -> float:
    network, px = ("test_resnet", 64) if check.quick else ("resnet50", 448)
    net = timm.create_model(network, num_classes=CLASSES).to(check.device, memory_format=torch.channels_last)
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    images = torch.randn(batch, 3, px, px, device=check.device).to(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=check.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(check.device.type, torch.bfloat16):
            logits = net(images)
        nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return check.rate(step, batch)


def one_process_group(check: Check) -> dict[str, Any]:
    """A group of one: what training calls of it; on cards over NCCL, with SyncBatchNorm."""
    backend = "cpu:gloo,cuda:nccl" if check.on_cuda else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = build_model(*check.cnn)
        if check.on_cuda:
            model = timm.layers.convert_sync_batchnorm(model)
        model = model.to(check.device, memory_format=torch.channels_last).train()
        for tensor in model.state_dict().values():
            dist.broadcast(tensor.detach(), src=0)
        gathered: list[Any] = [None]
        dist.all_gather_object(gathered, {"a": torch.ones(2)})
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
        px = check.cnn[1]
        with torch.autocast(check.device.type, torch.bfloat16):
            output = wrapped(torch.randn(4, 3, px, px, device=check.device))
        total_loss(output, torch.arange(4, device=check.device), Loss())[0].backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None]
        return {"ok": gathered[0] is not None, "without_gradient": missing[:5]}
    finally:
        dist.destroy_process_group()


SECTIONS: dict[str, Callable[[Check], dict[str, Any]]] = {
    "matrix_tflops": matrix_rate,
    "agreement": agreement,
    "predict": predict,
    "training": training,
    "decoding": decoding,
    "one_process_group": one_process_group,
}


def main() -> int:
    """Run the sections; exit code 1 where one holds an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--quick", action="store_true", help="small models, few images: checks the script")
    parser.add_argument("--only", default="", help="sections, comma-separated")
    parser.add_argument("--seconds", type=float, default=420, help="no section begins later than this")
    parser.add_argument("--out", type=Path, help="the JSON, written after each section")
    arguments = parser.parse_args()
    began = time.perf_counter()
    on_cuda = arguments.device.startswith("cuda")
    if on_cuda and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu --quick checks the script")
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(0) if on_cuda else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": usable_cpus(),
        "quick": arguments.quick,
        "seconds": {},
    }
    # What is started from here imports this package, wherever it is started.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    failed = False
    with tempfile.TemporaryDirectory() as work:
        check = Check(arguments.device, arguments.quick, Path(work))
        for name, section in SECTIONS.items():
            start = time.perf_counter()
            if arguments.only and name not in arguments.only.split(","):
                continue
            if start - began > arguments.seconds:
                continue
            try:
                result[name] = section(check)
            except Exception as error:
                failed = True
                trace = traceback.format_exc()[-700:]
                result[name] = {"error": f"{type(error).__name__}: {error}"[:500], "where": trace}
            result["seconds"][name] = round(time.perf_counter() - start, 1)
            if arguments.out:
                arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
