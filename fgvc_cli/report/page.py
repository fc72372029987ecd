"""Predictions, and what the images really show -> one HTML page that asks nothing of any network, and cannot.

Its Content-Security-Policy allows the style sheet and the script below, by their hashes, and pictures that
lie in the file itself; there is no address that it may read from or send to. Data come as base64, so that
no name of a file or class can be read as HTML; the script only ever sets text.

Legend: N rows, k predictions per row.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import html
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import IO, Annotated, Any

import h5py
import numpy as np
from PIL import Image
from pydantic import Field

from fgvc_cli import __version__
from fgvc_cli.charts.drawing import color_table
from fgvc_cli.command import MessageOptions, command, options
from fgvc_cli.data.geometry import input_geometry
from fgvc_cli.data.label_files import is_label_file, read_listing
from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.data.listing import first_names
from fgvc_cli.data.names import same_form
from fgvc_cli.errors import EXIT_USAGE, FgvcError, counted
from fgvc_cli.files import AtomicFile
from fgvc_cli.formats.h5 import open_h5, reading
from fgvc_cli.formats.outputs import read_table
from fgvc_cli.formats.rows import GIVEN_BOX, TOLD_ABOVE, Table, as_text
from fgvc_cli.report.pictures import (
    Picture,
    PictureMaker,
    choose_rows,
    given_boxes,
    recorded_images,
    seen_region,
)
from fgvc_cli.report.review import (
    REVIEWED,
    Picked,
    Reviewed,
    ReviewServer,
    box_ids,
    check_reviewable,
    image_folder,
    image_path,
    pick_rows,
    review_header,
    serve,
)
from fgvc_cli.sources.boxes import GivenBox
from fgvc_cli.sources.stored import is_image_name


@dataclass(frozen=True)
class Truth:
    """The true label sets of the rows; of a model of one class each, sets of one."""

    sets: tuple[frozenset[int] | None, ...]
    """N sets of numbers in ``classes``; None where it is not known."""
    classes: tuple[str, ...]
    """Those of the model first, then what only the labels have."""

    @property
    def known(self) -> np.ndarray:
        """(N,) bool: rows with a label, or a statement that they have none."""
        return np.array([labels is not None for labels in self.sets], bool)

    def wrong(self, table: Table) -> np.ndarray:
        """(N,) bool: rows with a prediction and a known truth that differ: in the best class, or of a
        multi-label model in any label."""
        told = told_sets(table)
        differs = (labels is not None and labels != own for labels, own in zip(self.sets, told, strict=True))
        return table.answered & np.fromiter(differs, bool, len(told))

    def columns(self) -> dict[str, np.ndarray]:
        """``truth_count`` (N,) int32, -1 where it is not known, and ``truth_labels`` int32, row after row."""
        counts = [-1 if labels is None else len(labels) for labels in self.sets]
        flat = [label for labels in self.sets for label in sorted(labels or ())]
        return {"truth_count": np.array(counts, np.int32), "truth_labels": np.array(flat, np.int32)}


def build_truth(table: Table, labels: Sequence[tuple[str, ...] | None]) -> Truth:
    """Labels as numbers, with a class of its own for each name that the model does not know."""
    classes = list(table.info.classes)
    # Compared in Unicode NFC: the same name may be written in two ways.
    number = {same_form(name): i for i, name in enumerate(classes)}
    for name in (name for names in labels for name in names or ()):
        if number.setdefault(same_form(name), len(classes)) == len(classes):
            classes.append(name)
    sets = (
        None if names is None else frozenset(number[same_form(name)] for name in names) for names in labels
    )
    return Truth(tuple(sets), tuple(classes))


def told_sets(table: Table) -> list[frozenset[int]]:
    """What each row tells: its best class, or of a multi-label model all labels above ``TOLD_ABOVE`` among
    the k; nothing without a prediction."""
    index, prob = table.rows.topk_index, table.rows.topk_prob
    if not table.info.multi_label:
        return [frozenset((best,)) if best >= 0 else frozenset() for best in index[:, 0].tolist()]
    told = (index >= 0) & (prob > TOLD_ABOVE)
    return [frozenset(row[mask].tolist()) for row, mask in zip(index, told, strict=True)]


def cut_rows(table: Table) -> int:
    """Rows of a multi-label model all of whose k labels are told, so that more may have been."""
    if not table.info.multi_label or table.info.top_k >= len(table.info.classes):
        return 0
    return int((table.rows.topk_prob[:, -1] > TOLD_ABOVE).sum())


def read_labels(
    path: Path,
    names: Sequence[str],
    *,
    boxes: Sequence[GivenBox | None] = (),
    images: str | None = None,
    multi_label: bool = False,
    on_note: Callable[[str], None] = lambda note: None,
) -> list[tuple[str, ...] | None]:
    """The labels of each row, None where they are not known. Paths are compared in Unicode NFC.

    Args:
        path: a CSV, JSONL or Parquet file with path and label, or a folder with one folder of images per
            class. Of a file, no image needs to be there.
        names: paths of the rows; relative to the folder, or to that of the file, or starting with it. A path
            of a file may lack the ending.
        boxes: what each row is of, where rows are of boxes. A file may label images, or boxes: by
            ``box_id``, or without that column by their edges, to a pixel.
        images: the folder that the rows' paths are relative to, where that is known: a file may write paths
            from its own folder, as a review does.
        multi_label: the file may have labels in place of label, with any number; else each row has one.
        on_note: gets one line where labels met no row, and one where a row's image has labels of other boxes.

    Raises:
        FgvcError: labels that cannot be read, or not one of them meets a row.
    """
    labels_of: dict[str, dict[GivenBox | None, tuple[str, ...]]] = {}
    by_id = True
    if path.is_file() and is_label_file(path):
        root = path.parent
        found, _ = read_listing(path)
        by_id = found.box_ids
        if found.multi_label and not multi_label:
            raise FgvcError(
                f"{path} has several labels per image, the predictions are of one class each.",
                "Give a column label, with one.",
            )
        by_labels = (
            (labels, entries) for split in found.images.values() for labels, entries in split.items()
        )
        for labels, entries in by_labels:
            for entry in entries:
                labels_of.setdefault(_key(entry.path), {})[entry.box] = labels
    else:
        root = path
        listed = load_labelled(path, for_training=False)
        examples = (example for split in listed.splits.values() for example in split)
        labels_of = {_key(example.path): {None: (listed.classes[example.label],)} for example in examples}
    prefixes = tuple(
        same_form(prefix) for prefix in (f"{root.as_posix()}/", f"{Path(os.path.abspath(root)).as_posix()}/")
    )
    folder = image_folder(images, root)
    met = [_find(same_form(name), labels_of, prefixes, same_form(image_path(folder, name))) for name in names]
    if not any(met):
        known = next(iter(labels_of), "nothing")
        raise FgvcError(
            f"{path} labels none of the {len(names):,} rows: it has {known!r}, the rows have {names[0]!r}.",
            "Write the paths in --labels as they are in the predictions.",
        )
    unmet = sorted(labels_of.keys() - set(met))
    if unmet:
        on_note(f"{len(unmet):,} of {len(labels_of):,} labels met no row ({first_names(unmet, 3)}).")
    result = [
        _labels_of(labels_of[key], box, by_id) if key else None
        for key, box in zip(met, boxes or itertools.repeat(None), strict=False)
    ]
    lost = [name for name, key, own in zip(names, met, result, strict=True) if key and own is None]
    if lost:
        rows = counted(len(lost), "row")
        on_note(f"{rows} of labelled images without a label of their own box, first {lost[0]}.")
    return result


def _labels_of(
    own: Mapping[GivenBox | None, tuple[str, ...]], box: GivenBox | None, by_id: bool
) -> tuple[str, ...] | None:
    """Of what is said of an image and its boxes what counts for a row; None is the whole image."""
    if box is None and None not in own:
        return next(iter(own.values())) if len(set(own.values())) == 1 else None
    if box is not None:
        for other, labels in own.items():
            if other and (other.id == box.id if by_id else _same_edges(other, box)):
                return labels
    return own.get(None)


def _same_edges(one: GivenBox, other: GivenBox) -> bool:
    pairs = zip(one.edges, other.edges, strict=True)
    return not one.relative and all(abs(a - b) <= SAME_PX for a, b in pairs)


def _key(image: str) -> str:
    return same_form(as_text(image))


def _find(name: str, labels_of: Mapping[str, object], prefixes: Sequence[str], whole: str) -> str | None:
    """The path in ``labels_of`` that a row's name means.

    Args:
        whole: the name from the folder of the labels, if that is known.
    """
    below = [whole, name, *(name[len(prefix) :] for prefix in prefixes if name.startswith(prefix))]
    without = [os.path.splitext(own)[0] for own in below if is_image_name(own)]
    return next((own for own in (*below, *without) if own in labels_of), None)


SAME_PX = 1.0
"""Detectors and tables round."""

ALIGN = 8
LEVEL = 6
TENTHS = 10
"""Boxes are whole tenths of a pixel: as exact as in a CSV, and they compress."""


def pack(header: dict[str, Any], columns: dict[str, np.ndarray]) -> bytes:
    """The block; ``header`` must be JSON."""
    pieces, described, at = [], {}, 0
    for name, values in columns.items():
        values = np.ascontiguousarray(values)
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        described[name] = {"type": values.dtype.name, "length": values.size, "at": at}
        data = little.tobytes()
        pieces.append(data + bytes(-len(data) % ALIGN))
        at += len(pieces[-1])
    head = json.dumps({**header, "columns": described}).encode()
    start = np.uint32(len(head)).astype("<u4").tobytes() + head
    start += bytes(-len(start) % ALIGN)
    return base64.b64encode(gzip.compress(b"".join([start, *pieces]), LEVEL, mtime=0))


def row_columns(table: Table, truth: Truth | None) -> dict[str, np.ndarray]:
    """The columns of all N rows.

    Args:
        truth: what the images show; None without labels.
    """
    rows = table.rows
    number = {status: i for i, status in enumerate(statuses(table))}
    columns = {
        "path": _texts(rows.path),
        "error": _texts(rows.error),
        "status": np.array([number[status] for status in rows.status], np.int32),
        "size": rows.size.astype(np.int32),
        "index": rows.topk_index.astype(np.int32),
        "prob": rows.topk_prob.astype(np.float32),
        "box": _tenths(rows.box),
        "parts": _tenths(rows.parts),
    }
    if GIVEN_BOX in rows.more:
        columns |= {"given": _tenths(np.asarray(rows.more[GIVEN_BOX])), "box_id": _texts(box_ids(table))}
    return columns | (truth.columns() if truth else {})


def statuses(table: Table) -> list[str]:
    """The words that the column ``status`` counts in."""
    return sorted(set(table.rows.status))


def picture_columns(table: Table, pictures: list[Picture]) -> dict[str, np.ndarray]:
    """The columns of all T pictures, in the order in which they are stored.

    ``picture_view`` (T, 4) is what of the image is shown, ``picture_input`` where the model's input lies, as
    ``box``.
    """
    px = table.info.preprocess.input_px
    inputs = []
    for picture in pictures:
        x, y, right, bottom = seen_region(table, picture.row)
        x1, y1, x2, y2 = input_geometry(right - x, bottom - y, table.info.preprocess).to_photo((0, 0, px, px))
        inputs.append((x + x1, y + y1, x + x2, y + y2))
    return {
        "picture_row": np.array([picture.row for picture in pictures], np.int32),
        "picture_cropped": np.array([picture.cropped for picture in pictures], np.uint8),
        "picture_view": np.array([picture.view for picture in pictures], np.int32).reshape(-1, 4),
        "picture_input": _tenths(np.array(inputs, np.float64).reshape(-1, 4)),
    }


def _texts(values: list[str]) -> np.ndarray:
    text = "\0".join(value.replace("\0", "\ufffd") for value in values)
    return np.frombuffer(text.encode(errors="backslashreplace"), np.uint8)


def _tenths(boxes: np.ndarray) -> np.ndarray:
    """Edges in pixels -> int32; -1 where there is no box."""
    return np.where(np.isnan(boxes), -1, np.round(boxes.astype(np.float64) * TENTHS)).astype(np.int32)


SCRIPTS = ("data", "select", "picture", "grid", "facets", "detail", "labels", "labelsets", "main")
"""Files of ``page/`` that become the one script, in order."""
REVIEW_SCRIPT = "review"
"""One more, before the last, of a page that is a desk."""
CHUNK_PICTURES = 250
"""Pictures per block of text; the browser takes apart only the blocks that it shows."""
# As explain.panels, which would bring torch with it.
BOX_EDGE = (6, 20, 38)
BOX_LINE = (0, 229, 255)
PART_LINES = ((255, 221, 51), (213, 94, 0), (60, 110, 255), (255, 255, 255))
MAP_PX = 32
"""Longest side of an attention map; finer ones are averaged down to it."""


@dataclass
class Written:
    """What a page holds."""

    pictures: int = 0
    cropped: int = 0
    """Pictures that show a stored crop, as the image was not at hand."""
    maps: int = 0


def write_page(
    stream: IO[bytes],
    table: Table,
    pictures: Iterable[Picture],
    *,
    title: str,
    truth: Truth | None = None,
    wanted: int = 0,
    numbers: Sequence[int] | None = None,
    review: dict[str, Any] | None = None,
) -> Written:
    """Write the page, picture by picture as they come, then the columns.

    Args:
        stream: UTF-8 goes into it.
        title: shown on top, as text.
        wanted: pictures that were to be made; the page says how many rows have none by choice.
        numbers: of the rows in the file, where the table holds some of them only.
        review: see ``review_header``; the page is then a desk, and may ask where it came from.
    """
    style = _read("page.css")
    names = [*SCRIPTS[:-1], *([REVIEW_SCRIPT] if review else []), SCRIPTS[-1]]
    script = "(() => {\n" + "".join(_read(f"{name}.js") for name in names) + "})();\n"
    before, after = _read("page.html").split("@DATA@")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; "
        "base-uri 'none'; form-action 'none'" + ("; connect-src 'self'" if review else "")
    )
    for name, text in (("@POLICY@", policy), ("@STYLE@", style), ("@TITLE@", html.escape(title))):
        before = before.replace(name, text)
    stream.write(before.encode(errors="backslashreplace"))
    written, made = Written(), list[Picture]()
    with _maps(table, numbers) as maps:
        lines = _lines(pictures, maps, written, made)
        while chunk := b"\n".join(line for line, _ in zip(lines, range(CHUNK_PICTURES), strict=False)):
            stream.write(b'<script type="text/plain" class="pictures">' + chunk + b"</script>\n")
    written.pictures, written.cropped = len(made), sum(picture.cropped for picture in made)
    header = _header(table, truth, title) | {"map": maps.size if maps and written.maps else None}
    header["review"] = review
    header["skipped"] = int(table.answered.sum()) - wanted
    columns = row_columns(table, truth) | picture_columns(table, made)
    stream.write(b'<script type="text/plain" id="rows">' + pack(header, columns) + b"</script>\n")
    stream.write(after.replace("@SCRIPT@", script).encode())
    return written


def _lines(
    pictures: Iterable[Picture],
    maps: MapReader | None,
    written: Written,
    made: list[Picture],
) -> Iterator[bytes]:
    """Each picture as base64, and behind a space its map; what it is goes into the list, without pixels."""
    for picture in pictures:
        made.append(replace(picture, webp=b""))
        line = base64.b64encode(picture.webp)
        if maps and (heat := maps.read(picture.row)):
            written.maps += 1
            line += b" " + base64.b64encode(heat)
        yield line


class MapReader:
    """The attention maps of a file as bytes.

    Args:
        maps: (N, h, w) in [0, 1], NaN where a row has none.
    """

    def __init__(self, table: Table, maps: h5py.Dataset | Picked):
        self._source = table.source
        self._maps = maps
        height, width = maps.shape[1:]
        factor = min(1.0, MAP_PX / max(height, width))
        self.size = max(1, round(width * factor)), max(1, round(height * factor))
        """(width, height) in the page."""

    def read(self, row: int) -> bytes | None:
        """255 is 1; None for a row without a map."""
        with reading(self._source):
            values = np.asarray(self._maps[row], np.float32)
        if np.isnan(values).any():
            return None
        grey = Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))
        return grey.resize(self.size, Image.Resampling.BOX).tobytes()


@contextlib.contextmanager
def _maps(table: Table, numbers: Sequence[int] | None = None) -> Iterator[MapReader | None]:
    if "attention" not in table.info.extras:
        yield None
        return
    with open_h5(table.source) as file:
        yield MapReader(table, _rows_of(file["attention"], numbers))


def _header(table: Table, truth: Truth | None, title: str) -> dict[str, Any]:
    rows, info = table.rows, table.info
    return {
        "title": title,
        "source": table.source.name,
        "model": info.model,
        "weights": info.weights_sha256[:12],
        "version": __version__,
        "rows": len(rows),
        "k": info.top_k,
        "chunk": CHUNK_PICTURES,
        "parts_per_row": info.parts,
        "classes": truth.classes if truth else info.classes,
        "known": len(info.classes),
        "several": info.multi_label,
        "told_above": TOLD_ABOVE,
        "cut": cut_rows(table),
        "statuses": statuses(table),
        "colors": base64.b64encode(color_table().tobytes()).decode(),
        "strokes": [_hex(color) for color in (BOX_EDGE, BOX_LINE, *PART_LINES)],
    }


def _hex(color: tuple[int, int, int]) -> str:
    return "#" + bytes(color).hex()


def _read(name: str) -> str:
    return (files("fgvc_cli.report") / "page" / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """A CSP source for exactly this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@options
