"""A known set from its official address to its folder: fetched, unpacked aside, checked, then renamed.

Below the data root, ``.downloads/NAME/`` holds the archives until the set is there, and its ``tree/`` what is
unpacked. A process that is killed leaves these and never half a set.
"""

from __future__ import annotations

import contextlib
import gzip
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from fgvc_cli.data.listing import LabelledSet
from fgvc_cli.datasets.download import OnBytes, fetch
from fgvc_cli.datasets.present import look_for
from fgvc_cli.datasets.registry import Archive, KnownSet, default_root, find_known, read_official
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.files import LOCK, FolderLock, reason, sync_folder

_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError)
_TREE = "tree"


def downloads_folder(entry: KnownSet, data_root: Path) -> Path:
    """Where its archives lie until the set is there."""
    return data_root / ".downloads" / entry.folder.partition("/")[0]


def check_address(entry: KnownSet) -> None:
    """Whether a set can be downloaded.

    Raises:
        FgvcError: one has to ask or to sign in first; where.
    """
    if not entry.archives:
        raise FgvcError(
            f"{entry.title} has no official address to download from without signing in.",
            f"Get it from {entry.source}, and unpack it to {entry.tree} below the data root.",
        )


def get_known(
    entry: KnownSet, data_root: Path, *, on_bytes: OnBytes = lambda here, total: None
) -> LabelledSet:
    """Bring a known set below ``data_root``; its archives are removed at the end.

    Returns:
        The official listing, counts checked.

    Raises:
        FgvcError: no official address, a folder in its place, a download that fails (see ``fetch``), an
            archive that does not unpack, a full disk, or contents other than the official ones.
    """
    check_address(entry)
    top = PurePosixPath(entry.folder).parts[0]
    if (data_root / top).exists():
        raise FgvcError(
            f"{data_root / top} is there, but it is not {entry.title} with {entry.expected}.",
            "Move it away, or give another --data-root.",
        )
    downloads = downloads_folder(entry, data_root)
    downloads.mkdir(parents=True, exist_ok=True)
    for archive in entry.archives:
        fetch(archive.url, downloads / archive.file, md5=archive.md5, on_bytes=on_bytes)
    tree = downloads / _TREE
    shutil.rmtree(tree, ignore_errors=True)  # of a process that was killed
    for archive in entry.archives:
        _unpack(archive, downloads / archive.file, tree)
    if entry.archive_folder:
        (tree / entry.archive_folder).rename(tree / top)
    try:
        read_official(entry, tree)
    except FgvcError as error:
        raise FgvcError(
            f"The download is not {entry.title} as published: {error.message}", f"It is kept in {downloads}."
        ) from error
    (tree / top).rename(data_root / top)
    sync_folder(data_root)
    shutil.rmtree(downloads)
    with contextlib.suppress(OSError):  # others may be under way there
        downloads.parent.rmdir()
    return read_official(entry, data_root)


def _unpack(archive: Archive, file: Path, tree: Path) -> None:
    folder = tree / archive.into
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as zipped:
                zipped.extractall(folder)  # refuses no name, but keeps all below the folder
        elif file.suffix in (".gz", ".tgz", ".tar"):
            with tarfile.open(file) as tarred:
                tarred.extractall(folder, filter="data")  # no links, names or modes that lead outside
        else:
            shutil.copyfile(file, folder / file.name)
    except _DAMAGED as error:
        file.unlink()
        raise FgvcError(
            f"{archive.url} does not unpack ({type(error).__name__}: {error}); it is removed.",
            "The same command fetches it anew.",
        ) from error
    except OSError as error:
        raise FgvcError(
            f"Could not unpack {file}: {reason(error)}.", "Free space, and run the same command again."
        ) from error


def fetch_set(
    name: str, data_root: str | None = None, *, on_bytes: OnBytes = lambda here, total: None
) -> tuple[LabelledSet | None, Path]:
    """Bring a known set below the data root by name; one that is there already is left as it is.

    Returns:
        Its official listing, or None where it was there already; and its folder.

    Raises:
        FgvcError: an unknown name, no data root, another process at it, or what ``get_known`` says.
    """
    entry = find_known(name)
    root = Path(data_root) if data_root else default_root()
    there = look_for(entry, root)
    if there.root:
        return None, there.root
    check_address(entry)
    if root is None:
        raise FgvcError(
            "Where data sets lie is not known.", "Give --data-root DIR or set FGVC_DATA=DIR.", EXIT_USAGE
        )
    downloads = downloads_folder(entry, root)
    made = _missing_folders(downloads)
    downloads.mkdir(parents=True, exist_ok=True)
    with FolderLock(downloads):
        try:
            listing = get_known(entry, root, on_bytes=on_bytes)
        finally:
            _remove_unused(downloads, made)
    return listing, listing.root


def _missing_folders(folder: Path) -> list[Path]:
    """Those that have to be made for this one to be there, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove_unused(downloads: Path, made: list[Path]) -> None:
    """Take the folders away where nothing has arrived: an address that cannot be reached leaves no trace.

    Args:
        made: those that were not there before, the innermost first.
    """
    if downloads.is_dir() and {file.name for file in downloads.iterdir()} <= {LOCK}:
        (downloads / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others may be under way in the folders above
            for folder in dict.fromkeys((downloads, downloads.parent, *made)):
                folder.rmdir()
