"""How many images go through the model at once: a short probe."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from fgvc_cli.engine.device import is_out_of_memory, release_memory

T = TypeVar("T")

CPU_SIZES = (1, 2, 4, 8, 16, 32)
CUDA_SIZES = tuple(2**n for n in range(11))
CPU_PROBE_SECONDS = 3.0
"""No larger batch is tried once the probe has taken this long."""

GAIN = 1.03
"""A larger batch is worth its memory only where images/s rise by this factor."""


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


def until_full(items: Iterable[T], size: Callable[[], int], counts: Callable[[T], bool]) -> Iterator[list[T]]:
    """Consecutive items in groups with ``size()`` of those that count; at most 4 times as many in all.

    The bound keeps a long run of unreadable files from being held back.
    """
    source = iter(items)
    for first in source:
        group, counted, wanted = [first], int(counts(first)), size()
        while counted < wanted and len(group) < 4 * wanted and (more := list(itertools.islice(source, 1))):
            group += more
            counted += counts(more[0])
        yield group


def delayed(items: Iterable[T], steps: int) -> Iterator[T]:
    """The same items, each handed over when ``steps`` further ones have been taken."""
    held: list[T] = []
    for item in items:
        held.append(item)
        if len(held) > steps:
            yield held.pop(0)
    yield from held
