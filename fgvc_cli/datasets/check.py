"""What is wrong with a labelled set: unreadable files, copies, leaks, bursts, contradictions, few images.

``check_set`` looks at all of it; ``look_before_training`` at what a training should know, in bounded time.
Exact and near duplicates are told by fingerprints of images, computed in processes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import multiprocessing
import os
import posixpath
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fgvc_cli.data.label_files import SPLIT_NAMES
from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.data.listing import SPLITS, Example, LabelledSet, first_names, whole_images
from fgvc_cli.data.split import find_bursts, read_time
from fgvc_cli.datasets.registry import default_root, find_known, known_names, read_official
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.files import AtomicFile
from fgvc_cli.sources.archives import bytes_of, open_bytes
from fgvc_cli.sources.images import Failure, read_image
from fgvc_cli.sources.stored import CannotRead

HASH_BITS = 64
_SIDE_PX = 32
_THUMB_PX = 8
_DRAFT_PX = 128
"""A JPEG is decoded at the smallest of its built-in scales that is not below this."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """One image."""

    digest: bytes
    """Of the file's bytes, 16 of them: equal for equal files."""
    bits: int
    """The perceptual hash, 64 bits."""
    thumb: bytes
    """RGB, 8 x 8 pixels, row by row."""
    taken: float | None = None
    """When, by its EXIF; see ``read_time``."""
    sure: int = (1 << HASH_BITS) - 1
    """Which bits of the hash no small change turns, 64 bits."""


def fingerprint(path: Path) -> Fingerprint | Failure:
    """Read a file; one that cannot be read is a value, as in ``read_image``."""
    photo = read_image(path, _smaller)
    if isinstance(photo, Failure):
        return photo
    try:
        with open_bytes(path) as stream:
            blake = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))  # type: ignore[arg-type]
            digest = blake.digest()
    except (OSError, CannotRead) as error:
        return Failure("unreadable", str(error))
    # Boxes: every pixel counts, whatever the size, so that copies of other sizes come out alike.
    side = photo.image.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX)
    thumb = side.resize((_THUMB_PX, _THUMB_PX), Image.Resampling.BOX)
    bits, sure = perceptual_hash(np.asarray(side.convert("L"), np.float32))
    return Fingerprint(digest, bits, thumb.tobytes(), read_time(path), sure)


UNSURE_WITHIN = 1.5
"""Grey levels of a coefficient: of a flat image many lie as near to the median, on either side by chance."""


def perceptual_hash(grey: np.ndarray) -> tuple[int, int]:
    """Grey values (32, 32) -> 64 bits: which of the 8 x 8 lowest frequencies lie above their median; and
    which of these bits are sure, as they differ from it by more than ``UNSURE_WITHIN``."""
    lowest = dctn(grey, norm="ortho")[:8, :8].ravel()
    beyond = lowest - np.median(lowest[1:])  # the first is the mean brightness
    return _bits(beyond > 0), _bits(np.abs(beyond) > UNSURE_WITHIN)


def _bits(flags: np.ndarray) -> int:
    return int.from_bytes(np.packbits(flags).tobytes(), "big")


def _smaller(image: Image.Image) -> None:
    image.draft("RGB", (_DRAFT_PX, _DRAFT_PX))


_CHUNK = 32
_CRASHED = Failure("crashed", "its decoder died")

Result = Fingerprint | Failure


def fingerprint_all(paths: Iterable[Path], workers: int) -> Iterator[Result]:
    """The fingerprint of each file, in order; a file that kills its decoder is a ``Failure`` too.

    Args:
        workers: processes; 0: this one.
    """
    if workers == 0:
        yield from map(fingerprint, paths)
        return
    source = iter(paths)
    pool = _Pool(workers)
    try:
        waiting: deque[tuple[list[Path], Future[list[Result]]]] = deque()
        while chunk := list(itertools.islice(source, _CHUNK)):
            waiting.append((chunk, pool.submit(chunk)))
            if len(waiting) > 3 * workers:
                yield from pool.answer(*waiting.popleft())
        while waiting:
            yield from pool.answer(*waiting.popleft())
    finally:
        pool.close()


