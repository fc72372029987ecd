"""Exact search: which images of an index lie closest to an embedding, of any class and of some.

Every row is compared, chunk by chunk, so memory does not grow with the index. Embeddings are unit vectors in
float16; products of two are whole multiples of 2^-48 and their sums stay below 2, so float64 adds them
without rounding: similarities do not depend on the size of a chunk or on the linear algebra at work, and
equal ones are equal. Ties go to the row that comes first.

Legend: N rows of the index, n of a chunk, B queries, D embedding width, L labels of a row, T classes asked
about, m neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from fgvc_cli.engine.index_classes import open_index, unit
from fgvc_cli.errors import FgvcError

SAME_SIMILARITY = 0.999
"""Least cosine of an image with itself: the index rounds to float16, and other batches move the last bits."""
CHUNK_ROWS = 4096
HELD_BYTES = 256 << 20
"""An index with smaller embeddings than this is read once and kept."""

_Ranked = tuple[np.ndarray, np.ndarray]
"""Rows, ascending among equals, and their similarities, best first."""


@dataclass(frozen=True, eq=False)
class Neighbour:
    """One known image near another."""

    path: str
    """Relative to the folder of the indexed data."""
    labels: tuple[str, ...]
    """Its classes: one, but for multi-label data."""
    similarity: float
    """Cosine of the embeddings, in [-1, 1]."""
    thumbnail: bytes
    """JPEG, see ``index_file``; empty where there is none."""
    row: int
    """Of the index."""


@dataclass(frozen=True, eq=False)
class Nearest:
    """What lies closest to one image."""

    overall: tuple[Neighbour, ...]
    """Of any class, nearest first."""
    by_class: dict[str, tuple[Neighbour, ...]]
    """Class asked about -> the nearest of that class; fewer where it has fewer."""
    photographs: int
    """N: how many were compared."""
    source: str = ""
    """Of what data they are, for people: set and split."""

    def without(self, path: str, count: int) -> Nearest:
        """The same without the image itself, which an index of its own folder holds (the file of that name
        whose embedding is equal), and of the others the first ``count``.

        Args:
            path: of the image, as far as it is known; empty leaves all in.
        """

        def others(found: tuple[Neighbour, ...]) -> tuple[Neighbour, ...]:
            kept = [
                near
                for near in found
                if not path or near.similarity < SAME_SIMILARITY or not is_one(path, near.path)
            ]
            return tuple(kept[:count])

        by_class = {name: others(found) for name, found in self.by_class.items()}
        return replace(self, overall=others(self.overall), by_class=by_class)


def is_one(one: str, other: str) -> bool:
    """Whether two paths, relative to different folders perhaps, can be of one file."""
    one, other = f"/{one}", f"/{other}"
    return one.endswith(other) or other.endswith(one)


class NearestIndex:
    """An index open for search; a context manager.

        checkpoint = load_checkpoint("runs/birds/model.safetensors")
        with NearestIndex("runs/birds/model.index.h5", weights_sha256=checkpoint.sha256) as index:
            nearest = explain_photo(checkpoint, photo, index=index).nearest
            (nearest,) = index.search(embeddings, [["blue tit", "great tit"]], count=5)  # or by hand

    Args:
        path: written by ``fgvc index``.
        weights_sha256: of the checkpoint whose embeddings will be looked up; None takes the caller's word.

    Raises:
        FgvcError: no such file, no index, one of a newer version or of other weights.
    """

    def __init__(self, path: Path | str, *, weights_sha256: str | None = None):
        self.path = Path(path)
        self._file = open_index(self.path, weights_sha256)
        self.classes: tuple[str, ...] = tuple(self._file.attrs["class_names"])
        added = [each["dataset"] for each in json.loads(self._file.attrs.get("added", "[]"))]
        made_of = ", ".join(str(self._file.attrs[name]) for name in ("dataset", "split"))
        self.source = " + ".join(dict.fromkeys([made_of, *added]))
        self._vectors: h5py.Dataset = self._file["embedding"]
        self._held: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._vectors)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def path_of(self, row: int) -> str:
        """The image of a row."""
        return self._file["path"].asstr()[row]

    def search(
        self, embeddings: np.ndarray, classes: Sequence[Sequence[str]], *, count: int
    ) -> list[Nearest]:
        """The nearest images of each query.

        Args:
            embeddings: (B, D), of any length: ``ModelOutput.embedding`` as it is.
            classes: for each query, the classes to look through by themselves; perhaps none.
            count: m, images of each class and overall; fewer where there are fewer.

        Raises:
            FgvcError: embeddings of another width, a class that the index does not know.
        """
        places = {name: i for i, name in enumerate(self.classes)}
        unknown = [name for names in classes for name in names if name not in places]
        if unknown:
            raise FgvcError(f"{self.path} knows no class {unknown[0]!r}.", "Ask for one of its class names.")
        targets = [[places[name] for name in names] for names in classes]
        found = self.find_rows(embeddings, targets, count)
        kept: dict[int, tuple[str, tuple[str, ...], bytes]] = {}
        return [
            Nearest(
                self._neighbours(overall, kept),
                {name: self._neighbours(rows, kept) for name, rows in zip(names, by_class, strict=True)},
                len(self),
                self.source,
            )
            for (overall, *by_class), names in zip(found, classes, strict=True)
        ]

    def find_rows(
        self, embeddings: np.ndarray, targets: Sequence[Sequence[int]], count: int, *, chunk: int = CHUNK_ROWS
    ) -> list[list[_Ranked]]:
        """Rows and similarities alone: for each query those overall, then those of each class index.

        Args:
            embeddings: (B, D).
            targets: T class indices of each query.
            count: m.
            chunk: rows compared at once; changes nothing but memory and speed.

        Raises:
            FgvcError: embeddings of another width.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self._vectors.shape[1]:
            raise FgvcError(
                f"{self.path} holds embeddings of width {self._vectors.shape[1]}, got {embeddings.shape}.",
                "Look up embeddings of the model that the index was made with.",
            )
        queries = unit(embeddings).astype(np.float64).T
        best: list[list[_Ranked]] = [
            [(np.empty(0, np.int64), np.empty(0)) for _ in (None, *asked)] for asked in targets
        ]
        start = 0
        for vectors, labels in self._chunks(chunk):
            similarities = vectors.astype(np.float64) @ queries  # (n, B)
            members = {c: np.flatnonzero((labels == c).any(axis=1)) for asked in targets for c in asked}
            everyone = np.arange(len(vectors))
            for query, asked in enumerate(targets):
                column = similarities[:, query]
                for place, rows in enumerate((everyone, *(members[c] for c in asked))):
                    best[query][place] = _merge(best[query][place], rows + start, column[rows], count)
            start += len(vectors)
        return best

    def _chunks(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Embeddings (n, D) and labels (n, L) in order; small ones are kept for the next time."""
        if self._held is None and self._vectors.nbytes <= HELD_BYTES:
            self._held = self._vectors[:], self._file["class_index"][:]
        vectors, labels = self._held or (self._vectors, self._file["class_index"])
        for start in range(0, len(self), size):
            yield vectors[start : start + size], labels[start : start + size]

    def _neighbours(self, found: _Ranked, kept: dict[int, Any]) -> tuple[Neighbour, ...]:
        for row in found[0].tolist():
            if row not in kept:
                indices = self._file["class_index"][row].tolist()
                names = tuple(self.classes[i] for i in indices if i >= 0)
                picture = self._file["thumbnail"][row].tobytes()
                kept[row] = self._file["path"].asstr()[row], names, picture
        return tuple(
            # Rounded to float16, a vector may be a trifle longer than 1.
            Neighbour(kept[row][0], kept[row][1], min(1.0, max(-1.0, value)), kept[row][2], row)
            for row, value in zip(found[0].tolist(), found[1].tolist(), strict=True)
        )


def _merge(best: _Ranked, rows: np.ndarray, values: np.ndarray, count: int) -> _Ranked:
    """The ``count`` best of those so far and of later rows, in ascending order, with their similarities."""
    if len(best[1]) == count:
        # A later row that ties with the last one comes after it.
        better = values > best[1][-1]
        rows, values = rows[better], values[better]
    if len(values) > count:
        bound = np.partition(values, len(values) - count)[len(values) - count]
        rows, values = rows[values >= bound], values[values >= bound]
    all_rows, all_values = np.concatenate([best[0], rows]), np.concatenate([best[1], values])
    order = np.argsort(-all_values, kind="stable")[:count]
    return all_rows[order], all_values[order]
