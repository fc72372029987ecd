"""Frames and pages: an animation, a TIFF of several pages or a video -> a row for each. No torch here.

How many there are is found out by walking through a file's structure, without a pixel being decoded, in the
process that lists the images; frames are decoded where all images are.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.sources.stored import VIDEOS, CannotRead, Found, Lost, Stored

MAX_FRAMES = 100_000
"""Per file."""

_MANY = frozenset({".gif", ".png", ".apng", ".webp", ".tif", ".tiff", ".avif"})
"""Endings of what may hold more than one."""

_TIFF_SUBFILE = 254


@dataclass(frozen=True, slots=True)
class Frame(Stored):
    """One frame or page of a file."""

    path: Path | Stored
    number: int
    """From 0; of a video, the how manieth sample."""
    every_s: float = 0.0
    """Seconds between the samples of a video; 0: an animation, or pages."""

    @property
    def second(self) -> float:
        """When it is shown, of a video."""
        return self.number * self.every_s

    def open(self) -> BinaryIO:
        """The bytes of the whole file."""
        return self.path.open() if isinstance(self.path, Stored) else open(self.path, "rb")

    def within(self, path: Path | Stored) -> Frame:
        """The same frame of a file that lies elsewhere."""
        return dataclasses.replace(self, path=path)

    def __str__(self) -> str:
        return f"{self.path}#{self.number}"


@dataclass(frozen=True, slots=True)
class FrameChoice:
    """Which frames are rows.

    Args:
        limit: of each file, the first so many; None: all.
        every_s: seconds between the frames of a video; None: videos are no images.
        animations: take the frames of animations and the pages of files too, else their first.
    """

    limit: int | None = None
    every_s: float | None = None
    animations: bool = True


def parse_frames(frames: str | None, every: str | None) -> FrameChoice | None:
    """What ``--frames`` and ``--every`` ask for; None where an image is a file.

    Raises:
        FgvcError: a usage error.
    """
    if frames is None and every is None:
        return None
    limit: int | None = None
    if frames not in (None, "all"):
        if not str(frames).isdecimal() or int(str(frames)) < 1:
            raise FgvcError(f"--frames got {frames!r}, expected all or a number from 1.", None, EXIT_USAGE)
        limit = int(str(frames))
    if every is None:
        return FrameChoice(limit)
    animations = frames is not None
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(ms|s|min)?", every.strip().lower())
    seconds = float(match[1]) * {"ms": 0.001, "s": 1, "min": 60, None: 1}[match[2]] if match else 0.0
    if not match or seconds < 0.001:
        raise FgvcError(
            f"--every got {every!r}, expected a time such as 1s, 500ms or 2min.", None, EXIT_USAGE
        )
    return FrameChoice(limit, seconds, animations)


def locate_frame(root: Path, name: str, every_s: float | None = None) -> Path | Frame:
    """Where the image of a row lies, which may be a frame of the file that its name begins with.

    Args:
        every_s: of the run, for videos.
    """
    path = root / name
    match = re.fullmatch(r"(.+)#(\d+)", name, re.DOTALL)
    if match is None or path.exists():
        return path
    is_video = match[1].lower().endswith(VIDEOS)
    return Frame(root / match[1], int(match[2]), (every_s or 1.0) if is_video else 0.0)


def each_frame(images: Iterable[Found], choice: FrameChoice) -> Iterator[Found]:
    """Images, those that hold several as frames ``name#0``, ``name#1``, ...; others under their own names.

    A video is always in frames; one that cannot be opened is a failed row under its own name.
    """
    for found in images:
        ending = os.path.splitext(found.name)[1].lower()
        if isinstance(found.path, Lost):
            yield found
        elif choice.every_s is not None and ending in VIDEOS:
            yield from _samples(found, choice.every_s, choice.limit)
        elif choice.animations and (ending in _MANY or ending == ""):
            numbers = _numbers(found.path)
            if len(numbers) < 2:
                yield found
                continue
            for number in numbers[: choice.limit]:
                yield Found(Frame(found.path, number), f"{found.name}#{number}")
        else:
            yield found


def _open(path: Path | Stored) -> BinaryIO:
    if isinstance(path, Stored):
        return path.open()
    if not path.is_file():  # a FIFO would wait
        raise CannotRead("not_a_file", "not a regular file")
    return open(path, "rb")


def _numbers(path: Path | Stored) -> Sequence[int]:
    """The numbers of its frames; [0] for anything else, and for what cannot be read, whose row says why."""
    try:
        with _open(path) as stream:
            return frame_numbers(stream)
    except Exception:  # any exception, as in ``read_image``, which meets it again
        return [0]


def frame_numbers(stream: BinaryIO) -> Sequence[int]:
    """The numbers of the frames or pages of an open file.

    Of a TIFF without the pages that are smaller copies of others.

    Raises:
        Exception: whatever a damaged file leads to.
    """
    start = stream.read(16)
    stream.seek(0)
    if start[:6] in (b"GIF87a", b"GIF89a"):
        return range(_count_gif(stream))
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return range(_count_png(stream))
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return range(_count_webp(stream))
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", BIG_ENDIAN_BIG):
        return _tiff_pages(stream)
    if start[4:12] == b"ftypavis":
        with Image.open(stream, formats=("AVIF",)) as image:
            return range(min(int(getattr(image, "n_frames", 1)), MAX_FRAMES))
    return [0]


def _count_gif(stream: BinaryIO) -> int:
    """GIF89a, sections 18 to 27."""
    data = stream.read()
    place = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    count = 0
    while place < len(data) and count < MAX_FRAMES:
        kind = data[place]
        if kind == 0x21:
            place += 2
        elif kind == 0x2C and place + 9 < len(data):
            flags = data[place + 9]
            place += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
            count += 1
        else:
            break
        while place < len(data) and data[place]:
            place += data[place] + 1
        place += 1
    return max(count, 1)


def _count_png(stream: BinaryIO) -> int:
    """PNG third edition, section 11.3.6; the image that is no part of the animation counts too."""
    stream.seek(8)
    animated = in_animation = False
    count = 0
    while len(header := stream.read(8)) == 8 and count < MAX_FRAMES:
        length, name = int.from_bytes(header[:4], "big"), header[4:]
        if name == b"IDAT" and not animated:
            return 1
        animated |= name == b"acTL"
        in_animation |= name == b"IDAT" and count == 1
        count += name == b"fcTL"
        if name == b"IEND":
            break
        stream.seek(length + 4, os.SEEK_CUR)
    return max(count + (not in_animation), 1)


def _count_webp(stream: BinaryIO) -> int:
    stream.seek(12)
    count = 0
    while len(header := stream.read(8)) == 8 and count < MAX_FRAMES:
        length = int.from_bytes(header[4:], "little")
        count += header[:4] == b"ANMF"
        stream.seek(length + (length & 1), os.SEEK_CUR)
    return max(count, 1)


def _tiff_pages(stream: BinaryIO) -> list[int]:
    pages, seen = [], set()
    for number, directory in enumerate(tiff_directories(stream)):
        if directory.next in seen or number >= MAX_FRAMES:
            pages.append(number)
            break
        seen.add(directory.next)
        if not number or not int(directory.get(_TIFF_SUBFILE, 0)) & 1:
            pages.append(number)
    return pages or [0]


BIG_ENDIAN_BIG = b"MM\0+"
"""How a TIFF starts that has offsets of 64 bits, most significant byte first."""


def tiff_directories(stream: BinaryIO) -> Iterator[Any]:
    """The directories of a TIFF, one per page; the next one is read when it is asked for.

    Raises:
        Exception: whatever a damaged one leads to.
    """
    header = stream.read(8)
    if header[:4] == b"II+\0":
        header += stream.read(8)
    directory: Any = ImageFileDirectory_v2(header)
    if header[:4] == BIG_ENDIAN_BIG:  # Pillow looks for the 43 in the byte where little-endian files have it
        directory._bigtiff, directory.next = True, int.from_bytes(stream.read(8), "big")
    while directory.next:
        stream.seek(directory.next)
        directory.load(stream)
        yield directory


NO_VIDEO = "video is read with an extra that is not installed: pip install 'fgvc[video]'"
AS_VIDEO = "a video; fgvc predict reads its frames with --every 1s"


HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
AVIF_BRANDS = frozenset({b"avif", b"avis"})
RAW_BRAND = b"crx "
"""Of images in the container of MP4: CR3 is the last."""


def video_format(start: bytes) -> str:
    """What FFmpeg calls the container of a video that starts so; empty for anything else.

    It is told, as by itself it would take a text for a list of other files to open.
    """
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return "avi"
    if start[4:8] == b"ftyp":
        return "" if start[8:12] in (*HEIF_BRANDS, *AVIF_BRANDS, RAW_BRAND) else "mov"
    return "mov" if start[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip") else ""


def _samples(found: Found, every_s: float, limit: int | None) -> Iterator[Found]:
    """The frames of a video, ``every_s`` apart, from its first on."""
    try:
        if importlib.util.find_spec("av") is None:
            raise CannotRead("unreadable", NO_VIDEO)
        with _open(found.path) as stream, _open_video(stream) as container:
            count = max(1, math.ceil(_duration_s(container) / every_s - 1e-6))
    except CannotRead as error:
        yield Found(Lost(str(found.path), error.status, str(error)), found.name)
        return
    except FileNotFoundError:
        yield Found(Lost(str(found.path), "missing", "no such file"), found.name)
        return
    except Exception as error:  # FFmpeg has as many as Pillow
        reason = " ".join(str(error).split())[:200]
        yield Found(Lost(str(found.path), "unreadable", f"no video that can be read: {reason}"), found.name)
        return
    for number in range(min(count, limit or count, MAX_FRAMES)):
        yield Found(Frame(found.path, number, every_s), f"{found.name}#{number}")


def _open_video(stream: BinaryIO) -> Any:
    import av

    form = video_format(stream.read(16))
    stream.seek(0)
    if not form:
        raise CannotRead("not_an_image", "no header of a video in MP4, MOV or AVI")
    av.logging.set_level(None)  # FFmpeg prints from C; what matters arrives as exceptions
    container = av.open(stream, format=form)
    if not container.streams.video:
        container.close()
        raise CannotRead("not_an_image", "a video without pictures")
    return container


def _duration_s(container: Any) -> float:
    stream = container.streams.video[0]
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration:
        return float(container.duration) / 1e6
    if stream.frames and stream.average_rate:
        return float(stream.frames / stream.average_rate)
    return 0.0


def read_video(stream: BinaryIO, frame: Frame, max_pixels: int) -> tuple[Image.Image, dict[str, str]]:
    """The picture that an open video shows at a second, upright, RGB: the last one that has begun by then;
    and the tags of the whole.

    Raises:
        CannotRead: too many pixels; the video ends before; PyAV is not installed.
        Exception: whatever FFmpeg raises.
    """
    if importlib.util.find_spec("av") is None:
        raise CannotRead("unreadable", NO_VIDEO)
    with _open_video(stream) as container:
        video, tags = container.streams.video[0], dict(container.metadata)
        pixels = video.codec_context.width * video.codec_context.height
        if pixels > max_pixels:
            raise CannotRead("too_large", f"{pixels} pixels, the limit is {max_pixels}")
        video.codec_context.thread_count = 1  # each worker is one
        first = float((video.start_time or 0) * video.time_base) if video.time_base else 0.0
        picture = None
        if frame.number and video.time_base:
            # To the key frame before, from which all follow.
            container.seek(int((first + frame.second) / video.time_base), stream=video)
            picture = _shown_at(container, first, frame)
            if picture is None:  # an index that leads too far, or no times: from the start
                container.seek(0, stream=video)
        picture = picture or _shown_at(container, first, frame, from_start=True)
        if picture is None:
            raise CannotRead("truncated", f"the video ends before second {frame.second:g}")
        image: Image.Image = picture.to_image()
        turn = int(getattr(picture, "rotation", 0)) % 360
    return image.rotate(turn, expand=True) if turn else image, tags


def _shown_at(container: Any, first: float, frame: Frame, *, from_start: bool = False) -> Any:
    """The decoded picture that is shown at the second of ``frame``; None: it lies before what is decoded, or
    behind the end.

    Args:
        first: when the video begins, seconds.
        from_start: decoding begins there, so that the first picture is shown until the second.
    """
    video = container.streams.video[0]
    step = 1 / float(video.average_rate or 25)
    shown = None
    shown_from = 0.0
    for index, picture in enumerate(container.decode(video)):
        if picture.time is None and not from_start:
            return None
        time = index * step if picture.time is None else picture.time - first
        if time > frame.second + 1e-6:
            return picture if shown is None and from_start else shown
        shown, shown_from = picture, time
    if shown is None:
        return None
    lasts = float((shown.duration or 0) * video.time_base) if video.time_base else 0.0
    return None if frame.second - shown_from > max(lasts, step, frame.every_s, 1.0) else shown
