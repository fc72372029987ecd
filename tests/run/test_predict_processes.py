"""fgvc predict in processes of its own: ended by real signals, started by torchrun, refused by the disk."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from test_predict_resume import shards_of_format_1

from fgvc_cli import create_model
from fgvc_cli.config import Preprocess, TrainConfig
from fgvc_cli.engine.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "predict"
SECONDS = 120.0
"""For what takes a few on an idle machine."""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and processes of POSIX")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    name = "crasmra-resnet10t"
    config = TrainConfig(model=name, preprocess=Preprocess(input_px=32, resize_px=32))
    model = create_model(name, num_classes=3, input_px=32)
    save_checkpoint(path, model, config=config, classes=("a", "b", "c"), dataset="none", metrics={})
    return path


@pytest.fixture
def listed(tmp_path):
    """A list of one image, again and again: as many rows as one likes."""

    def write(rows, size=(40, 30)):
        Image.new("RGB", size, "olive").save(tmp_path / "olive.jpg")
        (tmp_path / "list.txt").write_text("olive.jpg\n" * rows)
        return tmp_path

    return write


def command(*arguments):
    return [sys.executable, "-m", "fgvc_cli", "predict", *map(str, arguments)]


def start(arguments, folder, **options):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        arguments,
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def wait_until(true, what):
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.02)


def children(pid):
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found] + [each for child in found for each in children(int(child))]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the children in /proc")
def test_children_of_a_killed_parent_end_and_the_same_command_goes_on(weights, listed):
    folder = listed(400, size=(3000, 2000))  # which take a while to decode
    arguments = command("@list.txt", "--weights", weights, "--devices", 2, "--device", "cpu", "--amp", "none",
                        "--batch-size", 2, "--workers", 1, "--out", "p.csv")  # fmt: skip
    process = start(arguments, folder)
    shards = [folder / "p.csv.partial" / f"shard-{i}-of-2" for i in range(2)]
    wait_until(lambda: all(any(shard.glob("rows-*.npz")) for shard in shards), "completed rows")
    below = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(below) >= 2
    wait_until(lambda: not any(map(is_running, below)), "the children to end")
    assert not (folder / "p.csv").exists()
    listed(400)  # which do not
    again = start(arguments, folder)
    told = again.communicate(timeout=SECONDS)[1]
    assert again.returncode == 0, told
    assert "Resuming after" in told
    with (folder / "p.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 400 and {row["status"] for row in rows} == {"ok"}
    assert [path.name for path in folder.glob("p.csv*")] == ["p.csv"]


ENDED_BEHIND_ITS_WORK = """
import atexit, os, signal
from multiprocessing import Pipe
from fgvc_cli.errors import FgvcError
from fgvc_cli.run import predict

def fail(*_):
    raise FgvcError("No such weights.")

predict.open_images = fail
atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))
ours, theirs = Pipe(duplex=False)
predict._complete_shard(theirs, predict.PredictOptions(sources="photos", out="p.csv"), 0, 2, "cpu")
print(ours.recv()[:2])
"""


def test_a_shard_that_is_ended_behind_its_work_says_nothing(tmp_path):
    process = start([sys.executable, "-c", ENDED_BEHIND_ITS_WORK], tmp_path, stdout=subprocess.PIPE)
    out, told = process.communicate(timeout=SECONDS)
    assert (process.returncode, out, told) == (0, "('error', 'No such weights.')\n", "")


def test_devices_restart_the_shards_of_another_format(weights, listed):
    folder = listed(5)
    shards_of_format_1(folder / "p.csv")
    arguments = command("@list.txt", "--weights", weights, "--devices", 2, "--device", "cpu", "--amp", "none",
                        "--workers", 0, "--out", "p.csv", "--restart", "--quiet")  # fmt: skip
    process = start(arguments, folder)
    told = process.communicate(timeout=SECONDS)[1]
    assert (process.returncode, told) == (0, "")
    with (folder / "p.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 5


def test_torchrun_shares_a_folder_among_its_processes(weights, listed):
    folder = listed(25)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    arguments = [
        "@list.txt",
        "--weights",
        str(weights),
        "--out",
        "p.csv",
        "--workers",
        "1",
        "--device",
        "cpu",
    ]
    process = start([*launcher, "fgvc_cli", "predict", *arguments], folder)
    told = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 0, told
    for shard, rows in ((0, 13), (1, 12)):
        assert f"Shard {shard}/2 is complete" in told and f"{rows} images" in told
    merged = start([sys.executable, "-m", "fgvc_cli", "merge", "p.csv"], folder)
    assert merged.communicate(timeout=SECONDS)[0] is None and merged.returncode == 0
    with (folder / "p.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 25


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    """The command as an installation puts it on the path."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "fgvc").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fgvc_cli "$@"\n')
    (tmp_path / "bin" / "fgvc").chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]))


