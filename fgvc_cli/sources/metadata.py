"""PNG and JPEG without their metadata, over which Pillow would stumble: it sees only what makes the pixels.
And what the metadata says of when, where and with what an image was taken.

What else is needed (EXIF, XMP, colour profile) is taken out here, within bounds; of JPEG 2000 too, where
Pillow does not look for it.

Nothing of Pillow is changed: it gets a stream that leaves out pieces of the file. No torch here.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, NamedTuple, cast

PNG_MAGIC, JPEG_MAGIC = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
JP2_MAGIC = b"\0\0\0\x0cjP  "

MAX_BYTES = 8 << 20
"""Of one piece of metadata, stored and unpacked: what is larger is passed over."""

Info = dict[str, Any]
"""As ``Image.info`` has them: ``exif``, ``icc_profile``, ``xmp``, ..."""

_PNG_NEEDED = (b"tRNS", b"acTL", b"fcTL", b"fdAT")
"""What of a PNG may be left out by its rules and still decides how it looks."""


def without_metadata(stream: BinaryIO) -> tuple[BinaryIO, Info]:
    """A PNG or JPEG as a stream that leaves out its metadata, and what of that is of use.

    Damaged files keep from the damage on what they hold: the decoder says what is wrong. Of another format,
    and where there is nothing to leave out, the stream itself comes back; it is at its start.
    """
    info: Info
    start = stream.read(8)
    if start == JP2_MAGIC:
        info = _read_jp2(stream)
        stream.seek(0)
        return stream, info
    split = _split_png if start == PNG_MAGIC else _split_jpeg if start.startswith(JPEG_MAGIC) else None
    info = {}
    if split is None:
        stream.seek(0)
        return stream, info
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    pieces = _joined(split(stream, size, info))
    stream.seek(0)
    return (stream if pieces == [(0, size)] else cast(BinaryIO, _Pieces(stream, pieces))), info


def _joined(pieces: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pieces (start, end) of a file in order, neighbours in one."""
    joined: list[tuple[int, int]] = []
    for start, end in pieces:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    return joined


