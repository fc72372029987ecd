"""How many flipped labels ``fgvc datasets check --weights`` finds, and how many of the first are flipped.

    python benchmarks/wrong_labels.py GROCERY tf_efficientnet_lite0.in1k.safetensors

GROCERY is the folder of the Grocery Store Dataset. 5 % of its 2,640 training labels are flipped, to any other
class or to one of the same coarse class (a look-alike). Judged by linear probes in 5 folds on embeddings of
ImageNet's EfficientNet-Lite0, which has not seen these images, and of the embedded ``groceries``, which was
trained on them with the right labels; and by the probabilities of ``groceries`` itself. Labels that were
wrong before, if there are any, count as false alarms.
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file

from fgvc_cli import Predictor, create_model, load_checkpoint
from fgvc_cli.config import Preprocess
from fgvc_cli.engine.checkpoint import Checkpoint
from fgvc_cli.report.wrong_labels import out_of_fold, rank_labels
from fgvc_cli.sources.find import Found

FLIPPED, FIRST, FOLDS = 0.05, 100, 5


def read_split(root: Path, split: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Paths, fine and coarse classes (N,)."""
    lines = [line.split(",") for line in (root / f"{split}.txt").read_text().splitlines() if line.strip()]
    fine, coarse = (np.array([int(line[i]) for line in lines]) for i in (1, 2))
    return [line[0].strip() for line in lines], fine, coarse


def imagenet(weights: Path, px: int) -> Checkpoint:
    """EfficientNet-Lite0 as a model of fgvc, its classifier untrained."""
    net = timm.create_model("tf_efficientnet_lite0")
    net.load_state_dict(load_file(weights))
    model = create_model("timm-tf_efficientnet_lite0", 2, init=weights)
    half = (0.5, 0.5, 0.5)
    preprocess = Preprocess(input_px=px, resize_px=px, mean=half, std=half)
    return Checkpoint(model.for_inference(), "timm-tf_efficientnet_lite0", ("a", "b"), preprocess, "0" * 64)


def answer(checkpoint: Checkpoint, root: Path, paths: list[str]) -> dict[str, np.ndarray]:
    """Embeddings of length 1 and probabilities of all images."""
    extras = ("embedding", "logits")
    predictor = Predictor(checkpoint, device="cpu", batch_size=32, workers=0, top_k=1, extras=extras)
    with closing(predictor.blocks(Found(root / path, path) for path in paths)) as blocks:
        pairs = [(block.embedding, block.logits) for block in blocks]
    embedding, logits = (np.concatenate(column) for column in zip(*pairs, strict=True))
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    return {"embedding": embedding, "probs": np.exp(logits)}


def flip(labels: np.ndarray, coarse: np.ndarray, alike: bool, seed: int) -> np.ndarray:
    """Labels, ``FLIPPED`` of them another class; those without a look-alike are not drawn."""
    rng = np.random.default_rng(seed)
    of_coarse = {c: np.unique(labels[coarse == c]) for c in np.unique(coarse)}
    can = [i for i in range(len(labels)) if not alike or len(of_coarse[coarse[i]]) > 1]
    flipped = labels.copy()
    for i in rng.choice(can, round(FLIPPED * len(labels)), replace=False):
        others = of_coarse[coarse[i]] if alike else np.unique(labels)
        flipped[i] = rng.choice(others[others != labels[i]])
    return flipped


def main() -> None:
    """Print a table, and every figure as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("grocery", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--px", type=int, default=112)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--features", type=Path, help="embeddings that new_classes.py --features kept, .npz")
    given = parser.parse_args()
    torch.set_num_threads(1)
    paths, labels, coarse = read_split(given.grocery, "train")
    groceries = load_checkpoint("groceries")
    names = {name: i for i, name in enumerate(groceries.classes)}
    header = (given.grocery / "classes.csv").read_text().splitlines()[1:]
    places = [names[line.split(",")[0]] for line in sorted(header, key=lambda line: int(line.split(",")[1]))]
    figures = {}

    def measure(judge: str, values: np.ndarray, own: bool) -> None:
        for alike in (False, True):
            scores = []
            for seed in range(given.seeds):
                wrong = flip(labels, coarse, alike, seed)
                probs = values if own else out_of_fold(values, wrong, np.arange(len(wrong)), FOLDS)
                ranked, _ = rank_labels(probs, wrong)
                hits = (wrong != labels)[ranked]
                count = int((wrong != labels).sum())
                first = hits[:FIRST].mean()
                scores.append([first, hits[:FIRST].sum() / count, hits.sum() / count, len(ranked)])
            kind = "a look-alike" if alike else "any"
            figures[f"{judge}, {kind}"] = scores
            mean, sd = np.mean(scores, axis=0), np.std(scores, axis=0, ddof=1)
            cells = [f"{100 * m:.1f} ± {100 * s:.1f}" for m, s in zip(mean[:3], sd[:3], strict=True)]
            print(f"| {judge} | {kind} | {' | '.join(cells)} | {mean[3]:.0f} |", flush=True)

    if given.features and given.features.exists():
        net = np.load(given.features)["train_x"].astype(np.float64)
        net /= np.linalg.norm(net, axis=1, keepdims=True)
    else:
        net = answer(imagenet(given.weights, given.px), given.grocery, paths)["embedding"]
    measure("ImageNet, probe", net, own=False)
    found = answer(groceries, given.grocery, paths)
    measure("`groceries`, probe", found["embedding"], own=False)
    measure("`groceries`, its own (`--folds 0`)", found["probs"][:, places], own=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
