"""An exported graph (``fgvc export``) that answers, through onnxruntime or OpenVINO, without torch.

Legend: B images of a batch, S side of the graph's input, k predictions per row, P parts, K classes, h w of a
map.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from fgvc_cli.config import Preprocess, check_device_name, stored_preprocess, usable_cpus
from fgvc_cli.engine.device import Amp, Precision, faster_precision, is_out_of_memory
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.files import file_sha256
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
    number: int = 0


class _Session(Protocol):
    """A graph in its runtime."""

    metadata: dict[str, str]
    place: Place
    has_bf16: bool
    parts: int

    def run(self, images: np.ndarray, names: Sequence[str], precision: str) -> dict[str, np.ndarray]: ...


class _OnnxRuntime:
    has_bf16 = False

    def __init__(self, path: Path, device: str, threads: int):
        import onnxruntime

        cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        kind, _, index = device.partition(":")
        if kind == "cuda" and not cuda:
            raise FgvcError(
                f"--device {device}: this onnxruntime computes on the CPU alone.",
                "pip install onnxruntime-gpu in its place, or --device cpu.",
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; its warnings are about initialisers it has folded away
        options.intra_op_num_threads = threads
        # Decoders share the cores: a thread that waits for another must not spin.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers: list[Any] = ["CPUExecutionProvider"]
        if cuda and kind != "cpu":
            strict = {"device_id": str(int(index or 0)), "use_tf32": "0"}
            providers.insert(0, ("CUDAExecutionProvider", strict))
        self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        on_cuda = self._session.get_providers()[0] == "CUDAExecutionProvider"
        if kind == "cuda" and not on_cuda:
            raise FgvcError(f"--device {device}: onnxruntime could not use it.", "Use --device cpu.")
        self.place = Place("cuda", int(index or 0)) if on_cuda else Place("cpu")
        self.metadata = self._session.get_modelmeta().custom_metadata_map
        shapes = {output.name: output.shape for output in self._session.get_outputs()}
        self.parts = int(shapes["parts"][1]) if "parts" in shapes else 0

    def run(self, images: np.ndarray, names: Sequence[str], precision: str) -> dict[str, np.ndarray]:
        return dict(zip(names, self._session.run([*names], {INPUT: images}), strict=True))


@functools.cache
def _openvino_core() -> Any:
    """One for the whole process, never freed.

    Its CPU plugin gives signal handlers a stack of its own in the thread that first compiles. Freed in
    another thread, as garbage is, it takes that memory away and leaves it in use: the next signal ends the
    process.
    """
    import openvino

    return openvino.Core()


class _OpenVino:
    place = Place("cpu")

    def __init__(self, path: Path, device: str, threads: int):
        if device.startswith("cuda"):
            raise FgvcError(f"--device {device}: OpenVINO computes on the CPU here.", "--runtime onnxruntime")
        self._core, self._threads = _openvino_core(), threads
        self._model = self._core.read_model(path)
        known = self._model.has_rt_info("framework")
        held = self._model.get_rt_info("framework").astype(dict) if known else {}
        self.metadata = {name: value.astype(str) for name, value in held.items()}
        self.has_bf16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        parts = [output for output in self._model.outputs if output.any_name == "parts"]
        self.parts = parts[0].partial_shape[1].get_length() if parts else 0
        self._compiled: dict[tuple[str, int | None], Any] = {}

    def run(self, images: np.ndarray, names: Sequence[str], precision: str) -> dict[str, np.ndarray]:
        # OpenVINO 2026.4 computes layers in int8 wrongly where the batch is not fixed: 41 % equal labels.
        fixed = len(images) if precision == "int8" else None
        if (precision, fixed) not in self._compiled:
            if len(self._compiled) > _COMPILED:
                self._compiled.clear()
            self._compiled[precision, fixed] = self._compile(precision, images.shape if fixed else None)
        answers = self._compiled[precision, fixed]({INPUT: images})
        return {name: answers[name] for name in names}

    def _compile(self, precision: str, shape: Sequence[int] | None) -> Any:
        model = self._model
        if shape:
            model = model.clone()
            model.reshape([*shape])
        settings = {
            # Left to itself it takes bfloat16 where the CPU has it.
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self._threads,
        }
        return self._core.compile_model(model, "CPU", settings)


_COMPILED = 6
"""Graphs that OpenVINO keeps compiled for batches of different sizes."""

_SESSIONS: dict[str, Callable[[Path, str, int], _Session]] = {
    "onnxruntime": _OnnxRuntime,
    "openvino": _OpenVino,
}


def pick_runtime(runtime: Runtime, device: str) -> str:
    """OpenVINO for a CPU where it is installed, else onnxruntime, with CUDA where it has it.

    Raises:
        FgvcError: not installed.
    """
    if runtime == "auto":
        # Only this package of onnxruntime has CUDA; asking it costs the import of both.
        cuda = device != "cpu" and any(importlib.metadata.distributions(name="onnxruntime-gpu"))
        installed = importlib.util.find_spec("openvino") is not None
        runtime = "openvino" if installed and not cuda and not device.startswith("cuda") else "onnxruntime"
    if runtime not in RUNTIMES:
        expected = ", ".join(("auto", *RUNTIMES))
        raise FgvcError(f"--runtime got {runtime!r}, expected one of {expected}.", None, EXIT_USAGE)
    if importlib.util.find_spec(runtime) is None:
        raise FgvcError(f"An {ENDING} needs {runtime}, not installed here.", RUNTIMES[runtime])
    return runtime


class Graph:
    """A graph that ``fgvc export`` wrote, opened.

    Args:
        runtime: ``auto`` as ``pick_runtime``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        threads: None: one per CPU.

    Raises:
        FgvcError: no such file, one that is no graph or that fgvc did not write, a runtime or device that is
            not there.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        runtime: Runtime = "auto",
        device: str = "auto",
        threads: int | None = None,
    ):
        self.path = Path(path)
        check_device_name(device)
        if not self.path.is_file():
            raise FgvcError(f"Weights {str(path)!r}: no such file.", f"Expected an {ENDING} of fgvc export.")
        self.runtime = pick_runtime(runtime, device)
        try:
            self._session = _SESSIONS[self.runtime](self.path, device, threads or usable_cpus())
        except FgvcError:
            raise
        except Exception as error:  # each runtime has its own kinds
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise FgvcError(
                f"{self.path.name} cannot be opened, {self.runtime} says: {reason}",
                "It may be cut short: export it again.",
            ) from error
        held = self._session.metadata
        if "class_names" not in held or "preprocess" not in held:
            raise FgvcError(
                f"{self.path.name} was not written by fgvc export: it does not say its classes.",
                f"fgvc export --weights MODEL --out model{ENDING}",
            )
        self.name = held["model"]
        self.classes = tuple(json.loads(held["class_names"]))
        self.preprocess: Preprocess = stored_preprocess(json.loads(held["preprocess"]))
        self.options: dict[str, Any] = json.loads(held["options"])
        self.temperature = float(held["temperature"])
        """It is applied within the graph."""
        self.outputs = tuple(json.loads(held["outputs"]))
        self.int8 = "quantization" in held
        self.training: dict[str, Any] = json.loads(held.get("training", "{}"))
        """Of ``Checkpoint.metadata``, for ``fgvc eval``; empty in graphs from before there was any."""
        self.exported_from = held["weights_sha256"]
        self.sha256 = file_sha256(self.path)
        self.device = self._session.place
        self.part_count = self._session.parts
        self.has_bf16 = self._session.has_bf16
        self._floats = "float32" in held["input"]

    @property
    def multi_label(self) -> bool:
        """Whether it tells several labels per image, each by itself."""
        return bool(self.options.get("multi_label", False))

    @property
    def settings(self) -> dict[str, Any]:
        """What a run records of it."""
        version = sys.modules[self.runtime].__version__.partition("-")[0]
        return {"runtime": f"{self.runtime} {version}", "exported_from": self.exported_from}

    def precision(self, amp: Amp) -> GraphPrecision:
        """What ``--amp`` means for it without a probe; ``auto`` is float32.

        Raises:
            FgvcError: bf16 where there is none.
        """
        if amp == "bf16" and self.int8:
            raise FgvcError(f"--amp bf16 is not for {self.path.name}, which is int8.", "Leave --amp away.")
        if amp == "bf16" and not self.has_bf16:
            raise FgvcError(
                f"--amp bf16: {self.runtime} computes {self.path.name} in float32 here.",
                "Leave --amp away, or --runtime openvino on a CPU that has bfloat16.",
            )
        if self.int8:
            return "int8"
        return "bf16" if amp == "bf16" else "float32"

    def choose_precision(
        self,
        amp: Amp,
        run: Callable[[Precision], None],
        tell: Callable[[str], None],
        *,
        probe: bool,
    ) -> GraphPrecision:
        """As ``engine.device.choose_precision``: ``auto`` probes where there is bfloat16."""
        fixed = self.precision(amp)
        if amp == "auto" and fixed == "float32" and self.has_bf16:
            return faster_precision(run, tell, probe)  # type: ignore[return-value]
        return fixed

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
class Answered:
    """As ``forward.Launched``: a runtime answers at once."""

    pieces: list[dict[str, np.ndarray] | None] = field(default_factory=list)

    def answers(self) -> list[dict[str, np.ndarray] | None]:
        """One entry per piece, in the order of the images; None: one without enough memory."""
        return self.pieces