def rows_of(path):
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_the_array_job_of_slurm_merges_with_its_last_task(weights, listed, on_path, monkeypatch):
    folder = listed(5)
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    told = []
    for task in ("4", "3"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        assert not (folder / "p.csv").exists()
        script = [str(ROOT / "examples" / "slurm_array.sh"), "@list.txt", "p.csv"]
        process = start(["bash", *script, "--weights", str(weights)], folder, stdout=subprocess.PIPE)
        told.append(process.communicate(timeout=SECONDS))
        assert process.returncode == 0, told
    assert [out for out, _ in told] == ["", "merged into p.csv\n"]
    assert len(rows_of(folder / "p.csv")) == 5
    assert [path.name for path in folder.glob("p.csv*")] == ["p.csv"]


def test_the_pod_of_kubernetes_completes_its_shard(weights, listed, on_path, monkeypatch):
    folder = listed(3)
    (folder / "archive").mkdir()
    (folder / "archive" / "broken.jpg").write_text("broken")
    text = (ROOT / "examples" / "kubernetes_job.yaml").read_text()
    script = text.partition("args:\n            - |\n")[2].partition("          resources:")[0]
    assert text.count("16") == 3 and '"$JOB_COMPLETION_INDEX/16"' in script
    script = script.replace("/data/", f"{folder}/").replace("/16", "/1")
    script = script.replace("groceries-vit", str(weights))
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    process = start(["sh", "-c", script], folder)
    told = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 0, told
    assert "1 failed (not_an_image 1)" in told


HUNG = """
import sys, time
from pathlib import Path
from fake_predictor import FakePredictor, fake_images, fake_info
from fgvc_cli.cli.predict import second_ctrl_c_ends
from fgvc_cli.run import parts as shards
from fgvc_cli.run.parts import PartWriter

def hang(folder, block):
    print("committing", flush=True)
    time.sleep(60)

shards.write_part = hang
with second_ctrl_c_ends(), PartWriter(Path(".")) as writer:
    try:
        for block in FakePredictor(seconds=0.01).blocks(fake_images(100_000)):
            writer.add(block)
            print("row", flush=True)
    finally:
        writer.flush()
"""


def test_a_second_ctrl_c_ends_at_once_while_the_disk_hangs(tmp_path):
    process = start([sys.executable, "-c", HUNG], tmp_path, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "row\n"
    process.send_signal(signal.SIGINT)
    while (line := process.stdout.readline()) == "row\n":
        continue
    assert line == "committing\n"
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=30)[1]
    assert (process.returncode, told) == (130, "")
    assert time.monotonic() - begun < 10


BIG = """
import sys
from pathlib import Path
from fgvc_cli.predict.decoding import Decoder, DecodeSettings, Rule
decoder = Decoder(DecodeSettings(Rule(224, 224, "squash"), keep_bytes=1 << 29))
for number in range(3):
    decoded = decoder.load(number, sys.argv[1])
    assert decoded.failure is None, decoded.failure
    assert len(decoder.cut(number, sys.argv[1], (0, 0, decoded.width, decoded.height))) > 100
status = Path("/proc/self/status").read_text()
print(status.partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak in /proc")
@pytest.mark.parametrize("orientation", [1, 6])
def test_images_of_a_hundred_megapixels_take_bounded_memory(tmp_path, orientation):
    """Four bytes a pixel once, twice where it is turned upright, however many there are."""
    path, exif = tmp_path / "big.jpg", Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (12_000, 8_400), "olive").save(path, quality=30, exif=exif)
    process = start([sys.executable, "-c", BIG, str(path)], tmp_path, stdout=subprocess.PIPE)
    out, told = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, told
    copies = 2 if orientation == 6 else 1
    assert int(out) * 1024 < copies * 4 * 12_000 * 8_400 + (150 << 20)


def test_an_output_folder_that_becomes_read_only_is_one_line_and_resumable(weights, listed, tmp_path):
    """A write that fails as on a disk remounted read-only: to root, permissions are no obstacle."""
    folder = listed(40)
    script = (
        "import errno, sys\n"
        "import fgvc_cli.run.parts as shards\n"
        "def refuse(path): raise OSError(errno.EROFS, 'Read-only file system')\n"
        "shards.whole_file = refuse\n"
        "from fgvc_cli.cli import main\n"
        "main()\n"
    )
    arguments = [
        "predict",
        "@list.txt",
        "--weights",
        str(weights),
        "--out",
        "p.csv",
        "--workers",
        "1",
        "--quiet",
    ]
    process = start([sys.executable, "-c", script, *arguments], folder)
    told = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 1
    assert len(told.splitlines()) == 1 and "Read-only file system" in told and "same command again" in told
    again = start(command(*arguments[1:]), folder)
    told = again.communicate(timeout=SECONDS)[1]
    assert (again.returncode, told) == (0, "")
    with (folder / "p.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 40


@pytest.mark.skipif(os.environ.get("FGVC_SLOW") != "1", reason="the compiler takes a minute: FGVC_SLOW=1")
def test_the_real_compiler_answers_as_the_plain_model(weights, listed):
    folder = listed(40)
    for name, options in (("plain.csv", ()), ("compiled.csv", ("--compile",))):
        arguments = ("@list.txt", "--weights", weights, "--amp", "none", "--device", "cpu", "--out", name)
        process = start(command(*arguments, *options), folder)
        told = process.communicate(timeout=5 * SECONDS)[1]
        assert process.returncode == 0, told
        assert "Could not compile" not in told
    tables = [list(csv.DictReader((folder / name).open())) for name in ("plain.csv", "compiled.csv")]
    for plain, compiled in zip(*tables, strict=True):
        assert plain["label"] == compiled["label"]
        assert abs(float(plain["prob"]) - float(compiled["prob"])) < 1e-4
