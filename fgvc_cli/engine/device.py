"""The device to compute on, in which precision, and its memory.

One rule of precision holds for training, evaluation and prediction (``computing``): float32 is strict, and
with bfloat16 or float16 what autocast leaves in float32 may be multiplied in TensorFloat-32 (TF32, ten bits
of each factor). Only CUDA has TF32.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

from fgvc_cli.config import check_device_name
from fgvc_cli.errors import EXIT_USAGE, FgvcError


def pick_device(name: str) -> torch.device:
    """``auto`` (CUDA where there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:N`` -> device.

    Raises:
        FgvcError: another name, or a CUDA device that is not there.
    """
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


Precision = Literal["float32", "bf16", "fp16"]
_AUTOCAST = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


def usual_precision(device: torch.device) -> Precision:
    """What ``--amp auto`` means without a probe: bfloat16 on a card that has it, else float32."""
    return "bf16" if device.type == "cuda" and has_bf16(device) else "float32"


def uses_tf32(device: torch.device, precision: Precision) -> bool:
    """Whether float32 products may be made in TensorFloat-32, on a card that has it."""
    return device.type == "cuda" and precision != "float32"


@contextlib.contextmanager
def float32_products(device: torch.device, precision: Precision) -> Iterator[None]:
    """Products of float32 strict or in TensorFloat-32, as ``uses_tf32`` says; put back afterwards."""
    if device.type != "cuda":
        yield
        return
    kinds = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "tf32" if uses_tf32(device, precision) else "ieee"
        yield
    finally:
        for kind, value in zip(kinds, before, strict=True):
            kind.fp32_precision = value


@contextlib.contextmanager
def computing(device: torch.device, precision: Precision) -> Iterator[None]:
    """A forward pass in a precision: autocast, and what it leaves in float32 as ``float32_products``."""
    autocast = torch.autocast(device.type, _AUTOCAST[precision], enabled=precision != "float32")
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
)
"""What torch, cuBLAS, cuDNN, NCCL and the allocator of the CPU say, in small letters."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a forward or backward pass failed for lack of memory, on the device or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _NO_MEMORY)


def release_memory(device: torch.device) -> None:
    """Give cached memory of a card back to it, for what comes next and for other processes."""
    if device.type == "cuda" and torch.cuda.is_initialized():
        gc.collect()
        with torch.cuda.device(device):
            torch.cuda.empty_cache()


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