class ReportOptions(MessageOptions):
    """What ``fgvc report`` is asked for."""

    predictions: Path
    """``.h5`` or ``.csv`` of ``fgvc predict``."""
    out: Path | None = None
    """The page to appear, ending in .html; None: ``<stem>.html`` in the current folder."""
    images: str | None = None
    """What the rows' paths are relative to, see ``PictureMaker``; None: what ``recorded_images`` finds, if
    anything."""
    labels: Path | None = None
    """See ``read_labels``."""
    thumbs: Annotated[int, Field(ge=0)] = 2000
    """Rows with a picture, at most."""
    thumb_px: Annotated[int, Field(ge=32, le=1024)] = 240
    """Longest side of a picture, pixels."""
    review: bool = False
    """Make the page a desk, on which people say what the rows show."""
    serve: bool = False
    """Show the desk from a loopback address until Ctrl-C, and write ``reviewed.csv`` beside the page."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Of ``serve``; 0 takes a free one."""
    only: Path | None = None
    """CSV with a column path: only these rows, in its order, as ``select`` writes it."""
    title: str | None = None
    """Of the page; None: the name of the file."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Threads that make pictures; 0 is one."""
    overwrite: bool = False
    """Replace the page if it is there."""


@dataclass(frozen=True)
class Report:
    """A page that was written."""

    path: Path
    bytes: int
    rows: int
    holds: Written


