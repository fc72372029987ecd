"""The section of a model that looks again: what its attention is, and what it looked at closer.

It shows what Conde & Turgutlu (2021) show in Figs. 3-5: the attention map alone and over the image, the
image with the attended pixels erased, the object crop, the crop's own attention, and the part crops.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from PIL import Image, ImageOps

from fgvc_cli.charts.text import (
    CAPTION_PX,
    GAP,
    INNER,
    LABEL,
    PAPER,
    Section,
    beside,
    draw_caption,
    spoken,
    stack,
)
from fgvc_cli.data.geometry import Box
from fgvc_cli.explain.explanation import Explanation
from fgvc_cli.explain.panels import (
    BOX_EDGE,
    BOX_LINE,
    FRAME_PX,
    Color,
    Size,
    draw_cells,
    draw_chip,
    draw_crop,
    draw_erased,
    draw_map,
    fit,
    frame,
    part_color,
    solid,
)

MAX_PANEL_PX = 630
"""Panels are no higher, so that a row of portraits leaves the page in sight."""
MIN_PANEL_PX = 140
"""A row whose panels would be lower is broken in two."""
CHIP_PX = 34


@dataclass(frozen=True)
class Panel:
    """One picture of the section, before its size is known."""

    label: str
    note: str
    shape: tuple[float, float]
    """Width and height of what is drawn, in any unit."""
    draw: Callable[[Size], Image.Image]
    frame: Color | None = None
    number: int | None = None
    """Of a part: drawn as a chip in the frame's colour in front of the label."""

    def size(self, height: int) -> Size:
        """Width and height of what is drawn in a row ``height`` pixels high, without its frame."""
        return fit(self.shape, (INNER - 2 * self._frame_px, height))

    def cell_width(self, height: int) -> int:
        """Room that the panel takes in such a row, with its frame and at least its whole label."""
        return max(self.size(height)[0] + 2 * self._frame_px, self._label_px)

    @cached_property
    def _label_px(self) -> int:
        chip = 0 if self.number is None else CHIP_PX + 14
        return math.ceil(chip + LABEL.width(self.label)) + GAP

    @property
    def _frame_px(self) -> int:
        return 0 if self.frame is None else FRAME_PX


def draw_looks(explanation: Explanation) -> Section | None:
    """The section; None for a model that looks once and erases nothing.

    What an explanation lacks is left out: the crops of looks that were not taken, the erased image of a
    model that erases nothing.
    """
    if not explanation.parts and explanation.object_map is None and explanation.erased is None:
        return None
    rows = [draw_row(panels) for panels in (_first_look(explanation), further_looks(explanation)) if panels]
    return stack(rows)


def draw_row(panels: Sequence[Panel], highest: int = MAX_PANEL_PX, lowest: int = MIN_PANEL_PX) -> Section:
    """Panels of one height side by side over the full width, in more rows where one would make them tiny.

    Args:
        highest: no panel is higher, pixels.
        lowest: a row whose panels would be lower is broken in two.
    """
    for count in range(1, len(panels) + 1):
        columns = math.ceil(len(panels) / count)
        rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
        height = min(highest, *(_row_height(row) for row in rows))
        if height >= lowest:
            break
    return stack([beside([_draw_cell(panel, max(1, height)) for panel in row], GAP) for row in rows], GAP)


def _row_height(panels: Sequence[Panel]) -> int:
    """The largest height at which panels and captions fit side by side, pixels; 0 where none does."""
    room = INNER - (len(panels) - 1) * GAP
    heights = range(1, MAX_PANEL_PX + 1)
    return bisect_right(heights, room, key=lambda h: sum(panel.cell_width(h) for panel in panels))


def _draw_cell(panel: Panel, height: int) -> Section:
    picture = panel.draw(panel.size(height))
    if panel.frame is not None:
        picture = frame(picture, panel.frame)
    cell = Image.new("RGB", (panel.cell_width(height), CAPTION_PX + picture.height), PAPER)
    indent = 0
    if panel.number is not None and panel.frame is not None:
        chip = ImageOps.expand(draw_chip(panel.number, CHIP_PX, panel.frame), 1, BOX_EDGE)
        cell.paste(chip, (0, 0))
        indent = chip.width + 12
    draw_caption(cell, panel.label, panel.note, indent)
    cell.paste(picture, (0, CAPTION_PX))
    return cell


def _first_look(explanation: Explanation) -> list[Panel]:
    """Of the whole image: each map alone and over it, and what erasing leaves."""
    shape = explanation.image.size
    panels = []
    for name, heat in explanation.maps.items():
        label = map_label(explanation, name)
        over = partial(draw_map, explanation, name, box=True)
        panels.append(Panel(label, _cells(heat), shape, partial(draw_cells, explanation, name)))
        panels.append(Panel("Over the image", "", shape, over))
    if explanation.erased is not None:
        share = f"{100 * explanation.erased.mean():.1f} %"
        panels.append(Panel("Erased in training", share, shape, partial(draw_erased, explanation)))
    return panels


def further_looks(explanation: Explanation) -> list[Panel]:
    """The object crop and its own attention, then the part crops, all cut from the image itself."""
    panels = []
    if explanation.box is not None and (explanation.parts or explanation.object_map is not None):
        heat = explanation.object_map
        panels.append(_crop_panel(explanation, explanation.box, "Object crop", BOX_LINE))
        if heat is not None:
            panels.append(_crop_panel(explanation, explanation.box, "Its attention", BOX_LINE, heat=heat))
    for index, part in enumerate(explanation.parts):
        panels.append(_crop_panel(explanation, part, "Part", part_color(index), number=index + 1))
    return panels


def map_label(explanation: Explanation, name: str) -> str:
    """What stands above a map: the one of a model that looks again is its attention."""
    again = bool(explanation.parts) or explanation.object_map is not None or explanation.erased is not None
    alone = not explanation.chosen and again and len(explanation.maps) == 1
    return "Attention" if alone else spoken(name)


def _crop_panel(
    explanation: Explanation,
    box: Box,
    label: str,
    color: Color,
    *,
    number: int | None = None,
    heat: np.ndarray | None = None,
) -> Panel:
    box = solid(box, explanation.image.size)
    width, height = box[2] - box[0], box[3] - box[1]
    note = f"{round(width)} x {round(height)} px" if heat is None else _cells(heat)
    return Panel(label, note, (width, height), partial(draw_crop, explanation, box, heat=heat), color, number)


def _cells(heat: np.ndarray) -> str:
    rows, columns = heat.shape
    return f"{columns} x {rows}"
