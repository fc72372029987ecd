"""HEIC, AVIF, JPEG 2000 and camera RAW: read upright, or the row says what to install."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from fgvc_cli.sources import images
from fgvc_cli.sources.images import DecodedImage, Failure, Reading, read_image

ROOT = Path(__file__).parents[2]


def picture(width=96, height=64) -> np.ndarray:
    """No symmetry: red on the right, green at the top left."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = (250, 0, 0)
    pixels[: height // 2, : width // 2] = (0, 250, 0)
    return pixels


def exif(orientation: int) -> Image.Exif:
    result = Image.Exif()
    result[0x0112] = orientation
    return result


def write_dng(path, orientation=1, preview="jpeg"):
    """A RAW file of 384 x 256, and in front of it a preview of 96 x 64."""
    tags = [(50706, "B", 4, (1, 4, 0, 0), True), (50707, "B", 4, (1, 1, 0, 0), True)]
    tags += [(number, "s", 0, "Test", True) for number in (271, 272, 50708)]
    tags += [(274, "H", 1, orientation, True), (50778, "H", 1, 21, True)]
    tags += [(50721, "2i", 9, (1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1), True)]
    tags += [(50728, "2I", 3, (1, 1, 1, 1, 1, 1), True)]
    mosaic = [
        (33421, "H", 2, (2, 2), True),
        (33422, "B", 4, (0, 1, 1, 2), True),
        (50717, "I", 1, 65535, True),
    ]
    sensor = np.full((256, 384), 1000, np.uint16)
    sensor[:, 192:] = 40_000
    with tifffile.TiffWriter(path) as tiff:
        if preview:
            how = {"compression": "jpeg", "compressionargs": {"level": 95}} if preview == "jpeg" else {}
            tiff.write(
                picture(), photometric="rgb", subfiletype=1, subifds=1, extratags=tags, rowsperstrip=64, **how
            )
        else:
            mosaic += tags
        tiff.write(sensor, photometric="cfa", subfiletype=0, extratags=mosaic, metadata=None)
    return path


def upright(path) -> np.ndarray:
    photo = read_image(path)
    assert isinstance(photo, DecodedImage), photo
    assert photo.size == photo.image.size
    return np.asarray(photo.image).astype(int)


@pytest.mark.parametrize("ending", ["heic", "avif", "dng"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_is_held_upright(tmp_path, ending, orientation):
    path = tmp_path / f"a.{ending}"
    if ending == "dng":
        write_dng(path, orientation)
    else:
        if ending == "heic":
            pytest.importorskip("pillow_heif").register_heif_opener()
        Image.fromarray(picture()).save(path, exif=exif(orientation), quality=95)
    Image.fromarray(picture()).save(tmp_path / "a.png", exif=exif(orientation))
    wanted = upright(tmp_path / "a.png")
    got = upright(path)
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).mean() < 4


def test_a_heic_that_says_itself_how_it_is_held_is_not_turned_twice(tmp_path):
    pytest.importorskip("pillow_heif").register_heif_opener()
    image = Image.fromarray(picture())
    image.info["exif"] = exif(6).tobytes()  # from there, the writer notes it in both places
    image.save(tmp_path / "a.heic", quality=95)
    assert b"irot" in (tmp_path / "a.heic").read_bytes()
    assert np.abs(upright(tmp_path / "a.heic") - np.rot90(picture(), -1)).mean() < 4


def test_jpeg_2000_is_read(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.jp2")
    np.testing.assert_array_equal(upright(tmp_path / "a.jp2"), picture())


@pytest.mark.parametrize("orientation", [1, 2, 6])
def test_a_preview_without_compression(tmp_path, orientation):
    write_dng(tmp_path / "a.dng", orientation, preview="plain")
    Image.fromarray(picture()).save(tmp_path / "a.png", exif=exif(orientation))
    np.testing.assert_array_equal(upright(tmp_path / "a.dng"), upright(tmp_path / "a.png"))


@pytest.mark.parametrize(("orientation", "shape"), [(1, (256, 384, 3)), (6, (384, 256, 3))])
def test_a_raw_without_a_preview_is_developed(tmp_path, orientation, shape):
    developed = upright(write_dng(tmp_path / "a.dng", orientation, preview=None))
    assert developed.shape == shape
    bright = developed[:, -50:] if orientation == 1 else developed[-50:]
    assert bright.mean() > developed.mean() + 50


@pytest.mark.parametrize(("orientation", "shape"), [(1, (256, 384, 3)), (6, (384, 256, 3))])
def test_a_raw_with_a_preview_is_developed_on_request(tmp_path, orientation, shape):
    write_dng(tmp_path / "a.dng", orientation)
    assert upright(tmp_path / "a.dng").shape != shape
    photo = read_image(tmp_path / "a.dng", rule=Reading(raw="develop"))
    assert isinstance(photo, DecodedImage), photo
    assert np.asarray(photo.image).shape == shape


def test_the_content_decides_and_the_thumbnail_of_a_raw_is_not_taken_for_the_image(tmp_path):
    write_dng(tmp_path / "a.tif", preview=None)
    assert upright(tmp_path / "a.tif").shape == (256, 384, 3)


def ftyp(brand: bytes, *others: bytes) -> bytes:
    body = b"ftyp" + brand + bytes(4) + b"".join(others)
    return struct.pack(">I", len(body) + 4) + body + bytes(64)


RAW_STARTS = {
    "a.cr2": b"II*\0\x10\0\0\0CR\2\0" + bytes(64),
    "a.cr3": ftyp(b"crx ", b"crx ", b"isom"),
    "a.orf": b"IIRO\x08\0\0\0" + bytes(64),
    "a.rw2": b"IIU\0\x18\0\0\0" + bytes(64),
    # NEF and ARW: a small image first, the sensor's in a directory below.
    "a.nef": b"MM\0*\0\0\0\x08\0\2" + struct.pack(">HHIIHHII", 254, 4, 1, 1, 330, 4, 1, 8) + bytes(64),
    "a.arw": b"II*\0\x08\0\0\0\2\0" + struct.pack("<HHIIHHII", 254, 4, 1, 1, 330, 4, 1, 8) + bytes(64),
}


@pytest.mark.parametrize("name", RAW_STARTS)
def test_a_raw_without_the_extra_says_what_to_install(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "rawpy", None)
    (tmp_path / name).write_bytes(RAW_STARTS[name])
    failure = read_image(tmp_path / name)
    assert isinstance(failure, Failure)
    assert failure.status == "unreadable"
    assert "pip install 'fgvc[raw]'" in failure.error


@pytest.mark.parametrize("start", [ftyp(b"heic"), ftyp(b"mif1", b"mif1", b"heic"), ftyp(b"msf1", b"hevc")])
def test_a_heic_without_the_extra_says_what_to_install(tmp_path, monkeypatch, start):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(start)
    failure = read_image(tmp_path / "a.heic")
    assert isinstance(failure, Failure)
    assert "pip install 'fgvc[heif]'" in failure.error


def test_an_avif_needs_no_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    Image.fromarray(picture()).save(tmp_path / "a.avif")
    assert upright(tmp_path / "a.avif").shape == picture().shape


@pytest.mark.parametrize("ending", ["heic", "dng"])
def test_the_limit_of_pixels(tmp_path, monkeypatch, ending):
    path = tmp_path / f"a.{ending}"
    if ending == "dng":
        write_dng(path)
    else:
        pytest.importorskip("pillow_heif").register_heif_opener()
        Image.fromarray(picture()).save(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 96 * 64 - 1)
    failure = read_image(path)
    assert isinstance(failure, Failure)
    assert failure.status == "too_large"


def test_damaged_ones_are_values(tmp_path):
    """In a fresh process, which none of them may end."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    Image.fromarray(picture()).save(tmp_path / "whole.heic")
    write_dng(tmp_path / "whole.dng")
    write_dng(tmp_path / "plain.dng", preview=None)
    rng = np.random.default_rng(0)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for number in range(20):
            data = bytearray(whole[: rng.integers(64, len(whole))] if number % 2 else whole)
            for place in rng.integers(12, min(len(data), 900), 4):
                data[place] = rng.integers(256)
            (tmp_path / f"{number}-{path.name}").write_bytes(data)
    code = (
        "import sys; from pathlib import Path; from fgvc_cli.sources.images import read_image\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()): assert read_image(path)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
