"""An explanation as one picture: photograph with box, maps, the most probable classes as bars.

Everything is laid out on a fixed width; the photograph's shape decides what stands beside what.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from PIL import Image, ImageDraw

from fgvc_cli.explain.colormap import color_table
from fgvc_cli.explain.explanation import HEAT, Explanation
from fgvc_cli.explain.panels import draw_map, draw_photo, fit
from fgvc_cli.explain.text import Face

WIDTH = 1600
MARGIN = 64
INNER = WIDTH - 2 * MARGIN
GAP = 28
SECTION_GAP = 52
PHOTO_SLOT = (880, 690)
CAPTION_PX = 46
CELL_ASPECT = 1.8
"""Height over width beyond which a panel in the grid is drawn narrower."""
WIDE_ASPECT = 1.9
"""Photographs wider than this stand above the answers instead of beside them."""
MAX_BARS = 10
"""More classes are for the terminal, not for a picture."""

PAPER, INK, QUIET, TRACK = "#ffffff", "#1a2129", "#66707b", "#e8ecef"
ACCENT, MUTED = "#00758a", "#a3b7c0"

TITLE, LEAD = Face(34, bold=True), Face(40, bold=True)
BODY, LABEL, SMALL = Face(28), Face(28, bold=True), Face(26)

Section = Image.Image


def render(explanation: Explanation, title: str = "") -> Image.Image:
    """Compose the picture.

    Args:
        explanation: what to draw; nothing here is particular to one family of models.
        title: stands above the picture, usually the photograph's file name.

    Returns:
        RGB, ``WIDTH`` pixels wide, as high as the photograph's shape needs.
    """
    width, height = explanation.image.size
    sections: list[Section | None] = [_header(title, explanation.model)]
    if width > WIDE_ASPECT * height:
        photo = draw_photo(explanation, fit((width, height), (INNER, PHOTO_SLOT[1])))
        sections += [photo, _grid(explanation, [*explanation.maps], 2), _answers_beside(explanation)]
    elif len(explanation.maps) > 1:
        photo = draw_photo(explanation, fit((width, height), PHOTO_SLOT))
        column = INNER - photo.width - 2 * GAP
        answers = _stack([draw_bars(explanation.top, column), draw_branches(explanation, column)])
        sections += [_beside([photo, answers], 2 * GAP), _grid(explanation, [*explanation.maps], 4)]
    else:
        sections += [_grid(explanation, [None, *explanation.maps], 2), _answers_beside(explanation)]
    return _page(_stack([*sections, _legend(explanation.box is not None)]))


def draw_bars(top: Sequence[tuple[str, float]], width: int) -> Section:
    """The most probable classes, one bar each: a track of full width stands for probability 1."""
    rows = []
    for rank, (name, prob) in enumerate(top[:MAX_BARS]):
        face, thick, color = (LEAD, 20, ACCENT) if rank == 0 else (BODY, 14, MUTED)
        row = Image.new("RGB", (width, face.px + thick + 18), PAPER)
        draw = ImageDraw.Draw(row)
        percent = f"{100 * prob:.1f} %"
        room = width - face.width(percent) - GAP
        name_face = face if face.width(name) <= room or rank else LABEL
        name_face.draw(draw, (0, face.px), name_face.shorten(name, room), INK)
        face.draw(draw, (width, face.px), percent, INK if rank == 0 else QUIET, anchor="rs")
        _draw_bar(row, (0, row.height - thick, width, row.height), TRACK)
        share = prob if math.isfinite(prob) else 0.0
        _draw_bar(row, (0, row.height - thick, round(width * min(max(share, 0), 1)), row.height), color)
        rows.append(row)
    return _stack(rows, GAP)


def draw_branches(explanation: Explanation, width: int) -> Section | None:
    """What each branch says alone, in the accent where it agrees with the answer; None for one branch."""
    if len(explanation.branches) < 2:
        return None
    winner = explanation.top[0][0]
    pitch = round(SMALL.px * 1.62)
    section = Image.new("RGB", (width, LABEL.px + 14 + pitch * len(explanation.branches)), PAPER)
    draw = ImageDraw.Draw(section)
    LABEL.draw(draw, (0, LABEL.px), "Each branch on its own", INK)
    names = {name: SMALL.shorten(_spoken(name), width / 3) for name in explanation.branches}
    indent = max(SMALL.width(name) for name in names.values()) + GAP
    for row, (branch, (name, prob)) in enumerate(explanation.branches.items(), start=1):
        y = LABEL.px + 8 + row * pitch
        percent = f"{100 * prob:.1f} %"
        room = width - indent - SMALL.width(percent) - GAP
        SMALL.draw(draw, (0, y), names[branch], QUIET)
        SMALL.draw(draw, (indent, y), SMALL.shorten(name, room), ACCENT if name == winner else INK)
        SMALL.draw(draw, (width, y), percent, QUIET, anchor="rs")
    return section


def _answers_beside(explanation: Explanation) -> Section:
    """Bars and branches next to each other, over the full width."""
    half = (INNER - 3 * GAP) // 2
    branches = draw_branches(explanation, half)
    bars = draw_bars(explanation.top, INNER if branches is None else half)
    return _beside([bars, branches], 3 * GAP)


def _grid(explanation: Explanation, names: Sequence[str | None], columns: int) -> Section | None:
    """Panels of equal size, row by row, each under its name; None stands for the photograph."""
    columns = min(columns, len(names))
    if columns == 0:
        return None
    width = (INNER - (columns - 1) * GAP) // columns
    size = fit(explanation.image.size, (width, min(round(CELL_ASPECT * width), PHOTO_SLOT[1])))
    cells = []
    for name in names:
        cell = Image.new("RGB", (width, CAPTION_PX + size[1]), PAPER)
        draw = ImageDraw.Draw(cell)
        if name is None:
            label, note, panel = "Photograph", "", draw_photo(explanation, size)
        else:
            rows, cols = explanation.maps[name].shape
            label, note = "Object heat" if name == HEAT else _spoken(name), f"{cols} x {rows}"
            panel = draw_map(explanation, name, size, box=name == HEAT)
        label = LABEL.shorten(label, width - SMALL.width(note) - GAP)
        LABEL.draw(draw, (0, LABEL.px), label, INK)
        SMALL.draw(draw, (LABEL.width(label) + 14, LABEL.px), note, QUIET)
        cell.paste(panel, (0, CAPTION_PX))
        cells.append(cell)
    rows = [_beside(cells[i : i + columns], GAP) for i in range(0, len(cells), columns)]
    return _stack(rows, GAP)


def _header(title: str, model: str) -> Section:
    section = Image.new("RGB", (INNER, round(TITLE.px * 1.3)), PAPER)
    draw = ImageDraw.Draw(section)
    model = BODY.shorten(model, INNER / 2)
    TITLE.draw(draw, (0, TITLE.px), TITLE.shorten(title, INNER - BODY.width(model) - 2 * GAP), INK)
    BODY.draw(draw, (INNER, TITLE.px), model, QUIET, anchor="rs")
    return section


def _legend(box: bool) -> Section:
    """What the colours mean, with the colour map itself."""
    section = Image.new("RGB", (INNER, round(SMALL.px * 1.4)), PAPER)
    draw = ImageDraw.Draw(section)
    ramp = Image.fromarray(color_table()[None]).resize((300, 22), Image.Resampling.BILINEAR)
    x = SMALL.width("low") + 14
    SMALL.draw(draw, (0, SMALL.px), "low", QUIET)
    section.paste(ramp, (round(x), SMALL.px - 20))
    SMALL.draw(draw, (x + ramp.width + 14, SMALL.px), "high, each map on its own scale", QUIET)
    notes = "box: the object; pale: outside the model's input" if box else "pale: outside the model's input"
    SMALL.draw(draw, (INNER, SMALL.px), notes, QUIET, anchor="rs")
    return section


def _spoken(name: str) -> str:
    """``stage3`` -> Stage 3; ``last`` -> Last."""
    words = re.sub(r"(?<=[^\W\d_])(?=\d)", " ", name.replace("_", " "))
    return words[:1].upper() + words[1:]


def _draw_bar(on: Image.Image, box: tuple[int, int, int, int], color: str) -> None:
    """A bar with round ends; Pillow's own are jagged, so the shape is drawn larger and reduced."""
    width, height = box[2] - box[0], box[3] - box[1]
    if width < 1:
        return
    zoom = 4
    mask = Image.new("L", (width * zoom, height * zoom), 0)
    ends = min(width, height) * zoom // 2
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), ends, fill=255)
    on.paste(color, box, mask.resize((width, height), Image.Resampling.BOX))


def _beside(sections: Sequence[Section | None], gap: int) -> Section:
    """Next to each other, tops aligned."""
    kept = [section for section in sections if section is not None]
    whole = Image.new(
        "RGB",
        (sum(s.width for s in kept) + gap * (len(kept) - 1), max(s.height for s in kept)),
        PAPER,
    )
    x = 0
    for section in kept:
        whole.paste(section, (x, 0))
        x += section.width + gap
    return whole


def _stack(sections: Sequence[Section | None], gap: int = SECTION_GAP) -> Section:
    """Below each other, left sides aligned."""
    kept = [section for section in sections if section is not None]
    whole = Image.new(
        "RGB",
        (max(s.width for s in kept), sum(s.height for s in kept) + gap * (len(kept) - 1)),
        PAPER,
    )
    y = 0
    for section in kept:
        whole.paste(section, (0, y))
        y += section.height + gap
    return whole


def _page(body: Section) -> Image.Image:
    page = Image.new("RGB", (WIDTH, body.height + 2 * MARGIN), PAPER)
    page.paste(body, (MARGIN, MARGIN))
    return page
