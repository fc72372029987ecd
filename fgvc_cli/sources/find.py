"""Finding images: folders, files, globs, lists, archives and URLs -> images, lazily and in order."""

from __future__ import annotations

import glob
import itertools
import logging
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO, cast

from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.sources.archives import archive_source, nested_images
from fgvc_cli.sources.frames import FrameChoice, each_frame
from fgvc_cli.sources.remote import RemoteFile, remote_source
from fgvc_cli.sources.stored import EXTENSIONS as EXTENSIONS
from fgvc_cli.sources.stored import Found, Pick, Source, is_archive, no_image
from fgvc_cli.store import StorePath, as_path, is_url, local_path, without_secrets

STDIN = "-"
LIST = "@"
MAX_ENTRY_BYTES = 1 << 16
"""Longest path in a list; a file without separators is no list, and is not read into memory to find out."""

Unreadable = Callable[[Any, OSError], None]
"""Told of a folder, a Path or the text of a URL, and why it cannot be listed."""


def warn_unreadable(folder: Path | str, error: OSError) -> None:
    """The default of ``find_images``: one log line."""
    logging.getLogger(__name__).warning("Left out folder %s: %s", folder, error.strerror or error)


class Images(Iterator[Found]):
    """The images of some sources, source by source, each to be taken once.

    Taking one opens nothing and, below a folder that has been listed, looks nothing up, so that passing over
    those of an earlier run is quick (``archive_source`` names the exception).
    """

    def __init__(
        self, sources: Sequence[Source], pick: Pick | None = None, frames: FrameChoice | None = None
    ):
        self._sources = sources
        self._pick = pick or Pick()
        chain = itertools.chain.from_iterable(source.images for source in sources)
        self._chain = each_frame(chain, frames) if frames else chain
        self._frames = frames

    def __next__(self) -> Found:
        return next(self._chain)

    @property
    def total(self) -> int | None:
        """How many there are in all, from the moment that is known: at once for files, globs and lists in
        files, when the last archive has been opened for those, never for folders and stdin."""
        if self._frames:
            return None
        totals = [source.total for source in self._sources]
        return None if None in totals else sum(total or 0 for total in totals)

    @property
    def passed_over(self) -> list[str]:
        """Lines for the user on what was met so far and is no image by its name."""
        return self._pick.lines()

    @property
    def notes(self) -> list[str]:
        """Lines for the user on what some sources cost."""
        return [source.note for source in self._sources if source.note]


def find_images(
    sources: Sequence[str | Path],
    on_unreadable: Unreadable = warn_unreadable,
    *,
    stdin: BinaryIO | BufferedIOBase | None = None,
    null: bool = False,
    all_files: bool = False,
    nested: bool = False,
    frames: FrameChoice | None = None,
) -> Images:
    """The images of sources as a user types them, source by source.

    - A folder, with everything below, is walked lazily in the order of its sorted names; memory holds the
      listings of one folder and of those above it. A name is relative to the folder; with several sources,
      which may hold equal names, it starts with the folder as given. Hidden entries and what
      systems leave behind (``LEFT_BEHIND``) are left out. A linked
      folder is followed once, and not when it holds or lies in the folder being walked. A folder called x.jpg
      is walked and also yielded, so that nothing called an image is without a row.
    - A file, and each file that a glob matches, keeps its path as its name. The matches of a glob are held.
    - An archive: see ``archive_source``. A URL: see ``remote_source``.
    - ``@FILE`` is a list in a file or at a URL, and ``-``, alone, one on stdin: see ``read_list``. What it
      names is relative to the working directory, not to the list.

    What exists under exactly the text of a source is that file or folder, so ``@eaDir`` may be one. Sources
    that overlap give an image one row for each time it is met: telling would take memory for all of them.

    Args:
        on_unreadable: told of each sub-folder that cannot be listed; the walk goes on.
        stdin: what ``-`` reads; None for the stdin of the process.
        null: NUL rather than newline ends the entries of lists.
        all_files: of folders and archives, try files of any name by their content.
        nested: look into archives that lie in folders and archives too, one level deep.
        frames: give an animation, a file of several pages or a video as frames ``name#0``, ``name#1``, ...;
            None: a file is one image.

    Raises:
        FgvcError: at the call, not while iterating: a source that does not exist, matches nothing or holds
            no image. While iterating: a list on stdin that is empty or no list.
    """
    if not sources:
        raise FgvcError("No images given.", "Name folders, files, globs, or - for a list.", EXIT_USAGE)
    texts = [local_path(os.fspath(source)) for source in sources]
    if null and not any(text == STDIN or text.startswith(LIST) for text in texts):
        raise FgvcError("-0 says how a list is separated.", "Give one as - or @FILE.", EXIT_USAGE)
    if STDIN in texts:
        if len(texts) > 1:
            raise FgvcError("- reads the list of images from stdin and stands alone.", None, EXIT_USAGE)
        return Images([Source(read_list(stdin or sys.stdin.buffer, null=null))], frames=frames)
    several = len(texts) > 1
    pick = Pick(all_files, nested, videos=bool(frames and frames.every_s))
    opened = [_open_source(text, several, on_unreadable, null, pick) for text in texts]
    return Images(list(itertools.chain.from_iterable(opened)), pick, frames)


