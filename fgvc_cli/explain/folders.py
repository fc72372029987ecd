"""Pictures of a folder of photographs, and their maps as numbers: folders that appear whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fgvc_cli.errors import FgvcError
from fgvc_cli.explain.explanation import LabelledExplanation
from fgvc_cli.files import reason
from fgvc_cli.formats.csv_rows import csv_lines
from fgvc_cli.formats.folders import FolderSink, safe_name
from fgvc_cli.formats.rows import Block, as_text

INDEX = "index.csv"


class PicturesFolder(FolderSink):
    """One picture per photograph, named after it, and a table of all.

    Args:
        ending: of the pictures.

    Raises:
        FgvcError: on entering, adding or leaving: it cannot be written.
    """

    def __init__(self, out: Path, ending: str = ".png"):
        super().__init__(out)
        self.ending = ending

    def add(self, name: str, row: int, picture: bytes) -> str:
        """Write the picture of a photograph, ``row`` being its number from 0; the name it has got."""
        return self._put(f"{safe_name(name)}{self.ending}", row, picture)

    def add_table(self, rows: list[list[str]], name: str = INDEX) -> None:
        """A table of all, header first."""
        try:
            with (self._filling / name).open("xb") as stream:
                csv_lines(stream, rows)
        except OSError as error:
            raise self._explain(error) from error

    def _encode(self, block: Block, row: int) -> bytes:
        """Nothing: pictures are added one by one, not made of rows."""
        return b""

    def _explain(self, error: OSError) -> FgvcError:
        return FgvcError(
            f"Could not write {self.out}: {reason(error)}; it is left as it was.",
            "Free space, check permissions, or name another folder.",
        )


class PartsFolder(PicturesFolder):
    """Every map as a 16-bit grey PNG in its own cells over the model's input: 65535 is 1."""

    def __init__(self, out: Path):
        super().__init__(out)
        self._count = 0

    def begin(self, models: object) -> None:
        """Nothing is shared."""

    def add_maps(self, name: str, explained: Sequence[LabelledExplanation], **_row: Any) -> None:
        """Write the maps (h, w) in [0, 1] of the next photograph, each as ``<name>.<map>.png``; of several
        models as ``<name>.<label>.<map>.png``."""
        row, self._count = self._count, self._count + 1
        for each in explained:
            label = f"{safe_name(each.label).replace('/', '_')}." if each.label else ""
            for kind, heat in each.explanation.maps.items():
                grey = np.round(np.nan_to_num(heat).clip(0, 1) * 65535).astype(np.uint16)
                stream = io.BytesIO()
                Image.fromarray(grey).save(stream, "PNG", compress_level=1)
                self._put(f"{safe_name(as_text(name))}.{label}{kind}{self.ending}", row, stream.getvalue())
