"""Boxes that somebody else has found, in MegaDetector JSON, COCO JSON or CSV -> a row for each.

A box is an image of its own (``Region``), as a frame of a video is: whoever reads it gets the part of the
file that the box shows. Boxes are of the upright image, as MegaDetector opens it. No torch here: decoding
workers import this.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from fgvc_cli.errors import EXIT_USAGE, FgvcError, counted
from fgvc_cli.sources.frames import Frame
from fgvc_cli.sources.stored import CannotRead, Found, Lost, Stored

Edges = tuple[float, float, float, float]
"""x1, y1, x2, y2; ends exclusive."""

EDGE_COLUMNS = ("x1", "y1", "x2", "y2")
"""Of a box in a table."""
_NONE: Edges = (math.nan,) * 4
_FORMS = "MegaDetector JSON, COCO JSON, or a CSV with the columns path,x1,y1,x2,y2"
_ABSOLUTE = re.compile("/|[A-Za-z]:/")
_CLIPPED_PX = 1.0
"""Detectors round: what reaches less beyond the image is not said to."""


class GivenBox(NamedTuple):
    """One box as a file gives it."""

    id: str
    """What tells it from the others of its image."""
    edges: Edges
    """Of the upright image; NaN where it is not four numbers."""
    relative: bool
    """``edges`` are fractions of the image's sides, not pixels."""
    label: str = ""
    """What the detector takes it for, or what somebody says it is."""
    score: float = math.nan
    """The detector's confidence, in [0, 1]."""
    frame: int | None = None
    """Of a video, the frame of the file; of an animation or pages, the number."""
    image: str = ""
    """How the file calls the image."""
    margin: float = 0.0
    """Fraction of its sides that is added on each side."""


class Placed(NamedTuple):
    """Where a box lies in an image of known size."""

    region: tuple[int, int, int, int]
    """What is cut: the box with its margin, whole pixels inside the image."""
    given: Edges
    """The box itself in pixels, clipped to the image."""
    size: tuple[int, int]
    """(width, height) of the upright image."""
    clipped: bool
    """The box reached beyond the image."""


@dataclass(frozen=True, slots=True)
class Region(Stored):
    """What a box shows of an image."""

    path: Path | Stored
    box: GivenBox

    def open(self) -> BinaryIO:
        """The bytes of the whole file."""
        return self.path.open() if isinstance(self.path, Stored) else open(self.path, "rb")

    def within(self, path: Path | Stored) -> Region:
        """The same box of an image that lies elsewhere."""
        return dataclasses.replace(self, path=path)

    def place(self, width: int, height: int) -> Placed:
        """Where it lies in the upright image.

        Raises:
            CannotRead: it is not four numbers, empty, or outside the image.
        """
        x1, y1, x2, y2 = self.box.edges
        said = " ".join(f"{edge:g}" for edge in self.box.edges)
        if not all(map(math.isfinite, self.box.edges)):
            raise CannotRead("bad_box", f"the box {self.box.id} is not four numbers")
        if x2 <= x1 or y2 <= y1:
            raise CannotRead("bad_box", f"the box {self.box.id} is empty: {said}")
        if self.box.relative:
            x1, y1, x2, y2 = x1 * width, y1 * height, x2 * width, y2 * height
        given = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        if given[2] <= given[0] or given[3] <= given[1]:
            of = "shares" if self.box.relative else "pixels"
            reason = f"the box {self.box.id} lies outside the image of {width} x {height}: {said} {of}"
            raise CannotRead("bad_box", reason)
        across, down = self.box.margin * (x2 - x1), self.box.margin * (y2 - y1)
        # Fractions of whole pixels come back with an error in the last digits.
        left = max(0, math.floor(x1 - across + 1e-3))
        top = max(0, math.floor(y1 - down + 1e-3))
        right = max(left + 1, min(width, math.ceil(x2 + across - 1e-3)))
        bottom = max(top + 1, min(height, math.ceil(y2 + down - 1e-3)))
        beyond = max(-x1, -y1, x2 - width, y2 - height)
        return Placed((left, top, right, bottom), given, (width, height), beyond > _CLIPPED_PX)

    def __str__(self) -> str:
        return f"{self.path} box {self.box.id}"


