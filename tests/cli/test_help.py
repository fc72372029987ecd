"""Help pages: every option in a panel, nothing cut at 80 columns, examples that the parser takes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fgvc_cli.cli import app
from fgvc_cli.cli.help import is_option
from fgvc_cli.cli.options import EXAMPLES, OTHER_PANEL, PANELS, panel_of

ROOT = Path(__file__).parents[2]


def walk(words: str, command: Any) -> dict[str, Any]:
    """Words after ``fgvc`` -> command."""
    found = {words: command}
    for name, child in getattr(command, "commands", {}).items():
        found |= walk(f"{words} {name}".strip(), child)
    return found


COMMANDS = walk("", typer.main.get_command(app))
OTHERS = {"--help", "--version", "--install-completion", "--show-completion"}


def page(words: str, monkeypatch, columns: int = 80) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    result = CliRunner().invoke(app, [*words.split(), "--help"])
    assert result.exit_code == 0, result.output
    return result.stdout


def words_of(text: str) -> list[str]:
    """What a page says, without its frames."""
    return re.sub(r"[│╭╮╰╯─]", " ", text).split()


def contains(sentence: list[str], words: list[str]) -> bool:
    return any(words[i : i + len(sentence)] == sentence for i in range(len(words)))


@pytest.mark.parametrize("words", COMMANDS)
def test_nothing_is_cut_at_80_columns(words, monkeypatch):
    text = page(words, monkeypatch)
    assert max(map(len, text.split("\n"))) <= 80
    # The column of names is as wide in every panel: what stands right of it is the text of the options.
    left = re.search(r"^│ --help +(?=\S)", text, re.MULTILINE)
    assert left
    column = len(left[0])
    right = words_of("\n".join(line[column:] for line in text.split("\n") if line.startswith("│")))
    for parameter in COMMANDS[words].params:
        assert contains((parameter.help or "").split(), right), parameter.opts
        if is_option(parameter):
            assert all(name in words_of(text.replace("/", " ").replace(",", " ")) for name in parameter.opts)
    assert "…" not in text


@pytest.mark.parametrize("words", COMMANDS)
def test_flags_have_no_type_and_options_say_what_they_take(words, monkeypatch):
    text = page(words, monkeypatch)
    assert not re.search(r"<(bool|str|int|float|path|list)|\[x[<>]", text)
    for parameter in COMMANDS[words].params:
        if is_option(parameter) and not getattr(parameter, "is_flag", False):
            assert re.search(rf"{parameter.opts[0]} [A-Z]|{parameter.opts[0]} \w+\|", text), parameter.opts


@pytest.mark.parametrize("words", COMMANDS)
def test_every_option_has_its_panel(words):
    name = words.split()[-1] if words else "fgvc"
    homeless = [
        option
        for parameter in COMMANDS[words].params
        if is_option(parameter) and panel_of(name, parameter.opts) == OTHER_PANEL
        for option in parameter.opts
        if option not in OTHERS
    ]
    assert not homeless, "add them to PANELS in fgvc_cli/cli/options.py"
    placed = [option for options in PANELS.values() for option in options]
    assert len(placed) == len(set(placed))


@pytest.mark.parametrize("words", COMMANDS)
def test_one_word_for_an_image(words, monkeypatch):
    assert not re.findall(r"[Pp]hotograph\w*", page(words, monkeypatch))


def test_panels_stand_in_one_order(monkeypatch):
    text = page("predict", monkeypatch)
    titles = re.findall(r"^╭─ (\w+)", text, re.MULTILINE)
    assert titles == ["Arguments", "Input", "Output", "Model", "Speed", "Resuming", "Other"]
    assert re.search(r"╭─ Resuming.*--retry-failed.*╭─ Other", text, re.DOTALL)
    assert set(titles[1:-1]) < set(PANELS)


@pytest.mark.parametrize("words", COMMANDS)
def test_two_examples_end_a_page_and_the_parser_takes_them(words, monkeypatch):
    examples = EXAMPLES[words]
    assert len(examples) == 2 == len(set(examples))
    lines = page(words, monkeypatch).rstrip().split("\n")
    assert [line.strip() for line in lines[-2:]] == list(examples)
    for example in examples:
        program, *arguments = shlex.split(example)
        assert program == "fgvc" and example.startswith(f"fgvc {words}".rstrip())
        known = max((w for w in COMMANDS if f"{' '.join(arguments)} ".startswith(f"{w} ")), key=len)
        assert known or not words
        COMMANDS[known].make_context(known, arguments[len(known.split()) :])


def test_examples_are_of_commands():
    assert set(EXAMPLES) == set(COMMANDS)


def test_a_wide_terminal_is_used(monkeypatch):
    sentence = "Exit code 0: every row is ok; 3: finished, but some images failed; 130: interrupted."
    assert sentence in page("predict", monkeypatch, columns=300)


def test_the_first_line_says_which_model_is_for_what(monkeypatch):
    first = page("", monkeypatch, columns=1000).split("\n")[3]
    assert "crasmra-" in first and "vitms-" in first and "fast" in first and "accurate" in first


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete(shell):
    """The script that a shell sources, and what it then is answered."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": "/nowhere"}

    def run(**extra: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", "from fgvc_cli.cli import main; main()"],
            env=environment | extra,
            capture_output=True,
            text=True,
            check=False,
        ).stdout

    assert "_FGVC_COMPLETE" in run(_FGVC_COMPLETE=f"source_{shell}")
    typed = {"bash": {"COMP_WORDS": "fgvc predict --wei", "COMP_CWORD": "2"}}.get(
        shell, {"_TYPER_COMPLETE_ARGS": "fgvc predict --wei", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    )
    assert "--weights" in run(_FGVC_COMPLETE=f"complete_{shell}", **typed)


def test_weights_complete_to_the_embedded_models():
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": "/nowhere"}
    answer = subprocess.run(
        [sys.executable, "-c", "from fgvc_cli.cli import main; main()"],
        env=environment
        | {
            "_FGVC_COMPLETE": "complete_bash",
            "COMP_WORDS": "fgvc predict --weights gro",
            "COMP_CWORD": "3",
        },
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    assert answer.split() == ["groceries", "groceries-vit"]
