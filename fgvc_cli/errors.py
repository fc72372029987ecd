"""The exceptions that users see, the exit codes of every command, and words for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130


class FgvcError(Exception):
    """A user error: what arrived, what was expected, what to type.

    The command line prints it as one line on stderr, with no traceback.

    Args:
        message: what arrived and what was expected, one sentence, no newline.
        hint: what to type next, or None where nothing helps.
        exit_code: ``EXIT_USAGE`` for arguments that can never work, else ``EXIT_ERROR``.
    """

    def __init__(self, message: str, hint: str | None = None, exit_code: int = EXIT_ERROR):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after which everything is saved and it has been said how to go on."""


def nearest(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """The known names most like ``name``, best first; empty when none is close."""
    return difflib.get_close_matches(name, list(known), n=limit, cutoff=0.5)


def counted(count: int, one: str, many: str | None = None) -> str:
    """``1 image``, ``2,500 images``; ``many`` where an s at the end does not make it."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
