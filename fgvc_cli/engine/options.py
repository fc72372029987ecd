"""What the commands of this room are asked for: names, types, defaults, limits. Nothing heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fgvc_cli.command import Messages, options

Pixels = Literal["uint8", "float"]
"""What a graph takes: uint8 from 0 to 255, or float32 from 0 to 1."""


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
    stages: str | None = None
    """Of a multi-stage ViT; None: as trained."""
    tolerance: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """Largest difference in a probability that passes."""
    overwrite: bool = False
    """Replace a file that is there."""
    messages: Messages = Messages()
    """Who says what happens."""
