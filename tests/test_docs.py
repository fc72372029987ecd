"""README and the pages of docs: what they print runs, as typed, in order, from a fresh folder, offline.

A block of shell commands or Python runs unless an HTML comment in front of it says otherwise:

    <!-- not run: REASON -->      it needs what is not here; only its options are checked
    <!-- needs: MODULE ... -->    it runs where these modules can be imported
    <!-- same as README.md -->    README has these lines and runs them

and once on a page, ``<!-- continues: README.md -->``: its commands run in the folder that README's have left;
or ``<!-- data: NAME -->``: they need a published data set, which the folder then has; else they do not run.
Lines that start with ``pip`` are left to ``.ci/run``, which installs.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import SHARED

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))]
SHELL, PYTHON = ("sh", "bash", "console"), ("python",)
TYPED = ("fgvc ", "pip ", "python ", "torchrun ", "pytest")
"""What an indented block begins with if it is shell."""
INSTALLS = "pip "
BLOCK_SECONDS = 900


def load_hooks() -> Any:
    """docs/hooks.py, which MkDocs runs."""
    spec = importlib.util.spec_from_file_location("fgvc_docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = load_hooks()


@dataclass(frozen=True)
class Code:
    """A block of a page."""

    page: str
    line: int
    language: str
    text: str
    directive: str = ""
    """The comment in front of it, without its arrows."""

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def not_run(self) -> str | None:
        """Why it does not run."""
        return _after("not run:", self.directive)

    @property
    def same_as(self) -> str | None:
        """The page that has these lines."""
        return _after("same as", self.directive)

    @property
    def needs(self) -> list[str]:
        """Modules without which it cannot run."""
        return (_after("needs:", self.directive) or "").split()


def _after(start: str, text: str) -> str | None:
    return text.removeprefix(start).strip() if text.startswith(start) else None


FENCE = re.compile(r"^```\s*([\w-]*)\s*$")
COMMENT = re.compile(r"^<!--\s*(.*?)\s*-->$")
SNIPPET = re.compile(r'^--8<--\s+"([^"]+)"\s*$')


def read_blocks(page: str, text: str) -> Iterator[Code]:
    """The fenced blocks of a page, and its indented ones that hold commands."""
    lines, i, directive = text.split("\n"), 0, ""
    while i < len(lines):
        fence, comment = FENCE.match(lines[i]), COMMENT.match(lines[i])
        if fence:
            start, body = i + 1, []
            i += 1
            while lines[i].rstrip() != "```":
                included = SNIPPET.match(lines[i])
                body += (ROOT / included[1]).read_text().split("\n") if included else [lines[i]]
                i += 1
            yield Code(page, start, fence[1] or "text", "\n".join(body), directive)
            directive = ""
        elif comment:
            directive = comment[1]
        elif lines[i].startswith("    ") and lines[i].strip().startswith(TYPED) and not lines[i - 1].strip():
            start, body = i + 1, []
            while i < len(lines) and (lines[i].startswith("    ") or not lines[i].strip()):
                body.append(lines[i])
                i += 1
            yield Code(page, start, "sh", textwrap.dedent("\n".join(body)).strip(), directive)
            directive = ""
            continue
        elif lines[i].strip():
            directive = ""
        i += 1


def page_text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


BLOCKS = [block for page in PAGES for block in read_blocks(page, page_text(page))]
CODE = [block for block in BLOCKS if block.language in (*SHELL, *PYTHON) or block.not_run]
NOT_RUN = [block for block in CODE if block.not_run]
RUN = [block for block in CODE if not block.not_run and not block.same_as]
RUN_PAGES = list(dict.fromkeys(block.page for block in RUN))


def continues(page: str) -> str | None:
    """The page whose folder the commands of a page need."""
    found = re.search(r"<!--\s*continues:\s*(\S+)\s*-->", page_text(page))
    return found[1] if found else None


def published(page: str) -> Path | None:
    """The data set that the commands of a page need."""
    found = re.search(r"<!--\s*data:\s*(\S+)\s*-->", page_text(page))
    return SHARED / "data" / found[1] if found else None


# What is typed


def split_commands(shell: str) -> Iterator[list[str]]:
    """The words of every simple command."""
    for line in shell.replace("\\\n", " ").split("\n"):
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        words: list[str] = []
        skip = False
        for word in lexer:
            if word and set(word) <= set("<>"):
                skip = True  # the file of a redirection
            elif word and set(word) <= set("|&;()"):
                yield words
                words = []
            elif skip:
                skip = False
            else:
                words.append(word)
        yield words


def fgvc_arguments(words: list[str]) -> list[str] | None:
    """What follows ``fgvc`` or ``-m fgvc_cli`` in a command."""
    if words[:1] == ["fgvc"]:
        return words[1:]
    for i in range(len(words) - 1):
        if words[i : i + 2] == ["-m", "fgvc_cli"]:
            return words[i + 2 :]
    return None


COMMANDS = HOOKS.load_commands()


def resolve(arguments: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """The words of the command, and its own arguments."""
    words: tuple[str, ...] = ()
    rest = list(arguments)
    while rest and (*words, rest[0]) in COMMANDS:
        words = (*words, rest.pop(0))
    return words, rest


def known_settings() -> set[str]:
    """Every name that ``--set`` takes."""
    return set(re.findall(r"^\| `([\w.]+)` \|", HOOKS.settings_page(), re.MULTILINE))


def complain(arguments: list[str]) -> str | None:
    """What is wrong with a line, as the program's own parser says it."""
    words, rest = resolve(arguments)
    command = COMMANDS[words]
    if not words and rest and not rest[0].startswith("-"):
        return f"no command {rest[0]!r}"
    at_once = {name for p in command.params if p.callback is not None for name in p.opts}
    if at_once.intersection(rest):
        return None  # parsing --install-completion writes into the shell's settings
    try:
        command.make_context(" ".join(("fgvc", *words)), list(rest))
    except Exception as error:  # its own kinds of usage errors, wherever they live
        if type(error).__name__ != "Exit":
            return f"{type(error).__name__}: {getattr(error, 'message', error)}"
    for option, value in zip(rest, rest[1:], strict=False):
        if option == "--set" and value.partition("=")[0] not in known_settings():
            return f"no setting {value.partition('=')[0]!r}"
    return None


