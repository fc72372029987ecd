"""Classifying by an index: the classes of known images, the trained ones and others, without training.

An index (``retrieval.index_file``) holds embeddings of length 1. A class is as close to an image as its
nearest image is (``neighbours``), or as the mean of its images is (``means``), by the cosine s; its
probability is softmax(s / T) over the classes. T is chosen on the index itself, each image being judged by
all others (leave-one-out), as ``fit_temperature`` chooses one, and stored in it.

Legend: N images of the index, D embedding width, C classes, B images of a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from fgvc_cli.data.listing import first_names
from fgvc_cli.engine.checkpoint import Checkpoint, file_sha256
from fgvc_cli.engine.device import computing
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.evaluate.confidence import fit_temperature
from fgvc_cli.models.output import ModelOutput, Want

FORMAT = "fgvc index"
SCHEMA_VERSION = 1
METRIC = "cosine"

By = Literal["neighbours", "means"]
SHARPNESS = 20.0
"""Cosines are a narrow scale: what is fitted is the temperature of the softmax of so many times these."""
QUERIES = 2000
"""Images of a large index, evenly spread, by which its temperature is chosen."""
CHUNK_ROWS = 8192


def unit(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings (B, D) as they are stored and compared: scaled to length 1, then float16.

    float16 moves a cosine by 0.001 at most, and makes the search exact (see ``retrieval.index_file``).
    """
    values = np.asarray(embeddings, np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / np.where(lengths > 0, lengths, 1)).astype(np.float16)


def require_index(path: Path, weights: str | None) -> None:
    """Whether there is a file, before anything heavy is done.

    Args:
        weights: as ``--weights`` named them, for the hint.

    Raises:
        FgvcError: there is none.
    """
    if not path.is_file():
        named = f" --weights {weights}" if weights else ""
        raise FgvcError(
            f"There is no index {path}.",
            f"Make it with fgvc index{named} --out {path}, or name another with --index.",
        )


def open_index(path: Path, weights_sha256: str | None) -> h5py.File:
    """The file of an index, read-only, to be closed.

    Args:
        weights_sha256: of the checkpoint whose embeddings will be looked up; None takes the caller's word.

    Raises:
        FgvcError: no such file, no index, one of a newer version or of other weights.
    """
    require_index(path, None)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise FgvcError(f"{path} cannot be read as HDF5: {' '.join(str(error).split())}.") from error
    try:
        _check(path, file.attrs, weights_sha256)
    except FgvcError:
        file.close()
        raise
    return file


def _check(path: Path, attributes: Any, weights_sha256: str | None) -> None:
    if attributes.get("format") != FORMAT or attributes.get("metric") != METRIC:
        raise FgvcError(f"{path} is not an index that fgvc index wrote.", "Name its file.")
    if attributes["schema_version"] > SCHEMA_VERSION:
        raise FgvcError(
            f"{path} was written by a newer fgvc ({attributes['fgvc_version']}).",
            "pip install --upgrade fgvc",
        )
    made = attributes["weights_sha256"]
    if weights_sha256 is not None and made != weights_sha256:
        raise FgvcError(
            f"{path} is an index of other weights (sha256 {made[:12]}..., these are "
            f"{weights_sha256[:12]}...).",
            f"Make it anew: fgvc index --weights W --out {path} --overwrite",
        )


