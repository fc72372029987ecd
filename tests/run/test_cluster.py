"""Parts on a cluster that is simulated: whatever becomes of its workers, each row is there once."""

import random
import sys
from collections import Counter
from pathlib import Path

import pytest
from fake_predictor import FakePredictor, fake_images, fake_info, run
from scale import SimulatedCluster

import fgvc_cli
from fgvc_cli.errors import FgvcError
from fgvc_cli.formats.outputs import Outputs
from fgvc_cli.run import cluster as clusters
from fgvc_cli.run.cluster import Part, WorkerPool, cut_parts, part_images
from fgvc_cli.run.folder import RunFolder, Task, partial_folder, run_identity
from fgvc_cli.run.merge import merge_run
from fgvc_cli.run.parts import list_parts
from fgvc_cli.run.predict import PredictOptions
from fgvc_cli.sources.archive_members import HeldMember
from fgvc_cli.sources.find import Found

ROWS = 150


class Progress:
    def __init__(self):
        self.statuses = Counter()

    def count(self, rows, statuses):
        assert rows == statuses.total()
        self.statuses += statuses

    def on_clipped(self, boxes):
        assert boxes == 0


def make(options, note):
    note("a note")
    if options.get("settings", {}).get("fail"):
        raise FgvcError("No such weights.")
    return FakePredictor(fake_info(**options.get("settings", {})), batch=7, mended=options.get("mended", ()))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(clusters, "PART_IMAGES", 10)
    monkeypatch.setattr(clusters, "LOOK_SECONDS", 0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(Outputs((folder / "p.csv",)), ROWS)
    return (folder / "p.csv").read_bytes()


def predict(folder, cluster, *, retry=False, merge=True, rows=ROWS, **options):
    """What ``--ray`` does, on a simulated cluster; (bytes of the table, counted statuses, notes)."""
    outputs, notes, progress = Outputs((folder / "p.csv",)), [], Progress()
    root = partial_folder(outputs.files[0])
    with (
        WorkerPool(cluster, make, options, notes.append) as pool,
        RunFolder(root, run_identity(pool.open(), ["photos"])) as opened,
    ):
        opened.survey(retry=retry)
        pool.complete(opened.tasks(fake_images(rows), retry=retry), opened, progress)
        opened.finish()
        if merge:
            merge_run(root, outputs)
    return (folder / "p.csv").read_bytes() if merge else None, progress.statuses, notes


@pytest.mark.parametrize("size", [1, 3, 40])
def test_rows_are_those_of_one_process(tmp_path, whole, size):
    table, statuses, notes = predict(tmp_path, SimulatedCluster(size))
    assert table == whole
    assert statuses == Counter(ok=136, truncated=14)
    assert notes == ["a note"]
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


@pytest.mark.parametrize("seed", range(5))
def test_workers_that_die_lose_no_row_and_double_none(tmp_path, whole, seed):
    chance = random.Random(seed)
    deaths = []

    def dies(worker, method, part):
        if part is None or chance.random() > 0.3 or sum(first == part.first for first in deaths) > 3:
            return False
        deaths.append(part.first)
        return True

    table, statuses, notes = predict(tmp_path, SimulatedCluster(3, dies=dies))
    assert len(deaths) > 2 and table == whole and statuses.total() == ROWS
    assert sum("was lost: it died" in note for note in notes) == len(deaths)


def test_a_part_that_ends_every_worker_ends_the_run_and_the_others_stay(tmp_path, whole):
    with pytest.raises(FgvcError, match=r"Rows 50 to 59 have ended 5 workers: it died"):
        predict(tmp_path, SimulatedCluster(3, dies=lambda worker, method, part: part and part.first == 50))
    assert list_parts(tmp_path / "p.csv.partial")
    table, statuses, _ = predict(tmp_path, SimulatedCluster(3))
    assert table == whole and statuses.total() < ROWS


def interrupted_after(count):
    seen = []

    def dies(worker, method, part):
        if part:
            seen.append(part)
        if len(seen) > count:
            raise KeyboardInterrupt
        return False

    return dies


@pytest.mark.parametrize("again", ["one process", "cluster"])
def test_a_killed_driver_leaves_gaps_that_the_next_one_fills(tmp_path, whole, again, monkeypatch):
    cluster = SimulatedCluster(3, dies=interrupted_after(4))
    call = cluster.call

    def slow(worker, method, *args):
        """Rows 10 to 19 take a year."""
        made = call(worker, method, *args)
        if method == "complete" and args[1].first == 10:
            cluster._calls[made] = (*cluster._calls[made][:3], 3e7)
        return made

    cluster.call = slow
    with pytest.raises(KeyboardInterrupt):
        predict(tmp_path, cluster)
    root = tmp_path / "p.csv.partial"
    there = [int(path.stem.partition("-")[2]) for path in list_parts(root)]
    assert len(there) == 4 and there != list(range(0, 40, 10))
    (root / "rows-000000000010.npz.abc.tmp").write_text("what a worker of the killed run left")
    if again == "one process":
        run(Outputs((tmp_path / "p.csv",)), ROWS)
        assert (tmp_path / "p.csv").read_bytes() == whole
    else:
        table, statuses, _ = predict(tmp_path, SimulatedCluster(2))
        assert table == whole and statuses.total() == ROWS - 40
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


def test_failed_rows_alone_are_read_again(tmp_path):
    predict(tmp_path, SimulatedCluster(2), merge=False)
    root = tmp_path / "p.csv.partial"
    before = {path.name: path.stat().st_ino for path in list_parts(root)}
    table, statuses, _ = predict(tmp_path, SimulatedCluster(2), retry=True, merge=False, mended=("bad",))
    assert statuses == Counter(ok=14)
    same = [name for name, inode in before.items() if (root / name).stat().st_ino == inode]
    assert len(before) == 15 and len(same) == 15 - 14
    table, statuses, _ = predict(tmp_path, SimulatedCluster(2))
    assert statuses.total() == 0 and b"truncated" not in table and table.count(b"\n") == ROWS + 1


def test_a_growing_cluster_is_used_as_it_comes(tmp_path, whole):
    cluster = SimulatedCluster(1)

    def dies(worker, method, part):
        used.add(worker)
        cluster.size = 1 + len(used) if part else cluster.size
        return False

    used = set()
    cluster.dies = dies
    assert predict(tmp_path, cluster)[0] == whole
    assert len(used) > 3


def test_parts_under_way_do_not_grow_with_the_walk(tmp_path):
    most = []
    for rows in (300, 900):
        folder = tmp_path / str(rows)
        folder.mkdir()
        cluster = SimulatedCluster(4)
        taken = []

        def walk(rows=rows, taken=taken):
            for found in fake_images(rows):
                taken.append(found)
                yield found

        root = partial_folder(folder / "p.csv")
        ahead = []
        with (
            WorkerPool(cluster, make, {}, print) as pool,
            RunFolder(root, run_identity(pool.open(), ["photos"])) as opened,
        ):
            opened.survey()

            class Ahead(Progress):
                def count(self, rows, statuses, taken=taken, opened=opened, ahead=ahead):
                    ahead.append(len(taken) - opened.rows)

            pool.complete(opened.tasks(walk()), opened, Ahead())
        most.append(max(ahead))
    assert most[0] == most[1] <= 10 * (2 * 4 + 2)


def test_parts_are_multiples_of_the_batch(monkeypatch):
    monkeypatch.setattr(clusters, "PART_IMAGES", 2048)
    sizes = {batch: part_images(fake_info(batch_size=batch)) for batch in (1, 16, 48, 3000)}
    assert sizes == {1: 2048, 16: 2048, 48: 2064, 3000: 3000}
    parts = list(cut_parts(iter([Task(5, fake_images(9)), Task(20, fake_images(3), (1, 4, 9))]), 4))
    assert [(part.first, len(part.images), part.rows) for part in parts] == [
        (5, 4, ()),
        (9, 4, ()),
        (13, 1, ()),
        (20, 3, (1, 4, 9)),
    ]
    assert parts[0].found() == list(fake_images(4))


def test_images_that_travel_with_their_bytes_travel_few_at_a_time(monkeypatch):
    monkeypatch.setattr(clusters, "HELD_BYTES", 250)
    images = [Found(HeldMember(str(i), bytes(100)), str(i)) for i in range(8)]
    assert [len(part.images) for part in cut_parts(iter([Task(0, images)]), 100)] == [3, 3, 2]


class Elsewhere(SimulatedCluster):
    """Its second worker is on a node that has another storage, version or precision."""

    def __init__(self, size, change, after=0):
        super().__init__(1 if after else size)
        self.change, self.after, self.parts, self.opened = change, after, 0, 0

    def take(self, call):
        worker, method, args, at = self._calls[call]
        self.parts += method == "complete"
        self.opened += method == "open"
        self.size = 3 if self.parts >= self.after else 1
        if self.opened == 2:
            self.odd = self.odd if hasattr(self, "odd") else worker
        if getattr(self, "odd", None) == worker:
            args = self.change(method, args)
            self._calls[call] = (worker, method, args, at)
        return super().take(call)


def other_storage(method, args):
    return (f"{args[0]}-elsewhere", *args[1:]) if method == "sees" else args


def other_version(method, args):
    return ("0.0.1", *args[1:]) if method == "open" else args


def other_precision(method, args):
    return (*args[:2], args[2] | {"settings": {"precision": "bf16"}}) if method == "open" else args


ODD = [
    (other_storage, "Node node-.* does not see .*p.csv.partial"),
    (other_version, f"Node node-.* has fgvc {fgvc_cli.__version__}, this process has"),
    (other_precision, "Node node-.* would give other rows: settings.precision is 'bf16', not None"),
]


@pytest.mark.parametrize(("change", "words"), ODD)
def test_a_node_that_does_not_fit_ends_the_run_at_its_start(tmp_path, change, words):
    cluster = Elsewhere(3, change)
    cluster.rate = 1e-9  # no part is done before all have begun
    with pytest.raises(FgvcError, match=words) as caught:
        predict(tmp_path, cluster)
    assert caught.value.hint and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("change", "words"), ODD)
