"""``OUT.partial/``: what lies in it, whose rows they are, how far, and whether this run may go on with them.

OUT.partial/
  run.json        one document, written whole at each change (``RunRecord``): what a run's rows do not say
  lock            held while a process works here; the system frees it however the process ends
  rows-*.npz      completed parts (``parts``), in any order: what lies between two is still to be predicted
  storage         written anew by a run on a cluster, whose workers must see it
  shard-2-of-8/   the same, for a run in several processes: rows 2, 10, 18, ... of the walk
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fgvc_cli import __version__
from fgvc_cli.config import stored_preprocess
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.files import (
    LOCK,
    TEMPORARY,
    FolderLock,
    read_document,
    reason,
    remove_folder,
    sync_folder,
    write_document,
)
from fgvc_cli.formats.outputs import Outputs
from fgvc_cli.formats.rows import Origin, RunInfo, as_text, first_change, has_failed
from fgvc_cli.run.parts import list_parts, part_name, read_names
from fgvc_cli.sources.find import Found
from fgvc_cli.store import StorePath, as_path, real_path, without_secrets

RUN = "run.json"
STORAGE = "storage"
REMOVED = "removed"
FORMAT = 2
"""Of the folder; 1 had several files in place of ``run.json``."""
FORMAT_1 = ("done.json", "merging.json", "origin.json", "list.json")

MARK_ROWS = 10_000

DISCARD_TRIES, DISCARD_SECONDS = 10, 0.1
"""Shards that are restarted together discard what an earlier run left one after the other."""

PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class ShardOf:
    """Rows ``index``, ``index + count``, ``index + 2 * count``, ... of the walk."""

    index: int = 0
    count: int = 1

    @property
    def folder(self) -> str:
        """Name of its sub-folder; the folder itself for a run in one piece."""
        return f"shard-{self.index}-of-{self.count}" if self.count > 1 else "."


WHOLE = ShardOf()


def parse_shard(text: str) -> ShardOf:
    """``2/8`` -> shard 2 of 8, the first being 0.

    Raises:
        FgvcError: anything else.
    """
    index, slash, count = text.partition("/")
    if slash and index.isdecimal() and count.isdecimal() and int(index) < int(count):
        return ShardOf(int(index), int(count))
    raise FgvcError(f"--shard got {text!r}, expected i/n with 0 <= i < n.", "E.g. --shard 0/8", EXIT_USAGE)


@dataclass(frozen=True)
class RunRecord:
    """What ``run.json`` holds, as plain JSON values."""

    run: dict[str, Any]
    """What all rows share (``run_identity``): another run is refused, field by field."""
    outputs: dict[str, Any] | None = None
    """Where the rows go in the end (``Outputs.record``), so that ``fgvc merge OUT`` needs no more."""
    origin: dict[str, Any] | None = None
    """Where the images were when rows were last added (``Origin``)."""
    images: dict[str, Any] | None = None
    """The whole list of images (``ImageList``), as soon as it is known."""
    complete: dict[str, Any] | None = None
    """All rows are there: how many (``rows``), with what status (``statuses``)."""
    placed: tuple[str, ...] = ()
    """Real paths of outputs that a merge may have put in their places, and may replace."""

    @property
    def info(self) -> RunInfo:
        """What a sink is told of the run."""
        return info_of(self.run)

    def read_origin(self) -> Origin | None:
        """None where no rows were added yet."""
        return Origin(**self.origin | {"sources": tuple(self.origin["sources"])}) if self.origin else None


def has_record(folder: Path) -> bool:
    """Whether a run was begun in a folder."""
    return (folder / RUN).exists()


def read_record(folder: Path) -> RunRecord:
    """Read ``run.json``.

    Raises:
        FgvcError: it cannot be read, or is of another version of fgvc, whose rows stay as they are.
    """
    document = read_document(folder / RUN)
    if (found := document.pop("format", None)) != FORMAT:
        by = document.get("fgvc_version") or document.get("run", {}).get("fgvc_version", "unknown")
        raise FgvcError(
            f"{folder} was begun by another version of fgvc ({by}, run format {found}; "
            f"this one has {FORMAT}).",
            "Finish it with that version; or predict with --restart, which discards its rows; "
            "or name another --out.",
        )
    try:
        record = RunRecord(**document)
        return dataclasses.replace(record, placed=tuple(record.placed))
    except TypeError as error:
        message = f"{folder / RUN} cannot be read: {error}."
        raise FgvcError(message, "--restart discards the rows beside it; or name another --out.") from error


def write_record(folder: Path, record: RunRecord) -> None:
    """Write ``run.json``: temporary file, fsync, rename.

    Raises:
        FgvcError: the disk is full or the folder has gone.
    """
    write_document(folder / RUN, {"format": FORMAT, **dataclasses.asdict(record)})


def run_identity(info: RunInfo, sources: Sequence[str]) -> dict[str, Any]:
    """All that two runs must share for their rows to belong together, as plain JSON values."""
    shared = {f.name: getattr(info, f.name) for f in dataclasses.fields(info)}
    shared["preprocess"] = info.preprocess.model_dump()
    if not info.columns:
        # Rows of a run begun before there were any belong to one without them.
        del shared["columns"]
    sources = list(map(without_secrets, sources))
    return json.loads(json.dumps({"fgvc_version": __version__, "sources": sources, **shared}))


def info_of(identity: dict[str, Any]) -> RunInfo:
    """The ``RunInfo`` that an identity was made from."""
    identity = {"columns": (), **identity}
    shared = {f.name: identity[f.name] for f in dataclasses.fields(RunInfo)}
    shared["preprocess"] = stored_preprocess(identity["preprocess"])
    return RunInfo(**shared | {name: tuple(shared[name]) for name in ("classes", "extras", "columns")})


def partial_folder(out: Path) -> Path:
    """Where the rows of OUT wait; beside the target where OUT is a link."""
    target = as_path(real_path(out))
    return target.with_name(f"{target.name}{PARTIAL}")


def shard_folders(root: Path) -> list[tuple[int, Path]]:
    """The sub-folders of shards that were begun, each with the number of shards that its name says."""
    begun = [folder for folder in sorted(root.glob("shard-*-of-*")) if has_record(folder)]
    folders = [(folder.name.split("-"), folder) for folder in begun]
    return [(int(name[3]), folder) for name, folder in folders if len(name) == 4 and name[3].isdecimal()]


def recorded_setting(root: Path, name: str, shard: ShardOf = WHOLE) -> Any:
    """A setting of the run in OUT.partial: of this shard or else of any; None where nothing is begun."""
    for folder in [root, root / shard.folder, *(folder for _, folder in shard_folders(root))]:
        if has_record(folder):
            return read_record(folder).run.get("settings", {}).get(name)
    return None


def placed_outputs(root: Path) -> set[str]:
    """Outputs that a merge which was cut short may have put in place, as real paths."""
    folders = [root, *(folder for _, folder in shard_folders(root))]
    return {path for folder in folders if has_record(folder) for path in read_record(folder).placed}


def recorded_outputs(folder: Path, root: Path) -> Outputs | None:
    """Where the rows of a folder are to go; None where it does not say."""
    outputs = read_record(folder).outputs
    return Outputs.from_record(outputs, root.parent) if outputs else None


class ImageList:
    """The fingerprint of a list of images, which is taken name by name.

    For two million names it is some ten kilobytes: a hash of all names so far after each ``MARK_ROWS``, so
    that a change is told with where it is.
    """

    def __init__(self) -> None:
        self.total = 0
        self._names = hashlib.sha256()
        self._marks: list[str] = []

    def add(self, found: Found) -> None:
        """Take the next image."""
        self.total += 1
        self._names.update(as_text(found.name).encode() + b"\0")
        if self.total % MARK_ROWS == 0:
            self._marks.append(self._mark())

    def summary(self) -> dict[str, Any]:
        """How many images there were, and hashes of their names, as plain JSON values."""
        return {"total": self.total, "marks": [*self._marks, self._mark()]}

    def _mark(self) -> str:
        return self._names.hexdigest()[:32]


def summarise(images: Iterable[Found], stopped: Callable[[], bool] = lambda: False) -> dict[str, Any] | None:
    """The summary of a whole list; None where it was stopped."""
    taken = ImageList()
    for found in images:
        taken.add(found)
        if stopped():
            return None
    return taken.summary()


def check_images(folder: Path, old: dict[str, Any], images: Iterable[Found]) -> int:
    """Raise FgvcError, saying among which rows, unless the images are those of ``old``; how many there
    are."""
    new = summarise(images)
    assert new is not None
    if old == new:
        return int(new["total"])
    pairs = zip(old["marks"], new["marks"], strict=False)
    same = next((i for i, (was, now) in enumerate(pairs) if was != now), 0) * MARK_ROWS
    last = min(same + MARK_ROWS, max(old["total"], new["total"])) - 1
    counts = "" if old["total"] == new["total"] else f" ({old['total']:,} then, {new['total']:,} now)"
    raise FgvcError(
        f"The list of images has changed since {folder} was begun: rows {same:,} to {last:,} differ{counts}.",
        "Bring it back to go on; --accept-list goes on with the list as it is now; --restart begins anew.",
    )


class ShardWalk(Iterator[Found]):
    """The images of one shard, which sees the names of all, so that shards of different lists are told apart.

    Args:
        images: those of all shards.
        again: gives them anew from the first on; None where they can be walked only once.
    """

    def __init__(
        self,
        images: Iterator[Found],
        shard: ShardOf = WHOLE,
        again: Callable[[], Iterable[Found]] | None = None,
    ):
        self.again = again
        self._images = images
        self._shard = shard
        self._list = ImageList()

    def __next__(self) -> Found:
        while True:
            found = next(self._images)
            mine = self._list.total % self._shard.count == self._shard.index
            self._list.add(found)
            if mine:
                return found

    def seen(self) -> dict[str, Any]:
        """The summary of the whole list; goes to the end of the walk."""
        deque(self, maxlen=0)
        return self._list.summary()


class ListRecord:
    """Writes the list of a run that begins down, in a thread, so that the first row need not wait for it.

    A run that is killed before the thread is through has no list, and the next one writes it down. Images
    that come or go while a run works are its own affair: it takes what its walk meets.

    Args:
        write: takes the summary.
        again: walks the sources a second time.
        on_total: told how many images there are, from the thread.
    """

    def __init__(
        self,
        write: Callable[[dict[str, Any]], None],
        again: Callable[[], Iterable[Found]],
        on_total: Callable[[int], None],
    ):
        self._write, self._again, self._on_total = write, again, on_total
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._walk, name="list", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _walk(self) -> None:
        try:
            if summary := summarise(self._again(), self._stop.is_set):
                self._write(summary)
                self._on_total(summary["total"])
        except FgvcError:
            return  # the run meets the same source, or the same disk, and says so


@dataclass(frozen=True, slots=True)
class Task:
    """Rows to predict."""

    first: int
    """The number of the first of them, or of the part that they are in."""
    images: Iterable[Found]
    """Theirs, taken from the walk as they are asked for; all are to be taken before the next task is."""
    rows: tuple[int, ...] = ()
    """Which rows of the part that begins with ``first`` are read again; none: all are new, from ``first``
    on."""


class RunFolder:
    """The folder of one run, or of one of its shards, while this process works in it.

    Entering locks it, compares the identity and sweeps what a killed process left half-written. Leaving
    with an exception and without any completed row removes it again.

    Args:
        path: OUT.partial, see ``partial_folder``.
        identity: from ``run_identity``.
        shard: which rows of the walk lie here.
        restart: discard what is there.

    Raises:
        FgvcError: on entering: another run, another process, a folder of other things, a disk that refuses.
    """

    def __init__(
        self, path: Path, identity: dict[str, Any], *, shard: ShardOf = WHOLE, restart: bool = False
    ):
        self.root = path
        self.path = path / shard.folder
        self.identity = identity
        self.shard = shard
        self.rows = 0
        """Completed rows that stay as they are."""
        self.statuses: Counter[str] = Counter()
        """Theirs."""
        self._record = RunRecord(identity)
        self._writing = threading.Lock()
        self._restart = restart
        self._lock: FolderLock | None = None

    def __enter__(self) -> Self:
        if self.root.exists() and not self.root.is_dir():
            raise FgvcError(f"{self.root} exists and is not a folder.", "Remove it, or name another --out.")
        made = not self.path.exists()
        try:
            self.path.mkdir(parents=self.shard.count > 1, exist_ok=True)
            self._lock = FolderLock(self.path).__enter__()
            self._open()
        except OSError as error:
            self._leave(made)
            message = f"Cannot work in {self.path}: {reason(error)}."
            raise FgvcError(message, "Check its permissions, or name another --out.") from error
        except BaseException:
            self._leave(made)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None and self.path.is_dir() and not holds_rows(self.path):
                self._remove()
        finally:
            self._unlock()

    def _leave(self, made: bool) -> None:
        """Entering failed: what it made goes too."""
        if made and self._lock:
            with contextlib.suppress(OSError):
                self._remove()
        self._unlock()

    def _remove(self) -> None:
        discard(self.path)
        if self.path != self.root:
            with contextlib.suppress(OSError):
                self.root.rmdir()

    def _unlock(self) -> None:
        if self._lock:
            self._lock.__exit__()

    def _open(self) -> None:
        if self._restart:
            self._discard()
        counts = {count for count, _ in shard_folders(self.root)} | ({1} if has_record(self.root) else set())
        for count in counts - {self.shard.count}:
            raise _changed(self.root, "the number of shards", count, self.shard.count)
        if has_record(self.path):
            if not holds_rows(self.path):
                # Nothing that could contradict the run as it is now; the memory may have been too small for
                # its first batch.
                discard(self.path, keep_folder=True)
            else:
                self._record = read_record(self.path)
                if change := first_change(self._record.run, self.identity):
                    raise _changed(self.path, *change)
        if not has_record(self.path):
            write_record(self.path, self._record)
        for left in self.path.glob(f"*{TEMPORARY}"):
            left.unlink()

    @property
    def record(self) -> RunRecord:
        """What ``run.json`` says."""
        return self._record

    def update(self, **changes: Any) -> None:
        """Change fields of the record, on disk too; from any thread.

        Raises:
            FgvcError: the disk is full or the folder has gone.
        """
        with self._writing:
            changed = dataclasses.replace(self._record, **changes)
            if changed != self._record:
                write_record(self.path, changed)
                self._record = changed

    def _discard(self) -> None:
        """What a run in another number of pieces left, unless it still works, and what lies here."""
        if self.path != self.root:
            _discard_locked(self.root, keep_folder=True)
        for count, folder in shard_folders(self.root):
            if count != self.shard.count:
                _discard_locked(folder)
        discard(self.path, keep_folder=True)

    def survey(self, *, retry: bool = False) -> int:
        """Find the completed rows; fills ``rows`` and ``statuses``. A damaged part goes, to be read anew.

        Args:
            retry: failed rows do not count.

        Returns:
            How many rows do not count for that.
        """
        self._parts: list[tuple[Path, int, int]] = []
        self.rows, self.statuses, end = 0, Counter(), 0
        for part in list_parts(self.path):
            try:
                first, _, statuses = read_names(part)
            except FgvcError:
                first, statuses = -1, []
            if first < end or part.name != part_name(first):
                self.update(complete=None)
                part.unlink()
                continue
            end = first + len(statuses)
            self._parts.append((part, first, end))
            self.rows += len(statuses)
            self.statuses.update(statuses)
        if self._record.complete and self._record.complete["rows"] != self.rows:
            self.update(complete=None)
        failed = Counter({k: n for k, n in self.statuses.items() if retry and has_failed(k)})
        self.statuses -= failed
        self.rows -= failed.total()
        return failed.total()

    def tasks(self, images: Iterator[Found], *, retry: bool = False) -> Iterator[Task]:
        """What is to be predicted, in the order of the walk: what parts leave out, and all behind the last.
        Images of completed rows are taken from the walk, and seen to be the same. After ``survey``.

        Args:
            retry: failed rows too.

        Raises:
            FgvcError: the list of images has changed, naming the first that differs; a part is damaged.
        """
        row = 0
        for part, first, end in self._parts:
            if first > row:
                yield Task(row, islice(images, first - row))
            again: dict[int, Found] = {}
            for i, (name, status) in enumerate(zip(*read_names(part)[1:], strict=True)):
                found = next(images, None)
                now = as_text(found.name) if found else "the end"
                if found is None or now != name:
                    raise self._list_changed(first + i, name, now)
                if retry and has_failed(status):
                    again[i] = found
            if again:
                yield Task(first, list(again.values()), tuple(again))
            row = end
        if not self.done:
            yield Task(row, images)
        elif extra := next(images, None):
            raise self._list_changed(row, "the end", as_text(extra.name))

    def count(self, rows: int, statuses: Iterable[str] | Counter[str]) -> None:
        """So many rows more are complete."""
        self.rows += rows
        self.statuses.update(statuses)

    def _list_changed(self, number: int, was: str, now: str) -> FgvcError:
        row = number * self.shard.count + self.shard.index
        return FgvcError(
            f"The list of images has changed since {self.path} was begun: row {row} was {was}, now {now}.",
            "Bring it back to go on, or --restart, or another --out.",
        )

    @property
    def done(self) -> bool:
        """Whether all rows are complete."""
        return self._record.complete is not None

    def finish(self, seen: dict[str, Any] | None = None) -> None:
        """All rows are complete, and counted.

        Args:
            seen: from ``ShardWalk.seen``; shards are not merged without it.
        """
        self.update(complete={"rows": self.rows, "statuses": dict(self.statuses)}, images=seen)

    def watch_list(
        self, again: Callable[[], Iterable[Found]], on_total: Callable[[int], None], *, accept: bool = False
    ) -> contextlib.AbstractContextManager[object]:
        """See that the list of images is that which the run was begun with; of a run that begins, write it
        down while the context lasts.

        Args:
            again: walks the sources a second time.
            on_total: told how many images there are, from a thread perhaps.
            accept: write it down anew, whatever it was.

        Raises:
            FgvcError: it has changed, saying among which rows.
        """
        if self._record.images is None or accept:
            return ListRecord(lambda summary: self.update(images=summary), again, on_total)
        on_total(check_images(self.path, self._record.images, again()))
        return contextlib.nullcontext()


def holds_rows(folder: Path) -> bool:
    """Whether any row is complete, or all none of them are; of any version of fgvc."""
    if list_parts(folder) or (folder / FORMAT_1[0]).exists():
        return True
    return has_record(folder) and read_document(folder / RUN).get("complete") is not None


def holds_run(folder: Path) -> bool:
    """Whether ``discard`` would find anything."""
    return any((folder / name).exists() for name in (RUN, *FORMAT_1)) or bool(list_parts(folder))


def discard(folder: Path, *, keep_folder: bool = False) -> None:
    """Remove what a run wrote into its folder, and the folder where nothing else lies in it."""
    for path in [*list_parts(folder), *folder.glob(f"*{TEMPORARY}")]:
        path.unlink(missing_ok=True)
    for name in (*FORMAT_1, RUN, STORAGE):
        (folder / name).unlink(missing_ok=True)
    if not keep_folder and {path.name for path in folder.iterdir()} <= {LOCK}:
        remove_folder(folder)


def _discard_locked(folder: Path, *, keep_folder: bool = False) -> None:
    """``discard`` what no process works in.

    Raises:
        FgvcError: one does.
    """
    for left in reversed(range(DISCARD_TRIES)):
        if not holds_run(folder):
            return
        try:
            with FolderLock(folder):
                return discard(folder, keep_folder=keep_folder)
        except FileNotFoundError:  # another shard has just removed it
            continue
        except FgvcError:
            if not left:
                raise
            time.sleep(DISCARD_SECONDS)


def remove_run(root: Path) -> None:
    """Take away a run whose outputs are in place: at once by its name, then file by file.

    A folder of a store cannot be renamed at once; it gets a mark instead, which goes last.
    """
    sweep_removed(root)
    if isinstance(root, StorePath):
        (root / REMOVED).write_text("")
        return sweep_removed(root)
    root.replace(root.with_name(f".{root.name}.done"))
    sync_folder(root.parent)
    sweep_removed(root)


def sweep_removed(root: Path) -> None:
    """Remove what a kill in ``remove_run`` left."""
    if isinstance(root, StorePath):
        if (root / REMOVED).exists():
            for path in list(root.iterdir()):
                if path.name not in (REMOVED, LOCK):
                    path.remove()
            (root / REMOVED).unlink()
        return
    shutil.rmtree(root.with_name(f".{root.name}.done"), ignore_errors=True)


def _changed(folder: Path, name: str, old: Any, new: Any) -> FgvcError:
    was, now = _short(name, old), _short(name, new)
    return FgvcError(
        f"{folder} was begun with {name} {was}, this is {now}.",
        "Type the command as it was to go on; --restart discards what it has; or name another --out.",
    )


def _short(name: str, value: Any) -> str:
    if name == "classes" and isinstance(value, list):
        return f"{len(value)} ({', '.join(value[:3])}, ...)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
