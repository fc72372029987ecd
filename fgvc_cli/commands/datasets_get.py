"""fgvc datasets get: a known set from its official address to the data root."""

from __future__ import annotations

import contextlib
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fgvc_cli.commands.console import stderr_console
from fgvc_cli.datasets.get import check_address, downloads_folder, get_known
from fgvc_cli.datasets.registry import default_root, find_known, look_for
from fgvc_cli.errors import EXIT_OK, EXIT_USAGE, FgvcError
from fgvc_cli.files import LOCK, FolderLock


def run(name: str, data_root: str | None) -> int:
    """Download, check and unpack a known set; one that is there already is left as it is.

    Raises:
        FgvcError: unknown name, no data root, or what ``get_known`` says.
    """
    entry = find_known(name)
    root = Path(data_root) if data_root else default_root()
    there = look_for(entry, root)
    if there.root:
        print(f"{name} is there already: {there.root}, {entry.expected}")
        return EXIT_OK
    check_address(entry)
    if root is None:
        raise FgvcError(
            "Where data sets lie is not known.", "Give --data-root DIR or set FGVC_DATA=DIR.", EXIT_USAGE
        )
    downloads = downloads_folder(entry, root)
    made = _missing_folders(downloads)
    downloads.mkdir(parents=True, exist_ok=True)
    console = stderr_console()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        FolderLock(downloads),
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task(name, total=None)

        def show(here: int, total: int | None) -> None:
            progress.update(task, completed=here, total=total)
            if here == total:
                progress.update(task, description=f"{name}: checking and unpacking")

        try:
            listing = get_known(entry, root, on_bytes=show)
        finally:
            _remove_unused(downloads, made)
    print(f"{entry.title}: {entry.expected}, in {listing.root}")
    print(f"fgvc train --dataset {name} --data-root {root} --model crasmra-r50")
    return EXIT_OK


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
