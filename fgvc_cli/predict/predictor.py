"""Images -> blocks of rows: decode ahead, predict in batches, one row per image in order, flat memory.

Legend: n rows of a block, B images of them that the model answered for, S side of the model's input, k
predictions per row, P parts.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast, get_args

import numpy as np

from fgvc_cli.config import Preprocess, usable_cpus, worker_count
from fgvc_cli.data.geometry import boxes_in_image
from fgvc_cli.data.names import class_order, find_names, same_form
from fgvc_cli.engine.device import Amp, Precision, best_batch_size, choose_precision, pick_device, uses_tf32
from fgvc_cli.engine.graph import Answered, Graph, GraphForward, Runtime, check_runtime, is_graph, refuse
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.formats.rows import COLUMNS, UNKNOWN, UNSURE, Block, Extra, Row, RunInfo, Value
from fgvc_cli.predict.decoding import (
    DecodePool,
    DecodeSettings,
    Loaded,
    Read,
    Rule,
    delayed,
    in_order,
    until_full,
)
from fgvc_cli.sources.boxes import NoBox, Placed, Region
from fgvc_cli.sources.find import EXTENSIONS, Found, find_images
from fgvc_cli.sources.images import OK, Failure, read_image

if TYPE_CHECKING:
    # A graph does without torch, whose import takes longer than many a run.
    import torch
    from torch import nn

    from fgvc_cli.data.taxonomy import Taxonomy
    from fgvc_cli.engine.checkpoint import Checkpoint
    from fgvc_cli.engine.index_classes import By
    from fgvc_cli.evaluate.confidence import Novelty
    from fgvc_cli.evaluate.metrics import RollUp
    from fgvc_cli.predict.forward import Answers, Forward, Launched, Member

AUTO: Literal["auto"] = "auto"
ON: Literal["on"] = "on"
OFF: Literal["off"] = "off"
Unknown = Literal["on", "off"] | float
"""Whether rows can be ``unknown``, or beyond which novelty they are."""

EXIF_COLUMNS = ("date", "latitude", "longitude", "camera")
ROLLUP_COLUMNS = ("rank", "rank_label", "rank_prob")

KEEP_BYTES = 1 << 30
"""Images kept in memory until their crops are cut, in all workers together; the rest is read again."""

AHEAD_BYTES = 1 << 30
"""Decoded inputs that wait for the model."""

WAIT_SECONDS, WAITS = 20.0, 0.3
"""After so long, a model that waited more than this fraction of the time for images is told of."""

PROBE_IMAGES = 200
"""A probe costs as much as some 100 images."""

PROBE_BATCH = 16
"""Of the probe of precision where the batch size is yet to be measured."""

CropBox = Callable[[Sequence[float] | None, tuple[int, int]], Sequence[float] | None]
"""(object box, (width, height) of its image) -> what to cut of it, xyxy pixels, None for nothing."""

Sources = str | Path | Iterable[str | Path] | Iterable[Found]


NO_MEMORY = Failure("no_memory", "not enough memory for the model, even with this image alone")


@dataclass
class RowBatch:
    """Rows of a block on their way, in order."""

    items: list[Loaded]
    failures: list[Failure | None] = field(default_factory=list)
    """Per item; from decoding, and then from the model."""
    answered: np.ndarray = field(default_factory=lambda: np.empty(0, np.intp))
    """Which items the model answered for, (B,)."""
    answers: Answers = field(default_factory=dict)
    """Joined, boxes in pixels of the image, or of what a given box shows of it."""

    def __post_init__(self) -> None:
        self.failures = [item.decoded.failure for item in self.items]

    @property
    def readable(self) -> list[int]:
        """Items with pixels."""
        return [i for i, item in enumerate(self.items) if item.decoded.pixels is not None]

    def take(self, pieces: Sequence[Answers | None], preprocess: Preprocess) -> None:
        """Lay the answers, piece by piece, to their items; a piece of None is one image without memory."""
        readable, rows = iter(self.readable), []
        for piece in pieces:
            if piece is None:
                self.failures[next(readable)] = NO_MEMORY
            else:
                rows += [next(readable) for _ in range(len(piece["prob"]))]
        self.answered = np.array(rows, np.intp)
        given = [piece for piece in pieces if piece is not None]
        if given:
            self.answers = {name: np.concatenate([piece[name] for piece in given]) for name in given[0]}
            sizes = [self.items[row].decoded[1:3] for row in rows]
            for name in ("box", "parts"):
                if name in self.answers:
                    self.answers[name] = boxes_in_image(self.answers[name], sizes, preprocess)

    def boxes(self) -> list[list[float] | None]:
        """What crops show of each item: the object box, where there is one; of a given box all of it."""
        boxes: list[list[float] | None] = [None] * len(self.items)
        for row, box in zip(self.answered.tolist(), self.answers.get("box", ()), strict=False):
            boxes[row] = None if np.isnan(box).any() else box.tolist()
        for row, item in enumerate(self.items):
            if item.decoded.placed:
                boxes[row] = [0.0, 0.0, *map(float, item.decoded[1:3])]
        return boxes

    def in_whole_image(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (n, 4) or (n, P, 4) of all items, from what is cut to the image it is cut from."""
        placed = [item.decoded.placed for item in self.items]
        corners = np.array([p.region[:2] * 2 if p else (0,) * 4 for p in placed], boxes.dtype)
        return boxes + corners.reshape(len(boxes), *[1] * (boxes.ndim - 2), 4)