@dataclass(frozen=True, slots=True)
class NoBox(Lost):
    """An image of which a file has no box."""

    image: str = ""
    """How the file calls it, if it does."""


@dataclass(frozen=True)
class BoxChoice:
    """Which boxes of a file are taken, and how much round them."""

    conf: float = 0.0
    """Least score; a box without one is taken."""
    margin: float = 0.0
    """See ``GivenBox.margin``."""
    categories: tuple[str, ...] = ()
    """Names or ids; none: all."""


class Listed(NamedTuple):
    """What a file says of one image."""

    boxes: tuple[GivenBox, ...] = ()
    left_out: int = 0
    """Boxes that were not chosen."""
    failure: str = ""
    """Why the detector has none."""
    rate: float = 0.0
    """Frames per second, of a video."""
    image: str = ""
    """As the file writes it."""


@dataclass(frozen=True)
class BoxFile:
    """A file of boxes, in memory."""

    path: Path
    choice: BoxChoice
    images: dict[str, Listed]
    """Path with forward slashes, see ``_key`` -> what is said of it."""
    sha256: str
    kind: str
    """``megadetector``, ``coco`` or ``csv``."""
    stems: bool = False
    """The file names no endings, as a list of COCO results."""
    notes: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """What of it changes a row, as plain JSON values."""
        chosen = dataclasses.asdict(self.choice) | {"categories": sorted(self.choice.categories)}
        return {"sha256": self.sha256, **chosen}

    @property
    def count(self) -> int:
        """How many boxes there are."""
        return sum(len(listed.boxes) for listed in self.images.values())


def read_boxes(path: Path, choice: BoxChoice = BoxChoice()) -> BoxFile:
    """Read a file of boxes.

    MegaDetector JSON: ``bbox`` is x, y, width, height as fractions; COCO JSON, a whole data set or a list of
    results: the same in pixels; CSV: ``path,x1,y1,x2,y2`` and perhaps ``id``, ``score``, ``category`` or
    ``label``, fractions where no number of the file is above 1, else pixels.

    Raises:
        FgvcError: it cannot be read or is none of these; a category that no box has; an id twice.
    """
    try:
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        if path.suffix.lower() in (".csv", ".tsv"):
            kind, found = "csv", _read_csv(path)
        else:
            kind, found = _read_json(path)
    except OSError as error:
        raise FgvcError(f"Cannot read the boxes in {path}: {error.strerror or error}.") from error
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise FgvcError(f"{path} is no file of boxes: {error}.", f"Expected {_FORMS}.") from error
    chosen = found.choose(path, choice)
    count, left_out = (
        sum(n) for n in zip(*((len(i.boxes), i.left_out) for i in chosen.values()), strict=True)
    )
    failed = sum(bool(listed.failure) for listed in chosen.values())
    note = f"{path.name}: {counted(count, 'box', 'boxes')} of {counted(len(chosen), 'image')}"
    note += f", {left_out:,} more not chosen" if left_out else ""
    note += f"; the detector failed on {failed:,}" if failed else ""
    notes = (f"{note}.", *found.notes)
    return BoxFile(path, choice, chosen, sha256, kind, found.stems, notes)


class AsksForBoxes(Protocol):
    """The options of a command that takes boxes (``command.BoxOptions``)."""

    @property
    def boxes(self) -> Path | str | None: ...
    @property
    def box_conf(self) -> float | None: ...
    @property
    def box_margin(self) -> float | None: ...
    @property
    def box_category(self) -> tuple[str, ...]: ...


def open_boxes(asked: AsksForBoxes) -> BoxFile | None:
    """The boxes that a command is to look at; None where it looks at whole images.

    Raises:
        FgvcError: see ``read_boxes``.
    """
    if asked.boxes is None:
        return None
    choice = BoxChoice(asked.box_conf or 0.0, asked.box_margin or 0.0, tuple(asked.box_category))
    return read_boxes(Path(asked.boxes), choice)


