"""metrics.csv: how training goes, epoch by epoch."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from fgvc_cli.atomic import AtomicFile


class MetricsFile:
    """One line per epoch, on disk as soon as it is written; the file is whole at any moment.

    Args:
        rows: lines of the epochs before, of a run that is gone on with.
    """

    def __init__(self, path: Path, rows: list[dict[str, float]] | None = None):
        self.path = path
        self.rows = list(rows or [])

    def write(self, row: dict[str, float]) -> None:
        """Append a row; what it lacks stays empty, a new column goes to the right end.

        Raises:
            FgvcError: the file cannot be written; the row is kept and comes with the next one.
        """
        self.rows.append(row)
        # A column may come late: the accuracy of a branch that no photograph reached before.
        columns = list(dict.fromkeys(name for line in self.rows for name in line))
        text = io.StringIO(newline="")
        table = csv.writer(text)
        table.writerow(columns)
        for line in self.rows:
            table.writerow([format(line[name], ".6g") if name in line else "" for name in columns])
        with AtomicFile(self.path, overwrite=True) as stream:
            stream.write(text.getvalue().encode())
