"""``fgvc explain``: images -> pictures of why a model answers as it does, and a table of them.

Of a folder, threads read ahead of the model and draw behind it; all of it is held for two batches at a time.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from fgvc_cli.command import Messages, command
from fgvc_cli.engine.device import keep_freed_memory
from fgvc_cli.engine.weights import default_notice
from fgvc_cli.errors import FgvcError
from fgvc_cli.explain.explainer import Explainer, Explanation, LabelledExplanation, Prepared, StageMask
from fgvc_cli.explain.options import ExplainOptions
from fgvc_cli.explain.outputs import PicturesFolder
from fgvc_cli.explain.pages import draw_comparison, draw_strip, render
from fgvc_cli.files import AtomicFile
from fgvc_cli.formats.csv_rows import csv_cells, csv_columns
from fgvc_cli.formats.rows import BOX_COLUMNS, Layout, Row, as_text, has_failed
from fgvc_cli.predict.decoding import delayed, in_order, until_full
from fgvc_cli.predict.predictor import row_columns
from fgvc_cli.sources.boxes import BoxMatch, Placed, Region, each_box, open_boxes
from fgvc_cli.sources.find import Found, find_images
from fgvc_cli.sources.images import OK, DecodedImage, Failure, Reading, read_image

KEEP_PX = 1600
"""Longest side of an image that waits to be drawn: the width of the widest picture."""
_SAVE: dict[str, dict[str, Any]] = {
    # A tenth of the time of a PNG, a third of its size, and text stays sharp.
    ".jpg": {"format": "JPEG", "quality": 92, "subsampling": 0},
    # Three times as fast as Pillow's default, for files a tenth larger.
    ".png": {"format": "PNG", "compress_level": 1},
}
MASKS = "masks.csv"
_MASK_COLUMNS = ("stage", "images", "suppressed", "mask_saturated", "mask_variation")
"""Of ``StageMask``."""
NEAREST = "nearest.csv"
_NEAREST_COLUMNS = ("path", "of", "rank", "similarity", "label", "nearest")
"""``of``: the class that was looked through, empty for all; ``nearest``: path of the known image."""


@dataclass(frozen=True, eq=False)
class _Photo:
    """One image on its way."""

    found: Found
    prepared: tuple[Prepared, ...]
    """For each model; none where it could not be read."""
    failure: Failure | None
    size: tuple[int, int] | None
    """(width, height) of the upright image, or of what a box shows of it, pixels."""
    placed: Placed | None = None
    """Where that lies in the image."""


@dataclass(frozen=True, eq=False)
class _Done:
    """One image explained, its picture perhaps still being drawn."""

    photo: _Photo
    explained: tuple[LabelledExplanation, ...] = ()
    picture: Future[bytes] | None = None


@dataclass(frozen=True, eq=False)
class Explained:
    """What was written, and of one image what was found."""

    out: Path
    """The picture, or the folder of them."""
    statuses: dict[str, int]
    """Status -> images."""
    explanations: tuple[LabelledExplanation, ...] = ()
    """Of one image, by each model; of many they are in the folder."""
    unread_folders: int = 0
    """That could not be listed."""
    masks: Mapping[str, tuple[StageMask, ...]] = field(default_factory=dict)
    """What CRAM's masks did over these images, by model; of one model alone the label is empty."""


@command(ExplainOptions)
def explain(options: ExplainOptions) -> Explained:
    """Draw why a model answers as it does, for one image, or all of a folder or archive.

    Of many: a strip ``OUT/<name>.jpg`` each, ``.png`` where it is a full page or a figure, and
    ``OUT/index.csv``. Where an index is searched, ``OUT/nearest.csv`` has a line for each known image that
    was near; of a model with CRAM, ``OUT/masks.csv`` has one for each stage. An image that cannot be read is
    a row of the table; the others still come out.

    Raises:
        FgvcError: what cannot be written (found out first), one image that cannot be read, a source without
            an image, weights or a device that are not there, a class or a method that is not known.
    """
    options.check()
    messages = options.speaker
    return _explain_many(options, messages) if options.many else _explain_one(options, messages)


