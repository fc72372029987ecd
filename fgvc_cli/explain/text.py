"""Text in pictures: Pillow's own typeface, so that a machine without fonts draws the same picture."""

from __future__ import annotations

import unicodedata
from functools import cache

from PIL import ImageDraw, ImageFont

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