def build_block(
    batch: RowBatch,
    info: RunInfo,
    *,
    first: int,
    crops: list[bytes] | None,
    doubt: Doubt,
    roll_up: RollUp | None = None,
) -> Block:
    """The block of a batch.

    Args:
        crops: per item, where asked for.
        doubt: what makes a row unsure or unknown.
        roll_up: what made ``rolled`` of the answers.
    """
    rows, answers, count = batch.answered, batch.answers, len(batch.items)

    def column(name: str, shape: tuple[int, ...], fill: float, dtype: type = np.float32) -> np.ndarray:
        values: np.ndarray = np.full((count, *shape), fill, dtype)
        if name in answers:
            values[rows] = answers[name]
        return values

    def extra(name: str) -> np.ndarray | None:
        # Its shape is the model's affair: unknown while no image was readable.
        return (
            column(name, answers[name].shape[1:], np.nan, answers[name].dtype.type)
            if name in answers
            else None
        )

    status: list[str] = [failure.status if failure else OK for failure in batch.failures]
    size = np.zeros((count, 2), np.int32)
    decoded = [batch.items[row].decoded for row in rows]
    size[rows] = [d.placed.size if d.placed else d[1:3] for d in decoded] or np.zeros((0, 2))
    known = [row_columns(item.found, item.decoded.placed) for item in batch.items]
    more = {name: COLUMNS[name].values([row.get(name) for row in known]) for name in info.columns}
    if "novelty" in info.columns:
        more["novelty"] = column("novelty", (1,), np.nan, np.float64)[:, 0]
    for row, told in zip(rows.tolist(), doubt.statuses(answers) if len(rows) else (), strict=True):
        status[row] = told
    return Block(
        first=first,
        path=[item.found.name for item in batch.items],
        status=status,
        error=[failure.error if failure else "" for failure in batch.failures],
        size=size,
        topk_index=column("index", (info.top_k,), -1, np.int32),
        topk_prob=column("prob", (info.top_k,), np.nan),
        box=batch.in_whole_image(column("box", (4,), np.nan)),
        parts=batch.in_whole_image(column("parts", (info.parts, 4), np.nan)),
        attention=extra("attention"),
        crop=crops,
        embedding=extra("embedding"),
        logits=extra("logits"),
        more=more | build_columns(batch, info, roll_up),
    )


