"""An exported graph (``fgvc export``) that answers, through onnxruntime or OpenVINO, without torch.

Legend: B images of a batch, S side of the graph's input, k predictions per row, P parts, K classes, h w of a
map.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np

from fgvc_cli.engine.device import is_out_of_memory
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.formats.rows import RunInfo

Runtime = Literal["auto", "onnxruntime", "openvino"]
RUNTIMES: dict[str, str] = {
    "onnxruntime": "pip install 'fgvc[export]'",
    "openvino": "pip install 'fgvc[openvino]'",
}
"""Package -> how it is installed."""

INPUT = "images"
ENDING = ".onnx"

GraphPrecision = Literal["float32", "bf16", "int8"]

_TINY = np.finfo(np.float32).tiny


def is_graph(weights: str | os.PathLike[str] | None) -> bool:
    """Whether ``--weights`` names an exported graph rather than a model."""
    return weights is not None and os.fspath(weights).lower().endswith(ENDING)


def check_runtime(runtime: Runtime, weights: str | os.PathLike[str] | None) -> None:
    """Raise FgvcError where a runtime is asked for that a model of torch has no use for."""
    if runtime != "auto":
        raise FgvcError(
            f"--runtime {runtime} is for exported graphs, got {os.fspath(weights or 'the default model')}.",
            "fgvc export --weights MODEL --out model.onnx writes one.",
            EXIT_USAGE,
        )


def refuse(option: str, weights: str | os.PathLike[str] | None) -> FgvcError:
    """The error for an option that only a model of torch has."""
    name = os.path.basename(os.fspath(weights or ""))
    return FgvcError(
        f"{option} is not for an exported graph, which is one fixed computation.",
        f"Leave it away, or name the model that {name} was exported from.",
        EXIT_USAGE,
    )


class Place(NamedTuple):
    """Where a graph is computed; as ``torch.device``."""

    type: Literal["cpu", "cuda"]
    index: int = 0


class _Session(Protocol):
    """A graph in its runtime."""

    metadata: dict[str, str]
    place: Place
    has_bf16: bool
    parts: int

    def run(
        self, images: np.ndarray, names: Sequence[str], precision: str = "float32"
    ) -> dict[str, np.ndarray]:
        """uint8 (B, 3, S, S) -> the named ones of ``outputs``, float32; see ``export.OUTPUTS``."""
        images = images.astype(np.float32) / np.float32(255) if self._floats else images
        return self.run_raw(np.ascontiguousarray(images), names, precision)

    def run_raw(
        self, images: np.ndarray, names: Sequence[str], precision: str = "float32"
    ) -> dict[str, np.ndarray]:
        """As ``run``, of the graph's own input: uint8, or float32 where it was exported with floats."""
        return self._session.run(images, names, precision)


@dataclass
class _Answered:
    """As ``forward.Launched``: a runtime answers at once."""

    pieces: list[dict[str, np.ndarray] | None] = field(default_factory=list)

    def answers(self) -> list[dict[str, np.ndarray] | None]:
        """One entry per piece, in the order of the images; None: one without enough memory."""
        return self.pieces


class GraphForward:
    """What ``predict.forward.Forward`` is of a model.

    Args:
        size: images per pass; shrinks where memory does not suffice.
        tell: gets one line for people.

    Raises:
        FgvcError: the run asks for what a graph does not have.
    """

    folded = False

    def __init__(
        self, graph: Graph, info: RunInfo, *, size: int, compiled: bool, tell: Callable[[str], None]
    ):
        self.size = size
        self.precision: str = "float32"
        self._graph, self._info, self._tell = graph, info, tell
        if compiled:
            raise refuse("--compile", graph.path)
        wanted = {"embedding": "embedding", "attention": "heat"}
        for extra, output in wanted.items():
            if extra in info.extras and output not in graph.outputs:
                raise refuse({"embedding": "--embeddings", "attention": "--maps"}[extra], graph.path)
        names = ("probs", "box", "parts", *(("heat",) if "attention" in info.extras else ()))
        self._names = [name for name in names if name in graph.outputs]

    def launch(self, pixels: Sequence[np.ndarray]) -> _Answered:
        """Images uint8 (S, S, 3) -> their answers; see ``Forward.launch``."""
        answered, start = _Answered(), 0
        while start < len(pixels):
            chunk = pixels[start : start + self.size]
            answers = self._try(chunk)
            if answers is None and len(chunk) > 1:
                self.size = len(chunk) // 2
                self._tell(f"Out of memory with {len(chunk)} images at once: going on with {self.size}.")
                continue
            answered.pieces.append(answers)
            start += len(chunk)
        return answered

    def seconds(self, count: int, precision: str | None = None, rounds: int = 2) -> float:
        """Time of a pass over so many images of noise, the best of ``rounds``."""
        side = self._info.preprocess.input_px
        noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        taken = []
        for _ in range(rounds):
            start = time.perf_counter()
            self._run([noise] * count, precision or self.precision)
            taken.append(time.perf_counter() - start)
        return min(taken)

    def _try(self, chunk: Sequence[np.ndarray]) -> dict[str, np.ndarray] | None:
        """The answers; None where memory did not suffice."""
        try:
            return self._run(chunk, self.precision)
        except Exception as error:  # each runtime has its own kinds
            if not is_out_of_memory(error):
                raise
        return None

    def _run(self, chunk: Sequence[np.ndarray], precision: str) -> dict[str, np.ndarray]:
        given = self._graph.run(np.stack(chunk).transpose(0, 3, 1, 2), self._names, precision)
        probs = given["probs"]
        index = np.argsort(-probs, axis=1, kind="stable")[:, : self._info.top_k]
        answers = {
            "prob": np.take_along_axis(probs, index, axis=1),
            "index": index.astype(np.float32),
            "box": given["box"],
        }
        if "parts" in given:
            answers["parts"] = given["parts"]
        if "heat" in given:
            answers["attention"] = given["heat"].astype(np.float16)
        if "logits" in self._info.extras:
            answers["logits"] = np.log(np.maximum(probs, _TINY))
        return answers
