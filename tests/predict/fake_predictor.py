"""A stand-in for ``Predictor``: rows that follow from the name of the image alone, at once, without pixels.

Run as a script it is a small ``fgvc predict``, to be killed: fake_predictor.py OUT ROWS SECONDS_PER_BLOCK.
"""

import sys
import time
import zlib
from collections import deque
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import numpy as np

from fgvc_cli.config import Preprocess
from fgvc_cli.formats.outputs import Outputs
from fgvc_cli.formats.rows import COLUMNS, Block, RunInfo
from fgvc_cli.run.folder import RunFolder, ShardOf, ShardWalk, partial_folder, run_identity
from fgvc_cli.run.merge import merge_run
from fgvc_cli.run.parts import PartWriter
from fgvc_cli.sources.find import Found

CLASSES = ("cat", "dog", "cow")


def fake_info(extras=(), parts=1, top_k=2, columns=(), **settings):
    return RunInfo(
        "fake", "0" * 64, CLASSES, Preprocess(), top_k, parts, tuple(extras), settings, tuple(columns)
    )


class FakePredictor:
    """Images named ``bad`` fail, those in ``mended`` no longer do."""

    def __init__(self, info=None, batch=7, seconds=0.0, mended=()):
        self.info = info or fake_info()
        self.batch, self.seconds, self.mended = batch, seconds, mended
        self.seen = deque(maxlen=1000)
        self.clipped = 0

    def kept_decoders(self):
        return nullcontext()

    def blocks(self, images, first=0):
        images = iter(images)
        while found := list(islice(images, self.batch)):
            self.seen += [image.name for image in found]
            time.sleep(self.seconds)
            yield fake_block(
                self.info, [image.name for image in found], first, ("bad" not in self.mended) * ("bad",)
            )
            first += len(found)


def fake_block(info, names, first=0, bad=("bad",)):
    n, k = len(names), info.top_k
    random = [np.random.default_rng(zlib.crc32(name.encode(errors="replace"))) for name in names]
    ok = np.array([not any(word in name for word in bad) for name in names])
    values = np.array([r.random(16) for r in random], np.float32)
    values[~ok] = np.nan
    block = Block(
        first=first,
        path=list(names),
        status=["ok" if good else "truncated" for good in ok],
        error=["" if good else "cut short" for good in ok],
        size=np.where(ok[:, None], [640, 480], 0).astype(np.int32),
        topk_index=np.where(ok[:, None], np.arange(k), -1).astype(np.int32),
        topk_prob=values[:, :k],
        box=values[:, 2:6] * 400,
        parts=np.repeat(values[:, None, 6:10] * 400, info.parts, axis=1),
    )
    # A batch of failures never met the model, so that the shape of its maps is not known.
    if "attention" in info.extras and ok.any():
        block.attention = values[:, :6].reshape(n, 2, 3).astype(np.float16)
    if "embedding" in info.extras and ok.any():
        block.embedding = values[:, :5].copy()
    if "logits" in info.extras and ok.any():
        block.logits = values[:, :3].copy()
    if "crop" in info.extras:
        block.crop = [
            b"\xff\xd8" + name.encode(errors="replace") if good else b""
            for name, good in zip(names, ok, strict=True)
        ]
    # What is known of an image without the model, failed ones have too.
    for name in info.columns:
        kind = COLUMNS[name].kind
        drawn = [
            None if "blank" in each else r.random(4) * 400 for each, r in zip(names, random, strict=True)
        ]
        block.more[name] = COLUMNS[name].values(
            [None if v is None else _value(kind, v, n) for v, n in zip(drawn, names, strict=True)]
        )
    return block


def _value(kind, drawn, name):
    if kind == "text":
        return f"{name} é,"
    return round(float(drawn[0]), 6) if kind == "number" else tuple(np.round(drawn, 1).tolist())


def fake_images(rows):
    for i in range(rows):
        name = f"d{i // 100:04d}/{'bad' if i % 11 == 0 else 'img'}{i:06d}.jpg"
        yield Found(Path(name), name)


def run(outputs, rows, *, seconds=0.0, part_rows=20, batch=7, images=None):
    """What the command does, without its options."""
    info = fake_info(outputs.needed())
    predictor = FakePredictor(info, batch, seconds)
    images = images or fake_images(rows)
    root = partial_folder(outputs.files[0])
    with RunFolder(root, run_identity(info, ["photos"])) as folder:
        folder.survey()
        for task in folder.tasks(images):
            with PartWriter(folder.path, first=task.first, rows=part_rows) as writer:
                for block in predictor.blocks(task.images, first=task.first):
                    writer.add(block)
                    folder.count(len(block), block.status)
                writer.flush()
        folder.finish()
        return merge_run(root, outputs)


def begin_shards(out, count, rows, info=None, complete=None, images=None):
    """The completed rows of a run in several pieces, each complete unless ``complete`` leaves it out."""
    info = info or fake_info()
    root = partial_folder(out)
    for index in range(count):
        shard = ShardOf(index, count)
        walk = ShardWalk(iter(images or fake_images(rows)), shard)
        with (
            RunFolder(root, run_identity(info, ["photos"]), shard=shard) as folder,
            PartWriter(folder.path, rows=6) as writer,
        ):
            for block in FakePredictor(info, batch=4).blocks(walk):
                writer.add(block)
                folder.count(len(block), block.status)
            writer.flush()
            if complete is None or index in complete:
                folder.finish(walk.seen())
    return root


def outputs_in(folder):
    """CSV and HDF5 with maps and crops, and both folders."""
    files = (folder / "p.csv", folder / "p.h5")
    return Outputs(files, frozenset(("attention", "crop")), folder / "crops", folder / "maps")


if __name__ == "__main__":
    where, count, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    outputs = outputs_in(where) if len(sys.argv) < 5 else Outputs((where / sys.argv[4],))
    print("begun", flush=True)
    run(outputs, count, seconds=pause, part_rows=20 if pause else 1000, batch=7 if pause else 64)
    import resource

    print("peak_kib", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
