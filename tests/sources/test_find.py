"""The walk: order, laziness, links, names, and errors that come before any work."""

import io
import os
import random
from pathlib import Path

import pytest

from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.sources.find import find_images, read_list


def plant(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def names(*sources, **options) -> list[str]:
    return [found.name for found in find_images([str(s) for s in sources], **options)]


def test_only_image_endings_in_any_case_and_nothing_hidden(tmp_path):
    plant(tmp_path, "a.jpg", "b.JPEG", "c.Png", "d.txt", "jpg", "e.tif", ".f.jpg", ".git/g.jpg", "s/h.webp")
    assert names(tmp_path) == ["a.jpg", "b.JPEG", "c.Png", "e.tif", "s/h.webp"]


def test_folder_order_equals_sorting_the_relative_paths(tmp_path):
    plant(tmp_path, "a/z.jpg", "a-b/y.jpg", "a.jpg", "a/b/x.jpg", "a/b.jpg", "a b/w.jpg", "A/v.jpg", "a0.png")
    found = names(tmp_path)
    assert found == sorted(found)
    assert found.index("a-b/y.jpg") < found.index("a.jpg") < found.index("a/b.jpg") < found.index("a0.png")


def test_order_of_a_random_tree(tmp_path):
    rng = random.Random(0)
    parts = ["a", "a-", "a.b", "a b", "ab", "B", "a!", "~"]
    planted = {"/".join(rng.choice(parts) for _ in range(rng.randint(1, 4))) + "_.jpg" for _ in range(200)}
    assert names(plant(tmp_path, *planted)) == sorted(planted)


def test_found_paths_open(tmp_path):
    (found,) = find_images([plant(tmp_path, "s/a.jpg")])
    assert found.path == tmp_path / "s" / "a.jpg"


def test_folders_are_listed_only_when_reached(tmp_path, monkeypatch):
    plant(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
    walk = find_images([tmp_path])
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path).name) or scandir(path))
    assert next(walk).name == "a/1.jpg"
    assert listed == [tmp_path.name, "a"]


def test_link_loops_end_and_no_image_comes_twice(tmp_path):
    plant(tmp_path, "photos/a/1.jpg", "photos/b/2.jpg")
    photos = tmp_path / "photos"
    (photos / "a" / "up").symlink_to(photos)
    (photos / "a" / "above").symlink_to(tmp_path)
    (photos / "b" / "self").symlink_to(photos / "b" / "self")
    (photos / "c").symlink_to(photos / "b")
    assert names(photos) == ["a/1.jpg", "b/2.jpg"]


def test_a_linked_folder_outside_is_followed_once(tmp_path):
    plant(tmp_path, "photos/a.jpg", "album/1.jpg")
    for link in ("x", "y"):
        (tmp_path / "photos" / link).symlink_to(tmp_path / "album")
    assert names(tmp_path / "photos") == ["a.jpg", "x/1.jpg"]


