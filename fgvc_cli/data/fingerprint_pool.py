"""Fingerprints of many files by several processes, in order, with little in flight."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from fgvc_cli.data.fingerprint import Fingerprint, fingerprint
from fgvc_cli.data.images import Failure

_CHUNK = 32
_CRASHED = Failure("crashed", "its decoder died")

Result = Fingerprint | Failure


def fingerprint_all(paths: Iterable[Path], workers: int) -> Iterator[Result]:
    """The fingerprint of each file, in order; a file that kills its decoder is a ``Failure`` too.

    Args:
        workers: processes; 0: this one.
    """
    if workers == 0:
        yield from map(fingerprint, paths)
        return
    source = iter(paths)
    pool = _Pool(workers)
    try:
        waiting: deque[tuple[list[Path], Future[list[Result]]]] = deque()
        while chunk := list(itertools.islice(source, _CHUNK)):
            waiting.append((chunk, pool.submit(chunk)))
            if len(waiting) > 3 * workers:
                yield from pool.answer(*waiting.popleft())
        while waiting:
            yield from pool.answer(*waiting.popleft())
    finally:
        pool.close()


class _Pool:
    """Processes that are started anew when one dies."""

    def __init__(self, workers: int):
        self._workers = workers
        self._executor = self._start(workers)

    def submit(self, chunk: list[Path]) -> Future[list[Result]]:
        try:
            return self._executor.submit(_fingerprints, chunk)
        except BrokenProcessPool:
            self._restart()
            return self._executor.submit(_fingerprints, chunk)

    def answer(self, chunk: list[Path], future: Future[list[Result]]) -> list[Result]:
        """What a chunk came to; where a process died meanwhile, each file alone."""
        try:
            return future.result()
        except BrokenProcessPool:
            return [self._alone(path) for path in chunk]

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)

    def _alone(self, path: Path) -> Result:
        with self._start(1) as executor:
            try:
                return executor.submit(fingerprint, path).result()
            except BrokenProcessPool:
                return _CRASHED

    def _restart(self) -> None:
        self._executor.shutdown()
        self._executor = self._start(self._workers)

    @staticmethod
    def _start(workers: int) -> ProcessPoolExecutor:
        # Not forked: the process that asks may have threads, and its memory is not theirs.
        return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _fingerprints(paths: list[Path]) -> list[Result]:
    return [fingerprint(path) for path in paths]
