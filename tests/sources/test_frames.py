"""Frames and pages as rows: how many a file holds, which picture each is, and videos in steps of time."""

from __future__ import annotations

import io
import sys
import zipfile
from fractions import Fraction

import numpy as np
import pytest
import tifffile
from PIL import Image

from fgvc_cli.errors import FgvcError
from fgvc_cli.sources.find import find_images
from fgvc_cli.sources.frames import Frame, FrameChoice, frame_numbers, locate_frame, parse_frames
from fgvc_cli.sources.images import DecodedImage, Failure, read_image

GREYS = [20, 80, 140, 200, 250]
ALL = FrameChoice()


def plain(value: int) -> Image.Image:
    return Image.new("RGB", (64, 48), (value, value, value))


def animation(form: str, greys=GREYS, **options) -> bytes:
    stream = io.BytesIO()
    first, *rest = map(plain, greys)
    first.save(stream, form, save_all=True, append_images=rest, **options)
    return stream.getvalue()


def values(images) -> dict[str, int]:
    """Name -> the grey of the picture."""
    photos = {found.name: read_image(found.path) for found in images}
    assert all(isinstance(photo, DecodedImage) for photo in photos.values()), photos
    return {name: int(np.asarray(photo.image).mean().round()) for name, photo in photos.items()}


FORMS = {
    "gif": ("GIF", {}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {"lossless": True}),
    "tif": ("TIFF", {}),
    "tiff": ("TIFF", {"compression": "tiff_lzw", "big_tiff": True}),
    "avif": ("AVIF", {"quality": 95}),
}


@pytest.mark.parametrize("ending", FORMS)
def test_a_row_for_each_frame_in_order(tmp_path, ending):
    form, options = FORMS[ending]
    (tmp_path / f"a.{ending}").write_bytes(animation(form, **options))
    plain(5).save(tmp_path / "b.png")
    found = values(find_images([tmp_path], frames=ALL))
    assert list(found) == [*(f"a.{ending}#{i}" for i in range(5)), "b.png"]
    assert np.abs(np.array([*found.values()]) - [*GREYS, 5]).max() <= (2 if ending == "avif" else 0)
    assert [*values(find_images([tmp_path]))] == [f"a.{ending}", "b.png"]
    some = find_images([tmp_path], frames=FrameChoice(2))
    assert [each.name for each in some] == [f"a.{ending}#0", f"a.{ending}#1", "b.png"]
    assert some.total is None


def test_an_image_in_front_of_an_animation_counts(tmp_path):
    (tmp_path / "a.png").write_bytes(animation("PNG", default_image=True))
    assert [*values(find_images([tmp_path], frames=ALL)).values()] == GREYS


