"""What the commands share on stderr: data goes to stdout or files, talk goes here."""

from __future__ import annotations

from rich.console import Console


def stderr_console() -> Console:
    """A console on stderr; plain without a terminal, and colourless under ``NO_COLOR``."""
    return Console(stderr=True, highlight=False, soft_wrap=True)
