"""URLs through fsspec: the walk of a local folder, failures as rows, nothing kept, one line for users."""

import importlib.util
import io
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from PIL import Image

from fgvc_cli.errors import FgvcError
from fgvc_cli.sources import remote
from fgvc_cli.sources.find import find_images
from fgvc_cli.sources.images import DecodedImage, read_image
from fgvc_cli.sources.remote import RemoteFile
from fgvc_cli.sources.stored import Pick
from fgvc_cli.store import open_store


@pytest.fixture
def memory():
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


def png(number: int = 1) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def put(store, *names, data=None):
    for i, name in enumerate(names):
        store.pipe_file(f"/{name}", png(i) if data is None else data)


def names(*sources, **options) -> list[str]:
    return [found.name for found in find_images(list(sources), **options)]


def status(path) -> str:
    result = read_image(path)
    return "ok" if isinstance(result, DecodedImage) else result.status


TREE = [
    "p/a/z.jpg",
    "p/a-b/y.jpg",
    "p/a.jpg",
    "p/a/b/x.PNG",
    "p/a/b.jpg",
    "p/a b/w.jpg",
    "p/A/v.jpg",
    "p/a0.png",
]
NOT_FOUND = ["p/.h.jpg", "p/.git/i.jpg", "p/j.txt", "q/k.jpg"]


def test_a_remote_folder_is_walked_as_a_local_one(memory, tmp_path):
    put(memory, *TREE, *NOT_FOUND)
    for name in TREE + NOT_FOUND:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names("memory://p") == names("memory://p/") == names(tmp_path / "p")
    assert len(names("memory://p")) == len(TREE)


def test_each_name_goes_with_its_own_pixels_in_any_thread(memory):
    put(memory, *(f"p/{i:03}.png" for i in range(100)))
    images = find_images(["memory://p"])
    assert images.total is None
    found = list(images) * 3
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda f: int(np.asarray(read_image(f.path).image)[0, 0, 0]), found))
    assert numbers == [int(f.name[:3]) for f in found]
    assert max(len(pickle.dumps(f)) for f in found) < 300
    assert str(found[7].path) == "/p/007.png"


def test_with_several_sources_names_start_with_the_url_as_typed(memory):
    put(memory, "p/a.png", "q/r/b.png")
    assert names("memory://p", "memory://q/", "memory://p/a.png") == [
        "memory://p/a.png",
        "memory://q/r/b.png",
        "memory://p/a.png",
    ]


def test_a_glob_and_a_file_keep_their_url_and_are_counted(memory):
    put(memory, "p/b.png", "p/a.png", "p/s/c.png")
    put(memory, "p/n.txt", data=b"text")
    images = find_images(["memory://p/*.png"])
    assert images.total == 2
    found = list(images)
    assert [f.name for f in found] == ["memory:///p/a.png", "memory:///p/b.png"]
    assert [status(f.path) for f in found] == ["ok", "ok"]
    assert len(names("memory://p/**/*.png")) == 3
    images = find_images(["memory://p/n.txt"])
    assert images.total == 1
    ((path, name),) = images
    assert (name, status(path)) == ("memory://p/n.txt", "not_an_image")


def test_urls_in_a_list_are_read_and_what_is_wrong_is_a_row(memory):
    put(memory, "p/a.png", "d.png/e.png")
    put(memory, "p/empty.png", data=b"")
    lines = [
        b"memory://p/a.png",
        b"memory://p/gone.png",
        b"memory://p/empty.png",
        b"memory://d.png",
        b"no://x.png",
    ]
    found = list(find_images(["-"], stdin=io.BytesIO(b"\n".join(lines))))
    assert [f.name.encode() for f in found] == lines
    assert [status(f.path) for f in found] == ["ok", "missing", "empty", "not_a_file", "unreadable"]


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (PermissionError(13, "Forbidden"), "no_access"),
        (TimeoutError("slow"), "unreadable"),
        (KeyError("x"), "unreadable"),
    ],
)
def test_whatever_a_store_raises_is_a_row(memory, monkeypatch, error, word):
    put(memory, "p/a.png")

    def refuse(self, path, **options):
        raise error

    found = list(find_images(["memory://p"]))
    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    assert [status(f.path) for f in found] == [word]