def test_one_that_comes_later_is_left_out(tmp_path, whole, change, words):
    table, statuses, notes = predict(tmp_path, Elsewhere(3, change, after=2))
    assert table == whole and statuses.total() == ROWS
    (left_out,) = [note for note in notes if note.startswith("warning: ")]
    assert left_out.endswith("It is left out.")


def test_workers_that_die_as_they_start_are_replaced_a_few_times(tmp_path, whole):
    starts = []

    def dies(worker, method, part):
        starts.append(method)
        return method == "open" and starts.count("open") < 3

    assert predict(tmp_path, SimulatedCluster(2, dies=dies))[0] == whole
    (tmp_path / "p.csv").unlink()
    with pytest.raises(FgvcError, match="No worker could start in the cluster: it died"):
        predict(tmp_path, SimulatedCluster(2, dies=lambda worker, method, part: method == "open"))
    assert not list(tmp_path.iterdir())


def test_a_node_that_cannot_load_the_model_later_is_left_out(tmp_path, whole):
    def cannot(method, args):
        return (*args[:2], args[2] | {"settings": {"fail": True}}) if method == "open" else args

    table, _, notes = predict(tmp_path, Elsewhere(3, cannot, after=2))
    assert table == whole
    (left_out,) = [note for note in notes if "left out" in note]
    assert left_out.startswith("warning: Node node-") and "No such weights. It is left out." in left_out


