"""A trained model as one graph for other runtimes: ONNX, or torch.export's PT2.

The graph takes the square input that ``data.transforms.eval_transform`` makes and does the rest:
normalisation, the model, for a multi-stage ViT its boxes, crops and further looks, the checkpoint's
temperature. While it is traced, the few steps of the models that wait for data, call scikit-image or resize
take another form with the same result (``torch.compiler.is_exporting``).

What is written is compared with the model first, image by image: the model answers as for ``fgvc predict`` on
the CPU, in float32, its boxes by scikit-image.

Legend: B batch, any size from 1; S side of the input; K classes; P parts; h w of the heat map.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fgvc_cli import __version__
from fgvc_cli.aviary.dataset import SPECIES, render_bird
from fgvc_cli.command import Messages, command
from fgvc_cli.data.transforms import eval_transform
from fgvc_cli.engine.checkpoint import Checkpoint
from fgvc_cli.engine.graph import INPUT, Graph
from fgvc_cli.engine.options import ExportOptions, Pixels
from fgvc_cli.engine.weights import default_notice, open_weights
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.evaluate.confidence import apply_temperature
from fgvc_cli.files import AtomicFile, check_writable
from fgvc_cli.models.output import Want, normalize
from fgvc_cli.sources.find import Found, find_images
from fgvc_cli.sources.images import Failure, ReadRule, read_image

TRAINING = ("config", "dataset", "data_sha256", "train_images", "calibration", "metrics", "fgvc_version")
"""What ``fgvc eval`` needs of ``Checkpoint.metadata``."""

METADATA_FILE = "fgvc.json"
"""Name of the metadata among a PT2's extra files."""

_ONNX_BYTES = 2**31 - 2**24
"""Weights that one ONNX file holds: protobuf ends at 2 GiB, and the graph takes some."""


