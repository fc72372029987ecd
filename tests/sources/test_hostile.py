"""Hostile files through every kind of source: real ones (shared/data/README.md; skipped where they are
absent) and made ones."""

import io
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvc_cli.sources.color import kind_of_tiff
from fgvc_cli.sources.find import find_images
from fgvc_cli.sources.images import DecodedImage, Failure, read_image
from fgvc_cli.sources.metadata import JPEG_MAGIC, PNG_MAGIC

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(shared):
    files = sorted(path for path in (shared / "data/hostile/go-fuzz-corpus").rglob("*") if path.is_file())
    assert len(files) > 1000
    return files


def decodes(path: Path) -> bool:
    """What Pillow itself says, to hold ``read_image`` against."""
    try:
        with Image.open(path) as image:
            image.load()
    except Exception:
        return False
    return True


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_every_file_is_an_rgb_image_or_a_failure_and_no_readable_one_is_lost(corpus):
    results = {path: read_image(path) for path in corpus}
    for path, result in results.items():
        if isinstance(result, Failure):
            assert result.error.isprintable(), path
        else:
            assert result.image.mode == "RGB", path
    read = {path for path, result in results.items() if isinstance(result, DecodedImage)}
    by_pillow = {path for path in corpus if decodes(path)}
    assert by_pillow <= read
    for path in read - by_pillow:  # what tifffile reads beyond it, and what Pillow loses over metadata
        with path.open("rb") as stream:
            deep = kind_of_tiff(stream) == "deep"
        assert deep or path.read_bytes().startswith((PNG_MAGIC, JPEG_MAGIC)), path
    words = {result.status for result in results.values() if isinstance(result, Failure)}
    assert words == {"empty", "not_an_image", "truncated", "too_large", "unreadable"}


def test_nothing_reaches_stdout_or_stderr(corpus):
    """In a fresh process, as libtiff writes past Python and pytest holds warnings back."""
    script = (
        "import sys; from pathlib import Path; from fgvc_cli.sources.images import read_image\n"
        "for line in sys.stdin: read_image(Path(line.rstrip('\\n')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input="\n".join(map(str, corpus)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["Landscape", "Portrait"])
def test_all_exif_orientations_come_out_upright_and_alike(shared, name):
    folder = shared / "data/hostile/exif-orientation"
    reference = read_image(folder / f"{name}_1.jpg").image
    assert (reference.width > reference.height) == (name == "Landscape")
    for orientation in range(9):
        image = read_image(folder / f"{name}_{orientation}.jpg").image
        assert image.size == reference.size
        # Each file was compressed on its own, so alike means in the small.
        small = [np.asarray(i.resize((32, 32)), np.int16) for i in (image, reference)]
        assert np.abs(small[0] - small[1]).mean() < 4, orientation


def encoded(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def bomb() -> bytes:
    """The header of a PNG of 100,000 x 100,000."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)), (b"IDAT", b""))
    packed = (struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def halves(size: tuple[int, int] = (32, 48)) -> Image.Image:
    """Upright: red over blue, with a green corner at the top left."""
    image = Image.new("RGB", size, "blue")
    image.paste("red", (0, 0, size[0], size[1] // 2))
    image.paste("lime", (0, 0, size[0] // 2, size[1] // 4))
    return image


STORED_AS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def turned(orientation: int) -> bytes:
    """A JPEG that its EXIF turns to ``halves()``."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    method = STORED_AS.get(orientation)
    stored = halves() if method is None else halves().transpose(method)
    return encoded(stored, "JPEG", exif=exif, quality=100, subsampling=0)


def palette_with_alpha() -> Image.Image:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([10, 20, 30, 200, 0, 0])
    return image


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[bytes, str]]:
    """Name -> content, and the status it must have."""
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    jpeg = encoded(halves(), "JPEG")
    wide = Image.new("L", (30_000, 20), 9)
    grey = Image.fromarray(np.array([[0, 257, 65535]], "<u2"))
    files = {
        "animated.gif": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "ok"),
        "bomb.png": (bomb(), "too_large"),
        "cmyk.jpg": (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), "ok"),
        "dot.png": (encoded(Image.new("RGB", (1, 1)), "PNG"), "ok"),
        "empty.jpg": (b"", "empty"),
        "grey16.png": (encoded(grey, "PNG"), "ok"),
        "palette.png": (encoded(palette_with_alpha(), "PNG", transparency=b"\xff\x00"), "ok"),
        "png.jpg": (encoded(halves(), "PNG"), "ok"),
        "text.jpg": (b"not a picture", "not_an_image"),
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "wide.png": (encoded(wide, "PNG"), "ok"),
    }
    return files | {f"z{i}.jpg": (turned(i), "ok") for i in range(1, 9)}