@command(ReportOptions)
def report(options: ReportOptions) -> Report:
    """Write the page of a prediction file; with ``serve``, show it until Ctrl-C.

    Raises:
        FgvcError: a page that cannot be written (found out first), predictions, images or labels that are not
            there or cannot be read; with ``serve``, a ``reviewed.csv`` that is of no review, or a taken port.
    """
    messages = options.speaker
    predictions, page = options.predictions, options.out or Path(f"{options.predictions.stem}.html")
    if page.suffix.lower() not in (".html", ".htm"):
        raise FgvcError(f"--out got {str(page)!r}, expected a name ending in .html.", None, EXIT_USAGE)
    with contextlib.ExitStack() as held, AtomicFile(page, overwrite=options.overwrite) as stream:
        table, numbers = read_table(predictions), None
        if options.only:
            table, numbers = pick_rows(table, options.only, messages.note)
        images = options.images or recorded_images(table)
        maker = PictureMaker(table, images, options.thumb_px, max(options.workers, 1))
        if options.thumbs:
            maker.check()
        review, server, truth = None, None, None
        if options.review or options.serve:
            check_reviewable(table)
            folder = image_folder(images, page.parent)
            review = review_header(table, folder, picked=options.only is not None)
            if options.serve:
                server = ReviewServer(page, Reviewed(page.with_name(REVIEWED), table, folder), options.port)
                held.callback(server.server_close)
        if options.labels:
            several = table.info.multi_label
            labels = read_labels(
                options.labels,
                table.rows.path,
                boxes=given_boxes(table),
                images=images,
                multi_label=several,
                on_note=messages.note,
            )
            truth = build_truth(table, labels)
        rows = choose_rows(table, options.thumbs, truth.wrong(table) if truth else None)
        with _crops(table, numbers) as crops:
            title = options.title or predictions.name
            pictures = maker.make(rows, crops)
            written = write_page(
                stream,
                table,
                pictures,
                title=title,
                truth=truth,
                wanted=len(rows),
                numbers=numbers,
                review=review,
            )
        size = stream.tell()
        held.pop_all()  # the server goes on
    _tell(messages.note, table, truth, maker, written, rows=rows, images=options.images)
    messages.note(f"page: {page}, {size / 1e6:,.1f} MB")
    if server is not None:
        serve(server, messages)
    elif review:
        messages.note(f"Open it in a browser; what it saves as {REVIEWED} belongs beside {page.name}.")
    return Report(page, size, len(table.rows), written)


