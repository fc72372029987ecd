"""Help pages: options in panels by subject, what each takes beside its name, examples at the end; and
usage errors in one line.

typer's own page spends a third of the width on a column of types (``<bool>`` for every flag), and changes
from version to version; this one reads only what all versions have.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from fgvc_cli.cli.options import EXAMPLES, OTHER_PANEL, PANELS, VALUE_NAMES, panel_of
from fgvc_cli.errors import EXIT_ERROR, EXIT_OK

# Of click, which older typers import and newer ones bring along: by this way it is the same for both.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

_SUGGESTION = re.compile(r"\.? (?=\(Possible |Did you mean )")
"""Where the parser's own suggestion begins."""

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
    if len(choices) > 1:
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
        meant = _meant(error, typed)
        if meant:
            text = f"{_SUGGESTION.split(text)[0]}. {meant}"
        value = _value_of(getattr(error, "param", None), typed)
        if value is not None and repr(value) not in text:
            text += f", got {value!r}"
        ending = "" if text.endswith(("?", "!", ".")) else "."
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


class Foreign(NamedTuple):
    """Options that other programs have and this one calls otherwise."""

    names: str
    """Between spaces."""
    here: str
    """What to type, ``{}`` being the value; a sentence that ends with a full stop is said as it is."""
    commands: str = ""
    """The commands that it is for, between spaces; empty: all that have the option."""


FOREIGN = (
    Foreign("--lr --lr0 --learning-rate --base-lr --blr", "--set optim.lr_backbone={}"),
    Foreign("--opt --optim --optimizer", "--set optim.name={}"),
    Foreign("--weight-decay --wd", "--set optim.weight_decay={}"),
    Foreign("--momentum", "--set optim.momentum={}"),
    Foreign("--warmup-epochs --warmup", "--set optim.warmup_epochs={}"),
    Foreign("--clip-grad --max-norm --grad-clip", "--set optim.clip_grad={}"),
    Foreign("--sched --scheduler --lr-scheduler", "--set optim.schedule={}"),
    Foreign("--cos-lr", "--set optim.schedule=cosine"),
    Foreign("--layer-decay", "--set optim.layer_decay={}"),
    Foreign("--freeze --freeze-epochs", "--set optim.freeze_epochs={}"),
    Foreign("--mixup", "--set augment.mixup={}"),
    Foreign("--cutmix", "--set augment.cutmix={}"),
    Foreign("--hflip --fliplr", "--set augment.flip=yes"),
    Foreign("--no-aug", "--set augment.flip=no"),
    Foreign("--color-jitter", "--set augment.color_jitter={}"),
    Foreign("--aa --auto-augment", "--set augment.rand_augment=9"),
    Foreign("--reprob --erasing", "--set augment.erase={}"),
    Foreign("--smoothing --label-smoothing", "--set loss.label_smoothing={}"),
    Foreign("--drop-path", "--set options.drop_path={}"),
    Foreign("--drop --dropout", "--set options.drop_rate={}"),
    Foreign("--model-ema --ema", "--set ema_decay=0.999"),
    Foreign("--model-ema-decay --ema-decay", "--set ema_decay={}"),
    Foreign("--patience", "--set patience={}"),
    Foreign("--grad-accum-steps --accumulate --accum-iter --nbs", "--set accumulate={}"),
    Foreign("--grad-checkpointing", "--set grad_checkpointing=yes"),
    Foreign("--torchcompile --compile", "--compile"),
    Foreign("--torchcompile --compile", "--set compile=yes"),
    Foreign("--log-tensorboard --tensorboard", "--set tensorboard=yes"),
    Foreign("--sync-bn", "--set sync_batchnorm=yes"),
    Foreign("--val-split --val-fraction", "--set val_share={}", "train"),
    Foreign("--mean --std --crop-pct --crop-mode", "The checkpoint holds the preprocessing."),
    Foreign("--num-classes --nc", "The classes are those of the data.", "train"),
    Foreign("--num-classes --nc", "The checkpoint holds the classes."),
    Foreign("--batch --bs -b --batchsize", "--batch-size {}"),
    Foreign("--imgsz --img-size --img --image-size --input-size --size", "--input-px {}"),
    Foreign(
        "--imgsz --img-size --img --image-size --input-size --size", "The checkpoint holds the input size."
    ),
    Foreign("--num-workers -j", "--workers {}"),
    Foreign("--gpu --gpus --cuda", "--device cuda"),
    Foreign("--cpu", "--device cpu"),
    Foreign("--nproc --num-gpu --num-gpus --world-size", "--devices {}"),
    Foreign("--half --fp16 --amp-dtype --precision", "--amp fp16", "train"),
    Foreign("--half --fp16 --bf16 --amp-dtype --precision", "--amp bf16"),
    Foreign("--name --project --output --output-dir --save-dir --results-dir --results-file -o", "--out {}"),
    Foreign("--exist-ok --force -f -y", "--overwrite"),
    Foreign("--data-dir --data-path --train-dir", "--data {}"),
    Foreign("--arch --backbone -a", "--model {}"),
    Foreign("--initial-checkpoint --finetune", "--init {}"),
    Foreign("--checkpoint --ckpt --model-path --model -w", "--weights {}"),
    Foreign(
        "--source --input --data-dir --data --img-dir -i",
        "Images are named without an option: fgvc {command} {}.",
        "predict explain",
    ),
    Foreign("--conf --conf-thres --threshold", "--min-prob {}"),
    Foreign("--topk -k", "--top-k {}"),
    Foreign(
        "--format --save-txt --save-csv --out-format",
        "The ending of --out chooses the format: .csv, .jsonl, .h5 or .parquet.",
        "predict",
    ),
    Foreign("--format", "The ending of --out chooses the format: .onnx or .pt2.", "export"),
    Foreign("--recursive -r", "Folders are searched recursively.", "predict explain"),
    Foreign("--resume", "The same command again resumes.", "predict"),
    Foreign("--verbose -v", "Without --quiet it says all it has to say."),
)
"""Of timm's scripts, Ultralytics and others; the first that fits the command is offered."""


