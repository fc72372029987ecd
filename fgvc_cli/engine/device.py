"""The device to compute on, in which precision, and its memory.

One rule of precision holds for training, evaluation and prediction (``computing``): float32 is strict, and
with bfloat16 or float16 what autocast leaves in float32 may be multiplied in TensorFloat-32 (TF32, ten bits
of each factor). Only CUDA has TF32. torch is imported where it is needed: a graph needs none.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fgvc_cli.config import check_device_name
from fgvc_cli.errors import EXIT_USAGE, FgvcError

if TYPE_CHECKING:
    import torch


def pick_device(name: str) -> torch.device:
    """``auto`` (CUDA where there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:N`` -> device.

    Raises:
        FgvcError: another name, or a CUDA device that is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_device_name(name)
    kind, _, index = name.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            present = f"{count} CUDA device{'s' * (count > 1)}" if count else "no CUDA device"
            raise FgvcError(f"--device {name}: this machine has {present}.", "Use --device cpu or auto.")
    return torch.device(name)


def pick_devices(device: str, count: int) -> list[str]:
    """The device of each process: ``cuda:0``, ``cuda:1``, ..., or ``cpu`` for all.

    Raises:
        FgvcError: fewer CUDA devices than processes, or one device for several processes.
    """
    import torch

    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not present):
        return ["cpu"] * count
    if device not in ("auto", "cuda"):
        message = f"--devices {count} goes with --device auto, cpu or cuda, got {device!r}."
        raise FgvcError(message, "CUDA_VISIBLE_DEVICES chooses among several.", EXIT_USAGE)
    if count > present:
        message = f"--devices {count}: this machine has {present} CUDA devices."
        raise FgvcError(message, f"Use --devices {present or 1}, or --device cpu.", EXIT_USAGE)
    return [f"cuda:{i}" for i in range(count)]


Amp = Literal["auto", "none", "bf16"]
Precision = Literal["float32", "bf16", "fp16"]
_AUTOCAST = {"float32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 itself rather than through float32."""
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() in ("x86_64", "AMD64", "i386"):
        tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, test, lambda: False)() for test in tests)
    with contextlib.suppress(OSError):
        return " bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return False


def usual_precision(device: torch.device) -> Precision:
    """What ``--amp auto`` means without a probe: bfloat16 on a card that has it, else float32."""
    return "bf16" if device.type == "cuda" and has_bf16(device) else "float32"


def fixed_precision(amp: str, device: torch.device) -> Precision:
    """What ``--amp`` auto, none or bf16 means on a device, without a probe; auto as ``usual_precision``.

    Raises:
        FgvcError: another ``amp``; bf16 on a card without it.
    """
    if amp not in ("auto", "none", "bf16"):
        raise FgvcError(f"--amp got {amp!r}, expected one of auto, none, bf16.", None, EXIT_USAGE)
    if amp == "bf16" and device.type == "cuda" and not has_bf16(device):
        raise FgvcError("--amp bf16: this CUDA device has no bfloat16.", "Use --amp none.")
    if amp == "auto":
        return usual_precision(device)
    return "bf16" if amp == "bf16" else "float32"


def uses_tf32(device: torch.device, precision: Precision) -> bool:
    """Whether float32 products may be made in TensorFloat-32, on a card that has it."""
    return device.type == "cuda" and precision != "float32"


@contextlib.contextmanager
def float32_products(device: torch.device, precision: Precision) -> Iterator[None]:
    """Products of float32 strict or in TensorFloat-32, as ``uses_tf32`` says; put back afterwards."""
    if device.type != "cuda":
        yield
        return
    import torch

    # Not ``fp32_precision``: once it is set, torch's compiler, which asks for ``allow_tf32``, fails.
    kinds: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [kind.allow_tf32 for kind in kinds]
    try:
        for kind in kinds:
            kind.allow_tf32 = uses_tf32(device, precision)
        yield
    finally:
        for kind, value in zip(kinds, before, strict=True):
            kind.allow_tf32 = value


@contextlib.contextmanager
def computing(device: torch.device, precision: Precision) -> Iterator[None]:
    """A forward pass in a precision: autocast, and what it leaves in float32 as ``float32_products``."""
    import torch

    dtype = getattr(torch, _AUTOCAST[precision])
    autocast = torch.autocast(device.type, dtype, enabled=precision != "float32")
    with float32_products(device, precision), autocast:
        yield


