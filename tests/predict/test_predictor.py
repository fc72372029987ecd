"""Rows stay on their files, boxes come home to the photograph, memory stays flat."""

import math
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fgvc_cli.config import Preprocess
from fgvc_cli.data.find import Found
from fgvc_cli.data.images import DecodedImage, Failure
from fgvc_cli.errors import FgvcError
from fgvc_cli.models.output import ModelOutput
from fgvc_cli.predict.predictor import Predictor
from fgvc_cli.predict.prefetch import map_ahead

CLASSES = ("red", "green", "blue")
PREPROCESS = Preprocess(input_px=32, resize_px=48, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class MeanColour(nn.Module):
    """Logits are the mean of each normalised channel, so a misplaced row shows its neighbour's colour."""

    part_count = 0

    def __init__(self, box=(8.0, 8.0, 24.0, 32.0)):
        super().__init__()
        self.box = box
        self.batches = []

    def forward(self, images, want=()):
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.batches.append(len(images))
        probs = images.mean(dim=(2, 3)).softmax(dim=1)
        boxes = torch.tensor(self.box).repeat(len(images), 1) if self.box and "boxes" in want else None
        return ModelOutput(logits={}, probs=probs, boxes=boxes)


def checkpoint(model=None, classes=CLASSES, preprocess=PREPROCESS):
    return SimpleNamespace(
        model=model or MeanColour(),
        classes=classes,
        preprocess=preprocess,
        name="mean-colour",
        sha256="0" * 64,
    )


def predictor(model=None, **options):
    return Predictor(
        checkpoint(model), **{"device": "cpu", "batch_size": 4, "workers": 2, "top_k": 2, **options}
    )


def found(path: Path) -> Found:
    return Found(path, path.name)


def save_colour(path: Path, color, size=(20, 20)) -> Found:
    Image.new("RGB", size, color).save(path)
    return found(path)


def expected_probs(color):
    logits = np.array(color) / 127.5 - 1
    return np.exp(logits) / np.exp(logits).sum()


@pytest.fixture
def mixed(tmp_path):
    """30 images of known colours, with bad files at the start, in the middle, in a run, and at the end."""
    rng = np.random.default_rng(0)
    images, colors = [], {}
    for i in range(30):
        path = tmp_path / f"{i:02d}.png"
        if i in (0, 3, 12, 13, 14, 15, 16, 17, 29):
            path.write_bytes(b"" if i % 2 else b"bad")
        else:
            colors[path.name] = tuple(int(c) for c in rng.integers(0, 256, 3))
            save_colour(path, colors[path.name])
        images.append(found(path))
    return images, colors


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_path_gets_its_own_row_in_order(mixed, batch_size, workers):
    images, colors = mixed
    rows = list(predictor(batch_size=batch_size, workers=workers, top_k=3).predict(images))
    assert [row.path for row in rows] == [image.name for image in images]
    for row in rows:
        if row.path in colors:
            probs = dict(zip(row.labels, row.probs, strict=True))
            np.testing.assert_allclose(
                [probs[c] for c in CLASSES], expected_probs(colors[row.path]), atol=1e-6, err_msg=row.path
            )
            assert (row.status, row.error, row.width, row.height) == ("ok", "", 20, 20)
        else:
            assert row.status in ("empty", "not_an_image")
            assert row.error
            assert (row.labels, row.probs, row.box, row.width, row.height) == ((), (), None, None, None)


def test_only_readable_images_meet_the_model(mixed):
    images, colors = mixed
    model = MeanColour()
    list(predictor(model, batch_size=4).predict(images))
    assert sum(model.batches) == len(colors)
    assert 0 not in model.batches


def test_labels_are_the_best_first(tmp_path):
    (row,) = predictor().predict([save_colour(tmp_path / "a.png", (10, 20, 250))])
    assert row.labels == ("blue", "green")
    assert row.probs[0] > row.probs[1]


def test_top_k_beyond_the_classes_gives_all_of_them(tmp_path):
    greedy = predictor(top_k=10)
    (row,) = greedy.predict([save_colour(tmp_path / "a.png", "red")])
    assert greedy.info.top_k == len(row.labels) == 3
    assert math.isclose(sum(row.probs), 1, abs_tol=1e-6)


def test_boxes_are_in_pixels_of_the_photograph(tmp_path):
    # Squashed to 48 x 48 and cut by 8 all round: input 8 is 16/48 of the photo, input 32 is 40/48.
    (row,) = predictor().predict([save_colour(tmp_path / "a.png", "red", size=(240, 96))])
    assert row.box == pytest.approx((80, 32, 160, 80))


def test_boxes_and_size_are_those_of_the_upright_photograph(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (96, 240), "red").save(tmp_path / "a.png", exif=exif)
    (row,) = predictor().predict([found(tmp_path / "a.png")])
    assert (row.width, row.height) == (240, 96)
    assert row.box == pytest.approx((80, 32, 160, 80))


def test_a_model_without_boxes_leaves_them_out(tmp_path):
    (row,) = predictor(MeanColour(box=None)).predict([save_colour(tmp_path / "a.png", "red")])
    assert row.ok
    assert row.box is None


class TwoParts(MeanColour):
    """Two parts per image, none for images that a cascade stopped: those with more red than green."""

    part_count = 2

    def forward(self, images, want=()):
        output = super().forward(images, want)
        parts = torch.tensor([[8.0, 8, 16, 16], [16, 16, 24, 32]]).repeat(len(images), 1, 1)
        parts[output.probs.argmax(dim=1) == 0] = math.nan
        output.parts = parts if "parts" in want else None
        return output


def test_parts_are_in_pixels_of_the_photograph_and_left_out_where_a_cascade_stopped(tmp_path):
    images = [
        save_colour(tmp_path / "a.png", (0, 255, 0), (96, 48)),
        save_colour(tmp_path / "b.png", (255, 0, 0)),
    ]
    model = predictor(TwoParts())
    green, red = model.predict(images)
    # 48 px squashed, 8 px cut off on each side: input = photo * (0.5, 1) - 8.
    assert green.parts == ((32.0, 16.0, 48.0, 24.0), (48.0, 24.0, 64.0, 40.0))
    assert red.parts == () and red.box is not None
    assert model.info.parts == 2 and predictor().info.parts == 0


@pytest.mark.parametrize("rule", ["squash", "shorter"])
@pytest.mark.parametrize("size", [(1, 1), (1, 400), (3000, 1)])
def test_one_pixel_sides_are_predicted(tmp_path, size, rule):
    image = save_colour(tmp_path / "a.png", "lime", size=size)
    narrow = Predictor(
        checkpoint(preprocess=PREPROCESS.model_copy(update={"resize_rule": rule})), device="cpu"
    )
    (row,) = narrow.predict([image])
    assert (row.status, row.labels[0], (row.width, row.height)) == ("ok", "green", size)


def test_a_slow_image_keeps_its_place():
    def read(path):
        time.sleep(0.05 if path.name == "0" else 0)
        return DecodedImage(Image.new("RGB", (4, 4), "red" if path.name == "0" else "blue"))

    rows = list(predictor(workers=3, read=read).predict(Found(Path(str(i)), str(i)) for i in range(9)))
    assert [row.labels[0] for row in rows] == ["red"] + ["blue"] * 8


def test_an_image_that_cannot_be_resized_is_a_failed_row(monkeypatch):
    def resize(self, *args, **options):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", resize)
    (row,) = predictor(read=lambda path: DecodedImage(Image.new("RGB", (4, 4)))).predict([found(Path("a"))])
    assert (row.status, row.error) == ("unreadable", "cannot be resized: out of memory")


def test_memory_does_not_grow_with_the_number_of_images():
    """3,000 inputs through a stand-in decoder: photographs alive, and inputs taken ahead of the rows."""
    lock = threading.Lock()
    alive = most_alive = taken = most_ahead = done = 0

    def forget():
        nonlocal alive
        with lock:
            alive -= 1

    def read(path):
        nonlocal alive, most_alive
        image = Image.new("RGB", (4, 4))
        with lock:
            alive += 1
            most_alive = max(most_alive, alive)
        weakref.finalize(image, forget)
        return DecodedImage(image)

    def images():
        nonlocal taken, most_ahead
        for i in range(3000):
            taken += 1
            most_ahead = max(most_ahead, taken - done)
            yield Found(Path(str(i)), str(i))

    for _ in predictor(batch_size=8, workers=2, read=read).predict(images()):
        done += 1
    assert done == 3000
    assert most_alive <= 3
    assert most_ahead <= 2 * 8 + 2


def test_closing_early_stops_the_workers_and_the_walk():
    taken = 0

    def images():
        nonlocal taken
        for i in range(1000):
            taken += 1
            yield Found(Path(str(i)), str(i))

    rows = predictor(read=lambda path: Failure("missing", "no such file")).predict(images())
    assert next(rows).status == "missing"
    rows.close()
    assert taken < 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_a_walk_that_fails_is_told():
    def images():
        yield Found(Path("a"), "a")
        raise FgvcError("The list broke off.")

    with pytest.raises(FgvcError, match="broke off"):
        list(predictor().predict(images()))


def test_info_names_model_weights_and_preprocessing():
    info = predictor().info
    assert (info.model, info.weights_sha256, info.classes) == ("mean-colour", "0" * 64, CLASSES)
    assert info.preprocess == PREPROCESS


@pytest.mark.parametrize("option", [{"batch_size": 0}, {"workers": -1}, {"top_k": 0}])
def test_settings_out_of_range_are_refused(option):
    with pytest.raises(FgvcError, match="expected"):
        predictor(**option)


def test_map_ahead_works_in_its_threads_and_raises_what_the_function_raised():
    names = set(map_ahead(lambda _: threading.current_thread().name, range(50), workers=2, window=4))
    assert names
    assert all(name.startswith("decode") for name in names)
    with pytest.raises(ZeroDivisionError):
        list(map_ahead(lambda x: 1 // x, [2, 1, 0], workers=2, window=2))
