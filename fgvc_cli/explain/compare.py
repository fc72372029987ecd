"""Several models on one photograph: a row each, its maps beside each other.

These are Figs. 4-6 of Wang et al. (2025): the backbone alone, with CRAM, and with CRAM and SMRAM; or
trainings that differ in delta or gamma. Stages 3, 4 and 5 are the columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from PIL import Image, ImageDraw

from fgvc_cli.explain.explanation import HEAT, Explanation, LabelledExplanation, spoken
from fgvc_cli.explain.layout import (
    BODY,
    CAPTION_PX,
    GAP,
    INK,
    INNER,
    LABEL,
    PAPER,
    QUIET,
    SMALL,
    TITLE,
    Section,
    beside,
    draw_caption,
    page,
    stack,
)
from fgvc_cli.explain.legend import draw_legend
from fgvc_cli.explain.panels import Size, draw_map, draw_photo, fit
from fgvc_cli.explain.render import draw_question

MAX_ASPECT = 1.5
"""Panels are no higher than this many times a column, so that a page holds several rows of portraits."""
LEAST_PX = 60
"""Where panels side by side would be lower, a row is broken into lines of two columns."""
_GAP = GAP // 2


def draw_comparison(rows: Sequence[LabelledExplanation], title: str = "") -> Image.Image:
    """The photograph with the box of each model, and its maps, one row per model.

    Models of one family have the same columns, named once. The object heat, from which the box comes, is left
    out where there are other maps.

    Args:
        rows: at least one, all of the same photograph.
        title: stands above, usually the photograph's file name.

    Returns:
        RGB, as wide as ``render`` makes it.
    """
    shape = rows[0].explanation.image.size
    columns, size = _fit_columns(shape, 1 + max(len(_shown(row.explanation)) for row in rows))
    # Where no class was named, each row's maps speak for its own answer.
    asked_once = len({row.explanation.why for row in rows}) == 1
    sections: list[Section | None] = [_header(title, rows)]
    sections += [draw_question(rows[0].explanation)] if asked_once else []
    above: dict[str, str] = {}
    for row in rows:
        notes = _shown(row.explanation)
        captioned = notes != above or columns <= len(notes)
        panels = _draw_panels(row.explanation, notes, columns, size, captioned)
        question = None if asked_once else draw_question(row.explanation)
        sections.append(stack([_heading(row), question, panels], _GAP))
        above = notes
    return page(stack([*sections, draw_legend(_richest(rows))], GAP))


def _shown(explanation: Explanation) -> dict[str, str]:
    """The maps of a row, and what stands behind their names: their cells."""
    cells = {name: f"{heat.shape[1]} x {heat.shape[0]}" for name, heat in explanation.maps.items()}
    others = {name: note for name, note in cells.items() if name != HEAT}
    return others if others and not explanation.chosen else cells


def _fit_columns(shape: Size, count: int) -> tuple[int, Size]:
    """How many panels stand side by side, and the size of each."""
    for columns in (count, min(2, count), 1):
        width = (INNER - (columns - 1) * GAP) // columns
        size = fit(shape, (width, round(MAX_ASPECT * width)))
        if size[1] >= LEAST_PX:
            break
    return columns, size


def _draw_panels(
    explanation: Explanation, notes: Mapping[str, str], columns: int, size: Size, captioned: bool
) -> Section:
    width = (INNER - (columns - 1) * GAP) // columns
    top = CAPTION_PX if captioned else 0
    panels = [("Image", "", draw_photo(explanation, size))]
    panels += [
        (spoken(name), note, draw_map(explanation, name, size, box=name == HEAT))
        for name, note in notes.items()
    ]
    cells = []
    for label, note, panel in panels:
        cell = Image.new("RGB", (width, top + size[1]), PAPER)
        if captioned:
            draw_caption(cell, label, note)
        cell.paste(panel, (0, top))
        cells.append(cell)
    lines = [beside(cells[i : i + columns], GAP) for i in range(0, len(cells), columns)]
    return stack(lines, _GAP)


def _heading(row: LabelledExplanation) -> Section:
    """What the row is on the left, what its model takes the photograph for on the right."""
    section = Image.new("RGB", (INNER, round(LABEL.px * 1.35)), PAPER)
    draw = ImageDraw.Draw(section)
    name, prob = row.explanation.top[0]
    percent = f" {100 * prob:.1f} %"
    guess = BODY.shorten(name, INNER / 2 - BODY.width(percent)) + percent
    BODY.draw(draw, (INNER, LABEL.px), guess, INK, anchor="rs")
    room = INNER - BODY.width(guess) - 2 * GAP
    label = LABEL.shorten(row.label, room)
    LABEL.draw(draw, (0, LABEL.px), label, INK)
    room -= LABEL.width(label) + GAP
    if SMALL.width(row.explanation.model) <= room and row.label != row.explanation.model:
        SMALL.draw(draw, (LABEL.width(label) + GAP, LABEL.px), row.explanation.model, QUIET)
    return section


def _header(title: str, rows: Sequence[LabelledExplanation]) -> Section:
    section = Image.new("RGB", (INNER, round(TITLE.px * 1.3)), PAPER)
    draw = ImageDraw.Draw(section)
    note = "" if rows[0].explanation.chosen else "channel-averaged activations"
    TITLE.draw(draw, (0, TITLE.px), TITLE.shorten(title, INNER - SMALL.width(note) - 2 * GAP), INK)
    SMALL.draw(draw, (INNER, TITLE.px), note, QUIET, anchor="rs")
    return section


def _richest(rows: Sequence[LabelledExplanation]) -> Explanation:
    """The row with most to explain in a legend; what is erased in training is in no panel."""
    most = max(rows, key=lambda row: (len(row.explanation.parts), row.explanation.box is not None))
    return replace(most.explanation, erased=None)
