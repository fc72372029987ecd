"""Metadata that is damaged, huge or of the wrong type never costs the pixels."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from fgvc_cli.sources.images import DecodedImage, Failure, read_image
from fgvc_cli.sources.metadata import Taken, read_video_tags

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
PICTURE = Image.fromarray(PIXELS)
BIG = zlib.compress(b"a" * 3_000_000)


def encoded(form: str, image: Image.Image = PICTURE, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


PNG, JPEG = encoded("PNG"), encoded("JPEG")


def decoded(tmp_path, data: bytes) -> np.ndarray:
    (tmp_path / "a").write_bytes(data)
    photo = read_image(tmp_path / "a")
    assert isinstance(photo, DecodedImage), photo
    return np.asarray(photo.image)


def chunk(name: bytes, body: bytes, check: int | None = None) -> bytes:
    check = zlib.crc32(name + body) if check is None else check
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


CHUNKS = {
    b"tEXt": [b"", b"k\0" + b"v" * 70_000_000],
    b"zTXt": [b"k\0\0" + BIG, b"k\0\1x", b"k\0\0junk"],
    b"iTXt": [b"k\0\1\0\0\0" + BIG, b"k"],
    b"iCCP": [b"", b"x", b"n\0", b"n\0\7x", b"n\0\0" + BIG],
    b"eXIf": [b"", b"junk"],
    b"gAMA": [b"", b"abc"],
    b"cHRM": [b"a" * 31],
    b"sRGB": [b""],
    b"pHYs": [b"a" * 8],
    b"abCd": [b"of a stranger"],
}


@pytest.mark.parametrize("check", [None, 0], ids=["", "wrong check sum"])
@pytest.mark.parametrize("name", CHUNKS)
def test_chunks_of_a_png(tmp_path, name, check):
    for body in CHUNKS[name]:
        extra = chunk(name, body, check)
        np.testing.assert_array_equal(decoded(tmp_path, PNG[:33] + extra + PNG[33:]), PIXELS)
        np.testing.assert_array_equal(decoded(tmp_path, PNG[:-12] + extra + PNG[-12:]), PIXELS)
    cut = chunk(name, b"k\0" + b"v" * 100)[:-50]
    np.testing.assert_array_equal(decoded(tmp_path, PNG[:-12] + cut), PIXELS)


def test_a_png_whose_pixels_are_damaged_still_fails(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG[: len(PNG) // 2])
    assert isinstance(read_image(tmp_path / "a.png"), Failure)
    wrong = PNG[:29] + bytes(4) + PNG[33:]  # check sum of the header
    (tmp_path / "a.png").write_bytes(wrong)
    assert isinstance(read_image(tmp_path / "a.png"), Failure)


STARTS = [
    b"JFIF\0",
    b"Exif\0\0",
    b"Exif\0\0II*\0\x08\0\0\0",
    b"ICC_PROFILE\0",
    b"MPF\0II*\0\x08\0\0\0",
    b"Adobe",
]
STARTS += [b"Photoshop 3.0\x008BIM\x03\xed\0\0", b"FPXR\0", b"http://ns.adobe.com/xap/1.0/\0"]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("start", STARTS)
def test_segments_of_a_jpeg(tmp_path, start):
    wanted = np.asarray(Image.open(io.BytesIO(JPEG)))
    for marker in (*range(0xE0, 0xF0), 0xFE):
        for extra in (b"", b"\0", b"\1\1"):
            data = JPEG[:2] + segment(marker, start + extra) + JPEG[2:]
            np.testing.assert_array_equal(decoded(tmp_path, data), wanted)


def test_an_index_of_further_pictures_without_their_number(tmp_path):
    entry = struct.pack("<HHHI4s", 1, 0xB000, 7, 4, b"0100")
    data = JPEG[:2] + segment(0xE2, b"MPF\0II*\0\x08\0\0\0" + entry + bytes(4)) + JPEG[2:]
    np.testing.assert_array_equal(decoded(tmp_path, data), np.asarray(Image.open(io.BytesIO(JPEG))))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tag", [700, 282, 305, 34675, 34665])
@pytest.mark.parametrize("kind", range(1, 17))
@pytest.mark.parametrize("count", [1, 3])
def test_tags_of_a_tiff_in_wrong_types(tmp_path, tag, kind, count):
    raw = PICTURE.tobytes()
    place = 8 + len(raw)
    tags = {256: 60, 257: 40, 259: 1, 262: 2, 273: 8, 277: 3, 278: 40, 279: len(raw)}
    entries = [struct.pack("<HHIHH", number, 3, 1, value, 0) for number, value in tags.items()]
    entries += [struct.pack("<HHII", 258, 3, 3, place), struct.pack("<HHII", tag, kind, count, place)]
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry))
    data = b"II" + struct.pack("<HI", 42, place + 40) + raw
    data += struct.pack("<HHH", 8, 8, 8).ljust(40, b"1")
    data += struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    np.testing.assert_array_equal(decoded(tmp_path, data), PIXELS)


@pytest.mark.parametrize(
    ("kind", "value"), [(2, b"6\0\0\0"), (4, b"\0\0\0\6"), (1, b"\6\0\0\0"), (3, b"\0\6\0\0")]
)
def test_an_orientation_of_any_type_is_followed(tmp_path, kind, value):
    exif = b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHI", 0x0112, kind, 1) + value + bytes(4)
    upright = decoded(tmp_path, PNG[:33] + chunk(b"eXIf", exif) + PNG[33:])
    np.testing.assert_array_equal(upright, np.rot90(PIXELS, -1))


@pytest.mark.parametrize("form", ["WEBP", "AVIF"])
def test_huge_profiles(tmp_path, form):
    plain, huge = (encoded(form, icc_profile=profile) for profile in (b"", b"x" * 3_000_000))
    np.testing.assert_array_equal(decoded(tmp_path, plain), decoded(tmp_path, huge))


SMOOTH = Image.fromarray(PIXELS).resize((600, 400))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("missing", [1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_lacks_only_its_end_marker_is_whole(tmp_path, progressive, missing, mode):
    whole = encoded("JPEG", SMOOTH.convert(mode), progressive=progressive, quality=90)
    assert whole.endswith(b"\xff\xd9")
    np.testing.assert_array_equal(decoded(tmp_path, whole[:-missing]), decoded(tmp_path, whole))


def test_a_smaller_copy_of_a_jpeg_without_its_end_marker(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded("JPEG", SMOOTH, progressive=True)[:-2])
    asked: list[tuple[int, int]] = []

    def smaller(image):
        asked.append(image.size)
        image.draft(None, (150, 100))

    photo = read_image(path, smaller)
    assert isinstance(photo, DecodedImage)
    assert (photo.image.size, photo.size, len(asked)) == ((150, 100), (600, 400), 1)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_more_is_truncated(tmp_path, progressive):
    whole = encoded("JPEG", SMOOTH, progressive=progressive, quality=90)
    scans = [place for place in range(len(whole)) if whole[place : place + 2] == b"\xff\xda"]
    # Within a scan, and between two of them: the picture would be there, less sharp.
    for end in [len(whole) - 12, len(whole) - 300, len(whole) // 2, *scans[1:]]:
        (tmp_path / "a.jpg").write_bytes(whole[:end])
        failure = read_image(tmp_path / "a.jpg")
        assert isinstance(failure, Failure), end
        assert failure.status == "truncated"


RESTARTS = [{"restart_marker_rows": 1}, {"restart_marker_blocks": 4}]


def cut_at_restarts(whole: bytes) -> list[bytes]:
    """A JPEG up to, into and behind each restart marker of its last scan."""
    start = whole.rindex(b"\xff\xda")
    marks = [place for place in range(start, len(whole) - 1) if whole[place : place + 2] in MARKS]
    assert len(marks) > 5
    return [whole[: place + more] for place in (*marks[:3], *marks[-3:]) for more in (0, 1, 2)]


MARKS = {bytes((0xFF, 0xD0 + number)) for number in range(8)}


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("restarts", RESTARTS, ids=["rows", "blocks"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_cut_at_a_restart_marker_is_truncated(tmp_path, progressive, restarts, mode):
    """A decoder fills what restarts never came for with grey, whatever the bytes behind the end are."""
    image = SMOOTH.convert(mode).resize((203, 117))
    whole = encoded("JPEG", image, progressive=progressive, quality=90, **restarts)
    for data in cut_at_restarts(whole):
        (tmp_path / "a.jpg").write_bytes(data)
        failure = read_image(tmp_path / "a.jpg")
        assert isinstance(failure, Failure), len(whole) - len(data)
        assert failure.status == "truncated"
    for missing in (1, 2):
        np.testing.assert_array_equal(decoded(tmp_path, whole[:-missing]), decoded(tmp_path, whole))


def test_restarts_in_a_scan_of_one_component_are_counted_in_its_own_blocks(tmp_path):
    """Of a size that is no multiple of a block, with colours of half its width: their scans are shorter."""
    image = SMOOTH.resize((41, 25))
    whole = encoded("JPEG", image, progressive=True, subsampling=2, quality=90, restart_marker_blocks=1)
    np.testing.assert_array_equal(decoded(tmp_path, whole[:-2]), decoded(tmp_path, whole))


def box(name: bytes, body: bytes, long: bool = False) -> bytes:
    head = struct.pack(">I", 1) + name + struct.pack(">Q", len(body) + 16) if long else b""
    return (head or struct.pack(">I", len(body) + 8) + name) + body


JP2 = encoded("JPEG2000")


def with_exif(orientation: int, form: bytes = b"JpgTiffExif->JP2", start: bytes = b"", long=False) -> bytes:
    """A JPEG 2000 with EXIF in front of its pixels."""
    exif = b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHHI", 0x0112, 3, 1, orientation, 0, 0)
    place = JP2.index(b"jp2c") - 4
    return JP2[:place] + box(b"uuid", form + start + exif, long) + JP2[place:]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_2000_is_held_upright(tmp_path, orientation):
    turn = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud}
    turn |= {5: lambda a: np.swapaxes(a, 0, 1), 6: lambda a: np.rot90(a, -1)}
    turn |= {7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2), 8: np.rot90}
    np.testing.assert_array_equal(decoded(tmp_path, with_exif(orientation)), turn[orientation](PIXELS))


@pytest.mark.parametrize("start", [b"", b"Exif\0\0"], ids=["", "as digiKam writes it"])
@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("form", [b"JpgTiffExif->JP2", bytes.fromhex("0537cdab9d0c4431a72afa561f2a113e")])
def test_exif_of_a_jpeg_2000_in_each_of_its_forms(tmp_path, form, start, long):
    upright = decoded(tmp_path, with_exif(6, form, start, long))
    np.testing.assert_array_equal(upright, np.rot90(PIXELS, -1))


def test_damaged_boxes_of_a_jpeg_2000_cost_nothing(tmp_path):
    place = JP2.index(b"jp2c") - 4
    for extra in (box(b"uuid", b"JpgTiffExif->JP2junk"), box(b"uuid", b""), box(b"free", b"x") * 2000):
        np.testing.assert_array_equal(decoded(tmp_path, JP2[:place] + extra + JP2[place:]), PIXELS)


def taken_exif(**changes) -> Image.Exif:
    """An EXIF that says everything; None leaves a tag out."""
    exif = Image.Exif()
    values = {
        "make": "Canon",
        "model": "Canon EOS R5",
        "date": "2024:05:06 07:08:09",
        "part": "25",
        "offset": "+02:00",
        "north": "S",
        "latitude": (33.0, 30.0, 36.0),
        "east": "W",
        "longitude": (70.0, 15.0, 0.0),
    } | changes
    inner, gps = exif.get_ifd(0x8769), exif.get_ifd(0x8825)
    places = {"make": (exif, 0x10F), "model": (exif, 0x110), "date": (inner, 0x9003), "part": (inner, 0x9291)}
    places |= {"offset": (inner, 0x9011), "north": (gps, 1), "latitude": (gps, 2)}
    places |= {"east": (gps, 3), "longitude": (gps, 4)}
    for name, (directory, tag) in places.items():
        if values[name] is not None:
            directory[tag] = values[name]
    exif[0x8769], exif[0x8825] = dict(inner), dict(gps)  # by hand, for TIFF
    return exif


def taken(tmp_path, exif: Image.Exif, form: str = "JPEG") -> Taken:
    (tmp_path / "a").write_bytes(encoded(form, exif=exif))
    photo = read_image(tmp_path / "a", exif=True)
    assert isinstance(photo, DecodedImage), photo
    assert read_image(tmp_path / "a").taken == Taken()  # nobody asked
    return photo.taken


SAID = Taken("2024-05-06T07:08:09.25+02:00", pytest.approx(-33.51), -70.25, "Canon EOS R5")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_what_the_camera_says_is_read_from_every_format(tmp_path, form):
    assert taken(tmp_path, taken_exif(), form) == SAID


def test_a_deep_tiff_says_it_too(tmp_path):
    grey = Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 20)
    (tmp_path / "a.tif").write_bytes(encoded("TIFF", grey, exif=taken_exif()))
    assert read_image(tmp_path / "a.tif", exif=True).taken == SAID


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"part": None, "offset": None}, {"date": "2024-05-06T07:08:09"}),
        ({"offset": "Berlin"}, {"date": "2024-05-06T07:08:09.25"}),
        ({"offset": "+99:00"}, {"date": ""}),
        ({"date": "0000:00:00 00:00:00"}, {"date": ""}),
        ({"date": "yesterday"}, {"date": ""}),
        ({"date": None}, {"date": ""}),
        ({"north": None}, {"latitude": None, "longitude": None}),
        ({"latitude": (133.0, 0.0, 0.0)}, {"latitude": None, "longitude": None}),
        ({"longitude": (70.0, IFDRational(1, 0), 0.0)}, {"latitude": None, "longitude": None}),
        ({"north": "N", "east": "E"}, {"latitude": pytest.approx(33.51), "longitude": 70.25}),
        ({"make": "RECONYX\0\0", "model": "HP2X\n"}, {"camera": "RECONYX HP2X"}),
        ({"make": None, "model": None}, {"camera": ""}),
    ],
)
def test_a_broken_part_is_blank_and_costs_no_other(tmp_path, changes, said):
    assert taken(tmp_path, taken_exif(**changes)) == SAID._replace(**said)


@pytest.mark.parametrize(
    "junk", [b"", b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_an_exif_that_is_none_leaves_the_image(tmp_path, junk):
    (tmp_path / "a").write_bytes(JPEG[:2] + segment(0xE1, junk) + JPEG[2:])
    photo = read_image(tmp_path / "a", exif=True)
    assert isinstance(photo, DecodedImage) and photo.taken == Taken()


def test_a_video_says_when_each_picture_was_taken():
    tags = {"creation_time": "2021-02-03T04:05:06.000000Z", "make": "Apple", "model": "iPhone",
            "location": "+27.5916+086.5640+8850/"}  # fmt: skip
    said = Taken("2021-02-03T04:05:08.500000+00:00", 27.5916, 86.564, "Apple iPhone")
    assert read_video_tags(tags, 2.5) == said
    unset = {"creation_time": "1904-01-01T00:00:00Z", "location": "home", "make": ""}
    assert read_video_tags(unset, 0) == read_video_tags({"location": "+95.0+0.0/"}, 0) == Taken()
