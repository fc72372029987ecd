"""A known set from a local server to its folder: whole or not at all."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from known_trees import tar_of, tiny
from range_server import Site, serve

from fgvc_cli.datasets.entries import Archive, KnownSet
from fgvc_cli.datasets.get import get_known
from fgvc_cli.datasets.registry import known_sets
from fgvc_cli.errors import FgvcError


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as running:
        yield running


def zip_of(folder: Path, name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as zipped:
        for file in sorted(folder.rglob("*")):
            zipped.write(file, f"{name}/{file.relative_to(folder)}")
    return stream.getvalue()


def offered_cub(tmp_path: Path, site: Site) -> KnownSet:
    """CUB, tiny, at the local server."""
    entry, root = tiny("cub", tmp_path / "origin")
    body = site.files["/CUB_200_2011.tgz"] = tar_of(root, "CUB_200_2011")
    archive = Archive(f"{site.url}/CUB_200_2011.tgz", hashlib.md5(body).hexdigest())
    return replace(entry, archives=(archive,))


def test_tar(tmp_path: Path, site: Site) -> None:
    entry = offered_cub(tmp_path, site)
    listing = get_known(entry, tmp_path / "data")
    assert listing.root == tmp_path / "data" / "CUB_200_2011"
    assert listing.counts() == {"train": 5, "val": 0, "test": 2}
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["CUB_200_2011"]


def test_zip_of_a_repository(tmp_path: Path, site: Site) -> None:
    entry, root = tiny("grocery", tmp_path / "origin")
    site.files["/zip/refs/heads/master"] = zip_of(root, entry.archive_folder)
    entry = replace(entry, archives=(Archive(f"{site.url}/zip/refs/heads/master"),))
    assert get_known(entry, tmp_path / "data").root == tmp_path / "data" / "grocery"


def test_several_files_into_one_folder(tmp_path: Path, site: Site) -> None:
    entry, root = tiny("dogs", tmp_path / "origin")
    site.files = {
        "/images.tar": tar_of(root / "Images", "Images"),
        "/train_list.mat": (root / "train_list.mat").read_bytes(),
        "/test_list.mat": (root / "test_list.mat").read_bytes(),
    }
    archives = tuple(Archive(f"{site.url}{path}", into="stanford_dogs") for path in site.files)
    assert get_known(replace(entry, archives=archives), tmp_path / "data").counts()["test"] == 2


def test_contents_other_than_the_official_ones_get_no_name(tmp_path: Path, site: Site) -> None:
    entry = replace(offered_cub(tmp_path, site), train=6)
    with pytest.raises(FgvcError, match=r"not CUB-200-2011 as published: .* lists 2 classes, 5 train"):
        get_known(entry, tmp_path / "data")
    assert not (tmp_path / "data" / "CUB_200_2011").exists()


def test_what_is_there_is_left_alone(tmp_path: Path, site: Site) -> None:
    entry = offered_cub(tmp_path, site)
    (tmp_path / "data" / "CUB_200_2011").mkdir(parents=True)
    with pytest.raises(FgvcError, match="CUB_200_2011 is there, but it is not"):
        get_known(entry, tmp_path / "data")
    assert not site.asked


def test_a_damaged_archive_is_removed(tmp_path: Path, site: Site) -> None:
    entry = offered_cub(tmp_path, site)
    body = site.files["/CUB_200_2011.tgz"]
    site.files["/CUB_200_2011.tgz"] = body[: len(body) // 2]
    entry = replace(entry, archives=(replace(entry.archives[0], md5=None),))
    with pytest.raises(FgvcError, match="does not unpack"):
        get_known(entry, tmp_path / "data")
    site.files["/CUB_200_2011.tgz"] = body
    assert get_known(entry, tmp_path / "data").counts()["train"] == 5


def test_a_name_that_leads_outside_is_refused(tmp_path: Path, site: Site) -> None:
    entry = offered_cub(tmp_path, site)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tarred:
        tarred.addfile(tarfile.TarInfo("../../../outside.txt"), io.BytesIO())
    site.files["/CUB_200_2011.tgz"] = stream.getvalue()
    entry = replace(entry, archives=(replace(entry.archives[0], md5=None),))
    with pytest.raises(FgvcError, match="OutsideDestination"):
        get_known(entry, tmp_path / "data")
    assert not list(tmp_path.rglob("outside.txt"))


def test_no_official_address_says_where_to_ask(tmp_path: Path) -> None:
    for entry in known_sets():
        if not entry.archives:
            with pytest.raises(FgvcError) as caught:
                get_known(entry, tmp_path)
            assert entry.source in str(caught.value) and entry.tree in str(caught.value)
    assert {e.key for e in known_sets() if not e.archives} == {"cars", "plant2020", "plant2021"}
    assert not list(tmp_path.iterdir())


KILLED = """
import sys
from dataclasses import replace
from pathlib import Path
from fgvc_cli.datasets.get import get_known
from fgvc_cli.datasets.entries import Archive
from fgvc_cli.datasets.registry import find_known
entry = replace(find_known("cub"), archives=(Archive(sys.argv[1]),))
get_known(entry, Path(sys.argv[2]))
"""


def test_a_killed_unpacking_leaves_nothing_half_and_is_done_again(tmp_path: Path, site: Site) -> None:
    entry, root = tiny("cub", tmp_path / "origin")
    for i in range(4000):  # many files, so that the kill meets it at work
        (root / f"note_{i}.txt").touch()
    site.files["/CUB_200_2011.tgz"] = tar_of(root, "CUB_200_2011")
    url = f"{site.url}/CUB_200_2011.tgz"
    unpacked = tmp_path / "data" / ".downloads" / "CUB_200_2011" / "tree" / "CUB_200_2011"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, url, str(tmp_path / "data")], cwd=Path(__file__).parents[2]
    )
    deadline = time.monotonic() + 60
    while not unpacked.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert unpacked.exists()
    assert not (tmp_path / "data" / "CUB_200_2011").exists()
    stale = unpacked / "stale.txt"
    stale.touch()
    listing = get_known(replace(entry, archives=(Archive(url),)), tmp_path / "data")
    assert len(list(listing.root.glob("note_*.txt"))) == 4000
    assert not (listing.root / "stale.txt").exists()
    assert len(site.asked) == 1, "the archive that had arrived is not fetched again"