_NO_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "alloc_failed",
    "cudaerrormemoryallocation",
    "defaultcpuallocator",
    "failed to allocate memory",
    "bad_alloc",
    "bad allocation",
)
"""What torch, cuBLAS, cuDNN, NCCL, onnxruntime and the allocators of the CPU say, in small letters."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a forward or backward pass failed for lack of memory, on the device or on the host."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # as torch calls it
        return True
    # Of torch and OpenVINO, and of onnxruntime, whose errors are no RuntimeErrors.
    foreign = isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime")
    return foreign and any(text in str(error).lower() for text in _NO_MEMORY)


def release_memory(device: torch.device) -> None:
    """Give cached memory of a card back to it, for what comes next and for other processes."""
    if device.type != "cuda":
        return
    import torch

    if torch.cuda.is_initialized():
        gc.collect()
        with torch.cuda.device(device):
            torch.cuda.empty_cache()


WORTH = 1.25
"""How many times faster bfloat16 must be on a CPU to be chosen: it moves probabilities by about 0.01, and now
and then a box by a tenth of the picture."""

PROBE_SECONDS = 6.0
"""Roughly; at least one pair of forward passes is timed, however long it takes."""

PROBE_ROUNDS = 5
"""Pairs of forward passes that are timed where they fit into ``PROBE_SECONDS``."""

CPU_SIZES = (1, 2, 4, 8, 16, 32)
CUDA_SIZES = tuple(2**n for n in range(11))
CPU_PROBE_SECONDS = 3.0
"""No larger batch is tried once the probe has taken this long."""

GAIN = 1.03
"""A larger batch is worth its memory only where images/s rise by this factor."""


def choose_precision(
    amp: Amp,
    device: torch.device,
    run: Callable[[Precision], None],
    tell: Callable[[str], None],
    *,
    probe: bool = True,
) -> Precision:
    """What a run computes in.

    ``auto`` takes bfloat16 on CUDA where the card has it, and on a CPU that has it only where a probe finds
    it at least ``WORTH`` times as fast. What it took is told; giving it as ``amp`` repeats the run.

    Args:
        run: a forward pass of a batch as the run's own in a precision, finished when it returns.
        probe: False where there are too few images for one: float32 on a CPU.

    Raises:
        FgvcError: an unknown ``amp``; bf16 on a card without it.
    """
    if amp == "auto" and device.type == "cpu" and has_bf16(device):
        return faster_precision(run, tell, probe)
    choice = fixed_precision(amp, device)
    if amp == "auto":
        has = "has" if choice == "bf16" else "has no"
        tell(f"Computing in {choice}, as this {device.type} device {has} bfloat16.")
    elif amp == "bf16" and not has_bf16(device):
        tell("This CPU has no bfloat16 instructions: --amp bf16 will be slow.")
    return choice


def best_batch_size(seconds: Callable[[int], float], device: torch.device) -> int:
    """The smallest batch that is about as fast per image as any tried.

    CPU: sizes 1 to 32 within ``CPU_PROBE_SECONDS``. CUDA: doubling until memory ends or images/s stop rising.

    Args:
        seconds: time of one forward pass over so many images; raises as the model does.
    """
    on_cuda = device.type == "cuda"
    best_size, best_rate, spent = 1, 0.0, 0.0
    for size in CUDA_SIZES if on_cuda else CPU_SIZES:
        try:
            taken = seconds(size)
        except (RuntimeError, MemoryError) as error:
            if size > 1 and is_out_of_memory(error):
                break
            raise
        rate = size / max(taken, 1e-9)
        if rate > best_rate * GAIN:
            best_size, best_rate = size, rate
        elif on_cuda and size >= 4 * best_size:
            break
        spent += 2 * taken
        # The next size takes twice as long as this one.
        if not on_cuda and spent + 4 * taken > CPU_PROBE_SECONDS:
            break
    # What the largest batch tried took is not kept from the run, nor from others on the card.
    release_memory(device)
    return best_size


def faster_precision(run: Callable[[Precision], None], tell: Callable[[str], None], probe: bool) -> Precision:
    """bfloat16 where ``run`` is ``WORTH`` times as fast in it, else float32; as ``choose_precision``."""
    if not probe:
        tell("Computing in float32: too few images to find out whether bfloat16 is faster (--amp bf16).")
        return "float32"
    gain = _gain(run)
    choice: Precision = "bf16" if gain >= WORTH else "float32"
    tell(f"Computing in {choice}: a probe found bfloat16 {gain:.2f} times as fast as float32.")
    return choice


def _gain(run: Callable[[Precision], None]) -> float:
    """float32 time over bfloat16 time, best of interleaved rounds after one to warm up."""
    best: dict[Precision, float] = {"float32": float("inf"), "bf16": float("inf")}
    start = time.perf_counter()
    for round_ in range(PROBE_ROUNDS + 1):
        for precision in best:
            begun = time.perf_counter()
            run(precision)
            if round_:
                best[precision] = min(best[precision], time.perf_counter() - begun)
        if round_ and time.perf_counter() - start > PROBE_SECONDS:
            break
    return best["float32"] / max(best["bf16"], 1e-9)


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Let this process reuse freed blocks instead of handing each back to the kernel.

    Activations of a CNN are large blocks; by default glibc maps each afresh and the kernel zeroes its
    pages at every step, a third or more of the time of a CPU training step (benchmarks/RESULTS.md).

    Returns:
        Whether it took effect; False where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        and mallopt(_M_TOP_PAD, 1 << 26)
    )
