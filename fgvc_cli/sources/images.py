"""Decoding images: a file or stored image -> an upright RGB image, or the failure as a value.

No torch here: this module is what a decoding worker imports.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import importlib
import io
import logging
import os
import stat
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol

import numpy as np

# Pillow registers its plugins on first use, from whichever thread comes first; naming them here is safe.
from PIL import (
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageCms,
    Jpeg2KImagePlugin,  # noqa: F401
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from fgvc_cli.sources.archives import member_within
from fgvc_cli.sources.boxes import Placed, Region
from fgvc_cli.sources.color import NARROW, kind_of_tiff, read_deep, to_srgb
from fgvc_cli.sources.frames import (
    AS_VIDEO,
    AVIF_BRANDS,
    HEIF_BRANDS,
    RAW_BRAND,
    Frame,
    read_video,
    video_format,
)
from fgvc_cli.sources.metadata import Info, Taken, read_taken, read_video_tags, without_metadata
from fgvc_cli.sources.stored import CannotRead, FailureStatus, Stored

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000")
"""What is decoded, in Pillow's names. Its other plugins stay shut to hostile files (EPS runs Ghostscript)."""

MAX_PIXELS = 200_000_000
"""Largest image, pixels: the largest phone sensors pass, decompression bombs do not. Decoding takes 4
bytes per pixel, several times that where the mode has to be converted."""

OK: Literal["ok"] = "ok"


class ReadRule(Protocol):
    """What of ``config.Preprocess`` decides what the pixels of a file are."""

    @property
    def color_profile(self) -> Literal["srgb", "ignore"]: ...
    @property
    def raw(self) -> Literal["preview", "develop"]: ...


class Reading(NamedTuple):
    """A ``ReadRule`` by itself."""

    color_profile: Literal["srgb", "ignore"] = "srgb"
    raw: Literal["preview", "develop"] = "preview"