class KnownImages:
    """Embeddings of known images on the device that asks, and how close each class is to others.

    Args:
        vectors: float16 (N, D), of length 1.
        labels: (N,), class indices.
        count: C; classes without an image are infinitely far.
    """

    def __init__(self, vectors: np.ndarray, labels: np.ndarray, count: int):
        self.vectors, self.labels, self.count = torch.from_numpy(vectors), torch.from_numpy(labels), count
        self.sums = torch.zeros(count, vectors.shape[1], dtype=torch.float64)
        for rows in self._chunks():
            self.sums.index_add_(0, self.labels[rows], self.vectors[rows].double())
        self.sizes = torch.bincount(self.labels, minlength=count)
        self._there: dict[tuple[torch.device, By], tuple[Tensor, Tensor]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """It never changes: copies of a model share it."""
        return self

    def _chunks(self) -> Iterator[slice]:
        return (slice(start, start + CHUNK_ROWS) for start in range(0, len(self.labels), CHUNK_ROWS))

    def scores(self, embeddings: Tensor, by: By) -> Tensor:
        """Cosines of images (B, D), float32 of any length, and the classes: (B, C), -inf without an image."""
        queries = nn.functional.normalize(embeddings, dim=1)
        known, owner = self._on(embeddings.device, by)
        result = queries.new_full((len(queries), self.count), -torch.inf)
        if by == "means":
            return torch.where(owner > 0, queries @ known.T, result)
        for rows in self._chunks():
            cosines = queries @ known[rows].float().T
            result.scatter_reduce_(1, owner[rows].expand_as(cosines), cosines, "amax")
        return result

    def _on(self, device: torch.device, by: By) -> tuple[Tensor, Tensor]:
        """What is compared with, on a device, and whose it is: images and labels, or means and sizes."""
        if (device, by) not in self._there:
            means = nn.functional.normalize(self.sums, dim=1).float()
            known, owner = (self.vectors, self.labels) if by == "neighbours" else (means, self.sizes)
            self._there[device, by] = known.to(device), owner.to(device)
        return self._there[device, by]

    def temperature(self, by: By) -> float:
        """T by leave-one-out; 1/20 where no class has two images."""
        own = torch.nonzero(self.sizes[self.labels] > 1).flatten()
        rows = own[torch.linspace(0, len(own) - 1, min(len(own), QUERIES)).long()] if len(own) else own
        if not len(rows):
            return 1 / SHARPNESS
        queries, labels = self.vectors[rows].float(), self.labels[rows]
        if by == "means":
            scores = self.scores(queries, by)
            rest = nn.functional.normalize(self.sums[labels] - queries.double(), dim=1).float()
            scores[torch.arange(len(rows)), labels] = (queries * rest).sum(dim=1)
        else:
            scores = torch.full((len(rows), self.count), -torch.inf)
            for chunk in self._chunks():
                cosines = queries @ self.vectors[chunk].float().T
                here = (rows >= chunk.start) & (rows < chunk.start + cosines.shape[1])
                cosines[here, rows[here] - chunk.start] = -torch.inf
                scores.scatter_reduce_(1, self.labels[chunk].expand_as(cosines), cosines, "amax")
        filled = self.sizes > 0
        places = filled.cumsum(0) - 1
        probs = (SHARPNESS * scores[:, filled]).softmax(dim=1)
        return fit_temperature(probs, places[labels]) / SHARPNESS


def read_known(path: Path, file: h5py.File) -> KnownImages:
    """The images of an open index.

    Raises:
        FgvcError: images with several labels, of which no one class is the nearest.
    """
    labels = file["class_index"][:].astype(np.int64)
    if (labels[:, 1:] >= 0).any() or (labels[:, 0] < 0).any():
        raise FgvcError(
            f"{path} holds images with several labels or none; classifying by an index needs one of each.",
            "Leave --index out.",
        )
    return KnownImages(file["embedding"][:], labels[:, 0].copy(), len(file.attrs["class_names"]))


def store_temperatures(file: h5py.File) -> None:
    """Choose the temperatures of an index that is being written, where its images have one label each."""
    labels = file["class_index"][:]
    if not (labels[:, 1:] >= 0).any() and (labels[:, 0] >= 0).all():
        known = KnownImages(
            file["embedding"][:], labels[:, 0].astype(np.int64), len(file.attrs["class_names"])
        )
        for by in get_args(By):
            file.attrs[f"temperature_{by}"] = known.temperature(by)


class IndexModel(nn.Module):
    """A model that answers with the classes of an index; all else of its answer is the model's own."""

    def __init__(self, model: nn.Module, known: KnownImages, by: By, temperature: float):
        super().__init__()
        self.model, self.by, self.temperature = model, by, temperature
        self.known = known
        self.config = getattr(model, "config", None)
        self.part_count = int(getattr(model, "part_count", 0))

    def forward(self, images: Tensor, want: Collection[Want] = ()) -> ModelOutput:
        """Normalised images (B, 3, H, W) -> the model's output, ``probs`` (B, C) being the index's."""
        output: ModelOutput = self.model(images, want={*want, "embedding"})
        if output.embedding is None:
            raise FgvcError("This model gives no embedding.", "Leave --index out.")
        embeddings = output.embedding
        # A cosine in bfloat16 or TF32 is off by as much as look-alike classes differ.
        with computing(images.device, "float32"):
            scores = self.known.scores(embeddings.float(), self.by)
        answer = copy.copy(output)
        answer.probs, answer.logits, answer.part_logits = (scores / self.temperature).softmax(dim=1), {}, None
        answer.embedding = embeddings if "embedding" in want else None
        return answer


def classify_by_index(
    checkpoint: Checkpoint,
    path: Path | str,
    by: By = "means",
    tell: Callable[[str], None] = lambda text: None,
) -> Checkpoint:
    """The checkpoint with the classes of an index in place of its own.

    Args:
        path: of the index, made with these weights.
        by: what stands for a class: its nearest image, or the mean of all.
        tell: gets one line for people.

    Returns:
        A checkpoint whose model answers so; ``metadata["index"]`` is what a run records: sha256 of the file,
        ``by``, temperature, images.

    Raises:
        FgvcError: as ``open_index``; another ``by``; several labels per image.
    """
    path = Path(path)
    if by not in get_args(By):
        raise FgvcError(f"--by got {by!r}, expected {' or '.join(get_args(By))}.", None, EXIT_USAGE)
    if checkpoint.multi_label:
        raise FgvcError(
            "--index is for models that tell one class, this one tells several labels per image.",
            "Leave it out.",
            EXIT_USAGE,
        )
    with closing(open_index(path, checkpoint.sha256)) as file:
        known = read_known(path, file)
        classes = tuple(str(name) for name in file.attrs["class_names"])
        stored = file.attrs.get(f"temperature_{by}")  # an index of an earlier fgvc has none
    temperature = float(known.temperature(by) if stored is None else stored)
    empty = [name for name, size in zip(classes, known.sizes.tolist(), strict=True) if not size]
    if empty:
        tell(
            f"{len(empty):,} of the {len(classes):,} classes have no image in {path.name} and are never "
            f"predicted: {first_names(empty)}."
        )
    about = {"sha256": file_sha256(path), "by": by, "temperature": temperature, "images": len(known.labels)}
    metadata = {name: value for name, value in checkpoint.metadata.items() if name != "calibration"}
    return replace(
        checkpoint,
        model=IndexModel(checkpoint.model, known, by, temperature),  # type: ignore[arg-type]
        classes=classes,
        metadata=metadata | {"index": about},
        temperature=1.0,
        novelty=None,  # of the training's classes: images of added ones are unlike them
    )
