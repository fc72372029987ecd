"""Who is told how training goes."""

from __future__ import annotations

from typing import Protocol, Self


class Observer(Protocol):
    """The command line shows what it is told. A context manager around the run."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """After each update; ``epoch`` and ``step``, in batches, count from 1."""

    def on_epoch(self, epoch: int, row: dict[str, float], best: bool) -> None:
        """After each validation; ``row`` is the line written to metrics.csv."""

    def on_warning(self, message: str) -> None:
        """Something the user should know, once."""
