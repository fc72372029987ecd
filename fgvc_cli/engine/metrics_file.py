"""metrics.csv: how training goes, epoch by epoch."""

from __future__ import annotations

import csv
from pathlib import Path


class MetricsFile:
    """One line per epoch, on disk as soon as it is written; a context manager."""

    def __init__(self, path: Path):
        self.path = path
        self.columns: list[str] = []
        self.rows: list[dict[str, float]] = []

    def __enter__(self) -> MetricsFile:
        self.stream = self.path.open("w", newline="", encoding="utf-8")
        return self

    def __exit__(self, *exc: object) -> None:
        self.stream.close()

    def write(self, row: dict[str, float]) -> None:
        """Append a row; what it lacks stays empty.

        A new column, such as the accuracy of a branch that no photograph reached before, goes to the right
        end: the file is then written again.
        """
        self.rows.append(row)
        new = [name for name in row if name not in self.columns]
        if new:
            self.columns += new
            self.stream.seek(0)
            self.stream.truncate()
            csv.writer(self.stream).writerow(self.columns)
        table = csv.writer(self.stream)
        for line in self.rows if new else [row]:
            table.writerow([format(line[name], ".6g") if name in line else "" for name in self.columns])
        self.stream.flush()
