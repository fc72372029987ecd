"""Archives in folders and in archives, and linked folders: read, or counted; in labelled folders too."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.errors import FgvcError
from fgvc_cli.sources.find import find_images
from fgvc_cli.sources.images import DecodedImage, Failure, read_image


def picture(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (8, 8), value).save(stream, "PNG")
    return stream.getvalue()


def packed(files: dict[str, bytes], kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return stream.getvalue()
    with tarfile.open(fileobj=stream, mode={"tar": "w", "tar.gz": "w:gz", "tar.xz": "w:xz"}[kind]) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


KINDS = ["zip", "tar", "tar.gz", "tar.xz"]


def values(images) -> dict[str, int]:
    """Name -> the grey of the picture."""
    found = {each.name: read_image(each.path) for each in images}
    assert all(isinstance(photo, DecodedImage) for photo in found.values()), found
    return {name: photo.image.getpixel((0, 0))[0] for name, photo in found.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_archives_in_a_folder(tmp_path, kind):
    files = {"b/2.png": picture(2), "a.png": picture(1), "notes.txt": b"", "deeper.zip": b"PK"}
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / f"trap.{kind}").write_bytes(packed(files, kind))
    (tmp_path / "photos" / "trap-2.png").write_bytes(picture(9))
    (tmp_path / "photos" / "z.png").write_bytes(picture(8))
    closed = find_images([tmp_path / "photos"])
    assert values(closed) == {"trap-2.png": 9, "z.png": 8}
    assert closed.passed_over == [f"1 archive passed over (.{kind} 1)."]
    opened = find_images([tmp_path / "photos"], nested=True)
    found = values(opened)
    assert found == {"trap-2.png": 9, f"trap.{kind}/a.png": 1, f"trap.{kind}/b/2.png": 2, "z.png": 8}
    if kind in ("zip", "tar"):
        assert list(found) == sorted(found)
    assert opened.passed_over == [
        "1 archive passed over (.zip 1).",
        "1 other file passed over (.txt 1).",
    ]


@pytest.mark.parametrize("outer", KINDS)
@pytest.mark.parametrize("inner", KINDS)
def test_archives_in_an_archive(tmp_path, outer, inner):
    within = packed({"b/2.png": picture(2), "a.png": picture(1), "deeper.zip": b"PK"}, inner)
    path = tmp_path / f"all.{outer}"
    path.write_bytes(
        packed({"0.png": picture(5), f"in/trap.{inner}": within, "in/trap-2.png": picture(9)}, outer)
    )
    closed = find_images([path])
    assert values(closed) == {"0.png": 5, "in/trap-2.png": 9}
    assert closed.passed_over == [f"1 archive passed over (.{inner} 1)."]
    opened = find_images([path], nested=True)
    assert values(opened) == {
        "0.png": 5,
        "in/trap-2.png": 9,
        f"in/trap.{inner}/a.png": 1,
        f"in/trap.{inner}/b/2.png": 2,
    }
    assert opened.passed_over == ["1 archive passed over (.zip 1)."]


def test_only_archives_says_what_to_type(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.zip").write_bytes(packed({"a.png": picture(1)}, "zip"))
    with pytest.raises(FgvcError) as caught:
        find_images([tmp_path / "photos"])
    assert caught.value.hint == "It holds archives (.zip 1): --nested reads them."
    assert values(find_images([tmp_path / "photos"], nested=True)) == {"a.zip/a.png": 1}
    (tmp_path / "all.zip").write_bytes(packed({"a.zip": (tmp_path / "photos" / "a.zip").read_bytes()}, "zip"))
    with pytest.raises(FgvcError, match="holds no image"):
        find_images([tmp_path / "all.zip"])
    assert values(find_images([tmp_path / "all.zip"], nested=True)) == {"a.zip/a.png": 1}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_archive", [False, True])
def test_a_damaged_one_is_a_row_and_the_others_go_on(tmp_path, kind, in_archive):
    damaged = packed({"a.png": picture(1), "b.png": picture(2) * 50}, kind)
    files = {
        f"0.{kind}": damaged[: len(damaged) // 2],
        "1.png": picture(7),
        "2.zip": packed({"c.png": picture(3)}, "zip"),
    }
    source = tmp_path / "photos"
    if in_archive:
        source = tmp_path / "photos.zip"
        source.write_bytes(packed(files, "zip"))
    else:
        source.mkdir()
        for name, data in files.items():
            (source / name).write_bytes(data)
    photos = {found.name: read_image(found.path) for found in find_images([source], nested=True)}
    failed = [name for name, photo in photos.items() if isinstance(photo, Failure)]
    assert failed
    assert all(name.startswith(f"0.{kind}") for name in failed)
    assert {"1.png", "2.zip/c.png"} <= {name for name in photos if name not in failed}


def test_what_systems_leave_behind_stays_behind_in_nested_archives(tmp_path):
    (tmp_path / "photos").mkdir()
    files = {"__MACOSX/a.png": picture(1), "a.png": picture(2), ".hidden.zip": b"PK"}
    (tmp_path / "photos" / "a.zip").write_bytes(packed(files, "zip"))
    images = find_images([tmp_path / "photos"], nested=True)
    assert values(images) == {"a.zip/a.png": 2}
    assert images.passed_over == ["2 entries that systems leave behind passed over (__MACOSX 1, hidden 1)."]


def linked(tmp_path: Path) -> Path:
    """Two classes; a link to a folder elsewhere, a second one to it, and one that leads around."""
    for name in ("finch", "wren"):
        for i in range(5):
            (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / name / f"{i}.png").write_bytes(picture(i))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.png").write_bytes(picture(50))
    (tmp_path / "set" / "finch" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "wren" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "wren" / "round").symlink_to(tmp_path / "set")
    return tmp_path / "set"


def test_linked_folders_are_followed_once_and_the_others_counted(tmp_path):
    images = find_images([linked(tmp_path)])
    names = [found.name for found in images]
    assert len(names) == 11
    assert "finch/more/x.png" in names
    assert images.passed_over == ["2 linked folders passed over."]


def test_labelled_folders_count_what_they_pass_over(tmp_path):
    root = linked(tmp_path)
    (root / "wren" / "old.zip").write_bytes(b"PK")
    (root / "wren" / "Thumbs.db").write_bytes(b"")
    (root / "readme.txt").write_text("of two birds")
    data = load_labelled(root)
    assert sum(data.counts().values()) == 10
    assert data.notes == (
        "1 entry that systems leave behind passed over (Thumbs.db 1).",
        "1 archive passed over (.zip 1).",
        "1 other file passed over (.txt 1).",
        "3 linked folders passed over.",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_archives_without_an_image_are_counted(tmp_path, kind):
    root = tmp_path / "photos"
    root.mkdir()
    (root / "a.png").write_bytes(picture(1))
    empty = packed({"notes.txt": b""}, kind)
    (root / f"empty.{kind}").write_bytes(empty)
    found = find_images([root], nested=True)
    assert values(found) == {"a.png": 1}
    assert found.passed_over == [f"1 archive passed over (.{kind} without an image 1)."]
    (tmp_path / "b.zip").write_bytes(packed({f"inner.{kind}": empty, "b.png": picture(2)}, "zip"))
    found = find_images([tmp_path / "b.zip"], nested=True)
    assert values(found) == {"b.png": 2}
    assert f"1 archive passed over (.{kind} without an image 1)." in found.passed_over


def test_a_link_to_an_archive_that_is_gone_is_a_failed_row(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    (root / "a.png").write_bytes(picture(1))
    (root / "gone.zip").symlink_to("nowhere.zip")
    images = find_images([root], nested=True)
    first, gone = images
    assert (first.name, gone.name) == ("a.png", "gone.zip")
    assert read_image(gone.path).status == "missing"
    assert images.passed_over == []
