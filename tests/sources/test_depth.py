"""TIFFs of more than 8 bits, signed or float, are read as they declare themselves."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from fgvc_cli.predict.predictor import Predictor
from fgvc_cli.sources import images
from fgvc_cli.sources.frames import Frame, frame_numbers
from fgvc_cli.sources.images import DecodedImage, Failure, read_image

RAMP = np.linspace(0, 1, 16)[None].repeat(4, axis=0)
"""(4, 16): black at the left, white at the right."""


def write_tiff(path, values, bits, *, min_is_white=False, order="<"):
    """An uncompressed grey TIFF of one strip; fewer than 16 bits are packed, most significant bit first."""
    height, width = values.shape
    top = (1 << bits) - 1
    levels = np.round((1 - values if min_is_white else values) * top).astype(int)
    if bits == 16:
        data = b"".join(struct.pack(f"{order}H", level) for level in levels.ravel())
    else:
        digits = "".join(f"{level:0{bits}b}" for level in levels.ravel())
        data = int(digits, 2).to_bytes(len(digits) // 8, "big")
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 0 if min_is_white else 1)]
    tags += [(273, 8), (277, 1), (278, height), (279, len(data))]
    data += b"\0" * (len(data) % 2)
    out = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data)) + data
    out += struct.pack(f"{order}H", len(tags))
    for tag, value in tags:
        out += struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
    path.write_bytes(out + struct.pack(f"{order}I", 0))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("min_is_white", [False, True])
def test_16_bits_count_from_black_whichever_end_is_zero(tmp_path, order, min_is_white):
    write_tiff(tmp_path / "a.tif", RAMP, 16, min_is_white=min_is_white, order=order)
    decoded = read_image(tmp_path / "a.tif")
    assert isinstance(decoded, DecodedImage)
    assert np.abs(np.asarray(decoded.image)[..., 0] / 255 - RAMP).max() < 1 / 128


@pytest.mark.parametrize("bits", [9, 10, 11, 12, 13, 14, 15])
@pytest.mark.parametrize("min_is_white", [False, True])
def test_packed_bits_span_from_black_to_white(tmp_path, bits, min_is_white):
    write_tiff(tmp_path / "a.tif", RAMP, bits, min_is_white=min_is_white)
    assert off_by(tmp_path / "a.tif") < 1 / 128


def off_by(path, wanted=RAMP) -> float:
    """Greatest difference from what is wanted, (H, W) grey or (H, W, 3), of 1 for white."""
    decoded = read_image(path)
    assert isinstance(decoded, DecodedImage), decoded
    wanted = wanted if wanted.ndim == 3 else wanted[..., None]
    return float(np.abs(np.asarray(decoded.image) / 255 - wanted).max())


COLOURS = np.stack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 0.25)], axis=-1)


def levels(wanted, kind: str) -> np.ndarray:
    """0 to 1 as values of a type, over the whole of its range."""
    if np.dtype(kind).kind == "f":
        return wanted.astype(kind)
    info = np.iinfo(kind)
    return np.round(info.min + wanted * (float(info.max) - info.min)).astype(kind)


@pytest.mark.parametrize("kind", ["i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("form", ["grey", "white at 0", "colour", "planes"])
def test_every_type_runs_over_its_declared_range(tmp_path, kind, order, form):
    wanted = COLOURS if form in ("colour", "planes") else RAMP
    options = {"photometric": "rgb"} if wanted.ndim == 3 else {"photometric": "minisblack"}
    values = levels(1 - wanted if form == "white at 0" else wanted, kind)
    if form == "white at 0":
        options["photometric"] = "miniswhite"
    if form == "planes":
        values, options["planarconfig"] = np.moveaxis(values, -1, 0), "separate"
    tifffile.imwrite(tmp_path / "a.tif", values, byteorder=order, **options)
    assert off_by(tmp_path / "a.tif", wanted) < 1 / 128


@pytest.mark.parametrize("compression", ["lzw", "deflate", "zstd", "lzma", "packbits"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_every_compression_of_16_signed_bits(tmp_path, compression, tile):
    options = {"tile": tile} if tile else {"rowsperstrip": 3}
    tifffile.imwrite(tmp_path / "a.tif", levels(RAMP, "i2"), compression=compression, **options)
    assert off_by(tmp_path / "a.tif") < 1 / 128


def test_floats_beyond_1_run_over_their_own_range_and_nan_is_the_least(tmp_path):
    values = (RAMP * 300 - 100).astype("f4")
    wanted = RAMP.copy()
    values[0, 3], wanted[0, 3] = np.nan, 0
    tifffile.imwrite(tmp_path / "a.tif", values)
    assert off_by(tmp_path / "a.tif", wanted) < 1 / 128


def test_floats_within_0_and_1_are_not_stretched(tmp_path):
    wanted = 0.4 + RAMP * 0.2
    tifffile.imwrite(tmp_path / "a.tif", wanted.astype("f4"))
    assert off_by(tmp_path / "a.tif", wanted) < 1 / 128


@pytest.mark.parametrize("kind", ["u2", "u4", "f4"])
def test_alpha_lies_over_white(tmp_path, kind):
    values = levels(np.concatenate([COLOURS, np.full((4, 16, 1), 0.5)], axis=-1), kind)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    assert off_by(tmp_path / "a.tif", COLOURS * 0.5 + 0.5) < 1 / 64


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_deep_tiff_is_held_upright(tmp_path, orientation):
    tag = [(274, "H", 1, orientation, True)]
    wanted = RAMP * np.linspace(1, 0.5, 4)[:, None]
    tifffile.imwrite(tmp_path / "deep.tif", levels(wanted, "i2"), extratags=tag)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray((wanted * 255).astype(np.uint8)).save(tmp_path / "a.png", exif=exif)
    deep, png = read_image(tmp_path / "deep.tif"), read_image(tmp_path / "a.png")
    assert isinstance(deep, DecodedImage)
    assert isinstance(png, DecodedImage)
    assert deep.size == png.size
    assert np.abs(np.asarray(deep.image).astype(int) - np.asarray(png.image)).max() <= 1


def test_a_declared_maximum_of_12_bits_in_16_is_white(tmp_path):
    values = np.round(RAMP * 4095).astype("u2")
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=[(281, "H", 1, 4095, True)])
    assert off_by(tmp_path / "a.tif") < 1 / 128
    # Any other maximum only describes the picture.
    tifffile.imwrite(tmp_path / "b.tif", levels(RAMP * 0.5, "u2"), extratags=[(281, "H", 1, 32768, True)])
    assert off_by(tmp_path / "b.tif", RAMP * 0.5) < 1 / 128


@pytest.mark.parametrize("ending", ["tif", "png"])
@pytest.mark.parametrize("top", [4095, 4096])
def test_12_bits_in_16_without_a_tag_are_read_as_declared_and_noted(tmp_path, ending, top):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(np.round(RAMP * top).astype("u2")).save(path)
    assert off_by(path, RAMP * top / 65535) < 1 / 128
    note = read_image(path).note
    assert ("under 1/16 of its range" in note) == (top == 4095)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_note_is_said_once_per_run(tmp_path, workers):
    for name in "abc":
        Image.fromarray(np.round(RAMP * 4095).astype("u2")).save(tmp_path / f"{name}.png")
    told: list[str] = []
    rows = list(Predictor("aviary", workers=workers, device="cpu", on_event=told.append).predict(tmp_path))
    assert all(row.ok for row in rows)
    assert len([line for line in told if line.startswith("a.png uses under 1/16 of its range")]) == 1
    assert len([line for line in told if "1/16" in line]) == 1


def test_the_limit_of_pixels_holds_before_anything_is_decoded(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", levels(RAMP, "i2"))
    monkeypatch.setattr(images, "MAX_PIXELS", 63)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_, **__: pytest.fail("decoded"))
    failure = read_image(tmp_path / "a.tif")
    assert isinstance(failure, Failure)
    assert failure.status == "too_large"


def test_a_deep_tiff_that_is_cut_short_is_truncated(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, levels(RAMP, "i2"))
    path.write_bytes(path.read_bytes()[:-40])
    failure = read_image(path)
    assert isinstance(failure, Failure)
    assert failure.status == "truncated"


def test_colours_that_are_not_read_in_this_depth_say_so(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", levels(RAMP, "u2"), photometric="cfa")
    failure = read_image(tmp_path / "a.tif")
    assert isinstance(failure, Failure)
    assert "CFA" in failure.error


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_a_damaged_deep_tiff_is_a_value(tmp_path, compression):
    """Any byte may be wrong, in the directory above all."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, levels(COLOURS, "u2"), photometric="rgb", compression=compression)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(4, len(data), 3):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        assert isinstance(read_image(path), DecodedImage | Failure)