def test_pages_of_sixteen_bits_and_copies_in_the_small(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(np.full((40, 60), 10 * 257, np.uint16))
        tiff.write(np.full((20, 30), 11 * 257, np.uint16), subfiletype=1)
        tiff.write(np.full((40, 60), 30, np.uint8))
        tiff.write(np.full((40, 60), 40 * 257, np.uint16))
    assert values(find_images([tmp_path], frames=ALL)) == {"a.tif#0": 10, "a.tif#2": 30, "a.tif#3": 40}


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_any_damage_leaves_rows_that_say_so(tmp_path, ending):
    form, options = FORMS[ending]
    data = animation(form, **options)
    for end in range(0, len(data), max(1, len(data) // 60)):
        (tmp_path / f"a.{ending}").write_bytes(data[:end])
        names = [found.name for found in find_images([tmp_path], frames=ALL)]
        assert names
        photos = [read_image(found.path) for found in find_images([tmp_path], frames=ALL)]
        assert all(isinstance(photo, Failure | DecodedImage) for photo in photos)
        numbers = frame_numbers(io.BytesIO(data[:end])) if end > 16 else [0]
        assert len(numbers) <= 5


def test_a_directory_that_leads_back_to_itself_ends(tmp_path):
    data = bytearray(animation("TIFF", GREYS[:2]))
    first = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[first : first + 2], "little")
    data[first + 2 + 12 * count :][:4] = first.to_bytes(4, "little")
    place = first + 2 + 12 * count
    data[place : place + 4] = first.to_bytes(4, "little")
    assert len(frame_numbers(io.BytesIO(bytes(data)))) <= 2


def test_frames_in_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.gif", animation("GIF"))
    found = values(find_images([tmp_path / "a.zip"], frames=ALL))
    assert [*found.items()] == [(f"x.gif#{i}", grey) for i, grey in enumerate(GREYS)]


@pytest.mark.parametrize(
    ("frames", "every", "wanted"),
    [
        (None, None, None),
        ("all", None, FrameChoice()),
        ("3", None, FrameChoice(3)),
        (None, "1s", FrameChoice(None, 1.0, False)),
        ("2", "500ms", FrameChoice(2, 0.5)),
        ("all", "2min", FrameChoice(None, 120.0)),
        (None, "0.25", FrameChoice(None, 0.25, False)),
    ],
)
def test_what_the_options_mean(frames, every, wanted):
    assert parse_frames(frames, every) == wanted


@pytest.mark.parametrize(
    ("frames", "every"), [("0", None), ("some", None), (None, "0s"), (None, "1h"), (None, "x")]
)
def test_what_they_cannot_mean(frames, every):
    with pytest.raises(FgvcError, match=r"--(frames|every) got"):
        parse_frames(frames, every)


def video(seconds: int = 4, ending: str = "mp4", fps: int = 10) -> bytes:
    """Of each second another grey; a key frame only at the start, as cameras save space."""
    av = pytest.importorskip("av")
    stream = io.BytesIO()
    with av.open(stream, "w", format={"mp4": "mp4", "mov": "mov", "avi": "avi"}[ending]) as container:
        track = container.add_stream("mjpeg" if ending == "avi" else "mpeg4", rate=Fraction(fps))
        track.width, track.height, track.pix_fmt = 64, 48, "yuvj420p" if ending == "avi" else "yuv420p"
        track.codec_context.gop_size = 1000
        track.bit_rate = 2_000_000
        for i in range(seconds * fps):
            container.mux(track.encode(av.VideoFrame.from_image(plain(GREYS[i // fps]))))
        container.mux(track.encode(None))
    return stream.getvalue()


SECOND = FrameChoice(None, 1.0, animations=False)


@pytest.mark.parametrize("ending", ["mp4", "mov", "avi"])
def test_a_video_in_steps_of_a_second(tmp_path, ending):
    (tmp_path / f"a.{ending}").write_bytes(video(ending=ending))
    (tmp_path / "b.gif").write_bytes(animation("GIF"))
    found = values(find_images([tmp_path], frames=SECOND))
    assert [*found] == [*(f"a.{ending}#{i}" for i in range(4)), "b.gif"]
    assert np.abs(np.array([*found.values()]) - [*GREYS[:4], GREYS[0]]).max() <= 4
    half = values(find_images([tmp_path], frames=FrameChoice(3, 0.5)))
    assert np.abs(np.array([*half.values()][:3]) - [GREYS[0], GREYS[0], GREYS[1]]).max() <= 4


def ramp(fps: Fraction, count: int, seconds_between_keys: int = 1000) -> bytes:
    """A video whose greys tell the number of each picture, from 0 in steps of 20."""
    av = pytest.importorskip("av")
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("mpeg4", rate=fps)
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        track.codec_context.gop_size = seconds_between_keys
        track.bit_rate = 2_000_000
        for i in range(count):
            container.mux(track.encode(av.VideoFrame.from_image(plain(20 * i + 20))))
        container.mux(track.encode(None))
    return stream.getvalue()


def shown(photo: DecodedImage | Failure) -> int:
    assert isinstance(photo, DecodedImage), photo
    return round((np.asarray(photo.image).mean() - 20) / 20)


@pytest.mark.parametrize("keys", [1, 3, 1000])
def test_a_sample_is_what_the_video_shows_then_not_what_comes_next(tmp_path, keys):
    (tmp_path / "a.mp4").write_bytes(ramp(Fraction(2), 10, keys))
    found = find_images([tmp_path], frames=FrameChoice(None, 0.4, animations=False))
    numbers = [shown(read_image(each.path)) for each in found]
    assert numbers == [int(0.4 * i * 2 + 1e-9) for i in range(13)]


def test_a_slow_video_has_no_failed_rows(tmp_path):
    (tmp_path / "a.mp4").write_bytes(ramp(Fraction(1, 5), 4))
    found = find_images([tmp_path], frames=SECOND)
    assert [shown(read_image(each.path)) for each in found] == [i // 5 for i in range(20)]


def test_rows_are_found_again_by_their_names(tmp_path):
    (tmp_path / "a.mp4").write_bytes(video())
    (tmp_path / "b.gif").write_bytes(animation("GIF"))
    plain(3).save(tmp_path / "c.png")
    plain(4).save(tmp_path / "d#1.png")
    for found in find_images([tmp_path], frames=FrameChoice(None, 0.5)):
        assert locate_frame(tmp_path, found.name, 0.5) == found.path


def test_a_video_in_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.mp4", video())
    assert [*values(find_images([tmp_path / "a.zip"], frames=SECOND))] == [f"x.mp4#{i}" for i in range(4)]


def test_videos_are_passed_over_unless_asked_for(tmp_path):
    (tmp_path / "a.mp4").write_bytes(video(1))
    plain(1).save(tmp_path / "b.png")
    images = find_images([tmp_path])
    assert [found.name for found in images] == ["b.png"]
    assert images.passed_over == ["1 other file passed over (.mp4 1)."]
    named = read_image(tmp_path / "a.mp4")
    assert (named.status, named.error) == (
        "not_an_image",
        "a video; fgvc predict reads its frames with --every 1s",
    )


def test_without_the_extra_the_row_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
    monkeypatch.setitem(sys.modules, "av", None)
    for found in (*find_images([tmp_path], frames=SECOND),):
        photo = read_image(found.path)
        assert found.name == "a.mp4"
        assert photo.status == "unreadable"
        assert "pip install 'fgvc[video]'" in photo.error
    frame = read_image(Frame(tmp_path / "a.mp4", 2, 1.0))
    assert "pip install 'fgvc[video]'" in frame.error


PLAYLIST = b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n"


@pytest.mark.parametrize("content", [b"", b"junk" * 100, PLAYLIST, b"\0\0\0\x18ftypmp42" + bytes(500)])
def test_a_video_that_is_none_is_one_failed_row(tmp_path, content):
    pytest.importorskip("av")
    (tmp_path / "a.mp4").write_bytes(content)
    (found,) = find_images([tmp_path], frames=SECOND)
    photo = read_image(found.path)
    assert found.name == "a.mp4"
    assert isinstance(photo, Failure)
    assert photo.status in ("not_an_image", "unreadable")


def test_a_video_that_is_cut_short(tmp_path):
    data = video(ending="avi")
    (tmp_path / "a.avi").write_bytes(data[: len(data) // 2])
    photos = [read_image(found.path) for found in find_images([tmp_path], frames=SECOND)]
    assert isinstance(photos[0], DecodedImage)
    assert all(isinstance(photo, DecodedImage) or photo.status == "truncated" for photo in photos)


def test_a_video_is_upright(tmp_path):
    av = pytest.importorskip("av")
    picture = plain(0)
    picture.paste((250, 250, 250), (0, 0, 32, 48))  # white on the left
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        track = container.add_stream("mpeg4", rate=10)
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
        for _ in range(5):
            container.mux(track.encode(av.VideoFrame.from_image(picture)))
        container.mux(track.encode(None))
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    # The matrix of the track, as a telephone that was held upright writes it: 90 degrees clockwise.
    place = data.index(b"tkhd") + 4 + 40
    turned = [0, 0x10000, 0, -0x10000, 0, 0, 48 << 16, 0, 0x40000000]
    data[place : place + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in turned)
    (tmp_path / "a.mp4").write_bytes(data)
    (found,) = find_images([tmp_path], frames=SECOND)
    image = np.asarray(read_image(found.path).image)
    assert image.shape == (64, 48, 3)
    assert image[:28].mean() > 220  # left is up now
    assert image[36:].mean() < 30