class _Pool:
    """Processes that are started anew when one dies."""

    def __init__(self, workers: int):
        self._workers = workers
        self._executor = self._start(workers)

    def submit(self, chunk: list[Path]) -> Future[list[Result]]:
        try:
            return self._executor.submit(_fingerprints, chunk)
        except BrokenProcessPool:
            self._restart()
            return self._executor.submit(_fingerprints, chunk)

    def answer(self, chunk: list[Path], future: Future[list[Result]]) -> list[Result]:
        """What a chunk came to; where a process died meanwhile, each file alone."""
        try:
            return future.result()
        except BrokenProcessPool:
            return [self._alone(path) for path in chunk]

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)

    def _alone(self, path: Path) -> Result:
        with self._start(1) as executor:
            try:
                return executor.submit(fingerprint, path).result()
            except BrokenProcessPool:
                return _CRASHED

    def _restart(self) -> None:
        self._executor.shutdown()
        self._executor = self._start(self._workers)

    @staticmethod
    def _start(workers: int) -> ProcessPoolExecutor:
        # Not forked: the process that asks may have threads, and its memory is not theirs.
        return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _fingerprints(paths: list[Path]) -> list[Result]:
    return [fingerprint(path) for path in paths]


MAX_BITS = 8
"""Bits of 64 that may differ. Measured on 150 images of the Grocery Store Dataset: a copy at half the
size, at JPEG quality 30 or as PNG differs in at most 4 bits, without 2 % of each margin in at most 10."""
MAX_GREY = 8.0
"""Mean difference of the thumbnails, grey levels of 255. The same copies: at most 1.6, and 7.4 without
margins; shots of one scene moments apart begin at 2.6."""
LEAST_SURE, MAX_SURE_BITS, CLOSE_GREY = 32, 3, 4.0
"""Where more bits differ, these decide: bits sure of both images, how many of those may differ where
``MAX_BITS`` of all may, and the difference of the thumbnails. Measured: of 1,746 thumbnails of 160 to 40
pixels and copies at quality 30, of 170 images of the Grocery Store Dataset and 24 flat ones that were drawn,
51 were missed by ``MAX_BITS`` alone, 11 are now; in all 5,421 images the same 48 pairs are found."""

_ROWS, _COLUMNS = 16, 8192
"""Images compared at once: 1 MB of hashes, which stay in the processor's cache."""
_EDGES = 1 << 22
"""Pairs that are kept before they are put together."""


def find_groups(prints: Sequence[Fingerprint], *, max_bits: int = MAX_BITS) -> list[list[int]]:
    """Indices of images that look alike, directly or by way of others; each group sorted, by first member.

    Args:
        prints: N of them.
        max_bits: 0 to 64; 0 finds equal hashes only.
    """
    if not prints:
        return []
    # Equal ones are put together at once: ten thousand black images are no fifty million pairs.
    kinds: dict[tuple[int, int, bytes], int] = {}
    kind_of = np.array([kinds.setdefault((p.bits, p.sure, p.thumb), len(kinds)) for p in prints])
    bits = np.array([bits for bits, _, _ in kinds], np.uint64)
    sure = (
        np.array([sure for _, sure, _ in kinds], np.uint64) if max_bits else np.full(len(bits), ~np.uint64(0))
    )
    thumbs = np.frombuffer(b"".join(thumb for *_, thumb in kinds), np.uint8).reshape(len(kinds), -1)
    group_of = _join(len(kinds), _pairs(bits, sure, thumbs, max_bits))[kind_of]
    order = np.argsort(group_of, kind="stable")
    ends = np.flatnonzero(np.diff(group_of[order])) + 1
    groups = [members.tolist() for members in np.split(order, ends) if len(members) > 1]
    return sorted(groups)