class GraphForward:
    """What ``predict.forward.Forward`` is of a model.

    Args:
        size: images per pass; shrinks where memory does not suffice.
        possible: numbers of the classes that can occur; None: all.
        tell: gets one line for people.

    Raises:
        FgvcError: the run asks for what a graph does not have.
    """

    folded = False

    def __init__(
        self,
        graph: Graph,
        info: RunInfo,
        *,
        size: int,
        compiled: bool,
        possible: Sequence[int] | None,
        tell: Callable[[str], None],
    ):
        self.size = size
        self.precision: str = "float32"
        self._graph, self._info, self._tell = graph, info, tell
        self._impossible = np.ones(len(info.classes), bool)
        self._impossible[slice(None) if possible is None else possible] = False
        if compiled:
            raise refuse("--compile", graph.path)
        wanted = {"embedding": "embedding", "attention": "heat"}
        for extra, output in wanted.items():
            if extra in info.extras and output not in graph.outputs:
                raise refuse({"embedding": "--embeddings", "attention": "--maps"}[extra], graph.path)
        names = ("probs", "box", "parts", *(("heat",) if "attention" in info.extras else ()))
        self._names = [name for name in names if name in graph.outputs]

    def launch(self, pixels: Sequence[np.ndarray]) -> Answered:
        """Images uint8 (S, S, 3) -> their answers; see ``Forward.launch``."""
        answered, start = Answered(), 0
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
        probs = order = given["probs"]
        if self._impossible.any():
            # As ``Forward``: a model can be so sure of another class that nothing is left for these.
            probs = np.where(self._impossible, np.float32(0), np.maximum(probs, _TINY))
            probs = probs if self._info.multi_label else probs / probs.sum(axis=1, keepdims=True)
            order = np.where(self._impossible, np.float32(-1), order)
        index = np.argsort(-order, axis=1, kind="stable")[:, : self._info.top_k]
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
