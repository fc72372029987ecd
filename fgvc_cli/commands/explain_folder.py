"""The part of ``fgvc explain`` that takes many photographs: a folder of pictures, and a table of them.

Threads read ahead of the model and draw behind it; all of it is held for two batches at a time.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fgvc_cli.commands.console import stderr_console
from fgvc_cli.commands.explain_options import ExplainOptions
from fgvc_cli.commands.predict_progress import PredictProgress
from fgvc_cli.engine.device import keep_freed_memory
from fgvc_cli.engine.weights import default_notice
from fgvc_cli.errors import EXIT_OK, EXIT_SOME_FAILED
from fgvc_cli.explain.explainer import Explainer, Prepared
from fgvc_cli.explain.explanation import Explanation, LabelledExplanation
from fgvc_cli.explain.folders import INDEX, PicturesFolder
from fgvc_cli.formats.csv_rows import csv_cells, csv_columns
from fgvc_cli.formats.row_blocks import as_text
from fgvc_cli.formats.rows import Row
from fgvc_cli.predict.batching import delayed, until_full
from fgvc_cli.predict.decode_pool import in_order
from fgvc_cli.sources.find import Found, find_images
from fgvc_cli.sources.images import OK, DecodedImage, Failure, Reading, read_image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

KEEP_PX = 1600
"""Longest side of a photograph that waits to be drawn: the width of the widest picture."""
_SAVE: dict[str, dict[str, Any]] = {
    # A tenth of the time of a PNG, a third of its size, and text stays sharp.
    ".jpg": {"format": "JPEG", "quality": 92, "subsampling": 0},
    # Three times as fast as Pillow's default, for files a tenth larger.
    ".png": {"format": "PNG", "compress_level": 1},
}
NEAREST = "nearest.csv"
_NEAREST_COLUMNS = ("path", "of", "rank", "similarity", "label", "nearest")
"""``of``: the class that was looked through, empty for all; ``nearest``: path of the known photograph."""


@dataclass(frozen=True, eq=False)
class _Photo:
    """One photograph on its way."""

    found: Found
    prepared: tuple[Prepared, ...]
    """For each model; none where it could not be read."""
    failure: Failure | None
    size: tuple[int, int] | None
    """(width, height) of the upright photograph, pixels."""


@dataclass(frozen=True, eq=False)
class _Done:
    """One photograph explained, its picture perhaps still being drawn."""

    photo: _Photo
    explained: tuple[LabelledExplanation, ...] = ()
    picture: Future[bytes] | None = None


def run_folder(options: ExplainOptions) -> int:
    """Explain every photograph of a source: a strip ``OUT/<name>.jpg`` each, ``.png`` where it is a full page
    or a figure, and ``OUT/index.csv``.

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
        pictures = stack.enter_context(PicturesFolder(options.target_path, _ending(options)))
        parts = options.open_parts() if options.parts_dir else None
        if parts:
            stack.enter_context(parts)
        if options.weights is None:
            progress.note(default_notice())
        explainers = stack.enter_context(options.open_explainers())
        for explainer in explainers.values():
            explainer.speed_up()
        if parts:
            parts.begin(explainers)
        stack.enter_context(progress)
        table = _Table(explainers, options.top_k)
        compared = [[*_NEAREST_COLUMNS]]
        for number, done in enumerate(_explain_all(options, explainers, images)):
            photo, name = done.photo, done.photo.found.name
            picture = pictures.add(name, number, done.picture.result()) if done.picture else ""
            failure = photo.failure
            if parts:
                said = {"status": failure.status, "error": failure.error} if failure else {}
                parts.add_maps(name, done.explained, size=photo.size or (0, 0), **said)
            if failure:
                progress.note(f"Left out {name}: {failure.error} ({failure.status})")
            table.add(done, picture)
            for each in done.explained:
                compared += _nearest_rows(name, each.explanation)
            progress.count(1, Counter([failure.status if failure else OK]))
        pictures.add_table(table.rows)
        if options.index_path:
            pictures.add_table(compared, NEAREST)
    progress.summary([options.target_path / INDEX])
    return EXIT_SOME_FAILED if progress.failed else EXIT_OK


def _ending(options: ExplainOptions) -> str:
    """Strips are many and small; pages and figures are for print."""
    return ".png" if options.page == "full" or len(options.models) > 1 else ".jpg"


