"""What the commands of this room are asked for: names, types, defaults, limits. Nothing heavy is imported."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fgvc_cli.command import Messages, Several, options

Pixels = Literal["uint8", "float"]
"""What a graph takes: uint8 from 0 to 255, or float32 from 0 to 1."""

Stages = Literal["main", "main+object", "all"]
"""Of a multi-stage ViT: what it looks at."""


@options
class ExportOptions:
    """What ``fgvc export`` is asked for."""

    out: Path
    """File to write, ending in .onnx, or .pt2 for ``torch.export.load``."""
    weights: str | None = None
    """File or folder of a training, or an embedded model; None: the default one."""
    check: str | None = None
    """Images to compare the graph with the model on; None: generated ones."""
    pixels: Pixels = "uint8"
    """What the graph takes."""
    stages: Stages | None = None
    """Of a multi-stage ViT; None: as trained."""
    tolerance: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """Largest difference in a probability that passes."""
    overwrite: bool = False
    """Replace a file that is there."""
    quiet: bool = False
    """Say nothing but warnings."""
    messages: Messages | None = None
    """Who says what happens; None: lines on stderr."""


@options
class EvalOptions:
    """What ``fgvc eval`` is asked for."""

    weights: str | None = None
    """File or folder of a training, or an embedded model; None: the default one."""
    data: str | None = None
    """Labelled folder or CSV; None, and no ``dataset``: what the checkpoint was trained on."""
    dataset: str | None = None
    """Known set in place of ``data``."""
    data_root: str | None = None
    """Folder that holds known sets; None: the environment's ``FGVC_DATA``."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Which images."""
    against: str | None = None
    """Second model, as ``weights``: compared on the same images."""
    out: Path | None = None
    """New folder for tables and pictures."""
    overwrite: bool = False
    """Replace what an earlier one wrote."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Images per forward pass."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Parallel readers of images."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    amp: Literal["auto", "none", "bf16"] = "auto"
    """Precision: none (float32), bf16, or auto: bf16 on a card that has it, as prediction, else float32."""
    stages: Stages | None = None
    """Of a multi-stage ViT; None: as trained."""
    cascade: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of a multi-stage ViT: images this sure after a stage take no further one; None: as trained."""
    calibrate: Path | None = None
    """With the val split: fit the temperature, and write the model with it to this new file."""
    quiet: bool = False
    """Say nothing but warnings."""
    messages: Messages | None = None
    """Who says what happens; None: lines on stderr."""


@options
class TrainOptions:
    """What ``fgvc train`` is asked for; None: not given, so that the recipe or the default counts."""

    model: str | None = None
    """Registry name; needed but for ``resume``."""
    data: str | None = None
    """Class-per-folder folder, or CSV."""
    dataset: str | None = None
    """Known set in place of ``data``."""
    data_root: str | None = None
    """Folder that holds known sets."""
    split_by: str | None = None
    """``folder``, ``column=NAME`` or ``minutes=5``: what keeps images in one split; None: nothing."""
    out: Path | None = None
    """Run folder; None: ``runs/<model>-<data>``."""
    recipe: str | None = None
    """Settings to start from; None: ``strong``, and of a table of ``ablate`` those of the model's paper."""
    epochs: int | None = None
    """How often every image is seen."""
    batch_size: int | None = None
    """Images per forward pass."""
    input_px: int | None = None
    """Side of the model's input, pixels."""
    seed: int | None = None
    """Of everything random."""
    init: str | None = None
    """Start from these weights: embedded model, file or folder of a training; its classifier is not taken."""
    pretrained: bool | None = None
    """Start from timm's ImageNet weights."""
    stages: Stages | None = None
    """Of a multi-stage ViT."""
    amp: str | None = None
    """auto, none, bf16 or fp16."""
    workers: int | None = None
    """Processes that decode."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    devices: int | None = None
    """Processes that train together."""
    set: Several = ()
    """Any other settings, each as ``section.field=value``; laid over the rest."""
    overwrite: bool = False
    """Write into a run folder in use."""
    resume: Path | None = None
    """Go on with this interrupted run folder, by its own settings; only ``device``, ``workers`` and where the
    data lie may be given."""
    quiet: bool = False
    """Say nothing but warnings."""
    messages: Messages | None = None
    """Who says what happens; None: lines on stderr."""


@options
class AblateOptions(TrainOptions):
    """What ``fgvc train --ablate`` is asked for: a table, and the training that its rows vary."""

    ablate: str = "table3"
    """Name of the table."""
    seeds: str | None = None
    """Different whole numbers; None: 0,1,2."""


def given_options(asked: TrainOptions, *but: str) -> list[str]:
    """Options, as they are typed, that are not at their defaults."""
    names = [f.name for f in fields(asked) if f.name not in ("quiet", "messages", *but)]
    defaults = {f.name: f.default for f in fields(asked)}
    return [f"--{name.replace('_', '-')}" for name in names if getattr(asked, name) != defaults[name]]
