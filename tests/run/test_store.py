"""fgvc predict from and into a bucket of a real S3 server: the code of a disk, with its guarantees."""

import csv
import io
import json
import os
import signal
import sys
import threading
import time

import h5py
import pytest
from fake_predictor import fake_images
from fake_predictor import run as run_made_up
from PIL import Image
from s3_server import KEY, SECRET, Bucket, s3_server
from scale import SimulatedCluster
from test_cluster import Progress, make
from test_predict import GOOD, rows_of, run
from test_predict import model as model
from test_predict import photos as photos
from test_predict_processes import listed as listed
from test_predict_processes import start, wait_until
from test_predict_processes import weights as weights

import fgvc_cli
from fgvc_cli import store
from fgvc_cli.errors import FgvcError
from fgvc_cli.files import AtomicFile, FolderLock
from fgvc_cli.formats.outputs import Outputs, format_of
from fgvc_cli.run.cluster import WorkerPool
from fgvc_cli.run.folder import RunFolder, partial_folder, run_identity
from fgvc_cli.run.merge import merge_run
from fgvc_cli.sources.find import find_images
from fgvc_cli.store import StorePath, as_path, is_url, without_secrets

PREDS = "s3://photos/runs/preds.csv"


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch, s3_server(patch) as address:
        yield address


@pytest.fixture
def bucket(server, monkeypatch):
    monkeypatch.setattr(store, "LEASE_SECONDS", 1.0)
    return Bucket(server)


@pytest.fixture
def many(tmp_path):
    (tmp_path / "many").mkdir()
    for i in range(12):
        Image.new("RGB", (8, 8), ("red", "lime", "blue")[i % 3]).save(tmp_path / "many" / f"{i:02d}.png")
    return tmp_path / "many"


# Outputs


def test_every_format_holds_in_a_bucket_what_it_holds_on_a_disk(model, photos, tmp_path, bucket, capsys):
    (photos / "broken.png").write_text("no image")
    names = ["p.csv", "p.jsonl", "p.parquet", "p.h5", "p.md.json"]
    names = [name for name in names if name != "p.parquet" or _has_parquet()]
    for folder in (str(tmp_path), "s3://photos/a"):
        out = [f"{folder}/{name}" for name in names]
        assert run(photos, out=out, crops=True, per_file=f"{folder}/files.csv", frames="all") == 3
    assert bucket.names() == sorted(f"a/{name}" for name in [*names, "files.csv"])
    for name in {*names, "files.csv"} - {"p.h5"}:
        assert bucket.get(f"a/{name}") == (tmp_path / name).read_bytes(), name
    with h5py.File(io.BytesIO(bucket.get("a/p.h5"))) as there, h5py.File(tmp_path / "p.h5") as here:
        assert there.keys() == here.keys() and "crop" in here
        assert there["topk_prob"][:].tobytes() == here["topk_prob"][:].tobytes()
    assert "Written to s3://photos/a/p.csv" in capsys.readouterr().err


def _has_parquet():
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return False
    return True


def test_an_interrupted_run_waits_in_the_bucket_and_the_same_command_resumes(model, many, bucket, capsys):
    model.interrupt_at = 3
    assert run(many, out=PREDS, batch_size=2) == 130
    assert "kept in s3://photos/runs/preds.csv.partial" in capsys.readouterr().err
    assert {key.split("/")[2] for key in bucket.names()} == {"run.json", "rows-000000000000.npz"}
    model.interrupt_at = None
    assert run(many, out=PREDS, batch_size=2) == 0
    assert "Resuming after 4 images" in capsys.readouterr().err
    assert bucket.names() == ["runs/preds.csv"]
    assert len(rows_of(bucket.get("runs/preds.csv").decode())) == 12