TO_SHOW = Reading()
"""For people: true colours."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image, upright as its EXIF says, mode RGB."""

    image: Image.Image
    full_size: tuple[int, int] | None = None
    """(width, height) of the upright image, pixels, where ``image`` is a smaller copy of it."""

    note: str = ""
    """What the user should know about how it was read; said once per run."""
    taken: Taken = Taken()
    """When, where and with what; blank where not asked for."""
    by_rule: bool = True
    """Whether another ``ReadRule`` may give other pixels: not without a colour profile."""
    placed: Placed | None = None
    """Where ``image`` lies in the image of the file, where it is what a box shows of it."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the upright image, pixels; of a box, of what is cut."""
        return self.full_size or self.image.size

    def within(self, region: Region) -> DecodedImage | Failure:
        """What a box shows of it."""
        try:
            placed = region.place(*self.size)
        except CannotRead as error:
            return Failure(error.status, _one_line(str(error)))
        # ``Image.crop`` shares nothing with the image, which may then go.
        cut = self.image.crop(placed.region)
        return DecodedImage(cut, None, self.note, self.taken, self.by_rule, placed)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no image."""

    status: FailureStatus
    error: str
    """One line for people."""


Prepare = Callable[[Image.Image], None]
"""Called with an opened image before its pixels are decoded; may ask for a smaller copy (``Image.draft``)."""


def read_image(
    path: Path | str | Stored,
    prepare: Prepare | None = None,
    rule: ReadRule = TO_SHOW,
    *,
    exif: bool = False,
) -> DecodedImage | Failure:
    """Decode one image; whatever the file holds, the answer is a value and nothing goes to stderr (but
    for a line of LibRaw's on a damaged RAW file).

    The first frame of an animation; ``to_rgb`` says what becomes of other modes. An EXIF that cannot be read
    leaves the image as it is stored. Never waits for a FIFO or opens a device.

    The first call silences what Pillow warns of and libtiff prints, for the process.

    Args:
        path: a file, an image in an archive or a remote store, or a box of one of these.
        rule: what colour profiles and camera RAW come to; a checkpoint's ``preprocess`` for its model.
        exif: also find out when, where and with what it was taken.

    Raises:
        Nothing for a bad file.
    """
    if isinstance(path, Region):
        # Of a smaller copy, which ``prepare`` may ask for, little would be left of a box.
        whole = read_image(path.path, None, rule, exif=exif)
        return whole if isinstance(whole, Failure) else whole.within(path)
    _quiet_decoders()
    frame = path if isinstance(path, Frame) else None
    path = frame.path if frame else path
    try:
        with path.open() if isinstance(path, Stored) else _open_file(path) as stream:
            if not stream.read(1):
                return Failure("empty", "the file has no bytes")
            stream.seek(0)
            if frame and frame.every_s:
                image, tags = read_video(stream, frame, MAX_PIXELS)
                return DecodedImage(image, taken=read_video_tags(tags, frame.second) if exif else Taken())
            return _decode(stream, prepare, rule, frame.number if frame else 0, exif=exif)
    except CannotRead as error:
        return Failure(error.status, _one_line(str(error)))
    # Hostile files bring out any exception in Pillow: OSError, ValueError, TypeError, SyntaxError,
    # IndexError, KeyError, struct.error, NotImplementedError, MemoryError.
    except Exception as error:
        return _failure(error)


def _decode(
    stream: BinaryIO, prepare: Prepare | None, rule: ReadRule, number: int = 0, *, exif: bool = False
) -> DecodedImage | Failure:
    """An open seekable stream -> an image in it; raises what the decoder raises.

    Args:
        number: of the frame or page.
    """
    kind = _kind_of(stream, number)
    if kind == "raw":
        return _decode_raw(stream, prepare, rule, exif=exif)
    if kind == "deep":
        taken = _taken_of_tiff(stream) if exif else Taken()
        use_profile = rule.color_profile == "srgb"
        deep, orientation, notes = read_deep(
            stream, MAX_PIXELS, prepare, use_profile=use_profile, number=number
        )
        upright = _UPRIGHT.get(orientation)
        return DecodedImage(deep if upright is None else deep.transpose(upright), note=notes, taken=taken)
    turned = kind == "heif" and _is_turned_by_container(stream)
    stream, info = without_metadata(stream)
    with _open_heif(stream) if kind == "heif" else _open_image(stream) as image:
        if (pixels := image.width * image.height) > MAX_PIXELS:
            return Failure("too_large", f"{pixels} pixels, the limit is {MAX_PIXELS}")
        stored_size = image.size
        if number:
            image.seek(number)
            stored_size = image.size
        if prepare:
            prepare(image)
        # Only a JPEG comes smaller; a TIFF may change its size too, as Pillow turns it while it loads.
        full_size = stored_size if image.size != stored_size else None
        sixteen_bits = "16" in str(image.tile[0][3]) if image.tile else False
        # A tag of the wrong type, which Pillow would trip over while it turns a TIFF.
        if not isinstance(image.info.get("xmp", b""), bytes):
            del image.info["xmp"]
        # Before the pixels are read: a TIFF that is turned upright loses its tags.
        taken = _taken(image, info) if exif else Taken()
        _load(image, stream)
        upright = _orientation(image, info)
        if kind == "heif" and not turned:
            upright = _UPRIGHT.get(image.info.get("original_orientation") or 1)
        profile = info.get("icc_profile") or image.info.get("icc_profile")
        rgb, note = to_rgb(image, profile if rule.color_profile == "srgb" else None)
        if sixteen_bits and _is_narrow(image):
            note = NARROW
    by_rule = profile is not None
    if upright is None:
        return DecodedImage(rgb, full_size, note, taken, by_rule)
    if full_size and upright in _TURNED:
        full_size = full_size[::-1]
    return DecodedImage(rgb.transpose(upright), full_size, note, taken, by_rule)


class _Png(PngImagePlugin.PngImageFile):
    """What follows the pixels of a PNG may be damaged."""

    def load_end(self) -> None:
        with contextlib.suppress(Exception):
            super().load_end()


class _Tiff(TiffImagePlugin.TiffImageFile):
    """Turning a TIFF upright, for which Pillow reads its EXIF, may fail."""

    def load_end(self) -> None:
        with contextlib.suppress(Exception):
            super().load_end()


_OWN: dict[str, Any] = {"PNG": _Png, "TIFF": _Tiff, "JPEG": JpegImagePlugin.JpegImageFile}
"""Instead of Pillow's own; a JPEG that holds further ones (MPO) is its first."""


def _open_image(stream: BinaryIO) -> Any:
    """``Image.open`` without its limit of pixels, which is the process's, and with our plugins.

    Raises:
        UnidentifiedImageError: none of ``FORMATS``.
        Exception: whatever the plugins raise.
    """
    start = stream.read(16)
    for form in FORMATS:
        factory, accept = Image.OPEN[form]
        if not accept or accept(start) is True:
            stream.seek(0)
            with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
                return _OWN.get(form, factory)(stream)
    raise UnidentifiedImageError


def _open_heif(stream: BinaryIO) -> Any:
    return _extra("pillow_heif", "heif", "HEIC").HeifImageFile(stream)


def _is_narrow(image: Image.Image) -> bool:
    """Whether an image that was stored with 16 bits holds no value of more than 12."""
    if image.mode.startswith("I"):
        return image.getextrema()[1] < 4096  # type: ignore[operator]
    # Pillow has kept the high byte only.
    colours = image.convert("RGB").getextrema() if image.mode != "RGB" else image.getextrema()
    return max(high for _, high in colours) < 16  # type: ignore[misc]


_BY_PILLOW = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8")
"""First bytes of JPEG, PNG and GIF: nearly all images, of which Pillow misses nothing."""


def _kind_of(stream: BinaryIO, number: int = 0) -> Literal["deep", "raw", "heif", ""]:
    """What of a file, or of a page of it, Pillow alone would miss, by its first bytes; the stream is at its
    start again."""
    start = stream.read(64)
    stream.seek(0)
    if start.startswith(_BY_PILLOW):
        return ""
    if video_format(start):
        raise CannotRead("not_an_image", AS_VIDEO)
    if start[4:8] == b"ftyp":
        brands = [start[at : at + 4] for at in (8, *range(16, min(int.from_bytes(start[:4], "big"), 64), 4))]
        if brands[0] == RAW_BRAND:
            return "raw"
        return "heif" if HEIF_BRANDS.intersection(brands) and not AVIF_BRANDS.intersection(brands) else ""
    return "raw" if start[:4] in _RAW_MAGIC else kind_of_tiff(stream, number)


def _is_turned_by_container(stream: BinaryIO) -> bool:
    """Whether a HEIC says itself how it is held, as those of telephones; its EXIF then repeats that."""
    place, found = 0, False
    while header := stream.read(16):
        size, name = int.from_bytes(header[:4], "big"), header[4:8]
        if name == b"meta":
            stream.seek(place)
            properties = stream.read(min(size, 1 << 22))
            found = b"irot" in properties or b"imir" in properties
        if found or size < 8:
            break
        place = stream.seek(place + size)
    stream.seek(0)
    return found


_RAW_MAGIC = (b"IIRO", b"IIRS", b"MMOR", b"IIU\0")
"""Of ORF and RW2; other RAW files start as TIFF or, CR3, as MP4 does."""


def _extra(package: str, extra: str, what: str) -> Any:
    """A package of an optional extra.

    Raises:
        CannotRead: it is not installed; says what to type.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        reason = f"{what} is read with an extra that is not installed: pip install 'fgvc[{extra}]'"
        raise CannotRead("unreadable", reason) from error


def _decode_raw(
    stream: BinaryIO, prepare: Prepare | None, rule: ReadRule, *, exif: bool = False
) -> DecodedImage | Failure:
    """The preview that a camera has put into its RAW file, or, without one or where the rule says so, the
    image developed by LibRaw in sRGB with the white balance of the camera.

    The size is that of the preview. An EXIF of its own holds it upright, or else that of the file.
    """
    rawpy = _extra("rawpy", "raw", "camera RAW")
    taken = _taken_of_tiff(stream) if exif else Taken()
    with rawpy.imread(stream) as raw:
        if (pixels := raw.sizes.raw_width * raw.sizes.raw_height) > MAX_PIXELS:
            return Failure("too_large", f"{pixels} pixels, the limit is {MAX_PIXELS}")
        thumb = None
        with contextlib.suppress(rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError):
            thumb = raw.extract_thumb() if rule.raw == "preview" else None
        if thumb is None:
            if prepare:
                prepare(Image.new("1", (raw.sizes.width, raw.sizes.height)))
            return DecodedImage(Image.fromarray(raw.postprocess(use_camera_wb=True)), taken=taken)
        upright = _UPRIGHT.get(_RAW_FLIPS.get(raw.sizes.flip, 1))
    if thumb.format == rawpy.ThumbFormat.BITMAP:
        if prepare:
            prepare(Image.new("1", thumb.data.shape[1::-1]))
        photo: DecodedImage | Failure = DecodedImage(Image.fromarray(thumb.data), taken=taken)
    else:
        preview = io.BytesIO(thumb.data)
        if _says_orientation(without_metadata(preview)[1]):
            upright = None
        preview.seek(0)
        photo = _decode(preview, prepare, rule, exif=exif)
        if not isinstance(photo, Failure):
            photo = dataclasses.replace(photo, taken=taken if taken.date else photo.taken, by_rule=True)
    if isinstance(photo, Failure) or upright is None:
        return photo
    full_size = photo.full_size
    if full_size and upright in _TURNED:
        full_size = full_size[::-1]
    return DecodedImage(photo.image.transpose(upright), full_size, photo.note, photo.taken)


_RAW_FLIPS = {1: 2, 3: 3, 2: 4, 4: 5, 6: 6, 7: 7, 5: 8}
"""How LibRaw notes an orientation -> EXIF's number."""


def _load(image: Image.Image, stream: BinaryIO) -> None:
    """Decode the pixels; a JPEG that lacks only its end marker has them all.

    libjpeg waits for the marker, in a progressive file always, in others at times. Whether anything else is
    missing shows when different bytes are put in its place: where the last scan is whole, no pixel changes.

    Raises:
        Exception: what the decoder raises.
    """
    tile = list(getattr(image, "tile", ()))
    try:
        image.load()
    except OSError as error:
        if type(image) is not JpegImagePlugin.JpegImageFile or "truncated" not in str(error):
            raise
        end = _end_of(stream)
        if not _has_all_scans(stream):
            raise
        first = None
        for missing in (bytes(_MISSING), b"\xb5" * _MISSING):
            image.tile, image.fp = tile[:], stream
            setattr(image, "load_read", _reader(stream, end + missing + b"\xff\xd9"))  # noqa: B010 - no type knows it
            image.load()
            pixels = hash(image.tobytes())
            if first not in (None, pixels):
                raise
            first = pixels


_MISSING = 256
"""Bytes of a scan that are tried at the end of a JPEG; 1 bit of them changes the pixels after it."""


def _end_of(stream: BinaryIO) -> bytes:
    """What completes a last byte that may be half of an escape."""
    stream.seek(-1, os.SEEK_END)
    return b"\0" if stream.read(1) == b"\xff" else b""


def _reader(stream: BinaryIO, end: bytes) -> Callable[[int], bytes]:
    ends = iter((end,))
    return lambda count: stream.read(count) or next(ends, b"")


def _has_all_scans(stream: BinaryIO) -> bool:
    """Whether the scans that a JPEG begins hold every coefficient of every component to its last bit, and the
    last of them all of its restart markers: a decoder fills what lies between two of these with grey."""
    stream.seek(0)
    data = stream.read()
    sampling: dict[int, tuple[int, int]] = {}
    width = height = interval = restarts = restarts_needed = 0
    bits_left: dict[tuple[int, int], int] = {}
    place = 2
    while 0 <= (place := data.find(b"\xff", place)) < len(data) - 1:
        marker = data[place + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            restarts += 0xD0 <= marker <= 0xD7
            place += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        body = data[place + 4 : place + 2 + length]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", body, 1)
            sampling = {body[at]: divmod(body[at + 1], 16) for at in range(6, 6 + 3 * body[5], 3)}
        elif marker == 0xDD:
            interval = int.from_bytes(body[:2], "big")
        elif marker == 0xDA:
            members = body[1 : 1 + 2 * body[0] : 2]
            for component in members:
                for coefficient in range(body[-3], body[-2] + 1):
                    bits_left[component, coefficient] = body[-1] & 15
            units = _units_of_scan(width, height, sampling, members)
            restarts, restarts_needed = 0, (units - 1) // interval if interval else 0
        place += 2 + length
    return (
        bool(sampling)
        and restarts >= restarts_needed
        and all(bits_left.get((own, coefficient)) == 0 for own in sampling for coefficient in range(64))
    )


def _units_of_scan(width: int, height: int, sampling: dict[int, tuple[int, int]], members: bytes) -> int:
    """How many MCUs a scan has; ITU T.81, section A.2."""
    most_x, most_y = (max(factors) for factors in zip(*sampling.values(), strict=True))
    # Of one component alone a unit is one block, and those that only fill up are left out.
    x, y = sampling[members[0]] if len(members) == 1 else (1, 1)
    return -(-width * x // (8 * most_x)) * -(-height * y // (8 * most_y))


def _open_file(path: Path | str) -> BinaryIO:
    """A regular file with bytes in it, or an image of a tar archive that the path leads through.

    A stream rather than the path for Pillow: given a path, it maps raw formats into memory, and a file that
    shrinks meanwhile would end the process with SIGBUS.
    """
    try:
        info = os.stat(path)
    except ValueError as error:
        raise CannotRead("missing", f"no file can have this name: {error}") from error
    except (NotADirectoryError, FileNotFoundError):
        if member := member_within(path):
            return member.open()
        raise
    if not stat.S_ISREG(info.st_mode):
        raise CannotRead("not_a_file", f"not a regular file but {_kind(info.st_mode)}")
    if info.st_size == 0:  # some files of /proc say so, and reading them would wait
        raise CannotRead("empty", "the file has no bytes")
    return open(path, "rb")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))[:200]


def _failure(error: Exception) -> Failure:
    line = _one_line(str(getattr(error, "strerror", None) or error))
    if not isinstance(error, OSError):
        line = f"{type(error).__name__}: {line}"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Failure("missing", "no such file")
    if isinstance(error, PermissionError):
        return Failure("no_access", line)
    if isinstance(error, UnidentifiedImageError):
        return Failure("not_an_image", f"no header of {', '.join(FORMATS)} that can be read")
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return Failure("too_large", line)
    if isinstance(error, EOFError) or "truncated" in line.lower():
        return Failure("truncated", line)
    return Failure("unreadable", line)


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_TURNED = {_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)}
"""What swaps width and height."""


