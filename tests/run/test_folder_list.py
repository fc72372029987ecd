"""The list of a run is known whole before its rows are, so that no change of it goes unnoticed."""

from pathlib import Path

import pytest
from fake_predictor import fake_images

from fgvc_cli.errors import FgvcError
from fgvc_cli.run import folder as module
from fgvc_cli.run.folder import ImageList, ListRecord, ShardWalk, check_images, summarise
from fgvc_cli.sources.find import Found


@pytest.fixture
def begun(monkeypatch):
    """The list of a run over 95 images, with a mark after each ten."""
    monkeypatch.setattr(module, "MARK_ROWS", 10)
    totals, written = [], []
    with ListRecord(written.append, lambda: fake_images(95), totals.append) as thread:
        thread._thread.join()
    assert totals == [95]
    return written[0]


def test_the_same_list_is_told_apart_from_no_other(begun):
    assert len(begun["marks"]) == 10
    assert check_images(Path("p.partial"), begun, fake_images(95)) == 95


def test_a_walk_takes_the_same_fingerprint(begun):
    walk = ShardWalk(fake_images(95))
    assert walk.seen() == begun
    assert ImageList().summary() == summarise(())


def with_change(row, *instead):
    for i, image in enumerate(fake_images(95)):
        yield from [Found(name, name) for name in instead] if i == row else [image]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (lambda: with_change(0, "other"), "rows 0 to 9 differ. Bring"),
        (lambda: with_change(37, "other"), "rows 30 to 39 differ. Bring"),
        (lambda: with_change(94, "other"), "rows 90 to 94 differ. Bring"),
        (lambda: with_change(94), r"rows 90 to 94 differ \(95 then, 94 now\)"),
        (lambda: with_change(50, "a", "b"), r"rows 50 to 59 differ \(95 then, 96 now\)"),
        (lambda: fake_images(100), r"rows 90 to 99 differ \(95 then, 100 now\)"),
        (lambda: fake_images(90), r"rows 90 to 94 differ \(95 then, 90 now\)"),
        (lambda: fake_images(300), r"rows 90 to 99 differ \(95 then, 300 now\)"),
        (lambda: iter(()), r"rows 0 to 9 differ \(95 then, 0 now\)"),
    ],
)
def test_a_change_anywhere_is_refused_with_where_it_is(begun, images, words):
    with pytest.raises(FgvcError, match=words) as caught:
        check_images(Path("p.partial"), begun, images())
    assert "--accept-list" in str(caught.value) and "--restart" in str(caught.value)


def test_names_that_run_into_each_other_are_told_apart():
    def summary(*names):
        return summarise(Found(name, name) for name in names)

    assert summary("ab", "c") != summary("a", "bc")
    assert summary("a\udcff") == summary("a\udcff")


def test_a_run_that_ends_first_stops_the_walk_and_leaves_no_half_list():
    def endless():
        while True:
            yield Found("x", "x")

    with ListRecord(pytest.fail, endless, pytest.fail) as thread:
        assert thread is not None


def test_a_source_that_is_gone_is_left_to_the_run_to_say():
    def gone():
        raise FgvcError("No such file or folder.")

    with ListRecord(pytest.fail, gone, pytest.fail) as thread:
        thread._thread.join()