def test_a_changed_run_and_a_finished_output_are_refused_and_may_be_replaced(model, many, bucket):
    model.interrupt_at = 3
    run(many, out=PREDS)
    model.interrupt_at = None
    with pytest.raises(FgvcError, match="s3://photos/runs/preds.csv.partial was begun with top_k 3"):
        run(many, out=PREDS, top_k=2)
    assert run(many, out=PREDS, top_k=2, restart=True) == 0
    with pytest.raises(FgvcError, match="s3://photos/runs/preds.csv exists. Add --overwrite"):
        run(many, out=PREDS)
    assert run(many, out=PREDS, overwrite=True) == 0
    assert bucket.names() == ["runs/preds.csv"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet", "h5"])
def test_failed_rows_of_a_finished_run_are_read_again(model, photos, bucket, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    out = f"s3://photos/preds.{ending}"
    (photos / "late.png").write_text("not yet")
    assert run(photos, out=out) == 3
    (photos / "late.png").write_bytes((photos / "red.png").read_bytes())
    assert run(photos, out=out, retry_failed=True) == 0
    assert bucket.names() == [f"preds.{ending}"]
    assert _statuses(out) == ["ok"] * 4


def _statuses(out):
    path = as_path(out)
    if path.suffix == ".csv":
        return [row[1] for row in rows_of(path.read_text())]
    if path.suffix == ".jsonl":
        return [json.loads(line)["status"] for line in path.read_text().splitlines()]
    return list(format_of(path).read_table(path).rows.status)


def test_shards_are_merged_in_the_bucket_whoever_ran_them(model, many, bucket, tmp_path):
    for i in range(2):
        assert run(many, out=PREDS, shard=f"{i}/2") == 0
    assert "runs/preds.csv.partial/shard-1-of-2/run.json" in bucket.names()
    assert not any(key.endswith("lock") for key in bucket.names())
    assert fgvc_cli.merge(PREDS, quiet=True).statuses == {"ok": 12}
    assert bucket.names() == ["runs/preds.csv"]
    assert run(many, out=tmp_path / "here.csv") == 0
    assert bucket.get("runs/preds.csv") == (tmp_path / "here.csv").read_bytes()


def test_a_second_output_may_lie_on_the_disk_and_merge_finds_it(model, many, bucket, tmp_path):
    for i in range(2):
        assert run(many, out=[PREDS, str(tmp_path / "here.jsonl")], shard=f"{i}/2") == 0
    fgvc_cli.merge(PREDS, quiet=True)
    assert len((tmp_path / "here.jsonl").read_text().splitlines()) == 12
    assert bucket.names() == ["runs/preds.csv"]


def test_a_killed_process_leaves_parts_and_a_lock_that_its_machine_takes_over(weights, listed, bucket):
    folder = listed(200, size=(3000, 2000))
    arguments = [sys.executable, "-m", "fgvc_cli", "predict", "@list.txt", "--weights", str(weights)]
    arguments += ["--device", "cpu", "--amp", "none", "--batch-size", "2", "--out", PREDS]
    process = start(arguments, folder)
    wait_until(lambda: any("rows-" in key for key in bucket.names()), "completed rows")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert "runs/preds.csv" not in bucket.names() and "runs/preds.csv.partial/lock" in bucket.names()
    listed(200)
    again = start(arguments, folder)
    told = again.communicate(timeout=120)[1]
    assert again.returncode == 0 and "Resuming after" in told, told
    rows = list(csv.DictReader(io.StringIO(bucket.get("runs/preds.csv").decode())))
    assert len(rows) == 200 and bucket.names() == ["runs/preds.csv"]


@pytest.mark.slow
def test_processes_of_one_machine_share_a_run_in_the_bucket(weights, listed, bucket):
    folder = listed(60)
    arguments = [sys.executable, "-m", "fgvc_cli", "predict", "@list.txt", "--weights", str(weights)]
    arguments += ["--device", "cpu", "--amp", "none", "--devices", "2", "--out", PREDS]
    process = start(arguments, folder)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 0, told
    assert bucket.names() == ["runs/preds.csv"]
    assert len(rows_of(bucket.get("runs/preds.csv").decode())) == 60


# Whole or absent


def test_a_large_file_is_in_parts_and_visible_when_whole_or_never(bucket):
    class Stop(Exception):
        pass

    big = os.urandom(1 << 20)
    for end in (Stop, None):
        try:
            with AtomicFile(as_path("s3://photos/big.csv"), overwrite=True) as stream:
                for _ in range(120):
                    stream.write(big)
                assert bucket.unfinished() == 1  # parts are there, the file is not
                assert bucket.names() == []
                if end:
                    raise end
        except Stop:
            assert bucket.names() == []
    assert bucket.unfinished() == 0
    assert len(bucket.get("big.csv")) == 120 << 20


def test_a_merge_that_fails_leaves_nothing_under_the_name_and_all_rows(model, many, bucket, monkeypatch):
    from fgvc_cli.formats import csv_rows

    def refuse(self, block):
        raise OSError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr(csv_rows.CsvSink, "_write", refuse)
        with pytest.raises(FgvcError, match="Could not write s3://photos/runs/preds.csv"):
            run(many, out=PREDS)
    assert all(key.startswith("runs/preds.csv.partial/") for key in bucket.names())
    assert bucket.unfinished() == 0
    assert run(many, out=PREDS) == 0
    assert bucket.names() == ["runs/preds.csv"]


def test_a_kill_while_the_folder_is_removed_is_made_good(model, many, bucket, monkeypatch):
    removed = StorePath.remove

    def killed(self):
        removed(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StorePath, "remove", killed)
        assert run(many, out=PREDS) == 130
    assert "runs/preds.csv.partial/removed" in bucket.names()
    with pytest.raises(FgvcError, match="exists"):
        run(many, out=PREDS)
    assert bucket.names() == ["runs/preds.csv"]


# The lock


def test_two_processes_do_not_work_in_one_folder(bucket):
    folder = as_path("s3://photos/p.csv.partial")
    with FolderLock(folder):
        time.sleep(1.2)  # longer than a lease: it is renewed
        with pytest.raises(FgvcError, match=rf"in use by process {os.getpid()} on "):
            FolderLock(folder).__enter__()
    assert bucket.names() == []
    with FolderLock(folder):
        assert bucket.names() == ["p.csv.partial/lock"]


def test_the_lock_of_another_machine_is_taken_over_when_it_shows_no_life(bucket):
    stranger = {"owner": "process 1 on elsewhere", "where": "elsewhere", "process": os.getpid(), "token": "x"}
    bucket.put("p.csv.partial/lock", json.dumps(stranger).encode())
    began = time.monotonic()
    with FolderLock(as_path("s3://photos/p.csv.partial")):
        assert time.monotonic() - began >= store.LEASE_SECONDS
    # One that is alive is not.
    bucket.put("p.csv.partial/lock", json.dumps(stranger).encode())

    def beat():
        time.sleep(0.4)
        bucket.put("p.csv.partial/lock", json.dumps(stranger | {"beat": 2}).encode())

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(FgvcError, match="in use by process 1 on elsewhere"):
        FolderLock(as_path("s3://photos/p.csv.partial")).__enter__()
    thread.join()


def test_a_lock_made_in_the_same_moment_is_seen(bucket, monkeypatch):
    read = store.Lease._read
    monkeypatch.setattr(store.Lease, "_read", lambda self: None)
    bucket.put("p.csv.partial/lock", b"{}")
    with pytest.raises(FgvcError, match="in use"):
        FolderLock(as_path("s3://photos/p.csv.partial")).__enter__()
    monkeypatch.setattr(store.Lease, "_read", read)


# Secrets


def test_no_credential_is_in_what_is_written_or_said(model, many, bucket, capsys):
    model.interrupt_at = 3
    run(many, out=[PREDS, "s3://photos/runs/preds.h5"])
    kept = b"".join(map(bucket.get, bucket.names()))
    model.interrupt_at = None
    run(many, out=[PREDS, "s3://photos/runs/preds.h5"])
    kept += b"".join(map(bucket.get, bucket.names()))
    said = "".join(capsys.readouterr())
    assert b"run.json" not in kept and len(kept) > 1000
    for secret in (KEY, SECRET):
        assert secret not in said and secret.encode() not in kept


def test_a_password_in_a_url_is_refused_for_outputs_and_cut_from_sources(model, bucket, capsys):
    with pytest.raises(FgvcError, match=r"s3://photos/p.csv was given with a password") as caught:
        run("s3://photos/a", out="s3://me:hunter22@photos/p.csv")
    assert "hunter22" not in str(caught.value)
    with pytest.raises(FgvcError) as caught:
        find_images(["nowhere://me:hunter22@host/a.jpg"])
    assert "hunter22" not in str(caught.value)
    url = "https://host/a.jpg?X-Amz-Signature=hunter22&X-Amz-Credential=me"
    assert without_secrets(url) == "https://host/a.jpg"
    assert without_secrets("https://host/a?page=2") == "https://host/a?page=2"
    assert store.store_reason(OSError(f"403, url='{url}' (hunter22)"), url).count("hunter22") == 0


# Sources


def test_a_bucket_is_a_source_as_a_folder_is(model, photos, bucket, tmp_path, capsys):
    for path in photos.iterdir():
        bucket.put(f"shots/day/{path.name}", path.read_bytes())
    bucket.put("shots/list.txt", b"s3://photos/shots/day/red.png\ns3://photos/shots/day/gone.png\n")
    assert run("s3://photos/shots", out=PREDS) == 0
    named = [(f"day/{name}", *rest) for name, *rest in GOOD]
    assert rows_of(bucket.get("runs/preds.csv").decode()) == named
    assert run("s3://photos/shots/day/red.png", out=tmp_path / "one.csv") == 0
    assert rows_of((tmp_path / "one.csv").read_text()) == [("s3://photos/shots/day/red.png", "ok", "red")]
    assert run("@s3://photos/shots/list.txt", out=tmp_path / "list.csv") == 3
    rows = rows_of((tmp_path / "list.csv").read_text())
    assert [row[1:] for row in rows] == [("ok", "red"), ("missing", "")]


# What cannot work


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("s3://nowhere/p.csv", "There is no bucket nowhere .*Make it"),
        ("nonsense://b/p.csv", "no store called nonsense.*s3://"),
        ("s3://p.csv", "names no file in a bucket.*s3://BUCKET/p.csv"),
        ("s3://photos/p.txt", "expected a name ending in"),
        ("zip://a.csv::s3://photos/a.csv", "chained"),
    ],
)
def test_an_output_that_cannot_be_is_one_line(model, photos, bucket, out, words):
    with pytest.raises(FgvcError, match=words) as caught:
        run(photos, out=out)
    assert "\n" not in str(caught.value)