def _key(name: str, stem: bool = False) -> str:
    """A path as paths are compared: forward slashes, no steps that lead nowhere, one Unicode form."""
    text = unicodedata.normalize("NFC", name.replace("\\", "/"))
    text = text if "://" in text else posixpath.normpath(text)
    if stem:
        folder, base = posixpath.split(posixpath.splitext(text)[0])
        text = posixpath.join(folder, base.lstrip("0") or "0" if base.isdecimal() else base)
    return text


@dataclass
class _Found:
    """What a reader gathers."""

    boxes: dict[str, list[GivenBox]] = field(default_factory=dict)
    about: dict[str, Listed] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Id of a category -> its name."""
    notes: list[str] = field(default_factory=list)
    stems: bool = False

    def boxes_of(self, name: str) -> tuple[list[GivenBox], str]:
        """Where the boxes of an image go, and its key."""
        key = _key(name, self.stems)
        self.about.setdefault(key, Listed(image=name))
        return self.boxes.setdefault(key, []), key

    def choose(self, path: Path, choice: BoxChoice) -> dict[str, Listed]:
        """The boxes that are asked for.

        Raises:
            FgvcError: a category that no box has; an id twice; nothing at all.
        """
        if not self.boxes:
            raise FgvcError(f"{path} names no image.", f"Expected {_FORMS}.")
        known = {**{name: name for name in self.names.values()}, **self.names}
        known |= {box.label: box.label for boxes in self.boxes.values() for box in boxes if box.label}
        low = {name.lower(): label for name, label in known.items()}
        for name in choice.categories:
            if name.lower() not in low:
                have = ", ".join(dict.fromkeys(known.values())) or "none"
                raise FgvcError(f"{path} has no category {name!r}; it has {have}.", None, EXIT_USAGE)
        wanted = {low[name.lower()] for name in choice.categories}
        chosen = {}
        for image, boxes in self.boxes.items():
            twice = [one for one, count in Counter(box.id for box in boxes).items() if count > 1]
            if twice:
                raise FgvcError(f"{path}: the id {twice[0]} is there twice for {image}.", "Number its boxes.")
            taken = tuple(
                box._replace(margin=choice.margin)
                for box in boxes
                if not box.score < choice.conf and (not wanted or box.label in wanted)
            )
            chosen[image] = self.about[image]._replace(boxes=taken, left_out=len(boxes) - len(taken))
        return chosen


def read_edges(cells: Sequence[str], where: str) -> Edges | None:
    """The four cells of a box in a table; None where all are empty.

    Args:
        where: the file and the line, for people.

    Raises:
        FgvcError: they are not four numbers.
    """
    if not any(cells):
        return None
    try:
        x1, y1, x2, y2 = (float(cell) for cell in cells)
    except ValueError:
        message = f"{where}: {','.join(cells)!r} is no box x1,y1,x2,y2."
        raise FgvcError(message, "Leave all four empty for an image without a box.") from None
    return x1, y1, x2, y2


def are_fractions(path: Path, boxes: Iterable[Edges | None]) -> bool:
    """Whether the boxes of a table are fractions of their images' sides, not pixels: no number is above 1.

    Raises:
        FgvcError: the largest is neither.
    """
    most = max((edge for edges in boxes for edge in edges or () if math.isfinite(edge)), default=-math.inf)
    if 1 < most <= 2:
        raise FgvcError(
            f"{path}: the largest number of a box is {most:g}: too small for pixels, more than a fraction.",
            "Write all in pixels, or all as fractions of the sides, 1 at most.",
        )
    return most <= 1


def _edges(values: Any, *, sides: bool) -> Edges:
    """Four numbers, x y width height where ``sides``; NaN for anything else."""
    try:
        x1, y1, x2, y2 = (float(value) for value in values)
    except (TypeError, ValueError):
        return _NONE
    return (x1, y1, x1 + x2, y1 + y2) if sides else (x1, y1, x2, y2)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def load_json(path: Path) -> Any:
    """A JSON file, whatever it holds."""
    with path.open(encoding="utf-8-sig") as file:
        return json.load(file)


def _read_json(path: Path) -> tuple[str, _Found]:
    document = load_json(path)
    wrong = FgvcError(f"{path} is no file of boxes that is known.", f"Expected {_FORMS}.")
    try:
        if isinstance(document, list):
            return "coco", _read_results(document)
        if isinstance(document, dict) and isinstance(document.get("annotations"), list):
            return "coco", _read_coco(document)
        if isinstance(document, dict) and isinstance(document.get("images"), list):
            return "megadetector", _read_megadetector(document)
    except (KeyError, TypeError, AttributeError) as error:
        wrong.message = f"{path} is no file of boxes that is known: {type(error).__name__} {error}."
        raise wrong from error
    raise wrong


def _read_megadetector(document: Mapping[str, Any]) -> _Found:
    """The format of MegaDetector's batches, 1.0 to 1.5, and of its videos."""
    found = _Found(names={str(k): str(v) for k, v in document.get("detection_categories", {}).items()})
    for image in document["images"]:
        boxes, key = found.boxes_of(str(image["file"]))
        start = len(boxes)
        for number, one in enumerate(image.get("detections") or (), start):
            category, frame = str(one.get("category", "")), one.get("frame_number")
            box = GivenBox(
                id=str(number),
                edges=_edges(one.get("bbox"), sides=True),
                relative=True,
                label=found.names.get(category, category),
                score=_number(one.get("conf")),
                frame=None if frame is None else int(frame),
                image=str(image["file"]),
            )
            boxes.append(box)
        rate = _number(image.get("frame_rate") or 0)
        found.about[key] = found.about[key]._replace(failure=str(image.get("failure") or ""), rate=rate)
    return found


