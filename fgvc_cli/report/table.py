"""The rows of a prediction file, all in memory but for their maps and crops.

Legend: N rows, k predictions per row, P parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.predict.origin import Origin
from fgvc_cli.predict.rows import Block, RunInfo

ENDINGS = (".h5", ".hdf5", ".csv")
MAX_ROWS = 1_000_000
"""More than a browser holds at ease: each row takes about 0.5 KB of its memory."""
HOW_TO = "fgvc predict PHOTOS --out preds.h5 --maps --crops"


@dataclass(frozen=True)
class Table:
    """A prediction file."""

    source: Path
    rows: Block
    """All rows, without extras."""
    info: RunInfo
    """``extras`` says what the file holds; from a CSV, which tells no model, it is empty."""
    origin: Origin | None = None
    """Where the photographs were; not known from a CSV."""

    @property
    def answered(self) -> np.ndarray:
        """(N,) bool: rows with a prediction."""
        return self.rows.topk_index[:, 0] >= 0


def read_table(path: Path) -> Table:
    """Read what ``fgvc predict`` wrote.

    Raises:
        FgvcError: no such file, another kind of file, damaged, without a row, or of more than ``MAX_ROWS``.
    """
    if path.suffix.lower() not in ENDINGS:
        hint = "Give an .h5, which also holds attention maps and crops, or a .csv."
        raise FgvcError(f"fgvc report does not read {path.name}.", hint, EXIT_USAGE)
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise FgvcError(f"{path} {what}.", HOW_TO)
    if path.suffix.lower() == ".csv":
        from fgvc_cli.report.read_csv import read_csv

        return read_csv(path)
    from fgvc_cli.report.read_h5 import read_h5

    return read_h5(path)


def check_count(path: Path, rows: int) -> None:
    """Refuse a file without rows, or with too many.

    Raises:
        FgvcError: with the count.
    """
    if rows == 0:
        raise FgvcError(f"{path} holds no rows.", HOW_TO)
    if rows > MAX_ROWS:
        raise FgvcError(
            f"{path} holds {rows:,} rows; a page shows {MAX_ROWS:,} at most.",
            "Predict folder by folder, and make a report of each.",
        )
