"""``OUT.partial/``: what lies in it, and ``run.json``, which says all of a run that its rows do not.

OUT.partial/
  run.json        one document, written whole at each change (``RunRecord``)
  lock            held while a process works here; the system frees it however the process ends
  rows-*.npz      completed parts (``parts``)
  shard-2-of-8/   the same, for a run in several processes: rows 2, 10, 18, ... of the walk
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgvc_cli import __version__
from fgvc_cli.config import stored_preprocess
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.files import LOCK, TEMPORARY, read_document, sync_folder, write_document
from fgvc_cli.formats.outputs import Outputs
from fgvc_cli.formats.rows import Origin, RunInfo, as_text
from fgvc_cli.run.parts import list_parts
from fgvc_cli.sources.find import Found

RUN = "run.json"
FORMAT = 2
"""Of the folder; 1 had several files in place of ``run.json``."""
FORMAT_1 = ("done.json", "merging.json", "origin.json", "list.json")

MARK_ROWS = 10_000


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
        return Origin(tuple(self.origin["sources"]), self.origin["working_folder"]) if self.origin else None


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
    return json.loads(json.dumps({"fgvc_version": __version__, "sources": list(sources), **shared}))


def info_of(identity: dict[str, Any]) -> RunInfo:
    """The ``RunInfo`` that an identity was made from."""
    shared = {f.name: identity[f.name] for f in dataclasses.fields(RunInfo)}
    shared["preprocess"] = stored_preprocess(identity["preprocess"])
    return RunInfo(**shared | {name: tuple(shared[name]) for name in ("classes", "extras")})


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


PARTIAL = ".partial"


def partial_folder(out: Path) -> Path:
    """Where the rows of OUT wait; beside the target where OUT is a link."""
    target = Path(os.path.realpath(out))
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
    for name in (*FORMAT_1, RUN):
        (folder / name).unlink(missing_ok=True)
    if not keep_folder and {path.name for path in folder.iterdir()} <= {LOCK}:
        shutil.rmtree(folder, ignore_errors=True)


def remove_run(root: Path) -> None:
    """Take away a run whose outputs are in place: at once by its name, then file by file."""
    sweep_removed(root)
    root.replace(root.with_name(f".{root.name}.done"))
    sync_folder(root.parent)
    sweep_removed(root)


def sweep_removed(root: Path) -> None:
    """Remove what a kill in ``remove_run`` left."""
    shutil.rmtree(root.with_name(f".{root.name}.done"), ignore_errors=True)
