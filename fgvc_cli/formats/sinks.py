"""Where rows go. A sink is a context manager; a new format is one file with one class and one entry in
``outputs.SINKS``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

from fgvc_cli.errors import FgvcError
from fgvc_cli.files import AtomicFile
from fgvc_cli.formats.provenance import Origin
from fgvc_cli.formats.rows import Block, Extra, RunInfo


class Sink(Protocol):
    """Entering checks that the output can be written; leaving without an exception completes it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def begin(self, info: RunInfo) -> None:
        """Called once, before the first row."""

    def write(self, block: Block) -> None:
        """The next rows, in the order of the images."""


class FileSink(ABC):
    """A sink into one file that appears complete or not at all (``AtomicFile``).

    Args:
        out: the file.
        overwrite: replace a file that is there.
        extras: what to store beside the predictions; formats without room for them ignore it.
        origin: where the photographs were; formats without attributes ignore it.

    Raises:
        FgvcError: the file exists and may not be replaced, or cannot be written: a full disk, a lost folder.
    """

    def __init__(
        self,
        out: Path,
        *,
        overwrite: bool = False,
        extras: Collection[Extra] = (),
        origin: Origin | None = None,
    ):
        self.extras = frozenset(extras)
        self.origin = origin
        self._file = AtomicFile(out, overwrite=overwrite)

    def __enter__(self) -> Self:
        self._stream: IO[bytes] = self._file.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close(complete=kind is None)
        except OSError as failure:
            explained = self._file.explain(failure)
            self._file.__exit__(FgvcError, explained, None)
            if kind is None:
                raise explained from failure
            return
        self._file.__exit__(kind, error, trace)

    def _close(self, *, complete: bool) -> None:  # noqa: B027 - most formats need nothing
        """What the format writes last."""

    def begin(self, info: RunInfo) -> None:
        """What the format writes first."""
        self._guard(self._begin, info)

    def write(self, block: Block) -> None:
        """The next rows."""
        self._guard(self._write, block)

    def _guard(self, step, *arguments) -> None:  # type: ignore[no-untyped-def]
        try:
            step(*arguments)
        except OSError as error:
            raise self._file.explain(error) from error

    @abstractmethod
    def _begin(self, info: RunInfo) -> None: ...

    @abstractmethod
    def _write(self, block: Block) -> None: ...
