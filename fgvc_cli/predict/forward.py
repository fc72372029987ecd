"""Batches of pixels through the model: one upload, one download, no wait in between.

Legend: B images of a batch, S side of the model's input, k predictions per row, P parts, K classes, D width
of the embedding, h w of a map.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from fgvc_cli.config import Preprocess
from fgvc_cli.engine.device import Precision, computing, is_out_of_memory, release_memory
from fgvc_cli.errors import FgvcError
from fgvc_cli.evaluate.confidence import Novelty, mean_probs
from fgvc_cli.formats.rows import RunInfo
from fgvc_cli.models.fuse_batchnorm import fold_batch_norms
from fgvc_cli.models.output import ModelOutput, Want, normalize

Answers = dict[str, np.ndarray]
"""Per image of a batch, float32: ``prob`` (B, k), ``index`` (B, k), ``box`` (B, 4) and ``parts`` (B, P, 4) in
input pixels, ``embedding`` (B, D), ``logits`` (B, K), ``novelty`` (B, 1), ``rolled`` (B, 3), see ``RollUp``:
rank, node and probability; ``attention`` (B, h, w) float16. Only what the model gives and the run asks
for."""

RollUp = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""See ``evaluate.metrics.RollUp``."""


@dataclass(frozen=True)
class Member:
    """A model whose probabilities are averaged with those of the first."""

    model: nn.Module
    preprocess: Preprocess
    temperature: float
    order: list[int]
    """The place of each class of the run among its own."""
    view: int = 0
    """Which of the inputs that were made of an image it sees, 0 being the first model's."""


_TINY = torch.finfo(torch.float32).tiny


@dataclass
class Launched:
    """Batches that may still be under way on the device."""

    pieces: list[_Piece | None] = field(default_factory=list)
    """None: one image for which there was not enough memory."""

    def answers(self) -> list[Answers | None]:
        """Wait for them; one entry per piece, in the order of the images."""
        return [piece.answers() if piece else None for piece in self.pieces]


@dataclass
class _Piece:
    count: int
    """Images, without padding."""
    columns: dict[str, tuple[int, ...]]
    """Name -> shape of one image's values in ``packed``, in their order."""
    packed: Tensor
    """On the host, float32 (B, all columns)."""
    attention: Tensor | None
    ready: torch.cuda.Event | None

    def answers(self) -> Answers:
        if self.ready:
            self.ready.synchronize()
        widths = [int(np.prod(shape)) for shape in self.columns.values()]
        parts = self.packed[: self.count].split(widths, dim=1)
        named = zip(self.columns.items(), parts, strict=True)
        result = {name: part.reshape(-1, *shape).numpy() for (name, shape), part in named}
        if self.attention is not None:
            result["attention"] = self.attention[: self.count].numpy()
        return result


