"""The panels of an explanation: the image with its boxes, what lies over it, its crops, a legend, rows.

The section of a model that looks again shows what Conde & Turgutlu (2021) show in Figs. 3-5: the attention
map alone and over the image, the image with the attended pixels erased, the object crop, the crop's own
attention, and the part crops.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from fgvc_cli.charts.drawing import (
    CAPTION_PX,
    GAP,
    INNER,
    LABEL,
    PAPER,
    QUIET,
    SMALL,
    Face,
    Section,
    apply_colormap,
    beside,
    color_table,
    draw_caption,
    spoken,
    stack,
)
from fgvc_cli.data.geometry import Box
from fgvc_cli.explain.explainer import Explanation

Color = tuple[int, int, int]
Size = tuple[int, int]
Rectangle = tuple[int, int, int, int]

BOX_LINE: Color = (0, 229, 255)
"""Cyan: rare in images, and opposite to every colour of the map."""
PART_LINES: tuple[Color, ...] = ((255, 221, 51), (213, 94, 0), (60, 110, 255), (255, 255, 255))
"""Of each part, then over again: apart from each other and from ``BOX_LINE`` for every kind of colour
blindness (CIEDE2000 above 16, the first two above 24)."""
BOX_EDGE: Color = (6, 20, 38)
ERASED: Color = (126, 126, 126)
"""Near the data's mean, which an erased pixel is to the model."""
ERASED_RIM: Color = (255, 255, 255)
"""Round what is erased, inside it: grey things in an image have none."""
UNMAPPED: Color = (232, 236, 239)
"""Where a map drawn alone has nothing to say."""
FRAME_PX = 7
MAP_OPACITY = 0.72
"""How much of a map's colour covers the grey image beneath."""
UNSEEN_VEIL = 0.62
"""How far the part of the image that the model did not see fades to white."""

_BLOCKY_ZOOM = 8
"""Images enlarged more than this keep their square pixels, which says that there is no detail."""


def fit(photo: tuple[float, float], slot: Size) -> Size:
    """The largest (width, height) with the image's aspect that fits a slot; at least one pixel."""
    scale = min(slot[0] / photo[0], slot[1] / photo[1])
    return max(1, round(photo[0] * scale)), max(1, round(photo[1] * scale))


def draw_photo(explanation: Explanation, size: Size) -> Image.Image:
    """The image, resized to ``size``, with its object box and its numbered part boxes."""
    panel = _photo(explanation, size).copy()
    if explanation.box is not None:
        draw_box(panel, _scaled(explanation.box, explanation.image.size, size))
    parts = [_scaled(part, explanation.image.size, size) for part in explanation.parts]
    for index, part in enumerate(parts):
        draw_box(panel, part, part_color(index))
    _number(panel, parts)
    return panel


FRAMED_CELLS = 12
"""See ``without_frame``."""


def draw_map(explanation: Explanation, name: str, size: Size, box: bool = False) -> Image.Image:
    """One map over the grey image, exactly where the model's input lies; what it did not see is faded.

    Raises:
        KeyError: a map that the explanation lacks.
    """
    veiled, seen = _beneath_maps(explanation, size)
    panel = veiled.copy()
    panel.paste(_overlay(seen, without_frame(name, explanation.maps[name])), _seen(explanation, size)[:2])
    if box and explanation.box is not None:
        draw_box(panel, _scaled(explanation.box, explanation.image.size, size))
    return panel


def without_frame(name: str, heat: np.ndarray) -> np.ndarray:
    """A stage map (h, w) for drawing: its outermost cells as their inner neighbours, the rest over [0, 1].

    Zeros that pad a convolution are an edge to it: early stages answer with a bright frame around every
    image, which takes the eye and the scale from what is inside. Maps kept as numbers, and the object's box,
    have it as it is; so have maps of fewer than ``FRAMED_CELLS`` a side, whose outermost cells are too many.
    """
    if not name.startswith("stage") or min(heat.shape) < FRAMED_CELLS:
        return heat
    inside = np.asarray(heat, np.float32)[1:-1, 1:-1]
    span = float(inside.max() - inside.min())
    return np.pad((inside - inside.min()) / span if span > 0 else np.zeros_like(inside), 1, mode="edge")


