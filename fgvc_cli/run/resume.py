"""Whose rows lie in ``OUT.partial``, whether this run may go on with them, and how far they are."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fgvc_cli import __version__
from fgvc_cli.errors import FgvcError
from fgvc_cli.files import TEMPORARY, FolderLock, read_document, reason, write_document
from fgvc_cli.formats.row_blocks import as_text
from fgvc_cli.formats.rows import RunInfo
from fgvc_cli.run.parts import list_shards, read_names
from fgvc_cli.run.run_files import DONE, RUN, WHOLE, ShardOf, discard, holds_rows, holds_run, shard_folders
from fgvc_cli.sources.find import Found

FORMAT = 1
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
        self._total = 0
        self._names = hashlib.sha256()

    def __next__(self) -> Found:
        while True:
            found = next(self._images)
            mine = self._total % self._shard.count == self._shard.index
            self._total += 1
            self._names.update(as_text(found.name).encode() + b"\0")
            if mine:
                return found

    def seen(self) -> dict[str, Any]:
        """How many images there are, and a hash of their names; goes to the end of the walk."""
        deque(self, maxlen=0)
        return {"total": self._total, "names_sha256": self._names.hexdigest()}


def run_identity(info: RunInfo, sources: Sequence[str]) -> dict[str, Any]:
    """All that two runs must share for their rows to belong together, as plain JSON values."""
    shared = {f.name: getattr(info, f.name) for f in dataclasses.fields(info)}
    shared["preprocess"] = info.preprocess.model_dump()
    document = {"format": FORMAT, "fgvc_version": __version__, "sources": list(sources), **shared}
    return json.loads(json.dumps(document))


def info_of(identity: dict[str, Any]) -> RunInfo:
    """The ``RunInfo`` that an identity was made from."""
    from fgvc_cli.config import stored_preprocess

    shared = {f.name: identity[f.name] for f in dataclasses.fields(RunInfo)}
    shared["preprocess"] = stored_preprocess(identity["preprocess"])
    return RunInfo(**shared | {name: tuple(shared[name]) for name in ("classes", "extras")})


def first_change(old: Any, new: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first field, dotted where nested, that differs: (name, old, new)."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if change := first_change(old.get(key), new.get(key), f"{name}.{key}" if name else key):
                return change
        return None
    return None if old == new else (name, old, new)


class RunFolder:
    """The folder of one run, or of one of its shards, while this process works in it.

    Entering locks it, compares the identity, sweeps what a killed process left half-written and finds the
    sealed rows. Leaving with an exception and without any sealed row removes it again.

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
        self.shards: list[Path] = []
        self.rows = 0
        """Sealed rows."""
        self.statuses: Counter[str] = Counter()
        """Theirs."""
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
        counts = {count for count, _ in shard_folders(self.root)} | (
            {1} if (self.root / RUN).exists() else set()
        )
        for count in counts - {self.shard.count}:
            raise _changed(self.root, "the number of shards", count, self.shard.count)
        if (self.path / RUN).exists():
            old = read_document(self.path / RUN)
            change = first_change(old, self.identity)
            if change and holds_rows(self.path):
                raise _changed(self.path, *change)
            if change:
                # Nothing that could contradict the run as it is now; the memory may have been too small for
                # its first batch.
                discard(self.path, keep_folder=True)
        if not (self.path / RUN).exists():
            write_document(self.path / RUN, self.identity)
        for left in self.path.glob(f"*{TEMPORARY}"):
            left.unlink()

    def _discard(self) -> None:
        """What a run in another number of pieces left, unless it still works, and what lies here."""
        if self.path != self.root:
            _discard_locked(self.root, keep_folder=True)
        for count, folder in shard_folders(self.root):
            if count != self.shard.count:
                _discard_locked(folder)
        discard(self.path, keep_folder=True)

    def skip_sealed(self, images: Iterator[Found]) -> None:
        """Take the images of the sealed rows from the walk, and see that they are the same.

        Fills ``shards``, ``rows`` and ``statuses``.

        Raises:
            FgvcError: the list of images has changed, naming the first that differs.
        """
        deque(self.walk_sealed(images), maxlen=0)

    def walk_sealed(self, images: Iterator[Found]) -> Iterator[tuple[Path, int, str, Found]]:
        """As ``skip_sealed``, lazily: shard, row in it, status and image of each sealed row.

        Rows behind a damaged or missing shard are dropped, to be read anew.
        """
        for shard in list_shards(self.path):
            try:
                first, names, statuses = read_names(shard)
            except FgvcError:
                first, names, statuses = -1, [], []
            if first != self.rows:
                (self.path / DONE).unlink(missing_ok=True)
                shard.unlink()
                continue
            self.shards.append(shard)
            self.rows += len(names)
            self.statuses.update(statuses)
            for row, (name, status) in enumerate(zip(names, statuses, strict=True)):
                found = next(images, None)
                now = as_text(found.name) if found else "the end"
                if found is None or now != name:
                    raise self._list_changed(first + row, name, now)
                yield shard, row, status, found
        if self.done and read_document(self.path / DONE)["rows"] != self.rows:
            (self.path / DONE).unlink()
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
        """Whether all rows are sealed."""
        return (self.path / DONE).exists()

    def finish(self, rows: int, statuses: Counter[str], seen: dict[str, Any] | None = None) -> None:
        """All rows are sealed.

        Args:
            seen: from ``ShardWalk.seen``; shards are not merged without it.
        """
        write_document(self.path / DONE, {"rows": rows, "statuses": dict(statuses), **(seen or {})})


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