class Forward:
    """The model on its device.

    Args:
        size: images per forward pass; shrinks where memory does not suffice. 0: set before the first launch.
        pad: fill every batch to ``size``, so that the model sees one shape.
        tell: gets one line for people.
        others: further models; boxes, maps and embeddings stay those of ``model``.
        flip: the mean over the image and its mirror image; boxes, maps and embeddings are of the image.
        roll_up: of the probabilities.
    """

    def __init__(
        self,
        model: nn.Module,
        info: RunInfo,
        device: torch.device,
        *,
        size: int,
        pad: bool,
        compiled: bool,
        tell: Callable[[str], None],
        others: Sequence[Member] = (),
        flip: bool = False,
        roll_up: RollUp | None = None,
    ):
        self.size = size
        self.precision: Precision = "float32"
        self.temperature = 1.0
        self.novelty: Novelty | None = None
        """What gives each image a score, where asked for."""
        self.possible: Tensor | None = None
        """bool (K,): the classes that can occur; None: all."""
        self._info = info
        self._device = device
        self.folded = False
        """Whether batch norms became part of the convolutions before them."""
        self._others, self._flip, self._roll_up = others, flip, roll_up
        self._inputs = [(0, info.preprocess), *((member.view, member.preprocess) for member in others)]
        self._sides = [side for _, side in sorted({(view, own.input_px) for view, own in self._inputs})]
        modules = [model, *(member.model for member in others)]
        self._plain = [
            self._prepared(module, own) for module, (_, own) in zip(modules, self._inputs, strict=True)
        ]
        self._models: list[Callable[..., ModelOutput]] = [
            torch.compile(plain, dynamic=False) if compiled else plain for plain in self._plain
        ]
        self._compiled = compiled
        self._measuring = False
        self._pad = pad
        self._tell = tell
        self._streams = (torch.cuda.Stream(device), torch.cuda.Stream(device)) if self._on_cuda else None

    def _prepared(self, model: nn.Module, preprocess: Preprocess) -> nn.Module:
        side = preprocess.input_px
        noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        folded = fold_batch_norms(model.eval(), noise)
        self.folded |= folded is not model
        return folded.to(self._device).to(memory_format=torch.channels_last)

    @property
    def _on_cuda(self) -> bool:
        return self._device.type == "cuda"

    def launch(self, pixels: Sequence[np.ndarray], *others: Sequence[np.ndarray]) -> Launched:
        """Images uint8 (S, S, 3) -> their answers to come.

        Args:
            others: the same images as further models see them.

        Out of memory halves ``size`` for this batch and all to come; no image is lost.
        """
        launched, start = Launched(), 0
        while start < len(pixels):
            chunk = [view[start : start + self.size] for view in (pixels, *others)]
            piece, failed = self._try(chunk)
            # Not inside an except clause, whose traceback would hold the memory of the failed pass.
            tried = self.size if self._pad else len(chunk[0])
            if failed and tried > 1:
                self._shrink(tried)
                continue
            launched.pieces.append(piece)
            start += len(chunk[0])
        return launched

    def seconds(self, count: int, precision: Precision | None = None, rounds: int = 2) -> float:
        """Time of a forward pass over so many images of noise, uncompiled, the best of ``rounds``."""
        rng = np.random.default_rng(0)
        noise = [rng.integers(0, 256, (side, side, 3), np.uint8) for side in self._sides]
        before = self.precision, self.size
        self.precision, self.size, self._measuring = precision or self.precision, count, True
        try:
            taken = []
            for _ in range(rounds):
                start = time.perf_counter()
                self._run([[view] * count for view in noise]).answers()
                taken.append(time.perf_counter() - start)
            return min(taken)
        finally:
            self._measuring = False
            self.precision, self.size = before

    def _try(self, chunk: Sequence[Sequence[np.ndarray]]) -> tuple[_Piece | None, bool]:
        """The piece, and whether memory did not suffice."""
        try:
            # Else pinned memory and events would open a context on the first card too.
            with torch.cuda.device(self._device) if self._on_cuda else contextlib.nullcontext():
                return self._run(chunk), False
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None, True

    def _shrink(self, tried: int) -> None:
        release_memory(self._device)
        self.size = tried // 2
        self._tell(f"Out of memory with {tried} images at once: going on with {self.size}.")

    @torch.inference_mode()
    def _run(self, chunk: Sequence[Sequence[np.ndarray]]) -> _Piece:
        uploaded = [self._upload(view, side) for view, side in zip(chunk, self._sides, strict=True)]
        images = [normalize(uploaded[view], own) for view, own in self._inputs]
        with computing(self._device, self.precision):
            output = self._call(0, images[0], self._want())
            told = [[output.probs]]
            told += [[self._call(place, own).probs] for place, own in enumerate(images[1:], start=1)]
            for place, own in enumerate(images if self._flip else ()):
                told[place].append(self._call(place, own.flip(-1)).probs)
            for place, member in enumerate(self._others, start=1):
                told[place] = [probs[:, member.order] for probs in told[place]]
        columns = self._columns(output, told)
        attention = None
        if "attention" in self._info.extras:
            attention = self._given(output.heat, "attention").to(torch.float16)
        packed = torch.cat([values.flatten(1).float() for values in columns.values()], dim=1)
        shapes = {name: tuple(values.shape[1:]) for name, values in columns.items()}
        return self._download(len(chunk[0]), shapes, packed, attention)

    def _call(self, place: int, images: Tensor, want: tuple[Want, ...] = ()) -> ModelOutput:
        """What the model at a place says, the first being 0."""
        if self._measuring or not self._compiled:
            output: ModelOutput = self._plain[place](images, want=want)
            return output
        try:
            return self._models[place](images, want=want)
        # The compiler raises anything, from a missing C++ compiler to its own bugs.
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self._compiled = False
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        self._tell(f"Could not compile the model, going on without: {reason}")
        return self._call(place, images, want)

    def _want(self) -> tuple[Want, ...]:
        extras = self._info.extras
        want: list[Want] = ["boxes"]
        want += ["parts"] if self._info.parts else []
        want += ["heat"] if "attention" in extras else []
        want += ["embedding"] if "embedding" in extras or self.novelty else []
        return tuple(want)

    def _columns(self, output: ModelOutput, told: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        probs, order = self._probs(told)
        index = order.topk(self._info.top_k, dim=1).indices
        best = probs.gather(1, index)
        # float32 holds every index up to 16 million.
        columns = {"prob": best, "index": index, "box": output.boxes, "parts": output.parts}
        if "embedding" in self._info.extras:
            columns["embedding"] = self._given(output.embedding, "embedding")
        if self.novelty:
            embedding = self._given(output.embedding, "embedding")
            columns["novelty"] = self.novelty.scores(embedding)[:, None]
        if "logits" in self._info.extras:
            columns["logits"] = probs.clamp_min(_TINY).log()
        if self._roll_up:
            columns["rolled"] = torch.stack([values.float() for values in self._roll_up(probs)], dim=1)
        return {name: values for name, values in columns.items() if values is not None}

    def _probs(self, told: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
        """The probabilities (B, K) that rows tell: calibrated, the mean of all passes, and over the possible
        classes only; and values of their order, since a temperature can make two close probabilities equal.

        Args:
            told: of each model, of each of its passes, the probabilities (B, K), uncalibrated.
        """
        passes = [probs for own in told for probs in own]
        temperatures = [self.temperature, *(member.temperature for member in self._others)]
        # Of several labels each stands alone: no temperature, and nothing to share out.
        probs = mean_probs(passes, [t for t, own in zip(temperatures, told, strict=True) for _ in own])
        order = passes[0].float() if len(passes) == 1 else probs
        if self.possible is None:
            return probs, order
        possible = self.possible.to(probs.device)
        # A model can be so sure of another class that the possible ones have nothing left.
        left = probs.clamp_min(_TINY).where(possible, 0.0)
        if not self._info.multi_label:
            left = left / left.sum(dim=1, keepdim=True)
        return left, order.where(possible, -1.0)

    def _given(self, values: Tensor | None, extra: str) -> Tensor:
        if values is None:
            raise FgvcError(f"{self._info.model} gives no {extra}.", "Leave it away.")
        return values

    def _upload(self, chunk: Sequence[np.ndarray], side: int) -> Tensor:
        """uint8 (B, 3, S, S) on the device, channels last, padded by repeating the last image."""
        count = max(self.size, len(chunk)) if self._pad else len(chunk)
        # Pinned memory comes from a pool of torch's that waits for copies under way before reusing it.
        host = torch.empty(count, side, side, 3, dtype=torch.uint8, pin_memory=self._on_cuda)
        np.stack([*chunk, *[chunk[-1]] * (count - len(chunk))], out=host.numpy())
        images = host.permute(0, 3, 1, 2)
        if not self._streams:
            return images
        with torch.cuda.stream(self._streams[0]):
            uploaded = images.to(self._device, non_blocking=True)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._streams[0])
        uploaded.record_stream(current)
        return uploaded

    def _download(
        self, count: int, shapes: dict[str, tuple[int, ...]], packed: Tensor, attention: Tensor | None
    ) -> _Piece:
        if not self._streams:
            return _Piece(count, shapes, packed, attention, None)
        stream = self._streams[1]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            host, host_attention = _to_pinned(packed), None if attention is None else _to_pinned(attention)
            for values in (packed, attention):
                if values is not None:
                    values.record_stream(stream)
            ready = torch.cuda.Event()
            ready.record(stream)
        return _Piece(count, shapes, host, host_attention, ready)


def _to_pinned(values: Tensor) -> Tensor:
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