def test_a_huge_object_is_not_fetched(memory, monkeypatch):
    put(memory, "p/a.png")
    monkeypatch.setattr(remote, "MAX_BYTES", 10)
    (found,) = find_images(["memory://p"])
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "cat_file", lambda *_, **__: pytest.fail("fetched"))
        assert status(found.path) == status(RemoteFile("memory://p/a.png")) == "too_large"
    # Where the store does not tell the size, no more than the limit is read.
    info = MemoryFileSystem.info
    monkeypatch.setattr(MemoryFileSystem, "info", lambda *a, **o: {**info(*a, **o), "size": None})
    assert status(RemoteFile("memory://p/a.png")) == "too_large"
    monkeypatch.setattr(remote, "MAX_BYTES", 1000)
    assert status(RemoteFile("memory://p/a.png")) == "ok"


def test_folders_are_listed_when_reached_and_their_listings_are_not_kept(memory, monkeypatch):
    put(memory, "p/a/1.png", "p/b/2.png", "p/c/3.png")
    walk = find_images(["memory://p"])
    listed = []
    ls = MemoryFileSystem.ls
    monkeypatch.setattr(
        MemoryFileSystem, "ls", lambda self, path, **options: listed.append(path) or ls(self, path, **options)
    )
    assert next(walk).name == "a/1.png"
    assert listed == ["/p", "/p/a"]
    assert not open_store("memory://p")[0].dircache.use_listings_cache


def test_a_folder_that_cannot_be_listed_is_told_and_the_walk_goes_on(memory, monkeypatch, caplog):
    put(memory, "p/a/1.png", "p/b/2.png", "p/c/3.png")
    ls = MemoryFileSystem.ls

    def deny(self, path, **options):
        if path.endswith("/b"):
            raise PermissionError(13, "Forbidden")
        return ls(self, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "ls", deny)
    told = []
    assert names("memory://p", on_unreadable=lambda *what: told.append(what)) == ["a/1.png", "c/3.png"]
    ((folder, error),) = told
    assert "/p/b" in str(folder) and "Forbidden" in error.strerror
    assert names("memory://p") == ["a/1.png", "c/3.png"]
    assert "Forbidden" in caplog.text


def test_the_marker_that_object_stores_keep_for_a_folder_is_no_image():
    infos = [
        {"name": "bucket/x.jpg", "type": "file", "size": 0},
        {"name": "bucket/x.jpg/a.jpg", "type": "file", "size": 5},
        {"name": "bucket/x.jpg/b.jpg", "type": "directory", "size": 0},
    ]
    store = SimpleNamespace(ls=lambda path, detail: infos)
    listed = remote._list_folder(store, "s3://bucket/x.jpg/", "bucket/x.jpg", lambda *_: None, Pick())
    assert [(entry.name, entry.size) for entry in reversed(listed)] == [
        ("a.jpg", 5),
        ("b.jpg", None),
        ("b.jpg/", None),
    ]


@pytest.mark.parametrize(
    ("url", "package"), [("s3://bucket/photos", "s3fs"), ("gs://bucket/photos", "gcsfs")]
)
def test_a_missing_package_is_named(monkeypatch, url, package):
    if importlib.util.find_spec(package):
        monkeypatch.setitem(sys.modules, package, None)
    # Where another test has used it, fsspec holds its class and a store that is open.
    protocol = url.partition(":")[0]
    if stored := _registry.get(protocol):
        monkeypatch.delitem(_registry, protocol)
        stored.clear_instance_cache()
    with pytest.raises(FgvcError) as caught:
        find_images([url])
    assert f"pip install {package}" in str(caught.value)
    assert "\n" not in str(caught.value)
    result = read_image(RemoteFile(f"{url}/a.jpg"))
    assert (result.status, f"pip install {package}" in result.error) == ("unreadable", True)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memory://nowhere", "Nothing lies at"),
        ("memory://p/*.webp", "Nothing lies at"),
        ("memory://texts", "holds no image"),
        ("nonsense://p", "nonsense"),
        ("zip://a.png::memory://p/a", "chained"),
        ("memory://p/a.tar", "Copy it here"),
    ],
)
def test_what_cannot_work_is_refused_at_the_call_in_one_line(memory, url, words):
    put(memory, "p/a.png", "p/a.tar", "texts/a.txt")
    with pytest.raises(FgvcError, match=words) as caught:
        find_images(["memory://p", url])
    assert "\n" not in str(caught.value)


def test_a_store_that_does_not_answer_is_one_line(memory, monkeypatch):
    put(memory, "p/a.png")

    def broken(self, path, **options):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(MemoryFileSystem, "isdir", broken)
    with pytest.raises(FgvcError, match="no route.*credentials"):
        find_images(["memory://p"])
    monkeypatch.undo()
    monkeypatch.setattr(MemoryFileSystem, "ls", broken)
    with pytest.raises(FgvcError, match="no route"):
        find_images(["memory://p"])
