"""``OUT.partial/``: what lies in it, and how it is removed.

OUT.partial/
  run.json        what the run is: a different one is refused, field by field
  origin.json     where the photographs were when rows were last added (``provenance``)
  list.json       the whole list of images as the run found it (``file_list``)
  lock            held while a process works here; the system frees it however the process ends
  rows-*.npz      sealed rows (``parts``)
  done.json       all rows are sealed: how many, with what status, and the whole list they are a share of
  merging.json    outputs that the merge may replace, as it began to put them there
  shard-2-of-8/   the same, for a run in several processes: rows 2, 10, 18, ... of the walk
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.files import LOCK, TEMPORARY, read_document, sync_folder
from fgvc_cli.formats.rows import Origin
from fgvc_cli.run.parts import list_shards

RUN, LIST, DONE, MERGING = "run.json", "list.json", "done.json", "merging.json"
ORIGIN = "origin.json"


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


def partial_folder(out: Path) -> Path:
    """Where the rows of OUT wait; beside the target where OUT is a link."""
    target = Path(os.path.realpath(out))
    return target.with_name(f"{target.name}.partial")


def recorded_setting(root: Path, name: str, shard: ShardOf = WHOLE) -> Any:
    """A setting of the run in OUT.partial: of this shard or else of any; None where nothing is begun."""
    for folder in [root, root / shard.folder, *(folder for _, folder in shard_folders(root))]:
        if (folder / RUN).exists():
            return read_document(folder / RUN).get("settings", {}).get(name)
    return None


def read_origin(folder: Path) -> Origin | None:
    if not (folder / ORIGIN).exists():
        return None
    document = read_document(folder / ORIGIN)
    return Origin(tuple(document["sources"]), document["working_folder"])


def holds_rows(folder: Path) -> bool:
    """Whether any row is sealed, or all none of them are."""
    return (folder / DONE).exists() or bool(list_shards(folder))


def holds_run(folder: Path) -> bool:
    """Whether ``discard`` would find anything."""
    return any((folder / name).exists() for name in (DONE, MERGING, RUN)) or bool(list_shards(folder))


def discard(folder: Path, *, keep_folder: bool = False) -> None:
    """Remove what a run wrote into its folder, and the folder where nothing else lies in it."""
    for path in [*list_shards(folder), *folder.glob(f"*{TEMPORARY}")]:
        path.unlink(missing_ok=True)
    for name in (DONE, MERGING, ORIGIN, LIST, RUN):
        (folder / name).unlink(missing_ok=True)
    if not keep_folder and {path.name for path in folder.iterdir()} <= {LOCK}:
        shutil.rmtree(folder, ignore_errors=True)


def shard_folders(root: Path) -> list[tuple[int, Path]]:
    """The sub-folders of shards that were begun, each with the number of shards that its name says."""
    begun = [folder for folder in sorted(root.glob("shard-*-of-*")) if (folder / RUN).exists()]
    folders = [(folder.name.split("-"), folder) for folder in begun]
    return [(int(name[3]), folder) for name, folder in folders if len(name) == 4 and name[3].isdecimal()]


def remove_run(root: Path) -> None:
    """Take away a run whose outputs are in place: at once by its name, then file by file."""
    sweep_removed(root)
    root.replace(root.with_name(f".{root.name}.done"))
    sync_folder(root.parent)
    sweep_removed(root)


def sweep_removed(root: Path) -> None:
    """Remove what a kill in ``remove_run`` left."""
    shutil.rmtree(root.with_name(f".{root.name}.done"), ignore_errors=True)
