"""Prediction files whose every value is known."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from fgvc_cli.config import Preprocess
from fgvc_cli.formats.csv_rows import CsvSink
from fgvc_cli.formats.h5 import H5Sink
from fgvc_cli.formats.rows import Block, RunInfo, Table

CLASSES = ("ant", "bee", "cat")
SIZE = (120, 80)
HOSTILE_FILE = "<script>window.pwned=1<script>.jpg"
HOSTILE_CLASS = "</script><img src=x onerror='window.pwned=2'>"


def jpeg(colour: str, size: tuple[int, int] = SIZE) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "JPEG")
    return stream.getvalue()


def block(
    guesses: list[tuple[str, float] | None],
    classes: tuple[str, ...] = CLASSES,
    *,
    paths: list[str] | None = None,
    parts: int = 0,
    maps: bool = False,
    crops: bool = False,
) -> Block:
    """Rows as (class, probability), None for one that is truncated; 2 guesses each.

    Boxes are (10, 10, 60, 50) in images of 120 x 80 px, part p is (20 p, 0, 20 p + 10, 10); a map (2, 4)
    is 1 in its upper left corner and 0 elsewhere; crops are red.
    """
    n = len(guesses)
    made = Block(
        first=0,
        path=paths or [f"{i:03d}.jpg" for i in range(n)],
        status=["ok" if guess else "truncated" for guess in guesses],
        error=["" if guess else "the file ends early" for guess in guesses],
        size=np.zeros((n, 2), np.int32),
        topk_index=np.full((n, 2), -1, np.int32),
        topk_prob=np.full((n, 2), np.nan, np.float32),
        box=np.full((n, 4), np.nan, np.float32),
        parts=np.full((n, parts, 4), np.nan, np.float32),
        attention=np.full((n, 2, 4), np.nan, np.float16) if maps else None,
        crop=[b""] * n if crops else None,
    )
    for i, guess in enumerate(guesses):
        if guess is None:
            continue
        best = classes.index(guess[0])
        made.size[i] = SIZE
        made.topk_index[i] = best, (best + 1) % len(classes)
        made.topk_prob[i] = guess[1], 1 - guess[1]
        made.box[i] = 10, 10, 60, 50
        for p in range(parts):
            made.parts[i, p] = 20 * p, 0, 20 * p + 10, 10
        if made.attention is not None:
            made.attention[i] = 0
            made.attention[i, 0, 0] = 1
        if made.crop is not None:
            made.crop[i] = jpeg("red", (50, 40))
        if guess[1] < 0.5:
            made.status[i] = "unsure"
    return made


def run_info(rows: Block, classes: tuple[str, ...] = CLASSES, **preprocess: object) -> RunInfo:
    extras = {"attention": rows.attention, "crop": rows.crop}
    return RunInfo(
        model="vitms-test",
        weights_sha256="ab" * 32,
        classes=classes,
        preprocess=Preprocess(**({"input_px": 64, "resize_px": 64} | preprocess)),  # type: ignore[arg-type]
        top_k=2,
        parts=rows.parts.shape[1],
        extras=tuple(name for name, values in extras.items() if values is not None),  # type: ignore[misc]
    )


def write_h5(path: Path, rows: Block, classes: tuple[str, ...] = CLASSES, **preprocess: object) -> Path:
    info = run_info(rows, classes, **preprocess)
    with H5Sink(path, extras=frozenset(info.extras)) as sink:
        sink.begin(info)
        sink.write(rows)
    return path


def write_boxed(path: Path, rows: Block) -> Path:
    """Rows whose ``more`` says which given box each is of; no margin."""
    info = replace(run_info(rows), columns=tuple(rows.more), settings={"boxes": {"margin": 0.0}})
    with H5Sink(path, extras=frozenset(info.extras)) as sink:
        sink.begin(info)
        sink.write(rows)
    return path


def several_labels(folder: Path) -> tuple[Path, Path]:
    """Predictions of a multi-label model, and labels of all rows but the last.

    Told and true: ant + bee, and so it is; bee, really bee + cat; none, and so it is; no prediction, really
    ant; ant, not known.
    """
    rows = block([("ant", 0.9), ("bee", 0.9), ("cat", 0.3), None, ("ant", 0.7)], crops=True)
    rows.topk_prob[:3] = [[0.9, 0.8], [0.9, 0.2], [0.3, 0.1]]
    info = replace(run_info(rows), settings={"multi_label": True})
    with H5Sink(folder / "several.h5", extras=frozenset(info.extras)) as sink:
        sink.begin(info)
        sink.write(rows)
    lines = ("path,labels", "000.jpg,ant|bee", "001.jpg,bee|cat", "002.jpg,", "003.jpg,ant")
    (folder / "several.csv").write_text("\n".join(lines) + "\n")
    return folder / "several.h5", folder / "several.csv"


def write_csv(path: Path, rows: Block, classes: tuple[str, ...] = CLASSES) -> Path:
    with CsvSink(path) as sink:
        sink.begin(run_info(rows, classes))
        sink.write(rows)
    return path


def many(count: int) -> Table:
    """Rows without boxes or pictures; row i is class i % 3 with probability (i + 1) / (count + 1)."""
    prob = (np.arange(count, dtype=np.float32) + 1) / (count + 1)
    rows = Block(
        first=0,
        path=[f"camera-{i // 1000:03d}/{i:07d}.jpg" for i in range(count)],
        status=["ok"] * count,
        error=[""] * count,
        size=np.full((count, 2), SIZE, np.int32),
        topk_index=np.stack([np.arange(count) % 3, (np.arange(count) + 1) % 3], 1).astype(np.int32),
        topk_prob=np.stack([prob, 1 - prob], 1),
        box=np.full((count, 4), np.nan, np.float32),
        parts=np.empty((count, 0, 4), np.float32),
    )
    return Table(Path("many.h5"), rows, run_info(rows))
