"""Ten classes that a model was not trained on: an index of a few images each, beside a new classifier.

    python benchmarks/new_classes.py GROCERY tf_efficientnet_lite0.in1k.safetensors
    python benchmarks/new_classes.py GROCERY runs/old

GROCERY is the folder of the Grocery Store Dataset. The model is ImageNet's EfficientNet-Lite0 as it is, or
one trained without the ten classes ``NEW``; ``--write-old old.csv`` writes the labels for that training:

    fgvc train --data old.csv --model timm-tf_efficientnet_lite0 --init W --epochs 8 --input-px 112 \\
      --out runs/old

The index holds all training images of the 71 old classes and 1, 5 or 10 of each new one, drawn by the seed.
The whole test split is classified over all 81 classes, by nearest neighbours and class means (``predict
--index``), and by a linear probe (scikit-learn) fitted on the same embeddings, the cheapest retraining.
"""

from __future__ import annotations

import argparse
import csv
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from wrong_labels import imagenet, read_split

from fgvc_cli import Predictor, load_checkpoint
from fgvc_cli.engine.index_classes import KnownImages, unit
from fgvc_cli.evaluate.confidence import reliability
from fgvc_cli.models.weights import CHECKPOINT_KEY, read_tensors
from fgvc_cli.sources.find import Found

NEW = (
    "Anjou",
    "Arla-Ecological-Sour-Cream",
    "Avocado",
    "Cabbage",
    "Ginger",
    "Granny-Smith",
    "Pineapple",
    "Red-Delicious",
    "Tropicana-Mandarin-Morning",
    "Watermelon",
)
SHOTS = (1, 5, 10)


def class_names(root: Path) -> list[str]:
    """Of the fine classes, in the order of their numbers."""
    with (root / "classes.csv").open(encoding="utf-8") as file:
        rows = {int(row["Class ID (int)"]): row["Class Name (str)"] for row in csv.DictReader(file)}
    return [rows[i] for i in range(len(rows))]


def write_old(root: Path, out: Path) -> None:
    """The labels of all splits without the new classes."""
    names = class_names(root)
    with out.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "label", "split"])
        for split in ("train", "val", "test"):
            paths, labels, _ = read_split(root, split)
            for path, label in zip(paths, labels, strict=True):
                if names[label] not in NEW:
                    table.writerow([(root / path).resolve(), names[label], split])


def embed(root: Path, weights: Path, px: int) -> dict[str, np.ndarray]:
    """Embeddings and labels of train and test; of a trained model, the classes of its own answers too."""
    file = weights / "model.safetensors" if weights.is_dir() else weights
    trained = CHECKPOINT_KEY in read_tensors(file)[1]
    checkpoint = load_checkpoint(file) if trained else imagenet(file, px)
    names = {name: i for i, name in enumerate(class_names(root))}
    predictor = Predictor(checkpoint, device="cpu", batch_size=32, workers=0, top_k=1, extras=("embedding",))
    found = {}
    for split in ("train", "test"):
        paths, found[f"{split}_y"], _ = read_split(root, split)
        with closing(predictor.blocks(Found(root / path, path) for path in paths)) as blocks:
            taken = list(blocks)
        found[f"{split}_x"] = np.concatenate([block.embedding for block in taken])
        if trained:
            own = np.concatenate([block.topk_index[:, 0] for block in taken])
            found[f"{split}_own"] = np.array([names[checkpoint.classes[i]] for i in own])
    return found


def judge(name: str, probs: np.ndarray, labels: np.ndarray, new: np.ndarray) -> list[float]:
    """Accuracies on old and new classes, how many old images go to a new class, and the ECE; in %."""
    guess = probs.argmax(axis=1)
    right, is_new = guess == labels, new[labels]
    ece = reliability(torch.from_numpy(probs).float(), torch.from_numpy(labels)).error
    return [100 * v for v in (right[~is_new].mean(), right[is_new].mean(), new[guess[~is_new]].mean(), ece)]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("grocery", type=Path)
    parser.add_argument("weights", type=Path, nargs="?")
    parser.add_argument("--px", type=int, default=112)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write-old", type=Path)
    parser.add_argument("--features", type=Path, help="keep the embeddings here, .npz")
    given = parser.parse_args()
    if given.write_old:
        write_old(given.grocery, given.write_old)
        return
    torch.set_num_threads(1)
    if given.features and given.features.exists():
        data = dict(np.load(given.features))
    else:
        data = embed(given.grocery, given.weights, given.px)
        if given.features:
            np.savez(given.features, **data)
    names = class_names(given.grocery)
    new = np.array([name in NEW for name in names])
    vectors, queries = unit(data["train_x"]), torch.from_numpy(data["test_x"]).float()
    labels, truth = data["train_y"], data["test_y"]
    if "test_own" in data:
        own = data["test_own"] == truth
        print(f"the model itself, old classes: {100 * own[~new[truth]].mean():.1f} %", flush=True)
    old = np.flatnonzero(~new[labels])
    for shots in SHOTS:
        scores: dict[str, list[list[float]]] = {}
        for seed in range(given.seeds):
            rng = np.random.default_rng(seed)
            few = [rng.choice(np.flatnonzero(labels == c), shots, replace=False) for c in np.flatnonzero(new)]
            rows = np.concatenate([old, *few])
            known = KnownImages(vectors[rows], labels[rows].astype(np.int64), len(names))
            for by in ("neighbours", "means"):
                probs = (known.scores(queries, by) / known.temperature(by)).softmax(dim=1).numpy()
                scores.setdefault(f"`--by {by}`", []).append(judge(by, probs, truth, new))
            begun = time.process_time()
            probe = LogisticRegression(C=30, max_iter=200, tol=1e-3)
            probe.fit(vectors[rows].astype(np.float32), labels[rows])
            features = torch.nn.functional.normalize(queries, dim=1).numpy()
            scores.setdefault("linear probe", []).append(
                judge("probe", probe.predict_proba(features), truth, new)
            )
            print(f"probe: {time.process_time() - begun:.0f} s", flush=True)
        for name, figures in scores.items():
            mean, sd = np.mean(figures, axis=0), np.std(figures, axis=0, ddof=1)
            cells = (f"{m:.1f} ± {s:.1f}" for m, s in zip(mean, sd, strict=True))
            print(f"| {shots} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
