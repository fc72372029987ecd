"""The images of a prediction file where it says that they were, as long as they are there."""

from __future__ import annotations

import io
import math
import os
import re
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from fgvc_cli.errors import FgvcError
from fgvc_cli.formats.h5 import reading
from fgvc_cli.formats.rows import GIVEN_BOX, UNKNOWN, Table, as_text
from fgvc_cli.predict.decoding import BIG_PIXELS, TURNS
from fgvc_cli.sources.boxes import GivenBox, Region
from fgvc_cli.sources.find import find_images
from fgvc_cli.sources.frames import FrameChoice, locate_frame
from fgvc_cli.sources.images import Failure, Reading, read_image
from fgvc_cli.sources.stored import Stored, is_archive
from fgvc_cli.store import local_path

WEBP = {"quality": 70, "method": 2}
"""Two thirds of a JPEG that looks alike, at 2 ms a picture."""
ROUND_BOX = 0.5
"""Fraction of a given box's sides that a picture shows round it, so that a person sees what it is part of."""
AHEAD = 4
"""Pictures on their way per worker."""

Where = Path | Stored


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a row."""

    row: int
    webp: bytes
    cropped: bool
    """It is a stored crop, as the image was not at hand."""
    view: tuple[int, int, int, int]
    """What of the upright image it shows: x1, y1, x2, y2 in whole pixels, ends exclusive."""


@dataclass
class PictureMaker:
    """Makes pictures row by row, some ahead, in memory that does not grow with their number.

    Args:
        images: what the rows' paths are relative to: a folder, or an archive or URL as ``find_images`` takes
            it; None: they are as given.
        px: longest side of a picture; none is enlarged.
        workers: threads; decoding and encoding leave Python's lock.
    """

    table: Table
    images: str | None = None
    px: int = 240
    workers: int = 2
    failures: Counter[str] = field(default_factory=Counter)
    """Images that gave no picture, by reason: a word of ``FailureStatus``, or ``changed``."""
    _turns: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(TURNS))

    def check(self) -> None:
        """Whether ``images`` is there.

        Raises:
            FgvcError: it is not.
        """
        if self.images is not None and not os.path.isdir(self.images):
            find_images([self.images])

    def make(self, rows: Sequence[int], crops: h5py.Dataset | None) -> Iterator[Picture]:
        """Pictures of these rows, those without any left out; of an archive in its own order.

        Args:
            crops: the stored crops of all rows, where there are any.
        """
        waiting: deque[tuple[int, Future[bytes | str]]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            for row, where in self._locate(rows):
                waiting.append((row, pool.submit(self._shrink, row, where)))
                if len(waiting) > AHEAD * self.workers:
                    yield from self._finish(*waiting.popleft(), crops)
            while waiting:
                yield from self._finish(*waiting.popleft(), crops)

    def _finish(self, row: int, future: Future[bytes | str], crops: h5py.Dataset | None) -> Iterator[Picture]:
        made = future.result()
        if isinstance(made, bytes):
            yield Picture(row, made, cropped=False, view=seen_region(self.table, row, ROUND_BOX))
            return
        self.failures[made] += 1
        if crops is None:
            return
        with reading(self.table.source):
            stored = crops[row].tobytes()
        if stored:
            yield Picture(row, _reencode(stored, self.px), cropped=True, view=_crop_view(self.table, row))

    def _locate(self, rows: Sequence[int]) -> Iterator[tuple[int, Where | None]]:
        names = self.table.rows.path
        if self.images is None or os.path.isdir(self.images):
            root = Path(self.images or "")
            every_s = self.table.info.settings.get("frames", {}).get("every_s")
            yield from ((row, locate_frame(root, file_name(names[row]), every_s)) for row in rows)
            return
        # An archive or a store is walked once; members may share a name, as their rows then do.
        wanted: dict[str, deque[int]] = {}
        for row in rows:
            wanted.setdefault(names[row], deque()).append(row)
        frames = self.table.info.settings.get("frames")
        for found in find_images([self.images], frames=FrameChoice(**frames) if frames else None):
            if places := wanted.get(as_text(found.name)):
                yield places.popleft(), found.path
        yield from ((row, None) for places in wanted.values() for row in places)

    def _shrink(self, row: int, where: Where | None) -> bytes | str:
        """A picture of the whole image, or why there is none."""
        if where is None:
            return "missing"
        held: list[bool] = []
        if (box := given_box(self.table, row, ROUND_BOX)) is not None:
            where = Region(where, box)
        rule = Reading(raw=self.table.info.preprocess.raw)
        try:
            photo = read_image(where, partial(self._prepare, held), rule)
            if isinstance(photo, Failure):
                return photo.status
            size = photo.placed.size if photo.placed else photo.size
            if size != tuple(self.table.rows.size[row].tolist()):
                return "changed"  # its box would lie somewhere else
            return _encode(photo.image, self.px)
        except (MemoryError, OSError, ValueError):
            return "unreadable"  # decoded, but too large to be made small, as predict.decoding
        finally:
            if held:
                self._turns.release()

    def _prepare(self, held: list[bool], image: Image.Image) -> None:
        """Ask a JPEG for a smaller copy; of other big images, few are in memory at once."""
        scale = 2 * self.px / max(image.size)
        if scale < 1:
            image.draft(None, (round(image.width * scale) or 1, round(image.height * scale) or 1))
        if image.width * image.height > BIG_PIXELS:
            self._turns.acquire()
            held.append(True)


def given_box(table: Table, row: int, margin: float = 0.0) -> GivenBox | None:
    """The box that a row is of; None for a whole image.

    Args:
        margin: least one, as a fraction of the sides.
    """
    if GIVEN_BOX not in table.rows.more:
        return None
    x1, y1, x2, y2 = np.asarray(table.rows.more[GIVEN_BOX])[row].tolist()
    if math.isnan(x1):
        return None
    own = table.info.settings.get("boxes", {}).get("margin", 0.0)
    name = str(table.rows.more["box_id"][row])
    return GivenBox(name, (x1, y1, x2, y2), relative=False, margin=max(own, margin))


def given_boxes(table: Table) -> list[GivenBox | None]:
    """The box that each row is of; none at all where no boxes were given."""
    return [given_box(table, row) for row in range(len(table.rows))] if GIVEN_BOX in table.rows.more else []


def seen_region(table: Table, row: int, margin: float = 0.0) -> tuple[int, int, int, int]:
    """What of its image the model saw of a row, or more where the margin is larger: whole pixels."""
    width, height = table.rows.size[row].tolist()
    box = given_box(table, row, margin)
    return (0, 0, width, height) if box is None else Region(Path(), box).place(width, height).region


def _crop_view(table: Table, row: int) -> tuple[int, int, int, int]:
    """What a stored crop shows: the whole pixels that the object's box touches, or the given box."""
    if given_box(table, row) is not None or not np.isfinite(table.rows.box[row]).all():
        return seen_region(table, row)
    width, height = table.rows.size[row].tolist()
    edges = table.rows.box[row].tolist()
    return Region(Path(), GivenBox("", tuple(edges), relative=False)).place(width, height).region


