"""Several decoders at work ahead of the model, in order and within bounds."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from fgvc_cli.data.find import Found
from fgvc_cli.predict.decoder import TURNS, Decoded, Decoder, DecodeSettings, Read

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Loaded:
    """One image ready for the model, or why it is not."""

    number: int
    found: Found
    decoded: Decoded
    worker: int
    """Which decoder has it, and perhaps still its photograph."""


class DecodePool:
    """``workers`` threads, each with a decoder, and on POSIX each decoder in its own process.

    The processes are for files that kill a decoder; threads would be enough for speed. A ``read`` of the
    caller's runs in the threads. With no workers, calls are done at once by whoever calls.

    Args:
        settings: for each decoder; its ``keep_bytes`` are shared out among them.
        read: instead of ``read_image``.
    """

    def __init__(self, settings: DecodeSettings, *, workers: int, read: Read | None = None):
        self._settings = DecodeSettings(settings.rule, settings.fast, settings.keep_bytes // max(workers, 1))
        self._read = read
        self._workers = workers
        self._in_processes = read is None and workers > 0 and os.name == "posix"
        self._turns = tempfile.TemporaryFile() if self._in_processes else None  # noqa: SIM115 - closed by close
        self._turn = threading.Semaphore(TURNS)
        self._ready = threading.Condition()
        self._loads: deque[tuple[Future[Any], tuple]] = deque()
        self._cuts: list[deque[tuple[Future[Any], tuple]]] = [deque() for _ in range(max(workers, 1))]
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._closed = False
        self._inline = None if workers else self._make_decoder()

    def load(self, number: int, found: Found) -> Future[Loaded]:
        """Read and resize one image, after those asked for before."""
        future: Future[Loaded] = Future()
        if inline := self._inline:
            _settle(future, lambda: Loaded(number, found, inline.load(number, found.path), 0))
            return future
        with self._ready:
            self._loads.append((future, (number, found)))
            if self._idle < len(self._loads) and len(self._threads) < self._workers:
                self._add_worker(len(self._threads))
            self._ready.notify_all()
        return future

    def cut(self, loaded: Loaded, box: Sequence[float] | None) -> Future[bytes]:
        """The crop of an image, before any further image is read; None lets go of its photograph."""
        future: Future[bytes] = Future()
        request = (loaded.number, loaded.found.path, box)
        if inline := self._inline:
            _settle(future, lambda: inline.cut(*request))
            return future
        with self._ready:
            self._cuts[loaded.worker].append((future, request))
            self._ready.notify_all()
        return future

    def close(self) -> None:
        """Drop what waits, let calls under way end, stop the workers."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        for thread in self._threads:
            thread.join()
        if self._inline:
            self._inline.close()
        if self._turns:
            self._turns.close()

    def _make_decoder(self) -> Any:
        if self._turns:
            from fgvc_cli.predict.decode_process import ProcessDecoder

            return ProcessDecoder(self._settings, turns=self._turns.fileno())
        return Decoder(self._settings, read=self._read, turn=self._turn)

    def _add_worker(self, index: int) -> None:
        # A daemon: a run that nobody closes must not keep the interpreter from ending.
        args = (index, self._make_decoder())
        thread = threading.Thread(target=self._work, args=args, name=f"decode-{index}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self, index: int, decoder: Any) -> None:
        try:
            while (job := self._next_job(index)) is not None:
                _settle(job[0], partial(job[1], decoder))
        finally:
            decoder.close()

    def _next_job(self, index: int) -> tuple[Future[Any], Callable[[Any], Any]] | None:
        """Own crops first, as a photograph is kept for each; None at the end."""
        with self._ready:
            self._idle += 1
            try:
                self._ready.wait_for(lambda: self._closed or self._cuts[index] or self._loads)
            finally:
                self._idle -= 1
            if self._closed:
                return None
            if self._cuts[index]:
                future, request = self._cuts[index].popleft()
                return future, lambda decoder: decoder.cut(*request)
            future, (number, found) = self._loads.popleft()
            return future, lambda decoder: Loaded(number, found, decoder.load(number, found.path), index)


def _settle(future: Future[Any], call: Callable[[], Any]) -> None:
    try:
        future.set_result(call())
    # Whatever it is, it belongs to whoever waits for the answer.
    except BaseException as error:
        future.set_exception(error)


def in_order(
    submit: Callable[[T], Future[R]], items: Iterable[T], *, window: int
) -> Generator[R, None, None]:
    """Results in the order of the items, taken lazily: at most ``window`` are taken and not handed over.

    What the work or ``items`` raises is raised here.
    """
    pending: deque[Future[R]] = deque()
    for item in items:
        pending.append(submit(item))
        if len(pending) >= window:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