def build_columns(
    batch: RowBatch, info: RunInfo, roll_up: RollUp | None
) -> dict[str, list[str] | np.ndarray]:
    """Of ``COLUMNS``, those that a run has and that are known now."""
    values: dict[str, list[Value | None]] = {
        name: [getattr(item.decoded.taken, name) for item in batch.items]
        for name in EXIF_COLUMNS
        if name in info.columns
    }
    if roll_up:
        found: list[tuple[Value | None, ...]] = [(None, None, None)] * len(batch.items)
        for row, (rank, node, prob) in zip(
            batch.answered.tolist(), batch.answers.get("rolled", np.empty((0, 3))).tolist(), strict=True
        ):
            if rank >= 0:
                name = roll_up.label(int(rank), int(node), info.classes)
                found[row] = roll_up.ranks[int(rank)], name, prob
        values |= {name: [row[at] for row in found] for at, name in enumerate(ROLLUP_COLUMNS)}
    return {name: COLUMNS[name].values(own) for name, own in values.items()}


def row_columns(found: Found, placed: Placed | None) -> dict[str, Value]:
    """What a row has of ``COLUMNS`` without the model's help.

    Args:
        placed: where its box lies, of an image that could be read.
    """
    where = found.path
    values: dict[str, Value] = {}
    if isinstance(where, Region):
        box = where.box
        values = {"box_id": box.id, "given_label": box.label, "given_path": box.image}
        if not np.isnan(box.score):
            values["given_score"] = box.score
    if isinstance(where, NoBox):
        values["given_path"] = where.image
    if placed:
        values["given_box"] = placed.given
    return values


@dataclass(frozen=True)
class Doubt:
    """When a row that has a prediction is not ``ok``."""

    least: np.ndarray
    """Probability below which a row of each class is ``unsure``, float32 (K,)."""
    unknown: float | None = None
    """Novelty beyond which a row is ``unknown``; None: never."""

    def statuses(self, answers: Answers) -> list[str]:
        """``ok``, ``unsure`` or ``unknown`` for each answer."""
        unsure = answers["prob"][:, 0] < self.least[answers["index"][:, 0].astype(np.intp)]
        found = np.where(unsure, UNSURE, OK)
        if self.unknown is not None:
            found = np.where(answers["novelty"][:, 0] > self.unknown, UNKNOWN, found)
        return found.tolist()


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


class _Step(NamedTuple):
    batch: RowBatch
    launched: Launched | Answered | None
    crops: list[Future[bytes]] | None = None


