"""What the values of an image mean: colour profiles (ICC), by LittleCMS, and TIFFs of more than 8 bits per
sample, of signed or float ones, or packed in a way that Pillow does not unpack. Either -> sRGB of 8 bits.

Pillow drops what it does not know of such TIFFs (which end is white, the number of bits, the sign) or refuses
them. tifffile and imagecodecs, which read every width, byte order, packing and compression, are imported with
the first such file. Other TIFFs stay with Pillow. No torch here.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image, ImageChops, ImageCms

from fgvc_cli.sources.frames import BIG_ENDIAN_BIG, tiff_directories
from fgvc_cli.sources.stored import CannotRead

MAX_PROFILE_BYTES = 8 << 20
"""Larger profiles are ignored; those of presses take 0.5 to 3 MB, those of cameras and screens a few kB."""

SAME_WITHIN = 2
"""Levels of 255: a profile that moves no colour of a grid by more is sRGB, and there are many editions."""

INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
"""What lies in sRGB keeps its exact colour and what does not is clipped; perceptual rendering would move all
colours of a profile with tables, and the profiles of cameras and screens know no other than this one."""
FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
"""The darkest ink of a press becomes black rather than grey; nothing changes where black is black."""

IGNORED = "has a colour profile that cannot be used, and is read as sRGB"

_MODES = {"RGB ": ("RGB", "RGBA"), "GRAY": ("L",), "CMYK": ("CMYK",)}
"""Colour space of a profile -> the modes whose values it can describe."""


def to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    """The colours of an image as its profile means them, in sRGB.

    Args:
        image: RGB, RGBA, L or CMYK; perhaps changed in place. One of three colours that are all grey may have
            a profile of grey: that is how images of grey and alpha, of two levels or of a palette come here.
        profile: ICC, any bytes at all.

    Returns:
        The image in RGB, RGBA or L, as it came where the profile is sRGB or cannot be used; and a note for
        people in the second case, empty else.
    """
    try:
        if len(profile) > MAX_PROFILE_BYTES:
            return image, IGNORED
        # Browsers too read a grey image with a profile of three colours as one of these.
        if image.mode == "L" and _space(profile) == "RGB ":
            image = image.convert("RGB")
        if image.mode in ("RGB", "RGBA") and _space(profile) == "GRAY":
            return _grey_to_srgb(image, profile), ""
        transform = _transform(profile, image.mode)
        if transform is None:
            return image, ""
        if image.mode in ("RGB", "RGBA") and not image.readonly:
            transform.apply_in_place(image)  # a copy of a large image is as large again
            return image, ""
        return transform.apply(image), ""
    # Profiles are as hostile as images: any exception, and the pixels are good without it.
    except Exception:
        return image, IGNORED


def _grey_to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An image of three equal colours, and perhaps alpha, by a profile of grey.

    Raises:
        ValueError: it has colours.
    """
    red, green, blue, *alpha = image.split()
    if any(ImageChops.difference(red, other).getbbox() for other in (green, blue)):
        raise ValueError("a profile of grey on an image of colours")
    transform = _transform(profile, "L")
    if transform is None:
        return image
    grey = transform.apply(red)
    if alpha:
        grey.putalpha(alpha[0])
    return grey


def _open(profile: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(profile))


@functools.lru_cache(maxsize=32)
def _space(profile: bytes) -> str:
    return str(_open(profile).profile.xcolor_space)


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None where that changes nothing to speak of.

    Raises:
        Exception: a profile that is damaged or describes other colours than ``mode``.
    """
    space = _space(profile)
    if mode not in _MODES.get(space, ()):
        raise ValueError(f"a profile of {space} on an image of {mode}")
    target = "RGB" if mode == "CMYK" else mode
    end = ImageCms.createProfile("sRGB")
    # Grey comes out of RGB, which LittleCMS would otherwise need a profile of grey for.
    out = "RGB" if mode == "L" else target
    transform = ImageCms.buildTransform(_open(profile), end, mode, out, INTENT, FLAGS)
    if mode == "CMYK":
        return transform
    grid = _grid(mode)
    before = grid.convert("RGB").tobytes()
    after = transform.apply(grid).convert("RGB").tobytes()
    moved = max(abs(a - b) for a, b in zip(before, after, strict=True))
    return None if moved <= SAME_WITHIN else transform


def _grid(mode: str) -> Image.Image:
    """All greys, or 9 x 9 x 9 colours."""
    if mode == "L":
        return Image.frombytes("L", (256, 1), bytes(range(256)))
    steps = [min(32 * i, 255) for i in range(9)]
    colours = bytes(value for r in steps for g in steps for b in steps for value in (r, g, b))
    return Image.frombytes("RGB", (729, 1), colours).convert(mode)


MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How a TIFF starts: either byte order, the last two with offsets of 64 bits."""

