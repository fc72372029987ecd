"""The section of known specimens: the image beside the indexed ones nearest to it, class by class.

Experts decide by comparing. Every row starts with the image itself, to have it beside each specimen.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw

from fgvc_cli.charts.text import (
    ACCENT,
    CAPTION_PX,
    ELLIPSIS,
    GAP,
    INK,
    INNER,
    LABEL,
    PAPER,
    QUIET,
    TRACK,
    Face,
    Section,
    beside,
    draw_caption,
    one_line,
    stack,
)
from fgvc_cli.explain.explanation import Explanation
from fgvc_cli.explain.panels import BOX_LINE, FRAME_PX, fit, frame, whole_pixels
from fgvc_cli.predict.decoding import surroundings
from fgvc_cli.retrieval.search import Nearest, Neighbour

HEADING = "Nearest known images"
COLUMNS = 7
"""Tiles of a row: the image and the six nearest; more are for tables."""
_BETWEEN = 20
_TILE = (INNER - (COLUMNS - 1) * _BETWEEN) // COLUMNS
_FINE = Face(24)
_FINE_BOLD = Face(24, bold=True)
_LINE_PX = 32
_BELOW_PX = 10
"""Room for the tails of letters on the last line."""


def draw_nearest(explanation: Explanation) -> Section | None:
    """A row for each class that was looked up, and one of any class where that holds others still.

    None where no index was searched.
    """
    nearest = explanation.nearest
    if nearest is None:
        return None
    query = _draw_query(explanation)
    probs = dict(explanation.top)
    rows: list[Section | None] = [_heading(nearest)]
    for name, neighbours in nearest.by_class.items():
        share = f"{100 * probs[name]:.1f} %" if name in probs else ""
        rows.append(_row(query, name, share, neighbours, nearest))
    shown = {neighbour.row for found in nearest.by_class.values() for neighbour in found}
    if any(neighbour.row not in shown for neighbour in nearest.overall):
        rows.append(_row(query, "Of any class", "", nearest.overall, nearest, named=True))
    return stack(rows, GAP)


def draw_nearest_strip(explanation: Explanation) -> Section | None:
    """One row, of any class; None where no index was searched."""
    nearest = explanation.nearest
    if nearest is None:
        return None
    query = _draw_query(explanation)
    return _row(query, HEADING, _count(nearest), nearest.overall, nearest, named=True)


def _heading(nearest: Nearest) -> Section:
    section = Image.new("RGB", (INNER, CAPTION_PX), PAPER)
    draw_caption(section, HEADING, _count(nearest))
    return section


def _count(nearest: Nearest) -> str:
    return f"by cosine of embeddings, of {nearest.photographs:,} ({nearest.source})"


def _row(
    query: Section,
    label: str,
    note: str,
    neighbours: Sequence[Neighbour],
    nearest: Nearest,
    *,
    named: bool = False,
) -> Section:
    """A caption above the image and its neighbours; ``named``: each says of what class it is."""
    head = Image.new("RGB", (INNER, CAPTION_PX), PAPER)
    draw_caption(head, label, note)
    best = nearest.overall[0].row if nearest.overall else -1
    tiles = [_draw_tile(near, named, near.row == best) for near in neighbours[: COLUMNS - 1]]
    if not tiles:
        tiles = [_no_tile()]
    return stack([head, beside([query, *tiles], _BETWEEN)], 0)


def _draw_query(explanation: Explanation) -> Section:
    """The image cut as those of the index are, in the frame of the object box."""
    size = explanation.image.size
    inner = _TILE - 2 * FRAME_PX
    crop = explanation.image.crop(whole_pixels(surroundings(explanation.box, size), size))
    tile = Image.new("RGB", (_TILE, _TILE + _LINE_PX + _BELOW_PX), PAPER)
    tile.paste(frame(_padded(crop, inner), BOX_LINE), (0, 0))
    text = _FINE_BOLD.shorten("This image", _TILE)
    _FINE_BOLD.draw(ImageDraw.Draw(tile), (0, _TILE + _LINE_PX), text, INK)
    return tile


def _draw_tile(near: Neighbour, named: bool, best: bool) -> Section:
    """Its picture; under it the similarity, in the accent for the nearest of all, perhaps class, and file."""
    lines = [(_FINE_BOLD, f"{near.similarity:.3f}", ACCENT if best else INK)]
    if named:
        lines.append((_FINE, _FINE.shorten(" | ".join(near.labels), _TILE), INK))
    lines.append((_FINE, shorten_start(_FINE, near.path.rsplit("/", 1)[-1], _TILE), QUIET))
    tile = Image.new("RGB", (_TILE, _TILE + len(lines) * _LINE_PX + _BELOW_PX), PAPER)
    tile.paste(_open(near.thumbnail), (0, 0))
    draw = ImageDraw.Draw(tile)
    for number, (face, text, color) in enumerate(lines, start=1):
        face.draw(draw, (0, _TILE + number * _LINE_PX), text, color)
    return tile


def _no_tile() -> Section:
    tile = Image.new("RGB", (2 * _TILE, _TILE), PAPER)
    _FINE.draw(ImageDraw.Draw(tile), (0, LABEL.px), "none of this class in the index", QUIET)
    return tile


def _open(jpeg: bytes) -> Image.Image:
    """A thumbnail as a square tile; grey where the index has none, or a damaged one."""
    try:
        with Image.open(io.BytesIO(jpeg)) as picture:
            return _padded(picture.convert("RGB"), _TILE)
    except (OSError, SyntaxError):
        return Image.new("RGB", (_TILE, _TILE), TRACK)


def _padded(picture: Image.Image, side: int) -> Image.Image:
    """The whole picture in the middle of a square."""
    width, height = fit(picture.size, (side, side))
    tile = Image.new("RGB", (side, side), TRACK)
    resized = picture.resize((width, height), Image.Resampling.LANCZOS)
    tile.paste(resized, ((side - width) // 2, (side - height) // 2))
    return tile


def shorten_start(face: Face, text: str, width: float) -> str:
    """The text, or as much of its end as fits, which is where numbered files differ; never empty."""
    text = one_line(text)
    if face.width(text) <= width:
        return text
    kept = next((i for i in range(1, len(text)) if face.width(ELLIPSIS + text[i:]) <= width), len(text) - 1)
    return ELLIPSIS + text[kept:]
