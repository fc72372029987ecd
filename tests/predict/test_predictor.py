"""Rows stay on their files, boxes come home to the image, memory stays flat."""

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

from fgvc_cli.config import Preprocess, TrainConfig
from fgvc_cli.data.geometry import cut_crop
from fgvc_cli.data.transforms import EvalTransform
from fgvc_cli.engine.checkpoint import save_checkpoint
from fgvc_cli.errors import FgvcError
from fgvc_cli.evaluate.confidence import Novelty
from fgvc_cli.models.output import ModelOutput, normalize
from fgvc_cli.models.registry import create_model
from fgvc_cli.predict.predictor import Predictor
from fgvc_cli.sources.find import Found, find_images
from fgvc_cli.sources.images import DecodedImage, Failure

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
        checkpoint(model), **{"device": "cpu", "batch_size": 4, "workers": 0, "top_k": 2, **options}
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


def test_boxes_are_in_pixels_of_the_image(tmp_path):
    # Squashed to 48 x 48 and cut by 8 all round: input 8 is 16/48 of the photo, input 32 is 40/48.
    (row,) = predictor().predict([save_colour(tmp_path / "a.png", "red", size=(240, 96))])
    assert row.box == pytest.approx((80, 32, 160, 80))


def test_boxes_and_size_are_those_of_the_upright_image(tmp_path):
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


def test_parts_are_in_pixels_of_the_image_and_left_out_where_a_cascade_stopped(tmp_path):
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
    """3,000 inputs through a stand-in decoder: images alive, and inputs taken ahead of the rows."""
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

    rows = predictor(workers=2, read=lambda path: Failure("missing", "no such file")).predict(images())
    assert next(rows).status == "missing"
    rows.close()
    # A block of 4 times the batch, as none is readable, and the window.
    assert taken <= 4 * 4 + 4 + 2
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


@pytest.mark.parametrize(
    "option",
    [
        {"batch_size": 0},
        {"batch_size": "most"},
        {"workers": -1},
        {"top_k": 0},
        {"min_prob": 1.5},
        {"extras": ["heat"]},
        {"amp": "fp8"},
    ],
)
def test_settings_out_of_range_are_refused(option):
    with pytest.raises(FgvcError, match="expected"):
        predictor(**option)


def test_blocks_hold_the_rows_numbered_from_the_first(mixed):
    images, _ = mixed
    model = predictor(top_k=3)
    blocks = list(model.blocks(images, first=100))
    starts = [block.first for block in blocks]
    assert starts == [100 + sum(map(len, blocks[:i])) for i in range(len(blocks))]
    rows = [row for block in blocks for row in block.rows(model.info)]
    assert rows == list(model.predict(images))
    for block in blocks:
        failed = np.array([status != "ok" for status in block.status])
        assert (block.size[failed] == 0).all() and (block.topk_index[failed] == -1).all()
        assert np.isnan(block.topk_prob[failed]).all() and np.isnan(block.box[failed]).all()


def test_a_run_from_any_block_on_gives_the_same_blocks(mixed):
    """Also to the last bit: the same images meet the model together."""
    images, _ = mixed
    blocks = list(predictor().blocks(images))
    for i, block in enumerate(blocks):
        again = list(predictor().blocks(images[block.first :], block.first))
        assert [b.first for b in again] == [b.first for b in blocks[i:]]
        assert all(
            np.array_equal(a.topk_prob, b.topk_prob, equal_nan=True)
            for a, b in zip(again, blocks[i:], strict=True)
        )


def test_blocks_are_full_of_readable_images_but_do_not_wait_for_ever(mixed):
    images, colors = mixed
    model = MeanColour()
    list(predictor(model, batch_size=4).predict(images))
    assert model.batches == [4] * 5 + [1] and sum(model.batches) == len(colors)
    missing = (Found(Path(f"{i}"), f"{i}") for i in range(100))
    assert [len(block) for block in predictor(batch_size=4).blocks(missing)] == [16] * 6 + [4]


def test_rows_below_min_prob_are_unsure_and_keep_their_predictions(tmp_path):
    images = [save_colour(tmp_path / "a.png", (255, 0, 0)), save_colour(tmp_path / "b.png", (90, 80, 80))]
    sure, unsure = predictor(min_prob=0.5).predict(images)
    assert (sure.status, unsure.status) == ("ok", "unsure")
    assert unsure.ok and unsure.labels[0] == "red" and unsure.probs[0] < 0.5 and unsure.box
    assert [row.status for row in predictor().predict(images)] == ["ok", "ok"]


class Embedding(MeanColour):
    """Its embedding is the mean colour, in [-1, 1]."""

    def forward(self, images, want=()):
        output = super().forward(images, want)
        output.embedding = images.mean(dim=(2, 3)) if "embedding" in want else None
        return output


