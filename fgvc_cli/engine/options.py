"""What the commands of this room are asked for: names, types, defaults, limits. Nothing heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fgvc_cli.command import Messages, options

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
    messages: Messages = Messages()
    """Who says what happens."""


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
    stages: Stages | None = None
    """Of a multi-stage ViT; None: as trained."""
    cascade: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of a multi-stage ViT: images this sure after a stage take no further one; None: as trained."""
    calibrate: Path | None = None
    """With the val split: fit the temperature, and write the model with it to this new file."""
    messages: Messages | None = None
    """Who says what happens; None: lines on stderr."""