def _meant(error: Any, typed: Sequence[str]) -> str | None:
    """What to type for an option that another program has, or None."""
    command = getattr(getattr(error, "ctx", None), "command", None)
    if command is None:
        return None
    option = getattr(error, "option_name", None)
    if option:
        near = list(getattr(error, "possibilities", None) or ())
        listed = f"Did you mean {' or '.join(near)}?" if near else None
        return _hint(option, _behind(option, typed), command) or listed
    if "unexpected extra argument" in error.format_message():
        for word in typed:
            name, equals, value = word.partition("=")
            if equals and name.isidentifier():
                return _hint(f"--{name}", value, command)
    return None


def _hint(option: str, value: str | None, command: Any) -> str | None:
    """For ``--lr`` and ``0.1``: ``Did you mean --set optim.lr_backbone=0.1?``"""
    has = {name for parameter in command.params for name in parameter.opts}
    name = option.replace("_", "-")
    if name in has:
        return f"Did you mean {f'{name} {value or str()}'.strip()}?"
    for row in FOREIGN:
        if name not in row.names.split() or command.name not in (row.commands.split() or [command.name]):
            continue
        here = row.here.replace("{command}", command.name).replace("{}", value or "VALUE")
        if row.here.endswith("."):
            return here
        if here.split()[0] in has:
            return f"Did you mean {here}?"
    return None


def _behind(option: str, typed: Sequence[str]) -> str | None:
    """The value that was typed with an option, or None."""
    for word, behind in zip(typed, [*typed[1:], "-"], strict=True):
        if word == option:
            return None if behind.startswith("-") else behind
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return None


def _value_of(option: Any, typed: Sequence[str]) -> str | None:
    """What was typed for an option; None where there is none, or it was an argument's."""
    for name in getattr(option, "opts", ()):
        for word, behind in zip(typed, [*typed[1:], None], strict=True):
            if word == name:
                return behind
            if word.startswith(f"{name}="):
                return word.removeprefix(f"{name}=")
    return None
