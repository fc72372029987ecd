"""Decoding processes: in order, bounded, and a file that kills one costs one row."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from fgvc_cli.config import Preprocess
from fgvc_cli.errors import FgvcError
from fgvc_cli.models.output import ModelOutput
from fgvc_cli.predict import decoding as decode_process
from fgvc_cli.predict.decoding import (
    DecodePool,
    Decoder,
    DecodeSettings,
    FileTurn,
    ProcessDecoder,
    Rule,
    in_order,
)
from fgvc_cli.predict.predictor import Predictor
from fgvc_cli.sources.find import Found
from fgvc_cli.sources.images import DecodedImage
from fgvc_cli.sources.stored import CannotRead, Stored

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are for POSIX")
SETTINGS = DecodeSettings(Rule(32, 32, "squash"))

DEADLY = """
import os, signal, sys, time
import fgvc_cli.predict.decoding as decoder
read = decoder.read_image
def deadly(path, *rest, **options):
    name = os.path.basename(str(path))
    if name.startswith("segv"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("exit"):
        os._exit(7)
    if name.startswith("slow"):
        time.sleep(60)
    return read(path, *rest, **options)
decoder.read_image = deadly
from fgvc_cli.predict.decoding import serve
"""


@pytest.fixture
def deadly(monkeypatch):
    """Workers whose decoder really dies on files of certain names, as a bug in a C library would have it."""
    start = decode_process._START.replace("from {module} import serve\n", DEADLY)
    monkeypatch.setattr(decode_process, "_START", start)


@pytest.fixture
def turns():
    with tempfile.TemporaryFile() as file:
        yield file.fileno()


@pytest.fixture
def decoder(turns):
    decoder = ProcessDecoder(SETTINGS, turns=turns)
    yield decoder
    decoder.close()


def red(path: Path) -> Path:
    Image.new("RGB", (40, 20), "red").save(path)
    return path


class Red(nn.Module):
    part_count = 0

    def forward(self, images, want=()):
        probs = images.mean(dim=(2, 3)).softmax(dim=1)
        boxes = torch.tensor([0.0, 0, 16, 32]).repeat(len(images), 1)
        return ModelOutput(logits={}, probs=probs, boxes=boxes)


def predictor(**options):
    trained = SimpleNamespace(
        model=Red(),
        classes=("red", "green", "blue"),
        preprocess=Preprocess(input_px=32, resize_px=32),
        name="red",
        sha256="0",
    )
    return Predictor(trained, **{"device": "cpu", "batch_size": 4, "workers": 2} | options)


@pytest.mark.parametrize("at", [0, 5, 10])
def test_a_file_that_kills_its_decoder_is_named_and_a_failed_row(tmp_path, deadly, at):
    paths = [red(tmp_path / f"{i:02d}.png") for i in range(11)]
    paths[at] = red(tmp_path / f"segv-{at:02d}.png")
    told = []
    rows = list(predictor(on_event=told.append).predict([Found(path, path.name) for path in paths]))
    assert [row.path for row in rows] == [path.name for path in paths]
    assert [row.status for row in rows] == ["crashed" if i == at else "ok" for i in range(11)]
    assert rows[at].error == "the decoder was killed by SIGSEGV on this file"
    assert told == [f"A decoder died and was replaced. segv-{at:02d}.png: {rows[at].error}."]
    assert all(row.labels[0] == "red" for row in rows if row.ok)


def test_every_file_may_kill_its_decoder_and_the_run_still_ends(tmp_path, deadly):
    paths = [red(tmp_path / f"exit-{i}.png") for i in range(5)]
    rows = list(predictor().predict([Found(path, path.name) for path in paths]))
    assert [(row.status, row.error) for row in rows] == [
        ("crashed", "the decoder ended with exit code 7 on this file")
    ] * 5


def test_a_worker_killed_from_outside_is_replaced(tmp_path, deadly, decoder):
    """SIGKILL, as the kernel does to a process that takes too much memory."""
    assert decoder.load(0, red(tmp_path / "a.png")).failure is None
    first = decoder.pid
    killer = threading.Timer(0.2, os.kill, (first, signal.SIGKILL))
    killer.start()
    failure = decoder.load(1, red(tmp_path / "slow.png")).failure
    assert (failure.status, failure.error) == (
        "crashed",
        "the decoder was killed by SIGKILL (out of memory?) on this file",
    )
    assert decoder.load(2, tmp_path / "a.png").failure is None and decoder.pid != first


def test_a_worker_that_died_while_idle_is_no_fault_of_the_next_file(tmp_path, decoder):
    red(tmp_path / "a.png")
    decoder.load(0, tmp_path / "a.png")
    os.kill(decoder.pid, signal.SIGKILL)
    decoder._process.wait()
    assert decoder.load(1, tmp_path / "a.png").failure is None


def test_a_crash_loses_kept_images_but_not_their_crops(tmp_path, deadly):
    names = ["a.png", "b.png", "segv.png", "c.png"]
    found = [Found(red(tmp_path / name), name) for name in names]
    (block,) = predictor(workers=1, extras=("crop",)).blocks(found)
    assert block.status == ["ok", "ok", "crashed", "ok"]
    assert [bool(crop) for crop in block.crop] == [True, True, False, True]
    assert len({block.crop[i] for i in (0, 1, 3)}) == 1


def test_processes_answer_as_threads_do(tmp_path, decoder):
    Image.effect_noise((90, 70), 90).convert("RGB").save(tmp_path / "a.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"bad")
    inline = Decoder(SETTINGS)
    for name in ("a.jpg", "bad.jpg", "gone.jpg", "\udce9.jpg"):
        here, there = inline.load(0, tmp_path / name), decoder.load(0, tmp_path / name)
        assert here[:3] == there[:3]
        assert (here.pixels is None and there.pixels is None) or (here.pixels == there.pixels).all()
        for box in ((1, 2, 60, 50), None):
            assert inline.cut(0, tmp_path / name, box) == decoder.cut(0, tmp_path / name, box)


@dataclass(frozen=True)
class InMemory(Stored):
    """Reachable only in this process: it does not travel at all."""

    stream: object

    def open(self):
        if isinstance(self.stream, Exception):
            raise self.stream
        return self.stream()


def test_stored_images_are_read_where_they_can_be_reached(tmp_path, decoder):
    path = red(tmp_path / "a.png")
    image = InMemory(lambda: path.open("rb"))
    assert decoder.load(0, image).pixels[0, 0].tolist() == [255, 0, 0]
    assert decoder.cut(0, image, (0, 0, 9, 9)) == decoder.cut(0, path, (0, 0, 9, 9)) != b""
    failure = decoder.load(0, InMemory(CannotRead("no_access", "encrypted"))).failure
    assert (failure.status, failure.error) == ("no_access", "encrypted")
    assert decoder.load(0, InMemory(ConnectionResetError(104, "reset"))).failure.status == "unreadable"
    assert decoder.cut(0, InMemory(OSError("gone")), (0, 0, 9, 9)) == b""


def test_a_worker_that_cannot_start_is_one_line(monkeypatch, tmp_path, decoder):
    monkeypatch.setattr(decode_process, "_START", "import sys; sys.exit(3)")
    with pytest.raises(FgvcError, match="exit code 3 as it started.*--workers 0"):
        decoder.load(0, red(tmp_path / "a.png"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(FgvcError, match="Could not start"):
        decoder.load(0, tmp_path / "a.png")


def test_closing_ends_every_worker(tmp_path, monkeypatch):
    path, processes = red(tmp_path / "a.png"), []
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *args, **kw: processes.append(start(*args, **kw)) or processes[-1]
    )
    rows = predictor().predict(Found(path, str(i)) for i in range(100))
    next(rows)
    assert len(processes) == 2
    rows.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
    assert [process.returncode for process in processes] == [0, 0]


def test_a_worker_ends_when_its_parent_is_killed(tmp_path):
    code = f"""
import tempfile, time
from fgvc_cli.predict.decoding import ProcessDecoder
from fgvc_cli.predict.decoding import DecodeSettings, Rule
print("main")
decoder = ProcessDecoder(DecodeSettings(Rule(32, 32, "squash")), turns=tempfile.TemporaryFile().fileno())
assert decoder.load(0, {str(red(tmp_path / "a.png"))!r}).failure is None
print(decoder.pid, flush=True)
time.sleep(60)
"""
    (tmp_path / "script.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(tmp_path / "script.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        # The script ran once: workers do not import the user's __main__.
        assert parent.stdout.readline() == "main\n"
        pid = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        if not _alive(pid):
            break
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie that nobody reaps, as where the first process of a container does not.
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_turns_are_given_back_by_the_dead(turns):
    """A process that holds both places is killed; the next one gets its turn."""
    hold = f"fcntl.lockf({turns}, fcntl.LOCK_EX, 2, 0)"
    code = f"import fcntl, time; {hold}; print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[turns]) as holder:
        holder.stdout.readline()
        got = threading.Event()
        turn = FileTurn(turns)
        threading.Thread(target=lambda: (turn.acquire(), got.set()), daemon=True).start()
        assert not got.wait(0.2)
        holder.kill()
        assert got.wait(10)
        turn.release()


def test_crops_are_cut_by_whoever_keeps_the_image():
    reads, opened = [], threading.Lock()

    def read(path):
        with opened:
            reads.append(path.name)
        return DecodedImage(Image.new("RGB", (40, 20)))

    keeping = DecodeSettings(SETTINGS.rule, keep_bytes=1 << 20)
    pool = DecodePool(keeping, workers=3, read=read)
    futures = [pool.load(i, Found(Path(str(i)), str(i))) for i in range(30)]
    loaded = [future.result() for future in futures]
    assert all(future.result() for future in [pool.cut(item, (0, 0, 20, 20)) for item in loaded])
    pool.close()
    assert len(reads) == 30


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_reader_raises_is_raised_to_whoever_waits(workers):
    def read(path):
        raise ZeroDivisionError

    pool = DecodePool(SETTINGS, workers=workers, read=read)
    with pytest.raises(ZeroDivisionError):
        pool.load(0, Found(Path("a"), "a")).result()
    pool.close()


def test_in_order_hands_over_in_order_and_takes_no_more_than_its_window():
    taken, futures = [], {}

    def submit(item):
        futures[item] = Future()
        if item:
            futures[item].set_result(item)
        return futures[item]

    def items():
        for i in range(10):
            taken.append(i)
            yield i

    ordered = in_order(submit, items(), window=4)
    threading.Timer(0.1, lambda: futures[0].set_result(0)).start()
    assert next(ordered) == 0 and taken == [0, 1, 2, 3]
    assert list(ordered) == list(range(1, 10))
