"""Paths -> rows: decode ahead, predict in batches, one row per path in order, in flat memory.

Legend: B images of a batch, S side of the model's input, k predictions per row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fgvc_cli.config import Preprocess
from fgvc_cli.data.find import Found
from fgvc_cli.data.images import OK, DecodedImage, Failure, read_image
from fgvc_cli.data.transforms import eval_transform, input_geometry, normalize
from fgvc_cli.engine.device import pick_device
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.models.output import Want
from fgvc_cli.predict.prefetch import map_ahead
from fgvc_cli.predict.rows import Row, RunInfo


class TrainedModel(Protocol):
    """What a predictor needs of a checkpoint (``engine.checkpoint.Checkpoint``)."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def preprocess(self) -> Preprocess: ...
    @property
    def sha256(self) -> str: ...


@dataclass(frozen=True, slots=True)
class _Loaded:
    """One image ready for the model, or why it is not."""

    name: str
    pixels: Tensor | Failure
    """uint8 (3, S, S)."""
    width: int = 0
    height: int = 0


class _Answer(NamedTuple):
    """What the model says of one image, in input pixels."""

    probs: list[float]
    indices: list[int]
    box: list[float] | None
    parts: list[list[float]]


class Predictor:
    """A trained model over any number of photographs.

    Args:
        checkpoint: from ``load_checkpoint`` or ``open_weights``; its model is moved to the device.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        batch_size: images per forward pass.
        workers: threads that decode; 0 decodes in between.
        top_k: predictions per row; all classes where the model has fewer.
        read: path -> photograph or failure, called from the workers.

    Raises:
        FgvcError: a setting out of range, or a device that is not there.
    """

    def __init__(
        self,
        checkpoint: TrainedModel,
        *,
        device: str = "auto",
        batch_size: int = 16,
        workers: int = 2,
        top_k: int = 5,
        read: Callable[[Path], DecodedImage | Failure] = read_image,
    ):
        limits = (("batch size", batch_size, 1), ("workers", workers, 0), ("top-k", top_k, 1))
        for name, value, least in limits:
            if value < least:
                raise FgvcError(f"The {name} is {value}, expected {least} or more.", None, EXIT_USAGE)
        self.device = pick_device(device)
        self.info = RunInfo(
            model=checkpoint.name,
            weights_sha256=checkpoint.sha256,
            classes=checkpoint.classes,
            preprocess=checkpoint.preprocess,
            top_k=min(top_k, len(checkpoint.classes)),
            parts=int(checkpoint.model.part_count),  # type: ignore[arg-type]
        )
        self._model = checkpoint.model.eval().to(self.device).to(memory_format=torch.channels_last)
        self._transform = eval_transform(checkpoint.preprocess)
        self._read = read
        self._batch_size = batch_size
        self._workers = workers

    def predict(self, images: Iterable[Found]) -> Generator[Row, None, None]:
        """One row per image, in order, whatever the files hold.

        Images are taken lazily; beside the batch in the model, at most one batch and one image per worker
        wait decoded. Closing the iterator stops the workers.
        """
        window = self._batch_size + self._workers
        with closing(map_ahead(self._load, images, workers=self._workers, window=window)) as loaded:
            while batch := list(islice(loaded, self._batch_size)):
                yield from self._rows(batch)

    def _load(self, found: Found) -> _Loaded:
        """In a worker: the full photograph lives no longer than this call."""
        photo = self._read(found.path)
        if isinstance(photo, Failure):
            return _Loaded(found.name, photo)
        image = photo.image
        try:
            return _Loaded(found.name, self._transform(image), image.width, image.height)
        except (MemoryError, OSError, ValueError) as error:
            reason = str(error) or "out of memory"
            return _Loaded(found.name, Failure("unreadable", f"cannot be resized: {reason}"))

    def _rows(self, batch: list[_Loaded]) -> list[Row]:
        """Rows of a batch in its order; only readable images go through the model."""
        pixels = [item.pixels for item in batch if isinstance(item.pixels, Tensor)]
        answers = iter(self._answers(torch.stack(pixels)) if pixels else ())
        return [
            Row(item.name, item.pixels.status, item.pixels.error)
            if isinstance(item.pixels, Failure)
            else self._row(item, next(answers))
            for item in batch
        ]

    @torch.inference_mode()
    def _answers(self, pixels: Tensor) -> Iterator[_Answer]:
        """uint8 (B, 3, S, S) -> the answer for each image."""
        images = pixels.to(self.device, memory_format=torch.channels_last)
        want: tuple[Want, ...] = ("boxes", "parts") if self.info.parts else ("boxes",)
        output = self._model(normalize(images, self.info.preprocess), want=want)
        probs, indices = output.probs.float().topk(self.info.top_k, dim=1)
        boxes = [None] * len(pixels) if output.boxes is None else output.boxes.tolist()
        parts = [[]] * len(pixels) if output.parts is None else output.parts.tolist()
        answers = zip(probs.tolist(), indices.tolist(), boxes, parts, strict=True)
        return (_Answer(*answer) for answer in answers)

    def _row(self, item: _Loaded, answer: _Answer) -> Row:
        geometry = input_geometry(item.width, item.height, self.info.preprocess)
        return Row(
            path=item.name,
            status=OK,
            width=item.width,
            height=item.height,
            labels=tuple(self.info.classes[index] for index in answer.indices),
            probs=tuple(answer.probs),
            box=geometry.to_photo(answer.box) if answer.box else None,
            # NaN: a cascade stopped before the parts.
            parts=tuple(geometry.to_photo(part) for part in answer.parts if not math.isnan(part[0])),
        )
