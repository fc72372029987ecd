"""The whole list of images of a run, written down as it begins, so that going on notices a change anywhere.

Sealed rows know their names; of the rows to come only this tells. For two million names it is some ten
kilobytes: a hash of all names so far after each ``MARK_ROWS``.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fgvc_cli.errors import FgvcError
from fgvc_cli.files import read_document, write_document
from fgvc_cli.formats.rows import as_text
from fgvc_cli.run.run_files import LIST
from fgvc_cli.sources.find import Found

MARK_ROWS = 10_000


def summarise(images: Iterable[Found], stopped: Callable[[], bool] = lambda: False) -> dict[str, Any] | None:
    """How many images there are, and hashes of their names; None where it was stopped."""
    names, marks, total = hashlib.sha256(), [], 0
    for total, found in enumerate(images, start=1):
        names.update(as_text(found.name).encode() + b"\0")
        if total % MARK_ROWS == 0:
            marks.append(names.hexdigest()[:16])
        if stopped():
            return None
    return {"total": total, "marks": [*marks, names.hexdigest()[:16]]}


def check_list(folder: Path, images: Iterable[Found]) -> int:
    """See that the images are those that ``folder`` was begun with; how many there are.

    Raises:
        FgvcError: they are not, saying among which rows.
    """
    old, new = read_document(folder / LIST), summarise(images)
    assert new is not None
    if old == new:
        return int(new["total"])
    pairs = zip(old["marks"], new["marks"], strict=False)
    same = next((i for i, (was, now) in enumerate(pairs) if was != now), 0) * MARK_ROWS
    last = min(same + MARK_ROWS, max(old["total"], new["total"])) - 1
    counts = "" if old["total"] == new["total"] else f" ({old['total']:,} then, {new['total']:,} now)"
    raise FgvcError(
        f"The list of images has changed since {folder} was begun: rows {same:,} to {last:,} differ{counts}.",
        f"Bring it back to go on; rm {folder / LIST} to go on with the list as it is now; or --restart.",
    )


class ListRecord:
    """Writes the list of a run that begins down, in a thread, so that the first row need not wait for it.

    A run that is killed before the thread is through has no list, and the next one writes it down. Images
    that come or go while a run works are its own affair: it takes what its walk meets.

    Args:
        folder: where to write it; it outlives the context.
        again: walks the sources a second time.
        on_total: told how many images there are, from the thread.
    """

    def __init__(self, folder: Path, again: Callable[[], Iterable[Found]], on_total: Callable[[int], None]):
        self._folder, self._again, self._on_total = folder, again, on_total
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._walk, name="list", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _walk(self) -> None:
        try:
            if summary := summarise(self._again(), self._stop.is_set):
                write_document(self._folder / LIST, summary)
                self._on_total(summary["total"])
        except FgvcError:
            return  # the run meets the same source, or the same disk, and says so
