"""How well images of none of the classes are told apart: four scores over the same images.

    python benchmarks/novelty.py foreign groceries aviary/test --data-root /data --cache scores.npz
    python benchmarks/novelty.py held-out grocery tf_efficientnet_lite0.in1k.safetensors --classes 10
    python benchmarks/novelty.py thresholds groceries --cache scores.npz

``foreign``: a trained model on the test split of its training, against images of other things. ``held-out``:
a linear probe on frozen features of ImageNet that was never shown some classes, on the test images of the
others, against those of these; a row per draw of classes. Each score is fitted to training images, and its
threshold to keep 95 % of the val split. ``thresholds``: per class for a wanted precision, fitted on the val
split, on the test split.

A set is the name of a known one, a labelled folder, or a CSV.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from fgvc_cli.config import Preprocess, TrainConfig
from fgvc_cli.data.listing import Example, LabelledSet
from fgvc_cli.data.loaders import LabelledImages, build_loader
from fgvc_cli.data.transforms import eval_transform
from fgvc_cli.datasets.registry import load_data
from fgvc_cli.engine.checkpoint import known_examples, trained_data
from fgvc_cli.engine.weights import open_weights
from fgvc_cli.evaluate.confidence import KEPT, apply_temperature, fit_novelty, fit_thresholds
from fgvc_cli.models.output import normalize
from fgvc_cli.sources.find import find_images

NEIGHBOURS = 5
Answers = dict[str, np.ndarray]
"""Of the images of a split: ``embedding`` (N, D), ``logits`` (N, K) of the branch it belongs to, fused
``prob`` (N, K) and ``label`` (N,), -1 where it is none of the classes."""


def labelled_set(data: str, data_root: str | None) -> LabelledSet:
    """A folder or CSV, else a known set."""
    here = Path(data).exists()
    chosen = {"data": data} if here else {"dataset": data, "data_root": data_root}
    return load_data(TrainConfig(model="", **chosen))


def over(root: Path, examples: list[Example], preprocess: Preprocess, model: Callable) -> Answers:
    """Answers of ``model``: normalised images -> dictionary of tensors."""
    images = LabelledImages(root, examples, eval_transform(preprocess), None, preprocess)
    found: list[dict[str, torch.Tensor]] = []
    for batch in build_loader(images, batch_size=32, workers=0):
        with torch.inference_mode():
            found.append(model(normalize(batch.images, preprocess)) | {"label": batch.labels})
    return {name: torch.cat([part[name] for part in found]).float().numpy() for name in found[0]}


# ---- scores: the larger, the more foreign ----


def scores(train: Answers, others: dict[str, Answers]) -> dict[str, dict[str, np.ndarray]]:
    """Name of a score -> split -> (N,)."""
    classes = int(train["label"].max()) + 1
    given = [
        [(torch.tensor(a["embedding"]), torch.tensor(a["label"]).long())] for a in (train, others["val"])
    ]
    novelty = fit_novelty(*given, classes)
    assert novelty is not None
    directions = train["embedding"] / np.linalg.norm(train["embedding"], axis=1, keepdims=True)

    def neighbour(each: Answers) -> np.ndarray:
        own = each["embedding"] / np.linalg.norm(each["embedding"], axis=1, keepdims=True)
        return 1 - np.partition(own @ directions.T, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS]

    kinds: dict[str, Callable[[Answers], np.ndarray]] = {
        "largest probability": lambda each: -each["prob"].max(axis=1),
        "energy": lambda each: -torch.tensor(each["logits"]).logsumexp(dim=1).numpy(),
        "class means": lambda each: novelty.scores(torch.tensor(each["embedding"])).numpy(),
        f"{NEIGHBOURS}th neighbour": neighbour,
    }
    return {
        name: {split: kind(each) for split, each in others.items() if len(each["label"])}
        for name, kind in kinds.items()
    }


def judge(found: dict[str, np.ndarray]) -> tuple[float, float, float]:
    """AUROC of test against foreign images, and which fractions of both the threshold keeps."""
    val = np.sort(found["val"])
    threshold = val[math.ceil(KEPT * (len(val) + 1)) - 1]
    truth = np.repeat([0, 1], [len(found["test"]), len(found["foreign"])])
    area = float(roc_auc_score(truth, np.concatenate([found["test"], found["foreign"]])))
    return area, float((found["test"] <= threshold).mean()), float((found["foreign"] <= threshold).mean())


def table(results: dict[str, list[tuple[float, float, float]]], answers: dict[str, Answers]) -> None:
    """Print it; of several draws the mean, and the least and largest AUROC."""
    print(", ".join(f"{len(each['label']):,} {split}" for split, each in answers.items()) + " images")
    print("| score | AUROC | of test kept | foreign ones kept |\n|---|---|---|---|")
    for name, draws in results.items():
        area, kept, accepted = np.mean(draws, axis=0)
        areas = [draw[0] for draw in draws]
        ends = f" [{min(areas):.3f}, {max(areas):.3f}]" if len(draws) > 1 else ""
        print(f"| {name} | {area:.3f}{ends} | {100 * kept:.1f} % | {100 * accepted:.1f} % |")


# ---- a trained model ----


def trained_answers(weights: str, foreign: str | None, data_root: str | None) -> dict[str, Answers]:
    """Of the splits of its training, and of all images below a folder."""
    checkpoint = open_weights(weights)
    model, branches = checkpoint.model.eval(), checkpoint.model.branches
    branch = "main" if "main" in branches else "concat"

    def answer(images: torch.Tensor) -> dict[str, torch.Tensor]:
        output = model(images, want=("embedding",))
        prob = apply_temperature(output.probs, checkpoint.temperature)
        return {"embedding": output.embedding, "logits": output.logits[branch], "prob": prob}

    data = trained_data(checkpoint, data_root, "train")
    splits = {split: known_examples(data, split, checkpoint.classes) for split in ("train", "val", "test")}
    found = {
        split: over(data.root, examples, checkpoint.preprocess, answer) for split, examples in splits.items()
    }
    if foreign:
        others = [Example(str(Path(image.path).resolve()), -1) for image in find_images([foreign])]
        found["foreign"] = over(Path(), others, checkpoint.preprocess, answer)
    return found


def cached(path: Path | None, make: Callable[[], dict[str, Answers]]) -> dict[str, Answers]:
    """What ``path`` holds, else what is made now, which it will hold."""
    if path and path.exists():
        stored = np.load(path)
        splits = dict.fromkeys(name.partition("/")[0] for name in stored.files)
        return {
            split: {
                name.partition("/")[2]: stored[name] for name in stored.files if name.startswith(f"{split}/")
            }
            for split in splits
        }
    made = make()
    if path:
        np.savez(
            path, **{f"{split}/{name}": values for split, a in made.items() for name, values in a.items()}
        )
    return made


def print_thresholds(answers: dict[str, Answers], targets: list[float]) -> None:
    """For each wanted precision, what it comes to on val and test, beside one threshold for all classes."""
    print(
        "| wanted | val: precision, kept | test: precision, kept | one threshold for all |\n|---|---|---|---|"
    )
    told = {
        split: (each["prob"].max(axis=1), each["prob"].argmax(axis=1), each["label"].astype(int))
        for split, each in answers.items()
    }
    for target in targets:
        prob, guess, label = told["val"]
        names = [str(i) for i in range(answers["val"]["prob"].shape[1])]
        fitted = fit_thresholds(prob, guess, guess == label, names, target)
        prob, guess, label = told["test"]
        cells = []
        for least in (np.array([each.threshold for each in fitted.classes])[guess], fitted.pooled):
            kept = prob >= least
            cells.append(f"{100 * (guess == label)[kept].mean():.1f} %, {100 * kept.mean():.1f} %")
        on_val = f"{100 * (fitted.precision or 0):.1f} %, {100 * fitted.coverage:.1f} %"
        print(f"| {100 * target:.0f} % | {on_val} | {cells[0]} | {cells[1]} |")
    print(f"all rows: {100 * (told['test'][1] == told['test'][2]).mean():.1f} % right")


# ---- classes held out ----


def features(data: LabelledSet, weights: Path, px: int) -> dict[str, Answers]:
    """``embedding`` and ``label`` of each split, from a frozen timm network named by its file of weights."""
    network = timm.create_model(weights.name.partition(".")[0])
    network.load_state_dict(load_file(weights))
    network.reset_classifier(0)
    network.eval()
    half = (0.5, 0.5, 0.5)
    preprocess = Preprocess(input_px=px, resize_px=px, mean=half, std=half)
    return {
        split: over(data.root, list(examples), preprocess, lambda images: {"embedding": network(images)})
        for split, examples in data.splits.items()
    }


def held_out(found: dict[str, Answers], classes: int, seed: int) -> dict[str, Answers]:
    """The answers of a probe of the other classes; their test images, and those of the classes held out."""
    count = int(found["train"]["label"].max()) + 1
    drawn = np.random.default_rng(seed).choice(count, classes, replace=False)
    known = {split: ~np.isin(each["label"], drawn) for split, each in found.items()}
    kept = {split: {name: v[known[split]] for name, v in each.items()} for split, each in found.items()}
    foreign = {name: values[~known["test"]] for name, values in found["test"].items()}
    mean, std = kept["train"]["embedding"].mean(axis=0), kept["train"]["embedding"].std(axis=0) + 1e-3
    probe = LogisticRegression(C=0.01, max_iter=300)
    probe.fit((kept["train"]["embedding"] - mean) / std, kept["train"]["label"])
    answers = kept | {"foreign": foreign}
    for each in answers.values():
        each["logits"] = probe.decision_function((each["embedding"] - mean) / std)
        each["prob"] = torch.tensor(each["logits"]).softmax(dim=1).numpy()
    right = probe.classes_[answers["test"]["prob"].argmax(axis=1)] == answers["test"]["label"]
    print(f"draw {seed}: top-1 of the probe on the classes it knows {100 * right.mean():.1f} %")
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    for step in ("foreign", "held-out", "thresholds"):
        one = steps.add_parser(step)
        one.add_argument("subject", help="data set" if step == "held-out" else "weights")
        if step != "thresholds":
            one.add_argument("other", help="folder of other images" if step == "foreign" else "backbone")
        one.add_argument("--data-root")
        one.add_argument("--cache", type=Path, help="file that keeps the answers of the network")
        one.add_argument("--classes", type=int, default=10)
        one.add_argument("--draws", type=int, default=5)
        one.add_argument("--px", type=int, default=112)
    given = parser.parse_args()
    if given.step == "held-out":
        data = labelled_set(given.subject, given.data_root)
        found = cached(given.cache, lambda: features(data, Path(given.other), given.px))
        results: dict[str, list[tuple[float, float, float]]] = {}
        for seed in range(given.draws):
            answers = held_out(found, given.classes, seed)
            for name, each in scores(answers["train"], answers).items():
                results.setdefault(name, []).append(judge(each))
        table(results, answers)
        return
    other = getattr(given, "other", None)
    answers = cached(given.cache, lambda: trained_answers(given.subject, other, given.data_root))
    if given.step == "thresholds":
        print_thresholds(answers, [0.9, 0.95, 0.98])
        return
    table({name: [judge(each)] for name, each in scores(answers["train"], answers).items()}, answers)


if __name__ == "__main__":
    main()