def draw_cells(explanation: Explanation, name: str, size: Size) -> Image.Image:
    """One map alone, its cells as they are, in the frame of the image (Conde & Turgutlu 2021, Fig. 4 b).

    Raises:
        KeyError: a map that the explanation lacks.
    """
    panel = Image.new("RGB", size, UNMAPPED)
    x1, y1, x2, y2 = _seen(explanation, size)
    cells = Image.fromarray(apply_colormap(np.asarray(explanation.maps[name], np.float32)))
    panel.paste(cells.resize((x2 - x1, y2 - y1), Image.Resampling.NEAREST), (x1, y1))
    return panel


def draw_erased(explanation: Explanation, size: Size) -> Image.Image:
    """The image without the pixels that training may erase (Conde & Turgutlu 2021, Fig. 3).

    Raises:
        ValueError: an explanation that erases nothing.
    """
    if explanation.erased is None:
        raise ValueError("draw_erased got an explanation without erased pixels")
    photo = _resized(explanation.image, size)
    panel = _veiled(photo)
    x1, y1, x2, y2 = _seen(explanation, size)
    seen = photo.crop((x1, y1, x2, y2))
    erased = Image.fromarray(np.asarray(explanation.erased, bool)).convert("L")
    mask = erased.resize(seen.size, Image.Resampling.NEAREST)
    rim = max(1, round(math.sqrt(panel.width * panel.height) / 250))
    seen.paste(ERASED_RIM, mask=mask)
    seen.paste(ERASED, mask=mask.filter(ImageFilter.MinFilter(2 * rim + 1)))
    panel.paste(seen, (x1, y1))
    return panel


def draw_crop(explanation: Explanation, box: Box, size: Size, heat: np.ndarray | None = None) -> Image.Image:
    """A box cut from the image itself, not from the model's input, at ``size``.

    Args:
        box: xyxy pixels of the image, as ``solid`` gives it.
        heat: a map (h, w) in [0, 1] of the box, laid over the crop in grey.
    """
    crop = _resized(explanation.image, size, box)
    return crop if heat is None else _overlay(_stretched_grey(crop), heat)


