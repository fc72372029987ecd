"""Grey of more than 8 bits is read as its file declares it."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

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


# The fourth pair, big-endian with white at 0, Pillow does not know: its row says so.
@pytest.mark.parametrize(("order", "min_is_white"), [("<", False), ("<", True), (">", False)])
def test_16_bits_count_from_black_whichever_end_is_zero(tmp_path, order, min_is_white):
    write_tiff(tmp_path / "a.tif", RAMP, 16, min_is_white=min_is_white, order=order)
    decoded = read_image(tmp_path / "a.tif")
    assert isinstance(decoded, DecodedImage)
    assert np.abs(np.asarray(decoded.image)[..., 0] / 255 - RAMP).max() < 1 / 128


def test_12_packed_bits_span_from_black_to_white(tmp_path):
    write_tiff(tmp_path / "a.tif", RAMP, 12)
    decoded = read_image(tmp_path / "a.tif")
    assert isinstance(decoded, DecodedImage)
    assert np.abs(np.asarray(decoded.image)[..., 0] / 255 - RAMP).max() < 1 / 128


@pytest.mark.parametrize(("bits", "order"), [(12, "<"), (16, ">")])
def test_white_at_0_in_forms_that_pillow_does_not_know_is_a_failed_row(tmp_path, bits, order):
    write_tiff(tmp_path / "a.tif", RAMP, bits, min_is_white=True, order=order)
    assert isinstance(read_image(tmp_path / "a.tif"), Failure)


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
