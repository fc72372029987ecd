"""What the colours of a picture mean: the scale of the maps, and of the boxes that it shows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps

from fgvc_cli.explain.colormap import color_table
from fgvc_cli.explain.explanation import Explanation
from fgvc_cli.explain.layout import GAP, INNER, PAPER, QUIET, SMALL, Section, beside, stack
from fgvc_cli.explain.panels import (
    BOX_EDGE,
    BOX_LINE,
    ERASED,
    FRAME_PX,
    PART_LINES,
    draw_chip,
    frame,
    whole_pixels,
)

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
