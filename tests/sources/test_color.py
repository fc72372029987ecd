"""Colour profiles: wide gamuts come out in sRGB by numbers worked out here; none costs the pixels."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import tifffile
from icc_profiles import INKS, PRIMARIES, SRGB, WIDE, converted, grey_profile, press_profile, rgb_profile
from PIL import Image, ImageCms

from fgvc_cli.sources import color
from fgvc_cli.sources.images import DecodedImage, Reading, read_image

COLOURS = np.array(
    [[255, 255, 255], [0, 0, 0], [128, 128, 128], [200, 120, 100], [60, 140, 80], [90, 100, 170]], np.uint8
)


def picture() -> Image.Image:
    """Six colours, none at the edge of sRGB, each 8 x 8."""
    return Image.fromarray(np.repeat(np.repeat(COLOURS[None], 8, axis=1), 8, axis=0))


def by_hand(values: np.ndarray, name: str) -> np.ndarray:
    """Values of a profile -> sRGB, by the equations of both spaces."""
    primaries, exponent = PRIMARIES[name]
    stored = values / 255
    curve = np.where(stored <= 0.04045, stored / 12.92, ((stored + 0.055) / 1.055) ** 2.4)
    light = stored**exponent if exponent else curve
    return encoded(light @ np.array(primaries))


def encoded(xyz: np.ndarray) -> np.ndarray:
    """XYZ of D50 -> sRGB."""
    linear = (xyz @ np.linalg.inv(np.array(PRIMARIES["sRGB"][0]))).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def saved(tmp_path, image: Image.Image, ending: str, **options) -> Image.Image:
    path = tmp_path / f"a.{ending}"
    image.save(path, **options)
    photo = read_image(path)
    assert isinstance(photo, DecodedImage)
    assert not photo.note
    return photo.image


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp", "avif"])
def test_wide_gamuts_come_out_in_srgb(tmp_path, name, ending):
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(ending, {})
    options |= {"avif": {"quality": 100, "subsampling": "4:4:4"}}.get(ending, {})
    got = np.asarray(saved(tmp_path, picture(), ending, icc_profile=rgb_profile(name), **options))
    off = np.abs(got.astype(float) - by_hand(np.asarray(picture()), name)).max()
    assert off <= (2 if ending in ("png", "tif", "webp") else 6)
    assert np.abs(got.astype(int) - np.asarray(picture())).max() > 10


@pytest.mark.parametrize("name", WIDE)
def test_there_and_back_again(tmp_path, name):
    profile = rgb_profile(name)
    got = np.asarray(saved(tmp_path, converted(picture(), profile), "png", icc_profile=profile))
    assert np.abs(got.astype(int) - np.asarray(picture())).max() <= 3


@pytest.mark.parametrize("profile", [SRGB, rgb_profile("sRGB")], ids=["LittleCMS", "ours"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_srgb_in_any_edition_changes_no_value(tmp_path, profile, mode):
    plain = saved(tmp_path, picture().convert(mode), "png")
    np.testing.assert_array_equal(saved(tmp_path, picture().convert(mode), "png", icc_profile=profile), plain)
    assert color._transform(profile, "RGB") is None


def test_ignored_on_request(tmp_path):
    path = tmp_path / "a.png"
    picture().save(path, icc_profile=rgb_profile("ProPhoto"))
    as_stored = read_image(path, rule=Reading(color_profile="ignore"))
    np.testing.assert_array_equal(as_stored.image, picture())


def test_transparency_and_palettes_have_their_profile_too(tmp_path):
    profile = rgb_profile("Adobe RGB")
    wanted = np.asarray(saved(tmp_path, picture(), "png", icc_profile=profile))
    for image in (picture().convert("RGBA"), picture().quantize(6)):
        got = saved(tmp_path, image, "png", icc_profile=profile)
        np.testing.assert_array_equal(got, wanted)
    half = picture()
    half.putalpha(0)
    assert (np.asarray(saved(tmp_path, half, "png", icc_profile=profile)) == 255).all()


@pytest.mark.parametrize("depth", [8, 16])
def test_grey_goes_by_its_exponent(tmp_path, depth):
    values = np.arange(0, 256, 5, dtype=np.uint8)[None].repeat(8, axis=0)
    image = Image.fromarray(values) if depth == 8 else Image.fromarray(values.astype(np.uint16) * 257)
    got = np.asarray(saved(tmp_path, image, "png", icc_profile=grey_profile(1.8)))
    light = (values / 255) ** 1.8
    wanted = 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(got[..., 0] - wanted).max() <= 2
    assert (got[..., 0] == got[..., 2]).all()


@pytest.mark.parametrize("kind", ["LA", "1", "P", "tRNS", "min is white"])
def test_a_profile_of_grey_holds_for_every_kind_of_grey(tmp_path, kind):
    values = np.arange(0, 256, 5, dtype=np.uint8)[None].repeat(8, axis=0)
    profile, grey = grey_profile(1.8), Image.fromarray(values)
    if kind == "1":
        grey = grey.point(lambda value: 255 * (value > 99)).convert("1")
    wanted = np.asarray(saved(tmp_path, grey.convert("L"), "png", icc_profile=profile))
    if kind == "min is white":
        path = tmp_path / "a.tif"
        deep = 65535 - values.astype(np.uint16) * 257
        tifffile.imwrite(path, deep, photometric="miniswhite", iccprofile=profile)
        got = np.asarray(read_image(path).image)
    elif kind == "tRNS":
        got = np.asarray(saved(tmp_path, grey, "png", icc_profile=profile, transparency=5))
        assert (got[:, 1] == 255).all()
        got, wanted = np.delete(got, 1, axis=1), np.delete(wanted, 1, axis=1)
    else:
        got = np.asarray(saved(tmp_path, grey.convert(kind), "png", icc_profile=profile))
    np.testing.assert_array_equal(got, wanted)
    plain = np.asarray(saved(tmp_path, grey, "png")).astype(int)
    assert kind == "1" or np.abs(wanted - plain[:, : wanted.shape[1]]).max() > 9


def test_the_profile_of_a_jpeg_2000(tmp_path):
    """In its header instead of the number of a colour space; Pillow writes the number."""
    stream = io.BytesIO()
    picture().save(stream, "JPEG2000")
    data, profile = stream.getvalue(), rgb_profile("ProPhoto")
    box = struct.pack(">I", len(profile) + 11) + b"colr\2\0\0" + profile
    header, colour = data.index(b"jp2h") - 4, data.index(b"colr") - 4
    size, old = (int.from_bytes(data[at : at + 4], "big") for at in (header, colour))
    inner = data[header + 8 : colour] + box + data[colour + old : header + size]
    whole = data[:header] + struct.pack(">I", len(inner) + 8) + b"jp2h" + inner + data[header + size :]
    (tmp_path / "a.jp2").write_bytes(whole)
    got = np.asarray(read_image(tmp_path / "a.jp2").image)
    assert np.abs(got.astype(float) - by_hand(np.asarray(picture()), "ProPhoto")).max() <= 2


def test_a_grey_image_with_a_profile_of_colours(tmp_path):
    values = np.arange(0, 256, 5, dtype=np.uint8)[None].repeat(8, axis=0)
    got = np.asarray(saved(tmp_path, Image.fromarray(values), "png", icc_profile=rgb_profile("ProPhoto")))
    assert np.abs(got - by_hand(np.repeat(values[..., None], 3, axis=2), "ProPhoto")).max() <= 2


@pytest.mark.parametrize("samples", [1, 3])
def test_tiffs_of_sixteen_bits(tmp_path, samples):
    profile = rgb_profile("ProPhoto") if samples == 3 else grey_profile(1.8)
    values = np.asarray(picture()).astype(np.uint16) * 257
    values = values if samples == 3 else values[..., 0]
    photometric = "rgb" if samples == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=photometric, iccprofile=profile)
    photo = read_image(tmp_path / "a.tif")
    picture().convert("RGB" if samples == 3 else "L").save(tmp_path / "b.png")
    if samples == 3:
        assert np.abs(np.asarray(photo.image) - by_hand(np.asarray(picture()), "ProPhoto")).max() <= 2
    else:
        plain = np.asarray(read_image(tmp_path / "a.tif", rule=Reading("ignore")).image).astype(int)
        moved = np.asarray(photo.image) - plain
        assert (moved[:, 16:24] > 10).all()  # middle grey of exponent 1.8 is lighter
        assert (moved[:, :16] == 0).all()


def of_lab(lightness: float, a: float, b: float) -> np.ndarray:
    """CIE L*a*b* of D50 -> sRGB."""
    y = (lightness + 16) / 116
    f = np.array([y + a / 500, y, y - b / 200])
    xyz = np.array([0.9642, 1.0, 0.8249]) * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    return encoded(xyz)


def test_ink_goes_by_the_profile_of_its_press(tmp_path):
    for ink, lab in INKS.items():
        cmyk = Image.new("CMYK", (16, 16), tuple(255 * part for part in ink))
        got = saved(tmp_path, cmyk, "jpg", icc_profile=press_profile(), quality=100)
        assert np.abs(np.asarray(got)[0, 0] - of_lab(*lab)).max() <= 5, (ink, of_lab(*lab))


BROKEN = {
    "junk": b"junk" * 100,
    "cut": rgb_profile("ProPhoto")[:200],
    "no tags": rgb_profile("ProPhoto")[:128] + bytes(4),
    "of ink": rgb_profile("ProPhoto").replace(b"RGB ", b"CMYK", 1),
    "of grey": grey_profile(1.8),
    "a million tags": rgb_profile("ProPhoto")[:128] + b"\0\x0f\xff\xff" + bytes(100),
    "huge": bytes(9 << 20),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_profile_never_costs_the_pixels_and_is_named(tmp_path, what):
    picture().save(tmp_path / "a.tif", icc_profile=BROKEN[what])
    photo = read_image(tmp_path / "a.tif")
    assert isinstance(photo, DecodedImage), photo
    np.testing.assert_array_equal(photo.image, picture())
    assert photo.note == color.IGNORED


def test_profiles_are_opened_once(tmp_path, monkeypatch):
    profile, opened = rgb_profile("Display P3") + b"own", []
    genuine = ImageCms.buildTransform
    monkeypatch.setattr(ImageCms, "buildTransform", lambda *args: opened.append(args) or genuine(*args))
    for _ in range(3):
        saved(tmp_path, picture(), "png", icc_profile=profile)
    assert len(opened) == 1


def test_a_profile_in_several_segments_of_a_jpeg(tmp_path):
    profile = rgb_profile("ProPhoto") + bytes(150_000)  # a segment holds 64 kB
    got = np.asarray(saved(tmp_path, picture(), "jpg", icc_profile=profile, quality=100, subsampling=0))
    assert np.abs(got - by_hand(np.asarray(picture()), "ProPhoto")).max() <= 6
    stream = io.BytesIO()
    picture().save(stream, "JPEG", icc_profile=profile, quality=100, subsampling=0)
    data = stream.getvalue()
    lost = data.replace(b"ICC_PROFILE\0\2", b"ICC_PROFILE\0\7", 1)  # a piece that is missing
    (tmp_path / "a.jpg").write_bytes(lost)
    plain = read_image(tmp_path / "a.jpg")
    assert np.abs(np.asarray(plain.image).astype(int) - np.asarray(picture())).max() <= 6