@pytest.mark.parametrize("page", PAGES)
def test_every_printed_command_has_these_options(page):
    wrong = []
    for block in CODE:
        if block.page != page or block.language not in SHELL:
            continue
        for words in split_commands(block.text):
            arguments = fgvc_arguments(words)
            problem = complain(arguments) if arguments is not None else None
            if problem:
                wrong.append(f"{block.name}: fgvc {shlex.join(arguments or [])}: {problem}")
    assert not wrong, "\n".join(wrong)


INLINE = re.compile(r"(?<!`)`(fgvc [^`]+)`(?!`)")


@pytest.mark.parametrize("page", PAGES)
def test_commands_named_in_the_text_exist(page):
    wrong = []
    for text in INLINE.findall(page_text(page)):
        arguments = text.replace("...", "").split()[1:]
        words, rest = resolve(arguments)
        if not words and rest and rest[0] != "COMMAND" and not rest[0].startswith("-"):
            wrong.append(f"{text}: no such command")
        options = {name for p in COMMANDS[words].params for name in (*p.opts, *p.secondary_opts)}
        wrong += [f"{text}: no {o}" for o in rest if o.startswith("--") and o not in {*options, "--help"}]
    assert not wrong, "\n".join(wrong)


def test_a_wrong_option_would_be_found():
    assert complain(["predict", "images", "--weigths", "aviary"])
    assert complain(["classify", "images"])
    assert complain(["train", "--set", "optim.lr=1"]) == "no setting 'optim.lr'"
    assert complain(["predict", "images", "--top-k", "none"])
    assert complain(["predict", "images", "--weights", "aviary"]) is None


@pytest.mark.parametrize("block", NOT_RUN, ids=[f"{b.name} {b.not_run}" for b in NOT_RUN])
def test_what_is_not_run_says_why(block):
    assert len(block.not_run) > 5
    pytest.skip(f"{block.name} is not run: {block.not_run}")


def test_blocks_of_other_kinds_are_no_commands():
    kinds = {*SHELL, *PYTHON, "text"}
    assert not [b.name for b in BLOCKS if b.language not in kinds and not b.not_run]
    assert not [b.name for b in BLOCKS if b.language == "text" and "fgvc " in b.text]


def test_lines_said_to_be_those_of_another_page_are():
    for block in CODE:
        if block.same_as:
            there = "\n".join(b.text for b in RUN if b.page == block.same_as)
            assert block.text in there, f"{block.name} is not as in {block.same_as}"


# Running