_WHITE_0, _BLACK_0, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLOURS = {_WHITE_0: 1, _BLACK_0: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4}
"""Photometric interpretation -> samples that are colour; what is not here is not read in this depth."""
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
_BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _MAX, _FORMAT, _FORMAT_MAX = (
    258,
    259,
    262,
    274,
    277,
    281,
    339,
    341,
)
_SUBFILE, _SUB_DIRECTORIES, _PROFILE, _DNG_VERSION = 254, 330, 34675, 50706
_JPEG = 7
_BY_PILLOW = frozenset({1, 2, 3, 4, 5, 6, _JPEG, 8, 32771, 32773, 32809, 32946, 34676, 34677, 34925, 50000})
"""Compressions that every Pillow unpacks. Not JPEG 2000, JPEG XL, LERC, PNG and, in many builds, WebP."""
_BLOCK_VALUES = 1 << 20
MAX_SAMPLES = 64
"""Per pixel; those beyond the colours and an alpha are not shown, but are held while the file is read."""


def kind_of_tiff(stream: BinaryIO, number: int = 0) -> Literal["deep", "raw", ""]:
    """Whether an open file is a TIFF for ``read_deep``, one that a camera wrote as RAW, or neither.

    Args:
        number: of the page that is looked at.

    A RAW file looks like a small TIFF, that of its thumbnail. The stream is at its start again.
    """
    try:
        header = stream.read(10)
        if header[:4] not in MAGIC:
            return ""
        if header[8:10] == b"CR":
            return "raw"
        stream.seek(0)
        directory = next(itertools.islice(tiff_directories(stream), number, None))
        if _DNG_VERSION in directory or (_SUB_DIRECTORIES in directory and directory.get(_SUBFILE, 0) & 1):
            return "raw"
        bits, formats = directory.get(_BITS, (1,)), directory.get(_FORMAT, (1,))
        by_pillow = directory.get(_COMPRESSION, 1) in _BY_PILLOW and header[:4] != BIG_ENDIAN_BIG
        return "deep" if not by_pillow or max(bits) > 8 or not {*formats} <= {_UNSIGNED, _UNDEFINED} else ""
    except Exception:  # any exception, as in ``read_image``: Pillow says what is wrong with the file
        return ""
    finally:
        stream.seek(0)


NARROW = (
    "uses under 1/16 of its range, and is read by its declared depth: if its values have fewer bits than the "
    "file declares (12 in 16), it comes out dark; scale such files up first"
)


