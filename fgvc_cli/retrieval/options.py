"""What ``fgvc index`` is asked for: names, types, defaults, limits. Nothing heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fgvc_cli.command import Messages, options


@options
class IndexOptions:
    """What ``fgvc index`` is asked for."""

    weights: str | None = None
    """File or folder of a training, or an embedded model; None: the default one."""
    data: str | None = None
    """Labelled folder or CSV; None, and no ``dataset``: what the checkpoint was trained on."""
    dataset: str | None = None
    """Known set in place of ``data``."""
    data_root: str | None = None
    """Folder that holds known sets; None: the environment's ``FGVC_DATA``."""
    split: Literal["train", "val", "test", "all"] | None = None
    """None: train, or all of a set without one."""
    out: Path | None = None
    """File to write; None: see ``default_index``."""
    overwrite: bool = False
    """Replace an index that is there."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Images per forward pass."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Parallel readers of images."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    quiet: bool = False
    """Say nothing but errors."""
    messages: Messages | None = None
    """Who says what happens; None: lines on stderr."""