class Deployed(nn.Module):
    """What the graph computes: a checkpoint from pixels to the calibrated answers of ``fgvc predict``.

    Raises:
        FgvcError: boxes by a threshold that no graph can compute.
    """

    def __init__(self, checkpoint: Checkpoint, pixels: Pixels):
        super().__init__()
        threshold = getattr(checkpoint.model.config, "threshold", "mean")
        if threshold != "mean":
            raise FgvcError(
                f"This {checkpoint.name} finds object boxes by the {threshold} threshold, which no graph "
                "computes; expected mean.",
                "Train with --set options.threshold=mean.",
            )
        self.model = checkpoint.model.eval()
        self._preprocess, self._temperature = checkpoint.preprocess, checkpoint.temperature
        self._scale = 255 if pixels == "float" else 1
        self._want: tuple[Want, ...] = (
            ("boxes", "heat", "parts") if self.model.part_count else ("boxes", "heat")
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """RGB (B, 3, S, S) -> named answers, float32; see ``OUTPUTS`` and ``logits_`` of each branch."""
        output = self.model(normalize(images * self._scale, self._preprocess), want=self._want)
        answers = {
            "probs": apply_temperature(output.probs, self._temperature),
            "box": output.boxes,
            "heat": output.heat.float(),
        }
        if output.parts is not None:
            answers["parts"] = output.parts
        return answers | {f"logits_{name}": logits for name, logits in output.logits.items()}


OUTPUTS = {
    "probs": "(B, K) calibrated probabilities, rows sum to 1",
    "box": "(B, 4) object box, x1 y1 x2 y2 in input pixels, ends exclusive",
    "heat": "(B, h, w) where the model looked, 0 to 1 over the input",
    "parts": "(B, P, 4) part boxes, as box",
    "logits": "(B, K) one branch, before softmax and temperature",
}
MULTI_LABEL_PROBS = "(B, K) probabilities of the labels, each by itself"


class Format(NamedTuple):
    """How graphs of one kind are written and run."""

    name: str
    packages: tuple[str, ...]
    write: Callable[[ExportedProgram, dict[str, Any], IO[bytes]], None]
    open: Callable[[Path], Callable[[Tensor], dict[str, Tensor]]]


def trace(checkpoint: Checkpoint, pixels: Pixels) -> ExportedProgram:
    """The graph of a checkpoint, on the CPU.

    Raises:
        FgvcError: a model that cannot be traced.
    """
    deployed = Deployed(checkpoint, pixels).eval()
    side = checkpoint.preprocess.input_px
    # A batch of two: a dimension of one would be taken for a constant.
    example = torch.zeros(2, 3, side, side, dtype=torch.uint8 if pixels == "uint8" else torch.float32)
    with _explained(checkpoint.name, "torch.export"), torch.no_grad():
        program = torch.export.export(deployed, (example,), dynamic_shapes=({0: Dim("batch", min=1)},))
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                # Lines of source with the folders of this machine, of no use on another.
                node.meta.pop("stack_trace", None)
    return program


def describe(checkpoint: Checkpoint, pixels: Pixels, program: ExportedProgram) -> dict[str, Any]:
    """What travels with the graph: whose it is, how to make its input, what its outputs are."""
    side = checkpoint.preprocess.input_px
    value_range = "uint8, 0 to 255" if pixels == "uint8" else "float32, 0 to 1"
    names = output_names(program)
    texts = OUTPUTS | ({"probs": MULTI_LABEL_PROBS} if checkpoint.multi_label else {})
    return {
        "format": 1,
        "fgvc_version": __version__,
        "model": checkpoint.name,
        "weights_sha256": checkpoint.sha256,
        "class_names": list(checkpoint.classes),
        "temperature": checkpoint.temperature,
        "options": checkpoint.model.config.model_dump(mode="json"),
        "preprocess": checkpoint.preprocess.model_dump(mode="json"),
        "input": f"{INPUT}: (B, 3, {side}, {side}) RGB, {value_range}; normalised inside",
        "outputs": {name: texts[name.split("_")[0]] for name in names},
        "training": {k: v for k, v in checkpoint.metadata.items() if k in TRAINING},
    }


def output_names(program: ExportedProgram) -> list[str]:
    """Names of a graph's outputs in their order."""
    spec = program.call_spec.out_spec
    assert spec is not None
    return list(spec.context)


def pick_format(out: Path) -> Format:
    """The format that a file's ending names.

    Raises:
        FgvcError: no such ending; packages that it needs are not installed.
    """
    ending = out.suffix.lower()
    if ending not in FORMATS:
        raise FgvcError(
            f"--out got {out.name!r}, expected a name ending in {' or '.join(FORMATS)}.",
            f"For example: --out {out.with_suffix('.onnx').name}",
            EXIT_USAGE,
        )
    missing = [name for name in FORMATS[ending].packages if importlib.util.find_spec(name) is None]
    if missing:
        raise FgvcError(
            f"{out.name} needs {', '.join(missing)}, not installed here.", "pip install 'fgvc[export]'"
        )
    return FORMATS[ending]


def _write_onnx(program: ExportedProgram, metadata: dict[str, Any], stream: IO[bytes]) -> None:
    import onnx
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    held = sum(tensor.nbytes for tensor in program.state_dict.values())
    if held > _ONNX_BYTES:
        raise FgvcError(
            f"{metadata['model']} holds {held / 2**30:.1f} GiB of weights; one ONNX file takes 2.",
            "Name an --out that ends in .pt2.",
        )
    with _explained(metadata["model"], "torch.onnx"):
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=output_names(program),
            dynamic_shapes=({0: Dim("batch", min=1)},),
            external_data=False,
            verbose=False,
        )
        assert converted is not None
        # Traces of this machine's source, as in ``trace``.
        ClearMetadataAndDocStringPass()(converted.model)
        model = converted.model_proto
    model.producer_name, model.producer_version = "fgvc", __version__
    texts = {key: v if isinstance(v, str) else json.dumps(v) for key, v in metadata.items()}
    onnx.helper.set_model_props(model, texts)
    stream.write(model.SerializeToString())