def test_a_broken_link_and_a_folder_called_like_an_image_are_yielded(tmp_path):
    plant(tmp_path, "x.jpg/inside.jpg", "x.jpg-y/b.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    assert names(tmp_path) == ["gone.jpg", "x.jpg", "x.jpg-y/b.jpg", "x.jpg/inside.jpg"]


def test_an_unreadable_sub_folder_is_reported_and_the_walk_goes_on(tmp_path, monkeypatch, caplog):
    plant(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
    scandir = os.scandir

    def deny(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    told = []
    assert names(tmp_path, on_unreadable=lambda path, error: told.append((path.name, error.errno))) == [
        "a/1.jpg",
        "c/3.jpg",
    ]
    assert told == [("b", 13)]
    assert names(tmp_path) == ["a/1.jpg", "c/3.jpg"]
    assert "Permission denied" in caplog.text


def test_names_that_are_not_utf8_are_found(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.jpg")).touch()
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    (found,) = find_images([tmp_path])
    assert os.fsencode(found.name) == b"caf\xe9.jpg"
    assert found.path.exists()


def test_a_file_named_by_the_user_is_taken_whatever_its_ending(tmp_path, monkeypatch):
    plant(tmp_path, "s/picture.dat", "s/.hidden.jpg", "s/img[1].jpg")
    monkeypatch.chdir(tmp_path)
    assert names("s/picture.dat", "./s/.hidden.jpg", "s/img[1].jpg") == [
        "s/picture.dat",
        "s/.hidden.jpg",
        "s/img[1].jpg",
    ]


def test_globs_give_their_files_sorted_under_the_path_as_given(tmp_path, monkeypatch):
    plant(tmp_path, "s/b.jpg", "s/a.jpg", "s/t/c.jpg", "s/n.txt")
    monkeypatch.chdir(tmp_path)
    assert names("s/*.jpg") == ["s/a.jpg", "s/b.jpg"]
    assert names("s/**/*.jpg") == ["s/a.jpg", "s/b.jpg", "s/t/c.jpg"]


def test_equal_names_in_several_folders_are_told_apart(tmp_path, monkeypatch):
    plant(tmp_path, "b/1.jpg", "a/1.jpg", "3.jpg")
    monkeypatch.chdir(tmp_path)
    assert names("b", "a/", "3.jpg") == ["b/1.jpg", "a/1.jpg", "3.jpg"]
    assert names("b") == ["1.jpg"]
    assert names(".", "b/1.jpg") == ["3.jpg", "a/1.jpg", "b/1.jpg", "b/1.jpg"]


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.jpg", "empty", "texts", ""])
def test_sources_without_images_are_refused_at_the_call(tmp_path, monkeypatch, source):
    plant(tmp_path, "good/a.jpg", "texts/a.txt", "texts/.hidden.jpg")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FgvcError) as caught:
        find_images(["good", source])
    assert source in str(caught.value)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_no_source_at_all_is_a_usage_error():
    with pytest.raises(FgvcError) as caught:
        find_images([])
    assert caught.value.exit_code == EXIT_USAGE


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    def deny(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(FgvcError, match="Permission denied"):
        find_images([tmp_path])


def test_list_takes_lf_crlf_blank_lines_spaces_and_any_bytes():
    stream = io.BytesIO(b"a.jpg\r\n\n./s/b c.jpg\n \ncaf\xe9.jpg\nlast .jpg")
    found = [os.fsencode(found.name) for found in read_list(stream)]
    assert found == [b"a.jpg", b"s/b c.jpg", b"caf\xe9.jpg", b"last .jpg"]


def test_list_is_read_lazily():
    stream = io.BytesIO(b"a.jpg\nb.jpg\n")
    assert next(read_list(stream)).name == "a.jpg"
    assert stream.read() == b"b.jpg\n"


def test_empty_list_is_refused():
    with pytest.raises(FgvcError, match="empty"):
        list(read_list(io.BytesIO(b"\n\n")))


@pytest.mark.parametrize("null", [False, True])
def test_a_list_in_a_file_is_counted_and_its_paths_start_at_the_working_directory(
    tmp_path, monkeypatch, null
):
    plant(tmp_path, "lists/x.txt", "s/a.jpg")
    monkeypatch.chdir(tmp_path)
    end = b"\0" if null else b"\n"
    entries = [b"s/a.jpg", b"caf\xe9.jpg", b"gone b.jpg", b"s3://bucket/c.jpg"]
    Path("lists/x.txt").write_bytes(end.join([*entries, b""]))
    images = find_images(["@lists/x.txt"], null=null)
    assert images.total == 4
    found = list(images)
    assert [os.fsencode(f.name) for f in found] == entries
    assert found[0].path.exists()
    assert names("s", "@lists/x.txt", null=null)[0] == "s/a.jpg"


def test_a_list_with_nul_takes_newlines_and_blanks_in_names(tmp_path):
    (tmp_path / "x").write_bytes(b"new\nline.jpg\0\0 \0tail\r\n.jpg")
    images = find_images([f"@{tmp_path}/x"], null=True)
    assert images.total == 3
    assert [f.name for f in images] == ["new\nline.jpg", " ", "tail\r\n.jpg"]


@pytest.mark.parametrize("null", [False, True])
def test_entries_come_as_soon_as_they_are_sent(null):
    reader, writer = os.pipe()
    with open(reader, "rb") as stream, open(writer, "wb", buffering=0) as sender:
        images = find_images(["-"], stdin=stream, null=null)
        assert images.total is None
        for name in (b"a.jpg", b"b.jpg"):
            sender.write(name + (b"\0" if null else b"\n"))
            assert next(images).name == name.decode()


def test_an_entry_longer_than_a_chunk_and_one_split_between_chunks(tmp_path):
    entries = [f"{i:05}/" + "x" * (i % 700) + ".jpg" for i in range(2000)]
    (tmp_path / "x").write_text("\0".join(entries))
    assert names(f"@{tmp_path}/x", null=True) == entries


def test_a_list_from_a_pipe_in_place_of_a_file_is_read_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    keep = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        os.write(keep, b"a.jpg\nb.jpg\n")
        images = find_images([f"@{tmp_path}/pipe"])
        assert images.total is None
        assert [next(images).name, next(images).name] == ["a.jpg", "b.jpg"]
    finally:
        os.close(keep)


@pytest.mark.parametrize(
    "content", [None, b"", b"\n \n", b"x" * 70_000], ids=["gone", "empty", "blank", "long"]
)
def test_lists_that_are_none_are_refused_at_the_call(tmp_path, content):
    if content is not None:
        (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(FgvcError) as caught:
        find_images([f"@{tmp_path}/x.txt"])
    assert caught.value.hint and "\n" not in str(caught.value)
    with pytest.raises(FgvcError, match="Cannot read the list @"):
        find_images(["@"])


def test_a_list_with_nul_where_newlines_are_expected_names_the_option():
    with pytest.raises(FgvcError, match="-0"):
        list(find_images(["-"], stdin=io.BytesIO(b"a.jpg\0b.jpg\0")))


def test_null_without_a_list_and_stdin_beside_others_are_usage_errors(tmp_path):
    plant(tmp_path, "a.jpg")
    for sources, null, word in (([tmp_path], True, "-0"), ([tmp_path, "-"], False, "stdin")):
        with pytest.raises(FgvcError, match=word) as caught:
            find_images(sources, null=null)
        assert caught.value.exit_code == EXIT_USAGE


def test_what_is_called_like_a_list_and_exists_is_no_list(tmp_path, monkeypatch):
    plant(tmp_path, "@eaDir/a.jpg", "eaDir", "@b.jpg")
    (tmp_path / "b.jpg").write_text("x.jpg")
    monkeypatch.chdir(tmp_path)
    assert names("@eaDir") == ["a.jpg"]
    assert names("@b.jpg") == ["@b.jpg"]


def test_the_total_is_known_for_files_and_globs_and_not_for_folders(tmp_path, monkeypatch):
    plant(tmp_path, "s/a.jpg", "s/b.jpg", "t/c.jpg")
    monkeypatch.chdir(tmp_path)
    assert find_images(["s/*.jpg", "t/c.jpg"]).total == 3
    assert find_images(["s/*.jpg", "t"]).total is None


def test_passing_over_images_looks_nothing_up(tmp_path, monkeypatch):
    plant(tmp_path, *(f"a/{i}.jpg" for i in range(5)))
    (tmp_path / "x.txt").write_text("gone/1.jpg\ngone/2.jpg\n")
    images = find_images([tmp_path / "a", f"@{tmp_path}/x.txt"])
    next(images)

    def forbidden(*arguments, **options):
        raise AssertionError("looked up")

    for function in ("stat", "lstat", "scandir"):
        monkeypatch.setattr(os, function, forbidden)
    assert len(list(images)) == 6


def test_names_with_newlines_are_found(tmp_path):
    plant(tmp_path, "new\nfolder/a\nb.jpg")
    assert names(tmp_path) == ["new\nfolder/a\nb.jpg"]


def test_a_file_url_is_the_local_path(tmp_path):
    plant(tmp_path, "my photos/a b.jpg")
    os.mkfifo(tmp_path / "my photos" / "fifo.jpg")
    url = f"file://{tmp_path}/my%20photos"
    assert names(url) == ["a b.jpg", "fifo.jpg"]
    ((path, name),) = find_images(["-"], stdin=io.BytesIO(f"{url}/fifo.jpg\n".encode()))
    assert path == tmp_path / "my photos" / "fifo.jpg" == Path(name)
