"""What the looks of a multi-stage ViT cost beside its plain encoder, as ratios in one run.

    python benchmarks/multistage_cost.py --model vitms-b16 --batch-size 2
    python benchmarks/multistage_cost.py --model vitms-b16 --batch-size 64 --device cuda --amp bf16

The encoder is timed with its fused attention and nothing else; then with the attention map computed beside
it; then the whole pipeline (map, object box, crops, parts, classifier) against as many plain forwards as it
makes encoder passes. Every round times all of them one after another; medians are printed. Images are
noise with structure: boxes and parts are located as ever. No weights are needed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from fgvc_cli.attention.crops import cut_boxes
from fgvc_cli.attention.objects import cut_map, locate_objects, locate_parts
from fgvc_cli.engine.device import keep_freed_memory
from fgvc_cli.models.multistage_vit import MultiStageVit
from fgvc_cli.models.registry import create_model
from fgvc_cli.models.vit import encode


def main() -> None:
    """Time every step and print milliseconds per image and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vitms-b16")
    parser.add_argument("--source-px", type=int, default=448)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", choices=("none", "bf16"), default="none")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    model = create_model(arguments.model, 200).eval().to(arguments.device)
    assert isinstance(model, MultiStageVit)
    side, batch = arguments.source_px, arguments.batch_size
    images = F.interpolate(torch.randn(batch, 3, 12, 12), side, mode="bicubic").to(arguments.device)
    with (
        torch.inference_mode(),
        torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.amp == "bf16"),
    ):
        steps = _steps(model, images)
        times = _measure(steps, arguments.rounds, arguments.device)
        passes = int(model(images, want=("stats",)).stats["passes"].round())
    plain, mapped, whole = (times[name] for name in ("encoder", "encoder + map", "pipeline"))
    print(f"{arguments.model}, {side} px, batch {batch}, {arguments.device}, amp {arguments.amp}")
    for name, seconds in times.items():
        print(f"  {name:24s} {1000 * seconds / batch:9.3f} ms per image")
    print(f"encoder passes {passes}")
    print(f"map on top of the encoder {mapped / plain - 1:.3f} (goal 0.10)")
    print(f"pipeline / {passes} encoders {whole / (passes * plain):.3f} (goal 1.15)")


def _steps(model: MultiStageVit, images: torch.Tensor) -> dict[str, Callable[[], object]]:
    side = model.plan.side
    size = (images.shape[-2], images.shape[-1])
    view = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
    _, heat = encode(model.backbone, model.plan, view, residual=model.config.residual)
    assert heat is not None
    boxes = locate_objects(heat, size)
    maps = cut_map(heat, boxes, size, side)
    parts = locate_parts(maps, boxes)
    return {
        "encoder": lambda: encode(model.backbone, model.plan, view),
        "encoder + map": lambda: encode(model.backbone, model.plan, view, residual=model.config.residual),
        "object boxes": lambda: locate_objects(heat, size),
        "part boxes": lambda: locate_parts(cut_map(heat, boxes, size, side), boxes),
        "reduce, 3 crops": lambda: (
            F.interpolate(images, (side, side), mode="bilinear", antialias=True),
            cut_boxes(images, boxes[:, None], side),
            cut_boxes(images, parts, side),
        ),
        "pipeline": lambda: model(images),
    }


def _measure(steps: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(rounds + 1):
        for name, step in steps.items():
            _wait(device)
            start = time.perf_counter()
            step()
            _wait(device)
            if round_number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
