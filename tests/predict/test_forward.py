"""Batches: out of memory loses no row, padding never leaks, extras and precision are what was asked for."""

import math
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fgvc_cli.config import Preprocess, worker_count
from fgvc_cli.data.taxonomy import Taxonomy
from fgvc_cli.errors import FgvcError
from fgvc_cli.models.output import ModelOutput
from fgvc_cli.predict.predictor import Predictor, count_named
from fgvc_cli.sources.find import Found
from fgvc_cli.sources.images import DecodedImage, Failure

PREPROCESS = Preprocess(input_px=32, resize_px=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
MESSAGES = {
    "cuda": lambda: torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    "linux": lambda: RuntimeError(
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
    ),
    "python": MemoryError,
}


class Grey(nn.Module):
    """Probability of ``white`` is how white the image is; memory for ``room`` images at most."""

    part_count = 0

    def __init__(self, room=1000, error=MemoryError, gives=("heat", "boxes", "embedding")):
        super().__init__()
        self.room, self.error, self.gives, self.shapes = room, error, gives, []

    def forward(self, images, want=()):
        self.shapes.append(len(images))
        if len(images) > self.room:
            raise self.error()
        white = images.mean(dim=(1, 2, 3)) / 2 + 0.5
        output = ModelOutput(logits={}, probs=torch.stack((1 - white, white), dim=1))
        for name in {*want} & {*self.gives}:
            shape = {"heat": (4, 4), "boxes": (4,), "embedding": (3,)}[name]
            setattr(output, name, white.view(-1, *[1] * len(shape)).expand(-1, *shape) * 16)
        return output


def read(path):
    """The name is the grey value; a negative one is a missing file."""
    grey = int(str(path))
    if grey < 0:
        return Failure("missing", "no such file")
    return DecodedImage(Image.new("RGB", (32, 32), (grey, grey, grey)))


def images(greys):
    return [Found(Path(str(grey)), str(grey)) for grey in greys]


def predictor(model=None, **options):
    trained = SimpleNamespace(
        model=model or Grey(), classes=("black", "white"), preprocess=PREPROCESS, name="grey", sha256="0"
    )
    options = {"device": "cpu", "batch_size": 8, "workers": 0, "top_k": 2, "read": read} | options
    return Predictor(trained, **options)


def assert_rows_are_those_of_their_images(rows, greys):
    assert [row.path for row in rows] == [str(grey) for grey in greys]
    for row, grey in zip(rows, greys, strict=True):
        if grey < 0:
            assert row.status == "missing"
        else:
            probs = dict(zip(row.labels, row.probs, strict=True))
            assert probs["white"] == pytest.approx(grey / 255, abs=1e-5), row.path


GREYS = [-1, 0, 10, 20, -2, 30, 40, 50, 60, 70, 80, -3, -4, 90, 100, 110, 120, 130, 140, 150, 160, 255, -5]


@pytest.mark.parametrize("kind", MESSAGES)
def test_out_of_memory_halves_the_batch_and_loses_no_row(kind):
    told = []
    model = Grey(room=3, error=MESSAGES[kind])
    small = predictor(model, on_event=told.append)
    assert_rows_are_those_of_their_images(list(small.predict(images(GREYS))), GREYS)
    assert told == [
        "Out of memory with 8 images at once: going on with 4.",
        "Out of memory with 4 images at once: going on with 2.",
    ]
    assert model.shapes[:2] == [8, 4] and max(model.shapes[2:]) == 2
    assert small.batch_size == 2


def test_an_image_without_memory_even_alone_is_a_failed_row():
    rows = list(predictor(Grey(room=0)).predict(images([10, -1, 20])))
    assert [(row.path, row.status) for row in rows] == [
        ("10", "no_memory"),
        ("-1", "missing"),
        ("20", "no_memory"),
    ]
    assert "not enough memory" in rows[0].error and not rows[0].ok


def test_memory_that_ends_in_the_middle_fails_only_that_image():
    class Dark(Grey):
        def forward(self, images, want=()):
            self.room = 0 if (images < -0.99).all(dim=(1, 2, 3)).any() else 4
            return super().forward(images, want)

    rows = list(predictor(Dark(), batch_size=4).predict(images([30, 0, 40, 50, 60])))
    assert [row.status for row in rows] == ["ok", "no_memory", "ok", "ok", "ok"]
    assert rows[2].probs[0] == pytest.approx(1 - 40 / 255, abs=1e-5)


def test_other_errors_are_not_taken_for_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes"):
        list(predictor(Grey(room=0, error=lambda: RuntimeError("shapes differ"))).predict(images([1])))


def test_with_compile_every_batch_has_one_shape_and_padding_never_leaks(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    model = Grey()
    rows = list(predictor(model, compile=True, batch_size=4).predict(images(GREYS)))
    assert_rows_are_those_of_their_images(rows, GREYS)
    assert set(model.shapes) == {4}
    shrinking = predictor(Grey(room=2), compile=True, batch_size=8)
    assert_rows_are_those_of_their_images(list(shrinking.predict(images(GREYS))), GREYS)


def test_a_model_that_cannot_be_compiled_goes_on_without(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", lambda model, **_: refuse)
    told = []
    rows = list(predictor(compile=True, on_event=told.append).predict(images(GREYS)))
    assert_rows_are_those_of_their_images(rows, GREYS)
    assert told == ["Could not compile the model, going on without: no C++ compiler found"]


def test_extras_stay_with_their_images_and_failed_rows_hold_nan():
    extras = predictor(extras=("logits", "attention", "embedding", "embedding"), batch_size=4)
    assert extras.info.extras == ("attention", "embedding", "logits")
    for block in extras.blocks(images(GREYS)):
        assert (
            block.attention.dtype == np.float16 and block.embedding.dtype == block.logits.dtype == np.float32
        )
        for i, path in enumerate(block.path):
            grey = int(path) / 255 if int(path) >= 0 else math.nan
            np.testing.assert_allclose(block.attention[i], np.full((4, 4), 16 * grey), atol=0.01)
            np.testing.assert_allclose(block.embedding[i], np.full(3, 16 * grey), atol=1e-4)
            np.testing.assert_allclose(np.exp(block.logits[i]), [1 - grey, grey], atol=1e-5)
    assert np.isfinite(block.logits[~np.isnan(block.box[:, 0])]).all()


def test_a_block_without_any_answer_has_no_extras():
    (block,) = predictor(extras=("attention", "crop")).blocks(images([-1, -2]))
    assert (block.attention, block.crop, block.status) == (None, [b"", b""], ["missing"] * 2)


def test_an_extra_that_the_model_does_not_give_is_one_line():
    with pytest.raises(FgvcError, match="grey gives no attention"):
        list(predictor(Grey(gives=()), extras=("attention",)).predict(images([1])))


@pytest.mark.parametrize(("gain", "expected"), [(1.2, "float32"), (1.3, "bf16")])
def test_the_precision_that_a_probe_chose_is_recorded_and_told(monkeypatch, gain, expected):
    from fgvc_cli.engine import device as precision

    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    monkeypatch.setattr(precision, "_gain", lambda run: gain)
    told = []
    assert predictor(amp="auto", on_event=told.append).info.settings["precision"] == expected
    assert told == [f"Computing in {expected}: a probe found bfloat16 {gain:.2f} times as fast as float32."]


def test_the_probe_runs_both_precisions_and_a_cpu_without_bfloat16_is_not_probed(monkeypatch):
    from fgvc_cli.engine import device as precision

    class Watched(Grey):
        seen = frozenset()

        def forward(self, images, want=()):
            self.seen |= {torch.is_autocast_enabled("cpu")}
            return super().forward(images, want)

    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    model = Watched()
    probed = predictor(model, amp="auto")
    assert model.seen == {False, True}
    assert {*model.shapes} == {probed.batch_size}, "the run's own batch"
    assert len(model.shapes) >= 8, "several rounds"
    told, model = [], Watched()
    few = predictor(model, amp="auto", expected=3, on_event=told.append)
    assert few.info.settings["precision"] == "float32" and not model.shapes and "too few images" in told[0]
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    told, model = [], Watched()
    assert predictor(model, amp="auto", on_event=told.append).info.settings["precision"] == "float32"
    assert not model.shapes and "no bfloat16" in told[0]


def test_an_explicit_precision_is_kept():
    model = predictor(amp="bf16", on_event=lambda text: None)
    assert model.info.settings["precision"] == "bf16"
    assert predictor().info.settings["precision"] == "float32"
    assert_rows_are_those_of_their_images(list(model.predict(images([0, 255]))), [0, 255])


def test_batch_size_auto_is_measured_once_told_used_and_recorded():
    told = []
    model = Grey()
    auto = predictor(model, batch_size="auto", on_event=told.append)
    probed = len(model.shapes)
    assert auto.info.settings["batch_size"] == auto.batch_size
    for _ in range(2):
        assert_rows_are_those_of_their_images(list(auto.predict(images(GREYS))), GREYS)
    assert told == [f"Batch size {auto.batch_size}, the fastest in a short probe."]
    assert auto.batch_size in (1, 2, 4, 8, 16, 32)
    assert max(model.shapes[probed:]) <= auto.batch_size


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and there is none")
@pytest.mark.parametrize("workers", [0, 2])
def test_on_cuda_rows_stay_on_their_images_over_streams(workers):
    greys = [*GREYS, *range(256)]
    for size in (1, 8, "auto"):
        model = predictor(device="cuda", batch_size=size, workers=workers, extras=("attention", "crop"))
        assert_rows_are_those_of_their_images(list(model.predict(images(greys))), greys)
        assert model.info.settings["precision"] == "float32"


def test_a_model_that_waits_for_images_is_told_of_once(monkeypatch):
    from fgvc_cli.predict import predictor as module

    monkeypatch.setattr(module, "usable_cpus", lambda: 6)
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.05)

    def slow(path):
        time.sleep(0.01)
        return read(path)

    told = []
    list(predictor(read=slow, workers=2, on_event=told.append).predict(images([9] * 40)))
    (line,) = [text for text in told if "waited" in text]
    assert "--workers 6" in line and "now 2 decode" in line
    monkeypatch.setattr(module, "usable_cpus", lambda: 2)
    told.clear()
    list(predictor(read=slow, workers=2, on_event=told.append).predict(images([9] * 40)))
    assert not told


def test_workers_auto_is_one_per_cpu(monkeypatch):
    monkeypatch.setattr("fgvc_cli.config.usable_cpus", lambda: 6)
    assert predictor(workers="auto")._workers == 6
    assert worker_count("auto", 4) == 1 and worker_count("auto", 2) == 3 and worker_count(0) == 0


def test_images_named_one_by_one_are_counted(tmp_path):
    for name in ("a.jpg", "b.PNG", "list.txt"):
        (tmp_path / name).touch()
    images = [tmp_path / "a.jpg", str(tmp_path / "b.PNG")]
    assert count_named(images) == 2
    for other in (tmp_path, tmp_path / "list.txt", tmp_path / "missing.jpg", str(tmp_path / "*.jpg"), "-"):
        assert count_named([*images, other]) is None


class Darker(Grey):
    """Sees the image at 48 px, knows its classes in another order, and finds it half as white."""

    def forward(self, images, want=()):
        assert images.shape[2:] == (48, 48)
        white = (images.mean(dim=(1, 2, 3)) / 2 + 0.5) / 2
        return ModelOutput(logits={}, probs=torch.stack((white, 1 - white), dim=1))


class Left(Grey):
    """Probability of ``white`` is how white the left half is; its box is there too."""

    def forward(self, images, want=()):
        white = images[..., : images.shape[3] // 2].mean(dim=(1, 2, 3)) / 2 + 0.5
        box = torch.tensor([[0.0, 0.0, 16.0, 32.0]]).repeat(len(images), 1)
        return ModelOutput(logits={}, probs=torch.stack((1 - white, white), dim=1), boxes=box)


def trained_as(model, name="grey", classes=("black", "white"), temperature=1.0, **preprocess):
    return SimpleNamespace(
        model=model,
        classes=classes,
        preprocess=PREPROCESS.model_copy(update=preprocess),
        name=name,
        sha256=f"sha-{name}",
        temperature=temperature,
    )


def ensemble(*trained, **options):
    given = {"device": "cpu", "batch_size": 8, "workers": 0, "top_k": 2, "read": read} | options
    return Predictor(list(trained), **given)


def test_several_models_give_the_mean_of_their_probabilities():
    """Each at its own size, its classes matched by name."""
    first = trained_as(Grey())
    second = trained_as(Darker(), "darker", ("white", "black"), input_px=48, resize_px=48)
    model = ensemble(first, second, extras=("logits",))
    (block,) = model.blocks(images([100, -1, 200]))
    for row, grey in ((0, 100), (2, 200)):
        white = grey / 255 * 0.75
        assert np.exp(block.logits[row]) == pytest.approx([1 - white, white], abs=1e-5)
        assert block.topk_prob[row, 0] == pytest.approx(max(white, 1 - white), abs=1e-5)
    assert block.status[1] == "missing"
    # Boxes are the first model's, in pixels of the image.
    assert block.box[0, 0] == pytest.approx(100 / 255 * 16, abs=1e-3)
    assert model.info.weights_sha256 == "sha-grey+sha-darker" and model.info.model == "grey + darker"
    (other,) = model.info.settings["others"]
    assert (other["weights_sha256"], other["preprocess"]["input_px"]) == ("sha-darker", 48)


def test_each_model_has_its_own_temperature():
    (row,) = ensemble(trained_as(Grey(), temperature=0.5), trained_as(Grey())).predict(images([204]))
    sharp = 0.8**2 / (0.8**2 + 0.2**2)
    assert row.probs[0] == pytest.approx((sharp + 0.8) / 2, abs=1e-5)


def test_models_of_other_classes_are_refused():
    for classes, named in (
        (("black", "grey"), "does not know 'white'"),
        (("black", "grey", "white"), "grey"),
    ):
        with pytest.raises(FgvcError, match=named) as error:
            ensemble(trained_as(Grey()), trained_as(Grey(), "second", classes))
        assert error.value.message.startswith(f"second tells {len(classes)} classes, grey tells 2;")


def test_the_mirror_image_counts_half_and_boxes_stay(tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :16] = 204
    Image.fromarray(pixels).save(tmp_path / "a.png")
    plain, both = (ensemble(trained_as(Left()), read=None, tta=tta, top_k=2) for tta in (None, "flip"))
    (one,), (two,) = (list(each.predict(tmp_path / "a.png")) for each in (plain, both))
    assert dict(zip(one.labels, one.probs, strict=True))["white"] == pytest.approx(0.8, abs=1e-5)
    assert dict(zip(two.labels, two.probs, strict=True))["white"] == pytest.approx(0.4, abs=1e-5)
    assert one.box == two.box == (0, 0, 16, 32)
    assert both.info.settings["tta"] == "flip" and "tta" not in plain.info.settings


@pytest.mark.parametrize("workers", [0, 2])
def test_decoding_processes_hand_over_an_input_for_each_model(tmp_path, workers):
    for grey in (51, 102, 153):
        Image.new("RGB", (60, 40), (grey,) * 3).save(tmp_path / f"{grey}.png")
    (tmp_path / "bad.png").write_bytes(b"junk")
    second = trained_as(Darker(), "darker", ("white", "black"), input_px=48, resize_px=48)
    model = ensemble(trained_as(Grey()), second, read=None, workers=workers)
    found = {row.path: row for row in model.predict(tmp_path)}
    assert found.pop("bad.png").status == "not_an_image"
    for grey in (51, 102, 153):
        probs = dict(zip(found[f"{grey}.png"].labels, found[f"{grey}.png"].probs, strict=True))
        assert probs["white"] == pytest.approx(0.75 * grey / 255, abs=1e-4)


def test_out_of_memory_halves_the_batch_of_all_models():
    small = ensemble(trained_as(Grey()), trained_as(Grey(room=3), "second"))
    assert_rows_are_those_of_their_images(list(small.predict(images(GREYS))), GREYS)
    assert small.batch_size == 2


TREE = Taxonomy(("family",), (("grey",), ("grey",)))


def test_rows_tell_the_finest_node_that_is_probable_enough():
    model = ensemble(trained_as(Grey()), taxonomy=TREE, rollup=0.7)
    rows = list(model.predict(images([-1, 10, 130])))
    assert rows[0].more == {}
    assert (rows[1].more["rank"], rows[1].more["rank_label"]) == ("class", "black")
    assert rows[1].more["rank_prob"] == pytest.approx(rows[1].probs[0])
    assert (rows[2].more["rank"], rows[2].more["rank_label"]) == ("family", "grey")
    assert rows[2].more["rank_prob"] == pytest.approx(1)
    settings = model.info.settings["rollup"]
    assert settings["least"] == 0.7 and len(settings["taxonomy_sha256"]) == 64
    with pytest.raises(FgvcError, match="grey does not bring"):
        ensemble(trained_as(Grey()), rollup=0.7)


def test_camera_metadata_comes_with_the_rows(tmp_path):
    exif = Image.Exif()
    exif[0x10F], exif[0x110], exif[0x8769] = "Canon", "R5", {0x9003: "2024:05:06 07:08:09"}
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGB", (60, 40)).save(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").write_bytes(b"junk")
    for workers in (0, 1):
        model = ensemble(trained_as(Grey()), read=None, workers=workers, exif=True)
        rows = list(model.predict(tmp_path))
        assert rows[0].more == {"date": "2024-05-06T07:08:09", "camera": "Canon R5"}
        assert rows[1].more == rows[2].more == {}
        assert model.info.columns == ("date", "latitude", "longitude", "camera")