@dataclass
class World:
    """Folders in which pages have been run."""

    base: Path
    done: dict[str, tuple[Path, str | None]]
    """Page -> its folder, and what failed there."""

    def run(self, page: str) -> str | None:
        """Run a page, and before it the page that it continues, once; what failed."""
        if page not in self.done:
            before = continues(page)
            failed = self.run(before) if before else None
            folder = self.done[before][0] if before else self._fresh(page)
            self.done[page] = (folder, failed or self._run_blocks(page, folder))
        return self.done[page][1]

    def _fresh(self, page: str) -> Path:
        folder = self.base / re.sub(r"\W+", "-", page)
        folder.mkdir()
        for name in ("examples", "weights"):
            (folder / name).symlink_to(ROOT / name)
        if data := published(page):
            (folder / data.name).symlink_to(data)
        return folder

    def _run_blocks(self, page: str, folder: Path) -> str | None:
        for block in RUN:
            if block.page != page or not all(importlib.util.find_spec(module) for module in block.needs):
                continue
            if block.language in PYTHON:
                command = [sys.executable, "-c", block.text]
            else:
                typed = [line for line in block.text.split("\n") if not line.startswith(INSTALLS)]
                command = ["bash", "-euo", "pipefail", "-c", "\n".join(typed)]
            code, said = self._type(command, folder)
            if code:
                return f"{block.name} ended with {code}:\n{block.text}\n{said}"
        return None

    def _type(self, command: list[str], folder: Path) -> tuple[int | str, str]:
        """The exit code, or that there was none, and the last of what was said."""
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        code: int | str
        try:
            said = process.communicate(timeout=BLOCK_SECONDS)[0]
            code = process.returncode
        except subprocess.TimeoutExpired:
            # The shell alone would leave what it started, which holds the pipe: waiting for ever.
            os.killpg(process.pid, signal.SIGKILL)
            said, code = process.communicate()[0], f"no end within {BLOCK_SECONDS} s"
        return code, said[-4000:]

    def _environment(self) -> dict[str, str]:
        commands = self.base / "bin"
        if not commands.exists():
            commands.mkdir()
            script = commands / "fgvc"
            script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m fgvc_cli "$@"\n')
            script.chmod(0o755)
        nowhere = "http://127.0.0.1:9"
        kept = {name: value for name, value in os.environ.items() if name not in ("FGVC_DATA", "COLUMNS")}
        return kept | {
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "HF_HUB_OFFLINE": "1",
            "http_proxy": nowhere,
            "https_proxy": nowhere,
        }


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("docs"), {})


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bash"), reason="the commands are typed into bash")
@pytest.mark.parametrize("page", RUN_PAGES)
def test_commands_run_as_typed(world, page):
    data = published(page)
    if data and not data.is_dir():
        pytest.skip(f"needs the data set {data.name}, which is not here")
    failed = world.run(page)
    assert failed is None, failed


# What the pages say


def test_readme_is_one_page_and_begins_with_installing_and_predicting():
    text = page_text("README.md")
    assert len(text.splitlines()) <= 150
    first, second = [b.text for b in BLOCKS if b.page == "README.md"][:2]
    assert first == "pip install .\nfgvc predict examples/photos --weights aviary --out preds.csv"
    assert second == "pip install '.[test]' && pytest"


def test_links_of_the_readme_lead_somewhere():
    for link in re.findall(r"\]\(([^)\s]+)\)", page_text("README.md")):
        file = link.partition("#")[0]
        assert not file or (ROOT / file).exists(), link


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_one_word_for_an_image(page):
    assert not re.findall(r"[Pp]hotograph\w*", page_text(page))


def test_the_reference_has_every_command_and_option():
    text = HOOKS.command_line_page()
    for words, command in COMMANDS.items():
        section = text.split(f"## `{' '.join(('fgvc', *words))}`\n")[1].split("\n## ")[0]
        for parameter in command.params:
            for name in parameter.opts if HOOKS.is_option(parameter) else []:
                assert f"`{name}`" in section or name == "--help", (words, name)


def test_the_reference_has_every_setting_with_its_default():
    from fgvc_cli.config import TrainConfig

    names = known_settings()
    for name, info in TrainConfig.model_fields.items():
        fields = getattr(info.annotation, "model_fields", None)
        assert {f"{name}.{field}" for field in fields} <= names if fields else name in names
    assert "| `optim.lr_backbone` | number ≥ 0 | 0.0002 | Backbone (paper). |" in HOOKS.settings_page()
    assert {"options.delta", "options.erase_prob", "options.drop_rate"} <= names


def test_the_reference_has_every_public_name():
    import fgvc_cli

    text = HOOKS.python_page()
    assert all(f"`fgvc_cli.{name}`" in text for name in fgvc_cli.__all__ if name != "__version__")


def test_the_reference_has_every_status_and_exit_code():
    homes = ("fgvc_cli.sources.images", "fgvc_cli.data.images")
    home = next(name for name in homes if _exists(name))
    statuses = {"ok", "unsure", "unknown", *get_args(importlib.import_module(home).FailureStatus)}
    text = page_text("docs/reference/errors.md")
    table = text.split("## Status of a row")[1].split("##")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) - {"status"} == statuses
    errors = importlib.import_module("fgvc_cli.errors")
    codes = {str(value) for name, value in vars(errors).items() if name.startswith("EXIT_")}
    table = text.split("## Exit codes")[1].split("##")[0]
    assert set(re.findall(r"^\| (\d+) \|", table, re.MULTILINE)) == codes


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
