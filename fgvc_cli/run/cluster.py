"""Predict on a Ray cluster: parts of the walk go to workers, one model each, and come back in any order.

The process that was started walks the images, and alone writes into the folder of the run: a worker leaves
its rows there, whole, under a name that is no part's, and they count once this process has renamed them. So
rows that two workers predict, as one was thought lost, are committed once; and what a worker of an earlier,
killed run still writes is never committed.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pickle
import socket
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from fgvc_cli import __version__
from fgvc_cli.errors import EXIT_ERROR, EXIT_USAGE, FgvcError
from fgvc_cli.files import sync_folder
from fgvc_cli.formats.rows import Block, RunInfo, block_bytes, first_change, join
from fgvc_cli.run.folder import STORAGE, RunFolder, Task, run_identity
from fgvc_cli.run.parts import PART_BYTES, part_name, write_part
from fgvc_cli.run.retry import repaired_part
from fgvc_cli.sources.archive_members import HeldMember
from fgvc_cli.sources.find import Found
from fgvc_cli.sources.stored import Stored
from fgvc_cli.store import as_path, real_path

PART_IMAGES = 2048
"""About; a multiple of the batch size, so that batches are those of a run in one process."""

HELD_BYTES = 32 << 20
"""A part ends sooner where its images are members of compressed archives, which travel with their bytes."""

AHEAD = 2
"""Parts that a worker has at a time: it predicts one while the rows of the other are written."""

MOST_WAITING = 64
"""Workers that are asked for at a time, and parts that wait for them."""

TRIES = 5
"""Workers that one part may lose, and workers in a row that may end as they start."""

LOOK_SECONDS = 5.0
"""How often the cluster is looked at for room, and how long a worker looks for a file on a slow storage."""

TELL_SECONDS = 30.0
"""After so long without a worker, that is told."""


class Lost(Exception):
    """A worker is gone, with what it had to do."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the walk, as it travels: paths as texts, which take a tenth of the time of ``Path``."""

    first: int
    images: tuple[tuple[Any, ...], ...]
    rows: tuple[int, ...] = ()
    """As of ``Task``."""

    def found(self) -> list[Found]:
        """The images."""
        return [Found(Path(p) if isinstance(p, str) else p, *rest) for p, *rest in self.images]


@dataclass(frozen=True, slots=True)
class Done:
    """What a worker has done of a part."""

    rows: int
    statuses: Counter[str]
    files: tuple[tuple[int, str], ...]
    """First row and name of each file that waits to be committed."""
    clipped: int = 0
    """Given boxes that reached beyond their image."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a worker says of itself."""

    host: str
    version: str
    info: RunInfo | None
    """None where it has another version of fgvc than the run."""


class PartPredictor(Protocol):
    """What predicts in a worker (``predictor.Predictor``)."""

    info: RunInfo
    clipped: int

    def blocks(self, images: Any, first: int = 0) -> Any: ...
    def kept_decoders(self) -> contextlib.AbstractContextManager[None]: ...


Make = Callable[[dict[str, Any], Callable[[str], None]], PartPredictor]
"""(options, what is told of notes) -> a model, in a worker; a function of a module, as it travels by name."""


def answered(method: Callable[..., Any]) -> Callable[..., Any]:
    """What a method of ``Worker`` returns, as it travels: with notes, and a user's error as its texts."""

    def call(self: Worker, *args: Any) -> tuple[Any, tuple[str, str | None, int] | None, list[str]]:
        value, error = None, None
        try:
            value = method(self, *args)
        except FgvcError as raised:
            message = f"Node {self.host}: {raised.message}"
            error = (message, raised.hint, raised.exit_code)
        notes, self.notes = self.notes, []
        return value, error, notes

    return call