@contextlib.contextmanager
def _crops(table: Table, numbers: Sequence[int] | None) -> Iterator[h5py.Dataset | Picked | None]:
    if "crop" not in table.info.extras:
        yield None
        return
    with open_h5(table.source) as file:
        yield _rows_of(file["crop"], numbers)


def _rows_of(data: h5py.Dataset, numbers: Sequence[int] | None) -> h5py.Dataset | Picked:
    return data if numbers is None else Picked(data, numbers)


def _tell(
    say: Callable[[str], None],
    table: Table,
    truth: Truth | None,
    maker: PictureMaker,
    written: Written,
    *,
    rows: list[int],
    images: str | None,
) -> None:
    """What the page holds, and what it lacks, each in a line."""

    answered = int(table.answered.sum())
    say(f"{len(table.rows):,} rows, {answered:,} with a prediction; {written.pictures:,} pictures.")
    if len(rows) < answered:
        first = "wrong and unsure ones" if truth else "unsure ones"
        say(f"--thumbs {len(rows):,} leaves {answered - len(rows):,} without a picture; {first} come first.")
    if maker.failures:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in maker.failures.most_common())
        instead = f"{written.cropped:,} show their crop instead" if written.cropped else "there are no crops"
        hint = "" if maker.images else f"{_gone(table)} --images FOLDER says where images are."
        say(f"{maker.failures.total():,} images could not be used ({reasons}); {instead}.{hint}")
    elif maker.images and maker.images != images and written.pictures:
        say(f"The images are those in {maker.images}, as {table.source.name} says.")
    if "attention" not in table.info.extras:
        lacks = "holds no attention maps"
        if table.source.suffix.lower() == ".parquet":
            lacks = "is shown without maps and crops"
        say(f"{table.source.name} {lacks}; fgvc predict --out preds.h5 --maps stores them.")
    if truth:
        labelled = table.answered & truth.known
        right = int((labelled & ~truth.wrong(table)).sum())
        count = int(labelled.sum())
        how = "have exactly their labels" if table.info.multi_label else "are right"
        share = f"{right / count:.1%} of {count:,} labelled rows {how}" if count else "No labelled row"
        unknown = len(truth.classes) - len(table.info.classes)
        say(f"{share}. Labels that are no class of the model: {unknown}." if unknown else f"{share}.")


def _gone(table: Table) -> str:
    """Where they were, if that is recorded: they are not there any more."""
    if table.origin is None:
        return ""
    sources = " ".join(table.origin.sources[:3]) + (" ..." if len(table.origin.sources) > 3 else "")
    return f" They were predicted from {sources} in {table.origin.working_folder}, and are not there now."
