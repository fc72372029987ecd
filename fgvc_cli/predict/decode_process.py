"""A decoder in a process of its own: a file that kills it costs one row, not the run.

Decoding libraries are C; a hostile file can end a process with SIGSEGV, and the kernel ends one that takes
too much memory. The parent starts ``serve`` with subprocess rather than multiprocessing, which would run the
user's script again in every worker. Requests and answers are small pickles over a socket between these two
processes; pixels go through shared memory.
"""

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
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, BinaryIO

import numpy as np

from fgvc_cli.data.images import Failure, read_image
from fgvc_cli.data.sources import Stored
from fgvc_cli.errors import FgvcError
from fgvc_cli.predict.decoder import TURNS, Decoded, Decoder, DecodeSettings, Where

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
            failure, width, height = self._ask("load", number, held)
        except _Died as death:
            return Decoded(Failure("crashed", str(death)))
        return Decoded(failure, width, height, None if failure else self._pixels.copy())

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
            connection.send(decoded[:3])
    except (EOFError, ConnectionError):
        os._exit(0)  # nothing to tidy up, and a parent that may wait


def _memory_file() -> Any:
    return os.fdopen(os.memfd_create("fgvc-pixels"), "r+b")


def _map_pixels(fd: int, side: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(fd, side * side * 3), np.uint8).reshape(side, side, 3)
