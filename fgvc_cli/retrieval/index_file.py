"""The index of a model: embeddings of labelled images with a small picture of each, in one HDF5 file.

It stands alone: the images may move or go. Legend: N images, D embedding width, L labels of the
image with most of them (1 but for multi-label data).

    path         (N,) UTF-8, relative to the folder of the data
    class_index  (N, L) int32 into the attribute ``class_names``; -1 where an image has fewer
    size         (N, 2) int32: width, height of the upright image, pixels
    box          (N, 4) float32: the model's object box, see the attribute ``box_convention``; NaN without one
    embedding    (N, D) float16, ``ModelOutput.embedding`` scaled to length 1
    thumbnail    (N,) bytes of a JPEG as uint8 of any length, ``crops.CROP_PX`` pixels at most: the square
                 about the object with room round it, since what tells look-alikes apart is small in the whole
                 image and may lie just outside the box

Root attributes: ``format``, ``schema_version``, ``metric`` (cosine), ``dataset``, ``split``, and those of a
file of predictions, ``weights_sha256``, ``class_names``, ``preprocessing`` and ``fgvc_version`` among them.
Embeddings are not compressed: gzip takes 20 % off them, and every search reads them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import h5py
import numpy as np
from pydantic import Field

from fgvc_cli.command import BoxOptions, Messages, command, options
from fgvc_cli.data.listing import Example
from fgvc_cli.engine.checkpoint import Checkpoint, choose_data, known_examples
from fgvc_cli.engine.device import keep_freed_memory
from fgvc_cli.engine.weights import default_notice, open_weights, resolve_weights
from fgvc_cli.errors import FgvcError
from fgvc_cli.files import AtomicFile, check_writable
from fgvc_cli.formats.h5 import H5Rows, ragged, root_attributes
from fgvc_cli.formats.rows import Block, as_text, has_prediction
from fgvc_cli.predict.decoding import surroundings
from fgvc_cli.predict.predictor import Predictor, TrainedModel
from fgvc_cli.sources.find import Found

FORMAT = "fgvc index"
SCHEMA_VERSION = 1
METRIC = "cosine"
ENDING = ".index.h5"


def index_path(weights: Path) -> Path:
    """Where the index of a checkpoint lies: beside it, under its stem."""
    return weights.with_name(f"{weights.stem}{ENDING}")


def unit(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings (B, D) as they are stored and compared: scaled to length 1, then float16.

    float16 moves a cosine by 0.001 at most, and makes the search exact (see ``search``).
    """
    values = np.asarray(embeddings, np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / np.where(lengths > 0, lengths, 1)).astype(np.float16)


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
        return table.count


def _add_sets(table: H5Rows, labels: int) -> None:
    table.add("path", (), h5py.string_dtype())
    table.add("class_index", (labels,), np.int32, description="into class_names; -1: none")
    table.add("size", (2,), np.int32, description="width, height of the upright image, pixels")
    table.add("box", (4,), np.float32)
    table.add("thumbnail", (), h5py.vlen_dtype(np.uint8), description="bytes of a JPEG, empty without one")


def _append(table: H5Rows, block: Block, examples: Sequence[Example]) -> None:
    """The rows of a block that the model answered for."""
    kept = [row for row, status in enumerate(block.status) if has_prediction(status)]
    if not kept or block.embedding is None:
        return
    vectors = unit(block.embedding[kept])
    if "embedding" not in table:
        note = "of length 1; compare by the scalar product"
        table.add("embedding", vectors.shape[1:], vectors.dtype, description=note, compress=False)
    width = table.file["class_index"].shape[1]
    columns: dict[str, Any] = {
        "path": [as_text(block.path[row]) for row in kept],
        "class_index": [[*examples[row].labels, *[-1] * width][:width] for row in kept],
        "size": block.size[kept],
        "box": block.box[kept],
        "embedding": vectors,
    }
    pictures = [block.crop[row] if block.crop else b"" for row in kept]
    if any(pictures):
        columns["thumbnail"] = ragged(pictures)
    table.append(len(kept), columns)


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


@options
class IndexOptions(BoxOptions):
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
    """File to write; None: see ``default_index``."""
    overwrite: bool = False
    """Replace an index that is there."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Images per forward pass."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Parallel readers of images."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    quiet: bool = False
    """Say nothing but errors."""
    messages: Messages | None = None
    """Who says what happens; None: lines on stderr."""


@command(IndexOptions)
def index(options: IndexOptions) -> Indexed:
    """Store the embeddings of labelled images, for ``explain(..., nearest=5)`` to compare with.

    Raises:
        FgvcError: an output that is there already, weights or data that cannot be read, an empty split,
            labels that the checkpoint does not know, a model without embeddings.
    """
    messages = options.messages or Messages(quiet=options.quiet)
    out = options.out or default_index(options.weights)
    check_writable(out, overwrite=options.overwrite)
    if options.weights is None:
        messages.note(default_notice())
    keep_freed_memory()
    checkpoint = _open_main_stage(options.weights)
    wanted = options.split or "train"
    labelled, _ = choose_data(checkpoint, options.data, options.dataset, options.data_root, wanted, options)
    split = options.split or ("train" if labelled.splits.get("train") else "all")
    examples = known_examples(labelled, split, checkpoint.classes)
    predictor = index_predictor(
        checkpoint, device=options.device, batch_size=options.batch_size, workers=options.workers
    )
    statuses: Counter[str] = Counter()
    with messages.bar("embedding", len(examples), lines=True) as advance:

        def on_block(block: Block) -> None:
            for line in left_out(block):
                messages.note(line)
            statuses.update(block.status)
            advance(len(block))

        count = write_index(
            out,
            predictor,
            labelled.root,
            examples,
            dataset=labelled.name,
            split=split,
            overwrite=options.overwrite,
            on_block=on_block,
        )
    return Indexed(out, count, dict(statuses))


def default_index(weights: str | None) -> Path:
    """Where the index of ``--weights`` lies where nobody says otherwise.

    Beside the checkpoint; of an embedded model in the current folder, since its own is the installation's.
    """
    path, entry = resolve_weights(weights)
    return index_path(Path(path.name) if entry else path)


def _open_main_stage(weights: str | None) -> Checkpoint:
    """The checkpoint; a multi-stage ViT stops after the first stage, which its embedding is of."""
    checkpoint = open_weights(weights)
    if not hasattr(checkpoint.model.config, "cascade"):
        return checkpoint
    return open_weights(weights, options={"cascade": 0.0})
