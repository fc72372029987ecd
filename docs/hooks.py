"""Pages that MkDocs generates from the program itself, so that they cannot fall behind it.

- ``reference/command-line.md``: every command and option, from the typer app.
- ``reference/settings.md``: every field of ``TrainConfig`` and of the model families, from ``config.py``.
- ``reference/python.md``: the public names of ``fgvc_cli``, for mkdocstrings to document.
- ``reference/results.md``, ``reference/changelog.md`` and the pictures: copies of files of the repository.

Also run by ``tests/test_docs.py``. Nothing heavy is imported: no torch.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

LIMITS = ("ge", "gt", "le", "lt")
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def load_app() -> Any:
    """The typer app, whether ``fgvc_cli.cli.app`` is the app or the module that holds it."""
    cli = importlib.import_module("fgvc_cli.cli")
    app = getattr(cli, "app", None) or importlib.import_module("fgvc_cli.cli.app")
    return getattr(app, "app", app)


def load_commands() -> dict[tuple[str, ...], Any]:
    """Words after ``fgvc`` -> the command; groups are there too, the root as the empty tuple."""
    import typer

    found: dict[tuple[str, ...], Any] = {}

    def walk(words: tuple[str, ...], command: Any) -> None:
        found[words] = command
        for name, child in getattr(command, "commands", {}).items():
            walk((*words, name), child)

    walk((), typer.main.get_command(load_app()))
    return found


def load_examples() -> dict[str, tuple[str, ...]]:
    """Command -> its examples, as ``--help`` prints them."""
    examples: dict[str, tuple[str, ...]] = importlib.import_module("fgvc_cli.cli.options").EXAMPLES
    return examples


def is_option(parameter: Any) -> bool:
    """Whether a parameter of a command is an option and not an argument."""
    return str(parameter.opts[0]).startswith("-")


def is_flag(parameter: Any) -> bool:
    """Whether an option takes no value."""
    return bool(getattr(parameter, "is_flag", False))


def show_type(annotation: Any) -> str:
    """A type as a reader says it: ``Literal["a", "b"] | None`` -> ``a, b or none``."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return show_type(arguments[0])
    if origin is typing.Literal:
        return ", ".join(str(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(show_type(part) for part in arguments)
    if annotation is type(None):
        return "none"
    if origin is tuple:
        return f"{len(arguments)} × {show_type(arguments[0])}"
    if origin is list:
        return show_type(arguments[0])
    if origin is dict:
        return "settings by name"
    return {"str": "text", "bool": "yes or no", "Path": "path", "float": "number", "int": "whole number"}.get(
        getattr(annotation, "__name__", str(annotation)), getattr(annotation, "__name__", str(annotation))
    )


def value_of(parameter: Any) -> str:
    """What an option takes, for its row in the table."""
    if is_flag(parameter):
        return ""
    if parameter.metavar:
        return str(parameter.metavar)
    described = getattr(parameter, "type_descriptor", None)
    if described is not None:
        text = show_type(described.annotation)
    else:
        text = str(getattr(getattr(parameter, "type", None), "name", "text")).lower()
    least, most = getattr(parameter, "min", None), getattr(parameter, "max", None)
    if least is not None:
        text += f" ≥ {least}"
    if most is not None:
        text += f"{',' if least is not None else ''} ≤ {most}"
    return text


def cell(text: str) -> str:
    """Text that stays one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def usage_line(words: tuple[str, ...], command: Any) -> str:
    """``fgvc predict [OPTIONS] SOURCES...``."""
    parts = ["fgvc", *words]
    options = [p for p in command.params if is_option(p)]
    if options:
        parts.append("[OPTIONS]")
    for parameter in command.params:
        if not is_option(parameter):
            name = (parameter.metavar or parameter.name or "").upper()
            many = "..." if parameter.nargs == -1 and not name.endswith("...") else ""
            parts.append(f"{name}{many}" if parameter.required else f"[{name}]{many}")
    if getattr(command, "commands", None):
        parts.append("COMMAND")
    return " ".join(parts)


def command_section(words: tuple[str, ...], command: Any) -> Iterator[str]:
    """The lines of one command."""
    yield f"## `{' '.join(('fgvc', *words))}`"
    yield ""
    yield from inspect.cleandoc(command.help or "").split("\n")
    yield from ("", "```text", usage_line(words, command), "```", "")
    children = getattr(command, "commands", {})
    if children:
        yield from ("| command | what it does |", "|---|---|")
        for name, child in children.items():
            summary = inspect.cleandoc(child.help or "").split("\n")[0]
            yield f"| `{' '.join(('fgvc', *words, name))}` | {cell(summary)} |"
        yield ""
    arguments = [p for p in command.params if not is_option(p)]
    if arguments:
        yield from ("| argument | meaning |", "|---|---|")
        for parameter in arguments:
            yield f"| `{(parameter.name or '').upper()}` | {cell(getattr(parameter, 'help', '') or '')} |"
        yield ""
    options = [p for p in command.params if is_option(p) and not getattr(p, "hidden", False)]
    options = [p for p in options if "--help" not in p.opts]
    panels = dict.fromkeys(getattr(p, "rich_help_panel", None) or "" for p in options)
    for panel in panels:
        if len(panels) > 1:
            yield from (f"**{panel or 'Options'}**", "")
        yield from ("| option | value | meaning |", "|---|---|---|")
        for parameter in options:
            if (getattr(parameter, "rich_help_panel", None) or "") != panel:
                continue
            names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
            text = getattr(parameter, "help", "") or ""
            default = parameter.default
            if default not in (None, False, True, (), []) and "efault" not in text and not callable(default):
                text += f" Default: {default}."
            needed = " Required." if parameter.required else ""
            yield f"| {names} | {cell(value_of(parameter))} | {cell(text)}{needed} |"
        yield ""
    examples = load_examples().get(" ".join(words), ())
    if examples:
        yield from ("```sh", *examples, "```", "")


def command_line_page() -> str:
    """Every command."""
    lines = ["# Command line", "", "Generated from the program. `fgvc COMMAND --help` prints the same.", ""]
    for words, command in load_commands().items():
        lines += [*command_section(words, command), ""]
    return "\n".join(lines)


def field_docs(tree: ast.Module) -> dict[str, tuple[str, dict[str, str]]]:
    """Class name -> its docstring, and field name -> the docstring under the field."""
    documented = {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        fields = {}
        for before, after in zip(node.body, node.body[1:], strict=False):
            if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr):
                constant = after.value
                if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                    assert isinstance(before.target, ast.Name)
                    fields[before.target.id] = constant.value
        documented[node.name] = (ast.get_docstring(node) or "", fields)
    return documented


def sources_of(config: types.ModuleType) -> list[Path]:
    """``config.py``, or the files of a package ``config``."""
    file = Path(config.__file__ or "")
    return sorted(file.parent.glob("*.py")) if file.name == "__init__.py" else [file]


def as_code(text: str) -> str:
    """Docstring marks of code as Markdown's."""
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def settings_tables(cls: Any, docs: dict[str, tuple[str, dict[str, str]]], prefix: str) -> Iterator[str]:
    """The fields of one section, each as ``--set`` names it; a field documented in a base class too."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        texts |= docs.get(base.__name__, ("", {}))[1]
    yield from ("| `--set` | value | default | meaning |", "|---|---|---|---|")
    for name, info in cls.model_fields.items():
        if hasattr(info.annotation, "model_fields"):
            continue
        limits = [
            f"{SIGNS[sign]} {getattr(rule, sign)}"
            for rule in info.metadata
            for sign in LIMITS
            if getattr(rule, sign, None) is not None
        ]
        value = " ".join([show_type(info.annotation), *limits])
        default = "" if info.is_required() else _default(info)
        yield f"| `{prefix}{name}` | {cell(value)} | {cell(default)} | {cell(as_code(texts.get(name, '')))} |"
    yield ""


def _default(info: Any) -> str:
    value = info.get_default(call_default_factory=True)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict | list | tuple):
        return ", ".join(str(part) for part in value)
    return "none" if value is None else str(value)


def settings_page() -> str:
    """Every setting of a training."""
    config = importlib.import_module("fgvc_cli.config")
    docs: dict[str, tuple[str, dict[str, str]]] = {}
    for file in sources_of(config):
        docs |= field_docs(ast.parse(file.read_text(encoding="utf-8")))
    lines = [
        "# Settings",
        "",
        "Generated from the program. Each is set with `--set NAME=VALUE`. A recipe (`fgvc recipes`) may "
        "choose others than these defaults: `fgvc train ... --show-config` prints what a training would use.",
        "",
    ]
    train = config.TrainConfig
    groups: list[tuple[str, Any, str]] = [("Training", train, "")]
    for name, info in train.model_fields.items():
        if hasattr(info.annotation, "model_fields"):
            groups.append((f"`{name}`", info.annotation, f"{name}."))
    families = (
        ("`options` of `crasmra-` models", "CraSmraConfig"),
        ("`options` of `vitms-` models", "MultiStageVitConfig"),
        ("`options` of `timm-` models", "BaselineConfig"),
    )
    groups += [(title, getattr(config, cls), "options.") for title, cls in families if hasattr(config, cls)]
    for title, cls, prefix in groups:
        about = docs.get(cls.__name__, ("", {}))[0]
        lines += [f"## {title}", "", as_code(about), "", *settings_tables(cls, docs, prefix)]
    return "\n".join(lines)


ROW_HOMES = ("fgvc_cli.formats.rows", "fgvc_cli.predict.rows")


def python_page() -> str:
    """The public names of ``fgvc_cli``, as instructions for mkdocstrings."""
    package = importlib.import_module("fgvc_cli")
    homes = getattr(package, "_HOMES", {})
    lines = [
        "# Python",
        "",
        "```python",
        "from fgvc_cli import Predictor",
        "",
        'for row in Predictor("aviary").predict("examples/photos"):',
        "    print(row.path, row.labels[0], row.probs[0], row.box)",
        "```",
        "",
        "`import fgvc_cli` gives the names below, imported on first use. What is not listed here may change.",
        "",
        "## Public names",
        "",
    ]
    for name in package.__all__:
        home = homes.get(name)
        if home is None:
            continue
        module, attribute = home if isinstance(home, tuple) else (home, name)
        lines += [f"### `fgvc_cli.{name}`", "", f"::: {module}.{attribute}"]
        lines += ["    options:", "      heading_level: 4", "      inherited_members: false", ""]
    for module in ROW_HOMES:
        path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        if path.is_file():
            lines += ["## A row", "", f"::: {module}.Row", "    options:", "      heading_level: 3", ""]
            break
    lines += ["## Errors", "", "::: fgvc_cli.errors.FgvcError", "    options:", "      heading_level: 3", ""]
    return "\n".join(lines)


def results_page() -> str:
    """benchmarks/RESULTS.md under its own title."""
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    return text.replace("# Results", "# Measured results", 1)


def changelog_page() -> str:
    """CHANGELOG.md."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


PAGES = {
    "reference/command-line.md": command_line_page,
    "reference/settings.md": settings_page,
    "reference/python.md": python_page,
    "reference/results.md": results_page,
    "reference/changelog.md": changelog_page,
}


def on_files(files: Any, config: Any) -> Any:
    """Add what is generated to the files of the site."""
    from mkdocs.structure.files import File

    for path, build in PAGES.items():
        files.append(File.generated(config, path, content=build()))
    for picture in sorted((ROOT / "examples" / "pictures").iterdir()):
        files.append(File.generated(config, f"pictures/{picture.name}", abs_src_path=str(picture)))
    return files
