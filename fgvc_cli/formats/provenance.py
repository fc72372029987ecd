"""Where the photographs of a run were, so that a report of it finds them: recorded beside its rows, and no
part of what two runs must share."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fgvc_cli.files import read_document, write_document
from fgvc_cli.formats.row_blocks import as_text
from fgvc_cli.sources.remote import is_url

ORIGIN = "origin.json"
"""Its file in the folder of a run."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What was typed, and where."""

    sources: tuple[str, ...]
    """As typed; of a URL neither its password nor its query, which may be a key."""
    working_folder: str
    """Absolute: what relative sources, and the paths of rows that are as given, start at."""

    @classmethod
    def of(cls, sources: Sequence[str]) -> Origin:
        """Of sources typed in the folder where this process works."""
        return cls(tuple(as_text(_without_secrets(source)) for source in sources), as_text(os.getcwd()))

    def write(self, folder: Path) -> None:
        """Into the folder of a run, or of one of its shards.

        Raises:
            FgvcError: the disk is full or the folder has gone.
        """
        write_document(folder / ORIGIN, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Origin | None:
        """Back from there; None from a run that was begun by an fgvc which did not write it.

        Raises:
            FgvcError: it cannot be read.
        """
        if not (folder / ORIGIN).exists():
            return None
        document = read_document(folder / ORIGIN)
        return cls(tuple(document["sources"]), document["working_folder"])


def _without_secrets(source: str) -> str:
    if not is_url(source):
        return source
    return re.sub(r"://[^/@]*@", "://", source).partition("?")[0]