def _read_coco(document: Mapping[str, Any]) -> _Found:
    found = _Found(names={str(each["id"]): str(each["name"]) for each in document.get("categories", ())})
    name_of = {image["id"]: str(image["file_name"]) for image in document["images"]}
    for name in name_of.values():
        found.boxes_of(name)
    crowds = lost = 0
    for one in document["annotations"]:
        image = name_of.get(one["image_id"])
        crowds += bool(one.get("iscrowd"))
        lost += image is None
        if image is not None and not one.get("iscrowd"):
            boxes, _ = found.boxes_of(image)
            boxes.append(_coco_box(one, found.names, len(boxes), image))
    if crowds:
        found.notes.append(f"{counted(crowds, 'box', 'boxes')} of crowds left out.")
    if lost:
        found.notes.append(f"{counted(lost, 'box', 'boxes')} of images that the file does not list left out.")
    return found


def _coco_box(one: Mapping[str, Any], names: Mapping[str, str], number: int, image: str) -> GivenBox:
    category = str(one.get("category_id", ""))
    return GivenBox(
        id=str(one.get("id", number)),
        edges=_edges(one.get("bbox"), sides=True),
        relative=False,
        label=names.get(category, category),
        score=_number(one.get("score")),
        image=image,
    )


def _read_results(results: list[Any]) -> _Found:
    """A list of COCO results, which knows images by number or name."""
    found = _Found(stems=not all("file_name" in one for one in results))
    for one in results:
        name = str(one["image_id"] if found.stems else one["file_name"])
        boxes, _ = found.boxes_of(name)
        boxes.append(_coco_box(one, {}, len(boxes), name))
    return found


