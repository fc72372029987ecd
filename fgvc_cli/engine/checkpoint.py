"""One ``model.safetensors``: tensors plus everything eval, predict and explain need.

And the labelled images that go with it: those of its training, divided as there, or others.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fgvc_cli import __version__
from fgvc_cli.command import NO_BOXES, BoxOptions, box_settings
from fgvc_cli.config import Preprocess, TrainConfig, build, config_sha256, stored_options, stored_preprocess
from fgvc_cli.data.labelled import take_boxes, with_margin
from fgvc_cli.data.listing import NO_LABEL, Example, LabelledSet
from fgvc_cli.data.names import same_form
from fgvc_cli.data.taxonomy import Taxonomy
from fgvc_cli.datasets.registry import load_data
from fgvc_cli.engine.graph import Graph
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.evaluate.confidence import TENSORS, Calibration, Novelty, apply_temperature, stored_novelty
from fgvc_cli.files import AtomicFile, file_sha256
from fgvc_cli.models.output import FgvcModel, ModelOutput, Want
from fgvc_cli.models.registry import create_model, resolve
from fgvc_cli.models.weights import CHECKPOINT_KEY, check_weight_file, read_tensors
from fgvc_cli.sources.boxes import open_boxes

FORMAT = 2
"""1: all but novelty, whose tensors an fgvc that knows no other format cannot place."""


@dataclass
class Checkpoint:
    """A trained model and what it needs to meet an image."""

    model: FgvcModel
    """In evaluation mode, on the CPU."""
    name: str
    """Registry name."""
    classes: tuple[str, ...]
    preprocess: Preprocess
    sha256: str
    """Of the file."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """``options``, ``dataset``, ``metrics`` (by split), ``epoch``, ``finished``, ``config``,
    ``config_sha256``, ``fgvc_version``, ``calibration`` (see ``Calibration``) where training fitted a
    temperature, and ``taxonomy`` where there was one."""
    temperature: float = 1.0
    """Of the fused probabilities, see ``apply_temperature``; 1 where none was fitted. It was fitted with the
    looks of training and stays the same with other ``stages`` or another ``cascade``, which may need another.
    A cascade compares the confidence before it."""
    novelty: Novelty | None = None
    """How unlike the training images an image is; None where none was fitted."""

    @property
    def multi_label(self) -> bool:
        """Whether it tells several labels per image, each by itself."""
        return bool(self.metadata.get("options", {}).get("multi_label", False))

    @property
    def taxonomy(self) -> Taxonomy | None:
        """What its classes hang on, where its training knew it."""
        return Taxonomy.from_document(self.metadata.get("taxonomy"))


def save_checkpoint(
    path: Path,
    model: FgvcModel,
    *,
    config: TrainConfig,
    classes: tuple[str, ...],
    dataset: str,
    data_sha256: str = "",
    metrics: dict[str, dict[str, float]],
    calibration: Calibration | None = None,
    novelty: Novelty | None = None,
    epoch: int = 0,
    train_images: int | None = None,
    finished: bool = False,
    precision: str = "float32",
    taxonomy: Taxonomy | None = None,
) -> None:
    """Write a checkpoint whole or not at all (temporary file, fsync, rename).

    Args:
        data_sha256: of the list of examples with their splits, see ``LabelledSet.sha256``.
        metrics: split -> metric -> value; a number without its split is not a result.
        calibration: None while none is fitted.
        novelty: likewise.
        epoch: after which the weights were as they are, from 1; 0: not known.
        train_images: how many it was trained on; None: not known.
        finished: whether the training has come to its end.
        precision: that ``metrics`` and ``calibration`` were measured in.
        taxonomy: of these classes.

    Raises:
        FgvcError: the file cannot be written.
    """
    document = {
        "format": FORMAT if novelty else 1,
        "model": config.model,
        "options": model.config.model_dump(),
        "classes": list(classes),
        "preprocess": config.preprocess.model_dump(),
        "dataset": dataset,
        "data_sha256": data_sha256,
        "metrics": metrics,
        "epoch": epoch,
        "finished": finished,
        "precision": precision,
        "train_images": train_images,
        "config": config.model_dump(),
        "config_sha256": config_sha256(config),
        "fgvc_version": __version__,
    }
    if calibration:
        document["calibration"] = asdict(calibration)
    if taxonomy:
        document["taxonomy"] = taxonomy.document()
    tensors = {key: tensor.detach().contiguous().cpu() for key, tensor in model.state_dict().items()}
    if novelty:
        document["novelty"] = novelty.document()
        tensors |= novelty.tensors()
    with AtomicFile(path, overwrite=True) as stream:
        stream.write(save(tensors, metadata={CHECKPOINT_KEY: json.dumps(document)}))


def read_metadata(path: Path) -> dict[str, Any]:
    """The JSON of a checkpoint, without its tensors: see ``Checkpoint.metadata``.

    Raises:
        FgvcError: as ``check_weight_file``; a damaged file, or one that fgvc train did not write.
    """
    check_weight_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise FgvcError(f"{path} is not a readable safetensors file ({error}).", None) from error
    if CHECKPOINT_KEY not in header:
        raise FgvcError(f"{path} was not written by fgvc train.", None)
    return json.loads(header[CHECKPOINT_KEY])


def load_checkpoint(path: Path | str, *, options: dict[str, Any] | None = None) -> Checkpoint:
    """Read a checkpoint; nothing else is needed.

    Args:
        options: settings of the model's family to answer with instead of the stored ones, e.g.
            ``{"cascade": 0.9}``; those that change its tensors cannot be. None is not given.

    Raises:
        FgvcError: no such file, a pickle, a damaged file, plain weights, a checkpoint of a newer format, an
            option that the family does not have.
    """
    path = Path(path)
    tensors, header = read_tensors(path)
    if CHECKPOINT_KEY not in header:
        raise FgvcError(
            f"{path.name} holds weights but no class names: it was not written by fgvc train.",
            "To start training from it: fgvc train ... --init FILE",
        )
    document = json.loads(header[CHECKPOINT_KEY])
    if document["format"] > FORMAT:
        raise FgvcError(
            f"{path.name} was written by fgvc {document['fgvc_version']}, this is {__version__}.",
            "pip install --upgrade fgvc",
        )
    given = {name: value for name, value in (options or {}).items() if value is not None}
    _check_options(document["model"], given)
    model = create_model(
        document["model"],
        len(document["classes"]),
        input_px=document["preprocess"]["input_px"],
        options=stored_options(document["options"]) | given,
    )
    model = model.for_inference()
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith(("smram.", TENSORS))}
    try:
        model.load_state_dict(kept)
    except RuntimeError as error:
        settings = ", ".join(f"{name}={value}" for name, value in given.items()) or "its own options"
        raise FgvcError(
            f"The weights of {path.name} do not fit {document['model']} with {settings}.",
            "Options that change a model's tensors cannot be given to a trained one." if given else None,
        ) from error
    return Checkpoint(
        model=model,
        name=document["model"],
        classes=tuple(document["classes"]),
        preprocess=stored_preprocess(document["preprocess"]),
        sha256=file_sha256(path),
        metadata={k: v for k, v in document.items() if k not in ("classes", "preprocess")},
        temperature=document.get("calibration", {}).get("temperature", 1.0),
        novelty=stored_novelty(tensors, document.get("novelty")),
    )


class GraphModel(nn.Module):
    """An exported graph in a model's place, to be measured as one."""

    takes_pixels = True

    def __init__(self, graph: Graph):
        super().__init__()
        self.graph, self.precision = graph, graph.precision("auto")

    def forward(self, images: Tensor, want: Collection[Want] = ()) -> ModelOutput:
        """uint8 (B, 3, S, S) -> what the model says, its probabilities before the temperature."""
        names = {"boxes": "box", "heat": "heat", "parts": "parts"}
        given = self.graph.run(images.cpu().numpy(), self.graph.outputs, self.precision)
        answers = {name: torch.from_numpy(values) for name, values in given.items()}
        # The graph applies its temperature, which figures are told without: its inverse takes it away.
        probs = apply_temperature(answers["probs"], 1 / self.graph.temperature)
        logits = {
            name.removeprefix("logits_"): v for name, v in answers.items() if name.startswith("logits_")
        }
        kept: dict[str, Any] = {
            asked: answers[name] for asked, name in names.items() if asked in want and name in answers
        }
        return ModelOutput(logits=logits, probs=probs, **kept)


