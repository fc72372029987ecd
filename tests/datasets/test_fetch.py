"""Downloads from a local server that breaks off, forgets ranges, and changes the file."""

from __future__ import annotations

import hashlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from range_server import Site, serve

from fgvc_cli.datasets.get import fetch
from fgvc_cli.errors import FgvcError

BODY = random.Random(0).randbytes(3_000_000)
MD5 = hashlib.md5(BODY).hexdigest()


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as running:
        running.files["/set.tgz"] = BODY
        yield running


def test_a_whole_file_and_nothing_else_arrives(tmp_path: Path, site: Site) -> None:
    seen: list[tuple[int, int | None]] = []
    fetch(f"{site.url}/set.tgz", tmp_path / "set.tgz", md5=MD5, on_bytes=lambda *now: seen.append(now))
    assert [p.name for p in tmp_path.iterdir()] == ["set.tgz"]
    assert (tmp_path / "set.tgz").read_bytes() == BODY
    assert seen[0] == (0, len(BODY)) and seen[-1] == (len(BODY), len(BODY))


def test_a_broken_connection_is_gone_on_from(tmp_path: Path, site: Site) -> None:
    site.cuts = [1_000_000, 700_000]
    fetch(f"{site.url}/set.tgz", tmp_path / "set.tgz", md5=None)
    assert (tmp_path / "set.tgz").read_bytes() == BODY
    assert site.asked == [None, "bytes=1000000-", "bytes=1700000-"]


def cut_once(tmp_path: Path, site: Site, md5: str | None = None, left: int = 1_000_000) -> None:
    """What a process leaves that has given up: a part of the file."""
    site.cuts = [1_000_000, 0, 0, 0, 0, 0, 0]
    with pytest.raises(FgvcError):
        fetch(f"{site.url}/set.tgz", tmp_path / "set.tgz", md5=md5)
    assert (tmp_path / "set.tgz.part").stat().st_size == left
    site.cuts, site.asked = [], []


def test_a_second_run_goes_on(tmp_path: Path, site: Site) -> None:
    cut_once(tmp_path, site)
    fetch(f"{site.url}/set.tgz", tmp_path / "set.tgz", md5=MD5)
    assert site.asked == ["bytes=1000000-"]
    assert (tmp_path / "set.tgz").read_bytes() == BODY


def test_another_version_of_the_file_starts_anew(tmp_path: Path, site: Site) -> None:
    cut_once(tmp_path, site)
    site.tag, site.files["/set.tgz"] = '"v2"', BODY[::-1]
    fetch(f"{site.url}/set.tgz", tmp_path / "set.tgz", md5=None)
    assert (tmp_path / "set.tgz").read_bytes() == BODY[::-1]


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_strong_tag_only_a_checksum_lets_it_go_on(
    tmp_path: Path, site: Site, tag: str | None
) -> None:
    site.tag = tag
    cut_once(tmp_path, site, left=0)  # each try began anew
    fetch(f"{site.url}/set.tgz", tmp_path / "set.tgz", md5=None)
    assert site.asked == [None]
    (tmp_path / "set.tgz").unlink()
    cut_once(tmp_path, site, MD5)
    fetch(f"{site.url}/set.tgz", tmp_path / "set.tgz", md5=MD5)
    assert site.asked == ["bytes=1000000-"]


def test_a_server_without_ranges_starts_anew(tmp_path: Path, site: Site) -> None:
    cut_once(tmp_path, site)
    site.ranges = False
    fetch(f"{site.url}/set.tgz", tmp_path / "set.tgz", md5=MD5)
    assert (tmp_path / "set.tgz").read_bytes() == BODY


def test_all_bytes_but_no_name_yet(tmp_path: Path, site: Site) -> None:
    """Killed between the last byte and the rename."""
    cut_once(tmp_path, site)
    (tmp_path / "set.tgz.part").write_bytes(BODY)
    fetch(f"{site.url}/set.tgz", tmp_path / "set.tgz", md5=MD5)
    assert site.asked == [f"bytes={len(BODY)}-"]
    assert (tmp_path / "set.tgz").read_bytes() == BODY


def test_a_part_longer_than_the_file_is_dropped(tmp_path: Path, site: Site) -> None:
    cut_once(tmp_path, site)
    (tmp_path / "set.tgz.part").write_bytes(BODY + b"more")
    fetch(f"{site.url}/set.tgz", tmp_path / "set.tgz", md5=MD5)
    assert (tmp_path / "set.tgz").read_bytes() == BODY


def test_a_busy_server_is_asked_again(tmp_path: Path, site: Site) -> None:
    site.status = [503, 503]
    fetch(f"{site.url}/set.tgz", tmp_path / "set.tgz", md5=MD5)
    assert len(site.asked) == 3


def test_a_wrong_checksum_removes_the_file(tmp_path: Path, site: Site) -> None:
    with pytest.raises(FgvcError, match=f"came with MD5 {MD5}, expected 00ff"):
        fetch(f"{site.url}/set.tgz", tmp_path / "set.tgz", md5="00ff")
    assert not list(tmp_path.iterdir())


def test_no_such_file_is_one_line(tmp_path: Path, site: Site) -> None:
    with pytest.raises(FgvcError, match="answers 404") as caught:
        fetch(f"{site.url}/gone.tgz", tmp_path / "set.tgz", md5=None)
    assert len(site.asked) == 1 and "\n" not in str(caught.value)
    assert str(tmp_path / "set.tgz") in str(caught.value)


def test_no_network_is_one_line_that_says_how_to_do_it_by_hand(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/set.tgz"
    with pytest.raises(FgvcError, match="cannot be reached") as caught:
        fetch(url, tmp_path / "set.tgz", md5=None)
    assert "\n" not in str(caught.value) and f"as {tmp_path / 'set.tgz'}." in str(caught.value)


def test_a_file_put_there_by_hand_is_taken_and_checked(tmp_path: Path) -> None:
    (tmp_path / "set.tgz").write_bytes(BODY)
    fetch("http://nowhere.invalid/set.tgz", tmp_path / "set.tgz", md5=MD5)
    (tmp_path / "set.tgz").write_bytes(BODY[:-1])
    with pytest.raises(FgvcError, match="expected"):
        fetch("http://nowhere.invalid/set.tgz", tmp_path / "set.tgz", md5=MD5)


def test_a_full_disk_keeps_what_has_arrived(tmp_path: Path, site: Site) -> None:
    (tmp_path / "set.tgz.part").symlink_to("/dev/full")
    with pytest.raises(FgvcError, match="No space left"):
        fetch(f"{site.url}/set.tgz", tmp_path / "set.tgz", md5=None)
