"""Image -> the model's input, and later the object's crop, in bounded memory: in threads, each with a process
of its own that may die with its image.

A process starts as fast as it imports, which is why there is no torch here.
Legend: S side of the model's input.
"""

from __future__ import annotations

import contextlib
import io
import itertools
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
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from PIL import Image

from fgvc_cli.data.geometry import cut_crop, cut_input, resized_size
from fgvc_cli.errors import FgvcError
from fgvc_cli.sources.boxes import Placed, Region
from fgvc_cli.sources.find import Found
from fgvc_cli.sources.frames import Frame
from fgvc_cli.sources.images import DecodedImage, Failure, Prepare, read_image
from fgvc_cli.sources.metadata import Taken
from fgvc_cli.sources.stored import Stored

Where = Path | Stored
"""What ``Found.path`` may be."""

Read = Callable[[Any], DecodedImage | Failure]
"""Path -> image, or why there is none."""

BIG_PIXELS = 32_000_000
"""Images above this take turns: 200 megapixels are 0.8 GB decoded, twice that while turned upright."""

TURNS = 2
"""How many of them are decoded at once in a whole run."""

AGAIN_PIXELS = 64_000_000
"""Images above this are decoded for each of their boxes; smaller ones once, and one stays in each decoder."""

_START = """
import sys, json
sys.path[:] = json.loads(sys.argv[1])
from {module} import serve
serve(*sys.argv[2:])
"""
STOP_SECONDS = 5.0

T = TypeVar("T")
R = TypeVar("R")


class Rule(NamedTuple):
    """A ``ResizeRule`` that a worker understands without pydantic, whose import would double its start."""

    input_px: int
    resize_px: int
    resize_rule: Literal["squash", "shorter"]
    color_profile: Literal["srgb", "ignore"] = "srgb"
    raw: Literal["preview", "develop"] = "preview"


class Decoded(NamedTuple):
    """What became of one image."""

    failure: Failure | None
    width: int = 0
    """Of the upright image, or of what a box shows of it, pixels."""
    height: int = 0
    pixels: np.ndarray | None = None
    """uint8 (S, S, 3)."""
    note: str = ""
    """See ``DecodedImage.note``."""
    taken: Taken = Taken()
    """See ``DecodedImage.taken``."""
    placed: Placed | None = None
    """See ``DecodedImage.placed``."""
    others: tuple[np.ndarray, ...] = ()
    """As ``pixels``, by each of ``DecodeSettings.others``."""


class Turn(Protocol):
    """Held while a big image is in memory."""

    def acquire(self) -> object: ...
    def release(self) -> object: ...


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """What every decoder of a run is told."""

    rule: Rule
    fast: bool = False
    """Decode a JPEG at 1/2, 1/4 or 1/8 of its size where that is still at least the resized size."""
    keep_bytes: int = 0
    """Images kept for their crops, per decoder; those beyond it are read again."""
    exif: bool = False
    """Find out when, where and with what images were taken."""
    others: tuple[Rule, ...] = ()
    """Of further models, for which the image that is decoded is resized too."""

    @property
    def sides(self) -> tuple[int, ...]:
        """S of each input, the first model's first."""
        return (self.rule.input_px, *(rule.input_px for rule in self.others))