def _open_source(text: str, several: bool, on_unreadable: Unreadable, null: bool, pick: Pick) -> list[Source]:
    if not text:
        raise FgvcError("An image source is empty text.", "Name a folder, a file or a glob.", EXIT_USAGE)
    if is_url(text):
        if is_archive(text):
            message = f"Archives are not read over a network: {without_secrets(text)}."
            raise FgvcError(message, "Copy it here first.")
        return [remote_source(text, on_unreadable, several=several, pick=pick)]
    path = Path(text)
    if path.is_dir():
        prefix = f"{path.as_posix().rstrip('/')}/" if several and path != Path(".") else ""
        _check_folder(path, pick)
        return [Source(_walk(path, prefix, on_unreadable, pick))]
    if os.path.lexists(text):
        return [_open_file(text, several, pick)]
    if text.startswith(LIST):
        return [list_source(text, as_path(text.removeprefix(LIST)), null=null)]
    if glob.has_magic(text):
        return _open_glob(text, pick)
    raise _missing(text)


def check_named(text: str) -> None:
    """Raise FgvcError where a source is the name of a file or folder that is not there; nothing is opened."""
    text = local_path(text)
    plain = text and text != STDIN and not text.startswith(LIST) and not is_url(text)
    if plain and not glob.has_magic(text) and not os.path.lexists(text):
        raise _missing(text)


def _missing(text: str) -> FgvcError:
    hint = "" if os.path.isabs(text) else f" Relative paths start at {Path.cwd()}."
    return FgvcError(f"No such file or folder: {text}.", f"Name a folder, a file or a glob.{hint}")


def _open_file(text: str, several: bool, pick: Pick) -> Source:
    if is_archive(text) and os.path.isfile(text):
        return archive_source(text, several=several, pick=pick)
    return Source(iter([as_given(text)]), 1)


def _open_glob(text: str, pick: Pick) -> list[Source]:
    matches = sorted(name for name in glob.iglob(text, recursive=True) if not os.path.isdir(name))
    if not matches:
        raise FgvcError(f"No file matches {text!r}.", "Quote a glob, and use ** for all folders below.")
    if not any(is_archive(name) for name in matches):
        return [Source(map(as_given, matches), len(matches))]
    # As if the shell had expanded it.
    return [_open_file(name, True, pick) for name in matches]


def _check_folder(folder: Path, pick: Pick) -> None:
    try:
        os.scandir(folder).close()
    except OSError as error:
        message = f"Cannot list {folder}: {error.strerror or error}."
        raise FgvcError(message, "Check its permissions.") from error
    silent = pick.silent()
    if next(_walk(folder, "", lambda *_: None, silent), None) is None:
        raise FgvcError(*no_image(str(folder), silent))


def _walk(root: Path, prefix: str, on_unreadable: Unreadable, pick: Pick) -> Iterator[Found]:
    real_root = os.path.realpath(root)
    followed: set[str] = set()
    # The folders on the way down, each as its relative path and its entries still to come, last one first.
    stack: list[tuple[str, list[str]]] = [("", _list_folder(root, on_unreadable, pick))]
    while stack:
        above, entries = stack[-1]
        if not entries:
            stack.pop()
            continue
        name = above + entries.pop()
        path = root / name
        if not name.endswith("/"):
            yield Found(path, prefix + name)
        elif is_archive(name[:-1]) and (path.is_file() or not path.exists()):
            yield from nested_images(os.fspath(path), prefix + name[:-1], pick.within())
        elif not path.is_symlink() or _follow(os.path.realpath(path), real_root, followed):
            stack.append((name, _list_folder(path, on_unreadable, pick)))
        else:
            pick.linked_folders += 1