def graph_checkpoint(graph: Graph) -> Checkpoint:
    """An exported graph as a checkpoint to measure."""
    metadata = {"config": {"data": None, "dataset": None}, **graph.training, "options": graph.options}
    return Checkpoint(
        cast(FgvcModel, GraphModel(graph)),
        graph.name,
        graph.classes,
        graph.preprocess,
        graph.sha256,
        metadata=metadata,
        temperature=graph.temperature,
    )


def _check_options(name: str, options: dict[str, Any]) -> None:
    fields = resolve(name).family.config.model_fields
    for option, value in options.items():
        if option not in fields:
            raise FgvcError(
                f"{option}={value} is not for {name}: a model of this family has no {option}.",
                f"Leave it out (on the command line: --{option}).",
                EXIT_USAGE,
            )


def choose_data(
    checkpoint: Checkpoint,
    data: str | None,
    dataset: str | None,
    data_root: str | None,
    split: str,
    boxes: BoxOptions,
) -> tuple[LabelledSet, bool]:
    """The images, or the boxes that are given of them, and whether they are those of the training, divided as
    there.

    Without ``data`` and ``dataset``, they are; and where ``data`` is where they lie now.
    """
    if not (data or dataset) or is_trained_data(checkpoint, data, dataset):
        return _in_boxes(trained_data(checkpoint, data_root, split), boxes), True
    moved = _moved_data(checkpoint, data) if data else None
    if moved:
        return _in_boxes(moved, boxes), True
    return given_data(checkpoint, data, dataset, data_root, boxes), False