def read_deep(
    stream: BinaryIO,
    max_pixels: int,
    before: Callable[[Image.Image], None] | None = None,
    *,
    use_profile: bool = True,
    number: int = 0,
) -> tuple[Image.Image, int, str]:
    """A page of a TIFF -> an RGB image as it is stored, its EXIF orientation, and a note for people.

    Integers run from black to white over the range of their declared bits, or up to MaxSampleValue where that
    declares fewer (2^n - 1); signed ones from the least to the greatest value of their type. Floats run from
    0 to 1 where all lie there, or else from their own least to their greatest finite value; NaN becomes the
    least. Alpha lies over white.

    Args:
        before: called with an empty image of the right size before the pixels are decoded.
        use_profile: bring the colours of an embedded profile to those of sRGB.

    Returns:
        The last is empty where there is nothing to say.

    Raises:
        CannotRead: too many pixels, cut short, or a kind that is not read.
        Exception: whatever the decoders raise for a damaged file.
    """
    import tifffile

    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    with tifffile.TiffFile(stream) as tiff:
        page: Any = tiff.pages[number]
        _check(page, stream, max_pixels)
        if before:
            before(Image.new("1", (page.imagewidth, page.imagelength)))
        planes = _planes(page.asarray(maxworkers=1), page)
        # tifffile has brought the colours of a JPEG from YCbCr to RGB.
        photometric = _RGB if _is_jpeg_ycbcr(page) else int(page.photometric)
        count = _COLOURS[photometric]
        # Further bands and alpha have ranges of their own.
        floor, top = _range(page, planes[:count])
        used = _used(planes[:count], floor, top)
        if photometric == _PALETTE:
            planes = np.asarray(page.colormap)[:, planes[0].clip(max=len(page.colormap[0]) - 1)]
            floor, top, count, used = 0.0, 65535.0, 3, 1.0
        if page.dtype.itemsize == 1 and page.bitspersample == 8:
            used = 1.0  # nothing is said of such an image in other formats either
        colours = [_bytes(plane, floor, top) for plane in planes[:count]]
        if photometric == _WHITE_0:
            colours = [255 - colours[0]]
        mode = {1: "L", 3: "RGB", 4: "CMYK"}[count]
        image = Image.merge(mode, [Image.fromarray(colour) for colour in colours])
        note = NARROW if used < 1 / 16 else ""
        tag = page.tags.get(_PROFILE)
        if use_profile and tag:
            image, problem = to_srgb(image, bytes(tag.value) if isinstance(tag.value, bytes) else b"")
            note = note or problem
        image = image.convert("RGB")
        if len(planes) > count and tuple(page.extrasamples[:1]) in ((1,), (2,)):
            alpha = Image.fromarray(_bytes(planes[count], *_alpha_range(page, planes[count])))
            image = _over_white(image, alpha, premultiplied=page.extrasamples[0] == 1)
        return image, _orientation(page), note


def _orientation(page: Any) -> int:
    """As EXIF numbers them; of a value that is none of these 1."""
    tag = page.tags.get(_ORIENTATION)
    value = tag.value if tag else 1
    with contextlib.suppress(TypeError, ValueError, IndexError):
        return int(value[0] if isinstance(value, tuple) else value)  # some writers store a list
    return 1


def _is_jpeg_ycbcr(page: Any) -> bool:
    return int(page.photometric) == _YCBCR and int(page.compression) == _JPEG


def _check(page: Any, stream: BinaryIO, max_pixels: int) -> None:
    """Before anything is allocated."""
    pixels = page.imagewidth * page.imagelength * page.imagedepth
    chunk = math.prod(page.chunks) if page.is_tiled else 0
    if max(pixels, chunk // max(page.samplesperpixel, 1)) > max_pixels:
        raise CannotRead("too_large", f"{max(pixels, chunk)} pixels, the limit is {max_pixels}")
    if not pixels or page.dtype is None:
        raise CannotRead("unreadable", f"a TIFF of {page.bitspersample} bits and no size or type of sample")
    if page.samplesperpixel > MAX_SAMPLES:
        reason = f"{page.samplesperpixel} samples per pixel, the limit is {MAX_SAMPLES}"
        raise CannotRead("too_large", reason)
    if pixels * page.samplesperpixel * page.dtype.itemsize > 8 * max_pixels:
        raise CannotRead("too_large", f"more than {8 * max_pixels} bytes of pixels")
    photometric = _RGB if _is_jpeg_ycbcr(page) else int(page.photometric)
    if photometric not in _COLOURS or page.dtype.kind not in "buif":
        kind = getattr(page.photometric, "name", photometric)
        reason = f"a TIFF of {page.bitspersample} bits whose colours are {kind}, which is not read"
        raise CannotRead("unreadable", f"{reason}; save it as RGB")
    if page.samplesperpixel < _COLOURS[photometric]:
        raise CannotRead("unreadable", f"{page.samplesperpixel} samples per pixel, expected more")
    if photometric == _PALETTE and (page.colormap is None or not np.size(page.colormap)):
        reason = "a TIFF whose values are places in a palette (ColorMap), which the file lacks"
        raise CannotRead("unreadable", f"{reason}; save it as RGB or grey")
    size = stream.seek(0, 2)
    ends = (start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=False))
    if max(ends, default=0) > size:
        raise CannotRead("truncated", "the TIFF ends before its pixels do")


