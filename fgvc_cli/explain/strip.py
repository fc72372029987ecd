"""An explanation as one row of pictures: small and quick, for folders of photographs."""

from __future__ import annotations

from functools import partial

from PIL import Image, ImageDraw

from fgvc_cli.explain.explanation import HEAT, Explanation
from fgvc_cli.explain.layout import BODY, GAP, INK, INNER, LABEL, PAPER, QUIET, SMALL, Section, page, stack
from fgvc_cli.explain.nearest import draw_nearest_strip
from fgvc_cli.explain.panels import draw_map, draw_photo
from fgvc_cli.explain.render import draw_question
from fgvc_cli.explain.stage_panels import Panel, draw_row, further_looks, map_label

PANEL_PX, LEAST_PANEL_PX = 300, 70
NAMED = 3
"""Classes in the first line."""


def draw_strip(explanation: Explanation, title: str = "") -> Image.Image:
    """The photograph, its maps and its further looks side by side under the most probable classes.

    Returns:
        RGB, as wide as ``render`` makes it.
    """
    shape = explanation.image.size
    panels = [Panel("Image", "", shape, partial(draw_photo, explanation))]
    for name, heat in explanation.maps.items():
        note = f"{heat.shape[1]} x {heat.shape[0]}"
        over = partial(draw_map, explanation, name, box=name == HEAT)
        panels.append(Panel(map_label(explanation, name), note, shape, over))
    if not explanation.chosen:
        panels += further_looks(explanation)
    sections = [
        _header(explanation, title),
        draw_question(explanation),
        draw_row(panels, PANEL_PX, LEAST_PANEL_PX),
        draw_nearest_strip(explanation),
    ]
    return page(stack(sections, GAP), margin=GAP)


def _header(explanation: Explanation, title: str) -> Section:
    """The answer on the left, the photograph's name on the right."""
    section = Image.new("RGB", (INNER, round(BODY.px * 1.35)), PAPER)
    draw = ImageDraw.Draw(section)
    title = SMALL.shorten(title, INNER / 3)
    SMALL.draw(draw, (INNER, BODY.px), title, QUIET, anchor="rs")
    left, end = 0.0, INNER - SMALL.width(title) - 2 * GAP
    for rank, (name, prob) in enumerate(explanation.top[:NAMED]):
        face, color = (LABEL, INK) if rank == 0 else (SMALL, QUIET)
        percent = f" {100 * prob:.1f} %"
        room = end - left - face.width(percent)
        if rank and face.width(name) > room:
            break
        text = face.shorten(name, room) + percent
        face.draw(draw, (left, BODY.px), text, color)
        left += face.width(text) + GAP
    return section
