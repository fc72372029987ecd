"""One decoder: inputs as the transform makes them, fast decoding, crops, and what it keeps in memory."""

import io
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from icc_profiles import rgb_profile
from PIL import Image

from fgvc_cli.config import Preprocess
from fgvc_cli.data.geometry import CROP_PX, cut_crop
from fgvc_cli.data.transforms import EvalTransform
from fgvc_cli.predict import decoding as decoder_module
from fgvc_cli.predict.decoding import Decoder, DecodeSettings, Rule
from fgvc_cli.sources.images import DecodedImage, Failure

RULE = Rule(64, 72, "squash")


def halves(width, height):
    """Red on the left, blue on the right, smooth, so that scaling changes little."""
    across = np.linspace(0, 255, width)[None, :, None].repeat(height, 0)
    return Image.fromarray(np.concatenate([255 - across, across * 0, across], axis=2).astype(np.uint8))


def opened(crop):
    return Image.open(io.BytesIO(crop))


def test_workers_import_neither_torch_nor_pydantic():
    code = (
        "import sys, fgvc_cli.predict.decoding;"
        "print([m for m in ('torch', 'pydantic', 'h5py') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("rule", ["squash", "shorter"])
def test_the_input_is_that_of_the_evaluation_transform(tmp_path, rule):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 150, 3), np.uint8))
    image.save(tmp_path / "a.png")
    decoded = Decoder(DecodeSettings(RULE._replace(resize_rule=rule))).load(0, tmp_path / "a.png")
    expected = EvalTransform(Preprocess(input_px=64, resize_px=72, resize_rule=rule))(image)
    assert np.array_equal(decoded.pixels, expected.permute(1, 2, 0).numpy())
    assert decoded[:3] == (None, 150, 90)