def of_red_and_blue(**options):
    """Knows pure red and pure blue; what is 0.5 from both, and 1 off by the variance, is at the threshold."""
    trained = checkpoint(Embedding())
    means = torch.tensor([[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]]).half()
    trained.novelty = Novelty(torch.zeros(3), torch.ones(3), means, threshold=0.5 / math.sqrt(3))
    return Predictor(trained, device="cpu", batch_size=4, workers=0, top_k=2, **options)


def test_what_is_unlike_the_training_images_is_unknown_and_keeps_its_predictions(tmp_path):
    colors = {"near": (255, 60, 0), "far": (255, 70, 0), "green": (0, 255, 0)}
    images = [save_colour(tmp_path / f"{name}.png", color) for name, color in colors.items()]
    model = of_red_and_blue(min_prob=0.99)
    near, far, green = model.predict(images)
    assert [row.status for row in (near, far, green)] == ["unsure", "unknown", "unknown"]
    assert near.more["novelty"] == pytest.approx(60 / 127.5 / 0.5, rel=1e-5)
    assert far.more["novelty"] == pytest.approx(70 / 127.5 / 0.5, rel=1e-5)
    assert green.ok and green.labels[0] == "green" and green.box
    assert model.info.columns == ("novelty",) and model.info.settings["unknown"] == 1
    assert next(model.blocks(images)).embedding is None  # the score does not need it to be asked for
    looser = of_red_and_blue(unknown=1.2)
    assert [row.status for row in looser.predict(images)] == ["ok", "ok", "unknown"]
    assert looser.info.settings["unknown"] == 1.2


def test_novelty_can_be_left_out_and_a_checkpoint_without_it_is_as_before(tmp_path):
    images = [
        save_colour(tmp_path / "green.png", (0, 255, 0)),
        save_colour(tmp_path / "red.png", (255, 0, 0)),
    ]
    for model in (of_red_and_blue(unknown="off"), predictor(), predictor(unknown="off")):
        assert [(row.status, dict(row.more)) for row in model.predict(images)] == [("ok", {})] * 2
        assert model.info.columns == () and "unknown" not in model.info.settings
    with pytest.raises(FgvcError, match="none.*fgvc eval --weights MODEL --split val --fit-novelty") as error:
        predictor(unknown="on")
    assert error.value.exit_code == 2
    for wrong in ("some", 0, -1):
        with pytest.raises(FgvcError, match="expected on, off or a number above 0"):
            of_red_and_blue(unknown=wrong)


def test_an_unreadable_image_has_no_novelty(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    images = [found(tmp_path / "bad.png"), save_colour(tmp_path / "red.png", (255, 0, 0))]
    bad, red = of_red_and_blue().predict(images)
    assert not bad.ok and dict(bad.more) == {} and red.status == "ok" and red.more["novelty"] < 0.01


def test_only_the_classes_that_can_occur_are_told(tmp_path):
    """The others' probability goes to them, before top k, temperature and min-prob count."""
    image = save_colour(tmp_path / "a.png", (200, 190, 30))
    hot = checkpoint()
    hot.temperature = 2.0
    options = {"device": "cpu", "batch_size": 1, "workers": 0, "extras": ("logits",), "min_prob": 0.6}
    model = Predictor(hot, top_k=3, classes=["blue", "green", "blue"], **options)
    (row,) = model.predict([image])
    roots = np.sqrt(expected_probs((200, 190, 30)))[1:]
    assert row.labels == ("green", "blue") and row.status == "ok"
    np.testing.assert_allclose(row.probs, roots / roots.sum(), rtol=1e-5)
    (block,) = model.blocks([image])
    assert np.exp(block.logits)[0, 0] < 1e-30
    assert model.info.settings["classes"] == ["green", "blue"] and model.info.classes == CLASSES
    (row,) = Predictor(hot, top_k=3, **options).predict([image])
    assert row.labels[0] == "red" and row.status == "unsure"


def test_a_model_that_is_sure_of_another_class_still_tells_one_that_can_occur(tmp_path):
    class Sure(MeanColour):
        def forward(self, images, want=()):
            return ModelOutput(logits={}, probs=torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(images), 1))

    image = save_colour(tmp_path / "a.png", (255, 0, 0))
    (row,) = predictor(Sure(), classes=["green", "blue"]).predict([image])
    assert row.labels == ("green", "blue") and row.probs == (0.5, 0.5)


def test_of_several_labels_each_keeps_its_own_probability(tmp_path):
    several = checkpoint()
    several.multi_label = True
    image = save_colour(tmp_path / "a.png", (200, 190, 30))
    options = {"device": "cpu", "batch_size": 1, "workers": 0, "top_k": 3}
    (row,) = Predictor(several, classes=["blue", "green"], **options).predict([image])
    np.testing.assert_allclose(row.probs, expected_probs((200, 190, 30))[1:], rtol=1e-5)
    with pytest.raises(FgvcError, match="several labels"):
        Predictor(several, thresholds={"red": 0.5}, **options)


