"""Exact and near duplicates: fingerprints of images, computed in processes, and pairs that are alike."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fgvc_cli.data.split import read_time
from fgvc_cli.sources.images import Failure, read_image

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
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError as error:
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