class Worker:
    """One model, in a process of the cluster; it gets parts one after another."""

    def __init__(self) -> None:
        self.host = socket.gethostname()
        self.notes: list[str] = []
        self._turn = threading.Lock()
        # Read as torch is imported: decoders share the cores.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    @answered
    def open(self, version: str, make: bytes, options: dict[str, Any]) -> Opened:
        """Load the model, unless the run is of another version of fgvc.

        Args:
            make: a pickled ``Make``, which another version may not have.
        """
        # Looked up here: Ray sends a class along with the global values it uses, this process's version too.
        here = importlib.import_module("fgvc_cli").__version__
        if version != here:
            return Opened(self.host, here, None)
        self._predictor = pickle.loads(make)(options, self.notes.append)
        self._decoders = self._predictor.kept_decoders()
        self._decoders.__enter__()
        return Opened(self.host, here, self._predictor.info)

    @answered
    def sees(self, folder: str, token: str) -> bool:
        """Whether a folder is the one that the run writes into."""
        for left in (1, 0):
            with contextlib.suppress(OSError):
                if (as_path(folder) / STORAGE).read_text() == token:
                    return True
            time.sleep(left * LOOK_SECONDS)  # a network storage may have remembered that it was not there
        return False

    @answered
    def complete(self, folder: str, part: Part) -> Done:
        """Predict a part and leave its rows in the folder; the next part may begin while they are written."""
        path, statuses, rows = as_path(folder), Counter[str](), 0
        held: list[Block] = []
        files: list[tuple[int, str]] = []

        def leave() -> None:
            block = repaired_part(path, Task(part.first, (), part.rows), held) if part.rows else join(held)
            left = write_part(path, block, f".{uuid.uuid4().hex}.tmp")
            files.append((block.first, left.name))
            held.clear()

        with self._turn, closing(self._predictor.blocks(part.found(), first=part.first)) as blocks:
            clipped = self._predictor.clipped
            for block in blocks:
                held.append(block)
                rows += len(block)
                statuses.update(block.status)
                if not part.rows and sum(map(block_bytes, held)) >= PART_BYTES:
                    leave()
            clipped = self._predictor.clipped - clipped
        if held:
            leave()
        return Done(rows, statuses, tuple(files), clipped)