def _orientation(image: Image.Image, info: Info) -> Image.Transpose | None:
    """What turns a loaded image upright (Pillow has turned a TIFF already).

    Args:
        info: what was taken out of the file before Pillow saw it.
    """
    try:
        orientation = (_exif_of(info) if info else image.getexif()).get(_ORIENTATION, 1)
        if isinstance(orientation, tuple | bytes):  # some writers store a list of one, some bytes or a text
            orientation = orientation[0]
        return _UPRIGHT.get(int(orientation))
    except Exception:  # any exception, as in read_image; the pixels are good without the EXIF
        return None


def _taken(image: Image.Image, info: Info) -> Taken:
    """As ``_orientation``, of an image whose file is open."""
    try:
        return read_taken(_exif_of(info) if info else image.getexif())
    except Exception:  # any exception, as in ``read_image``
        return Taken()


def _taken_of_tiff(stream: BinaryIO) -> Taken:
    """Of a TIFF, or a RAW that begins as one, without Pillow's decoder; the stream is at its start again."""
    try:
        tags = Image.Exif()
        tags.load_from_fp(stream)
        return read_taken(tags)
    except Exception:  # any exception, as in ``read_image``; CR3 and some RAW are no TIFF
        return Taken()
    finally:
        stream.seek(0)


