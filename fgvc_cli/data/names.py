"""Names that people and systems spell in several ways: Unicode forms, case, blanks.

macOS writes an accented letter as letter and accent (NFD), most others as one character (NFC): both look
alike, and are the same name. Names that differ by case or blanks look alike too, but may be meant. In the
cells of a CSV, names that a spreadsheet would take for formulas get a ``'`` in front.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from fgvc_cli.errors import EXIT_USAGE, FgvcError, counted, nearest
from fgvc_cli.sources.stored import is_image_name


def same_form(name: str) -> str:
    """The name in Unicode NFC: equal for names that are the same, whatever system wrote them."""
    return unicodedata.normalize("NFC", name)


def without_case_and_blanks(name: str) -> str:
    """Equal for names that differ only by form, case, the number of their blanks or the kind of them."""
    return " ".join(same_form(name.casefold()).split())


def code_points(name: str) -> str:
    """A name with what it is made of: ``'é' (U+00E9)``."""
    return f"{name!r} ({' '.join(f'U+{ord(letter):04X}' for letter in name)})"


def join_forms(names: Iterable[str]) -> dict[str, str]:
    """Each name -> the one name that it and its other Unicode forms get.

    NFC where there are several forms, else as it is spelled, so that what was trained before keeps its names.
    """
    forms: dict[str, set[str]] = {}
    for name in names:
        forms.setdefault(same_form(name), set()).add(name)
    return {name: joined if len(own) > 1 else name for joined, own in forms.items() for name in own}


def class_order(classes: Sequence[str], other: Sequence[str], who: str, than: str) -> list[int]:
    """The place of each class in another model's list of the same classes.

    Args:
        who: whose list ``other`` is, for the message; ``than``: whose ``classes`` are, with a verb.

    Raises:
        FgvcError: other classes, naming one that differs.
    """
    places = {same_form(name): place for place, name in enumerate(other)}
    unknown = [name for name in classes if same_form(name) not in places]
    beyond = sorted({*places} - {same_form(name) for name in classes})
    if unknown or beyond:
        named = f"it does not know {unknown[0]!r}" if unknown else f"it alone knows {beyond[0]!r}"
        raise FgvcError(
            f"{who} tells {counted(len(other), 'class', 'classes')}, {than} {len(classes)}; {named}.",
            "Both have to be trained on the same classes.",
            EXIT_USAGE,
        )
    return [places[same_form(name)] for name in classes]


def find_names(given: Iterable[str], known: Sequence[str], option: str) -> list[int]:
    """Which of the known names are given, in any Unicode form: their numbers, sorted, each once.

    Raises:
        FgvcError: names that are not known, with the nearest that are; none given.
    """
    index = {same_form(name): i for i, name in enumerate(known)}
    names = list(given)
    unknown = [name for name in names if same_form(name) not in index]
    if unknown:
        close = {name: nearest(name, known) or known[:3] for name in unknown[:3]}
        shown = "; ".join(f"{name!r} (nearest: {', '.join(found)})" for name, found in close.items())
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        message = f"{option} has {counted(len(unknown), 'name')} that the model does not know: {shown}{more}."
        raise FgvcError(message, f"It knows {counted(len(known), 'class', 'classes')}.", EXIT_USAGE)
    if not names:
        raise FgvcError(f"{option} names no class.", "Expected one name per line.", EXIT_USAGE)
    return sorted({index[same_form(name)] for name in names})


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ only by case or blanks, each sorted; their forms are joined before."""
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        groups.setdefault(without_case_and_blanks(name), []).append(name)
    return [own for own in groups.values() if len(own) > 1]


class FileFinder:
    """Files below a folder by paths that are written in another way than the files are called.

    Each folder is listed once, when it is first asked for.
    """

    def __init__(self, root: Path):
        self._root = root
        self._listed: dict[str, tuple[dict[str, list[str]], dict[str, list[str]]]] = {}

    def find(self, path: str) -> list[str]:
        """The files that a path may mean, of which none is called so: one in another Unicode form or with
        backslashes, or those whose name without the ending it is. Relative where ``path`` is; in order."""
        for written in dict.fromkeys((path, path.replace("\\", "/"))):
            folders = [""]
            *above, last = written.split("/")
            for part in above:
                folders = [f"{folder}{name}/" for folder in folders for name in self._names(folder, part)]
            found = [f"{folder}{name}" for folder in folders for name in self._files(folder, last)]
            if found:
                return sorted(found)
        return []

    def _names(self, folder: str, part: str) -> list[str]:
        if part in ("", ".", ".."):
            return [part]
        names = self._listing(folder)[0].get(same_form(part), [])
        return [part] if part in names else names

    def _files(self, folder: str, last: str) -> list[str]:
        names, stems = self._listing(folder)
        return [
            name
            for name in names.get(same_form(last), []) or stems.get(same_form(last), [])
            if os.path.isfile(os.path.join(self._root, folder, name))
        ]

    def _listing(self, folder: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Of one folder: NFC of a name -> names, NFC of a name without its ending -> names of images."""
        if folder not in self._listed:
            names: dict[str, list[str]] = {}
            stems: dict[str, list[str]] = {}
            try:
                entries = os.listdir(os.path.join(self._root, folder))
            except OSError:
                entries = []
            for name in entries:
                names.setdefault(same_form(name), []).append(name)
                if is_image_name(name):
                    stems.setdefault(same_form(os.path.splitext(name)[0]), []).append(name)
            self._listed[folder] = (names, stems)
        return self._listed[folder]


FORMULA_STARTS = "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"
"""What begins a formula in some spreadsheet (OWASP, CSV injection): the last four are full-width = + - @."""

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")


def as_cell(text: str) -> str:
    """A text as it stands in a CSV: with ``'`` in front where it begins like a formula, or with ``'`` itself.

    Numbers stay as they are.
    """
    begins_so = text != "" and text[0] in f"{FORMULA_STARTS}'"
    return f"'{text}" if begins_so and not _NUMBER.fullmatch(text) else text


def from_cell(cell: str) -> str:
    """The text that ``as_cell`` made a cell of.

    A ``'`` in front of anything else stays: it is of a file that was written before cells were protected.
    """
    protected = len(cell) > 1 and cell[0] == "'" and cell[1] in f"{FORMULA_STARTS}'"
    return cell[1:] if protected else cell