class Cluster(Protocol):
    """Where workers run (``RayCluster``)."""

    def start(self) -> Any:
        """Ask for a worker; it waits for room, and so do calls of it."""

    def call(self, worker: Any, method: str, *args: Any) -> Any:
        """Call a method of ``Worker``; what it will return."""

    def wait(self, calls: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Those that are through, after so long at most."""

    def take(self, call: Any) -> Any:
        """What it returned.

        Raises:
            Lost: its worker is gone.
        """

    def stop(self, worker: Any) -> None:
        """End a worker."""

    def room(self) -> int:
        """How many workers more would find room now."""


@dataclass
class _Hand:
    """A worker as this process sees it."""

    stage: str = "starting"
    """starting, looking (for the storage), ready or left out."""
    host: str = ""
    parts: list[Part] = field(default_factory=list)


class WorkerPool:
    """Workers of a cluster: as many as find room while there are parts to do; a context manager.

    Args:
        make, options: what each builds its model with.
        note: gets lines for people.
    """

    def __init__(self, cluster: Cluster, make: Make, options: dict[str, Any], note: Callable[[str], None]):
        self._cluster, self._make, self._options, self._note = cluster, pickle.dumps(make), options, note
        self._hands: dict[Any, _Hand] = {}
        self._calls: dict[Any, tuple[Any, Part | None]] = {}
        self._identity: dict[str, Any] | None = None
        self._info: RunInfo | None = None
        self._queue: deque[Part] = deque()
        self._losses: Counter[int] = Counter()
        self._failed_starts = 0
        self._noted: set[str] = set()
        self._looked = self._told = time.monotonic()
        self._folder, self._token = "", uuid.uuid4().hex
        self.done_parts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._hands:
            self._cluster.stop(worker)

    def open(self) -> RunInfo:
        """Wait for the first worker; what all rows will share.

        Raises:
            FgvcError: it cannot start, or is of another version.
        """
        while self._info is None:
            if not self._hands:
                self._start()
            self._step()
        return self._info

    def complete(self, tasks: Iterator[Task], folder: RunFolder, progress: Any) -> None:
        """Predict and commit tasks; for ``complete_rows``.

        Raises:
            FgvcError: a worker that does not fit the run; a part that ends its workers; what a worker says.
        """
        self._folder, self._identity = real_path(folder.path), folder.identity
        (folder.path / STORAGE).write_text(self._token)
        self._options = self._options | {"restart": False}
        assert self._info is not None
        parts = cut_parts(tasks, part_images(self._info))
        for worker, hand in self._hands.items():
            self._look(worker, hand)
        while True:
            self._hand_out(parts)
            if not self._fill(parts, 1) and not any(hand.parts for hand in self._hands.values()):
                return
            for done in self._step():
                for first, name in done.files:
                    (folder.path / name).replace(folder.path / part_name(first))
                sync_folder(folder.path)
                self.done_parts += 1
                folder.count(done.rows, done.statuses)
                progress.count(done.rows, done.statuses)
                progress.on_clipped(done.clipped)

    def _hand_out(self, parts: Iterator[Part]) -> None:
        """Parts for all that are ready, one each before any has two; and workers for parts that are left."""
        ready = [(worker, hand) for worker, hand in self._hands.items() if hand.stage == "ready"]
        for depth in range(AHEAD):
            for worker, hand in ready:
                if len(hand.parts) == depth and self._fill(parts, 1):
                    part = self._queue.popleft()
                    hand.parts.append(part)
                    self._calls[self._cluster.call(worker, "complete", self._folder, part)] = (worker, part)
        waiting = sum(hand.stage in ("starting", "looking") for hand in self._hands.values())
        if waiting and time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        # One that finds no room waits for it, and tells a cluster that can grow to do so.
        wanted = min(MOST_WAITING, max(self._cluster.room(), len(ready) // 2, 1))
        for _ in range(waiting, min(wanted, self._fill(parts, wanted))):
            self._start()

    def _fill(self, parts: Iterator[Part], count: int) -> int:
        """Up to so many parts in the queue; how many there are."""
        self._queue.extend(islice(parts, max(0, count - len(self._queue))))
        return len(self._queue)

    def _start(self) -> None:
        worker = self._cluster.start()
        self._hands[worker] = _Hand()
        call = self._cluster.call(worker, "open", __version__, self._make, self._options)
        self._calls[call] = (worker, None)

    def _look(self, worker: Any, hand: _Hand) -> None:
        hand.stage = "looking"
        self._calls[self._cluster.call(worker, "sees", self._folder, self._token)] = (worker, None)

    def _step(self) -> list[Done]:
        """Wait for a call or two, and go on with their workers; what parts have come to."""
        done: list[Done] = []
        for call in self._cluster.wait(list(self._calls), LOOK_SECONDS):
            if call not in self._calls:  # of a worker that was lost with an earlier one
                continue
            worker, part = self._calls.pop(call)
            hand = self._hands[worker]
            try:
                value, error, notes = self._cluster.take(call)
            except Lost as lost:
                self._lose(worker, str(lost))
                continue
            for text in notes:
                if text not in self._noted:
                    self._noted.add(text)
                    self._note(text)
            if error and hand.stage != "starting":
                raise FgvcError(*error)
            if error:
                self._leave_out(hand, *error)
            elif part:
                hand.parts.remove(part)
                done.append(value)
            elif hand.stage == "starting":
                self._opened(worker, hand, value)
            elif value:
                hand.stage = "ready"
            else:
                hint = "Name an --out on a storage that all nodes of the cluster see."
                self._leave_out(hand, f"Node {hand.host} does not see {self._folder}.", hint)
        if not any(hand.stage == "ready" for hand in self._hands.values()):
            if not done and time.monotonic() - self._told > TELL_SECONDS:
                self._told = time.monotonic()
                self._note("Waiting for a worker: the cluster has no room for one yet.")
        else:
            self._told = time.monotonic()
        return done

    def _opened(self, worker: Any, hand: _Hand, opened: Opened) -> None:
        hand.host, self._failed_starts = opened.host, 0
        if opened.info is None:
            what = f"Node {hand.host} has fgvc {opened.version}, this process has {__version__}."
            self._leave_out(hand, what, "Install one version on all nodes.")
        elif self._identity is None:
            self._info, hand.stage = opened.info, "open"
        elif change := first_change(self._identity, run_identity(opened.info, self._identity["sources"])):
            name, old, new = change
            what = f"Node {hand.host} would give other rows: {name} is {new!r}, not {old!r}."
            self._leave_out(hand, what, "Set it for all, with --amp and --device for example.")
        else:
            self._look(worker, hand)

    def _leave_out(self, hand: _Hand, what: str, hint: str | None, code: int = EXIT_ERROR) -> None:
        """A worker that does not fit ends the run, unless rows are there: then it keeps its place, idle, as
        the next one would come to lie there too."""
        if not self.done_parts:
            raise FgvcError(what, hint, code)
        hand.stage = "left out"
        self._note(f"warning: {what} It is left out.")

    def _lose(self, worker: Any, why: str) -> None:
        """A worker is gone: its parts wait again, before all others."""
        hand = self._hands.pop(worker)
        self._calls = {call: of for call, of in self._calls.items() if of[0] != worker}
        with contextlib.suppress(Exception):
            self._cluster.stop(worker)
        if not hand.parts and hand.stage != "ready":
            self._failed_starts += 1
            if self._failed_starts >= TRIES:
                hint = "Install the same fgvc on all nodes; ray logs says more."
                raise FgvcError(f"No worker could start in the cluster: {why}.", hint)
            return
        self._note(f"A worker on {hand.host} was lost: {why}. Its parts go to others.")
        for part in hand.parts:
            self._losses[part.first] += 1
        if hand.parts and self._losses[hand.parts[0].first] >= TRIES:
            first = hand.parts[0].first
            last = first + len(hand.parts[0].images) - 1
            hint = "A smaller --batch-size takes less memory."
            raise FgvcError(f"Rows {first:,} to {last:,} have ended {TRIES} workers: {why}.", hint)
        self._queue.extendleft(reversed(hand.parts))


def part_images(info: RunInfo) -> int:
    """How many images a part has."""
    batch = int(info.settings.get("batch_size", 1))
    return max(1, round(PART_IMAGES / batch)) * batch


def cut_parts(tasks: Iterator[Task], size: int) -> Iterator[Part]:
    """Tasks in parts of ``size`` images, lazily; rows that are read again stay in one."""
    for task in tasks:
        first, images = task.first, iter(task.images)
        while taken := _take(images, size if not task.rows else len(task.rows)):
            yield Part(first, tuple(taken), task.rows)
            first += len(taken)


def _take(images: Iterator[Found], size: int) -> list[tuple[Any, ...]]:
    taken: list[tuple[Any, ...]] = []
    held = 0
    for path, *rest in islice(images, size):
        taken.append((path if isinstance(path, Stored) else os.fspath(path), *rest))
        held += len(path.data) if isinstance(path, HeldMember) else 0
        if held > HELD_BYTES:
            break
    return taken


class RayCluster:
    """A Ray cluster; a context manager around the work on it.

    Args:
        address: ``auto`` for the one that runs here, or where its head is.
        gpus: of each worker; None: 1 where the cluster has any, else 0.
        cpus: of each worker.

    Raises:
        FgvcError: Ray is not installed, or no cluster answers.
    """

    def __init__(self, address: str, gpus: float | None, cpus: int):
        try:
            import ray
        except ImportError as error:
            raise FgvcError("--ray needs Ray, which is not installed.", "pip install 'fgvc[ray]'") from error
        self._ray = ray
        self._own = not ray.is_initialized()
        if self._own:
            address = os.environ.get("RAY_ADDRESS") or address if address == "auto" else address
            _check_reachable(address)
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
                why = " ".join(str(error).split())[:200]
                raise _no_cluster(address, why) from error
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        self._needs = {"GPU": float(has_gpus) if gpus is None else gpus, "CPU": float(cpus)}
        # Two threads: a part is written while the next is predicted.
        self._actor = ray.remote(Worker).options(
            num_gpus=self._needs["GPU"], num_cpus=cpus, max_concurrency=2, scheduling_strategy="SPREAD"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._own:
            self._ray.shutdown()

    def start(self) -> Any:
        """As ``Cluster``."""
        return self._actor.remote()

    def call(self, worker: Any, method: str, *args: Any) -> Any:
        """As ``Cluster``."""
        return getattr(worker, method).remote(*args)

    def wait(self, calls: Sequence[Any], seconds: float) -> Sequence[Any]:
        """As ``Cluster``."""
        return self._ray.wait(list(calls), num_returns=1, timeout=seconds)[0]

    def take(self, call: Any) -> Any:
        """As ``Cluster``."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(call)
        except (errors.RayActorError, errors.WorkerCrashedError, errors.ObjectLostError) as error:
            lines = str(error).strip().splitlines() or ["it ended"]
            raise Lost((lines[-1] if "creation task" in lines[0] else lines[0]).rstrip(".")) from error

    def stop(self, worker: Any) -> None:
        """As ``Cluster``."""
        self._ray.kill(worker)

    def room(self) -> int:
        """As ``Cluster``."""
        free = self._ray.available_resources()
        return int(min(free.get(name, 0) / need for name, need in self._needs.items() if need))


def _check_reachable(address: str) -> None:
    """Raise FgvcError where nothing listens at an address, for which Ray would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not colon or not port.isdecimal():
        message = f"--ray got {address!r}, expected auto or HOST:PORT."
        raise FgvcError(message, "E.g. --ray 10.0.0.1:6379", EXIT_USAGE)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise _no_cluster(address, error.strerror or str(error)) from error


def _no_cluster(address: str, why: str) -> FgvcError:
    where = "here" if address == "auto" else f"at {address}"
    hint = "ray start --head begins one; ray status shows its nodes."
    return FgvcError(f"No Ray cluster answers {where}: {why}.", hint)
