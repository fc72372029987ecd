"""An explanation as one picture: photograph with box, maps, the most probable classes as bars.

Everything is laid out on a fixed width; the photograph's shape decides what stands beside what.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from fgvc_cli.explain.explanation import HEAT, Explanation, spoken
from fgvc_cli.explain.layout import (
    ACCENT,
    BODY,
    CAPTION_PX,
    GAP,
    INK,
    INNER,
    LABEL,
    LEAD,
    MUTED,
    PAPER,
    QUIET,
    SMALL,
    TITLE,
    TRACK,
    Section,
    beside,
    draw_caption,
    page,
    stack,
)
from fgvc_cli.explain.legend import draw_legend
from fgvc_cli.explain.nearest import draw_nearest
from fgvc_cli.explain.panels import draw_map, draw_photo, fit
from fgvc_cli.explain.stage_panels import draw_looks

PHOTO_SLOT = (880, 690)
CELL_ASPECT = 1.8
"""Height over width beyond which a panel in the grid is drawn narrower."""
WIDE_ASPECT = 1.9
"""Photographs wider than this stand above the answers instead of beside them."""
MAX_BARS = 10
"""More classes are for the terminal, not for a picture."""


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
    looks = None if explanation.chosen else draw_looks(explanation)
    why = draw_question(explanation)
    if width > WIDE_ASPECT * height:
        photo = draw_photo(explanation, fit((width, height), (INNER, PHOTO_SLOT[1])))
        maps = looks or _grid(explanation, [*explanation.maps], 2)
        sections += [photo, _under(why, maps), _answers_beside(explanation)]
    elif looks or len(explanation.maps) > 1:
        photo = draw_photo(explanation, fit((width, height), PHOTO_SLOT))
        column = INNER - photo.width - 2 * GAP
        answers = stack([draw_bars(explanation.top, column), draw_branches(explanation, column)])
        maps = looks or _grid(explanation, [*explanation.maps], _columns(len(explanation.maps)))
        sections += [beside([photo, answers], 2 * GAP), _under(why, maps)]
    else:
        grid = _grid(explanation, [None, *explanation.maps], 2)
        sections += [_under(why, grid), _answers_beside(explanation)]
    return page(stack([*sections, draw_legend(explanation), draw_nearest(explanation)]))


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
    return stack(rows, GAP)


def draw_question(explanation: Explanation) -> Section | None:
    """What the maps speak for: a class, and the one it is held against; None where they speak for none."""
    if explanation.why is None:
        return None
    target, rival = explanation.why
    section = Image.new("RGB", (INNER, round(LABEL.px * 1.3)), PAPER)
    draw = ImageDraw.Draw(section)
    words = [("Why", QUIET), (target, ACCENT), *([("and not", QUIET), (rival, INK)] if rival else [])]
    space = LABEL.px / 3
    names = len(words) // 2
    room = (INNER - sum(LABEL.width(text) + space for text, _ in words[::2])) / names - space
    x = 0.0
    for index, (text, color) in enumerate(words):
        shown = LABEL.shorten(text, room) if index % 2 else text
        LABEL.draw(draw, (x, LABEL.px), shown, color)
        x += LABEL.width(shown) + space
    return section


def _under(heading: Section | None, body: Section | None) -> Section | None:
    """A heading close above what it is for."""
    return stack([heading, body], GAP) if heading and body else body


def _columns(count: int) -> int:
    """4, or 3 where that leaves fewer gaps in the last row."""
    return count if count <= 4 else min((4, 3), key=lambda columns: -count % columns)


def draw_branches(explanation: Explanation, width: int) -> Section | None:
    """What each branch says alone, in the accent where it agrees with the answer; None for one branch."""
    if len(explanation.branches) < 2:
        return None
    winner = explanation.top[0][0]
    pitch = round(SMALL.px * 1.62)
    section = Image.new("RGB", (width, LABEL.px + 14 + pitch * len(explanation.branches)), PAPER)
    draw = ImageDraw.Draw(section)
    LABEL.draw(draw, (0, LABEL.px), "Each branch on its own", INK)
    names = {name: SMALL.shorten(spoken(name), width / 3) for name in explanation.branches}
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
    return beside([bars, branches], 3 * GAP)


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
        if name is None:
            label, note, panel = "Image", "", draw_photo(explanation, size)
        else:
            rows, cols = explanation.maps[name].shape
            label, note = spoken(name), f"{cols} x {rows}"
            panel = draw_map(explanation, name, size, box=name == HEAT)
        draw_caption(cell, label, note)
        cell.paste(panel, (0, CAPTION_PX))
        cells.append(cell)
    rows = [beside(cells[i : i + columns], GAP) for i in range(0, len(cells), columns)]
    return stack(rows, GAP)


def _header(title: str, model: str) -> Section:
    section = Image.new("RGB", (INNER, round(TITLE.px * 1.3)), PAPER)
    draw = ImageDraw.Draw(section)
    model = BODY.shorten(model, INNER / 2)
    TITLE.draw(draw, (0, TITLE.px), TITLE.shorten(title, INNER - BODY.width(model) - 2 * GAP), INK)
    BODY.draw(draw, (INNER, TITLE.px), model, QUIET, anchor="rs")
    return section


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
