"""How fast a model learns from what ``fgvc select`` picks, against images drawn at random.

    python benchmarks/select_rows.py GROCERY tf_efficientnet_lite0.in1k.safetensors

GROCERY is the folder of the Grocery Store Dataset; its training labels are the pool. 5 % of them, drawn by
the seed, are known at first. In three rounds, up to 10, 20 and 40 %, a linear probe on frozen features of
ImageNet predicts all, ``select`` or the seed picks among those that are not known, their labels become known,
and the probe is fitted anew and measured. ``select`` reads what ``predict --embeddings`` would write.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

import fgvc_cli
from fgvc_cli.config import Preprocess
from fgvc_cli.formats.h5 import H5Sink
from fgvc_cli.formats.rows import Block, RunInfo

BATCH, TOP_K, CLASSES = 32, 5, 81
START, STEPS = 0.05, (0.10, 0.20, 0.40)
POLICIES: dict[str, dict[str, object] | None] = {
    "random": None,
    "doubt alone (--pool 1)": {"pool": 1},
    "doubt alone, entropy": {"pool": 1, "doubt": "entropy"},
    "select --pool 2": {"pool": 2},
    "select --pool 5": {"pool": 5},
    "select --pool 1000": {"pool": 1000},
}


def embed(root: Path, weights: Path, px: int) -> dict[str, np.ndarray]:
    """Features (N, D) and labels (N,) of each split, from a frozen EfficientNet-Lite0."""
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(load_file(weights))
    model.reset_classifier(0)
    model.eval()
    found = {}
    for split in ("train", "val", "test"):
        lines = [line.split(",") for line in (root / f"{split}.txt").read_text().split("\n") if line.strip()]
        features = []
        for first in range(0, len(lines), BATCH):
            images = (Image.open(root / path.strip()) for path, *_ in lines[first : first + BATCH])
            pixels = np.stack([np.asarray(image.convert("RGB").resize((px, px))) for image in images])
            with torch.inference_mode():
                features.append(model(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1).numpy())
        found[f"{split}_x"] = np.concatenate(features)
        found[f"{split}_y"] = np.array([int(line[1]) for line in lines])
    return found


def fit(features: np.ndarray, labels: np.ndarray) -> LogisticRegression:
    """A linear probe."""
    return LogisticRegression(C=30, max_iter=300, tol=1e-3).fit(features, labels)


def write_rows(out: Path, pool: np.ndarray, probe: LogisticRegression, features: np.ndarray) -> None:
    """What predict would write of images by their numbers."""
    prob = np.zeros((len(pool), CLASSES))
    prob[:, probe.classes_] = probe.predict_proba(features[pool])
    index = np.argsort(-prob, axis=1, kind="stable")[:, :TOP_K]
    n = len(pool)
    info = RunInfo("probe", "0" * 64, tuple(f"{i:02d}" for i in range(CLASSES)), Preprocess(), TOP_K)
    block = Block(
        first=0,
        path=[f"{number:05d}.jpg" for number in pool],
        status=["ok"] * n,
        error=[""] * n,
        size=np.full((n, 2), 100, np.int32),
        topk_index=index.astype(np.int32),
        topk_prob=np.take_along_axis(prob, index, 1).astype(np.float32),
        box=np.full((n, 4), np.nan, np.float32),
        parts=np.empty((n, 0, 4), np.float32),
        embedding=features[pool].astype(np.float32),
    )
    with H5Sink(out, overwrite=True, extras={"embedding"}) as sink:
        sink.begin(info)
        sink.write(block)


def run(data: dict[str, np.ndarray], score: str, policy: str, seed: int, folder: Path) -> list[float]:
    """Accuracies on a split at each of ``STEPS``.

    All rows of the pool are in the file; those whose labels are known are named by ``reviewed``, as a review
    would.
    """
    features, labels = data["train_x"], data["train_y"]
    rng = np.random.default_rng(seed)
    total = len(labels)
    known = rng.permutation(total)[: round(START * total)]
    scores = []
    for step in STEPS:
        count = round(step * total) - len(known)
        rest = np.setdiff1d(np.arange(total), known)
        how = POLICIES[policy]
        if how is None:
            new = rng.choice(rest, count, replace=False)
        else:
            write_rows(folder / "rows.h5", np.arange(total), fit(features[known], labels[known]), features)
            lines = [f"{number:05d}.jpg,{labels[number]:02d}" for number in known]
            (folder / "known.csv").write_text("\n".join(["path,label", *lines]))
            chosen = fgvc_cli.select(
                folder / "rows.h5",
                count,
                out=folder / "todo.csv",
                reviewed=folder / "known.csv",
                overwrite=True,
                quiet=True,
                **how,
            )
            new = np.array(chosen.rows)
        known = np.concatenate([known, new])
        probe = fit(features[known], labels[known])
        scores.append(float((probe.predict(data[f"{score}_x"]) == data[f"{score}_y"]).mean()))
    return scores


def main() -> None:
    """Print a table, and every figure as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("grocery", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--px", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--score", default="test", choices=("val", "test"))
    parser.add_argument("--features", type=Path, help="keep the features here, .npz")
    parser.add_argument("--policy", action="append", choices=list(POLICIES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.features and given.features.exists():
        data = dict(np.load(given.features))
    else:
        data = embed(given.grocery, given.weights, given.px)
        if given.features:
            np.savez(given.features, **data)
    for split in ("train", "val", "test"):
        data[f"{split}_x"] = normalize(data[f"{split}_x"])
    whole = fit(data["train_x"], data["train_y"]).predict(data[f"{given.score}_x"])
    print(f"all labels: {(whole == data[f'{given.score}_y']).mean():.1%} on {given.score}", flush=True)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for policy in given.policy or POLICIES:
            scores = [run(data, given.score, policy, seed, Path(folder)) for seed in range(given.seeds)]
            figures[policy] = scores
            mean, sd = np.mean(scores, axis=0) * 100, np.std(scores, axis=0, ddof=1) * 100
            cells = (f"{m:.1f} ± {s:.1f}" for m, s in zip(mean, sd, strict=True))
            print(f"| {policy} | {' | '.join(cells)} |", flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