def _pairs(
    bits: np.ndarray, sure: np.ndarray, thumbs: np.ndarray, max_bits: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of indices that are alike, some at a time."""
    brightness = thumbs.mean(axis=1)
    order = np.argsort(brightness, kind="stable")
    brightness, bits, sure = brightness[order], bits[order], sure[order]
    # |mean a - mean b| <= mean |a - b|
    reach = np.searchsorted(brightness, brightness + MAX_GREY, side="right")
    for start in range(0, len(bits), _ROWS):
        stop = min(start + _ROWS, len(bits))
        for left in range(start, int(reach[stop - 1]), _COLUMNS):
            right = min(left + _COLUMNS, int(reach[stop - 1]))
            differ = bits[start:stop, None] ^ bits[None, left:right]
            distance = np.bitwise_count(differ & sure[start:stop, None] & sure[None, left:right])
            # of the flat array: over two axes the same takes ten times as long
            first, second = np.divmod(np.flatnonzero(distance <= max_bits), right - left)
            first, second = first + start, second + left
            once = first < second
            first, second = first[once], second[once]
            near = _grey_allowed(bits[first] ^ bits[second], sure[first] & sure[second], max_bits)
            first, second, near = order[first[near > 0]], order[second[near > 0]], near[near > 0]
            close = _grey_difference(thumbs, first, second) <= near
            yield first[close], second[close]


def _grey_allowed(differ: np.ndarray, sure: np.ndarray, max_bits: int) -> np.ndarray:
    """How far the thumbnails of pairs may be apart, grey levels; 0: no copies, whatever these are."""
    by_sure = np.bitwise_count(differ & sure) <= max_bits * MAX_SURE_BITS / MAX_BITS
    by_sure &= np.bitwise_count(sure) >= LEAST_SURE
    return np.where(np.bitwise_count(differ) <= max_bits, MAX_GREY, np.where(by_sure, CLOSE_GREY, 0.0))


def _grey_difference(thumbs: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    parts = [
        np.abs(thumbs[first[i : i + 4096]].astype(np.int16) - thumbs[second[i : i + 4096]]).mean(axis=1)
        for i in range(0, len(first), 4096)
    ]
    return np.concatenate(parts) if parts else np.empty(0)


def _join(count: int, pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The number of the group of each of ``count``, (count,)."""
    group_of = np.arange(count)
    firsts: list[np.ndarray] = []
    seconds: list[np.ndarray] = []
    for first, second in pairs:
        firsts.append(first)
        seconds.append(second)
        if sum(map(len, firsts)) > _EDGES:
            group_of = _components(group_of, firsts, seconds)
            firsts, seconds = [], []
    return _components(group_of, firsts, seconds)


def _components(group_of: np.ndarray, firsts: list[np.ndarray], seconds: list[np.ndarray]) -> np.ndarray:
    if not firsts:
        return group_of
    count = len(group_of)
    # what is known already, as edges, and the new ones
    rows = np.concatenate([np.arange(count), *firsts])
    columns = np.concatenate([_first_of(group_of), *seconds])
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def _first_of(group_of: np.ndarray) -> np.ndarray:
    """Of each member, the first of its group."""
    _, first, inverse = np.unique(group_of, return_index=True, return_inverse=True)
    return first[inverse]


Kind = Literal["exact", "near", "burst"]
COLUMNS = ("finding", "group", "path", "split", "label", "splits", "labels_differ", "detail")
"""Of the CSV of findings."""
_SHOWN = 5
"""Findings of each kind in a summary."""


@dataclass(frozen=True)
class Member:
    """A listed image."""

    split: str
    example: Example
    taken: float | None = None
    """When, by its EXIF, in seconds of the camera's clock; given in bursts."""


@dataclass(frozen=True)
class Group:
    """Images that are one: equal files, looking alike, or of one folder and moment."""

    kind: Kind
    members: tuple[Member, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits it is in; more than one: a test that was seen in training."""
        there = {member.split for member in self.members}
        return tuple(split for split in SPLITS if split in there)

    @property
    def contradicts(self) -> bool:
        """Whether its images have different labels."""
        return len({member.example.labels for member in self.members}) > 1


@dataclass
class Report:
    """The findings over a set."""

    data: LabelledSet
    groups: list[Group] = field(default_factory=list)
    """Exact ones first. A near group holds the equal files of its members too."""
    unreadable: list[tuple[Member, Failure]] = field(default_factory=list)
    tiny: dict[str, int] = field(default_factory=dict)
    """Class -> training images, where they are few; of all images in a set without a training split."""
    minutes: float = 0.0
    """Longest gap in a burst; 0: none were looked for."""
    bursts: list[Group] = field(default_factory=list)
    """Those in several splits."""
    timed: int = 0
    """Images that say when they were taken."""
    in_bursts: int = 0
    """Images in a burst of two or more, whatever their splits."""

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not (self.groups or self.unreadable or self.tiny or self.bursts)

    @property
    def held_out_in_bursts(self) -> int:
        """Images of val and test in bursts that lie in several splits."""
        return sum(member.split != "train" for group in self.bursts for member in group.members)

    def of(self, kind: Kind) -> list[Group]:
        """The groups of a kind."""
        return [group for group in self.groups if group.kind == kind]


def check_set(
    data: LabelledSet,
    *,
    workers: int = 2,
    max_bits: int = MAX_BITS,
    min_images: int = 5,
    minutes: float = 5.0,
    on_image: Callable[[], None] = lambda: None,
) -> Report:
    """Read every image of a set once. No pixels are kept: about 0.5 kB per image.

    Args:
        workers: processes that read; 0: this one.
        max_bits: bits of 64 that the hashes of near duplicates may differ by; 0 finds the closest only.
        min_images: classes with fewer training images are tiny.
        minutes: images of one folder with no longer gaps are a burst; 0: bursts are not looked for.
        on_image: called after each.
    """
    data = whole_images(data)
    members = [Member(split, example) for split in SPLITS for example in data.splits[split]]
    report = Report(data, tiny=_tiny_classes(data, min_images))
    prints: list[Fingerprint] = []
    readable: list[Member] = []
    results = fingerprint_all((data.root / member.example.path for member in members), workers)
    for member, result in zip(members, results, strict=True):
        if isinstance(result, Failure):
            report.unreadable.append((member, result))
        else:
            prints.append(result)
            readable.append(member)
        on_image()
    report.groups = _groups(readable, prints, max_bits)
    if minutes:
        _add_bursts(report, readable, prints, minutes)
    return report


def _add_bursts(report: Report, members: list[Member], prints: list[Fingerprint], minutes: float) -> None:
    """Bursts as ``--split-by minutes`` finds them, were the splits not there."""
    # Numbers for names: in two splits there may be images of one name.
    places = [posixpath.join(_folder(member), str(number)) for number, member in enumerate(members)]
    names = find_bursts(places, [own.taken for own in prints], minutes)
    bursts: dict[str, list[Member]] = {}
    for name, member, own in zip(names, members, prints, strict=True):
        bursts.setdefault(name, []).append(replace(member, taken=own.taken))
    groups = [Group("burst", tuple(own)) for own in bursts.values() if len(own) > 1]
    report.minutes = minutes
    report.bursts = [group for group in groups if len(group.splits) > 1]
    report.timed = sum(own.taken is not None for own in prints)
    report.in_bursts = sum(len(group.members) for group in groups)


def _folder(member: Member) -> str:
    """The folder of an image below that of its split."""
    folder = posixpath.dirname(member.example.path)
    top, _, below = folder.partition("/")
    return below if SPLIT_NAMES.get(top.lower()) == member.split else folder


def _groups(members: list[Member], prints: list[Fingerprint], max_bits: int) -> list[Group]:
    equal: dict[bytes, list[int]] = {}
    for index, own in enumerate(prints):
        equal.setdefault(own.digest, []).append(index)

    def group(kind: Kind, indices: list[int]) -> Group:
        return Group(kind, tuple(members[index] for index in indices))

    exact = [group("exact", indices) for indices in equal.values() if len(indices) > 1]
    alike = find_groups(prints, max_bits=max_bits)
    # One that holds nothing but equal files says nothing new.
    near = [group("near", indices) for indices in alike if len({prints[i].digest for i in indices}) > 1]
    return exact + near


def _tiny_classes(data: LabelledSet, min_images: int) -> dict[str, int]:
    examples = data.splits["train"] or [e for split in SPLITS for e in data.splits[split]]
    counts = Counter(label for example in examples for label in example.labels)
    return {name: counts[label] for label, name in enumerate(data.classes) if counts[label] < min_images}


def open_source(source: str, data_root: str | None = None) -> LabelledSet:
    """A path where there is one of that name, else a known set with its official splits, nothing held out.

    Raises:
        FgvcError: a set that cannot be listed.
    """
    path = Path(source)
    if path.exists() or path.suffix or len(path.parts) != 1:
        return load_labelled(path, for_training=False)
    try:
        entry = find_known(source)
    except FgvcError as error:
        raise FgvcError(
            f"{source} is neither a file or folder here nor a known set ({', '.join(known_names())}).",
            error.hint or "Give a folder with one folder of images per class, a .csv file, or a known set.",
            EXIT_USAGE,
        ) from error
    root = Path(data_root) if data_root else default_root()
    if root is None:
        raise FgvcError(
            f"Where the data set {source} lies is not known.",
            "Give --data-root DIR or set FGVC_DATA=DIR.",
            EXIT_USAGE,
        )
    return read_official(entry, root)


def summary(report: Report, out: Path | None) -> str:
    """The findings for people: counts, and the first of each kind."""
    data = report.data
    counts = ", ".join(f"{count:,} {split}" for split, count in data.counts().items() if count)
    if data.undivided:
        counts = f"{sum(data.counts().values()):,}"
    bare = _without_label(data)
    none = f", {bare:,} of them without a label" if bare else ""
    divided = ", not divided into splits" if data.undivided else ""
    lines = [f"{data.name}: {len(data.classes)} classes, {counts} images{none}{divided}"]
    lines += _section(
        "unreadable",
        [f"{member.example.path}: {failure.error}" for member, failure in report.unreadable],
    )
    for kind, title in (("exact", "groups of equal files"), ("near", "groups of near duplicates")):
        groups = [group for group in report.groups if group.kind == kind]
        lines += _section(title, [_group_text(data, group) for group in groups])
    leaks = [group for group in report.groups if len(group.splits) > 1]
    lines += _section("groups across splits", [_group_text(data, group) for group in leaks])
    wrong = [group for group in report.groups if group.contradicts]
    lines += _section("groups with different labels", [_group_text(data, group) for group in wrong])
    lines += _burst_lines(report)
    few = [f"{name}: {count}" for name, count in sorted(report.tiny.items(), key=lambda item: item[1])]
    lines += _section(f"tiny classes ({_counted(data)})", few)
    lines += [f"  {note}" for note in data.notes]
    if not report.clean:
        lines.append(f"All findings: {out}" if out else "All findings: --out report.csv, or --json")
    return "\n".join(lines)


def _burst_lines(report: Report) -> list[str]:
    data, minutes = report.data, f"{report.minutes:g}"
    if not report.minutes:
        return []
    timed = f"{report.timed:,} of {sum(data.counts().values()):,} images have an EXIF time"
    what = f"one folder, gaps of at most {minutes} minutes; {timed}"
    command = f"fgvc train --data ... --split-by minutes={minutes}"
    if data.undivided:
        if not report.in_bursts:
            return []
        return [
            f"  {report.in_bursts:6,d} images in bursts ({what})",
            f"      To keep each in one split: {command}",
        ]
    title = f"bursts across splits ({what})"
    lines = _section(title, [_burst_text(group) for group in report.bursts])
    if report.bursts:
        held_out = sum(len(data.splits[split]) for split in SPLITS[1:])
        lines += [
            f"      {report.held_out_in_bursts:,} of {held_out:,} val and test images are in these: scores "
            "on them are not of unseen scenes.",
            f"      To divide anew: remove the splits, then {command}",
        ]
    return lines


def _burst_text(group: Group) -> str:
    """One image of each split, and how many there are."""
    shown = [next(m for m in group.members if m.split == split) for split in group.splits]
    of_each = Counter(member.split for member in group.members)
    counts = ", ".join(f"{of_each[split]:,} {split}" for split in group.splits)
    return f"{counts}: " + ", ".join(f"{m.example.path} ({_time_text(m)})" for m in shown)


def _time_text(member: Member) -> str:
    """ISO 8601, of the camera's clock."""
    if member.taken is None:
        return ""
    return datetime.fromtimestamp(member.taken, UTC).replace(tzinfo=None).isoformat()


def _without_label(data: LabelledSet) -> int:
    return sum(not example.labels for examples in data.splits.values() for example in examples)


def _section(title: str, items: list[str]) -> list[str]:
    more = [f"      and {len(items) - _SHOWN:,} more"] if len(items) > _SHOWN else []
    return [f"  {len(items):6,d} {title}", *(f"      {item}" for item in items[:_SHOWN]), *more]


def _group_text(data: LabelledSet, group: Group) -> str:
    # only where they differ: in many a set the path says the label too
    texts = [data.label_text(m.example) or "no label" for m in group.members]
    labels = [f" [{text}]" if group.contradicts else "" for text in texts]
    shown = [f"{m.example.path}{label}" for m, label in zip(group.members[:3], labels, strict=False)]
    more = f" and {len(group.members) - 3} more" if len(group.members) > 3 else ""
    where = "" if data.undivided else f"{'+'.join(group.splits)}: "
    return f"{where}{' = '.join(shown)}{more}"


def _counted(data: LabelledSet) -> str:
    return "images" if data.undivided else "training images"


def as_document(report: Report) -> dict[str, Any]:
    """The findings for programs."""
    data = report.data

    def image(member: Member) -> dict[str, Any]:
        labels = [data.classes[label] for label in member.example.labels]
        split = None if data.undivided else member.split
        return {"path": member.example.path, "split": split, "labels": labels}

    groups = [
        {
            "kind": group.kind,
            "splits": [] if data.undivided else list(group.splits),
            "labels_differ": group.contradicts,
            "images": [image(member) for member in group.members],
        }
        for group in report.groups
    ]
    return {
        "name": data.name,
        "root": str(data.root),
        "classes": len(data.classes),
        "images": {"all": sum(data.counts().values())} if data.undivided else data.counts(),
        "without_label": _without_label(data),
        "clean": report.clean,
        "unreadable": [
            image(member) | {"status": failure.status, "error": failure.error}
            for member, failure in report.unreadable
        ],
        "groups": groups,
        "bursts": {
            "minutes": report.minutes,
            "with_time": report.timed,
            "images_in_bursts": report.in_bursts,
            "held_out_images": report.held_out_in_bursts,
            "across_splits": [
                {
                    "splits": list(group.splits),
                    "labels_differ": group.contradicts,
                    "images": [image(member) | {"taken": _time_text(member)} for member in group.members],
                }
                for group in report.bursts
            ],
            "suggestion": f"--split-by minutes={report.minutes:g}"
            if report.bursts or (data.undivided and report.in_bursts)
            else None,
        },
        "tiny_classes": report.tiny,
        "notes": list(data.notes),
    }


def write_findings(report: Report, out: Path, *, overwrite: bool = False) -> None:
    """Write a CSV with one line for each image of a finding, and for each tiny class.

    Raises:
        FgvcError: it cannot be written.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    data = report.data
    for member, failure in report.unreadable:
        example = member.example
        detail = f"{failure.status}: {failure.error}"
        split = "" if data.undivided else member.split
        table.writerow(("unreadable", "", example.path, split, data.label_text(example), "", "", detail))
    for number, group in enumerate([*report.groups, *report.bursts], 1):
        splits = "" if data.undivided else "+".join(group.splits)
        flags = (splits, "yes" if group.contradicts else "no")
        for member in group.members:
            example = member.example
            split = "" if data.undivided else member.split
            row = (
                group.kind,
                number,
                example.path,
                split,
                data.label_text(example),
                *flags,
                _time_text(member),
            )
            table.writerow(row)
    for name, count in report.tiny.items():
        table.writerow(("tiny_class", "", "", "", name, "", "", f"{count} {_counted(data)}"))
    with AtomicFile(out, overwrite=overwrite) as stream:
        stream.write(text.getvalue().encode("utf-8", "surrogateescape"))


SECONDS = 20.0
"""Most of the time that each look may take; what it did not reach is said."""
_TAIL_BYTES = 1 << 16
_READERS = 4
"""Threads that decode: Pillow lets the others run meanwhile."""


def look_before_training(data: LabelledSet, seconds: float = SECONDS) -> list[str]:
    """Lines for the user: images that are in several splits, and where a look ended for want of time.

    Raises:
        FgvcError: classes none of whose training images can be read.
    """
    images = whole_images(data)
    return [*_check_classes(data, seconds), *_copies(images, seconds), *_near_copies(images, seconds)]


def _check_classes(data: LabelledSet, seconds: float) -> list[str]:
    """Read images of each class until one can be read, mostly the first."""
    images: dict[int, list[Example]] = {}
    for example in data.splits["train"]:
        for label in example.labels:
            images.setdefault(label, []).append(example)
    end = time.monotonic() + seconds
    dead: list[str] = []
    for done, (label, own) in enumerate(images.items()):
        if time.monotonic() > end:
            return [f"Whether images can be read was tried for {done:,} of {len(images):,} classes."]
        failures = [read_image(example.where(data.root)) for example in own[:1]]
        if isinstance(failures[0], Failure) and all(
            isinstance(read_image(example.where(data.root)), Failure) for example in own[1:]
        ):
            dead.append(f"{data.classes[label]} ({len(own):,}, first {own[0].name}: {failures[0].error})")
    if dead:
        raise FgvcError(
            f"{len(dead)} of {len(data.classes)} classes have no training image that can be read: "
            f"{first_names(dead, 3)}.",
            "Replace their images, or remove the classes. fgvc datasets check DATA names every such file.",
        )
    return []


def _copies(data: LabelledSet, seconds: float) -> list[str]:
    """Equal files in several splits."""
    sizes: dict[int, list[tuple[str, str]]] = {}
    for split in SPLITS:
        for example in data.splits[split]:
            try:
                size = bytes_of(data.root / example.path)
            except OSError:
                continue
            sizes.setdefault(size, []).append((split, example.path))
    alike = [own for own in sizes.values() if len({split for split, _ in own}) > 1]
    end = time.monotonic() + seconds
    found: list[list[tuple[str, str]]] = []
    notes = []
    for done, own in enumerate(alike):
        if time.monotonic() > end:
            notes = [
                f"Equal files were looked for in {done / len(alike):.0%} of the images that may have one."
            ]
            break
        groups: dict[bytes, list[tuple[str, str]]] = {}
        for split, path in own:
            groups.setdefault(_digest(data.root / path, _TAIL_BYTES), []).append((split, path))
        for members in groups.values():
            if len({split for split, _ in members}) > 1:
                whole: dict[bytes, list[tuple[str, str]]] = {}
                for split, path in members:
                    whole.setdefault(_digest(data.root / path, None), []).append((split, path))
                found += [same for same in whole.values() if len({split for split, _ in same}) > 1]
    if found:
        shown = " = ".join(f"{path} ({split})" for split, path in found[0][:3])
        notes.insert(
            0,
            f"{len(found):,} images are in several splits as equal files, first {shown}: scores on them are "
            "not of unseen images. fgvc datasets check DATA --out copies.csv lists them, near copies too.",
        )
    return notes


def _near_copies(data: LabelledSet, seconds: float) -> list[str]:
    """Images of val and test that look like one of another split: thumbnails, other encodings, bursts.

    Small files come first: they take the least time, and copies of one size and quality lie side by side.
    """
    if sum(bool(data.splits[split]) for split in SPLITS) < 2:
        return []
    listed = [(split, example.path) for split in SPLITS for example in data.splits[split]]
    listed.sort(key=lambda item: _size(data.root / item[1]))
    end = time.monotonic() + seconds
    images: list[tuple[str, str]] = []
    prints: list[Fingerprint] = []
    reached = 0
    with ThreadPoolExecutor(_READERS) as pool:
        waiting = iter(listed)
        while time.monotonic() < end and (chunk := list(itertools.islice(waiting, 4 * _READERS))):
            for image, result in zip(
                chunk, pool.map(fingerprint, [data.root / path for _, path in chunk]), strict=True
            ):
                if isinstance(result, Fingerprint):
                    images.append(image)
                    prints.append(result)
            reached += len(chunk)
    notes = []
    pairs = [pair for group in find_groups(prints) for pair in _unlike_pairs(group, images, prints)]
    if pairs:
        like, own = (images[place] for place in pairs[0])
        held_out = sum(len(data.splits[split]) for split in SPLITS[1:])
        notes.append(
            f"{len(pairs):,} of {held_out:,} val and test images look like one of another split (a "
            f"thumbnail, another encoding, a burst), first {own[1]} ({own[0]}) ~ {like[1]} ({like[0]}): "
            "scores on them are not of unseen images. fgvc datasets check DATA --out copies.csv lists them."
        )
    if reached < len(listed):
        notes.append(
            f"Near copies in several splits were looked for among the {reached:,} smallest of "
            f"{len(listed):,} images ({max(seconds, 0):g} s); {len(listed) - reached:,} were not reached. "
            "fgvc datasets check DATA looks at all."
        )
    return notes


def _unlike_pairs(
    group: Sequence[int], images: Sequence[tuple[str, str]], prints: Sequence[Fingerprint]
) -> list[tuple[int, int]]:
    """For each val or test image of a group of images that look alike: one of another split, and the image.

    Equal files are none: ``_copies`` names them.
    """
    pairs = []
    for own in group:
        split = images[own][0]
        others = [other for other in group if images[other][0] != split]
        if split == "train" or not others or any(prints[o].digest == prints[own].digest for o in others):
            continue
        pairs.append((next((other for other in others if images[other][0] == "train"), others[0]), own))
    return pairs


def _size(path: Path) -> int:
    """Of a file, bytes; what is not there comes first and costs nothing."""
    try:
        return bytes_of(path)
    except OSError:
        return 0


def _digest(path: Path, tail: int | None) -> bytes:
    """Of the last ``tail`` bytes of a file or, None, of all; what cannot be read is equal to no other."""
    try:
        with open_bytes(path) as stream:
            if tail is not None:
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - tail))
            return hashlib.file_digest(stream, "sha256").digest()  # type: ignore[arg-type]
    except (OSError, CannotRead):
        return str(path).encode("utf-8", "surrogateescape")