def _explain_all(
    options: ExplainOptions, explainers: Mapping[str, Explainer], images: Iterator[Found]
) -> Iterator[_Done]:
    """Every photograph in order; closing the generator stops the threads."""
    page, ending, threads = options.page or "strip", _ending(options), max(1, options.workers)
    readers, painters = ThreadPoolExecutor(threads, "read"), ThreadPoolExecutor(threads, "draw")

    def read(found: Found) -> _Photo:
        # Models may differ in what they make of a colour profile.
        by_rule: dict[Reading, DecodedImage] = {}
        for explainer in explainers.values():
            if explainer.reading not in by_rule:
                decoded = read_image(found.path, rule=explainer.reading)
                if isinstance(decoded, Failure):
                    return _Photo(found, (), decoded, None)
                by_rule[explainer.reading] = decoded
        prepared = tuple(each.prepare(by_rule[each.reading].image, KEEP_PX) for each in explainers.values())
        return _Photo(found, prepared, None, next(iter(by_rule.values())).size)

    def paint(photo: _Photo, explained: tuple[LabelledExplanation, ...]) -> bytes:
        stream = io.BytesIO()
        draw(explained, photo.found.name, page).save(stream, **_SAVE[ending])
        return stream.getvalue()

    def answer(photos: Sequence[_Photo]) -> list[_Done]:
        readable = [photo for photo in photos if photo.prepared]
        answers = [
            [
                LabelledExplanation(label, each)
                for each in explainer.explain([p.prepared[i] for p in readable])
            ]
            for i, (label, explainer) in enumerate(explainers.items() if readable else ())
        ]
        explained = iter(zip(*answers, strict=True))
        done = []
        for photo in photos:
            rows = next(explained) if photo.prepared else ()
            done.append(_Done(photo, rows, painters.submit(paint, photo, rows) if rows else None))
        return done

    try:
        ahead = options.batch_size + threads
        loaded = in_order(lambda found: readers.submit(read, found), images, window=ahead)
        batches = until_full(loaded, lambda: options.batch_size, lambda photo: bool(photo.prepared))
        # While the model answers one batch, the pictures of the one before are drawn.
        for batch in delayed(map(answer, batches), 1):
            yield from batch
    finally:
        for pool in (readers, painters):
            pool.shutdown(cancel_futures=True)


class _Table:
    """``index.csv``: a line per photograph, of several models a line per photograph and model."""

    def __init__(self, explainers: Mapping[str, Explainer], top_k: int):
        checkpoints = [explainer.checkpoint for explainer in explainers.values()]
        self._several = len(checkpoints) > 1
        self._top_k = min(top_k, *(len(checkpoint.classes) for checkpoint in checkpoints))
        self._parts = max(int(getattr(checkpoint.model, "part_count", 0)) for checkpoint in checkpoints)
        columns = csv_columns(self._top_k, self._parts)
        self.rows = [[*columns, *(["weights"] if self._several else []), "picture"]]

    def add(self, done: _Done, picture: str) -> None:
        """The lines of a photograph; one that failed has one."""
        failure = done.photo.failure
        if failure:
            self._add(Row(done.photo.found.name, failure.status, failure.error), "", picture)
        for each in done.explained:
            self._add(_row(done.photo, each.explanation, self._top_k), each.label, picture)

    def _add(self, row: Row, label: str, picture: str) -> None:
        cells = csv_cells(row, self._top_k, self._parts)
        self.rows.append([*cells, *([label] if self._several else []), picture])


def _row(photo: _Photo, explanation: Explanation, top_k: int) -> Row:
    """Boxes are pixels of the photograph as it is, not as it was kept."""
    width, height = photo.size or explanation.image.size
    x, y = width / explanation.image.width, height / explanation.image.height
    boxes = [
        None if box is None else (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
        for box in (explanation.box, *explanation.parts)
    ]
    return Row(
        path=photo.found.name,
        width=width,
        height=height,
        labels=tuple(label for label, _ in explanation.top[:top_k]),
        probs=tuple(prob for _, prob in explanation.top[:top_k]),
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


def draw(explained: Sequence[LabelledExplanation], title: str, page: str) -> Image.Image:
    """The picture of one model's explanation, a full page or a strip; of several models a row each."""
    from fgvc_cli.explain import compare, render, strip

    if len(explained) > 1:
        return compare.draw_comparison(explained, title)
    return (strip.draw_strip if page == "strip" else render.render)(explained[0].explanation, title=title)
