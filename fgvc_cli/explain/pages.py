"""The picture of an explanation: a full page, a strip for folders, or a row for each of several models.

A page is laid out on a fixed width; the image's shape decides what stands beside what. Below it are the known
specimens nearest to the image, class by class: experts decide by comparing, so every row starts with the
image itself. Rows of several models are Figs. 4-6 of Wang et al. (2025): the backbone alone, with CRAM, and
with CRAM and SMRAM; or trainings that differ in delta or gamma. Stages 3, 4 and 5 are the columns.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from PIL import Image, ImageDraw

from fgvc_cli.charts.drawing import (
    ACCENT,
    BODY,
    CAPTION_PX,
    ELLIPSIS,
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
    Face,
    Section,
    beside,
    draw_caption,
    one_line,
    page,
    spoken,
    stack,
)
from fgvc_cli.data.geometry import surroundings
from fgvc_cli.explain.explainer import Explanation, LabelledExplanation
from fgvc_cli.explain.methods import HEAT
from fgvc_cli.explain.panels import (
    BOX_LINE,
    FRAME_PX,
    Panel,
    Size,
    draw_legend,
    draw_looks,
    draw_map,
    draw_photo,
    draw_row,
    fit,
    frame,
    further_looks,
    map_label,
    whole_pixels,
)
from fgvc_cli.retrieval.index_file import Nearest, Neighbour

PHOTO_SLOT = (880, 690)
CELL_ASPECT = 1.8
"""Height over width beyond which a panel in the grid is drawn narrower."""
WIDE_ASPECT = 1.9
"""Images wider than this stand above the answers instead of beside them."""
MAX_BARS = 10
"""More classes are for the terminal, not for a picture."""


def render(explanation: Explanation, title: str = "") -> Image.Image:
    """Compose the picture.

    Args:
        explanation: what to draw; nothing here is particular to one family of models.
        title: stands above the picture, usually the image's file name.

    Returns:
        RGB, ``WIDTH`` pixels wide, as high as the image's shape needs.
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
    """Panels of equal size, row by row, each under its name; None stands for the image."""
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


PANEL_PX, LEAST_PANEL_PX = 300, 70
NAMED = 3
"""Classes in the first line."""


def draw_strip(explanation: Explanation, title: str = "") -> Image.Image:
    """The image, its maps and its further looks side by side under the most probable classes.

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
        _strip_header(explanation, title),
        draw_question(explanation),
        draw_row(panels, PANEL_PX, LEAST_PANEL_PX),
        draw_nearest_strip(explanation),
    ]
    return page(stack(sections, GAP), margin=GAP)


def _strip_header(explanation: Explanation, title: str) -> Section:
    """The answer on the left, the image's name on the right."""
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


MAX_ASPECT = 1.5
"""Panels are no higher than this many times a column, so that a page holds several rows of portraits."""
LEAST_PX = 60
"""Where panels side by side would be lower, a row is broken into lines of two columns."""
_GAP = GAP // 2


def draw_comparison(rows: Sequence[LabelledExplanation], title: str = "") -> Image.Image:
    """The image with the box of each model, and its maps, one row per model.

    Models of one family have the same columns, named once. The object heat, from which the box comes, is left
    out where there are other maps.

    Args:
        rows: at least one, all of the same image.
        title: stands above, usually the image's file name.

    Returns:
        RGB, as wide as ``render`` makes it.
    """
    shape = rows[0].explanation.image.size
    columns, size = _fit_columns(shape, 1 + max(len(_shown(row.explanation)) for row in rows))
    # Where no class was named, each row's maps speak for its own answer.
    asked_once = len({row.explanation.why for row in rows}) == 1
    sections: list[Section | None] = [_comparison_header(title, rows)]
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
    """What the row is on the left, what its model takes the image for on the right."""
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


def _comparison_header(title: str, rows: Sequence[LabelledExplanation]) -> Section:
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