def _planes(values: np.ndarray, page: Any) -> np.ndarray:
    """(S, H, W), S samples per pixel."""
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    if samples == 1 or int(page.planarconfig) == 2:
        return values.reshape(samples, -1, height, width)[:, 0]
    return np.moveaxis(values.reshape(-1, height, width, samples)[0], -1, 0)


def _range(page: Any, planes: np.ndarray) -> tuple[float, float]:
    """The values of black and white (of white and black where white is 0)."""
    bits = int(page.bitspersample)
    if planes.dtype.kind == "f":
        finite = [block[np.isfinite(block)] for block in _blocks(planes)]
        least = min((float(block.min()) for block in finite if block.size), default=0.0)
        most = max((float(block.max()) for block in finite if block.size), default=1.0)
        return (0.0, 1.0) if least >= 0 and most <= 1 else (least, most)
    if planes.dtype.kind == "i":
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    top = 2.0**bits - 1
    tag = page.tags.get(_MAX) or page.tags.get(_FORMAT_MAX)
    said = float(np.max(tag.value)) if tag else top
    # Any other maximum is a statistic of the picture; 2^n - 1 says how many bits the sensor had.
    if 255 < said < top and math.log2(said + 1).is_integer() and planes.max() <= said:
        top = said
    return 0.0, top


def _alpha_range(page: Any, alpha: np.ndarray) -> tuple[float, float]:
    """The values of what is clear and what is not seen through: as of colours, but that floats start at 0,
    and that a greatest value of 2^n - 1 with at least 8 bits is the full one."""
    floor, top = _range(page, alpha[None])
    most = float(alpha.max())
    if alpha.dtype.kind == "f":
        return 0.0, max(top, 1.0)
    if alpha.dtype.kind == "u" and 255 <= most < top and math.log2(most + 1).is_integer():
        top = most
    return floor, top


def _used(planes: np.ndarray, floor: float, top: float) -> float:
    if planes.dtype.kind == "f":
        return 1.0
    least = float(planes.min()) if planes.dtype.kind == "i" else 0.0
    return (float(planes.max()) - least) / (top - floor)


def _blocks(plane: np.ndarray) -> Iterator[np.ndarray]:
    rows = max(1, _BLOCK_VALUES // max(plane.shape[-1], 1))
    for one in plane.reshape(-1, *plane.shape[-2:]) if plane.ndim > 2 else (plane,):
        for start in range(0, len(one), rows):
            yield one[start : start + rows]


def _bytes(plane: np.ndarray, floor: float, top: float) -> np.ndarray:
    """(H, W) of any type -> uint8, ``floor`` being 0 and ``top`` 255."""
    if plane.dtype == np.uint8 and (floor, top) == (0, 255):
        return plane
    if plane.dtype == np.uint16:  # a table is several times as fast
        return _bytes(np.arange(1 << 16, dtype=np.uint32)[None], floor, top)[0][plane]
    whole = plane.dtype.kind != "f"
    parts = []
    for block in _blocks(plane):
        values = np.nan_to_num(block.astype(np.float64), nan=floor, posinf=floor, neginf=floor)
        with np.errstate(all="ignore"):  # a range beyond float64 is no picture
            values = np.nan_to_num((values - floor) / (top - floor)) * 255
        # Integers as 16-bit greys of other formats are: divided, not rounded.
        parts.append((np.floor(values) if whole else values.round()).clip(0, 255).astype(np.uint8))
    return np.concatenate(parts)


def _over_white(image: Image.Image, alpha: Image.Image, *, premultiplied: bool) -> Image.Image:
    if premultiplied:
        over = np.asarray(image).astype(np.int16) + (255 - np.asarray(alpha).astype(np.int16))[..., None]
        return Image.fromarray(over.clip(0, 255).astype(np.uint8))
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=alpha)
    return white