class Predictor:
    """A trained model over any number of images.

        for row in Predictor("groceries").predict("photos"):
            print(row.path, row.labels[0], row.probs[0], row.box)

    Args:
        checkpoint: from ``load_checkpoint`` or ``open_weights``, whose model is moved to the device; or the
            name of embedded weights, or a file. Of several with the same classes rows tell the mean of the
            probabilities; boxes, parts, maps and embeddings are the first one's. Or one exported graph, a
            ``Graph`` or its ``.onnx``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; a ``Graph`` stays on its own.
        batch_size: images per forward pass; ``auto`` measures a little, at once.
        workers: decoding processes (threads where there is no POSIX, or with ``read``); 0 decodes in between,
            ``auto`` takes one per CPU.
        top_k: predictions per row; all classes where the model has fewer.
        extras: what blocks carry beside the predictions.
        min_prob: rows whose best probability is below it are ``unsure``.
        columns: of ``COLUMNS``, what rows have beside, such as ``BOX_COLUMNS`` for given boxes.
        thresholds: class -> the same for rows of that class, or the CSV of ``fgvc eval --thresholds``; the
            larger of the two counts.
        unknown: rows whose novelty is beyond it are ``unknown``; ``on`` is 1, ``off`` computes no novelty;
            None: on where the checkpoint has it.
        classes: names of the classes that can occur, or a file with one per line: the others get a
            probability of 0, which those share that can (not of a multi-label model).
        amp: ``none`` computes in strict float32, ``bf16`` in bfloat16 (what it leaves in float32 in TF32 on a
            card), ``auto`` as ``choose_precision``.
        compile: ``torch.compile`` the model; goes on without where that fails.
        fast_decode: decode large JPEGs at a fraction of their size. Sizes and boxes stay those of the
            image, crops come from the smaller copy, predictions change a little.
        tta: ``flip``: the mean over the image and its mirror image; boxes are of the image itself.
        taxonomy: of the classes, in place of the checkpoint's.
        rollup: rows tell the finest node of the taxonomy that is so probable.
        exif: rows tell when, where and with what camera an image was taken.
        crop_box: what crops show instead of the object box, such as ``data.geometry.surroundings``.
        index: file of ``fgvc index``, made with these weights: its classes, in place of the model's.
        by: what stands for a class of the index: its nearest image (``neighbours``) or the mean of all
            (``means``).
        read: path -> image or failure, in place of ``read_image``, called from threads.
        runtime: of an ``.onnx``, see ``engine.graph.pick_runtime``.
        expected: how many images are to come, where that is known: fewer than ``PROBE_IMAGES`` take less time
            than to find out which precision is the faster one.
        on_event: gets one line for people on each choice and mishap.

    Raises:
        FgvcError: a setting out of range, a device that is not there, unknown weights, classes that the model
            does not know, models of different classes, a roll-up without a taxonomy.
    """

    info: RunInfo
    """What all rows share. ``settings`` holds what ``amp`` and ``batch_size`` came to: batch size, device,
    compiler and folded batch norms change the last digits of a value. The number of threads did not, where
    it was tried."""

    def __init__(
        self,
        checkpoint: TrainedModel | Graph | str | Path | Sequence[TrainedModel | Graph | str | Path],
        *,
        device: str = AUTO,
        batch_size: int | Literal["auto"] = AUTO,
        workers: int | Literal["auto"] = 2,
        top_k: int = 5,
        extras: Iterable[Extra] = (),
        min_prob: float | None = None,
        columns: Iterable[str] = (),
        thresholds: str | Path | Mapping[str, float] | None = None,
        unknown: Unknown | None = None,
        classes: str | Path | Sequence[str] | None = None,
        amp: Amp = "none",
        compile: bool = False,
        fast_decode: bool = False,
        tta: Literal["flip"] | None = None,
        taxonomy: Taxonomy | None = None,
        rollup: float | None = None,
        exif: bool = False,
        crop_box: CropBox | None = None,
        index: str | Path | None = None,
        by: By = "means",
        read: Read | None = None,
        runtime: Runtime = "auto",
        expected: int | None = None,
        on_event: Callable[[str], None] | None = None,
    ):
        workers = worker_count(workers)
        wanted = _check(batch_size, workers, top_k, min_prob, extras)
        self._tell = on_event or (lambda text: None)
        given: Any = checkpoint if isinstance(checkpoint, list | tuple) else [checkpoint]
        trained, *others = [
            _open(each, runtime, device) if isinstance(each, str | Path) else each for each in given
        ]
        graph = next((each for each in (trained, *others) if isinstance(each, Graph)), None)
        if graph:
            asked = {"A second --weights": others, "--index": index, "--tta": tta, "--rollup": rollup}
            for name, value in asked.items():
                if value:
                    raise refuse(name, graph.path)
        if index is not None:
            if others:
                message = "--index goes with one model, whose embeddings it holds."
                raise FgvcError(message, "Name one --weights.", EXIT_USAGE)
            from fgvc_cli.engine.index_classes import classify_by_index

            trained = classify_by_index(cast("Checkpoint", trained), index, by, self._tell)
        model = None if graph else cast("TrainedModel", trained).model
        self.device = cast("torch.device", graph.device) if graph else pick_device(device)
        temperature = float(getattr(trained, "temperature", 1.0))
        settings: dict[str, Any] = {
            "options": graph.options if graph else _options(model),
            "temperature": temperature,
            "min_prob": min_prob,
            "fast_decode": fast_decode,
            "precision": "float32",
            "device": self.device.type,
            "compile": compile,
        }
        if getattr(trained, "multi_label", False):
            settings["multi_label"] = True
        if index is not None:
            settings["index"] = cast("Checkpoint", trained).metadata["index"]
        novelty = _novelty(trained, unknown)
        if novelty:
            settings["unknown"] = 1.0 if unknown in (None, ON) else float(unknown)
        possible = _possible(classes, trained.classes)
        if possible is not None:
            settings["classes"] = [trained.classes[i] for i in possible]
        least = np.full(len(trained.classes), min_prob or 0, np.float32)
        if thresholds is not None:
            settings["thresholds"] = {}
            for place, value in _thresholds(thresholds, trained).items():
                settings["thresholds"][trained.classes[place]] = value
                least[place] = max(least[place], value)
        self._rules, members = _join_members(trained, others)  # type: ignore[arg-type]
        if others:
            settings["others"] = [
                {
                    "model": other.name,
                    "weights_sha256": other.sha256,
                    "preprocess": other.preprocess.model_dump(mode="json"),
                    "options": _options(cast("TrainedModel", other).model),
                    "temperature": float(getattr(other, "temperature", 1.0)),
                }
                for other in others
            ]
        if tta:
            settings["tta"] = tta
        self._roll_up = None
        if rollup is not None:
            self._roll_up = _roll_up(trained, taxonomy, rollup)  # type: ignore[arg-type]
            digest = hashlib.sha256(json.dumps(self._roll_up.taxonomy.document()).encode()).hexdigest()
            settings["rollup"] = {"least": rollup, "taxonomy_sha256": digest}
        named = {*(EXIF_COLUMNS if exif else ()), *(ROLLUP_COLUMNS if self._roll_up else ())}
        named |= {"novelty"} if novelty else set()
        self.info = RunInfo(
            model=" + ".join(each.name for each in (trained, *others)),
            weights_sha256="+".join(each.sha256 for each in (trained, *others)),
            classes=trained.classes,
            preprocess=trained.preprocess,
            top_k=min(top_k, len(trained.classes if possible is None else possible)),
            parts=int(getattr(graph or model, "part_count", 0)),
            extras=wanted,
            settings=settings,
            columns=tuple(name for name in COLUMNS if name in {*columns, *named}),
        )
        self.clipped = 0
        """Given boxes so far that reached beyond their image."""
        self._crop_box = crop_box or (lambda box, size: box)
        self._read = None if read is read_image else read
        self._workers = workers
        self._noted: set[str] = set()
        self._told_of_waiting = False
        self._kept: DecodePool | None = None
        self._numbers = itertools.count()
        self._doubt = Doubt(least, settings.get("unknown"))
        self._fast_decode = fast_decode
        size = 1 if batch_size == AUTO else batch_size
        self._probe_count = PROBE_BATCH if batch_size == AUTO else batch_size
        probe = expected is None or expected >= PROBE_IMAGES
        self._forward: Forward | GraphForward
        if graph:
            settings |= graph.settings
            self._forward = GraphForward(
                graph, self.info, size=size, compiled=compile, possible=possible, tell=self._tell
            )
            chosen = graph.choose_precision(amp, self._probe_precision, self._tell, probe=probe)
            self._forward.precision = settings["precision"] = chosen
        else:
            import torch

            from fgvc_cli.predict.forward import Forward

            self._forward = forward = Forward(
                cast("nn.Module", model),
                self.info,
                self.device,
                size=size,
                # One shape for cuDNN's and the compiler's choices; on a plain CPU padding only costs time.
                pad=compile or self.device.type == "cuda",
                compiled=compile,
                tell=self._tell,
                others=members,
                flip=tta == "flip",
                roll_up=self._roll_up,
            )
            forward.temperature, forward.novelty = temperature, novelty
            if possible is not None:
                forward.possible = torch.zeros(len(trained.classes), dtype=torch.bool)
                forward.possible[possible] = True
            precision = choose_precision(amp, self.device, self._probe_precision, self._tell, probe=probe)
            forward.precision = settings["precision"] = precision
        if self.device.type == "cuda" and not graph:
            settings["tf32"] = uses_tf32(self.device, precision)
        if batch_size == AUTO:
            self._forward.size = best_batch_size(self._forward.seconds, self.device)
            self._tell(f"Batch size {self._forward.size}, the fastest in a short probe.")
        settings |= {
            "batch_size": self._forward.size,
            "batch_norm": "folded" if self._forward.folded else "own",
        }

    @property
    def batch_size(self) -> int:
        """Images per forward pass: as asked for, measured, or what memory has brought it down to."""
        return self._forward.size

    def predict(self, sources: Sources) -> Generator[Row, None, None]:
        """One row per image, in order, whatever the files hold.

        Args:
            sources: a folder, file or glob, several of them, or images from ``find_images``.

        Raises:
            FgvcError: at the call: a source that does not exist or holds no image.
        """
        return self._rows(_find(sources))

    def blocks(self, images: Iterable[Found], first: int = 0) -> Generator[Block, None, None]:
        """The rows in columns, in order: each block holds the images of one batch and the failures between.

        Images are taken lazily. Beside the block handed over, at most three batches (one without CUDA and
        crops) are under way, and one batch and one image per worker wait decoded. Closing the generator stops
        the workers. A run from the first row of any block on gives the same blocks again.

        Args:
            first: number of the first image in the run.
        """
        crops = "crop" in self.info.extras
        with contextlib.nullcontext(self._kept) if self._kept else self._decoders() as pool:
            loaded = in_order(
                lambda found: pool.load(next(self._numbers), found), images, window=self._window()
            )
            batches = until_full(
                self._watched(loaded), lambda: self.batch_size, lambda item: item.decoded.pixels is not None
            )
            launched = map(self._launch, batches)
            # While the device computes a batch, the one before is taken from it; while crops of one are cut,
            # the next is computed.
            answered = map(partial(self._answer, pool), delayed(launched, self.device.type == "cuda"))
            for step in delayed(answered, crops and self._workers > 0):
                block = self._block(step, first)
                first += len(block)
                yield block

    @contextlib.contextmanager
    def kept_decoders(self) -> Iterator[None]:
        """While it lasts, calls of ``blocks``, one after another, share their workers, which take a second to
        start."""
        with self._decoders() as self._kept:
            try:
                yield
            finally:
                self._kept = None

    def _decoders(self) -> closing[DecodePool]:
        settings = DecodeSettings(
            self._rules[0],
            self._fast_decode,
            KEEP_BYTES if "crop" in self.info.extras else 0,
            exif="date" in self.info.columns,
            others=tuple(self._rules[1:]),
        )
        return closing(DecodePool(settings, workers=self._workers, read=self._read))

    def _rows(self, images: Iterable[Found]) -> Generator[Row, None, None]:
        with closing(self.blocks(images)) as blocks:
            for block in blocks:
                yield from block.rows(self.info)

    def _watched(self, loaded: Iterable[Loaded]) -> Iterator[Loaded]:
        """The same; says once, of a run of some length, that the model waits for images."""
        start, waited, begun = time.monotonic(), 0.0, time.monotonic()
        for item in loaded:
            now = time.monotonic()
            waited += now - begun
            if now - start > WAIT_SECONDS and not self._told_of_waiting and self._workers:
                self._told_of_waiting, spare = True, usable_cpus() - self._workers
                if waited > WAITS * (now - start) and spare > 0:
                    self._tell(
                        f"The model waited for images {100 * waited / (now - start):.0f} % of the time: "
                        f"--workers {self._workers + spare} would use all CPUs, now {self._workers} decode."
                    )
            yield item
            begun = time.monotonic()

    def _window(self) -> int:
        if self._workers == 0:
            return 1
        room = AHEAD_BYTES // (3 * sum(rule.input_px**2 for rule in self._rules))
        return max(self._workers + 1, min(self.batch_size + self._workers, room))

    def _launch(self, items: list[Loaded]) -> _Step:
        batch = RowBatch(items)
        self.clipped += sum(bool(item.decoded.placed and item.decoded.placed.clipped) for item in items)
        for item in items:
            failure = item.decoded.failure
            if failure and failure.status == "crashed":
                self._tell(f"A decoder died and was replaced. {item.found.name}: {failure.error}.")
            if (note := item.decoded.note) and note not in self._noted:
                self._noted.add(note)
                self._tell(f"{item.found.name} {note}. (Said once per run.)")
        views = zip(
            *(
                (item.decoded.pixels, *item.decoded.others)
                for item in items
                if item.decoded.pixels is not None
            ),
            strict=True,
        )
        inputs = [list(view) for view in views]
        return _Step(batch, self._forward.launch(*inputs) if inputs else None)

    def _answer(self, pool: DecodePool, step: _Step) -> _Step:
        batch = step.batch
        if step.launched:
            batch.take(step.launched.answers(), self.info.preprocess)
        if "crop" not in self.info.extras:
            return _Step(batch, None)
        answered, crops = {*batch.answered.tolist()}, []
        for row, (item, box) in enumerate(zip(batch.items, batch.boxes(), strict=True)):
            shown = self._crop_box(box, item.decoded[1:3]) if row in answered else None
            crops.append(pool.cut(item, shown))
        return _Step(batch, None, crops)

    def _block(self, step: _Step, first: int) -> Block:
        crops = None if step.crops is None else [crop.result() for crop in step.crops]
        return build_block(
            step.batch, self.info, first=first, crops=crops, doubt=self._doubt, roll_up=self._roll_up
        )

    def _probe_precision(self, precision: Precision) -> None:
        """One pass over a batch as the run's own: with few images converting the weights hides the gain."""
        self._forward.seconds(self._probe_count, precision, rounds=1)