def file_name(name: str) -> str:
    """A name as the file system has it: bytes that were not UTF-8 come back from ``\\udcXX``."""
    return re.sub(r"\\udc([89a-f][0-9a-f])", lambda match: chr(0xDC00 + int(match[1], 16)), name)


def _encode(image: Image.Image, px: int) -> bytes:
    image.thumbnail((px, px), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "WEBP", **WEBP)
    return stream.getvalue()


def _reencode(jpeg: bytes, px: int) -> bytes:
    """A crop that ``predict`` stored, as small as the other pictures.

    Raises:
        FgvcError: its bytes are no picture.
    """
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            return _encode(image.convert("RGB"), px)
    # Bytes of a damaged file: Pillow raises anything, see data.images.
    except Exception as error:
        raise FgvcError("A stored crop cannot be read; the file is damaged.") from error


def choose_rows(table: Table, limit: int, wrong: np.ndarray | None = None) -> list[int]:
    """The rows that get a picture, in order, at most ``limit``.

    All that have a prediction, if they are few enough. Else half of them are those most worth a look: wrong
    ones, the surest first, then unknown ones, then the least sure; the other half is spread evenly over the
    classes.

    Args:
        wrong: (N,) bool, where labels are known.
    """
    rows = np.flatnonzero(table.answered)
    if len(rows) <= limit:
        return rows.tolist()
    unknown = np.array([table.rows.status[row] == UNKNOWN for row in rows])
    prob = np.nan_to_num(table.rows.topk_prob[rows, 0]) - unknown
    is_wrong = wrong[rows] if wrong is not None else np.zeros(len(rows), bool)
    doubtful = np.lexsort((np.where(is_wrong, -prob, prob), ~is_wrong))[: limit - limit // 2]
    rest = np.setdiff1d(np.arange(len(rows)), doubtful, assume_unique=True)
    # How many of its class are surer; sorted by that, every class has its turn.
    of_class = table.rows.topk_index[rows[rest], 0]
    by_class = np.lexsort((-prob[rest], of_class))
    starts = np.r_[0, np.flatnonzero(np.diff(of_class[by_class])) + 1]
    place = np.arange(len(rest)) - np.repeat(starts, np.diff(np.r_[starts, len(rest)]))
    spread = rest[by_class[np.argsort(place, kind="stable")]][: limit // 2]
    return np.sort(rows[np.concatenate([doubtful, spread])]).tolist()


def recorded_images(table: Table) -> str | None:
    """What the rows' paths are relative to, as ``PictureMaker`` takes it; None where it is not known or gone.

    Relative sources are looked for where they were typed, then in the current folder and beside the
    prediction file, with which they may have moved. What counts is that the first image with a
    prediction is there: a folder of the same name may be another. No network is asked.
    """
    if table.origin is None:
        return None
    bases = (Path(file_name(table.origin.working_folder)), Path.cwd(), table.source.absolute().parent)
    return next((root for base in dict.fromkeys(bases) if (root := _below(base, table))), None)


def _below(base: Path, table: Table) -> str | None:
    sources = table.origin.sources if table.origin else ()
    answered = np.flatnonzero(table.answered)
    first = file_name(table.rows.path[answered[0] if len(answered) else 0])
    if "frames" in table.info.settings:
        first = re.sub(r"#\d+$", "", first)
    # One folder or archive: paths are relative to it. Else they are as given.
    if len(sources) == 1:
        source = base / file_name(local_path(sources[0]))
        if is_archive(source.name) and source.is_file():
            return str(source)
        if source.is_dir():
            return str(source) if (source / first).is_file() else None
    return str(base) if os.path.isfile(base / first) else None