class _Pieces(io.RawIOBase):
    """Pieces of a file, read as if they followed one another."""

    def __init__(self, stream: BinaryIO, pieces: list[tuple[int, int]]):
        self._stream = stream
        self._starts = [start for start, _ in pieces]
        self._ends: list[int] = []
        for start, end in pieces:
            self._ends.append((self._ends[-1] if self._ends else 0) + end - start)
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._ends[-1] if self._ends else 0}
        self._place = max(0, base[whence] + offset)
        return self._place

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes, fewer only at the end."""
        total = self._ends[-1] if self._ends else 0
        left = max(0, total - self._place) if size is None or size < 0 else size
        parts = []
        piece = bisect.bisect_right(self._ends, self._place)
        while left and piece < len(self._ends):
            here = min(left, self._ends[piece] - self._place)
            before = self._ends[piece - 1] if piece else 0
            self._stream.seek(self._starts[piece] + self._place - before)
            data = self._stream.read(here)
            parts.append(data)
            self._place += len(data)
            left -= len(data)
            if len(data) < here:
                break
            piece += 1
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _split_png(stream: BinaryIO, size: int, info: Info) -> Iterator[tuple[int, int]]:
    """Pieces to keep; PNG specification, section 5.3."""
    yield 0, 8
    place = 8
    while place + 8 <= size:
        stream.seek(place)
        header = stream.read(8)
        length, name = int.from_bytes(header[:4], "big"), header[4:]
        end = place + 12 + length
        if not (name.isalpha() and name.isascii()):
            break
        if not name[0] & 32 or name in _PNG_NEEDED:
            yield place, min(end, size)
            if name == b"IEND":
                return
        elif length <= MAX_BYTES and name in _PNG_READ:
            body = stream.read(length)
            if zlib.crc32(name + body) == int.from_bytes(stream.read(4), "big"):
                _PNG_READ[name](body, info)
        place = end
    if place < size:
        yield place, size


def _png_profile(body: bytes, info: Info) -> None:
    _, _, packed = body.partition(b"\0")
    if profile := _unpack(packed[1:]):
        info.setdefault("icc_profile", profile)


def _png_exif(body: bytes, info: Info) -> None:
    info.setdefault("exif", b"Exif\0\0" + body)


def _png_text(body: bytes, info: Info) -> None:
    name, _, text = body.partition(b"\0")
    if name in (b"Raw profile type exif", b"Raw profile type APP1"):  # as ImageMagick writes it
        info.setdefault("Raw profile type exif", text.decode("latin-1"))


def _png_packed_text(body: bytes, info: Info) -> None:
    name, _, packed = body.partition(b"\0")
    _png_text(name + b"\0" + _unpack(packed[1:]), info)


def _png_xmp(body: bytes, info: Info) -> None:
    name, _, rest = body.partition(b"\0")
    if name == b"XML:com.adobe.xmp":
        is_packed, (*_, text) = rest[:1] == b"\1", rest[2:].split(b"\0", 2)
        info.setdefault("xmp", _unpack(text) if is_packed else text)


_PNG_READ = {
    b"iCCP": _png_profile,
    b"eXIf": _png_exif,
    b"tEXt": _png_text,
    b"zTXt": _png_packed_text,
    b"iTXt": _png_xmp,
}


def _unpack(packed: bytes) -> bytes:
    """Empty where it is damaged or too large."""
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(packed, MAX_BYTES)
    except zlib.error:
        return b""
    return b"" if unpacker.unconsumed_tail else data


def _split_jpeg(stream: BinaryIO, size: int, info: Info) -> Iterator[tuple[int, int]]:
    """Pieces to keep; ITU T.81, section B.1."""
    yield 0, 2
    place = 2
    profile: list[bytes] = []
    while place + 4 <= size:
        stream.seek(place)
        header = stream.read(4)
        marker, length = header[1], int.from_bytes(header[2:], "big")
        if header[0] != 0xFF or marker == 0xFF:  # filling bytes, or ones that decoders pass over
            stream.seek(place + 1)
            skipped = stream.read(1 << 16)
            found = skipped.find(b"\xff")
            place += 1 + (found if found >= 0 else len(skipped))
            continue
        if not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xDA or length < 2:
            break  # the first scan, or something odd, which is the decoder's to judge
        end = place + 2 + length
        if 0xE0 <= marker <= 0xEF or marker == 0xFE:
            body = stream.read(length - 2)
            if _is_for_decoder(marker, body):
                yield place, end
            elif len(body) == length - 2:
                _jpeg_segment(marker, body, info, profile)
        else:
            yield place, min(end, size)
        place = end
    if place < size:
        yield place, size
    if whole := _join_profile(profile):
        info["icc_profile"] = whole


def _is_for_decoder(marker: int, body: bytes) -> bool:
    """What libjpeg itself looks at to know the colours."""
    return (marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14) or (
        marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12
    )


def _jpeg_segment(marker: int, body: bytes, info: Info, profile: list[bytes]) -> None:
    xmp = b"http://ns.adobe.com/xap/1.0/\0"
    if marker == 0xE1 and body.startswith(b"Exif\0\0"):
        # Some writers go on in a second segment.
        info["exif"] = info["exif"] + body[6:] if "exif" in info else body
    elif marker == 0xE1 and body.startswith(xmp):
        info.setdefault("xmp", body.removeprefix(xmp))
    elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
        profile.append(body)


def _join_profile(segments: list[bytes]) -> bytes:
    """ICC.1:2010, B.4: number and count of each piece precede its bytes; empty unless all are there."""
    pieces = {segment[12]: segment[14:] for segment in segments}
    count = segments[0][13] if segments else 0
    if not count or set(pieces) != set(range(1, count + 1)):
        return b""
    return b"".join(pieces[number] for number in range(1, count + 1))


_JP2_EXIF = (b"JpgTiffExif->JP2", bytes.fromhex("0537cdab9d0c4431a72afa561f2a113e"))
"""Names of ``uuid`` boxes with EXIF: as ExifTool and most others write it, and as Photoshop does."""
_JP2_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_MAX_BOXES = 1000


def _read_jp2(stream: BinaryIO) -> Info:
    """What the boxes in front of and behind the pixels say; ITU T.800, annex I."""
    info: Info = {}
    size = stream.seek(0, os.SEEK_END)
    for name, start, end in _jp2_boxes(stream, 0, size):
        if name == b"jp2h":
            for inner, inner_start, inner_end in _jp2_boxes(stream, start, end):
                if inner == b"colr" and 3 < inner_end - inner_start <= MAX_BYTES:
                    stream.seek(inner_start)
                    body = stream.read(inner_end - inner_start)
                    if body[0] in (2, 3):  # an ICC profile, restricted or any
                        info.setdefault("icc_profile", body[3:])
        elif name == b"uuid" and 16 < end - start <= MAX_BYTES:
            stream.seek(start)
            body = stream.read(end - start)
            if body[:16] in _JP2_EXIF:
                info.setdefault("exif", b"Exif\0\0" + body[16:].removeprefix(b"Exif\0\0"))
            elif body[:16] == _JP2_XMP:
                info.setdefault("xmp", body[16:])
    return info


def _jp2_boxes(stream: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of the contents of each box between two places of a file."""
    for _ in range(_MAX_BOXES):
        stream.seek(start)
        header = stream.read(16)
        if start + 8 > end or len(header) < 8:
            return
        length, name, body = int.from_bytes(header[:4], "big"), header[4:8], start + 8
        if length == 1:
            length, body = int.from_bytes(header[8:], "big"), start + 16
        stop = end if length == 0 else start + length
        if not body <= stop <= end:
            return
        yield name, body, stop
        start = stop