@pytest.mark.parametrize("rule", ["squash", "shorter"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_fast_decoding_changes_neither_size_nor_what_is_shown(tmp_path, rule, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    halves(1003, 601).save(tmp_path / "a.jpg", quality=95, exif=exif)
    sizes = []

    def prepared(image):
        sizes.append(image.size)

    rule = RULE._replace(resize_rule=rule)
    plain, fast = (Decoder(DecodeSettings(rule, fast=fast)) for fast in (False, True))
    slow_one = plain.load(0, tmp_path / "a.jpg")
    prepare = fast._prepare
    fast._prepare = lambda image: (prepare(image), prepared(image))
    fast_one = fast.load(0, tmp_path / "a.jpg")
    assert max(sizes[0]) <= 1003 // 4 + 1  # it was really smaller
    assert fast_one[1:3] == slow_one[1:3] == ((601, 1003) if orientation == 6 else (1003, 601))
    assert np.abs(fast_one.pixels.astype(int) - slow_one.pixels).max() <= 6


@pytest.mark.parametrize(("name", "size"), [("a.jpg", (140, 100)), ("a.png", (900, 900))])
def test_fast_decoding_leaves_small_jpegs_and_other_formats_alone(tmp_path, name, size):
    halves(*size).save(tmp_path / name)
    plain, fast = (Decoder(DecodeSettings(RULE, fast=f)).load(0, tmp_path / name) for f in (False, True))
    assert np.array_equal(plain.pixels, fast.pixels)


def test_a_crop_is_the_box_never_enlarged_and_at_most_so_large():
    photo = halves(1000, 400)
    small = opened(cut_crop(photo, (10.2, 20.7, 60, 90)))
    assert small.size == (50, 70) and small.format == "JPEG"
    large = opened(cut_crop(photo, (0, 0, 1000, 400)))
    assert large.size == (CROP_PX, round(CROP_PX * 0.4))
    left, right = (
        np.asarray(opened(cut_crop(photo, b)))[:, :, 0].mean() for b in ((0, 0, 99, 99), (900, 0, 1000, 99))
    )
    assert left > 230 and right < 25
    for box in ((1000, 400, 1000, 400), (0, 0, 0, 0), (999.7, 399.2, 1000, 400)):
        assert opened(cut_crop(photo, box)).size == (1, 1)
    assert opened(cut_crop(photo.resize((500, 200)), (0, 0, 200, 100), (1000, 400))).size == (100, 50)


def test_crops_are_the_same_from_kept_images_and_from_reading_again(tmp_path):
    path, reads = tmp_path / "a.jpg", []
    halves(300, 200).save(path)

    def read(path):
        reads.append(path)
        return DecodedImage(Image.open(path).convert("RGB"))

    crops = []
    for keep_bytes in (0, 4 * 300 * 200):
        decoder = Decoder(DecodeSettings(RULE, keep_bytes=keep_bytes), read=read)
        for number in (0, 1):
            decoder.load(number, path)
        crops += [decoder.cut(number, path, (30, 40, 200, 190)) for number in (0, 1)]
    assert len(set(crops)) == 1 and opened(crops[0]).size == (170, 150)
    assert len(reads) == 4 + 3  # one of the four images was kept


def test_what_is_kept_is_bounded_in_bytes_and_let_go(tmp_path):
    halves(100, 100).save(tmp_path / "a.jpg")
    decoder = Decoder(DecodeSettings(RULE, keep_bytes=3 * 40_000))
    for number in range(10):
        decoder.load(number, tmp_path / "a.jpg")
    assert list(decoder._kept) == [0, 1, 2]
    assert decoder.cut(0, tmp_path / "a.jpg", None) == b""
    decoder.load(10, tmp_path / "a.jpg")
    assert list(decoder._kept) == [1, 2, 10]
    assert decoder.cut(5, None, (0, 0, 9, 9)) is None
    for number in (1, 2, 10):
        decoder.cut(number, None, None)
    assert not decoder._kept and decoder._kept_bytes == 0


def test_an_image_that_has_gone_leaves_an_empty_crop(tmp_path):
    assert Decoder(DecodeSettings(RULE)).cut(0, tmp_path / "gone.jpg", (0, 0, 9, 9)) == b""


def test_big_images_take_turns(tmp_path, monkeypatch):
    """Two at once, however many decoders there are; the small one does not wait."""
    monkeypatch.setattr(decoder_module, "BIG_PIXELS", 100 * 100)
    halves(200, 200).save(tmp_path / "big.jpg")
    halves(50, 50).save(tmp_path / "small.jpg")
    turn = threading.Semaphore(2)
    turn.acquire(), turn.acquire()
    threads = [
        threading.Thread(target=Decoder(DecodeSettings(RULE), turn=turn).load, args=(0, tmp_path / "big.jpg"))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    small = Decoder(DecodeSettings(RULE), turn=turn).load(0, tmp_path / "small.jpg")
    assert small.failure is None and all(thread.is_alive() for thread in threads)
    turn.release()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_a_broken_big_image_gives_its_turn_back(tmp_path, monkeypatch):
    monkeypatch.setattr(decoder_module, "BIG_PIXELS", 100)
    halves(200, 200).save(tmp_path / "a.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:1500])
    turn = threading.Semaphore(1)
    failed = Decoder(DecodeSettings(RULE), turn=turn).load(0, tmp_path / "cut.jpg")
    assert isinstance(failed.failure, Failure) and turn.acquire(blocking=False)
    assert Decoder(DecodeSettings(RULE)).load(0, Path("gone")).failure.status == "missing"


@pytest.mark.parametrize("profile", [None, "Adobe RGB"])
def test_an_input_for_each_model_and_a_second_look_only_at_colours_that_differ(
    tmp_path, monkeypatch, profile
):
    """One model wants sRGB, the other the values as they are: without a profile both are the same."""
    icc = rgb_profile(profile) if profile else None
    Image.new("RGB", (90, 60), (200, 30, 30)).save(tmp_path / "a.png", icc_profile=icc)
    reads = []
    read = decoder_module.read_image

    def reading(path, prepare, rule, **options):
        reads.append(rule.color_profile)
        return read(path, prepare, rule, **options)

    monkeypatch.setattr(decoder_module, "read_image", reading)
    other = RULE._replace(input_px=32, resize_px=32, color_profile="ignore")
    decoded = Decoder(DecodeSettings(RULE, others=(other,))).load(0, tmp_path / "a.png")
    assert decoded.pixels.shape == (64, 64, 3) and decoded.others[0].shape == (32, 32, 3)
    assert decoded.others[0][0, 0].tolist() == [200, 30, 30]
    assert reads == (["srgb", "ignore"] if profile else ["srgb"])
    assert (decoded.pixels[0, 0].tolist() == [200, 30, 30]) == (profile is None)