def _check(
    batch_size: int | str, workers: int, top_k: int, min_prob: float | None, extras: Iterable[Extra]
) -> tuple[Extra, ...]:
    """The extras, each once, sorted; raises ``FgvcError`` on settings out of range."""
    size = 1 if batch_size == AUTO else batch_size
    if not isinstance(size, int):
        raise FgvcError(f"The batch size is {size!r}, expected a number or auto.", None, EXIT_USAGE)
    for name, value, least in (("batch size", size, 1), ("workers", workers, 0), ("top-k", top_k, 1)):
        if value < least:
            raise FgvcError(f"The {name} is {value}, expected {least} or more.", None, EXIT_USAGE)
    if min_prob is not None and not 0 <= min_prob <= 1:
        raise FgvcError(f"The min-prob is {min_prob}, expected 0 to 1.", None, EXIT_USAGE)
    wanted = sorted(set(extras))
    for extra in wanted:
        if extra not in get_args(Extra):
            known = ", ".join(get_args(Extra))
            raise FgvcError(f"There is no extra {extra!r}, expected some of {known}.", None, EXIT_USAGE)
    return tuple(wanted)


def _join_members(first: TrainedModel, others: Sequence[TrainedModel]) -> tuple[list[Rule], list[Member]]:
    """The different inputs that are made of an image, the first model's first, and the further models.

    Raises:
        FgvcError: other classes than the first one's.
    """
    if not others:
        return [_rule(first.preprocess)], []
    from fgvc_cli.predict.forward import Member

    rules: dict[Rule, int] = {_rule(first.preprocess): 0}
    members = []
    for other in others:
        order = class_order(first.classes, other.classes, other.name, f"{first.name} tells")
        view = rules.setdefault(_rule(other.preprocess), len(rules))
        temperature = float(getattr(other, "temperature", 1.0))
        members.append(Member(other.model, other.preprocess, temperature, order, view))
    return list(rules), members


