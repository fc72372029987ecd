"""Pages show the known images that were found, in their rows, and say what they are."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_explainer import BrightnessModel, checkpoint, photo_with_spot
from test_stage_panels import SHAPES, explanation

from fgvc_cli.charts import drawing as layout
from fgvc_cli.charts.drawing import ACCENT, INNER, TRACK, WIDTH, Face
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.explain import pages as module
from fgvc_cli.explain.explainer import Explainer, explain_photo
from fgvc_cli.explain.pages import (
    NEAREST_COLUMNS,
    draw_nearest,
    draw_nearest_strip,
    draw_strip,
    render,
    shorten_start,
)
from fgvc_cli.explain.panels import BOX_LINE
from fgvc_cli.retrieval.index_file import Nearest, Neighbour

RED, GREEN, BLUE = (200, 20, 20), (20, 180, 20), (20, 20, 200)


def neighbour(row: int, label: str, color=RED, similarity: float = 0.5, size=(40, 40)) -> Neighbour:
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, "PNG")
    return Neighbour(f"train/{label}/{row}.jpg", (label,), similarity, stream.getvalue(), row)


ANTS = tuple(neighbour(i, "ant", RED, 0.9 - i / 100) for i in range(3))
BEES = tuple(neighbour(10 + i, "bee", GREEN, 0.8 - i / 100) for i in range(3))
EMUS = (neighbour(20, "emu", BLUE, 0.95),)


def found(overall=ANTS, **by_class) -> Nearest:
    return Nearest(overall, by_class or {"ant": ANTS, "bee": BEES}, 1234, "zoo, train")


def near(size=(300, 300), nearest=None, **fields):
    return replace(explanation(size, **fields), nearest=nearest or found())


def places(picture: Image.Image, color) -> list[tuple[int, int]]:
    """(column, row) of tiles filled with a colour, by the tiles' pitch across."""
    same = (np.abs(np.asarray(picture).astype(int) - color) < 12).all(axis=-1)
    pitch = (INNER - 6 * 20) // NEAREST_COLUMNS + 20
    ys = np.flatnonzero(same.sum(axis=1) > 100)
    tops = [int(y) for i, y in enumerate(ys) if i == 0 or y != ys[i - 1] + 1]
    spots = []
    for row, top in enumerate(tops):
        columns = {int(x / pitch) for x in np.flatnonzero(same[top + 5])}
        spots += [(column, row) for column in sorted(columns)]
    return spots


def has(picture: Image.Image, color) -> bool:
    return bool((np.asarray(picture) == color).all(axis=-1).any())


def rgb(text: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(text[1:]))


def test_without_an_index_pages_are_as_before():
    plain = explanation((300, 300))
    assert draw_nearest(plain) is None and draw_nearest_strip(plain) is None
    assert render(plain).height < render(near()).height
    assert draw_strip(plain).height < draw_strip(near()).height


def test_each_class_has_a_row_behind_the_image_itself():
    section = draw_nearest(near())
    assert section.width == INNER
    assert places(section, RED) == [(1, 0), (2, 0), (3, 0)]
    assert places(section, GREEN) == [(1, 0), (2, 0), (3, 0)]
    pixels = np.asarray(section)
    box = (pixels == BOX_LINE).all(axis=-1)
    # In the first column of both rows.
    assert box.any() and np.flatnonzero(box.any(axis=0)).max() < INNER / NEAREST_COLUMNS
    reds = np.flatnonzero((np.abs(pixels.astype(int) - RED) < 12).all(axis=-1).any(axis=1))
    greens = np.flatnonzero((np.abs(pixels.astype(int) - GREEN) < 12).all(axis=-1).any(axis=1))
    assert reds.max() < greens.min()


def test_those_of_other_classes_have_a_row_of_their_own_only_where_there_are_any():
    same, other = draw_nearest(near()), draw_nearest(near(nearest=found(EMUS + ANTS)))
    assert places(same, BLUE) == [] and places(other, BLUE) == [(1, 0)]
    assert other.height > same.height + 200
    assert len(places(other, RED)) == len(places(same, RED)) + 3


