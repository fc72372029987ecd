"""Whatever ends a run, the same command goes on; another command is refused with what changed."""

import csv
import errno
import multiprocessing
import os
import random
import resource
import signal
import time
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
import pytest
from fake_predictor import FakePredictor, fake_images, fake_info, outputs_in, run

from fgvc_cli.errors import FgvcError
from fgvc_cli.formats.outputs import Outputs
from fgvc_cli.run.folder import (
    RunFolder,
    ShardOf,
    ShardWalk,
    info_of,
    parse_shard,
    recorded_setting,
    run_identity,
    sweep_removed,
)
from fgvc_cli.run.parts import PartWriter, list_parts
from fgvc_cli.run.predict import PredictOptions, complete_rows
from fgvc_cli.sources.find import Found

ROWS = 150


@pytest.fixture(scope="module")
def context():
    """Processes forked off one that has imported all, so that 20 of them take no time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fake_predictor", "fgvc_cli.formats.h5", "fgvc_cli.formats.outputs"])
    return context


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    run(outputs_in(folder), ROWS)
    return folder


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_same_outputs(left: Path, right: Path):
    ours, theirs = files_below(left), files_below(right)
    assert ours.keys() == theirs.keys()
    assert [n for n in ours if not n.endswith(".h5") and ours[n] != theirs[n]] == []
    with h5py.File(left / "p.h5") as a, h5py.File(right / "p.h5") as b:
        assert a.keys() == b.keys() and len(a["path"]) == ROWS
        for name in a:
            for x, y in zip(a[name][:], b[name][:], strict=True):
                np.testing.assert_array_equal(x, y, name)
        assert {k: str(v) for k, v in a.attrs.items()} == {k: str(v) for k, v in b.attrs.items()}


def test_the_whole_run_has_every_row_once(whole):
    with (whole / "p.csv").open() as stream:
        assert [row["path"] for row in csv.DictReader(stream)] == [image.name for image in fake_images(ROWS)]
    assert sorted(path.name for path in whole.iterdir()) == ["crops", "maps", "p.csv", "p.h5"]
    good = sum("bad" not in image.name for image in fake_images(ROWS))
    for folder in ("crops", "maps"):
        assert sum(path.is_file() for path in (whole / folder).rglob("*")) == good


def slow_run(folder):
    run(outputs_in(Path(folder)), ROWS, seconds=0.005)


def test_killed_at_any_moment_the_same_command_ends_as_if_nothing_had_been(context, whole, tmp_path):
    moments = random.Random(0)
    kills, runs = 0, 0
    while kills < 22:
        runs += 1
        folder = tmp_path / str(runs)
        folder.mkdir()
        tries = 0
        while True:
            process = context.Process(target=slow_run, args=(folder,))
            process.start()
            # Longer and longer, as a merge has to come through in one piece.
            process.join(moments.uniform(0.02, 0.15 + 0.1 * tries))
            tries += 1
            if process.exitcode is not None:
                assert process.exitcode == 0
                break
            process.kill()
            process.join()
            kills += 1
            # An output is absent or whole.
            if (folder / "p.csv").exists():
                assert (folder / "p.csv").read_bytes() == (whole / "p.csv").read_bytes()
                if not (folder / "p.csv.partial").exists():  # killed behind its last step
                    sweep_removed(folder / "p.csv.partial")
                    break
        assert_same_outputs(folder, whole)
    assert runs < kills


def begin(folder, rows=60, part_rows=20, info=None, **options):
    """A run that ends before its merge; the rows of its shards."""
    info = info or fake_info()
    with (
        RunFolder(folder / "p.csv.partial", run_identity(info, ["photos"]), **options) as opened,
        PartWriter(opened.path, rows=part_rows) as writer,
    ):
        for block in FakePredictor(info, batch=10).blocks(fake_images(rows)):
            writer.add(block)
        writer.flush()
    return folder / "p.csv.partial"


def go_on(root, info=None, sources=("photos",), images=None, **options):
    with RunFolder(root, run_identity(info or fake_info(), sources), **options) as folder:
        folder.survey()
        return [
            (task.first, next(iter(task.images)).name) for task in folder.tasks(images or fake_images(100))
        ]


def test_completed_rows_are_taken_from_the_walk(tmp_path):
    root = begin(tmp_path)
    (root / "rows-000000000060.npz.tmp").write_text("torn")
    assert go_on(root) == [(60, "d0000/img000060.jpg")]
    assert not list(root.glob("*.tmp"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"info": fake_info(top_k=1)}, "top_k 2, this is 1"),
        ({"info": fake_info(("crop",))}, r'extras \[\], this is \["crop"\]'),
        ({"info": fake_info(min_prob=0.5)}, "settings.min_prob null, this is 0.5"),
        ({"sources": ["other"]}, r'sources \["photos"\], this is \["other"\]'),
        ({"shard": ShardOf(0, 2)}, "number of shards 1, this is 2"),
    ],
)
def test_another_run_is_refused_with_what_changed(tmp_path, change, words):
    root = begin(tmp_path)
    with pytest.raises(FgvcError, match=words) as caught:
        go_on(root, **change)
    assert "--restart" in str(caught.value) and "\n" not in str(caught.value)
    assert len(list_parts(root)) == 3
    assert go_on(root, restart=True, **change)[0][0] == 0
    assert list_parts(root) == []


def test_a_changed_list_is_refused_with_the_first_that_differs(tmp_path):
    root = begin(tmp_path)
    images = [Found(Path("x"), "x") if i == 25 else image for i, image in enumerate(fake_images(100))]
    with pytest.raises(FgvcError, match="row 25 was d0000/img000025.jpg, now x"):
        go_on(root, images=iter(images))
    with pytest.raises(FgvcError, match="row 30 was d0000/img000030.jpg, now the end"):
        go_on(root, images=fake_images(30))
    with RunFolder(root, run_identity(fake_info(), ["photos"])) as folder:
        folder.survey()
        folder.finish()
    with pytest.raises(FgvcError, match="row 60 was the end, now d0000/img000060.jpg"):
        go_on(root)
    assert len(list_parts(root)) == 3


def test_the_rows_of_a_damaged_part_alone_are_read_anew(tmp_path):
    root = begin(tmp_path)
    list_parts(root)[1].write_bytes(b"torn")
    with RunFolder(root, run_identity(fake_info(), ["photos"])) as folder:
        assert folder.survey() == 0 and folder.rows == 40
        tasks = (
            (task.first, [found.name for found in task.images]) for task in folder.tasks(fake_images(70))
        )
        names = [found.name for found in fake_images(70)]
        assert list(tasks) == [(20, names[20:40]), (60, names[60:])]
    assert len(list_parts(root)) == 2


def test_a_run_without_a_row_leaves_nothing(tmp_path):
    for shard in (ShardOf(), ShardOf(1, 3)):
        with (
            pytest.raises(KeyboardInterrupt),
            RunFolder(tmp_path / "p.csv.partial", run_identity(fake_info(), []), shard=shard),
        ):
            raise KeyboardInterrupt
        assert not list(tmp_path.iterdir())


def test_files_of_others_are_never_removed(tmp_path):
    root = begin(tmp_path)
    (root / "mine.txt").write_text("mine")
    go_on(root, restart=True)
    assert (root / "mine.txt").exists()
    (tmp_path / "f.partial").write_text("a file")
    with pytest.raises(FgvcError, match="not a folder"), RunFolder(tmp_path / "f.partial", {}):
        pytest.fail("entered")


def hold(root, ready):
    with RunFolder(root, run_identity(fake_info(), ["photos"])):
        ready.set()
        time.sleep(60)


def test_two_processes_never_share_a_folder_and_a_dead_one_holds_nothing(context, tmp_path):
    root = begin(tmp_path)
    ready = context.Event()
    process = context.Process(target=hold, args=(root, ready))
    process.start()
    assert ready.wait(30)
    with pytest.raises(FgvcError, match=f"in use by process {process.pid}"):
        go_on(root)
    with pytest.raises(FgvcError, match=f"in use by process {process.pid}"):
        go_on(root, shard=ShardOf(0, 2), restart=True)
    assert len(list_parts(root)) == 3
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert go_on(root)[0][0] == 60


def restart_shard(root, index):
    go_on(root, shard=ShardOf(index, 4), restart=True)


def test_shards_restarted_together_discard_what_was_there(context, tmp_path):
    root = begin(tmp_path)
    processes = [context.Process(target=restart_shard, args=(root, index)) for index in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert list_parts(root) == []


def test_a_refused_shard_leaves_nothing_behind(tmp_path):
    root = begin(tmp_path, shard=ShardOf(0, 3))
    with pytest.raises(FgvcError, match="number of shards 3, this is 2"):
        go_on(root, shard=ShardOf(0, 2))
    assert [path.name for path in root.iterdir()] == ["shard-0-of-3"]
    (root / "shard-1-of-2").mkdir()  # left by a kill
    assert go_on(root, shard=ShardOf(0, 3), images=islice(fake_images(100), 0, None))[0][0] == 60


def test_an_output_that_came_before_the_lock_is_refused_at_once(tmp_path):
    options = PredictOptions(sources=("photos",), out=(tmp_path / "p.csv",))
    with (
        pytest.raises(FgvcError, match="p.csv exists"),
        RunFolder(tmp_path / "p.csv.partial", run_identity(fake_info(), ["photos"])) as folder,
    ):
        (tmp_path / "p.csv").write_text("finished meanwhile")
        complete_rows(options, folder, ShardWalk(fake_images(10)), fake_info(), None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


def limited_run(folder, size, answer):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        run(outputs_in(Path(folder)), ROWS)
    except FgvcError as error:
        answer.put(str(error))
    else:
        answer.put("finished")


@pytest.mark.parametrize("size", [1_000, 8_000, 20_000])
def test_a_disk_that_is_full_is_one_line_and_resumable(context, whole, tmp_path, size):
    """RLIMIT_FSIZE: a shard, then the CSV, then the HDF5 file do not fit."""
    answer = context.Queue()
    process = context.Process(target=limited_run, args=(tmp_path, size, answer))
    process.start()
    line = answer.get(timeout=25)
    process.join()
    assert "Could not write" in line and "\n" not in line, line
    assert not (tmp_path / "p.h5").exists()
    run(outputs_in(tmp_path), ROWS)
    assert_same_outputs(tmp_path, whole)


def test_a_folder_that_goes_in_the_middle_is_one_line(tmp_path):
    def images():
        for i, image in enumerate(fake_images(100)):
            if i == 50:
                (tmp_path / "p.csv.partial").rename(tmp_path / "elsewhere")
            yield image

    with pytest.raises(
        FgvcError, match=r"Could not write .*No such file.*p.csv.partial is gone and its rows are lost"
    ):
        run(Outputs((tmp_path / "p.csv",)), 100, images=images())


def test_a_merge_that_failed_goes_on_though_outputs_are_in_place(tmp_path, whole, monkeypatch):
    replace = Path.replace

    def full(self, target):
        if Path(target).name == "maps":
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(FgvcError, match="maps: No space left on device"):
        run(outputs_in(tmp_path), ROWS)
    monkeypatch.undo()
    run(outputs_in(tmp_path), ROWS)
    assert_same_outputs(tmp_path, whole)


def test_identity_keeps_all_of_the_run():
    info = fake_info(("crop",), precision="bf16")
    assert info_of(run_identity(info, ["a"])) == info


def test_settings_of_a_run_can_be_looked_up(tmp_path):
    assert recorded_setting(tmp_path / "p.csv.partial", "precision") is None
    root = begin(tmp_path, info=fake_info(precision="bf16"), shard=ShardOf(1, 2))
    assert recorded_setting(root, "precision") == "bf16"


@pytest.mark.parametrize("text", ["2/2", "-1/2", "1", "a/b", "1/", "/2", "0/0"])
def test_a_shard_is_i_of_n(text):
    assert parse_shard("1/2") == ShardOf(1, 2)
    with pytest.raises(FgvcError, match="expected i/n"):
        parse_shard(text)


def test_a_removal_that_was_cut_short_is_swept(tmp_path):
    (tmp_path / ".p.csv.partial.done").mkdir()
    sweep_removed(tmp_path / "p.csv.partial")
    assert not list(tmp_path.iterdir())
