"""Committed rows come back as they were, in groups of the size asked for, and memory stays flat."""

import errno
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from fake_predictor import FakePredictor, fake_block, fake_images, fake_info

from fgvc_cli.errors import FgvcError
from fgvc_cli.formats.rows import (
    ARRAYS,
    COLUMNS,
    OPTIONAL_ARRAYS,
    TEXTS,
    as_text,
    cut,
    interleave,
    join,
    replace_rows,
)
from fgvc_cli.run.parts import PartWriter, list_parts, read_blocks, read_names, read_part, write_part

EXTRAS = ("attention", "crop", "embedding", "logits")
NAMES = ["a.jpg", "bad.jpg", "ä 鳥,\n.png", os.fsdecode(b"caf\xe9.jpg")]


def assert_same(left, right):
    assert left.first == right.first
    for name in TEXTS:
        assert [as_text(text) for text in getattr(left, name)] == [as_text(t) for t in getattr(right, name)]
    for name in (*ARRAYS, *OPTIONAL_ARRAYS):
        a, b = getattr(left, name), getattr(right, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype, name
            np.testing.assert_array_equal(a, b, name)
    assert left.crop == right.crop
    assert list(left.more) == list(right.more)
    for name in left.more:
        ours, theirs = left.column(name), right.column(name)
        if isinstance(theirs, list):
            assert [as_text(text) for text in ours] == [as_text(text) for text in theirs]
        else:
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs, name)


@pytest.mark.parametrize("extras", [(), EXTRAS])
@pytest.mark.parametrize("parts", [0, 2])
def test_a_block_comes_back_as_it_was(tmp_path, extras, parts):
    block = fake_block(fake_info(extras, parts, columns=COLUMNS if parts else ()), NAMES, first=12)
    path = write_part(tmp_path, block)
    assert path.name == "rows-000000000012.npz"
    assert_same(read_part(path), block)
    assert read_names(path) == (12, [as_text(name) for name in NAMES], block.status)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_cut_join_and_interleave_are_inverse():
    names = [f"blank{i}.jpg" if i % 3 else f"{i}.jpg" for i in range(11)]
    block = fake_block(fake_info(EXTRAS, columns=COLUMNS), names)
    assert_same(join([cut(block, 0, 4), cut(block, 4, 5), cut(block, 5, 11)]), block)
    every_third = [join([cut(block, i, i + 1) for i in range(start, 11, 3)]) for start in range(3)]
    assert_same(interleave(every_third, 0), block)


def test_a_batch_of_failures_knows_no_maps_and_gets_blank_ones():
    info = fake_info(EXTRAS)
    failed, good = fake_block(info, ["bad1", "bad2"]), fake_block(info, ["a", "b"], first=2)
    assert failed.attention is None
    both = join([failed, good])
    assert np.isnan(both.attention[:2]).all() and np.isnan(both.embedding[:2]).all()
    np.testing.assert_array_equal(both.attention[2:], good.attention)
    assert both.crop[:2] == [b"", b""]


def test_rows_are_replaced_in_their_place():
    info = fake_info(EXTRAS)
    block = fake_block(info, ["a", "bad", "c"])
    replace_rows(block, [1], fake_block(info, ["bad"], bad=()))
    assert_same(block, fake_block(info, ["a", "bad", "c"], bad=()))
    failed = fake_block(info, ["bad", "bad2"])
    replace_rows(failed, [0], fake_block(info, ["bad"], bad=()))
    assert failed.status == ["ok", "truncated"]
    assert not np.isnan(failed.attention[0]).any() and np.isnan(failed.attention[1]).all()


def commit(folder, count, batch=10, **limits):
    with PartWriter(folder, **limits) as writer:
        for block in FakePredictor(batch=batch).blocks(fake_images(count)):
            writer.add(block)
        writer.flush()
    return [len(block) for block in read_blocks(list_parts(folder))]


def test_groups_are_committed_by_rows_by_bytes_and_by_time(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
    assert commit(tmp_path / "a", 100, rows=30) == [30, 30, 30, 10]
    assert commit(tmp_path / "b", 40, size_bytes=1) == [10] * 4
    ticks = iter(range(0, 1000, 4))
    assert commit(tmp_path / "c", 50, seconds=8, clock=lambda: next(ticks)) == [10, 10, 20, 10]


def test_the_first_groups_are_committed_soon(tmp_path):
    ticks = iter(range(1000))
    assert commit(tmp_path, 800, clock=lambda: next(ticks)) == [20, 40, 80, 160, 200, 200, 100]


def test_nothing_is_committed_behind_a_group_that_failed(tmp_path):
    with PartWriter(tmp_path / "gone", rows=10) as writer, pytest.raises(FgvcError, match="gone"):
        for block in FakePredictor(batch=10).blocks(fake_images(100)):
            writer.add(block)
    (tmp_path / "gone").mkdir()
    writer.flush()
    assert list_parts(tmp_path / "gone") == []


def test_rows_that_do_not_follow_are_a_programming_error(tmp_path):
    with PartWriter(tmp_path) as writer, pytest.raises(ValueError, match="row 5 came"):
        writer.add(fake_block(fake_info(), ["a"], first=5))


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "empty"])
def test_a_damaged_part_is_named(tmp_path, damage):
    path = write_part(tmp_path, fake_block(fake_info(EXTRAS), [f"{i}.jpg" for i in range(50)]))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes({"cut": data[:-100], "flip": data, "text": b"text", "empty": b""}[damage])
    with pytest.raises(FgvcError, match="rows-000000000000.npz is damaged"):
        read_part(path)


def test_a_missing_part_is_noticed(tmp_path):
    commit(tmp_path, 40, rows=10)
    list_parts(tmp_path)[1].unlink()
    with pytest.raises(FgvcError, match="lacks rows 10 to 19"):
        list(read_blocks(list_parts(tmp_path)))


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FgvcError, match="No space left on device; the 20 rows before it are kept"):
        write_part(tmp_path, fake_block(fake_info(), ["a"], first=20))
    assert not list(tmp_path.iterdir())


def peak_kib(folder: Path, rows: int, out: str) -> int:
    """A whole run in a process of its own: completing and merging fake rows."""
    script = Path(__file__).parents[1] / "predict" / "fake_predictor.py"
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, folder, str(rows), "0", out]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=120)
    return int(done.stdout.split()[-1])


def test_memory_for_100_000_rows_is_that_for_10_000(tmp_path):
    """Stand-in rows, no pixels; completed and merged into HDF5, which keeps more than CSV."""
    few, many = peak_kib(tmp_path, 10_000, "few.h5"), peak_kib(tmp_path, 100_000, "many.h5")
    assert many < 1.1 * few + 4096, (few, many)
    assert len(list(islice(tmp_path.iterdir(), 9))) == 2