def _explain_one(options: ExplainOptions, messages: Messages) -> Explained:
    picture, name = options.target_path, options.image.name
    path = options.image.resolve().as_posix()
    with (
        AtomicFile(picture, overwrite=options.overwrite) as stream,
        options.open_parts() if options.parts_dir else nullcontext() as parts,
    ):
        first = _read(options.image, Reading())
        if not options.weights:
            messages.note(default_notice())
        with options.open_explainers() as explainers:
            # Models may differ in what they make of a colour profile.
            readings = [explainer.reading for explainer in explainers.values()]
            images = [first if each == Reading() else _read(options.image, each) for each in readings]
            explained = tuple(
                LabelledExplanation(label, explainer.explain([explainer.prepare(image, path=path)])[0])
                for (label, explainer), image in zip(explainers.items(), images, strict=True)
            )
        draw(explained, name, options.page or "full").save(stream, "PNG")
        if parts:
            parts.begin(explainers)
            parts.add_maps(name, explained, size=images[0].size)
    masks = {label: explainer.masks() for label, explainer in explainers.items()}
    _tell_masks(masks, messages)
    return Explained(picture, {OK: 1}, explained, masks=masks)


def _read(path: Path, reading: Reading) -> Image.Image:
    decoded = read_image(path, rule=reading)
    if isinstance(decoded, Failure):
        raise FgvcError(f"Cannot read {path}: {decoded.error} ({decoded.status}).")
    return decoded.image


def _explain_many(options: ExplainOptions, messages: Messages) -> Explained:
    unread: list[Path | str] = []

    def on_unreadable(folder: Path | str, error: OSError) -> None:
        unread.append(folder)
        messages.print(f"Left out folder {folder}: {error.strerror or error}")

    images = find_images([options.image], on_unreadable)
    walk: Iterator[Found] = images
    if boxes := open_boxes(options):
        match = BoxMatch(boxes, find_images([options.image], lambda *_: None))
        for line in (*boxes.notes, *match.lines):
            messages.note(line)
        walk = each_box(images, match)
    keep_freed_memory()
    statuses: Counter[str] = Counter()
    with ExitStack() as stack:
        pictures = stack.enter_context(PicturesFolder(options.target_path, _ending(options)))
        parts = options.open_parts() if options.parts_dir else None
        if parts:
            stack.enter_context(parts)
        if not options.weights:
            messages.note(default_notice())
        explainers = stack.enter_context(options.open_explainers())
        for explainer in explainers.values():
            explainer.speed_up()
        if parts:
            parts.begin(explainers)
        advance = stack.enter_context(messages.bar("explaining", lines=True))
        table = _Table(explainers, options.top_k, boxes=boxes is not None)
        compared = [[*_NEAREST_COLUMNS]]
        for number, done in enumerate(_explain_all(options, explainers, walk)):
            photo, name = done.photo, _name(done.photo.found)
            picture = pictures.add(name, number, done.picture.result()) if done.picture else ""
            failure = photo.failure
            if parts:
                said = {"status": failure.status, "error": failure.error} if failure else {}
                parts.add_maps(name, done.explained, size=photo.size or (0, 0), **said)
            if failure and has_failed(failure.status):
                messages.note(f"Left out {name}: {failure.error} ({failure.status})")
            table.add(done, picture)
            for each in done.explained:
                compared += _nearest_rows(name, each.explanation)
            statuses[failure.status if failure else OK] += 1
            advance(total=None if boxes else images.total)
        pictures.add_table(table.rows)
        if options.index_path:
            pictures.add_table(compared, NEAREST)
        masks = {label: explainer.masks() for label, explainer in explainers.items()}
        if any(masks.values()):
            pictures.add_table(_mask_rows(masks), MASKS)
    _tell_masks(masks, messages)
    return Explained(options.target_path, dict(statuses), unread_folders=len(unread), masks=masks)


def _mask_rows(masks: Mapping[str, Sequence[StageMask]]) -> list[list[str]]:
    """The lines of ``MASKS``: a stage each, header first; of several models each says of which."""
    several = len(masks) > 1
    rows = [[*_MASK_COLUMNS, *(["weights"] if several else [])]]
    for label, stages in masks.items():
        for mask in stages:
            values = (mask.suppressed, mask.mask_saturated, mask.mask_variation)
            numbers = [f"{value:.4f}" for value in values]
            rows.append([mask.stage, str(mask.images), *numbers, *([as_text(label)] if several else [])])
    return rows