def test_a_source_without_a_bucket_is_one_line(bucket):
    with pytest.raises(FgvcError, match="Nothing lies at s3://nowhere/a.*bucket"):
        find_images(["s3://nowhere/a"])


def test_a_missing_package_is_named_for_an_output(model, photos, bucket, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(FgvcError, match=r"gs://photos/p.csv needs a package.*pip install gcsfs"):
        run(photos, out="gs://photos/p.csv")


def test_a_bucket_without_leave_to_write_is_one_line(model, photos, bucket, monkeypatch):
    import s3fs

    call = s3fs.S3FileSystem._call_s3

    async def deny(self, method, *args, **kwargs):
        if method.startswith(("put_", "create_")):
            raise PermissionError(13, "Access Denied")
        return await call(self, method, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", deny)
    with pytest.raises(FgvcError, match=r"Cannot work in s3://photos/runs/preds.csv.partial: .*permission"):
        run(photos, out=PREDS)
    assert bucket.names() == []


def test_a_store_that_fails_in_the_middle_is_one_line_and_the_run_resumes(
    model, many, bucket, monkeypatch, capsys
):
    import botocore.exceptions

    broken = botocore.exceptions.EndpointConnectionError(endpoint_url="http://x")
    with monkeypatch.context() as patch:
        patch.setattr(store, "open_store", lambda url, real=store.open_store: _failing(real(url), broken))
        with pytest.raises(FgvcError, match="s3://photos/runs/preds.csv.*Could not connect"):
            run(many, out=PREDS)
    assert run(many, out=PREDS) == 0


def _failing(opened, error):
    store, path = opened

    class Failing:
        protocol = store.protocol

        def __getattr__(self, name):
            if name == "ls" and "partial" in path:
                raise error
            return getattr(store, name)

    return Failing(), path


def test_folders_of_pictures_stay_on_a_disk(model, photos, bucket):
    with pytest.raises(FgvcError, match="written to a disk"):
        run(photos, out=PREDS, crops_dir="s3://photos/crops")


def test_paths_of_a_store_are_paths():
    path = as_path("s3://photos/a/p.csv")
    assert str(path) == str(path.with_name("p.csv")) == str(path.parent / "p.csv") == "s3://photos/a/p.csv"
    assert (path.suffix, path.name, str(path.with_suffix(".h5"))) == (".csv", "p.csv", "s3://photos/a/p.h5")
    assert path == as_path(str(path)) and hash(path) == hash(as_path(str(path)))
    assert is_url(str(path)) and as_path("a/b.csv").parts == ("a", "b.csv")
    assert as_path("file:///a/b.csv").as_posix() == "/a/b.csv"


def test_workers_of_a_cluster_leave_their_rows_in_the_bucket(bucket, tmp_path):
    outputs, local = Outputs((as_path(PREDS),)), Outputs((tmp_path / "p.csv",))
    run_made_up(local, 60)
    pool = WorkerPool(SimulatedCluster(2), make, {}, lambda text: None)
    root = partial_folder(outputs.files[0])
    with pool, RunFolder(root, run_identity(pool.open(), ["photos"])) as folder:
        folder.survey()
        pool.complete(folder.tasks(fake_images(60)), folder, Progress())
        folder.finish()
        assert bucket.names() == [
            f"runs/preds.csv.partial/{name}"
            for name in ("lock", "rows-000000000000.npz", "run.json", "storage")
        ]
        merge_run(root, outputs)
    assert bucket.names() == ["runs/preds.csv"]
    assert bucket.get("runs/preds.csv") == (tmp_path / "p.csv").read_bytes()


def test_a_folder_of_parts_is_whole_with_its_mark_and_may_be_replaced(model, many, bucket):
    parquet = pytest.importorskip("fgvc_cli.formats.parquet", reason="needs pyarrow")
    out = "s3://photos/preds/"
    (many / "zz.png").write_text("broken")
    assert run(many, out=out, crops=True) == 3
    assert bucket.names() == ["preds/_SUCCESS", "preds/part-00000.parquet"]
    Image.new("RGB", (8, 8), "red").save(many / "zz.png")
    assert run(many, out=out, crops=True, retry_failed=True) == 0
    assert set(parquet.read_table(as_path(out)).rows.status) == {"ok"}
    with pytest.raises(FgvcError, match="s3://photos/preds/ exists"):
        run(many, out=out)
    bucket.put("preds/holiday.jpg", b"")
    with pytest.raises(FgvcError, match="holds other files too, such as holiday.jpg"):
        run(many, out=out, overwrite=True)
