"""Finding photographs: folders, files, globs and lists -> paths, lazily and in sorted order."""

from __future__ import annotations

import glob
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fgvc_cli.errors import EXIT_USAGE, FgvcError

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
    # Photographs too, though not decoded: each becomes a row that says so, rather than vanish.
    | {".heic", ".heif", ".avif", ".jfif", ".mpo", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"}
)
"""Endings, in any case, that make a file in a folder an image; a file named by the user may have any."""


class Found(NamedTuple):
    """One image to read."""

    path: Path
    """Where it lies."""
    name: str
    """What the output calls it, with forward slashes."""


Unreadable = Callable[[Path, OSError], None]


def warn_unreadable(folder: Path, error: OSError) -> None:
    """The default of ``find_images``: one log line."""
    logging.getLogger(__name__).warning("Left out folder %s: %s", folder, error.strerror or error)


def find_images(
    sources: Sequence[str | Path], on_unreadable: Unreadable = warn_unreadable
) -> Iterator[Found]:
    """The images of folders (with everything below), files and globs, source by source.

    A folder is walked lazily in the order of its sorted names; memory holds the listings of one folder and
    of those above it. A name is relative to the folder; with several sources, which may hold equal names, it
    starts with the folder as given. Hidden entries are left out. A linked folder is followed once, and not
    when it holds or lies in the folder being walked. A folder called x.jpg is walked and also yielded, so
    that nothing called an image is without a row. Files, and files that a glob matches, keep their path.

    Args:
        on_unreadable: told of each sub-folder that cannot be listed; the walk goes on.

    Raises:
        FgvcError: at the call, not while iterating: a source that does not exist, matches nothing or holds
            no image.
    """
    if not sources:
        raise FgvcError("No images given.", "Name folders, files, globs, or - for a list.", EXIT_USAGE)
    opened = [_open_source(os.fspath(source), len(sources) > 1, on_unreadable) for source in sources]
    return itertools.chain.from_iterable(opened)


def read_list(lines: Iterable[bytes]) -> Iterator[Found]:
    """A list of files, one path per line, lazily: LF or CRLF, blank lines skipped, any bytes in a name.

    Paths are relative to the working directory. Nothing is checked here: a path without a file becomes a
    row that says so.

    Raises:
        FgvcError: at the first ``next``, where the list is empty.
    """
    empty = True
    for line in lines:
        text = os.fsdecode(line.removesuffix(b"\n").removesuffix(b"\r"))
        if text.strip():
            empty = False
            yield _as_given(text)
    if empty:
        raise FgvcError("The list of images is empty.", "Send one path per line.")


def _as_given(text: str) -> Found:
    path = Path(text)
    return Found(path, path.as_posix())


def _open_source(text: str, several: bool, on_unreadable: Unreadable) -> Iterable[Found]:
    if not text:
        raise FgvcError("An image source is empty text.", "Name a folder, a file or a glob.", EXIT_USAGE)
    path = Path(text)
    if path.is_dir():
        prefix = f"{path.as_posix().rstrip('/')}/" if several and path != Path(".") else ""
        _check_folder(path)
        return _walk(path, prefix, on_unreadable)
    if os.path.lexists(text):
        return [_as_given(text)]
    if glob.has_magic(text):
        matches = sorted(name for name in glob.iglob(text, recursive=True) if not os.path.isdir(name))
        if not matches:
            raise FgvcError(f"No file matches {text!r}.", "Quote a glob, and use ** for all folders below.")
        return [_as_given(name) for name in matches]
    hint = "" if path.is_absolute() else f" Relative paths start at {Path.cwd()}."
    raise FgvcError(f"No such file or folder: {text}.", f"Name a folder, a file or a glob.{hint}")


def _check_folder(folder: Path) -> None:
    try:
        os.scandir(folder).close()
    except OSError as error:
        message = f"Cannot list {folder}: {error.strerror or error}."
        raise FgvcError(message, "Check its permissions.") from error
    if next(_walk(folder, "", lambda *_: None), None) is None:
        endings = " ".join(sorted(EXTENSIONS))
        hint = f"Looked for {endings}, in all folders below; hidden ones are left out."
        raise FgvcError(f"{folder} holds no image.", hint)


def _walk(root: Path, prefix: str, on_unreadable: Unreadable) -> Iterator[Found]:
    real_root = os.path.realpath(root)
    followed: set[str] = set()
    # The folders on the way down, each as its relative path and its entries still to come, last one first.
    stack: list[tuple[str, list[str]]] = [("", _list_folder(root, on_unreadable))]
    while stack:
        above, entries = stack[-1]
        if not entries:
            stack.pop()
            continue
        name = above + entries.pop()
        path = root / name
        if not name.endswith("/"):
            yield Found(path, prefix + name)
        elif not path.is_symlink() or _follow(os.path.realpath(path), real_root, followed):
            stack.append((name, _list_folder(path, on_unreadable)))


def _list_folder(folder: Path, on_unreadable: Unreadable) -> list[str]:
    """Image files and, with a slash, sub-folders, sorted so that the whole walk is; last one first."""
    names: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                # "a/" sorts after "a-b/" and "a.jpg", just as the paths below it do.
                if _is_folder(entry):
                    names.append(f"{entry.name}/")
                if os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                    names.append(entry.name)
    except OSError as error:
        on_unreadable(folder, error)
    names.sort(reverse=True)
    return names


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where nobody may look
        return False


def _follow(target: str, root: str, followed: set[str]) -> bool:
    inside = target == root or target.startswith(os.path.join(root, ""))
    around = root.startswith(os.path.join(target, ""))
    if inside or around or target in followed:
        return False
    followed.add(target)
    return True