def _rule(preprocess: Preprocess) -> Rule:
    return Rule(*(getattr(preprocess, name) for name in Rule._fields))


def _roll_up(trained: TrainedModel, taxonomy: Taxonomy | None, least: float) -> RollUp:
    """What finds the answer of a row among the nodes.

    Raises:
        FgvcError: no taxonomy, a model of several labels, a probability out of range.
    """
    from fgvc_cli.evaluate.metrics import RollUp  # whose scikit-learn takes a second

    taxonomy = taxonomy or getattr(trained, "taxonomy", None)
    if taxonomy is None:
        message = f"--rollup needs the tree of the classes, which {trained.name} does not bring."
        raise FgvcError(message, "Add --taxonomy FILE.csv", EXIT_USAGE)
    if getattr(trained, "multi_label", False):
        message = "--rollup is for models that tell one class, this one tells several labels per image."
        raise FgvcError(message, "Leave it out.", EXIT_USAGE)
    if not 0 < least <= 1:
        raise FgvcError(f"--rollup got {least}, expected more than 0 and 1 at most.", None, EXIT_USAGE)
    return RollUp(taxonomy, least)


def _novelty(trained: TrainedModel | Graph, unknown: Unknown | None) -> Novelty | None:
    """What gives rows their novelty; None where that is not asked for, or by default not there."""
    if unknown == OFF:
        return None
    if unknown not in (None, ON) and not (isinstance(unknown, int | float) and unknown > 0):
        raise FgvcError(f"--unknown got {unknown!r}, expected on, off or a number above 0.", None, EXIT_USAGE)
    novelty: Novelty | None = getattr(trained, "novelty", None)
    if isinstance(trained, Graph) and unknown is not None:
        raise refuse("--unknown", trained.path)
    if novelty is None and unknown is not None:
        raise FgvcError(
            f"--unknown needs a checkpoint with novelty; this {trained.name} has none.",
            "fgvc eval --weights MODEL --split val --fit-novelty NEW.safetensors",
            EXIT_USAGE,
        )
    return novelty


