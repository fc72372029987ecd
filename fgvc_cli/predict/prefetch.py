"""Work ahead in threads, in order and within bounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(
    function: Callable[[T], R], items: Iterable[T], *, workers: int, window: int
) -> Generator[R, None, None]:
    """``function`` over lazily taken items by ``workers`` threads; results come in the order of the items.

    At most ``window`` items are taken and not yet handed over, so memory does not grow with their number.
    Threads, because Pillow lets go of the interpreter while it decodes and resizes. With no workers the
    caller's thread does the work. An exception of ``function`` or of ``items`` is raised here; closing the
    iterator waits only for calls under way.
    """
    if workers == 0:
        yield from map(function, items)
        return
    pending: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= window:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
