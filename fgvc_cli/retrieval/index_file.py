"""The index of a model: embeddings of labelled images with a small picture of each, in one HDF5 file.

It stands alone: the images may move or go. Legend: N images, D embedding width, L labels of the
image with most of them (1 but for multi-label data).

    path         (N,) UTF-8, relative to the folder of the data
    class_index  (N, L) int32 into the attribute ``class_names``; -1 where an image has fewer
    size         (N, 2) int32: width, height of the upright image, pixels
    box          (N, 4) float32: the model's object box, see the attribute ``box_convention``; NaN without one
    embedding    (N, D) float16, ``ModelOutput.embedding`` scaled to length 1
    thumbnail    (N,) bytes of a JPEG as uint8 of any length, ``geometry.CROP_PX`` pixels at most: the square
                 about the object with room round it, since what tells look-alikes apart is small in the whole
                 image and may lie just outside the box

Root attributes: ``format``, ``schema_version``, ``metric`` (cosine), ``dataset``, ``split``, ``added`` (JSON:
what came later), ``temperature_neighbours``, ``temperature_means`` (``engine.index_classes``), and those of a
file of predictions, ``weights_sha256``, ``class_names``, ``preprocessing``, ``fgvc_version`` among them.
Embeddings are not compressed: gzip takes 20 % off them, and every search reads them all.

Search is exact: every row is compared, chunk by chunk, so memory does not grow with the index. Embeddings are
unit vectors in float16; products of two are whole multiples of 2^-48 and their sums stay below 2, so float64
adds them without rounding: similarities do not depend on the size of a chunk or on the linear algebra at
work, and equal ones are equal. Ties go to the row that comes first. There n is the rows of a chunk, B the
queries, T the classes asked about, m the neighbours.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import h5py
import numpy as np
from pydantic import Field

from fgvc_cli.command import BoxOptions, MessageOptions, command, options
from fgvc_cli.data.geometry import surroundings
from fgvc_cli.data.listing import Example, LabelledSet, first_names
from fgvc_cli.data.names import same_form
from fgvc_cli.engine.checkpoint import choose_data, given_data, known_examples
from fgvc_cli.engine.device import keep_freed_memory
from fgvc_cli.engine.index_classes import (
    FORMAT,
    METRIC,
    SCHEMA_VERSION,
    open_index,
    require_index,
    store_temperatures,
    unit,
)
from fgvc_cli.engine.weights import HUB, default_notice, open_main_stage, resolve_weights
from fgvc_cli.errors import EXIT_USAGE, FgvcError, counted
from fgvc_cli.files import AtomicFile, check_writable
from fgvc_cli.formats.h5 import H5Rows, ragged, root_attributes
from fgvc_cli.formats.rows import Block, as_text, has_prediction
from fgvc_cli.predict.predictor import Predictor, TrainedModel
from fgvc_cli.sources.find import Found

ENDING = ".index.h5"


def index_path(weights: Path) -> Path:
    """Where the index of a checkpoint lies: beside it, under its stem."""
    return weights.with_name(f"{weights.stem}{ENDING}")


def index_predictor(checkpoint: TrainedModel, **options: Any) -> Predictor:
    """A predictor that gives what an index holds.

    Args:
        options: of ``Predictor``: device, batch_size, workers, amp, on_event.
    """
    return Predictor(checkpoint, top_k=1, extras=("crop", "embedding"), crop_box=surroundings, **options)


def write_index(
    out: Path,
    predictor: Predictor,
    root: Path,
    examples: Sequence[Example],
    *,
    dataset: str,
    split: str,
    overwrite: bool = False,
    on_block: Callable[[Block], None] | None = None,
) -> int:
    """Embed images and write the index, whole or not at all, in memory that does not grow with them.

    An image that cannot be read is left out; its row of the block says why.

    Args:
        predictor: from ``index_predictor``.
        root: the folder of the data.
        examples: their labels are indices into the model's classes; the rows keep their order.
        dataset, split: recorded, for people.
        on_block: told of each batch.

    Returns:
        How many images the index holds.

    Raises:
        FgvcError: the file cannot be written, a model without embeddings, no readable image.
    """
    with AtomicFile(out, overwrite=overwrite) as stream, closing(H5Rows(stream.name)) as table:
        attributes = root_attributes(predictor.info) | {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "metric": METRIC,
            "dataset": dataset,
            "split": split,
        }
        for name, value in attributes.items():
            table.file.attrs[name] = value
        _add_sets(table, max(len(example.labels) for example in examples))
        images = (Found(example.where(root), example.path) for example in examples)
        with closing(predictor.blocks(images)) as blocks:
            for block in blocks:
                _append(table, block, examples[block.first : block.first + len(block)])
                if on_block:
                    on_block(block)
        if not table.count:
            raise FgvcError(f"No image of {dataset} could be read.", "Check the files named above.")
        store_temperatures(table.file)
        return table.count


@dataclass
class Added:
    """What came into an index that was there."""

    images: int = 0
    """New ones."""
    classes: list[str] = field(default_factory=list)
    """That the index did not have."""
    replaced: int = 0
    """Images that were in it: they have the label now that they came with."""
    relabelled: int = 0
    """Of these, such that had another one."""
    alike: list[str] = field(default_factory=list)
    """New ones that look the same as one of another name; both are kept."""

    def in_words(self) -> Iterator[str]:
        """Lines for people."""
        classes = f", {counted(len(self.classes), 'new class')}: {first_names(self.classes)}"
        yield f"Added {counted(self.images, 'image')}{classes if self.classes else ', no new class'}."
        if self.replaced:
            yield (
                f"{counted(self.replaced, 'image')} of these were in the index and were replaced, "
                f"{self.relabelled:,} of them under another label."
            )
        if self.alike:
            yield (
                f"{counted(len(self.alike), 'image')} look the same as one of another name in the index "
                f"({first_names(self.alike)}); both are kept."
            )


SAME_IMAGES = 16
"""Rows of an index that look the same as an image, among which one of its name is looked for."""


def add_to_index(
    path: Path,
    predictor: Predictor,
    data: LabelledSet,
    split: str,
    on_block: Callable[[Block], None] | None = None,
) -> Added:
    """Embed images into an index that is there, whole or not at all; classes that it lacks come at its end.

    An image is in the index already where one of its name has the same embedding: that row is replaced.

    Args:
        predictor: from ``index_predictor``, of the weights of the index.
        data, split: the images; their class names count.
        on_block: told of each batch.

    Raises:
        FgvcError: as ``open_index``; an empty split; no readable image; it cannot be written.
    """
    with NearestIndex(path, weights_sha256=predictor.info.weights_sha256) as known:
        named = {same_form(name) for name in known.classes}
        added = Added(classes=[name for name in data.classes if same_form(name) not in named])
        examples = known_examples(data, split, (*known.classes, *added.classes))
        there = {label for example in examples for label in example.labels}
        added.classes = [n for i, n in enumerate(added.classes, len(known.classes)) if i in there]
        examples = known_examples(data, split, (*known.classes, *added.classes))
        again = "The index is as it was; free space or check permissions, and type the same again."
        with (
            AtomicFile(path, overwrite=True, again=again) as stream,
            path.open("rb") as old,
        ):
            shutil.copyfileobj(old, stream)
            stream.flush()
            with closing(H5Rows(stream.name, more=True)) as table:
                _widen(table, (*known.classes, *added.classes), max(len(e.labels) for e in examples))
                images = (Found(example.where(data.root), example.path) for example in examples)
                with closing(predictor.blocks(images)) as blocks:
                    for block in blocks:
                        own = examples[block.first : block.first + len(block)]
                        same = _same_rows(known, block, added)
                        added.images += _append(table, block, own, same)
                        for row, place in same.items():
                            columns = _columns(block, [row], own, table)
                            before = table.file["class_index"][place].tolist()
                            added.relabelled += before != columns["class_index"][0]
                            table.put(place, columns)
                        added.replaced += len(same)
                        if on_block:
                            on_block(block)
                if not (added.images or added.replaced):
                    raise FgvcError(f"No image of {data.name} could be read.", "Check the files named above.")
                sources = json.loads(table.file.attrs.get("added", "[]"))
                sources.append({"dataset": data.name, "split": split, "images": added.images})
                table.file.attrs["added"] = json.dumps(sources)
                store_temperatures(table.file)
    return added


def _widen(table: H5Rows, classes: Sequence[str], labels: int) -> None:
    """Make room for these classes, and so many labels of an image."""
    table.file.attrs["class_names"] = np.array(classes, dtype=h5py.string_dtype())
    before = table.file["class_index"][:]
    if before.shape[1] < labels:
        del table.file["class_index"]
        _add_labels(table, labels)
        table.file["class_index"][:] = -1
        table.file["class_index"][:, : before.shape[1]] = before
        table.read_again("class_index")


def _same_rows(known: NearestIndex, block: Block, added: Added) -> dict[int, int]:
    """Row of a block -> that of the index which is the same image."""
    kept = [row for row, status in enumerate(block.status) if has_prediction(status)]
    if not kept or block.embedding is None:
        return {}
    found = known.find_rows(block.embedding[kept], [[]] * len(kept), SAME_IMAGES)
    same = {}
    for row, ((rows, similarities), *_) in zip(kept, found, strict=True):
        path = as_text(block.path[row])
        alike = {known.path_of(i): int(i) for i in rows[similarities >= SAME_SIMILARITY]}
        named = [i for name, i in alike.items() if is_one(path, name)]
        if named:
            same[row] = named[0]
        elif alike:
            added.alike.append(f"{path} and {next(iter(alike))}")
    return same


def _add_sets(table: H5Rows, labels: int) -> None:
    table.add("path", (), h5py.string_dtype())
    _add_labels(table, labels)
    table.add("size", (2,), np.int32, description="width, height of the upright image, pixels")
    table.add("box", (4,), np.float32)
    table.add("thumbnail", (), h5py.vlen_dtype(np.uint8), description="bytes of a JPEG, empty without one")


def _add_labels(table: H5Rows, labels: int) -> None:
    table.add("class_index", (labels,), np.int32, description="into class_names; -1: none")


def _append(
    table: H5Rows, block: Block, examples: Sequence[Example], same: Mapping[int, int] | None = None
) -> int:
    """The rows of a block that the model answered for, but those that ``same`` puts in place of others; how
    many these are."""
    new = [i for i, status in enumerate(block.status) if has_prediction(status) and i not in (same or {})]
    if not new or block.embedding is None:
        return 0
    columns = _columns(block, new, examples, table)
    if "embedding" not in table:
        note = "of length 1; compare by the scalar product"
        shape, dtype = columns["embedding"].shape[1:], columns["embedding"].dtype
        table.add("embedding", shape, dtype, description=note, compress=False)
    table.append(len(new), columns)
    return len(new)


def _columns(block: Block, rows: list[int], examples: Sequence[Example], table: H5Rows) -> dict[str, Any]:
    """Some rows of a block, as the table has them."""
    assert block.embedding is not None
    width = table.file["class_index"].shape[1]
    columns: dict[str, Any] = {
        "path": [as_text(block.path[row]) for row in rows],
        "class_index": [[*examples[row].labels, *[-1] * width][:width] for row in rows],
        "size": block.size[rows],
        "box": block.box[rows],
        "embedding": unit(block.embedding[rows]),
    }
    pictures = [block.crop[row] if block.crop else b"" for row in rows]
    return columns | ({"thumbnail": ragged(pictures)} if any(pictures) else {})


def left_out(block: Block) -> Iterator[str]:
    """One line for each image of a block that is not in the index."""
    for path, status, error in zip(block.path, block.status, block.error, strict=True):
        if not has_prediction(status):
            yield f"Left out {path}: {error} ({status})"


@dataclass(frozen=True)
class Indexed:
    """An index that was written."""

    path: Path
    images: int
    """That it holds."""
    statuses: dict[str, int]
    """Status -> images of the split; those without a prediction are not in the index."""
    added: Added | None = None
    """With ``add``: what came into an index that was there."""


@options
class IndexOptions(MessageOptions, BoxOptions):
    """What ``fgvc index`` is asked for."""

    weights: str | None = None
    """File or folder of a training, or an embedded model; None: the default one."""
    data: str | None = None
    """Labelled folder or CSV; None, and no ``dataset``: what the checkpoint was trained on."""
    dataset: str | None = None
    """Known set in place of ``data``."""
    data_root: str | None = None
    """Folder that holds known sets; None: the environment's ``FGVC_DATA``."""
    split: Literal["train", "val", "test", "all"] | None = None
    """None: train, or all of a set without one."""
    out: Path | None = None
    """File to write, or with ``add`` to extend; None: see ``default_index``."""
    overwrite: bool = False
    """Replace an index that is there."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Images per forward pass."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Parallel readers of images."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    add: str | None = None
    """Labelled folder or CSV whose images, of known and of new classes, come into the index ``out``."""

    def __post_init__(self) -> None:
        """Raise FgvcError where options exclude each other."""
        super().__post_init__()
        others = {"--data": self.data, "--dataset": self.dataset, "--overwrite": self.overwrite}
        for name, value in others.items():
            if self.add and value:
                raise FgvcError(
                    f"--add extends the index by its own images, got {name} too.", "Choose one.", EXIT_USAGE
                )


@command(IndexOptions)
def index(options: IndexOptions) -> Indexed:
    """Store the embeddings of labelled images, for ``explain(..., nearest=5)`` to compare with.

    ``predict_folder(..., index=...)`` classifies by them; ``add`` brings classes that the model was not
    trained on.

    Raises:
        FgvcError: an output that is there already, weights or data that cannot be read, an empty split,
            labels that the checkpoint does not know (but with ``add``), a model without embeddings; with
            ``add``, no index or one of other weights.
    """
    messages = options.speaker
    out = options.out or default_index(options.weights)
    if options.add:
        require_index(out, options.weights)
    check_writable(out, overwrite=options.overwrite or bool(options.add))
    if options.weights is None:
        messages.note(default_notice())
    keep_freed_memory()
    checkpoint = open_main_stage(options.weights)
    if options.add:
        labelled = given_data(checkpoint, options.add, None, None, options)
    else:
        wanted = options.split or "train"
        labelled, _ = choose_data(
            checkpoint, options.data, options.dataset, options.data_root, wanted, options
        )
    split = options.split or ("train" if labelled.splits.get("train") else "all")
    predictor = index_predictor(
        checkpoint, device=options.device, batch_size=options.batch_size, workers=options.workers
    )
    statuses: Counter[str] = Counter()
    total = sum(len(part) for name, part in labelled.splits.items() if split in (name, "all"))
    with messages.bar("embedding", total, lines=True) as advance:

        def on_block(block: Block) -> None:
            for line in left_out(block):
                messages.note(line)
            statuses.update(block.status)
            advance(len(block))

        if not options.add:
            count = write_index(
                out,
                predictor,
                labelled.root,
                known_examples(labelled, split, checkpoint.classes),
                dataset=labelled.name,
                split=split,
                overwrite=options.overwrite,
                on_block=on_block,
            )
            return Indexed(out, count, dict(statuses))
        added = add_to_index(out, predictor, labelled, split, on_block)
    for line in added.in_words():
        messages.note(line)
    with NearestIndex(out) as extended:
        return Indexed(out, len(extended), dict(statuses), added)


def default_index(weights: str | None) -> Path:
    """Where the index of ``--weights`` lies where nobody says otherwise.

    Beside the checkpoint; in the current folder for an embedded model or one of the hub, whose own folders
    are the installation's and the cache.
    """
    if weights and weights.startswith(HUB):
        return index_path(Path(weights.partition("@")[0].rpartition("/")[2] + ".safetensors"))
    path, entry = resolve_weights(weights)
    return index_path(Path(path.name) if entry else path)


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