def _possible(classes: str | Path | Sequence[str] | None, known: Sequence[str]) -> list[int] | None:
    """Numbers of the classes that can occur; None: all."""
    if classes is None:
        return None
    if isinstance(classes, str | Path):
        from fgvc_cli.evaluate.confidence import read_named

        classes = read_named(Path(classes), "--classes").splitlines()
    return find_names([line.strip() for line in classes if line.strip()], known, "--classes")


def _thresholds(
    thresholds: str | Path | Mapping[str, float], trained: TrainedModel | Graph
) -> dict[int, float]:
    """Number of a class -> probability below which its rows are unsure, in the order of the classes."""
    if getattr(trained, "multi_label", False):
        raise FgvcError(
            "--thresholds is for models that tell one class, this one tells several labels per image.",
            "Leave it out.",
            EXIT_USAGE,
        )
    if not isinstance(thresholds, Mapping):
        from fgvc_cli.evaluate.confidence import read_thresholds

        thresholds = read_thresholds(Path(thresholds))
    given = thresholds
    numbers = find_names(given, trained.classes, "--thresholds")
    forms = {same_form(name): float(value) for name, value in given.items()}
    return {index: forms[same_form(trained.classes[index])] for index in numbers}


def count_named(sources: Sequence[str | Path]) -> int | None:
    """How many images are named one by one; None where a source is a folder, list, archive or pattern."""
    named = all(Path(each).suffix.lower() in EXTENSIONS and os.path.isfile(each) for each in sources)
    return len(sources) if named else None


def _open(weights: str | Path, runtime: Runtime, device: str) -> TrainedModel | Graph:
    if is_graph(weights):
        return Graph(weights, runtime=runtime, device=device)
    check_runtime(runtime, weights)
    from fgvc_cli.engine.weights import open_weights

    return open_weights(os.fspath(weights))


def _options(model: nn.Module | None) -> dict[str, Any]:
    """Settings of the model's family, looks and cascade among them, as JSON values."""
    config = getattr(model, "config", None)
    return config.model_dump(mode="json") if hasattr(config, "model_dump") else {}  # type: ignore[union-attr]


def _find(sources: Sources) -> Iterable[Found]:
    if isinstance(sources, str | Path):
        return find_images([sources])
    if isinstance(sources, list | tuple) and sources and not isinstance(sources, Found):
        named = [source for source in sources if isinstance(source, str | Path)]
        if len(named) == len(sources):
            return find_images(named)
    return sources  # type: ignore[return-value]


__all__ = ["Predictor", "Sources", "TrainedModel"]