class Taken(NamedTuple):
    """When, where and with what an image was taken; blank where the file does not say it, or not soundly."""

    date: str = ""
    """ISO 8601, by the camera's clock; with its offset from UTC where that is told."""
    latitude: float | None = None
    """Degrees north."""
    longitude: float | None = None
    """Degrees east."""
    camera: str = ""
    """Make and model."""


_DATES = ((0x9003, 0x9291, 0x9011), (0x9004, 0x9292, 0x9012))
"""Date, part of a second and offset from UTC: of the original, and of its digitisation."""
_MAKE, _MODEL, _EXIF, _GPS = 0x010F, 0x0110, 0x8769, 0x8825


def read_taken(exif: Any) -> Taken:
    """What an EXIF says; each part by itself, as a broken one says nothing of the others.

    Args:
        exif: a ``PIL.Image.Exif``.
    """

    def attempt(read: Callable[[Any], Any], otherwise: Any) -> Any:
        try:
            return read(exif)
        except Exception:  # a damaged directory raises anything, as in ``read_image``
            return otherwise

    latitude, longitude = attempt(_position, (None, None))
    return Taken(attempt(_date, ""), latitude, longitude, attempt(_camera, ""))


def exif_date(text: object, part: object = "", offset: object = "") -> str:
    """``2024:05:06 07:08:09``, part of a second and offset -> ISO 8601; empty where it is no date."""
    digits = re.fullmatch(r"\d+", _text(part))
    zone = re.fullmatch(r"[+-]\d\d:[0-5]\d|Z", _text(offset))
    try:
        moment = datetime.strptime(_text(text)[:19], "%Y:%m:%d %H:%M:%S").isoformat()
        whole = moment + (f".{digits[0][:6]}" if digits else "") + (zone[0] if zone else "")
        datetime.fromisoformat(whole)
    except ValueError:
        return ""
    return whole


def clock_seconds(date: str) -> float | None:
    """Seconds by the camera's clock of a date as ``Taken.date``, whose offset is left out: cameras that tell
    it are compared with those that do not; None where there is none."""
    try:
        return datetime.fromisoformat(date).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def read_video_tags(tags: Mapping[str, str], second: float) -> Taken:
    """What the container of a video says, of the picture at a second: its date is in UTC."""
    date = ""
    with contextlib.suppress(ValueError, OverflowError):
        begun = datetime.fromisoformat(tags.get("creation_time", ""))
        if begun.year > 1970:  # clocks that were never set say 1904 or 1970
            date = (begun + timedelta(seconds=second)).isoformat()
    place = tags.get("location") or tags.get("com.apple.quicktime.location.ISO6709") or ""
    degrees = re.match(r"([+-]\d{1,2}(?:\.\d+)?)([+-]\d{1,3}(?:\.\d+)?)(?![\d.])", place)
    position = _checked(float(degrees[1]), float(degrees[2])) if degrees else (None, None)
    names = [tags.get(f"com.apple.quicktime.{name}") or tags.get(name, "") for name in ("make", "model")]
    return Taken(date, *position, _join_names(*names))


def _date(exif: Any) -> str:
    inner = exif.get_ifd(_EXIF)
    return next(filter(None, (exif_date(*(inner.get(tag, "") for tag in tags)) for tags in _DATES)), "")


def _position(exif: Any) -> tuple[float | None, float | None]:
    tags = exif.get_ifd(_GPS)
    north, east = ({"N": 1, "S": -1}[_text(tags[1])], {"E": 1, "W": -1}[_text(tags[3])])
    degrees = [sum(float(part) / 60**i for i, part in enumerate(tags[tag])) for tag in (2, 4)]
    return _checked(north * degrees[0], east * degrees[1])


def _checked(latitude: float, longitude: float) -> tuple[float | None, float | None]:
    """Blank where it is nowhere on Earth, NaN included."""
    on_earth = abs(latitude) <= 90 and abs(longitude) <= 180
    return (latitude, longitude) if on_earth else (None, None)


def _camera(exif: Any) -> str:
    return _join_names(exif.get(_MAKE, ""), exif.get(_MODEL, ""))


def _join_names(make: object, model: object) -> str:
    """Without the make twice, as many a model begins with it."""
    make, model = _text(make), _text(model)
    return model if model.lower().startswith(make.lower()) else f"{make} {model}".strip()


def _text(value: object) -> str:
    """One printable line."""
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return " ".join("".join(c if c.isprintable() else " " for c in text.partition("\0")[0]).split())[:100]
