"""Decoding in threads and in processes, one of which may die with its image."""

from __future__ import annotations

import fcntl
import io
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, BinaryIO, TypeVar

import numpy as np

from fgvc_cli.errors import FgvcError
from fgvc_cli.predict.decoder import TURNS, Decoded, Decoder, DecodeSettings, Read, Where
from fgvc_cli.sources.find import Found
from fgvc_cli.sources.frames import Frame
from fgvc_cli.sources.images import Failure, read_image
from fgvc_cli.sources.stored import Stored

_START = """
import sys, json
sys.path[:] = json.loads(sys.argv[1])
from {module} import serve
serve(*sys.argv[2:])
"""
STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Held(Stored):
    """The bytes of a stored image, or why there are none."""

    content: bytes | Exception

    def open(self) -> BinaryIO:
        if isinstance(self.content, Exception):
            raise self.content
        return io.BytesIO(self.content)


def _hold(where: Where) -> Where | Failure:
    """A path as it is; of anything else the bytes, as the worker may not reach where they lie: it has neither
    the connections of this process nor the file systems that a script set up in it."""
    if not isinstance(where, Stored):
        return where
    if isinstance(where, Frame):
        held = _hold(where.path)
        return held if isinstance(held, Failure) else where.within(held)
    try:
        with where.open() as stream:
            return _Held(stream.read())
    # Anything at all, as in ``read_image``, which makes a failure of it.
    except Exception as error:
        failure = read_image(_Held(error))
        assert isinstance(failure, Failure)
        return failure


class _Died(Exception):
    """The worker ended while it was at work."""


class ProcessDecoder:
    """The parent's side; same calls as ``Decoder``. The process starts with the first call.

    Args:
        turns: a file that all decoders of a run share; see ``FileTurn``.

    Raises:
        FgvcError: from any call, where a process cannot be started at all.
    """

    def __init__(self, settings: DecodeSettings, *, turns: int):
        self._settings = settings
        self._turns = turns
        self._process: subprocess.Popen[bytes] | None = None
        side = settings.rule.input_px
        with tempfile.TemporaryFile() if not hasattr(os, "memfd_create") else _memory_file() as file:
            file.truncate(side * side * 3)
            self._pixels_fd = os.dup(file.fileno())
        self._pixels = _map_pixels(self._pixels_fd, side)

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._process.pid if self._process else None

    def load(self, number: int, path: Where) -> Decoded:
        """As ``Decoder.load``; ``crashed`` where the process dies over this file."""
        held = _hold(path)
        if isinstance(held, Failure):
            return Decoded(held)
        try:
            failure, width, height, note = self._ask("load", number, held)
        except _Died as death:
            return Decoded(Failure("crashed", str(death)))
        return Decoded(failure, width, height, None if failure else self._pixels.copy(), note)

    def cut(self, number: int, path: Where, box: Sequence[float] | None) -> bytes:
        """As ``Decoder.cut``; empty where the process dies over it."""
        try:
            crop = self._ask("cut", number, None, box)
            if crop is None:
                held = _hold(path)
                crop = b"" if isinstance(held, Failure) else self._ask("cut", number, held, box)
        except _Died:
            crop = b""
        return crop

    def close(self) -> None:
        """End the process; at once, as it is idle or its work is no longer wanted."""
        self._stop()
        if self._pixels_fd >= 0:
            os.close(self._pixels_fd)
            self._pixels_fd = -1

    def _ask(self, *request: Any) -> Any:
        if self._process and self._process.poll() is not None:
            self._stop()  # died while idle: no file's fault
        if not self._process:
            self._start()
        try:
            self._connection.send(request)
            return self._connection.recv()
        except (EOFError, ConnectionError):
            raise _Died(f"the decoder {self._stop()} on this file") from None

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        fds = (theirs.fileno(), self._pixels_fd, self._turns)
        start = _START.format(module=__name__)
        command = [sys.executable, "-c", start, json.dumps(sys.path), *map(str, fds)]
        with theirs:
            try:
                # A group of its own: Ctrl-C is for the parent, which then ends its workers.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=fds,
                    process_group=0,
                )
            except OSError as error:
                ours.close()
                raise FgvcError(
                    f"Could not start a decoding process: {error.strerror}.", "Use --workers 0."
                ) from error
        self._connection = Connection(ours.detach())
        try:
            self._connection.send(self._settings)
            self._connection.recv()
        except (EOFError, ConnectionError):
            how = self._stop()
            raise FgvcError(f"A decoding process {how} as it started.", "Use --workers 0.") from None

    def _stop(self) -> str:
        """End the process and say how it ended."""
        if self._process is None:
            return "was not there"
        self._connection.close()
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._process = None
        if code < 0:
            # The kernel's way with a process that takes too much memory.
            hint = " (out of memory?)" if code == -signal.SIGKILL else ""
            return f"was killed by {signal.Signals(-code).name}{hint}"
        return f"ended with exit code {code}"


class FileTurn:
    """One of ``TURNS`` locks on a shared file; the system releases it when its process dies."""

    def __init__(self, fd: int):
        self._fd = fd
        self._place = os.getpid() % TURNS

    def acquire(self) -> None:
        """Wait for it."""
        fcntl.lockf(self._fd, fcntl.LOCK_EX, 1, self._place)

    def release(self) -> None:
        """Give it back."""
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, self._place)


def serve(socket_fd: str, pixels_fd: str, turns_fd: str) -> None:
    """The worker: answer requests until the parent closes the socket or is gone."""
    connection = Connection(int(socket_fd))
    try:
        settings: DecodeSettings = connection.recv()
        decoder = Decoder(settings, turn=FileTurn(int(turns_fd)))
        pixels = _map_pixels(int(pixels_fd), settings.rule.input_px)
        connection.send("ready")
        while True:
            kind, *request = connection.recv()
            if kind == "cut":
                connection.send(decoder.cut(*request))
                continue
            decoded = decoder.load(*request)
            if decoded.pixels is not None:
                pixels[:] = decoded.pixels
            connection.send((*decoded[:3], decoded.note))
    except (EOFError, ConnectionError):
        os._exit(0)  # nothing to tidy up, and a parent that may wait


def _memory_file() -> Any:
    return os.fdopen(os.memfd_create("fgvc-pixels"), "r+b")


def _map_pixels(fd: int, side: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(fd, side * side * 3), np.uint8).reshape(side, side, 3)


T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Loaded:
    """One image ready for the model, or why it is not."""

    number: int
    found: Found
    decoded: Decoded
    worker: int
    """Which decoder has it, and perhaps still its image."""


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
        """The crop of an image, before any further image is read; None lets go of its image."""
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
        """Own crops first, as an image is kept for each; None at the end."""
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
