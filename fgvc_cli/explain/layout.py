"""What the parts of a picture share: its width, colours and typefaces, and how they are put together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw

from fgvc_cli.explain.text import Face

WIDTH = 1600
MARGIN = 64
INNER = WIDTH - 2 * MARGIN
GAP = 28
SECTION_GAP = 52
CAPTION_PX = 46

PAPER, INK, QUIET, TRACK = "#ffffff", "#1a2129", "#66707b", "#e8ecef"
ACCENT, MUTED = "#00758a", "#a3b7c0"

TITLE, LEAD = Face(34, bold=True), Face(40, bold=True)
BODY, LABEL, SMALL = Face(28), Face(28, bold=True), Face(26)

Section = Image.Image


def draw_caption(on: Image.Image, label: str, note: str, x: float = 0) -> None:
    """A label in bold and a quiet note after it, on the top line of a cell, from ``x`` to its right side.

    The note goes where there is no room for both.
    """
    on.paste(_caption(label, note, round(on.width - x)), (round(x), 0))


@lru_cache(maxsize=64)
def _caption(label: str, note: str, width: int) -> Section:
    """Drawn once for all pictures of a folder, which share most of theirs."""
    caption = Image.new("RGB", (width, CAPTION_PX), PAPER)
    draw = ImageDraw.Draw(caption)
    if LABEL.width(label) + 14 + SMALL.width(note) > width:
        note = ""
    label = LABEL.shorten(label, width)
    LABEL.draw(draw, (0, LABEL.px), label, INK)
    SMALL.draw(draw, (LABEL.width(label) + 14, LABEL.px), note, QUIET)
    return caption


def beside(sections: Sequence[Section | None], gap: int) -> Section:
    """Next to each other, tops aligned; None is left out."""
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


def stack(sections: Sequence[Section | None], gap: int = SECTION_GAP) -> Section:
    """Below each other, left sides aligned; None is left out."""
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


def page(body: Section, margin: int = MARGIN) -> Image.Image:
    """The body on paper ``WIDTH`` pixels wide; ``margin`` is the room above and below, pixels."""
    whole = Image.new("RGB", (WIDTH, body.height + 2 * margin), PAPER)
    whole.paste(body, (MARGIN, margin))
    return whole