def _open_onnx(path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    graph = Graph(path, runtime="onnxruntime", device="cpu")

    def run(images: Tensor) -> dict[str, Tensor]:
        answers = graph.run_raw(images.numpy(), graph.outputs)
        return {name: torch.from_numpy(answer) for name, answer in answers.items()}

    return run


def _write_pt2(program: ExportedProgram, metadata: dict[str, Any], stream: IO[bytes]) -> None:
    with _explained(metadata["model"], "torch.export"):
        torch.export.save(program, stream, extra_files={METADATA_FILE: json.dumps(metadata)})


def _open_pt2(path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    with path.open("rb") as stream:
        module = torch.export.load(stream).module()
    return torch.no_grad()(module)


FORMATS: dict[str, Format] = {
    ".onnx": Format("ONNX", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _open_onnx),
    ".pt2": Format("PT2", (), _write_pt2, _open_pt2),
}
"""Ending -> format."""


@contextlib.contextmanager
def _explained(model: str, what: str) -> Iterator[None]:
    """Exporters' remarks kept off stderr, and whatever they raise as one line for the user."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "root")
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    # Exporters raise anything: their own kinds, RuntimeError, AssertionError, KeyError, TypeError.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise FgvcError(
            f"{model} cannot be exported, {what} says: {reason}",
            "The backbones of fgvc models can; .pt2 takes more than .onnx.",
        ) from error
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


LEAST_BOX_PX = 2.0
"""Box differences that pass at any size: an edge that snaps to another pixel."""
BOX_SHARE = 1 / 200
"""Allowed difference of a box edge as a share of the input's side: a little more than one cell of the grid of
224 on which boxes are found."""

BATCHES = (1, 3, 8)
"""Images per batch, the last for all that follow: a graph must take any number."""

Answers = dict[str, Tensor]


@dataclass
class Difference:
    """The largest differences met so far; one that is not a number counts as infinite."""

    images: int = 0
    probs: float = 0.0
    box_px: float = 0.0
    heat: float = 0.0
    labels: int = 0
    """Images for which another class is the best."""
    worst: str = ""
    """Which image has the largest difference in probability."""

    def add(self, names: list[str], expected: Answers, found: Answers) -> None:
        """Count a batch in."""
        self.images += len(names)
        gaps = (found["probs"] - expected["probs"]).abs().amax(dim=1)
        if not self.worst or _largest(gaps) > self.probs:
            self.worst = names[int(gaps.nan_to_num(torch.inf).argmax())]
        self.probs = max(self.probs, _largest(gaps))
        self.box_px = max(self.box_px, _largest(found["box"] - expected["box"]))
        self.heat = max(self.heat, _largest(found["heat"] - expected["heat"]))
        self.labels += int((found["probs"].argmax(dim=1) != expected["probs"].argmax(dim=1)).sum())


def _largest(gaps: Tensor) -> float:
    return float(gaps.abs().nan_to_num(torch.inf).max())


def compare(
    checkpoint: Checkpoint,
    pixels: Pixels,
    graph: Callable[[Tensor], Answers],
    photos: Iterable[tuple[str, Image.Image]],
) -> Difference:
    """Both over all images, named and upright RGB, in batches of ``BATCHES``.

    Memory holds one batch.
    """
    original = Deployed(checkpoint, pixels).eval()
    difference = Difference()
    for names, batch in _batches(checkpoint, photos):
        images = batch if pixels == "uint8" else batch.float() / 255
        with torch.no_grad():
            expected = original(images)
        difference.add(names, expected, graph(images))
    return difference


def generated_photos(count: int = 12) -> Iterator[tuple[str, Image.Image]]:
    """Pictures of the Aviary, for who names no images; the same each time."""
    rng = np.random.default_rng(0)
    for index in range(count):
        species = SPECIES[index % len(SPECIES)]
        yield f"generated {index + 1}", render_bird(species, rng).image


def _batches(
    checkpoint: Checkpoint, photos: Iterable[tuple[str, Image.Image]]
) -> Iterator[tuple[list[str], Tensor]]:
    transform = eval_transform(checkpoint.preprocess)
    sizes = iter(BATCHES)
    size = next(sizes)
    names: list[str] = []
    inputs: list[Tensor] = []
    for name, image in photos:
        names.append(name)
        inputs.append(transform(image))
        if len(names) == size:
            yield names, torch.stack(inputs)
            names, inputs, size = [], [], next(sizes, size)
    if names:
        yield names, torch.stack(inputs)


@dataclass(frozen=True)
class Exported:
    """A graph that was written, and how near it is to its model."""

    path: Path
    format: str
    """ONNX or PT2."""
    bytes: int
    metadata: dict[str, Any]
    """As ``describe``; the graph holds it too."""
    difference: Difference
    tolerance: float
    """Of a probability."""
    tolerance_px: float
    """Of a box edge, input pixels."""
    int8: Difference | None = None
    """Between the graph in int8 and the model."""
    calibrated_on: int = 0
    """Images that the ranges of int8 come from."""


@command(ExportOptions)
def export(options: ExportOptions) -> Exported:
    """Write a checkpoint as one graph, compared with the model first.

    Raises:
        FgvcError: an ending, option or file that cannot be; a model that cannot be exported; a graph that
            answers otherwise than the model, which is not written.
    """
    messages, out = options.speaker, options.out
    form = pick_format(out)
    check_writable(out, overwrite=options.overwrite)
    found = None if options.check is None else find_images([options.check])
    if options.weights is None:
        messages.note(default_notice())
    checkpoint = _open_all_stages(options, messages)
    photos = generated_photos()
    if found is not None and options.check is not None:
        photos = _read(found, options.check, messages, checkpoint.preprocess)
    with messages.bar(f"exporting {checkpoint.name}"):
        program = trace(checkpoint, options.pixels)
        metadata = describe(checkpoint, options.pixels, program)
        with AtomicFile(out, overwrite=options.overwrite) as stream:
            form.write(program, metadata, stream)
            stream.flush()
            size = os.fstat(stream.fileno()).st_size
            difference = compare(checkpoint, options.pixels, form.open(Path(stream.name)), photos)
            limit_px = max(LEAST_BOX_PX, BOX_SHARE * checkpoint.preprocess.input_px)
            exported = Exported(out, form.name, size, metadata, difference, options.tolerance, limit_px)
            _check_difference(exported, own_photos=options.check is not None)
            if options.int8:
                exported = _to_int8(exported, checkpoint, options, stream, messages)
    return exported


CALIBRATION_IMAGES = 256
"""Of a larger folder, so many are taken, evenly."""
INT8_AGREES = 0.95
"""Below this fraction of equal labels, int8 is warned of."""


def _to_int8(
    exported: Exported, checkpoint: Checkpoint, options: ExportOptions, stream: IO[bytes], messages: Messages
) -> Exported:
    """The graph in ``stream`` replaced by one in int8, compared with the model on the images of ``check``,
    else on those of ``calibrate``."""
    folder = options.calibrate or ""
    found = list(find_images([folder]))
    step = max(1, -(-len(found) // CALIBRATION_IMAGES))
    chosen = found[::step]

    def photos(of: Iterable[Found], source: str) -> Iterator[tuple[str, Image.Image]]:
        return _read(of, source, messages, checkpoint.preprocess)

    inputs = (
        (batch if options.pixels == "uint8" else batch.float() / 255).numpy()
        for _, batch in _batches(checkpoint, photos(chosen, folder))
    )
    count = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal count
        for batch in inputs:
            count += len(batch)
            yield batch

    whole = quantize(Path(stream.name), counted())
    stream.seek(0)
    stream.truncate()
    stream.write(whole)
    stream.flush()
    check = options.check or folder
    seen = find_images([check]) if options.check else chosen
    graph = FORMATS[".onnx"].open(Path(stream.name))
    difference = compare(checkpoint, options.pixels, graph, photos(seen, check))
    if difference.labels > (1 - INT8_AGREES) * difference.images:
        messages.warn(
            f"int8 tells another label than the model for {difference.labels} of {difference.images} images: "
            "measure it with fgvc eval before you use it."
        )
    return replace(exported, bytes=len(whole), int8=difference, calibrated_on=count)


def quantize(path: Path, batches: Iterator[np.ndarray]) -> bytes:
    """An ONNX graph with convolutions and linear layers in int8, but for the last layer of each branch.

    Weights have a scale per output channel, without which depthwise networks collapse; activations one each,
    from the least and largest value over ``batches``. What normalises pixels, finds boxes and adds up
    probabilities stays float32.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(batches, None)
            return None if batch is None else {INPUT: batch}

    model = onnx.load(path)
    texts = {prop.key: prop.value for prop in model.metadata_props}
    nodes = _quantizable(model.graph, _fold_transposed(model.graph))
    with tempfile.TemporaryDirectory() as folder, _explained(texts["model"], "onnxruntime.quantization"):
        target = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            model,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=[*_LAYERS, *_BETWEEN, "Add"],
            nodes_to_quantize=nodes,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        model = onnx.load(target)
    model.producer_name, model.producer_version = "fgvc", __version__
    about = {"weights": "int8 per channel", "activations": "uint8", "layers": len(nodes)}
    onnx.helper.set_model_props(model, texts | {"quantization": json.dumps(about)})
    whole: bytes = model.SerializeToString()
    return whole


_LAYERS, _BETWEEN = ("Conv", "Gemm", "MatMul"), ("Clip", "Relu")


def _fold_transposed(graph: Any) -> set[str]:
    """Transpose the weights of linear layers here rather than at every pass: only constants can be quantised.

    Returns:
        Names of all learned weights as layers take them.
    """
    from onnx import numpy_helper

    learned = {t.name: t for t in graph.initializer if t.name.startswith("model.") and len(t.dims) >= 2}
    weights = {*learned}
    for node in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in learned]:
        values = numpy_helper.to_array(learned[node.input[0]]).transpose(node.attribute[0].ints)
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), node.output[0]))
        weights.add(node.output[0])
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for name in learned.keys() - used:
        graph.initializer.remove(learned[name])
    return weights


