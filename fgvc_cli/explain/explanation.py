"""What a method of explaining hands to the drawing: one image, what the model said, where it looked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from fgvc_cli.data.geometry import Box
from fgvc_cli.data.transforms import Geometry
from fgvc_cli.retrieval.search import Nearest

HEAT = "heat"
"""The map from which the object's box comes; other maps are named as the model names its stage, or ``method``
or ``method-stage`` after the method that made them."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """One image explained. Maps lie over ``region``, the part of the image that the model saw."""

    image: Image.Image
    """The upright image, RGB."""
    top: tuple[tuple[str, float], ...]
    """(class name, probability), the most probable first."""
    branches: dict[str, tuple[str, float]]
    """Branch name -> its own most probable class and that probability, in the model's order; then each part
    of a model that looks at several."""
    maps: dict[str, np.ndarray]
    """Map name -> (h, w) float32 in [0, 1] over the model's input, in the order of drawing."""
    box: Box | None
    """The object, xyxy pixels of the image, end-exclusive; None where the model gives none."""
    geometry: Geometry
    """From the model's input to the image."""
    input_px: int
    """Side of the model's square input, pixels."""
    model: str
    """Registry name."""
    parts: tuple[Box, ...] = ()
    """What the model looked at again inside the object, in its order, as ``box``; empty where it did not."""
    object_map: np.ndarray | None = None
    """Where the model looked at its second look, (h, w) float32 in [0, 1] over ``box``; None without one."""
    erased: np.ndarray | None = None
    """Pixels of the model's input that training may erase, (H, W) bool; None where it erases none."""
    chosen: bool = False
    """Whether ``maps`` are those of methods that were asked for, and not what the model itself shows."""
    why: tuple[str, str | None] | None = None
    """The class that the maps speak for, and the one it is held against, None for all others; None where
    they speak for none."""
    nearest: Nearest | None = None
    """The known images closest in embedding, where an index was searched."""

    @property
    def region(self) -> Box:
        """The part of the image that the model saw, xyxy pixels of the image."""
        return self.geometry.to_photo((0, 0, self.input_px, self.input_px))


@dataclass(frozen=True, eq=False)
class LabelledExplanation:
    """What one of several models shows of an image."""

    label: str
    """Which model; empty where there is one."""
    explanation: Explanation