def _read_csv(path: Path) -> _Found:
    found, rows = _Found(), []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        columns = [name.strip().lower() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        lacking = [name for name in ("path", *EDGE_COLUMNS) if name not in columns]
        if lacking:
            message = f"{path} line 1: no column {lacking[0]} in {','.join(columns)!r}."
            raise FgvcError(message, "Expected path,x1,y1,x2,y2 and perhaps id,score,category.")
        for row in reader:
            cells = [(row[name] or "").strip() for name in EDGE_COLUMNS]
            rows.append((row, read_edges(cells, f"{path} line {reader.line_num}")))
    relative = are_fractions(path, (edges for _, edges in rows))
    for row, edges in rows:
        # A review of fgvc, whose cells are no formulas.
        name = (row["path"] or "").removeprefix("'")
        boxes, _ = found.boxes_of(name)
        if edges is None:
            continue
        label = (row.get("category") or row.get("label") or "").strip()
        one = (row.get("id") or row.get("box_id") or "").strip() or str(len(boxes))
        score = _number(row.get("score") or row.get("conf"))
        boxes.append(GivenBox(one, edges, relative, label, score, image=name))
    return found


class BoxMatch:
    """Which boxes are of which image: the paths in a file of boxes, and those of the images.

    A path of the file is one of an image where it is its name, its absolute path, or its path from the
    folder of the file or the current one. Else where one of the two ends with the other, or both are absolute
    and end with the same folder and name, and no other image or path does so: a detector may have run in
    another folder, or on another machine. Of several, the one that shares most with the image's absolute path
    counts.

    Args:
        file: the boxes.
        images: all of them, walked once here; in any order.

    Raises:
        FgvcError: no image at all has an entry.
    """

    def __init__(self, file: BoxFile, images: Iterable[Found]):
        self.file = file
        folders = (os.path.abspath(file.path.parent), os.getcwd())
        self._folders = tuple(f"{_key(folder).rstrip('/')}/" for folder in folders)
        self._by_base: dict[str, list[str]] = {}
        for key in file.images:
            self._by_base.setdefault(posixpath.basename(key), []).append(key)
        self._named: set[str] = set()
        """Keys that are an image's own path."""
        self._ends: Counter[str] = Counter()
        """Keys that images may mean by their ends -> how many."""
        self.lines: list[str] = []
        self._learn(images)

    def _learn(self, images: Iterable[Found]) -> None:
        total, last, first = 0, "", ""
        unlisted: list[str] = []
        several: list[str] = []
        unlisted_count = several_count = 0
        meant: dict[str, str] = {}
        for found in images:
            if isinstance(_whole(found), Frame) and (key := _key(found.name)) in self.file.images:
                self._named.add(key)
                continue
            name = _file_name(found)
            if name == last:
                continue
            last, total, first = name, total + 1, first or name
            keys, own = self._keys(found)
            if own:
                self._named.update(keys)
                several_count += len(keys) > 1
                several += [name] if len(keys) > 1 and not several else []
            elif len(keys) == 1:
                self._ends[keys[0]] += 1
                meant.setdefault(keys[0], name)
            elif keys:
                several_count, several = several_count + 1, several or [name]
            else:
                unlisted_count, unlisted = unlisted_count + 1, unlisted or [name]
        for key, count in self._ends.items():
            if key in self._named:
                unlisted_count, unlisted = unlisted_count + count, unlisted or [meant[key]]
            elif count > 1:
                several_count, several = several_count + count, several or [meant[key]]
        file = self.file.path.name
        if total and not self._named and not self._ends:
            raise FgvcError(
                f"None of the {counted(total, 'image')} is named in {file}: it names "
                f"{next(iter(self.file.images))}, an image is {first}.",
                "Paths in it start at the folder of images or its own, or are absolute.",
            )
        if unlisted:
            self.lines.append(
                f"{counted(unlisted_count, 'image')} not in {file}, first {unlisted[0]}: no_box."
            )
        if several:
            self.lines.append(
                f"{counted(several_count, 'image')} may be one of several in {file}, first {several[0]}: "
                "no_box. Write longer paths, or give the folder that they start at."
            )
        used = self._named | {key for key, count in self._ends.items() if count}
        if unused := [key for key in self.file.images if key not in used]:
            boxes = sum(len(self.file.images[key].boxes) for key in unused)
            self.lines.append(
                f"{counted(len(unused), 'image')} of {file} with {counted(boxes, 'box', 'boxes')} not among "
                f"the images, first {unused[0]}."
            )

    def split(self, found: Found) -> Iterator[Found]:
        """The boxes of an image as images of their own; one without a box is one that says so."""
        if isinstance(found.path, Lost):
            yield found
            return
        listed, why = self._listed(found)
        boxes = self._of_frame(found, listed)
        if not boxes:
            why = why or self._why(listed)
            yield Found(NoBox(str(found.path), "no_box", why, listed.image), found.name)
        for box in boxes:
            yield Found(Region(found.path, box), found.name)

    def _listed(self, found: Found) -> tuple[Listed, str]:
        """What the file says of an image, and where it says nothing, why."""
        if isinstance(found.path, Frame) and (listed := self.file.images.get(_key(found.name))):
            return listed, ""
        keys, own = self._keys(found)
        if not keys:
            return Listed(), "the file of boxes does not name it"
        if len(keys) > 1 or (not own and self._ends[keys[0]] > 1):
            return Listed(), f"the file of boxes may mean another image: {', '.join(keys[:3])}"
        if not own and keys[0] in self._named:
            return Listed(), "the file of boxes does not name it"
        return self.file.images[keys[0]], ""

    def _why(self, listed: Listed) -> str:
        if listed.failure:
            return f"the detector failed: {' '.join(listed.failure.split())}"[:200]
        if listed.boxes:
            return "no box is of this frame"
        if listed.left_out:
            return f"{counted(listed.left_out, 'box', 'boxes')}, none of the score and category asked for"
        return "the file of boxes has none of it"

    def _of_frame(self, found: Found, listed: Listed) -> tuple[GivenBox, ...]:
        """The boxes of an image, of several frames those of its own: of a video those of the nearest one that
        the detector looked at; a box that names no frame is of the first."""
        frame = found.path if isinstance(found.path, Frame) else None
        if frame is None or _key(found.name) in self.file.images:
            return tuple(box for box in listed.boxes if not box.frame)
        if not frame.every_s or not listed.rate > 0:
            return tuple(box for box in listed.boxes if (box.frame or 0) == frame.number)
        apart = {box.frame or 0: (box.frame or 0) / listed.rate - frame.second for box in listed.boxes}
        near = [n for n, seconds in apart.items() if -frame.every_s / 2 <= seconds < frame.every_s / 2]
        best = min(near, key=lambda n: (abs(apart[n]), n), default=None)
        return tuple(box for box in listed.boxes if (box.frame or 0) == best)

    def _keys(self, found: Found) -> tuple[list[str], bool]:
        """The entries that an image may have, several where it cannot be told; and whether they are its own
        path in full."""
        stems, whole = self.file.stems, _whole(found)
        name = _key(_file_name(found), stems)
        path = whole.path if isinstance(whole, Frame) else whole
        absolute = _key(os.path.abspath(path), stems) if isinstance(path, Path) else name
        below = [absolute.removeprefix(f) for f in self._folders if absolute.startswith(f)]
        own = [key for key in dict.fromkeys((name, absolute, *below)) if key in self.file.images]
        if own:
            return own, True
        ends = [
            key
            for key in self._by_base.get(posixpath.basename(name), ())
            if key.endswith(f"/{name}") or absolute.endswith(f"/{key}") or _both_moved(name, key)
        ]
        shared = {key: _shared_steps(key, absolute) for key in ends}
        most = max(shared.values(), default=0)
        return [key for key, steps in shared.items() if steps == most], False


def _both_moved(name: str, key: str) -> bool:
    """Whether two absolute paths, of a list and of the file, may be of one file on two machines: they share
    its name and folder."""
    return name.startswith("/") and _ABSOLUTE.match(key) is not None and _shared_steps(name, key) > 1


def _shared_steps(one: str, other: str) -> int:
    """How many names two paths share at their ends."""
    steps = zip(reversed(one.split("/")), reversed(other.split("/")), strict=False)
    return next((n for n, (a, b) in enumerate(steps) if a != b), min(one.count("/"), other.count("/")) + 1)


def _whole(found: Found) -> Path | Stored:
    return found.path.path if isinstance(found.path, Region) else found.path


def _file_name(found: Found) -> str:
    """Of a frame, the name of its file."""
    return re.sub(r"#\d+$", "", found.name) if isinstance(_whole(found), Frame) else found.name


def each_box(images: Iterable[Found], match: BoxMatch) -> Iterator[Found]:
    """A row for each box of each image."""
    for found in images:
        yield from match.split(found)
