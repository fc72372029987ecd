"""Decoding: modes, orientation, and every failure as a value with its word."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from fgvc_cli.sources import images
from fgvc_cli.sources.images import DecodedImage, Failure, read_image, to_rgb

ROOT = Path(__file__).parents[2]
ORIENTATION = 0x0112
# What stored an upright picture under each EXIF orientation: the inverse of what turns it upright.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def picture(width=8, height=5) -> Image.Image:
    """Every pixel different, no symmetry."""
    values = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    return Image.fromarray(values)


def save(image, path, **options):
    image.save(path, **options)
    return path


def failure(path) -> Failure:
    result = read_image(path)
    assert isinstance(result, Failure)
    assert result.error
    assert result.error.isprintable()
    return result


def pixels(path) -> np.ndarray:
    result = read_image(path)
    assert isinstance(result, DecodedImage), result
    assert result.image.mode == "RGB"
    return np.asarray(result.image)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "ppm"])
def test_lossless_formats_come_out_as_they_are(tmp_path, ending):
    path = save(picture(), tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(pixels(path), np.asarray(picture()))


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_exif_orientation_comes_out_upright(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    method = STORED[orientation]
    stored = picture() if method is None else picture().transpose(method)
    options = {"lossless": True} if ending == "webp" else {}
    path = save(stored, tmp_path / f"a.{ending}", exif=exif, **options)
    np.testing.assert_array_equal(pixels(path), np.asarray(picture()))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"II*\0\xff\xff\xff\xff", b"nonsense", b"MM\0*\0\0\0\x08\0\x09"])
def test_a_broken_exif_keeps_the_picture_as_stored(tmp_path, exif):
    path = save(picture(), tmp_path / "a.png", exif=b"Exif\0\0" + exif)
    np.testing.assert_array_equal(pixels(path), np.asarray(picture()))


def test_an_exif_that_raises_keeps_the_picture(tmp_path, monkeypatch):
    path = save(picture(), tmp_path / "a.png")

    def broken(self):
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr(Image.Image, "getexif", broken)
    np.testing.assert_array_equal(pixels(path), np.asarray(picture()))


def grey(values, mode):
    return Image.fromarray(np.array([values], mode))


def palette_with_alpha():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 0, 0, 0])
    image.putdata([0, 1])
    image.info["transparency"] = b"\xff\x00"
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (1, 1), 1), [255, 255, 255]),
        (Image.new("L", (1, 1), 77), [77, 77, 77]),
        (Image.new("LA", (1, 1), (77, 255)), [77, 77, 77]),
        (Image.new("LA", (1, 1), (77, 0)), [255, 255, 255]),
        (Image.new("RGBA", (1, 1), (255, 0, 0, 51)), [255, 204, 204]),
        (Image.new("RGBA", (1, 1), (9, 8, 7, 255)), [9, 8, 7]),
        (Image.new("LA", (1, 1), (77, 255)).convert("PA"), [77, 77, 77]),
        (palette_with_alpha(), [10, 20, 30, 255, 255, 255]),
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), [255, 0, 0]),
        (Image.new("HSV", (1, 1), (0, 0, 128)), [128, 128, 128]),
        (grey([0, 257, 32896, 65535], "<u2"), [0, 1, 128, 255]),
        (grey([0, 257, 32896, 65535], ">u2"), [0, 1, 128, 255]),
        (grey([0, 257, 65535], "<i4"), [0, 1, 255]),
        (grey([-100, 0, 100], "<i4"), [0, 128, 255]),
        (grey([0, 1 << 20, 1 << 21], "<i4"), [0, 128, 255]),
        (grey([-1.0, 0.0, 1.0], "<f4"), [0, 128, 255]),
        (grey([np.nan, 2.0, 4.0, np.inf], "<f4"), [0, 0, 255, 0]),
        (grey([0.5, 0.5], "<f4"), [0, 0]),
        (grey([np.nan, np.nan], "<f4"), [0, 0]),
        (grey([-3e38, 0.0, 3e38], "<f4"), [0, 128, 255]),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_modes_become_rgb_by_known_values(image, expected):
    rgb, _ = to_rgb(image)
    assert rgb.mode == "RGB"
    got = np.asarray(rgb).reshape(-1, 3)
    want = np.array(expected)
    want = want.reshape(-1, 3) if len(want) == got.size else np.repeat(want[:, None], 3, axis=1)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("color", [(255, 255, 255), (0, 0, 0), (119, 119, 119), (220, 30, 40), (20, 60, 200)])
def test_lab_comes_back_as_the_colour_it_was_made_of(tmp_path, color):
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    to_lab = ImageCms.buildTransform(*profiles, "RGB", "LAB")
    path = save(to_lab.apply(Image.new("RGB", (1, 1), color)), tmp_path / "a.tif")
    assert np.abs(pixels(path)[0, 0].astype(int) - color).max() <= 3


def test_sixteen_bit_files_are_scaled_not_clipped(tmp_path):
    ramp = grey([0, 16448, 32896, 65535], "<u2")
    for path in (save(ramp, tmp_path / "a.png"), save(ramp, tmp_path / "a.tif")):
        assert pixels(path)[0, :, 0].tolist() == [0, 64, 128, 255]
    (tmp_path / "a.pgm").write_bytes(b"P5 4 1 65535\n" + np.array([0, 16448, 32896, 65535], ">u2").tobytes())
    assert pixels(tmp_path / "a.pgm")[0, :, 0].tolist() == [0, 64, 128, 255]


def test_cmyk_jpeg_file(tmp_path):
    path = save(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=100)
    assert np.abs(pixels(path).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_an_animation_gives_its_first_frame(tmp_path, ending):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue", "lime")]
    options = {"lossless": True} if ending == "webp" else {}
    path = save(frames[0], tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], **options)
    assert (pixels(path) == [255, 0, 0]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (30_000, 1), (30_000, 2_000)])
def test_thin_and_wide_pictures_pass(tmp_path, size):
    path = save(Image.new("L", size, 5), tmp_path / "a.png", compress_level=1)
    result = read_image(path)
    assert isinstance(result, DecodedImage)
    assert result.image.size == size


def test_the_content_decides_not_the_ending(tmp_path):
    path = save(picture(), tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(pixels(path), np.asarray(picture()))


def test_no_file_no_bytes_no_image(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    assert failure(tmp_path / "gone.jpg").status == "missing"
    assert failure(tmp_path / "text.jpg" / "a.jpg").status == "missing"
    assert failure(tmp_path / "nul\0.jpg").status == "missing"
    assert failure(tmp_path / "empty.jpg").status == "empty"
    assert failure(tmp_path / "text.jpg").status == "not_an_image"


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "bmp", "ppm"])
def test_half_a_file_is_truncated(tmp_path, ending):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    path = save(noise, tmp_path / f"a.{ending}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert failure(path).status == "truncated"


def test_a_damaged_stream_is_unreadable(tmp_path):
    path = save(picture(64, 64), tmp_path / "a.png")
    data = bytearray(path.read_bytes())
    data[60:80] = bytes(20)
    path.write_bytes(data)
    assert failure(path).status == "unreadable"


def test_folder_fifo_and_device_called_x_jpg_do_not_hang(tmp_path):
    (tmp_path / "x.jpg").mkdir()
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name, kind in (("x.jpg", "folder"), ("fifo.jpg", "FIFO"), ("zero.jpg", "device")):
        assert failure(tmp_path / name).status == "not_a_file"
        assert kind in failure(tmp_path / name).error


def test_a_link_to_itself_is_a_failure(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "a.jpg")
    assert failure(tmp_path / "a.jpg").status == "unreadable"


def test_a_decompression_bomb_is_refused_from_its_header(tmp_path):
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", b"")]
    data = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert failure(tmp_path / "a.png").status == "too_large"


def test_the_pixel_limit_is_the_documented_one(tmp_path, monkeypatch):
    path = save(picture(8, 5), tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 40)
    assert isinstance(read_image(path), DecodedImage)
    monkeypatch.setattr(images, "MAX_PIXELS", 39)
    assert failure(path).status == "too_large"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (PermissionError(13, "Permission denied"), "no_access"),
        (MemoryError(), "too_large"),
        (NotImplementedError("layout"), "unreadable"),
        (KeyError(271), "unreadable"),
        (EOFError("no more\nlines"), "truncated"),
    ],
)
def test_whatever_a_decoder_raises_becomes_one_line(tmp_path, monkeypatch, error, status):
    path = save(picture(), tmp_path / "a.png")

    def broken(self):
        raise error

    monkeypatch.setattr(Image.Image, "load", broken)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", broken)
    assert failure(path).status == status


def test_ctrl_c_is_not_a_failure_of_the_file(tmp_path, monkeypatch):
    path = save(picture(), tmp_path / "a.png")

    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read_image(path)


def test_postscript_is_never_run(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    assert failure(tmp_path / "a.jpg").status == "not_an_image"


def test_a_fresh_process_prints_nothing_about_bad_files(tmp_path):
    """libtiff prints past Python, and pytest holds warnings and logs back: hence a process of its own."""
    stream = io.BytesIO()
    picture(64, 64).save(stream, "TIFF", compression="tiff_adobe_deflate")
    tiff = stream.getvalue()
    damaged = bytearray(tiff)
    damaged[12:200] = bytes(188)
    samples = struct.pack("<HHI", 277, 3, 1)  # tag SamplesPerPixel, one short
    many = tiff.replace(samples + struct.pack("<H", 3), samples + struct.pack("<H", 999))
    assert many != tiff
    for name, data in (("libtiff", damaged), ("logging", many)):
        (tmp_path / f"{name}.tif").write_bytes(data)
    save(picture(), tmp_path / "warning.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    code = (
        "import sys; from pathlib import Path; from fgvc_cli.sources.images import read_image\n"
        "assert sum(hasattr(read_image(path), 'error') for path in Path(sys.argv[1]).iterdir()) == 2"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