class Decoder:
    """Decodes one image at a time; whoever uses it calls it from one thread.

    Args:
        read: instead of ``read_image``; ``fast`` and turns are then its own business.
        turn: taken for each image above ``BIG_PIXELS``.
    """

    def __init__(self, settings: DecodeSettings, *, read: Read | None = None, turn: Turn | None = None):
        self._settings = settings
        self._read = read
        self._turn = turn
        self._holds_turn = False
        self._kept: dict[int, DecodedImage] = {}
        self._kept_bytes = 0
        self._whole: tuple[Where, DecodedImage | Failure] | None = None
        """The image of the box that came last: the next box may be of the same."""

    def load(self, number: int, path: Where) -> Decoded:
        """Read and resize; with ``keep_bytes`` the image stays for ``cut`` while there is room."""
        with self._turns():
            photo = self._open(path)
            if isinstance(photo, Failure):
                return Decoded(photo)
            first, inputs = photo, []
            try:
                for rule in (self._settings.rule, *self._settings.others):
                    if first.by_rule and rule[3:] != self._settings.rule[3:]:
                        # Other colours, or the RAW instead of its preview: other pixels of the same file.
                        photo = self._open(path, rule)
                        if isinstance(photo, Failure):
                            return Decoded(photo)
                    inputs.append(np.asarray(cut_input(photo.image, rule, photo.full_size)))
                    photo = first
            except (MemoryError, OSError, ValueError) as error:
                reason = str(error) or "out of memory"
                return Decoded(Failure("unreadable", f"cannot be resized: {reason}"))
            self._keep(number, photo)
            pixels, *others = inputs
            return Decoded(None, *photo.size, pixels, photo.note, photo.taken, photo.placed, tuple(others))

    def cut(self, number: int, path: Where | None, box: Sequence[float] | None) -> bytes | None:
        """The crop of an image that ``load`` has seen, as JPEG, and the end of its being kept.

        Empty for no box, and for a file that can no longer be read; None without a path for an image
        that was not kept.
        """
        kept = self._kept.pop(number, None)
        if kept:
            self._kept_bytes -= _bytes(kept.image)
        if box is None:
            return b""
        if not kept and path is None:
            return None
        with self._turns():
            photo = kept or self._open(path)  # type: ignore[arg-type]
            try:
                return b"" if isinstance(photo, Failure) else cut_crop(photo.image, box, photo.full_size)
            except (MemoryError, OSError, ValueError):
                return b""

    def close(self) -> None:
        """Let go of everything."""
        self._kept.clear()
        self._whole = None

    @property
    def keeps_whole(self) -> bool:
        """Whether the image of the last box is still there, for ``Same``."""
        return self._whole is not None

    def _open(self, path: Where, rule: Rule | None = None) -> DecodedImage | Failure:
        """What a model sees of an image; by a rule other than the first model's, it is not kept."""
        if not isinstance(path, Region):
            return self._read_whole(path, self._prepare, rule)
        known = self._whole if self._whole and isinstance(path.path, Same) else None
        if rule:
            whole = self._read_whole(known[0] if known else path.path, self._take_turn, rule)
        elif self._whole and (known or path.path == self._whole[0]):
            whole = self._whole[1]
        else:
            self._whole = None
            whole = self._read_whole(path.path, self._take_turn)  # a box needs its pixels: no smaller copy
            if isinstance(whole, Failure) or whole.image.width * whole.image.height <= AGAIN_PIXELS:
                self._whole = path.path, whole
        return whole if isinstance(whole, Failure) else whole.within(path)

    def _read_whole(self, path: Where, prepare: Prepare, rule: Rule | None = None) -> DecodedImage | Failure:
        if self._read:
            return self._read(path)
        return read_image(path, prepare, rule or self._settings.rule, exif=self._settings.exif)

    def _prepare(self, image: Image.Image) -> None:
        if self._settings.fast:
            rules = (self._settings.rule, *self._settings.others)
            sizes = [resized_size(image.width, image.height, rule) for rule in rules]
            # No mode: the colours stay what they are.
            image.draft(None, (max(width for width, _ in sizes), max(height for _, height in sizes)))
        self._take_turn(image)

    def _take_turn(self, image: Image.Image) -> None:
        if self._turn and not self._holds_turn and image.width * image.height > BIG_PIXELS:
            self._turn.acquire()
            self._holds_turn = True

    @contextlib.contextmanager
    def _turns(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self._holds_turn and self._turn:
                self._holds_turn = False
                self._turn.release()

    def _keep(self, number: int, photo: DecodedImage) -> None:
        size = _bytes(photo.image)
        if self._kept_bytes + size <= self._settings.keep_bytes:
            self._kept[number] = photo
            self._kept_bytes += size


def _bytes(image: Image.Image) -> int:
    """Of the pixels; Pillow stores RGB in four bytes."""
    return 4 * image.width * image.height


@dataclass(frozen=True, slots=True)
class _Held(Stored):
    """The bytes of a stored image, or why there are none."""

    content: bytes | Exception

    def open(self) -> BinaryIO:
        if isinstance(self.content, Exception):
            raise self.content
        return io.BytesIO(self.content)


class Same(Stored):
    """The image of the box before, which the worker has."""

    def open(self) -> BinaryIO:
        """Nobody opens it."""
        raise FileNotFoundError


def _hold(where: Where) -> Where | Failure:
    """A path as it is; of anything else the bytes, as the worker may not reach where they lie: it has neither
    the connections of this process nor the file systems that a script set up in it."""
    if not isinstance(where, Stored):
        return where
    if isinstance(where, Frame | Region):
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
        self._whole: Where | None = None
        """The image that the worker keeps for its next box."""
        with tempfile.TemporaryFile() if not hasattr(os, "memfd_create") else _memory_file() as file:
            file.truncate(sum(side * side * 3 for side in settings.sides))
            self._pixels_fd = os.dup(file.fileno())
        self._inputs = _map_pixels(self._pixels_fd, settings.sides)

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._process.pid if self._process else None

    def load(self, number: int, path: Where) -> Decoded:
        """As ``Decoder.load``; ``crashed`` where the process dies over this file."""
        box = path if isinstance(path, Region) else None
        # Neither read from its archive again, nor sent.
        held = box.within(Same()) if box and box.path == self._whole else _hold(path)
        if isinstance(held, Failure):
            return Decoded(held)
        try:
            failure, width, height, note, taken, placed, keeps_whole = self._ask("load", number, held)
        except _Died as death:
            return Decoded(Failure("crashed", str(death)))
        if box:
            self._whole = box.path if keeps_whole else None
        if failure:
            return Decoded(failure)
        pixels, *others = (pixels.copy() for pixels in self._inputs)
        return Decoded(None, width, height, pixels, note, taken, placed, tuple(others))

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
        self._whole = None
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
        import fcntl  # which Windows has not

        fcntl.lockf(self._fd, fcntl.LOCK_EX, 1, self._place)

    def release(self) -> None:
        """Give it back."""
        import fcntl

        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, self._place)


