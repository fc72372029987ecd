"""Rows for the programs that read detections: MegaDetector JSON (Timelapse), COCO JSON, Label Studio.

A row is a box of its image: the one that was given, else the model's object box, else the whole image. These
files are only written; each says less than a row.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from fgvc_cli import __version__
from fgvc_cli.data.geometry import Box
from fgvc_cli.errors import FgvcError
from fgvc_cli.formats.rows import TRY_AGAIN, UNKNOWN, Block, FileSink, Row, RunInfo, as_text, has_failed
from fgvc_cli.sources.boxes import BoxFile, load_json, read_boxes

OBJECT = "object"
"""Category of a box that no detector has named."""
DIGITS = 4
"""Of probabilities and of fractions of the image, as MegaDetector writes them."""
MD_FORMAT = "1.4"


def box_of(row: Row) -> Box:
    """The box that a row with a prediction is about, pixels of the upright image."""
    given = row.more.get("given_box")
    if isinstance(given, tuple):
        return given
    return row.box or (0.0, 0.0, float(row.width or 0), float(row.height or 0))


def as_sides(box: Box, across: float = 1.0, down: float = 1.0, digits: int = 2) -> list[float]:
    """xyxy -> x, y, width, height, over the lengths given."""
    x1, y1, x2, y2 = box[0] / across, box[1] / down, box[2] / across, box[3] / down
    return [round(side, digits) for side in (x1, y1, x2 - x1, y2 - y1)]


class _ImagesSink(FileSink):
    """A file that is about images: gets the rows of each together."""

    def _begin(self, info: RunInfo) -> None:
        self._info = info
        self._rows: list[Row] = []
        self._given = self._open_given()
        self._about = {"fgvc_version": __version__, "weights_sha256": info.weights_sha256}
        self._separator = "\n"
        self._start()

    def _open_given(self) -> BoxFile | None:
        """The boxes of the run, if it had any.

        Raises:
            FgvcError: they are not there any more, or others are.
        """
        settings = self._info.settings.get("boxes")
        if not settings or not self.origin:
            return None
        path = Path(self.origin.working_folder) / self.origin.boxes
        boxes = read_boxes(path) if path.is_file() else None
        if boxes is None or boxes.sha256 != settings["sha256"]:
            what = "has changed" if boxes else "is gone"
            message = f"Could not write {self._file.out}: {path}, whose boxes it is about, {what}."
            raise FgvcError(message, f"Put it back. {TRY_AGAIN}")
        return boxes

    def _write(self, block: Block) -> None:
        for row in block.rows(self._info):
            if self._rows and self._key(row) != self._key(self._rows[0]):
                self._flush()
            self._rows.append(row)

    def _key(self, row: Row) -> str:
        """What the rows of an image have in common."""
        return row.path

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self._image(rows)

    def _close(self, *, complete: bool) -> None:
        if complete and hasattr(self, "_info"):
            self._flush()
            self._end()

    def _put(self, text: str) -> None:
        self._stream.write(text.encode(errors="backslashreplace"))

    def _put_item(self, item: Any) -> None:
        self._put(self._separator + _dump(item))
        self._separator = ",\n"

    @abstractmethod
    def _start(self) -> None: ...

    @abstractmethod
    def _image(self, rows: Sequence[Row]) -> None: ...

    @abstractmethod
    def _end(self) -> None: ...


def _dump(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False)


class MegaDetectorSink(_ImagesSink):
    """MegaDetector's batch output, as Timelapse reads it: ``classifications`` of each detection.

    Of a run over such a file it is that file, all its images and detections as they were, with the
    classifications of those that were looked at and are not ``unknown``. Else its detections are the boxes of
    the rows, and one without a score has the ``conf`` 1.
    """

    def _start(self) -> None:
        self._original: dict[str, Any] = {}
        if self._given and self._given.kind == "megadetector":
            self._original = load_json(self._given.path)
        self._entries = {str(image["file"]): image for image in self._original.get("images", ())}
        categories = dict(self._original.get("classification_categories") or {})
        ids = {str(name): str(key) for key, name in categories.items()}
        free = 1 + max((int(key) for key in categories if str(key).isdecimal()), default=-1)
        new = [name for name in self._info.classes if name not in ids]
        self._ids = ids | {name: str(free + i) for i, name in enumerate(new)}
        self._categories = categories | {self._ids[name]: name for name in self._info.classes}
        self._labels: dict[str, str] = {}
        """Name of a detector's category -> its id, where the file is not MegaDetector's."""
        self._put('{"images": [')

    def _key(self, row: Row) -> str:
        """The frames of a video are one entry."""
        given = str(row.more.get("given_path", ""))
        return given if given in self._entries else row.path

    def _image(self, rows: Sequence[Row]) -> None:
        entry = self._entries.pop(str(rows[0].more.get("given_path", "")), None)
        for row in rows if entry else ():
            if row.ok and row.more.get("box_id") and row.status != UNKNOWN:
                entry["detections"][int(str(row.more["box_id"]))].update(self._classified(row))
        self._put_item(entry or self._own_entry(rows))

    def _own_entry(self, rows: Sequence[Row]) -> dict[str, Any]:
        failed = [row for row in rows if has_failed(row.status)]
        if len(failed) == len(rows):
            reason = f"{failed[0].status}: {as_text(failed[0].error)}"
            return {"file": as_text(rows[0].path), "failure": reason, "detections": None}
        return {"file": as_text(rows[0].path), "detections": [self._detection(row) for row in rows if row.ok]}

    def _detection(self, row: Row) -> dict[str, Any]:
        label, score = str(row.more.get("given_label") or OBJECT), row.more.get("given_score")
        return {
            "category": self._labels.setdefault(label, str(len(self._labels) + 1)),
            "conf": round(score, DIGITS) if isinstance(score, float) else 1.0,
            "bbox": as_sides(box_of(row), float(row.width or 1), float(row.height or 1), DIGITS),
            **(self._classified(row) if row.status != UNKNOWN else {}),
        }

    def _classified(self, row: Row) -> dict[str, Any]:
        guesses = zip(row.labels, row.probs, strict=True)
        return {"classifications": [[self._ids[label], round(prob, DIGITS)] for label, prob in guesses]}

    def _end(self) -> None:
        for entry in self._entries.values():  # images that this run was not about
            self._put_item(entry)
        detector = self._given.path.name if self._given else "fgvc"
        about = {"format_version": MD_FORMAT, "detector": detector} | self._original.get("info", {})
        about |= {"classifier": self._info.model, **self._about}
        labels = self._labels or {OBJECT: "1"}
        own = {"detection_categories": {number: label for label, number in labels.items()}}
        rest = own | {name: value for name, value in self._original.items() if name != "images"}
        rest |= {"classification_categories": self._categories, "info": about}
        self._put(f"\n],\n{_dump(rest)[1:]}\n")


class CocoSink(_ImagesSink):
    """A COCO data set: each row with a prediction is an annotation, its ``score`` the probability.

    Ids of images and categories are those of the COCO file that the boxes came from, where there is one:
    ``annotations`` alone is then the list of results that COCO's tools compare with it.
    """

    def _start(self) -> None:
        original = load_json(self._given.path) if self._given and self._given.kind == "coco" else {}
        original = original if isinstance(original, dict) else {}
        self._image_ids = {str(each["file_name"]): each["id"] for each in original.get("images", ())}
        ids = {str(each["name"]): int(each["id"]) for each in original.get("categories", ())}
        free = 1 + max(ids.values(), default=0)
        new = [name for name in self._info.classes if name not in ids]
        self._ids = ids | {name: free + i for i, name in enumerate(new)}
        numbers = [number for number in self._image_ids.values() if isinstance(number, int)]
        self._next_image, self._count = 1 + max(numbers, default=0), 0
        self._images: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _end
        self._put('{"annotations": [')

    def _image(self, rows: Sequence[Row]) -> None:
        number = self._image_ids.get(str(rows[0].more.get("given_path", "")))
        if number is None:
            number, self._next_image = self._next_image, self._next_image + 1
        first = next((row for row in rows if row.ok), rows[0])
        about = {"id": number, "file_name": as_text(first.path)}
        about |= {"width": first.width or 0, "height": first.height or 0, "status": first.status}
        before = ",\n" if self._images.tell() else ""
        self._images.write(f"{before}{_dump(about)}".encode(errors="backslashreplace"))
        for row in rows:
            if row.ok:
                self._count += 1
                self._put_item(self._annotation(row, number))

    def _annotation(self, row: Row, image: Any) -> dict[str, Any]:
        sides = as_sides(box_of(row))
        return {
            "id": self._count,
            "image_id": image,
            "category_id": self._ids[row.labels[0]],
            "bbox": sides,
            "area": round(sides[2] * sides[3], 2),
            "iscrowd": 0,
            "score": round(row.probs[0], 6),
            "box_id": row.more.get("box_id", ""),
            "status": row.status,
        }

    def _end(self) -> None:
        categories = [{"id": number, "name": name} for name, number in self._ids.items()]
        self._put('\n],\n"images": [\n')
        self._images.seek(0)
        while chunk := self._images.read(1 << 20):
            self._stream.write(chunk)
        self._images.close()
        self._put(f'\n],\n"categories": {_dump(categories)},\n"info": {_dump(self._about)}}}\n')


class LabelStudioSink(_ImagesSink):
    """Tasks for Label Studio: rectangles as predictions, in percent of the image.

    Its labelling interface has a ``RectangleLabels`` called ``label`` on an ``Image`` called ``image``.
    """

    def _start(self) -> None:
        self._put("[")

    def _image(self, rows: Sequence[Row]) -> None:
        found = [self._rectangle(row, number) for number, row in enumerate(rows) if row.ok]
        task: dict[str, Any] = {"data": {"image": as_text(rows[0].path)}}
        bad = next((row for row in rows if not row.ok), None)
        if bad is not None:
            task["meta"] = {"status": bad.status, "error": as_text(bad.error)}
        if found:
            version = f"{self._info.model} {self._info.weights_sha256[:12]}"
            score = min(one["score"] for one in found)
            task["predictions"] = [{"model_version": version, "score": score, "result": found}]
        self._put_item(task)

    def _rectangle(self, row: Row, number: int) -> dict[str, Any]:
        across, down = float(row.width or 1) / 100, float(row.height or 1) / 100
        sides = as_sides(box_of(row), across, down, DIGITS)
        value = dict(zip(("x", "y", "width", "height"), sides, strict=True))
        name = f"{as_text(row.path)}\0{row.more.get('box_id', number)}"
        return {
            "id": hashlib.sha256(name.encode()).hexdigest()[:10],
            "type": "rectanglelabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": row.width,
            "original_height": row.height,
            "image_rotation": 0,
            "value": value | {"rotation": 0, "rectanglelabels": [row.labels[0]]},
            "score": round(row.probs[0], 6),
        }

    def _end(self) -> None:
        self._put("\n]\n")