_ORIENTATION = 0x0112


def _exif_of(info: Info) -> Image.Exif:
    """As Pillow reads it, which looks into XMP too."""
    holder = Image.new("1", (1, 1))
    holder.info.update(info)
    return holder.getexif()


def _says_orientation(info: Info) -> bool:
    try:
        return _ORIENTATION in _exif_of(info)
    except Exception:  # any exception, as in ``_orientation``
        return False


def to_rgb(image: Image.Image, profile: bytes | None = None) -> tuple[Image.Image, str]:
    """Any mode Pillow decodes to RGB, and what the user should know of it.

    Transparency lies over white. 16-bit grey, and 32-bit integers that fit 16 bits, are divided by 257; other
    32-bit integers and floats run from their own least to their greatest finite value; NaN becomes the least.
    (TIFFs of more than 8 bits go through ``depth`` instead.)
    LAB goes through its own profile.

    Args:
        profile: of the colours, brought to those of sRGB; None: taken as they are.
    """
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").point(image), ""
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_grey_bytes(np.asarray(image)))
    elif image.has_transparency_data or image.mode in ("La", "RGBa"):
        image = image.convert("RGBA")
    elif profile and image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    image, note = to_srgb(image, profile) if profile else (image, "")
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white, note
    # A copy of a large image is as large again.
    return (image if image.mode == "RGB" else image.convert("RGB")), note


