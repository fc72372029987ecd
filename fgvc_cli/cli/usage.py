"""Mistakes in a command line: one line, as every other error, in place of typer's boxes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer

from fgvc_cli.cli.help import HelpGroup
from fgvc_cli.errors import EXIT_ERROR, EXIT_OK

# Of click, which older typers import and newer ones bring along: by this way it is the same for both.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class OneLineGroup(HelpGroup):
    """Commands whose usage errors are one line on stderr: what arrived, what was expected, what to type."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """As of every click command: runs one and ends the process with its exit code."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except UsageError as error:
            # ``fgvc`` alone: its help has been printed.
            if type(error).__name__ != "NoArgsIsHelpError":
                typed = sys.argv[1:] if args is None else list(args)
                print(f"fgvc: {self._explain(error, typed)}", file=sys.stderr)
            sys.exit(error.exit_code)  # type: ignore[attr-defined]
        except typer.Abort:
            print("fgvc: aborted.", file=sys.stderr)
            sys.exit(EXIT_ERROR)
        sys.exit(code if isinstance(code, int) else EXIT_OK)

    def _explain(self, error: Any, typed: Sequence[str]) -> str:
        """What a usage error says, in one line, with what arrived, and where to read on."""
        text = " ".join(error.format_message().split()).rstrip(".")
        value = _value_of(getattr(error, "param", None), typed)
        if value is not None and repr(value) not in text:
            text += f", got {value!r}"
        ending = "" if text.endswith(("?", "!")) else "."
        return f"{text}{ending} Try: {self._command_path(typed)} --help"

    def _command_path(self, typed: Sequence[str]) -> str:
        """The commands at the start of what was typed, behind ``fgvc``."""
        names, group = ["fgvc"], self
        for word in typed:
            command = getattr(group, "commands", {}).get(word)
            if command is None:
                break
            names.append(word)
            group = command
        return " ".join(names)


def _value_of(option: Any, typed: Sequence[str]) -> str | None:
    """What was typed for an option; None where there is none, or it was an argument's."""
    for name in getattr(option, "opts", ()):
        for word, behind in zip(typed, [*typed[1:], None], strict=True):
            if word == name:
                return behind
            if word.startswith(f"{name}="):
                return word.removeprefix(f"{name}=")
    return None
