"""Archives: every member on its own row, whatever the order, the names, the damage and the readers."""

import bz2
import gzip
import io
import itertools
import lzma
import multiprocessing
import os
import pickle
import random
import tarfile
import tracemalloc
import zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvc_cli.errors import FgvcError
from fgvc_cli.sources import archive_members
from fgvc_cli.sources.find import find_images
from fgvc_cli.sources.images import DecodedImage, read_image
from fgvc_cli.sources.stored import Lost

PLAIN = ["a.zip", "a.tar"]
COMPRESSED = ["a.tar.gz", "a.tar.bz2", "a.tar.xz"]
ALL = PLAIN + COMPRESSED


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 255 - number)).save(stream, "PNG")
    return stream.getvalue()


def number_in(path) -> int:
    result = read_image(path)
    assert isinstance(result, DecodedImage), result
    return int(np.asarray(result.image)[0, 0, 0])


def status(path) -> str:
    result = read_image(path)
    return "ok" if isinstance(result, DecodedImage) else result.status


def statuses(path) -> dict[str, str]:
    return {found.name: status(found.path) for found in find_images([path])}


def make(path: Path, members, **options) -> Path:
    """Members as (name, bytes), or for a tar as a TarInfo; the order is kept."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", **options) as archive:
            for name, data in members:
                archive.writestr(name, data)
        return path
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as archive:
        for member in members:
            name, data = (member, b"") if isinstance(member, tarfile.TarInfo) else member
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(stream.getvalue()))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def ten(shuffled: bool = True) -> list[tuple[str, bytes]]:
    members = [(f"s{i % 3}/{i}.png", png(i)) for i in range(10)]
    if shuffled:
        random.Random(0).shuffle(members)
    return members


@pytest.mark.parametrize("kind", PLAIN)
def test_members_come_sorted_each_with_its_own_pixels_and_are_counted(tmp_path, kind):
    images = find_images([make(tmp_path / kind, ten())])
    found = list(images)
    assert [f.name for f in found] == sorted(name for name, _ in ten())
    assert [number_in(f.path) for f in found] == [int(Path(f.name).stem) for f in found]
    assert images.total == 10
    assert images.notes == []
    assert str(found[0].path) == f"{tmp_path / kind}/s0/0.png"


@pytest.mark.parametrize("kind", COMPRESSED)
def test_a_compressed_tar_keeps_its_order_and_says_what_it_costs(tmp_path, kind):
    images = find_images([make(tmp_path / kind, ten())])
    found = list(images)
    assert [f.name for f in found] == [name for name, _ in ten()]
    assert [number_in(f.path) for f in found] == [int(Path(f.name).stem) for f in found]
    assert images.total is None
    (note,) = images.notes
    assert kind in note and "front to back" in note


@pytest.mark.parametrize("kind", ALL)
def test_hidden_names_are_left_out_and_no_name_leads_out_of_a_folder(tmp_path, kind):
    data = png(1)
    good = ["./b.png", "/etc/c.png", "../../d.png", "e/../f.JPG", "g//h.png"]
    left_out = [".i.png", "j/.k/l.png", "__MACOSX/m.png", "__MACOSX/._n.png", "o.txt", "png"]
    make(tmp_path / kind, [(name, data) for name in good + left_out])
    assert sorted(statuses(tmp_path / kind)) == ["b.png", "d.png", "e/f.JPG", "etc/c.png", "g/h.png"]


@pytest.mark.parametrize("kind", ALL)
def test_with_several_sources_a_name_starts_with_the_archive_as_given(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    make(tmp_path / "in" / kind, [("x.png", png(1))])
    Path("y.png").write_bytes(png(2))
    assert [f.name for f in find_images([f"./in/{kind}", "y.png"])] == [f"in/{kind}/x.png", "y.png"]
    assert [f.name for f in find_images([f"in/{kind}"])] == ["x.png"]


def test_a_glob_of_archives_is_what_the_shell_would_make_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.tar", "a.zip", "c.tgz"):
        make(tmp_path / name, [("x.png", png(1))]) if name != "c.tgz" else None
    os.rename(make(tmp_path / "c.tar.gz", [("x.png", png(1))]), "c.tgz")
    images = find_images(["?.*"])
    assert [f.name for f in images] == ["a.zip/x.png", "b.tar/x.png", "c.tgz/x.png"]
    assert len(images.notes) == 1


@pytest.mark.parametrize("kind", ALL)
def test_a_name_that_occurs_twice_has_two_rows(tmp_path, kind):
    with pytest.warns(UserWarning) if kind == "a.zip" else open(os.devnull):
        make(tmp_path / kind, [("x.png", png(1)), ("x.png", png(2))])
    assert [(f.name, number_in(f.path)) for f in find_images([tmp_path / kind])] == [
        ("x.png", 1),
        ("x.png", 2),
    ]


@pytest.mark.parametrize("ending", [".tar", ".tgz", ".tar.xz"])
def test_the_first_bytes_say_how_a_tar_is_compressed(tmp_path, ending):
    path = make(tmp_path / "a.tar.bz2", ten()).rename(tmp_path / f"b{ending}")
    assert set(statuses(path).values()) == {"ok"}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_odd_and_foreign_names(tmp_path, kind, form):
    names = ["long/" * 60 + "x.png", "näh/ü.png", "new\nline.png", "tab\t.png", 'quote".png']
    options = {} if kind == "a.zip" else {"format": form}
    make(tmp_path / kind, [(name, png(1)) for name in names], **options)
    assert statuses(tmp_path / kind) == dict.fromkeys(names, "ok")


def test_names_that_are_not_utf8(tmp_path):
    odd = os.fsdecode(b"caf\xe9.png")
    make(tmp_path / "a.tar", [(odd, png(1))], format=tarfile.GNU_FORMAT)
    assert statuses(tmp_path / "a.tar") == {odd: "ok"}
    # é as the code page of old, as UTF-8 that does not say so, and as UTF-8 that is none.
    plain = make(tmp_path / "a.zip", [("cafeXX.png", png(1))]).read_bytes()
    for raw, flag, name in (
        (b"caf\x82XX", 0, "caféXX.png"),
        ("caféX".encode(), 0, "caféX.png"),
        (b"caf\xe9XX", 8, os.fsdecode(b"caf\xe9XX.png")),
    ):
        data = bytearray(plain.replace(b"cafeXX", raw))
        data[data.index(b"PK\3\4") + 7] = data[data.index(b"PK\1\2") + 9] = flag
        (tmp_path / "a.zip").write_bytes(data)
        assert statuses(tmp_path / "a.zip") == {name: "ok"}


def test_links_in_a_plain_tar_lead_to_their_image(tmp_path):
    members = [
        special("album/soft.png", tarfile.SYMTYPE, "../store/7.png"),
        special("album/twice.png", tarfile.SYMTYPE, "soft.png"),
        special("./hard.png", tarfile.LNKTYPE, "./store/7.png"),
        special("blob.png", tarfile.SYMTYPE, "store/blob"),
        special("loop.png", tarfile.SYMTYPE, "loop.png"),
        special("out.png", tarfile.SYMTYPE, "/etc/passwd"),
        special("up.png", tarfile.SYMTYPE, "../../x.png"),
        ("./store/7.png", png(7)),
        ("store/8.png", png(8)),
        ("store/blob", png(9)),
    ]
    make(tmp_path / "a.tar", members)
    found = {f.name: f.path for f in find_images([tmp_path / "a.tar"])}
    read = {"album/soft.png": 7, "album/twice.png": 7, "hard.png": 7, "store/7.png": 7, "store/8.png": 8}
    read["blob.png"] = 9
    assert {name: number_in(found[name]) for name in read} == read
    assert {name: status(found[name]) for name in found.keys() - read.keys()} == dict.fromkeys(
        ("loop.png", "out.png", "up.png"), "missing"
    )
    assert list(found) == sorted(found)


def test_members_that_are_no_files_are_rows_that_say_so(tmp_path):
    members = [
        ("a.png", png(1)),
        special("b.png", tarfile.DIRTYPE),
        special("c.png", tarfile.FIFOTYPE),
        special("d.png", tarfile.CHRTYPE),
        ("b.png/e.png", png(2)),
        ("f.png", b""),
        ("g.png", b"text"),
    ]
    expected = {"a.png": "ok", "b.png": "not_a_file", "c.png": "not_a_file", "d.png": "not_a_file"}
    expected |= {"b.png/e.png": "ok", "f.png": "empty", "g.png": "not_an_image"}
    assert statuses(make(tmp_path / "a.tar", members)) == expected
    link = special("h.png", tarfile.SYMTYPE, "a.png")
    assert statuses(make(tmp_path / "a.tar.gz", [*members, link])) == expected | {"h.png": "not_a_file"}
    link = zipfile.ZipInfo("c.png")
    link.external_attr, link.create_system = 0o120777 << 16, 3
    in_zip = [("a.png", png(1)), ("b.png/", b""), (link, b"a.png"), ("f.png", b""), ("g.png", b"text")]
    path = make(tmp_path / "a.zip", in_zip)
    assert statuses(path) == {name: expected[name] for name in ("a.png", "b.png", "c.png", "f.png", "g.png")}


def test_a_file_with_holes_is_refused_not_misread(tmp_path):
    info = tarfile.TarInfo("a.png")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,4"}
    info.pax_headers |= {"GNU.sparse.size": "9"}
    make(tmp_path / "a.tar", [(info, png(1)), ("b.png", png(2))], format=tarfile.PAX_FORMAT)
    assert statuses(tmp_path / "a.tar") == {"a.png": "unreadable", "b.png": "ok"}


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_zip_gives_the_bytes_that_zipfile_gives(tmp_path, method):
    """With bytes before the archive and a comment behind it, as self-extracting ones have."""
    rng = random.Random(method)
    members = [
        (f"{i}.png", rng.randbytes(rng.randrange(3000)) + bytes(rng.randrange(3000))) for i in range(20)
    ]
    path = make(tmp_path / "a.zip", members, compression=method)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"PK\5 a comment"
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    read = {f.name: f.path.open().read() for f in find_images([path])}
    with zipfile.ZipFile(path) as archive:
        assert read == {name: archive.read(name) for name in archive.namelist()} == dict(members)


def test_zip64(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    path = make(tmp_path / "a.zip", ten())
    data = path.read_bytes()
    assert b"PK\6\6" in data
    for content in (data, b"before" + data):
        path.write_bytes(content)
        found = list(find_images([path]))
        assert [number_in(f.path) for f in found] == [int(Path(f.name).stem) for f in found]


def patched(path: Path, change) -> Path:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return path


def test_an_encrypted_member_is_a_row_beside_good_ones(tmp_path):
    def encrypt(data):
        data[data.index(b"PK\3\4") + 6] |= 1
        data[data.index(b"PK\1\2") + 8] |= 1

    path = patched(make(tmp_path / "a.zip", [("a.png", png(1)), ("b.png", png(2))]), encrypt)
    assert statuses(path) == {"a.png": "no_access", "b.png": "ok"}


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
@pytest.mark.parametrize("place", ["data", "header", "method", "size"])
def test_a_damaged_zip_member_is_a_row_and_never_wrong_pixels(tmp_path, method, place):
    def damage(data):
        second = data.index(b"PK\3\4", 4)
        record = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)
        at = {"data": second + 30 + 5 + 40, "header": second, "method": record + 10, "size": record + 24}
        data[at[place]] ^= 0x7 if place == "method" else 0x1F

    members = [(f"{i}.png", png(i)) for i in range(3)]
    path = patched(make(tmp_path / "a.zip", members, compression=method), damage)
    assert statuses(path) == {"0.png": "ok", "1.png": "unreadable", "2.png": "ok"}


def test_a_bomb_is_refused_by_its_size_and_no_lie_about_it_takes_memory(tmp_path, monkeypatch):
    members = [("a.png", bytes(50_000_000)), ("b.png", png(1))]
    path = make(tmp_path / "a.zip", members, compression=zipfile.ZIP_DEFLATED)

    def lie(data):
        record = data.index(b"PK\1\2")
        data[record + 24 : record + 28] = (100).to_bytes(4, "little")

    patched(path, lie)
    tracemalloc.start()
    try:
        assert statuses(path) == {"a.png": "unreadable", "b.png": "ok"}
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    monkeypatch.setattr(archive_members, "MAX_BYTES", 1000)
    for kind in ALL:
        assert statuses(make(tmp_path / kind, [("a.png", bytes(1001)), ("b.png", png(1))])) == {
            "a.png": "too_large",
            "b.png": "ok",
        }


def test_a_zip_without_its_end_is_one_clear_line(tmp_path):
    path = make(tmp_path / "a.zip", ten())
    whole = path.read_bytes()
    for length in (3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FgvcError, match="directory.* missing") as caught:
            find_images([path])
        assert "\n" not in str(caught.value)


def test_a_zip_whose_directory_breaks_off_gives_what_it_can_and_a_failed_row(tmp_path):
    def damage(data):
        record = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)
        data[record : record + 4] = b"nope"

    path = patched(make(tmp_path / "a.zip", ten(shuffled=False)), damage)
    assert statuses(path) == {"s0/0.png": "ok", path.as_posix(): "truncated"}


def noise(number: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["a.tar", *COMPRESSED])
def test_a_tar_cut_in_an_image_gives_the_whole_ones_and_failed_rows(tmp_path, kind):
    # bzip2 gives a block of 900 kB whole or not at all.
    count = 200 if kind == "a.tar.bz2" else 20
    path = make(tmp_path / kind, [(f"{i:03}.png", noise(i)) for i in range(count)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    words = list(statuses(path).items())
    assert words.pop() == (path.as_posix(), "truncated")
    assert words.pop()[1] == "truncated"
    assert words == [(f"{i:03}.png", "ok") for i in range(len(words))]
    assert count * 0.3 < len(words) < count * 0.7


def test_a_tar_without_its_end_mark_says_that_rows_may_be_missing(tmp_path):
    path = make(tmp_path / "a.tar", [("a.png", png(1)), ("b.png", png(2))])
    path.write_bytes(path.read_bytes()[: 2 * 1024])
    assert statuses(path) == {"a.png": "ok", "b.png": "ok", path.as_posix(): "truncated"}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_damaged_header_within_a_tar_is_not_taken_for_its_end(tmp_path, pack):
    path = make(tmp_path / "a.tar", [(f"{i}.png", png(i)) for i in range(3)])
    patched(path, lambda data: data.__setitem__(1024 + 100, 0x39))
    path.write_bytes(pack(path.read_bytes()))
    assert statuses(path) == {"0.png": "ok", path.as_posix(): "truncated"}


def test_a_negative_size_does_not_send_the_reader_round_for_ever(tmp_path):
    path = make(tmp_path / "a.tar", [("a.png", png(1)), ("b.png", png(2))])

    def lie(data):
        data[1024 + 124 : 1024 + 136] = b"\xff" * 10 + b"\xfa\x00"
        data[1024 + 148 : 1024 + 156] = b" " * 8
        data[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(data[1024:1536])

    with patched(path, lie).open("rb") as stream, pytest.raises(archive_members.Damaged):
        assert len(list(itertools.islice(archive_members.tar_members(stream), 50))) < 50
    assert statuses(path) == {"a.png": "ok", path.as_posix(): "truncated"}


@pytest.mark.parametrize("kind", ["a.tar", "a.tar.gz"])
def test_a_header_that_would_fill_memory_is_damage(tmp_path, kind):
    info = tarfile.TarInfo("b.png")
    info.pax_headers = {"comment": "x" * 2_000_000}
    path = make(tmp_path / kind, [("a.png", png(1)), (info, png(2))], format=tarfile.PAX_FORMAT)
    assert statuses(path) == {"a.png": "ok", path.as_posix(): "truncated"}


@pytest.mark.parametrize("kind", PLAIN)
def test_an_archive_replaced_meanwhile_gives_failures_and_never_other_pixels(tmp_path, kind):
    path = make(tmp_path / kind, ten(shuffled=False))
    images = find_images([path])
    first = next(images)
    assert number_in(first.path) == 0
    make(tmp_path / kind, [(name, png(99)) for name, _ in ten(shuffled=False)])
    os.utime(path, ns=(1, 1))
    rest = list(images)
    assert {status(f.path) for f in [first, *rest]} == {"unreadable"}
    path.unlink()
    assert {status(f.path) for f in rest} == {"missing"}


@pytest.mark.parametrize("kind", ALL)
def test_an_archive_that_vanishes_before_its_turn_is_a_failed_row(tmp_path, kind):
    images = find_images([make(tmp_path / kind, ten())])
    (tmp_path / kind).unlink()
    ((path, name),) = images
    assert isinstance(path, Lost)
    assert name == (tmp_path / kind).as_posix()


@pytest.mark.parametrize("kind", ALL)
def test_readers_in_threads_do_not_disturb_each_other(tmp_path, kind):
    found = list(find_images([make(tmp_path / kind, [(f"{i:03}.png", png(i)) for i in range(200)])])) * 3
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda f: number_in(f.path), found)) == list(range(200)) * 3


def test_readers_in_processes_get_small_objects(tmp_path):
    found = [f for kind in ALL for f in find_images([make(tmp_path / kind, ten(shuffled=False))])]
    assert max(len(pickle.dumps(f)) for f in found) < 1000
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        numbers = list(pool.map(number_in, [f.path for f in found]))
    assert numbers == [int(Path(f.name).stem) for f in found]


@pytest.mark.parametrize("kind", PLAIN)
def test_passing_over_members_opens_nothing(tmp_path, monkeypatch, kind):
    images = find_images([make(tmp_path / kind, ten())])
    next(images)

    def forbidden(*arguments, **options):
        raise AssertionError("opened")

    monkeypatch.setattr("builtins.open", forbidden)
    monkeypatch.setattr(os, "stat", forbidden)
    assert len(list(images)) == 9


def traced_peak(function) -> int:
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", PLAIN)
def test_memory_is_a_small_entry_per_image(tmp_path, kind):
    names = [f"photos/2024/summer/IMG_{i:05}.jpg" for i in range(3000)]
    path = make(tmp_path / kind, [(name, b"") for name in names])
    peak = traced_peak(lambda: sum(1 for _ in find_images([path])))
    assert peak < 100_000 + 150 * len(names)


@pytest.mark.parametrize("kind", COMPRESSED)
def test_memory_for_a_compressed_tar_does_not_grow(tmp_path, kind):
    path = make(tmp_path / kind, [(f"{i}.png", bytes(200_000)) for i in range(100)])
    list(itertools.islice(find_images([path]), 2))
    few = traced_peak(lambda: sum(1 for _ in itertools.islice(find_images([path]), 10)))
    assert traced_peak(lambda: sum(1 for _ in find_images([path]))) < few + 500_000


@pytest.mark.parametrize("kind", ALL)
def test_archives_that_cannot_be_read_are_refused_in_one_line(tmp_path, kind):
    for content in (b"", b"text", b"\x1f\x8bgarbage", b"BZhgarbage", bytes(100), b"PK\3\4garbage"):
        (tmp_path / kind).write_bytes(content)
        with pytest.raises(FgvcError) as caught:
            find_images([tmp_path / kind])
        assert kind in str(caught.value)
        assert "\n" not in str(caught.value) and caught.value.hint


@pytest.mark.parametrize("kind", ALL)
def test_archives_without_an_image_are_refused(tmp_path, kind):
    for members in ([], [("a.txt", b"text"), ("__MACOSX/b.png", png(1))]):
        with pytest.raises(FgvcError, match="holds no image"):
            find_images([make(tmp_path / kind, members)])


@pytest.mark.parametrize("name", ["a.rar", "a.7z", "a.tar.zst", "A.TAR.ZST"])
def test_archives_of_other_kinds_are_refused_rather_than_called_bad_images(tmp_path, name):
    (tmp_path / name).write_bytes(b"whatever")
    with pytest.raises(FgvcError, match="Unpack it"):
        find_images([tmp_path / name])


def test_names_of_archives_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "x.tar")
    (tmp_path / "y.zip").mkdir()
    (tmp_path / "y.zip" / "z.png").write_bytes(png(1))
    assert statuses(tmp_path / "x.tar") == {(tmp_path / "x.tar").as_posix(): "not_a_file"}
    assert statuses(tmp_path / "y.zip") == {"z.png": "ok"}
    make(tmp_path / "y.zip" / "inner.zip", [("a.png", png(1))])
    assert statuses(tmp_path / "y.zip") == {"z.png": "ok"}