NEAREST_HEADING = "Nearest known images"
NEAREST_COLUMNS = 7
"""Tiles of a row: the image and the six nearest; more are for tables."""
_BETWEEN_TILES = 20
_TILE_PX = (INNER - (NEAREST_COLUMNS - 1) * _BETWEEN_TILES) // NEAREST_COLUMNS
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
    rows: list[Section | None] = [_nearest_heading(nearest)]
    for name, neighbours in nearest.by_class.items():
        share = f"{100 * probs[name]:.1f} %" if name in probs else ""
        rows.append(_nearest_row(query, name, share, neighbours, nearest))
    shown = {neighbour.row for found in nearest.by_class.values() for neighbour in found}
    if any(neighbour.row not in shown for neighbour in nearest.overall):
        rows.append(_nearest_row(query, "Of any class", "", nearest.overall, nearest, named=True))
    return stack(rows, GAP)


def draw_nearest_strip(explanation: Explanation) -> Section | None:
    """One row, of any class; None where no index was searched."""
    nearest = explanation.nearest
    if nearest is None:
        return None
    query = _draw_query(explanation)
    return _nearest_row(query, NEAREST_HEADING, _count_indexed(nearest), nearest.overall, nearest, named=True)


def _nearest_heading(nearest: Nearest) -> Section:
    section = Image.new("RGB", (INNER, CAPTION_PX), PAPER)
    draw_caption(section, NEAREST_HEADING, _count_indexed(nearest))
    return section


def _count_indexed(nearest: Nearest) -> str:
    return f"by cosine of embeddings, of {nearest.photographs:,} ({nearest.source})"


def _nearest_row(
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
    tiles = [_draw_tile(near, named, near.row == best) for near in neighbours[: NEAREST_COLUMNS - 1]]
    if not tiles:
        tiles = [_no_tile()]
    return stack([head, beside([query, *tiles], _BETWEEN_TILES)], 0)


def _draw_query(explanation: Explanation) -> Section:
    """The image cut as those of the index are, in the frame of the object box."""
    size = explanation.image.size
    inner = _TILE_PX - 2 * FRAME_PX
    crop = explanation.image.crop(whole_pixels(surroundings(explanation.box, size), size))
    tile = Image.new("RGB", (_TILE_PX, _TILE_PX + _LINE_PX + _BELOW_PX), PAPER)
    tile.paste(frame(_padded(crop, inner), BOX_LINE), (0, 0))
    text = _FINE_BOLD.shorten("This image", _TILE_PX)
    _FINE_BOLD.draw(ImageDraw.Draw(tile), (0, _TILE_PX + _LINE_PX), text, INK)
    return tile


def _draw_tile(near: Neighbour, named: bool, best: bool) -> Section:
    """Its picture; under it the similarity, in the accent for the nearest of all, perhaps class, and file."""
    lines = [(_FINE_BOLD, f"{near.similarity:.3f}", ACCENT if best else INK)]
    if named:
        lines.append((_FINE, _FINE.shorten(" | ".join(near.labels), _TILE_PX), INK))
    lines.append((_FINE, shorten_start(_FINE, near.path.rsplit("/", 1)[-1], _TILE_PX), QUIET))
    tile = Image.new("RGB", (_TILE_PX, _TILE_PX + len(lines) * _LINE_PX + _BELOW_PX), PAPER)
    tile.paste(_open_thumbnail(near.thumbnail), (0, 0))
    draw = ImageDraw.Draw(tile)
    for number, (face, text, color) in enumerate(lines, start=1):
        face.draw(draw, (0, _TILE_PX + number * _LINE_PX), text, color)
    return tile


def _no_tile() -> Section:
    tile = Image.new("RGB", (2 * _TILE_PX, _TILE_PX), PAPER)
    _FINE.draw(ImageDraw.Draw(tile), (0, LABEL.px), "none of this class in the index", QUIET)
    return tile


def _open_thumbnail(jpeg: bytes) -> Image.Image:
    """A thumbnail as a square tile; grey where the index has none, or a damaged one."""
    try:
        with Image.open(io.BytesIO(jpeg)) as picture:
            return _padded(picture.convert("RGB"), _TILE_PX)
    except (OSError, SyntaxError):
        return Image.new("RGB", (_TILE_PX, _TILE_PX), TRACK)


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