def test_the_nearest_of_all_is_marked_by_the_accent():
    best_elsewhere = found((EMUS[0],), ant=ANTS, bee=BEES)
    for nearest in (found(), best_elsewhere):
        assert has(draw_nearest(near(nearest=nearest)), rgb(ACCENT))
    without = replace(found(), overall=())
    assert not has(draw_nearest(near(nearest=without)), rgb(ACCENT))


def test_more_than_fit_are_left_to_the_tables():
    many = tuple(neighbour(i, "ant") for i in range(40))
    section = draw_nearest(near(nearest=found(many, ant=many)))
    assert places(section, RED) == [(i, 0) for i in range(1, NEAREST_COLUMNS)]


def test_a_class_without_known_images_says_so():
    text = []
    original = Face.draw

    def note(self, on, at, words, *args, **kwargs):
        text.append(words)
        original(self, on, at, words, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Face, "draw", note)
        # Captions that an earlier picture had too are kept, and not drawn again.
        layout._caption.cache_clear()
        draw_nearest(near(nearest=found(ANTS, ant=ANTS, bee=())))
    assert "none of this class in the index" in text
    assert {"ant", "bee", "0.900", "0.jpg", "This image"} <= {*text}
    assert any("1,234" in words and "zoo, train" in words for words in text)


@pytest.mark.parametrize("picture", [b"", b"no picture", neighbour(1, "ant").thumbnail[:60]])
def test_a_missing_or_damaged_thumbnail_is_a_grey_tile(picture):
    broken = replace(ANTS[0], thumbnail=picture)
    section = draw_nearest(near(nearest=found((broken,), ant=(broken,))))
    assert places(section, rgb(TRACK)) == [(1, 0)]


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("shape", [(224, 1), (1, 224), (224, 100)])
def test_every_shape_of_image_and_thumbnail_is_drawn(size, shape):
    odd = (neighbour(0, "ant", size=shape),)
    explained = near(size, found(odd, ant=odd))
    assert render(explained).width == WIDTH and draw_strip(explained).width == WIDTH


def test_file_names_keep_their_end():
    face = Face(24)
    assert shorten_start(face, "a.jpg", 500) == "a.jpg"
    short = shorten_start(face, "rufous-bibbed-pirrit_0007.jpg", 180)
    assert short.endswith("_0007.jpg") and short[0] == "…" and face.width(short) <= 180
    assert shorten_start(face, "abc", 1) == "…c"


class Embeds(BrightnessModel):
    """Also gives an embedding, the same for every image."""

    def forward(self, images, want=()):
        output = super().forward(images, want)
        output.embedding = torch.tensor([[3.0, 4.0]]) if "embedding" in want else None
        return output


class FakeIndex:
    def search(self, embeddings, classes, *, count):
        self.asked = embeddings.tolist(), classes, count
        return [found()]


def explain(model, index, **options):
    explainer = Explainer(checkpoint(model), index=index, **options)
    return explainer.explain([explainer.prepare(photo_with_spot((80, 80), (20, 20, 40, 40)))])[0]


def test_the_likeliest_classes_are_looked_up_by_the_models_embedding():
    index = FakeIndex()
    explained = explain(Embeds({}), index, neighbours=4)
    assert index.asked == ([[3.0, 4.0]], [["bee", "ant", "cat"]], 5), "one more, as the image itself goes"
    assert explained.nearest.overall == ANTS
    explain(Embeds({}), index, top_k=2)
    assert index.asked[1] == [["bee", "ant"]]
    photo = photo_with_spot((80, 80), (20, 20, 40, 40))
    assert explain_photo(checkpoint(Embeds({})), photo, index=index, neighbours=2).nearest.overall == ANTS[:2]
    assert index.asked[2] == 3


def test_a_model_without_embeddings_says_so_and_none_is_asked_without_an_index():
    with pytest.raises(FgvcError, match="fake-model gives none") as caught:
        explain(BrightnessModel({}), FakeIndex())
    assert caught.value.exit_code == EXIT_USAGE
    model = Embeds({})
    assert explain(model, None).nearest is None and "embedding" not in model.wanted


def test_the_images_own_tile_is_cut_as_those_of_the_index_are(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "surroundings", lambda box, size: asked.append((box, size)) or (0, 0, 9, 9))
    draw_nearest(near((300, 200), box=(5, 5, 20, 20)))
    assert asked == [((5, 5, 20, 20), (300, 200))]