def test_a_palette_that_is_not_there_is_the_reason(tmp_path):
    """As in a real file of the fuzz corpus: 16-bit values, photometric interpretation 3, no ColorMap."""
    write_tiff(tmp_path / "a.tif", RAMP, 16)
    data = (tmp_path / "a.tif").read_bytes()
    grey, palette = (struct.pack("<HHIHH", 262, 3, 1, value, 0) for value in (1, 3))
    assert data.count(grey) == 1
    (tmp_path / "a.tif").write_bytes(data.replace(grey, palette))
    failure = read_image(tmp_path / "a.tif")
    assert isinstance(failure, Failure) and failure.status == "unreadable"
    assert failure.error.endswith("a palette (ColorMap), which the file lacks; save it as RGB or grey")


@pytest.mark.parametrize("ending", ["avif", "jp2"])
def test_avif_and_jpeg_2000_are_read(tmp_path, ending):
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, 24:] = (200, 40, 40)
    Image.fromarray(pixels).save(tmp_path / f"a.{ending}")
    decoded = read_image(tmp_path / f"a.{ending}")
    assert isinstance(decoded, DecodedImage)
    assert decoded.size == (48, 32)
    assert np.abs(np.asarray(decoded.image).astype(int) - pixels)[:, 30:].max() < 20


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_is_held_upright(tmp_path, orientation):
    corner = Image.new("RGB", (64, 32))
    corner.paste((255, 255, 255), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    corner.save(tmp_path / "a.png", exif=exif)
    corner.save(tmp_path / "a.avif", exif=exif)  # which takes the orientation out of ``exif``
    avif, png = (read_image(tmp_path / name) for name in ("a.avif", "a.png"))
    assert isinstance(avif, DecodedImage)
    assert isinstance(png, DecodedImage)
    assert avif.size == png.size
    assert np.abs(np.asarray(avif.image).astype(int) - np.asarray(png.image)).mean() < 8


def with_band(tmp_path, band: np.ndarray, kind: str, top: float, meaning: str, *tags) -> DecodedImage:
    values = np.concatenate([COLOURS * top, band[..., None]], axis=-1)
    values = values.astype(kind) if np.dtype(kind).kind == "f" else np.round(values).astype(kind)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=[meaning], extratags=tags)
    photo = read_image(tmp_path / "a.tif")
    assert isinstance(photo, DecodedImage), photo
    return photo


