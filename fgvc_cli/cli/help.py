"""Help pages: options in panels by subject, what each takes beside its name, examples at the end.

typer's own page spends a third of the width on a column of types (``<bool>`` for every flag), and changes
from version to version; this one reads only what all versions have.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from typer.core import TyperCommand, TyperGroup

from fgvc_cli.cli.options import EXAMPLES, OTHER_PANEL, PANELS, VALUE_NAMES, panel_of

NAME_COLUMNS = 28
"""Columns for an option's name and value, at most."""

COMMANDS_PANEL = "Commands"

VALUES = {"int": "N", "float": "X", "Path": "PATH", "str": "TEXT"}
CLICK_VALUES = {
    "integer": "N",
    "integer range": "N",
    "float": "X",
    "float range": "X",
    "path": "PATH",
    "file": "PATH",
    "text": "TEXT",
}
"""As ``VALUES``, by the names that older typers have for types."""


class HelpCommand(TyperCommand):
    """A command with its options in the panels of ``PANELS``, and its examples."""

    def __init__(self, name: str | None, **settings: Any):
        super().__init__(name, **settings)
        place_in_panels(name, self.params)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the page, as wide as the terminal."""
        print_page(self, ctx)


class HelpGroup(TyperGroup):
    """A group of commands, listed with the first sentence of each."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        place_in_panels(self.name, self.params)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the page, as wide as the terminal."""
        print_page(self, ctx)


def place_in_panels(command: str | None, parameters: Iterable[Any]) -> None:
    """Set ``rich_help_panel`` of each option, for this page and for the generated reference."""
    for parameter in parameters:
        if is_option(parameter):  # as typer would place them, and as docs/hooks.py does
            parameter.rich_help_panel = panel_of(command or "", parameter.opts)


def is_option(parameter: Any) -> bool:
    """Whether a parameter of a command is an option and not an argument."""
    return str(parameter.opts[0]).startswith("-")


def choices_of(parameter: Any) -> list[str]:
    """What an option or argument can be, where that is a list."""
    described = getattr(parameter, "type_descriptor", None)
    found = getattr(described, "choices", None) or getattr(getattr(parameter, "type", None), "choices", None)
    return [str(getattr(choice, "value", choice)) for choice in found or ()]


def value_of(parameter: Any) -> str:
    """What an option takes, in one word: ``N``, ``FILE``, ``none|bf16``; empty for a flag."""
    if getattr(parameter, "is_flag", False):
        return ""
    if parameter.metavar:
        return str(parameter.metavar)
    choices = choices_of(parameter)
    if choices:
        listed = "|".join(choices)
        return listed if len(listed) + len(max(parameter.opts, key=len)) < NAME_COLUMNS else "NAME"
    named = next((VALUE_NAMES[name] for name in parameter.opts if name in VALUE_NAMES), None)
    if named:
        return named
    described = getattr(parameter, "type_descriptor", None)
    if described is None:
        return CLICK_VALUES.get(str(getattr(parameter.type, "name", "")), "TEXT")
    annotation = described.annotation
    shown = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return next((value for kind, value in VALUES.items() if kind in shown), "TEXT")


def name_of(parameter: Any) -> str:
    """``--out PATH``, ``--null, -0``, ``[IMAGE]...``."""
    if is_option(parameter):
        names = sorted(parameter.opts, key=len, reverse=True)
        shown = "/".join([", ".join(names), *parameter.secondary_opts])
        return f"{shown} {value_of(parameter)}".rstrip()
    name = str(parameter.metavar or parameter.name or "").strip("[].").upper()
    return f"{name}{'...' if parameter.nargs == -1 else ''}"


def text_of(parameter: Any) -> str:
    """The help of a parameter, with its limits, choices and default where the help does not name them."""
    text = " ".join((getattr(parameter, "help", None) or "").split())
    choices = choices_of(parameter)
    if choices and not all(choice in f"{text} {value_of(parameter)}" for choice in choices):
        text += f" One of {', '.join(choices)}."
    least = getattr(parameter, "min", getattr(getattr(parameter, "type", None), "min", None))
    most = getattr(parameter, "max", getattr(getattr(parameter, "type", None), "max", None))
    if most is not None:
        text += f" Between {least} and {most}."
    elif least is not None and least > 1:
        text += f" At least {least}."
    default = parameter.default
    plain = default not in (None, False, True, (), []) and not callable(default)
    if plain and "efault" not in text:
        text += f" Default: {default}."
    if parameter.required and is_option(parameter):
        text += " Required."
    return text.strip()


def usage_of(command: Any, path: str) -> str:
    """``fgvc predict [OPTIONS] SOURCES...``."""
    words = [path]
    if any(is_option(parameter) for parameter in command.params):
        words.append("[OPTIONS]")
    for parameter in command.params:
        if not is_option(parameter):
            words.append(name_of(parameter) if parameter.required else f"[{name_of(parameter)}]")
    if getattr(command, "commands", None):
        words.append("COMMAND ...")
    return " ".join(words)


def panels_of(command: Any, ctx: Any) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Title, and names with texts, of every panel that a command has."""
    shown = [parameter for parameter in command.get_params(ctx) if not getattr(parameter, "hidden", False)]
    arguments = [(name_of(p), text_of(p)) for p in shown if not is_option(p)]
    if arguments:
        yield "Arguments", arguments
    commands = getattr(command, "commands", {})
    if commands:
        yield COMMANDS_PANEL, [(name, first_paragraph(child.help)) for name, child in commands.items()]
    panels: dict[str, list[tuple[str, str]]] = {panel: [] for panel in (*PANELS, OTHER_PANEL)}
    for parameter in shown:
        if is_option(parameter):
            panel = panel_of(command.name or "", parameter.opts)
            panels[panel].append((name_of(parameter), text_of(parameter)))
    yield from ((title, rows) for title, rows in panels.items() if rows)


def first_paragraph(text: str | None) -> str:
    """What the list of commands says of one."""
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())


def examples_of(path: str) -> tuple[str, ...]:
    """The examples of ``fgvc COMMAND ...``."""
    return EXAMPLES.get(path.partition(" ")[2], ())


def print_page(command: Any, ctx: Any) -> None:
    """Write the help of a command to stdout; nothing is cut, whatever the width."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.print()
    console.print(Padding(Text(f"Usage: {usage_of(command, ctx.command_path)}", "bold"), (0, 1)))
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph:
            console.print()
            console.print(Padding(Text(" ".join(paragraph.split())), (0, 1)))
    console.print()
    panels = list(panels_of(command, ctx))
    widths = {title: max(len(name) for name, _ in rows) for title, rows in panels}
    options = max((width for title, width in widths.items() if title != COMMANDS_PANEL), default=0)
    for title, rows in panels:
        table = Table(box=None, show_header=False, expand=True, pad_edge=False, padding=(0, 2, 0, 0))
        width = widths[title] if title == COMMANDS_PANEL else min(options, NAME_COLUMNS)
        table.add_column(width=width, overflow="fold")
        table.add_column(ratio=1, overflow="fold")
        for name, text in rows:
            table.add_row(Text(name, "bold cyan"), Text(text))
        console.print(Panel(table, title=title, title_align="left", border_style="dim"))
    examples = examples_of(ctx.command_path)
    if examples:
        console.print(Padding(Text("Examples:", "bold"), (1, 1, 0, 1)))
        for example in examples:
            # As typed: a line that is broken by the terminal could not be pasted.
            console.print(Text(f"   {example}", "green"), soft_wrap=True)
    console.print()