def draw_box(panel: Image.Image, box: Box, color: Color = BOX_LINE) -> None:
    """A bright line with dark edges, inside the box, so that it stands out on any image."""
    thickness = max(3.0, math.sqrt(panel.width * panel.height) / 150)
    line = max(1, round(min(thickness, min(panel.size) / 12)))
    edge = max(1, line // 3)
    x1, y1, x2, y2 = whole_pixels(box, panel.size)
    draw = ImageDraw.Draw(panel)

    def ring(inset: int, width: int, color: Color) -> None:
        # Pillow's rectangle includes its last pixel; a box ends before it.
        corners = (x1 + inset, y1 + inset, x2 - 1 - inset, y2 - 1 - inset)
        if corners[0] <= corners[2] and corners[1] <= corners[3]:
            draw.rectangle(corners, outline=color, width=width)

    ring(0, line + 2 * edge, BOX_EDGE)
    ring(edge, line, color)


def frame(picture: Image.Image, color: Color) -> Image.Image:
    """A picture with a line of ``color`` round it, ``FRAME_PX`` wide, that covers none of it."""
    for width, line in ((1, BOX_EDGE), (FRAME_PX - 2, color), (1, BOX_EDGE)):
        picture = ImageOps.expand(picture, width, line)
    return picture


def draw_chip(number: int, px: int, color: Color) -> Image.Image:
    """A part's number on its colour, ``px`` high and at least as wide."""
    face = Face(round(px * 0.78), bold=True)
    text = str(number)
    chip = Image.new("RGB", (max(px, round(face.width(text) + px * 0.4)), px), color)
    # Relative luminance of sRGB (ITU-R BT.709), near enough without its gamma to tell light from dark.
    light = 0.2126 * color[0] + 0.7152 * color[1] + 0.0722 * color[2]
    ink = "#0b1420" if light > 140 else "#ffffff"
    face.draw(ImageDraw.Draw(chip), (chip.width / 2, chip.height / 2), text, ink, anchor="mm")
    return chip


def part_color(index: int) -> Color:
    """The line of a part box, counted from 0."""
    return PART_LINES[index % len(PART_LINES)]


def solid(box: Box, size: Size) -> Box:
    """An xyxy box inside an image, widened where it covers less than a pixel of either side."""
    x1, x2 = _solid(box[0], box[2], size[0])
    y1, y2 = _solid(box[1], box[3], size[1])
    return x1, y1, x2, y2


def whole_pixels(box: Box, size: Size) -> Rectangle:
    """An xyxy box rounded to the panel's pixels, inside it and never empty."""
    x1, x2 = _whole(box[0], box[2], size[0])
    y1, y2 = _whole(box[1], box[3], size[1])
    return x1, y1, x2, y2


def _number(panel: Image.Image, boxes: list[Box]) -> None:
    """A chip at each box, beside it where there is room, so that the part itself stays visible."""
    px = round(max(26.0, math.sqrt(panel.width * panel.height) / 20))
    taken: list[Rectangle] = []
    for index, box in enumerate(boxes):
        chip = draw_chip(index + 1, px, part_color(index))
        chip = ImageOps.expand(chip, max(1, px // 18), BOX_EDGE)
        x1, y1, x2, y2 = whole_pixels(box, panel.size)
        places = [
            (x, y, x + chip.width, y + chip.height)
            for y in (y1 - chip.height, y2, y1, y2 - chip.height)
            for x in (x1, x2 - chip.width)
        ]
        inside = [p for p in places if min(p) >= 0 and p[2] <= panel.width and p[3] <= panel.height]
        others = [whole_pixels(other, panel.size) for other in boxes[:index] + boxes[index + 1 :]]
        # In a panel with no room at all, the colours must do.
        if inside:
            place = min(inside, key=lambda p: (_meetings(p, taken), _meetings(p, others)))
            taken.append(place)
            panel.paste(chip, place)


def _meetings(place: Rectangle, others: Sequence[Rectangle]) -> int:
    x1, y1, x2, y2 = place
    return sum(x1 < o[2] and o[0] < x2 and y1 < o[3] and o[1] < y2 for o in others)


def _overlay(grey: Image.Image, heat: np.ndarray) -> Image.Image:
    """A map's colours over the whole of a grey picture, see ``_stretched_grey``."""
    values = np.nan_to_num(np.asarray(heat, np.float32))
    # A cell is an area, as a pixel is: resizing the map like an image puts each over the pixels it came from.
    smooth = Image.fromarray(values).resize(grey.size, Image.Resampling.BICUBIC)
    colors = Image.fromarray(apply_colormap(np.asarray(smooth)))
    return Image.blend(grey, colors, MAP_OPACITY)


@lru_cache(maxsize=4)
def _photo(explanation: Explanation, size: Size) -> Image.Image:
    """The image at a size that several panels have; not to be drawn on."""
    return _resized(explanation.image, size)


@lru_cache(maxsize=4)
def _beneath_maps(explanation: Explanation, size: Size) -> tuple[Image.Image, Image.Image]:
    """What all maps of one size lie on: the image in pale grey, and in grey what the model saw."""
    photo = _photo(explanation, size)
    return _veiled(photo.convert("L").convert("RGB")), _stretched_grey(photo.crop(_seen(explanation, size)))


def _stretched_grey(picture: Image.Image) -> Image.Image:
    """Without its colours, from black to white."""
    return ImageOps.autocontrast(picture.convert("L"), cutoff=1).convert("RGB")


def _veiled(panel: Image.Image) -> Image.Image:
    return Image.blend(panel, Image.new("RGB", panel.size, "white"), UNSEEN_VEIL)


def _seen(explanation: Explanation, size: Size) -> Rectangle:
    """Where the model's input lies in a panel of the whole image."""
    return whole_pixels(_scaled(explanation.region, explanation.image.size, size), size)


def _solid(low: float, high: float, limit: int) -> tuple[float, float]:
    start = min(max(low, 0.0), limit - 1.0)
    return start, min(max(high, start + 1), float(limit))


def _whole(low: float, high: float, limit: int) -> tuple[int, int]:
    start = min(max(round(low), 0), limit - 1)
    return start, min(max(round(high), start + 1), limit)


def _scaled(box: Box, photo: Size, size: Size) -> Box:
    x, y = size[0] / photo[0], size[1] / photo[1]
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y


def _resized(image: Image.Image, size: Size, box: Box | None = None) -> Image.Image:
    width = image.width if box is None else box[2] - box[0]
    blocky = size[0] > _BLOCKY_ZOOM * width
    how = Image.Resampling.NEAREST if blocky else Image.Resampling.LANCZOS
    return image.resize(size, how, box=box, reducing_gap=3.0)


_LINE_PX = round(SMALL.px * 1.4)
_SWATCH_PX = 28


def draw_legend(explanation: Explanation) -> Section:
    """The colour map itself and, where there is more than an object box to tell apart, a key of the boxes."""
    section = Image.new("RGB", (INNER, _LINE_PX), PAPER)
    draw = ImageDraw.Draw(section)
    ramp = Image.fromarray(color_table()[None]).resize((300, 22), Image.Resampling.BILINEAR)
    x = SMALL.width("low") + 14
    SMALL.draw(draw, (0, SMALL.px), "low", QUIET)
    section.paste(ramp, (round(x), SMALL.px - 20))
    SMALL.draw(draw, (x + ramp.width + 14, SMALL.px), "high, each map on its own scale", QUIET)
    key = _key(explanation)
    pale = "pale: outside the model's input"
    if key is None:
        notes = f"box: the object; {pale}" if explanation.box is not None else pale
    else:
        size = explanation.image.size
        notes = "" if whole_pixels(explanation.region, size) == (0, 0, *size) else pale
    SMALL.draw(draw, (INNER, SMALL.px), notes, QUIET, anchor="rs")
    return stack([section, key], GAP // 2)


def _key(explanation: Explanation) -> Section | None:
    """Swatches of the object, its parts and what is erased; None where no part and nothing is erased."""
    if not explanation.parts and explanation.erased is None:
        return None
    entries = []
    if explanation.box is not None:
        inner = _SWATCH_PX + 2 - 2 * FRAME_PX
        entries.append(_entry([frame(Image.new("RGB", (inner, inner), PAPER), BOX_LINE)], "the object"))
    if explanation.parts:
        # Further parts take the same colours again.
        shown = range(min(len(explanation.parts), len(PART_LINES)))
        chips = [ImageOps.expand(draw_chip(i + 1, _SWATCH_PX, PART_LINES[i]), 1, BOX_EDGE) for i in shown]
        entries.append(_entry(chips, "its parts, looked at again"))
    if explanation.erased is not None:
        entries.append(_entry([Image.new("RGB", (_SWATCH_PX, _SWATCH_PX), ERASED)], "erased in training"))
    return beside(entries, 2 * GAP)


def _entry(swatches: Sequence[Image.Image], meaning: str) -> Section:
    """Swatches and what they mean, on the baseline of the line above."""
    text = Image.new("RGB", (math.ceil(SMALL.width(meaning)), _LINE_PX), PAPER)
    SMALL.draw(ImageDraw.Draw(text), (0, SMALL.px), meaning, QUIET)
    return beside([*swatches, text], 10)


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
