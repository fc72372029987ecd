"""Which known sets are on this machine, and whether they are whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fgvc_cli.datasets.registry import KnownSet, known_sets, lacking, read_official
from fgvc_cli.errors import FgvcError


@dataclass(frozen=True)
class Presence:
    """A known set and what is there of it."""

    entry: KnownSet
    state: Literal["ok", "absent", "broken"]
    """``ok``: its counts are the official ones and every image is there. ``broken``: something else is."""
    root: Path | None = None
    """Its folder, where it is ok."""
    problem: str = ""
    """One line, where it is broken."""


def look_for_sets(data_root: Path | None) -> list[Presence]:
    """Every known set, by name; all are absent without a data root."""
    return [look_for(entry, data_root) for entry in known_sets()]


def look_for(entry: KnownSet, data_root: Path | None) -> Presence:
    """What is there of one set."""
    if data_root is None:
        return Presence(entry, "absent")
    _, absent = lacking(entry, data_root)
    # Folders such as images/ and train/ are many sets' own: some of them are no sign of this one.
    if absent and not (data_root / entry.folder).is_dir():
        return Presence(entry, "absent")
    try:
        return Presence(entry, "ok", read_official(entry, data_root).root)
    except FgvcError as error:
        return Presence(entry, "broken", problem=error.message)