def test_what_a_worker_cannot_do_is_told_with_its_node(tmp_path, monkeypatch):
    def full(*_):
        raise FgvcError("Could not write.", "Free space.")

    monkeypatch.setattr(clusters, "write_part", full)
    with pytest.raises(FgvcError, match="Node node-1: Could not write.") as caught:
        predict(tmp_path, SimulatedCluster(2))
    assert caught.value.hint == "Free space."
    assert not list(tmp_path.iterdir())


def test_without_ray_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(FgvcError, match=r"--ray needs Ray, which is not installed") as caught:
        fgvc_cli.predict_folder(tmp_path, out=tmp_path / "p.csv", ray="auto", quiet=True)
    assert "fgvc[ray]" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out": "p.csv", "devices": 2}, "--ray shares the work out itself"),
        ({"out": "p.csv", "shard": "0/2"}, "--ray shares the work out itself"),
        ({}, "--ray needs an output file"),
        ({"out": "p.csv", "ray_cpus_per_worker": 0}, "--ray-cpus-per-worker got 0"),
    ],
)
def test_options_that_do_not_go_with_it(options, words):
    with pytest.raises(FgvcError, match=words):
        PredictOptions(sources="photos", ray="auto", **options)


def test_a_part_travels_as_it_is():
    images = [Found(Path("a/b.jpg"), "b.jpg"), Found(HeldMember("x.tar/c", b"12"), "c")]
    (part,) = cut_parts(iter([Task(3, images)]), 5)
    assert part == Part(3, (("a/b.jpg", "b.jpg"), (images[1].path, "c")))
    assert part.found() == images
