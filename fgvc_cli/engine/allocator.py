"""glibc's malloc, told to keep what it has."""

from __future__ import annotations

import ctypes
import sys

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