def test_a_further_band_does_not_decide_the_range_of_the_colours(tmp_path):
    with_band(tmp_path, RAMP * 3000, "f4", 1, "unspecified")
    assert off_by(tmp_path / "a.tif", COLOURS) < 1 / 128
    declared = (281, "H", 1, 4095, True)  # 12 bits of colour beside an infrared band of 16
    photo = with_band(tmp_path, RAMP * 65535, "u2", 4095, "unspecified", declared)
    assert off_by(tmp_path / "a.tif", COLOURS) < 1 / 128
    assert not photo.note
    assert "1/16" in with_band(tmp_path, RAMP * 65535, "u2", 4095, "unspecified").note


@pytest.mark.parametrize(
    ("kind", "top", "alpha"), [("f4", 1, 255), ("f4", 1, 0.5), ("u2", 65535, 4095), ("u2", 4095, 65535)]
)
def test_alpha_has_a_range_of_its_own(tmp_path, kind, top, alpha):
    """Its greatest value is what is not seen through, where it is one that a width of bits or none has."""
    tags = [(281, "H", 1, 4095, True)] if top == 4095 else []
    with_band(tmp_path, np.full_like(RAMP, alpha), kind, top, "unassalpha", *tags)
    wanted = COLOURS * 0.5 + 0.5 if alpha == 0.5 else COLOURS
    assert off_by(tmp_path / "a.tif", wanted) < 1 / 64


@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_with_offsets_of_64_bits_in_either_byte_order(tmp_path, kind, order):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=True, byteorder=order) as tiff:
        tiff.write(levels(COLOURS, kind), photometric="rgb")
        tiff.write(levels(RAMP, kind), photometric="minisblack")
    assert off_by(path, COLOURS) < 1 / 128
    second = read_image(Frame(path, 1))
    assert isinstance(second, DecodedImage), second
    assert np.abs(np.asarray(second.image)[..., 0] / 255 - RAMP).max() < 1 / 128
    with path.open("rb") as stream:
        assert list(frame_numbers(stream)) == [0, 1]


@pytest.mark.parametrize("compression", ["jpeg2000", "jpegxl", "lerc", "png", "webp"])
@pytest.mark.parametrize("form", ["rgb", "miniswhite"])
def test_compressions_that_pillow_does_not_unpack(tmp_path, compression, form):
    if compression == "webp" and form == "miniswhite":
        pytest.skip("WebP has colours only")
    wanted = COLOURS if form == "rgb" else RAMP
    wanted = np.repeat(np.repeat(wanted, 8, axis=0), 2, axis=1)  # larger than a block
    values = levels(wanted if form == "rgb" else 1 - wanted, "u1")
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=form, compression=compression)
    assert off_by(tmp_path / "a.tif", wanted) < 1 / 64
    assert not read_image(tmp_path / "a.tif").note


@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("value", [(6, 6), (6, 1, 1)])
def test_an_orientation_of_several_values_is_its_first(tmp_path, kind, value):
    tag = (274, "H", len(value), value, True)
    tifffile.imwrite(tmp_path / "a.tif", levels(RAMP, kind), photometric="minisblack", extratags=[tag])
    photo = read_image(tmp_path / "a.tif")
    assert isinstance(photo, DecodedImage), photo
    assert np.abs(np.asarray(photo.image)[..., 0] / 255 - np.rot90(RAMP, -1)).max() < 1 / 128