def _list_folder(folder: Path, on_unreadable: Unreadable, pick: Pick) -> list[str]:
    """Image files and, with a slash, sub-folders, sorted so that the whole walk is; last one first."""
    names: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if pick.leaves(entry.name):
                    continue
                # "a/" sorts after "a-b/" and "a.jpg", just as the paths below it do.
                folder_below = _is_folder(entry)
                if folder_below or pick.opens(entry.name):
                    names.append(f"{entry.name}/")
                if not pick.opens(entry.name) and pick.takes(entry.name, folder=folder_below):
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


def as_given(text: str) -> Found:
    """A file under the name the user gave it; nothing is looked up."""
    if is_url(text):
        return Found(RemoteFile(text), without_secrets(text))
    path = Path(local_path(text))
    return Found(path, path.as_posix())


def read_list(stream: BinaryIO | BufferedIOBase, *, null: bool = False) -> Iterator[Found]:
    """A list of files, lazily: one per line (LF or CRLF, blank lines skipped), any bytes in a name.

    Entries are paths, relative to the working directory, or URLs. Nothing is checked here: a path without a
    file becomes a row that says so.

    Args:
        null: entries end in NUL instead, as ``find -print0`` writes them; a name may then hold newlines.

    Raises:
        FgvcError: from ``next``, where the list is empty or is not a list.
    """
    empty = True
    for entry in _entries(stream, null):
        if empty and b"\0" in entry:
            raise FgvcError("The list of images holds NUL bytes.", "Add -0 if NUL separates its entries.")
        empty = False
        yield as_given(os.fsdecode(entry))
    if empty:
        raise FgvcError("The list of images is empty.", "Send one path per line.")


def list_source(text: str, path: Path, *, null: bool) -> Source:
    """The images of a list in a file; a regular file is counted first, a pipe is read as it comes.

    Raises:
        FgvcError: at the call, where the file cannot be read or is empty.
    """
    try:
        with path.open("rb") as stream:
            regular = isinstance(path, StorePath) or stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
            total = sum(1 for _ in _entries(stream, null)) if regular else None
    except OSError as error:
        hint = "Name the list as @FILE, one path per line."
        raise FgvcError(f"Cannot read the list {text}: {error.strerror or error}.", hint) from error
    if total == 0:
        raise FgvcError(f"The list {text} is empty.", "Write one path per line.")
    return Source(_from_file(path, null), total)


def _from_file(path: Path, null: bool) -> Iterator[Found]:
    try:
        with path.open("rb") as stream:
            yield from read_list(stream, null=null)
    except OSError as error:
        raise FgvcError(f"Cannot read the list {path}: {error.strerror or error}.") from error


def _entries(stream: BinaryIO | BufferedIOBase, null: bool) -> Iterator[bytes]:
    """Entries that are not blank, without their separators."""
    for entry in _split_at_nul(stream) if null else iter(partial(stream.readline, MAX_ENTRY_BYTES), b""):
        if len(entry) >= MAX_ENTRY_BYTES:
            hint = "Name an image without @, or add -0 if NUL separates the entries."
            raise FgvcError(f"A line of the list is longer than {MAX_ENTRY_BYTES:,} bytes.", hint)
        entry = entry if null else entry.removesuffix(b"\n").removesuffix(b"\r")
        if entry if null else entry.strip():
            yield entry


def _split_at_nul(stream: BinaryIO | BufferedIOBase) -> Iterator[bytes]:
    """What comes between NUL bytes, as soon as it has come."""
    rest = b""
    while chunk := cast(BufferedIOBase, stream).read1(MAX_ENTRY_BYTES):
        *whole, rest = (rest + chunk).split(b"\0")
        yield from whole
        if len(rest) >= MAX_ENTRY_BYTES:
            break
    if rest:
        yield rest