def _tell_masks(masks: Mapping[str, Sequence[StageMask]], messages: Messages) -> None:
    """A line for each stage, and a warning where CRAM does nothing that depends on the image."""
    for label, stages in masks.items():
        for mask in stages:
            messages.note(f"{label}: {mask}" if label else str(mask))
        if fixed := [mask.stage for mask in stages if mask.is_fixed]:
            images = f"{stages[0].images:,}"
            messages.warn(
                f"{f'{label}: ' if label else ''}CRAM is a fixed gate in {', '.join(fixed)}: under 1 % of "
                f"channels are suppressed in some of these {images} images and not in others, so it "
                "re-attends to nothing, and the maps are the backbone's. Train with --set "
                "options.mask_norm=layer --set options.min_hidden=32"
            )


def _ending(options: ExplainOptions) -> str:
    """Strips are many and small; pages and figures are for print."""
    return ".png" if options.page == "full" or len(options.models) > 1 else ".jpg"


def _explain_all(
    options: ExplainOptions, explainers: Mapping[str, Explainer], images: Iterator[Found]
) -> Iterator[_Done]:
    """Every image in order; closing the generator stops the threads."""
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
        prepared = tuple(
            each.prepare(by_rule[each.reading].image, KEEP_PX, found.name) for each in explainers.values()
        )
        first = next(iter(by_rule.values()))
        return _Photo(found, prepared, None, first.size, first.placed)

    def paint(photo: _Photo, explained: tuple[LabelledExplanation, ...]) -> bytes:
        stream = io.BytesIO()
        draw(explained, _name(photo.found), page).save(stream, **_SAVE[ending])
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
    """``index.csv``: a line per image, of several models a line per image and model."""

    def __init__(self, explainers: Mapping[str, Explainer], top_k: int, *, boxes: bool = False):
        checkpoints = [explainer.checkpoint for explainer in explainers.values()]
        self._several = len(checkpoints) > 1
        self._layout = Layout(
            min(top_k, *(len(checkpoint.classes) for checkpoint in checkpoints)),
            max(int(getattr(checkpoint.model, "part_count", 0)) for checkpoint in checkpoints),
            columns=BOX_COLUMNS if boxes else (),
        )
        self.rows = [[*csv_columns(self._layout), *(["weights"] if self._several else []), "picture"]]

    def add(self, done: _Done, picture: str) -> None:
        """The lines of an image; one that failed has one."""
        failure = done.photo.failure
        if failure:
            more = row_columns(done.photo.found, None)
            self._add(Row(done.photo.found.name, failure.status, failure.error, more=more), "", picture)
        for each in done.explained:
            self._add(_row(done.photo, each.explanation, self._layout.top_k), each.label, picture)

    def _add(self, row: Row, label: str, picture: str) -> None:
        cells = csv_cells(row, self._layout)
        self.rows.append([*cells, *([label] if self._several else []), picture])


def _row(photo: _Photo, explanation: Explanation, top_k: int) -> Row:
    """Boxes are pixels of the image as it is, not as it was kept."""
    width, height = photo.size or explanation.image.size
    x, y = width / explanation.image.width, height / explanation.image.height
    placed = photo.placed
    left, top = placed.region[:2] if placed else (0, 0)
    boxes = [
        None if box is None else (left + box[0] * x, top + box[1] * y, left + box[2] * x, top + box[3] * y)
        for box in (explanation.box, *explanation.parts)
    ]
    width, height = placed.size if placed else (width, height)
    return Row(
        path=photo.found.name,
        width=width,
        height=height,
        labels=tuple(label for label, _ in explanation.top[:top_k]),
        probs=tuple(prob for _, prob in explanation.top[:top_k]),
        box=boxes[0],
        parts=tuple(box for box in boxes[1:] if box),
        more=row_columns(photo.found, placed),
    )


def _name(found: Found) -> str:
    """What a picture is of: the image, or a box of it."""
    root, ending = os.path.splitext(found.name)
    return f"{root}-{found.path.box.id}{ending}" if isinstance(found.path, Region) else found.name


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
    if len(explained) > 1:
        return draw_comparison(explained, title)
    return (draw_strip if page == "strip" else render)(explained[0].explanation, title=title)
