"""Who is taken for whom, in photographs: each pair with a misread one beside the class it was taken for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageOps

from fgvc_cli.charts.text import (
    BODY,
    GAP,
    INK,
    INNER,
    LABEL,
    PAPER,
    QUIET,
    SMALL,
    TITLE,
    TRACK,
    Section,
    beside,
    page,
    stack,
)

COLUMNS = 2
_BETWEEN = 2 * GAP
_CARD = (INNER - (COLUMNS - 1) * _BETWEEN) // COLUMNS
_TILE = (_CARD - GAP // 2) // 2


@dataclass(frozen=True, eq=False)
class ConfusedPair:
    """Photographs are upright RGB, of any size; None where there is none to show."""

    label: str
    guess: str
    count: int
    """Photographs of ``label`` that were taken for ``guess``."""
    images: int
    """Photographs of ``label``."""
    misread: Image.Image | None
    prob: float
    """How sure the model was of ``guess`` for the misread one."""
    example: Image.Image | None
    """Of ``guess``, for comparison."""


def draw_confused(pairs: Sequence[ConfusedPair], title: str = "", note: str = "") -> Image.Image:
    """The pairs two by two, row by row: RGB, ``layout.WIDTH`` pixels wide.

    Args:
        pairs: at least one.
        title, note: the line above, in bold and after it.
    """
    cards = [_draw_card(pair) for pair in pairs]
    rows: list[Section | None] = [
        beside(cards[i : i + COLUMNS], _BETWEEN) for i in range(0, len(cards), COLUMNS)
    ]
    return page(stack([_header(title, note), *rows]))


def _header(title: str, note: str) -> Section:
    section = Image.new("RGB", (INNER, round(TITLE.px * 1.3)), PAPER)
    draw = ImageDraw.Draw(section)
    note = BODY.shorten(note, INNER / 2) if note else ""
    TITLE.draw(draw, (0, TITLE.px), TITLE.shorten(title, INNER - BODY.width(note) - 2 * GAP), INK)
    BODY.draw(draw, (INNER, TITLE.px), note, QUIET, anchor="rs")
    return section


def _draw_card(pair: ConfusedPair) -> Section:
    """Who is taken for whom and how often, above the two photographs; under each, what it is."""
    head = Image.new("RGB", (_CARD, round(LABEL.px * 1.5)), PAPER)
    draw = ImageDraw.Draw(head)
    said = f"{pair.count} of {pair.images} taken for {_spaced(pair.guess)}"
    LABEL.draw(draw, (0, LABEL.px), LABEL.shorten(said, _CARD), INK)
    left = _draw_tile(pair.misread, _spaced(pair.label), f"misread, {100 * pair.prob:.0f} % sure")
    right = _draw_tile(pair.example, _spaced(pair.guess), "for comparison")
    return stack([head, beside([left, right], GAP // 2)], 0)


def _draw_tile(photo: Image.Image | None, name: str, note: str) -> Section:
    """A photograph cut to a square about its middle, with two lines under it."""
    pitch = round(SMALL.px * 1.4)
    tile = Image.new("RGB", (_TILE, _TILE + 2 * pitch + 8), PAPER)
    if photo is None:
        tile.paste(TRACK, (0, 0, _TILE, _TILE))
        SMALL.draw(ImageDraw.Draw(tile), (_TILE / 2, _TILE / 2), "none in this split", QUIET, anchor="mm")
        note = ""
    else:
        tile.paste(ImageOps.fit(photo, (_TILE, _TILE), Image.Resampling.LANCZOS), (0, 0))
    draw = ImageDraw.Draw(tile)
    LABEL.draw(draw, (0, _TILE + pitch), LABEL.shorten(name, _TILE), INK)
    SMALL.draw(draw, (0, _TILE + 2 * pitch), SMALL.shorten(note, _TILE), QUIET)
    return tile


def _spaced(name: str) -> str:
    return name.replace("_", " ")
