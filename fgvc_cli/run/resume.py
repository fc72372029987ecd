"""Whose rows lie in ``OUT.partial``, whether this run may go on with them, and how far they are."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fgvc_cli.errors import FgvcError
from fgvc_cli.files import TEMPORARY, FolderLock, reason
from fgvc_cli.formats.rows import as_text, first_change
from fgvc_cli.run.parts import list_parts, read_names
from fgvc_cli.run.record import (
    WHOLE,
    ImageList,
    RunRecord,
    ShardOf,
    check_images,
    discard,
    has_record,
    holds_rows,
    holds_run,
    read_record,
    shard_folders,
    summarise,
    write_record,
)
from fgvc_cli.sources.find import Found

DISCARD_TRIES, DISCARD_SECONDS = 10, 0.1
"""Shards that are restarted together discard what an earlier run left one after the other."""


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
        self.parts: list[Path] = []
        self.rows = 0
        """Completed rows."""
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

    def skip_completed(self, images: Iterator[Found]) -> None:
        """Take the images of the completed rows from the walk, and see that they are the same.

        Fills ``parts``, ``rows`` and ``statuses``.

        Raises:
            FgvcError: the list of images has changed, naming the first that differs.
        """
        deque(self.walk_completed(images), maxlen=0)

    def walk_completed(self, images: Iterator[Found]) -> Iterator[tuple[Path, int, str, Found]]:
        """As ``skip_completed``, lazily: part, row in it, status and image of each completed row.

        Rows behind a damaged or missing part are dropped, to be read anew.
        """
        for part in list_parts(self.path):
            try:
                first, names, statuses = read_names(part)
            except FgvcError:
                first, names, statuses = -1, [], []
            if first != self.rows:
                self.update(complete=None)
                part.unlink()
                continue
            self.parts.append(part)
            self.rows += len(names)
            self.statuses.update(statuses)
            for row, (name, status) in enumerate(zip(names, statuses, strict=True)):
                found = next(images, None)
                now = as_text(found.name) if found else "the end"
                if found is None or now != name:
                    raise self._list_changed(first + row, name, now)
                yield part, row, status, found
        if self._record.complete and self._record.complete["rows"] != self.rows:
            self.update(complete=None)
        if self.done and (extra := next(images, None)):
            raise self._list_changed(self.rows, "the end", as_text(extra.name))

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

    def finish(self, rows: int, statuses: Counter[str], seen: dict[str, Any] | None = None) -> None:
        """All rows are complete.

        Args:
            seen: from ``ShardWalk.seen``; shards are not merged without it.
        """
        self.update(complete={"rows": rows, "statuses": dict(statuses)}, images=seen)

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