KINDS = ["folder", "zip", "tar", "tar.gz", "memory"]


def stored(kind: str, root: Path, files: dict[str, bytes]) -> str:
    """The files as a source of this kind."""
    if kind == "folder":
        for name, data in files.items():
            (root / name).write_bytes(data)
        return str(root)
    if kind == "memory":
        import fsspec

        for name, data in files.items():
            fsspec.filesystem("memory").pipe_file(f"{root}/{name}", data)
        return f"memory:/{root}"
    out = root / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return str(out)
    with tarfile.open(out, "w:gz" if kind == "tar.gz" else "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(out)


@pytest.mark.parametrize("kind", KINDS)
def test_made_files_have_their_status_and_their_pixels_through_every_source(made, tmp_path, kind):
    source = stored(kind, tmp_path, {name: data for name, (data, _) in made.items()})
    results = {found.name: read_image(found.path) for found in find_images([source])}
    words = {n: "ok" if isinstance(r, DecodedImage) else r.status for n, r in results.items()}
    assert words == {name: status for name, (_, status) in made.items()}
    pixels = {n: np.asarray(r.image, int) for n, r in results.items() if isinstance(r, DecodedImage)}
    for name, colour in (
        ("animated.gif", [255, 0, 0]),
        ("cmyk.jpg", [255, 0, 0]),
        ("palette.png", [255] * 3),
    ):
        assert np.abs(pixels[name] - colour).max() <= 3, name
    assert pixels["grey16.png"][0, :, 0].tolist() == [0, 1, 255]
    assert pixels["wide.png"].shape == (20, 30_000, 3)
    upright = np.asarray(halves(), int)
    assert (pixels["png.jpg"] == upright).all()
    for i in range(1, 9):
        assert pixels[f"z{i}.jpg"].shape == upright.shape, i
        assert np.abs(pixels[f"z{i}.jpg"] - upright).mean() < 6, i


def test_what_is_no_file_is_a_row_and_never_waits(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").mkdir()
    (tmp_path / "b.jpg" / "c.jpg").write_bytes(turned(1))
    rows = [(found.name, read_image(found.path)) for found in find_images([tmp_path])]
    assert [(name, getattr(r, "status", "ok")) for name, r in rows] == [
        ("a.jpg", "not_a_file"),
        ("b.jpg", "not_a_file"),
        ("b.jpg/c.jpg", "ok"),
    ]


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_real_files_answer_alike_through_every_source(corpus, tmp_path, kind):
    chosen = {f"{i:04}.jpg": path for i, path in enumerate(corpus[::6])}
    source = stored(kind, tmp_path, {name: path.read_bytes() for name, path in chosen.items()})
    found = list(find_images([source]))
    assert [f.name for f in found] == sorted(chosen)
    for name, path in ((f.name, f.path) for f in found):
        there, here = read_image(path), read_image(chosen[name])
        if isinstance(here, Failure):
            assert there == here, chosen[name]
        else:
            assert np.array_equal(there.image, here.image), chosen[name]
