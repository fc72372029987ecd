"""What pictures are drawn with: typefaces, words for the names of maps, columns, captions, the paper, and the
colour map of every heat map, from dark violet to pale yellow, safe for colour-blind eyes.

The typeface is Pillow's own, so that a machine without fonts draws the same picture.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage.color import lab2rgb, rgb2lab

ELLIPSIS = "…"

_OWN = ""
_INSTALLED = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
)
"""Typefaces tried, where a machine has them, for letters that Pillow's own (Basic Latin) lacks."""

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


class Face:
    """One line of text at one size.

    Args:
        px: size of the letters, pixels.
        bold: a heavier weight; drawn with a stroke, since Pillow carries one weight only.
    """

    def __init__(self, px: int, bold: bool = False):
        self.px = px
        self.stroke = px * 0.013 if bold else 0.0

    def width(self, text: str) -> float:
        """Width of a line as it will be drawn, pixels."""
        line, font = _set(text, self.px)
        return font.getlength(line) + 2 * self.stroke

    def shorten(self, text: str, width: float) -> str:
        """The text, or as much of its beginning as fits ``width`` pixels with an ellipsis; never empty."""
        text = one_line(text)
        if self.width(text) <= width:
            return text
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.width(text[:middle].rstrip() + ELLIPSIS) <= width
            low, high = (middle, high) if fits else (low, middle - 1)
        return text[:low].rstrip() + ELLIPSIS

    def draw(
        self, on: ImageDraw.ImageDraw, at: tuple[float, float], text: str, fill: str, anchor: str = "ls"
    ) -> None:
        """Draw a line; ``anchor`` as Pillow's: ``ls`` starts on the baseline, ``rs`` ends there."""
        line, font = _set(text, self.px)
        on.text(at, line, font=font, fill=fill, anchor=anchor, stroke_width=self.stroke)


def one_line(text: str) -> str:
    """Without line breaks; control characters and what cannot be encoded become question marks."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def _set(text: str, px: int) -> tuple[str, Font]:
    """What is drawn and in which typeface: letters that none has keep their base letter, or become a box."""
    line = one_line(text)
    for name in (_OWN, *_INSTALLED):
        font = _open(name, px)
        if font is not None and all(_has(name, c) for c in line if not c.isascii()):
            return line, font
    plain = "".join(c for c in unicodedata.normalize("NFKD", line) if not unicodedata.combining(c))
    return plain, ImageFont.load_default(px)


@cache
def _open(name: str, px: int) -> Font | None:
    try:
        return ImageFont.load_default(px) if name == _OWN else ImageFont.truetype(name, px)
    except OSError:
        return None


@cache
def _has(name: str, character: str) -> bool:
    """Whether a typeface has a letter: it is drawn unlike the box that stands for what is missing."""
    font = _open(name, 32)
    return font is not None and bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))


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


_METHODS = {
    "heat": "Object heat",
    "gradcam": "Grad-CAM",
    "hirescam": "HiResCAM",
    "rollout": "Attention rollout",
}
"""What people call a method, where that is not its name."""


def spoken(name: str) -> str:
    """``stage3`` -> Stage 3; ``last`` -> Last; ``gradcam-stage3`` -> Grad-CAM, stage 3."""
    method, dash, rest = name.partition("-")
    if dash:
        return f"{spoken(method)}, {_words(rest)}"
    return _METHODS.get(name) or _words(name)[:1].upper() + _words(name)[1:]


def _words(name: str) -> str:
    return re.sub(r"(?<=[^\W\d_])(?=\d)", " ", name.replace("_", " "))


ANCHORS = (
    (24, 14, 60),
    (44, 17, 96),
    (95, 23, 125),
    (147, 40, 125),
    (199, 61, 108),
    (239, 97, 90),
    (252, 151, 101),
    (254, 203, 138),
    (252, 250, 196),
)
"""sRGB, low to high: the hues of matplotlib's magma (CC0), without its black."""


@cache
def color_table() -> np.ndarray:
    """(256, 3) uint8 sRGB, read-only.

    Interpolated in CIELAB with lightness forced onto a straight line, so that equal steps of the map look
    like equal steps, and stay in order in grey print and for every kind of colour blindness.
    """
    anchors = rgb2lab(np.array(ANCHORS, float)[None] / 255)[0]
    at = np.linspace(0, 1, len(anchors))
    steps = np.linspace(0, 1, 256)
    lightness = np.linspace(anchors[0, 0], anchors[-1, 0], 256)
    lab = np.stack([lightness, *(np.interp(steps, at, anchors[:, i]) for i in (1, 2))], axis=-1)
    table = (lab2rgb(lab[None])[0] * 255).round().astype(np.uint8)
    table.setflags(write=False)
    return table


def apply_colormap(values: np.ndarray) -> np.ndarray:
    """Values (...) in [0, 1] -> uint8 sRGB (..., 3); values outside are clipped, NaN is drawn as 0."""
    index = np.clip(np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=0.0), 0, 1) * 255
    return np.take(color_table(), index.round().astype(np.uint8), axis=0)