def serve(socket_fd: str, pixels_fd: str, turns_fd: str) -> None:
    """The worker: answer requests until the parent closes the socket or is gone."""
    connection = Connection(int(socket_fd))
    try:
        settings: DecodeSettings = connection.recv()
        decoder = Decoder(settings, turn=FileTurn(int(turns_fd)))
        inputs = _map_pixels(int(pixels_fd), settings.sides)
        connection.send("ready")
        while True:
            kind, *request = connection.recv()
            if kind == "cut":
                connection.send(decoder.cut(*request))
                continue
            decoded = decoder.load(*request)
            if decoded.pixels is not None:
                for place, pixels in zip(inputs, (decoded.pixels, *decoded.others), strict=True):
                    place[:] = pixels
            rest = decoded.note, decoded.taken, decoded.placed, decoder.keeps_whole
            connection.send((*decoded[:3], *rest))
    except (EOFError, ConnectionError):
        os._exit(0)  # nothing to tidy up, and a parent that may wait


def _memory_file() -> Any:
    return os.fdopen(os.memfd_create("fgvc-pixels"), "r+b")


def _map_pixels(fd: int, sides: Sequence[int]) -> list[np.ndarray]:
    """An input (S, S, 3) for each side, one behind the other in the memory that both processes see."""
    ends = list(itertools.accumulate(side * side * 3 for side in sides))
    whole = np.frombuffer(mmap.mmap(fd, ends[-1]), np.uint8)
    places = np.split(whole, ends[:-1])
    return [place.reshape(side, side, 3) for place, side in zip(places, sides, strict=True)]


@dataclass(frozen=True, slots=True)
class Loaded:
    """One image ready for the model, or why it is not."""

    number: int
    found: Found
    decoded: Decoded
    worker: int
    """Which decoder has it, and perhaps still its image."""


class _Loads:
    """Images to load one after another: the boxes of one image, or one image.

    No other comes before the last one of an image has been asked for, so whoever takes the first takes all.
    """

    def __init__(self, image: Where | None):
        self.image = image
        self.jobs: deque[tuple[Future[Any], tuple]] = deque()


class DecodePool:
    """``workers`` threads, each with a decoder, and on POSIX each decoder in its own process; the boxes of an
    image that come one after another go to the same one.

    The processes are for files that kill a decoder; threads would be enough for speed. A ``read`` of the
    caller's runs in the threads. With no workers, calls are done at once by whoever calls.

    Args:
        settings: for each decoder; its ``keep_bytes`` are shared out among them.
        read: instead of ``read_image``.
    """

    def __init__(self, settings: DecodeSettings, *, workers: int, read: Read | None = None):
        self._settings = replace(settings, keep_bytes=settings.keep_bytes // max(workers, 1))
        self._read = read
        self._workers = workers
        self._in_processes = read is None and workers > 0 and os.name == "posix"
        self._turns = tempfile.TemporaryFile() if self._in_processes else None  # noqa: SIM115 - closed by close
        self._turn = threading.Semaphore(TURNS)
        self._ready = threading.Condition()
        self._loads: deque[_Loads] = deque()
        self._latest = _Loads(None)
        self._taken = [_Loads(None) for _ in range(max(workers, 1))]
        """Of each worker, those that it took last; more may come."""
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
        image = found.path.path if isinstance(found.path, Region) else None
        with self._ready:
            if image is None or image != self._latest.image:
                self._latest = _Loads(image)
                self._loads.append(self._latest)
            self._latest.jobs.append((future, (number, found)))
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
                self._ready.wait_for(
                    lambda: self._closed or self._cuts[index] or self._taken[index].jobs or self._loads
                )
            finally:
                self._idle -= 1
            if self._closed:
                return None
            if self._cuts[index]:
                future, request = self._cuts[index].popleft()
                return future, lambda decoder: decoder.cut(*request)
            if not self._taken[index].jobs:
                self._taken[index] = self._loads.popleft()
            future, (number, found) = self._taken[index].jobs.popleft()
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
