"""What the commands share on stderr: data goes to stdout or files, talk goes here."""

from __future__ import annotations

from rich.console import Console

from fgvc_cli.command import Messages


def stderr_console() -> Console:
    """A console on stderr; plain without a terminal, and colourless under ``NO_COLOR``."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


class ConsoleMessages(Messages):
    """Lines on that console."""

    def __init__(self, *, quiet: bool = False):
        super().__init__(quiet=quiet)
        self.console = stderr_console()

    def print(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False)
