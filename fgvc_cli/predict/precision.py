"""float32 or bfloat16: which a run computes in, chosen once and recorded, as it changes rows a little."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import torch

from fgvc_cli.errors import EXIT_USAGE, FgvcError

Amp = Literal["auto", "none", "bf16"]
Precision = Literal["float32", "bf16"]

WORTH = 1.5
"""How many times faster bfloat16 must be on a CPU to be chosen: it moves probabilities by about 0.01, and now
and then a box by a tenth of the picture."""

PROBE_SECONDS = 4.0
"""Roughly; at least one pair of forward passes is timed, however long it takes."""


def choose_precision(
    amp: Amp, device: torch.device, run: Callable[[Precision], None], tell: Callable[[str], None]
) -> Precision:
    """What a run computes in.

    ``auto`` takes bfloat16 on CUDA where the card has it, and on a CPU that has it only where a probe finds
    it at least ``WORTH`` times as fast. What it took is told; giving it as ``amp`` repeats the run.

    Args:
        run: a small forward pass in a precision, finished when it returns.

    Raises:
        FgvcError: an unknown ``amp``; bf16 on a card without it.
    """
    if amp not in get_args(Amp):
        known = ", ".join(get_args(Amp))
        raise FgvcError(f"--amp got {amp!r}, expected one of {known}.", None, EXIT_USAGE)
    if amp == "none":
        return "float32"
    native = has_bf16(device)
    if amp == "bf16":
        if not native and device.type == "cuda":
            raise FgvcError("--amp bf16: this CUDA device has no bfloat16.", "Use --amp none.")
        if not native:
            tell("This CPU has no bfloat16 instructions: --amp bf16 will be slow.")
        return "bf16"
    if not native or device.type == "cuda":
        choice: Precision = "bf16" if native else "float32"
        tell(f"Computing in {choice}, as this {device.type} device has {'' if native else 'no '}bfloat16.")
        return choice
    gain = _gain(run)
    choice = "bf16" if gain >= WORTH else "float32"
    tell(f"Computing in {choice}: a probe found bfloat16 {gain:.2f} times as fast as float32.")
    return choice


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 itself rather than through float32."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() in ("x86_64", "AMD64", "i386"):
        tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, test, lambda: False)() for test in tests)
    with contextlib.suppress(OSError):
        return " bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return False


def _gain(run: Callable[[Precision], None]) -> float:
    """float32 time over bfloat16 time, best of interleaved rounds after one to warm up."""
    best: dict[Precision, float] = {"float32": float("inf"), "bf16": float("inf")}
    start = time.perf_counter()
    for round_ in range(4):
        for precision in best:
            begun = time.perf_counter()
            run(precision)
            if round_:
                best[precision] = min(best[precision], time.perf_counter() - begun)
        if round_ and time.perf_counter() - start > PROBE_SECONDS:
            break
    return best["float32"] / max(best["bf16"], 1e-9)
