"""What the modules and the allocator setting cost in training, as ratios in one run.

    python benchmarks/train_step.py --backbone mobilenetv2_100 --input-px 192

Each variant runs in a process of its own, interleaved: a plain timm step, the same through our baseline, and
CRA-SMRA, each with glibc's defaults and with ``keep_freed_memory``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

VARIANTS = ("timm", "baseline", "crasmra")


def main() -> None:
    """Run every variant in turn and print medians and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--input-px", type=int, default=192)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variant", choices=VARIANTS)
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    if arguments.variant:
        print(_measure(arguments))
        return
    names = [(variant, keep) for variant in VARIANTS for keep in (False, True)]
    times: dict[tuple[str, bool], list[float]] = {name: [] for name in names}
    for _ in range(arguments.rounds):
        for variant, keep in names:
            command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant, *(["--keep"] * keep)]
            times[variant, keep].append(
                float(subprocess.run(command, capture_output=True, check=True).stdout)
            )
    medians = {name: statistics.median(values) for name, values in times.items()}
    for (variant, keep), seconds in medians.items():
        kind = "keep_freed_memory" if keep else "glibc defaults"
        print(f"{variant:9s} {kind:18s} {arguments.batch_size / seconds:7.1f} images/s")
    for variant in VARIANTS:
        print(f"{variant}: defaults / kept time {medians[variant, False] / medians[variant, True]:.2f}")
    print(f"baseline / timm time {medians['baseline', True] / medians['timm', True]:.3f}")
    print(f"crasmra / timm time {medians['crasmra', True] / medians['timm', True]:.3f}")


def _measure(arguments: argparse.Namespace) -> float:
    """Median seconds of a step."""
    import timm
    import torch
    import torch.nn.functional as F

    from fgvc_cli.config import Loss
    from fgvc_cli.engine.device import keep_freed_memory
    from fgvc_cli.engine.learner import total_loss
    from fgvc_cli.models.registry import create_model

    if arguments.keep:
        keep_freed_memory()
    if arguments.variant == "timm":
        model = timm.create_model(arguments.backbone, num_classes=81)
    else:
        prefix = "timm" if arguments.variant == "baseline" else "crasmra"
        model = create_model(f"{prefix}-{arguments.backbone}", 81)
    model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    side = arguments.input_px
    images = torch.randn(arguments.batch_size, 3, side, side).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 81, (arguments.batch_size,))
    times = []
    for _ in range(arguments.steps + 2):
        start = time.perf_counter()
        output = model(images)
        is_plain = arguments.variant == "timm"
        loss = F.cross_entropy(output, labels) if is_plain else total_loss(output, labels, Loss())[0]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


if __name__ == "__main__":
    main()