def _grey_bytes(grey: np.ndarray) -> np.ndarray:
    """Grey values (H, W) of 16-bit, 32-bit or float -> uint8."""
    if grey.dtype.kind in "iu" and grey.min() >= 0 and grey.max() <= 65535:
        return (grey // 257).astype(np.uint8)
    finite = np.isfinite(grey)
    values = grey[finite].astype(np.float64)
    if values.size == 0 or values.min() == values.max():
        return np.zeros(grey.shape, np.uint8)
    # float64 holds the span even of the widest float32 range.
    shares = np.zeros(grey.shape, np.float64)
    shares[finite] = (values - values.min()) / (values.max() - values.min())
    return (shares * 255).round().astype(np.uint8)


@functools.cache
def _quiet_decoders() -> None:
    """Keep the decoders' own remarks off stderr, once per process; what matters arrives as exceptions.

    Filters that are put back after each file would be those of all threads.
    libtiff prints from C to file descriptor 2. Switching its handlers off is safe with threads, turning the
    descriptor away around each file is not. Where Pillow hides the symbols (static builds), it prints on.
    """
    # Pillow's remarks on metadata, by both of its ways; an application that sets up logging still gets them.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    with contextlib.suppress(OSError, AttributeError):
        pillow = ctypes.CDLL(Image.core.__file__)
        for setter in (pillow.TIFFSetErrorHandler, pillow.TIFFSetWarningHandler):
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)