def test_names_that_are_no_class_are_refused_with_the_nearest(tmp_path):
    listed = tmp_path / "here.txt"
    listed.write_text("\ufeffgreen\r\n\r\n blue \r\n", encoding="utf-8")
    assert predictor(classes=listed).info.settings["classes"] == ["green", "blue"]
    listed.write_text("gren\nblue\n")
    with pytest.raises(
        FgvcError, match=r"--classes has 1 name that the model does not know: 'gren' \(nearest: green, red\)"
    ):
        predictor(classes=str(listed))
    with pytest.raises(FgvcError, match="names no class"):
        predictor(classes=[])
    with pytest.raises(FgvcError, match="No such file"):
        predictor(classes=tmp_path / "none.txt")


def test_rows_below_the_threshold_of_their_class_are_unsure(tmp_path):
    colors = ((255, 0, 0), (0, 0, 255))
    images = [save_colour(tmp_path / f"{i}.png", color) for i, color in enumerate(colors)]
    prob = float(expected_probs(colors[0])[0])

    def statuses(**options):
        return [row.status for row in predictor(**options).predict(images)]

    assert statuses(thresholds={"red": prob + 0.01, "blue": prob - 0.01}) == ["unsure", "ok"]
    assert statuses(thresholds={"blue": prob + 0.01}, min_prob=prob - 0.01) == ["ok", "unsure"]
    assert statuses(thresholds={"blue": prob - 0.01}, min_prob=prob + 0.01) == ["unsure", "unsure"]
    table = tmp_path / "least.csv"
    table.write_text("class,threshold\nblue,0.99\nred,0.2\n")
    model = predictor(thresholds=table)
    assert model.info.settings["thresholds"] == {"red": 0.2, "blue": 0.99}
    with pytest.raises(FgvcError, match="--thresholds has 1 name that the model does not know: 'rot'"):
        predictor(thresholds={"rot": 0.5})


def test_the_temperature_of_the_checkpoint_is_in_the_probabilities(tmp_path):
    image = save_colour(tmp_path / "a.png", (200, 100, 30))
    hot = checkpoint()
    hot.temperature = 2.0
    model = Predictor(hot, device="cpu", batch_size=1, workers=0, top_k=3, extras=("logits",))
    (row,) = model.predict([image])
    roots = np.sqrt(expected_probs((200, 100, 30)))
    np.testing.assert_allclose(row.probs, roots / roots.sum(), rtol=1e-5)
    (block,) = model.blocks([image])
    np.testing.assert_allclose(np.exp(block.logits[0]), roots / roots.sum(), rtol=1e-5)
    assert model.info.settings["temperature"] == 2.0


def test_settings_name_all_that_changes_a_row():
    settings = predictor(min_prob=0.25, fast_decode=True).info.settings
    assert settings == {
        "options": {},
        "temperature": 1.0,
        "min_prob": 0.25,
        "fast_decode": True,
        "precision": "float32",
        "batch_size": 4,
        "batch_norm": "own",
        "device": "cpu",
        "compile": False,
    }


def test_weights_by_file_and_images_by_folder(tmp_path):
    """As in the README; boxes, maps and embeddings are those of the model asked directly."""
    torch.manual_seed(0)
    config = TrainConfig(model="crasmra-resnet18", preprocess=Preprocess(input_px=64, resize_px=64))
    trained = create_model("crasmra-resnet18", 3, options={"neck_channels": 16})
    save_checkpoint(
        tmp_path / "model.safetensors", trained, config=config, classes=CLASSES, dataset="colours", metrics={}
    )
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in "ab":
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(folder / f"{name}.png")
    model = Predictor(
        tmp_path / "model.safetensors",
        device="cpu",
        batch_size=2,
        workers=0,
        extras=("attention", "crop", "embedding", "logits"),
    )
    assert [row.path for row in model.predict(folder)] == ["a.png", "b.png"]
    assert [row.path for row in model.predict([folder / "b.png"])] == [(folder / "b.png").as_posix()]
    (block,) = model.blocks(find_images([folder]))
    stacked = torch.stack([EvalTransform(config.preprocess)(Image.open(folder / f"{n}.png")) for n in "ab"])
    with torch.inference_mode():
        expected = trained.eval()(normalize(stacked, config.preprocess), want=("heat", "boxes", "embedding"))
    torch.testing.assert_close(torch.from_numpy(block.attention).float(), expected.heat, atol=2e-3, rtol=0)
    torch.testing.assert_close(torch.from_numpy(block.embedding), expected.embedding, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.from_numpy(block.logits), expected.probs.log(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.from_numpy(block.box), expected.boxes, atol=1e-3, rtol=0)
    assert block.attention.dtype == np.float16
    for i, name in enumerate("ab"):
        assert block.crop[i] == cut_crop(Image.open(folder / f"{name}.png"), block.box[i].tolist())
