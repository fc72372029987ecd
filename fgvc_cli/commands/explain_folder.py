"""The part of ``fgvc explain`` that takes many photographs: a folder of pictures, and a table of them.

Threads read ahead of the model and draw behind it; all of it is held for two batches at a time.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fgvc_cli.commands.console import stderr_console
from fgvc_cli.commands.explain import draw
from fgvc_cli.commands.explain_options import ExplainOptions
from fgvc_cli.commands.predict_progress import PredictProgress
from fgvc_cli.data.find import Found, find_images
from fgvc_cli.data.images import Failure, read_image
from fgvc_cli.engine.allocator import keep_freed_memory
from fgvc_cli.engine.weights import default_notice
from fgvc_cli.errors import EXIT_OK, EXIT_SOME_FAILED
from fgvc_cli.explain.explainer import Explainer, Prepared
from fgvc_cli.explain.explanation import Explanation
from fgvc_cli.explain.folders import INDEX, PartsFolder, PicturesFolder
from fgvc_cli.predict.batching import delayed, until_full
from fgvc_cli.predict.blocks import as_text
from fgvc_cli.predict.decode_pool import in_order
from fgvc_cli.predict.rows import Row
from fgvc_cli.predict.sink_csv import csv_cells, csv_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

KEEP_PX = 1600
"""Longest side of a photograph that waits to be drawn: the width of the widest picture."""
_PNG = {"compress_level": 1}
"""Three times as fast as Pillow's default, for files a tenth larger."""
NEAREST = "nearest.csv"
_NEAREST_COLUMNS = ("path", "of", "rank", "similarity", "label", "nearest")
"""``of``: the class that was looked through, empty for all; ``nearest``: path of the known photograph."""


@dataclass(frozen=True, eq=False)
class _Photo:
    """One photograph on its way."""

    found: Found
    prepared: Prepared | None
    failure: Failure | None
    size: tuple[int, int] | None
    """(width, height) of the upright photograph, pixels."""


@dataclass(frozen=True, eq=False)
class _Done:
    """One photograph explained, its picture perhaps still being drawn."""

    photo: _Photo
    explanation: Explanation | None = None
    png: Future[bytes] | None = None


def run_folder(options: ExplainOptions) -> int:
    """Explain every photograph of a source: ``OUT/<name>.png`` each, and ``OUT/index.csv``.

    Where an index is searched, ``OUT/nearest.csv`` has a line for each known photograph that was near.

    A photograph that cannot be read is a row of the table; the others still come out.

    Returns:
        0, or 3 where a photograph failed.

    Raises:
        FgvcError: see ``ExplainOptions``; a source without an image; a folder that cannot be written.
    """
    progress = PredictProgress(stderr_console(), quiet=options.quiet, live=True)
    images = find_images([options.image], progress.on_unreadable)
    progress.total = lambda: images.total
    keep_freed_memory()
    with ExitStack() as stack:
        pictures = stack.enter_context(PicturesFolder(options.target_path))
        parts = stack.enter_context(PartsFolder(options.parts_dir)) if options.parts_dir else None
        if options.weights is None:
            progress.note(default_notice())
        explainer = stack.enter_context(options.open_explainer())
        stack.enter_context(progress)
        top_k = min(options.top_k, len(explainer.checkpoint.classes))
        part_count = int(getattr(explainer.checkpoint.model, "part_count", 0))
        rows = [[*csv_columns(top_k, part_count), "picture"]]
        compared = [[*_NEAREST_COLUMNS]]
        for number, done in enumerate(_explain_all(options, explainer, images)):
            name = done.photo.found.name
            picture = ""
            if done.png and done.explanation:
                picture = pictures.add(name, number, done.png.result())
                if parts:
                    parts.add_maps(name, number, done.explanation.maps)
                compared += _nearest_rows(name, done.explanation)
            elif done.photo.failure:
                progress.note(f"Left out {name}: {done.photo.failure.error} ({done.photo.failure.status})")
            row = _row(done)
            rows.append([*csv_cells(row, top_k, part_count), picture])
            progress.count(1, Counter([row.status]))
        pictures.add_table(rows)
        if options.index_path:
            pictures.add_table(compared, NEAREST)
    progress.summary([options.target_path / INDEX])
    return EXIT_SOME_FAILED if progress.failed else EXIT_OK


def _explain_all(options: ExplainOptions, explainer: Explainer, images: Iterator[Found]) -> Iterator[_Done]:
    """Every photograph in order; closing the generator stops the threads."""
    page, threads = options.page or "strip", max(1, options.workers)
    readers, painters = ThreadPoolExecutor(threads, "read"), ThreadPoolExecutor(threads, "draw")

    def read(found: Found) -> _Photo:
        decoded = read_image(found.path)
        if isinstance(decoded, Failure):
            return _Photo(found, None, decoded, None)
        return _Photo(found, explainer.prepare(decoded.image, KEEP_PX), None, decoded.size)

    def paint(photo: _Photo, explanation: Explanation) -> bytes:
        stream = io.BytesIO()
        draw(explanation, photo.found.name, page).save(stream, "PNG", **_PNG)
        return stream.getvalue()

    def answer(photos: Sequence[_Photo]) -> list[_Done]:
        ready = [photo.prepared for photo in photos if photo.prepared]
        explained = iter(explainer.explain(ready) if ready else [])
        done = []
        for photo in photos:
            explanation = next(explained) if photo.prepared else None
            png = painters.submit(paint, photo, explanation) if explanation else None
            done.append(_Done(photo, explanation, png))
        return done

    try:
        ahead = options.batch_size + threads
        loaded = in_order(lambda found: readers.submit(read, found), images, window=ahead)
        batches = until_full(loaded, lambda: options.batch_size, lambda photo: photo.prepared is not None)
        # While the model answers one batch, the pictures of the one before are drawn.
        for batch in delayed(map(answer, batches), 1):
            yield from batch
    finally:
        for pool in (readers, painters):
            pool.shutdown(cancel_futures=True)


def _row(done: _Done) -> Row:
    """The line of the table; boxes are pixels of the photograph as it is, not as it was kept."""
    name, failure, explanation = done.photo.found.name, done.photo.failure, done.explanation
    if explanation is None or done.photo.size is None:
        return Row(name, *(failure.status, failure.error) if failure else ())
    width, height = done.photo.size
    x, y = width / explanation.image.width, height / explanation.image.height
    boxes = [
        None if box is None else (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
        for box in (explanation.box, *explanation.parts)
    ]
    return Row(
        path=name,
        width=width,
        height=height,
        labels=tuple(label for label, _ in explanation.top),
        probs=tuple(prob for _, prob in explanation.top),
        box=boxes[0],
        parts=tuple(box for box in boxes[1:] if box),
    )


def _nearest_rows(name: str, explanation: Explanation) -> Iterator[list[str]]:
    """The lines of ``NEAREST``: those of all classes, then of each likely one, nearest first."""
    if explanation.nearest is None:
        return
    for of, found in [("", explanation.nearest.overall), *explanation.nearest.by_class.items()]:
        for rank, near in enumerate(found, start=1):
            cells = (of, str(rank), f"{near.similarity:.4f}", "|".join(near.labels), near.path)
            yield [as_text(name), *cells]