def _quantizable(graph: Any, learned: set[str]) -> list[str]:
    """Names of the nodes with learned weights but for those that give logits, and of what stands between two
    of them: activations and sums."""
    outputs = {output.name for output in graph.output}
    chosen: list[str] = []
    made: set[str] = set()
    for node in graph.node:
        layer = node.op_type in _LAYERS and len(node.input) > 1 and node.input[1] in learned
        between = node.op_type in _BETWEEN and node.input[0] in made
        between |= node.op_type == "Add" and made.issuperset(node.input)
        if (layer or between) and not outputs.intersection(node.output):
            chosen.append(node.name)
            made.update(node.output)
    return chosen


def _open_all_stages(options: ExportOptions, messages: Messages) -> Checkpoint:
    """The checkpoint, without a cascade: in a graph every image takes every stage."""
    checkpoint = open_weights(options.weights, options={"stages": options.stages})
    cascade = getattr(checkpoint.model.config, "cascade", None)
    if cascade is None or cascade >= 1:
        return checkpoint
    messages.note(f"The cascade of {cascade} is left out: in a graph every image takes every stage.")
    return open_weights(options.weights, options={"stages": options.stages, "cascade": 1.0})


def _read(
    found: Iterable[Found], source: str, messages: Messages, rule: ReadRule
) -> Iterator[tuple[str, Image.Image]]:
    """Images that can be read, one at a time; others are named."""
    read = 0
    for item in found:
        decoded = read_image(item.path, rule=rule)
        if isinstance(decoded, Failure):
            messages.warn(f"left out {item.name}: {decoded.error}")
            continue
        read += 1
        yield item.name, decoded.image
    if not read:
        raise FgvcError(f"No image of {source} could be read.", "Check the files named above.")


def _check_difference(exported: Exported, *, own_photos: bool) -> None:
    """Raise FgvcError where the graph and its model differ by more than the tolerances."""
    found, tolerance = exported.difference, exported.tolerance
    if found.probs <= tolerance and found.box_px <= exported.tolerance_px:
        return
    raise FgvcError(
        f"The graph is not the model: over {found.images} images its probabilities differ by up to "
        f"{found.probs:.2g} (tolerance {tolerance:g}; {found.worst}), its boxes by up to "
        f"{found.box_px:.2f} px (tolerance {exported.tolerance_px:.2f}); "
        f"{exported.path.name} was not written.",
        ("Allow more with --tolerance. " if found.probs > tolerance else "")
        + ("" if own_photos else "Name your own images with --check."),
    )