def _in_boxes(labelled: LabelledSet, asked: BoxOptions) -> LabelledSet:
    boxes = open_boxes(asked)
    if boxes is not None:
        return take_boxes(labelled, boxes)
    return labelled if asked.box_margin is None else with_margin(labelled, asked.box_margin)


def is_trained_data(checkpoint: Checkpoint, data: str | None, dataset: str | None) -> bool:
    """Whether what is named is what the training named: then its own split has to be kept."""
    trained = checkpoint.metadata["config"]
    if data:
        return bool(trained["data"]) and Path(data).resolve() == Path(trained["data"]).resolve()
    return dataset == trained["dataset"]


def _moved_data(checkpoint: Checkpoint, data: str) -> LabelledSet | None:
    """The images of the training, divided as there, if ``data`` holds them.

    Taken for new ones because it moved, an unsplit folder would be measured on what was trained on, too.
    """
    trained = checkpoint.metadata["config"]
    if not trained["data"]:
        return None
    with contextlib.suppress(FgvcError):
        # The tree is in the checkpoint; its file may have gone.
        labelled = load_data(build(TrainConfig, {**trained, "data": data, "taxonomy": None}))
        if labelled.sha256() == checkpoint.metadata.get("data_sha256"):
            return labelled
    return None


def given_data(
    checkpoint: Checkpoint,
    data: str | None,
    dataset: str | None,
    data_root: str | None,
    boxes: BoxOptions = NO_BOXES,
) -> LabelledSet:
    """A set named on the command line: nothing of it is dealt away, an unsplit one is all test."""
    config = TrainConfig(
        model=checkpoint.name, data=data, dataset=dataset, data_root=data_root, **box_settings(boxes)
    )
    return load_data(config, for_training=False)


def trained_data(checkpoint: Checkpoint, data_root: str | None, split: str) -> LabelledSet:
    """The set of the training, divided as the training divided it.

    Raises:
        FgvcError: it cannot be read, or holds other images by now, so that its parts would mix.
    """
    trained: dict[str, Any] = {**checkpoint.metadata["config"], "taxonomy": None}
    name = trained["data"] or trained["dataset"]
    # The folder of the training may be another machine's; then $FGVC_DATA counts, as it does for training.
    folder = trained["data_root"]
    trained["data_root"] = data_root or (folder if folder and Path(folder).is_dir() else None)
    try:
        labelled = load_data(build(TrainConfig, trained))
    except FgvcError as error:
        raise FgvcError(
            f"The checkpoint was trained on {name!r}, which cannot be read from here: {error.message}",
            "Say where it is with --data, or --dataset and --data-root.",
        ) from error
    recorded = checkpoint.metadata.get("data_sha256")
    if split != "all" and recorded and recorded != labelled.sha256():
        raise FgvcError(
            f"{name} no longer holds the images of the training: its {split} split made again "
            "would mix with what was trained on.",
            "Name new images with --data FOLDER, or take everything with --split all.",
        )
    return labelled


def known_examples(data: LabelledSet, split: str, classes: tuple[str, ...]) -> list[Example]:
    """The examples of a split with labels renumbered to the checkpoint's classes, matched by name.

    Raises:
        FgvcError: an empty split, or labels the checkpoint does not know.
    """
    chosen = [e for name, part in data.splits.items() if split in (name, "all") for e in part]
    if not chosen:
        filled = ", ".join(name for name, part in data.splits.items() if part)
        raise FgvcError(f"{data.name} has no {split} split.", f"Choose --split from: {filled}, all.")
    index = {same_form(name): i for i, name in enumerate(classes)}
    there = {data.classes[label] for e in chosen for label in e.labels}
    unknown = sorted(name for name in there if same_form(name) not in index)
    if unknown:
        shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise FgvcError(
            f"The checkpoint does not know {len(unknown)} of the {len(data.classes)} classes of {data.name} "
            f"({shown}); it knows {len(classes)}, such as {', '.join(classes[:3])}.",
            "Name data of the classes it was trained for, or train on this data.",
        )
    own = [[index[same_form(data.classes[label])] for label in e.labels] or [NO_LABEL] for e in chosen]
    pairs = zip(chosen, own, strict=True)
    return [e._replace(label=first, more=tuple(more)) for e, (first, *more) in pairs]
