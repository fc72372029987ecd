"""The device to compute on, and its memory."""

from __future__ import annotations

import ctypes
import sys

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
