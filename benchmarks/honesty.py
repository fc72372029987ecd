"""Whether what the methods of ``fgvc explain`` show is what the model goes by, with controls beside them.

    fgvc datasets make aviary av --train 0 --val 0 --test 10 --seed 7
    python benchmarks/honesty.py av --weights aviary --pictures 36
    python benchmarks/honesty.py grocery/test --weights groceries-vit --pictures 24

Per map, means over the pictures, for the class that the model answers:

- pointing (Zhang et al. 2016): the hottest cell's centre lies on the bird, on any of its parts, on one that
  alone tells its species from another. Only where ``boxes.csv`` says where they are.
- energy (Wang et al. 2020): share of the map inside the bird's box, inside its parts, the telling ones.
- deletion, insertion (Petsiuk et al. 2018): mean probability of the class while cells are greyed, or come up
  in a blurred picture, from the hottest on. Good maps are low, and high.
- sanity (Adebayo et al. 2018): Spearman correlation of the map with that of the same model with random
  weights. Above 0.5 the map shows the picture rather than what was learnt, and the method fails.

The sanity check is made on every third picture. Ctrl-C ends early and prints the table of what was done.

Controls: noise, and a Gaussian in the middle that has never seen the picture.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from localisation import inside, peak, telling_parts
from scipy.stats import spearmanr
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as v2

from fgvc_cli.data.aviary import PARTS, SPECIES, Truth, differing_parts, read_boxes, slug
from fgvc_cli.data.find import find_images
from fgvc_cli.data.images import DecodedImage, read_image
from fgvc_cli.data.transforms import eval_transform, input_geometry, normalize
from fgvc_cli.engine.checkpoint import Checkpoint
from fgvc_cli.engine.weights import open_weights
from fgvc_cli.errors import FgvcError
from fgvc_cli.explain.method import Heats
from fgvc_cli.explain.methods import METHODS
from fgvc_cli.explain.question import Case, Question

STEPS = 8
"""Steps of the deletion and insertion curves."""
SANITY_EVERY = 3
FAILS_ABOVE = 0.5
Box = tuple[float, float, float, float]
Scores = dict[str, dict[str, list[float]]]


def main() -> None:
    """Score every method on some pictures and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", default="aviary")
    parser.add_argument("--pictures", type=int, default=36, help="spread evenly over the folder")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    checkpoint = open_weights(arguments.weights)
    truths = read_boxes(arguments.folder) if (arguments.folder / "boxes.csv").exists() else {}
    random = randomised(checkpoint.model)
    scores: Scores = defaultdict(lambda: defaultdict(list))
    count = 0
    with contextlib.suppress(KeyboardInterrupt):
        for name, image in _pictures(arguments.folder, arguments.pictures):
            images = normalize(eval_transform(checkpoint.preprocess)(image)[None], checkpoint.preprocess)
            truth = truths.get(name)
            places = _places(truth, image.size, checkpoint) if truth else {}
            other = random if count % SANITY_EVERY == 0 else None
            _score(scores, checkpoint, other, images, places, truth, arguments.methods)
            count += 1
    print(f"{checkpoint.name} {checkpoint.sha256[:12]}: {count} pictures, curves of {STEPS} steps")
    _table(scores)


def _pictures(folder: Path, wanted: int) -> Iterator:
    found = [item for item in find_images([folder])]
    for index in sorted({round(i) for i in np.linspace(0, len(found) - 1, min(wanted, len(found)))}):
        photo = read_image(found[index].path)
        if isinstance(photo, DecodedImage):
            yield found[index].name, photo.image


def _score(
    scores: Scores,
    checkpoint: Checkpoint,
    random: nn.Module | None,
    images: Tensor,
    places: dict[str, list[Box]],
    truth: Truth | None,
    methods: Sequence[str],
) -> None:
    """All methods and controls on one picture (1, 3, S, S); ``random`` is the model for the sanity check."""
    model = checkpoint.model
    with torch.no_grad():
        case = Question().ask(model(images).probs)
    heats = _maps(model, images, case, methods)
    learnt_nothing = _maps(random, images, case, methods) if random else {}
    side = images.shape[-1]
    controls = {"noise": torch.rand(1, 14, 14), "centre prior": _centre(14)}
    for name, heat in {**heats, **controls}.items():
        row = scores[name]
        for place, boxes in places.items():
            row[f"point {place}"].append(inside(peak(heat[0].numpy(), (0, 0, side, side)), boxes))
            row[f"energy {place}"].append(_energy(heat, boxes, side))
        deletion, insertion = curves(model, images, heat, int(case.targets))
        row["deletion"].append(deletion)
        row["insertion"].append(insertion)
        if name in learnt_nothing:
            row["sanity"].append(_correlation(heat, learnt_nothing[name]))
    if truth and "gradcam" in methods:
        _contrast(scores, checkpoint, images, truth, places, side)


def _contrast(
    scores: Scores,
    checkpoint: Checkpoint,
    images: Tensor,
    truth: Truth,
    places: dict[str, list[Box]],
    side: int,
) -> None:
    """Grad-CAM of the true species against one that differs in a single part: does it point there?"""
    own = next(species for species in SPECIES if slug(species) == truth.label)
    for other in SPECIES:
        differing = differing_parts(own, other) if other != own else []
        if len(differing) != 1:
            continue
        indices = [checkpoint.classes.index(slug(species)) for species in (own, other)]
        case = Case(*(torch.tensor([index]) for index in indices))
        boxes = places[differing[0]]
        for name, heat in _maps(checkpoint.model, images, case, ["gradcam"]).items():
            row = scores[f"{name} against the nearest"]
            row["point telling part"].append(inside(peak(heat[0].numpy(), (0, 0, side, side)), boxes))
            row["energy telling part"].append(_energy(heat, boxes, side))


def _maps(model: nn.Module, images: Tensor, case: Case, names: Sequence[str]) -> Heats:
    """The maps of every method that can explain the model, each once."""
    heats: Heats = {}
    for name in names:
        method = METHODS[name]
        with torch.no_grad():
            output = model(images, want=method.wants)
        try:
            found = method.maps(model, images, output, case)
        except FgvcError:
            continue
        for key, heat in found.items():
            if not any(other.shape == heat.shape and torch.equal(other, heat) for other in heats.values()):
                heats[key] = heat
    return heats


@torch.no_grad()
def curves(model: nn.Module, images: Tensor, heat: Tensor, target: int) -> tuple[float, float]:
    """Areas under the deletion and the insertion curve of one picture (1, 3, S, S) and its map (1, h, w)."""
    side = images.shape[-1]
    blurred = v2.gaussian_blur(images, [2 * (side // 8) + 1] * 2, [side / 16] * 2)
    order = _smooth(heat, side).flatten().argsort(descending=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    shares = torch.linspace(0, 1, STEPS + 1)
    taken = (rank.view(1, 1, side, side) < (shares * len(order)).view(-1, 1, 1, 1)).float()
    areas = []
    for start, end in ((images, torch.zeros_like(images)), (blurred, images)):
        probs = model(start * (1 - taken) + end * taken).probs[:, target]
        areas.append(float(torch.trapezoid(probs, shares)))
    return areas[0], areas[1]


def randomised(model: nn.Module) -> nn.Module:
    """A copy with every weight drawn anew, as for training from nothing."""
    drawn = copy.deepcopy(model)
    for module in drawn.modules():
        for parameter in module.parameters(recurse=False):
            # Embeddings and tokens, which no layer of torch's initialises.
            nn.init.trunc_normal_(parameter, std=0.02)
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return drawn.eval()


def _places(truth: Truth, size: tuple[int, int], checkpoint: Checkpoint) -> dict[str, list[Box]]:
    """Where bird, parts and telling parts lie in the model's input, pixels; each part also by its name."""
    geometry = input_geometry(*size, checkpoint.preprocess)
    side = checkpoint.preprocess.input_px

    def box(corners: Sequence[float]) -> Box:
        x1, x2 = (min(max(x * geometry.scale_x - geometry.offset_x, 0), side) for x in corners[::2])
        y1, y2 = (min(max(y * geometry.scale_y - geometry.offset_y, 0), side) for y in corners[1::2])
        return x1, y1, x2, y2

    parts = {part: box(truth.parts[part]) for part in PARTS}
    named = {
        "bird": [box(truth.box)],
        "any part": list(parts.values()),
        "telling part": [parts[part] for part in telling_parts(truth.label)],
    }
    return named | {part: [corners] for part, corners in parts.items()}


def _smooth(heat: Tensor, side: int) -> Tensor:
    """(1, h, w) -> (S, S), as it is drawn."""
    return F.interpolate(heat[None].float(), (side, side), mode="bilinear")[0, 0]


def _energy(heat: Tensor, boxes: Sequence[Box], side: int) -> float:
    mask = torch.zeros(side, side)
    for x1, y1, x2, y2 in boxes:
        mask[round(y1) : round(y2), round(x1) : round(x2)] = 1
    values = _smooth(heat, side)
    return float((values * mask).sum() / values.sum().clamp_min(1e-12))


def _correlation(one: Tensor, other: Tensor) -> float:
    found = spearmanr(one.flatten().numpy(), other.flatten().numpy()).statistic
    # A constant map has no ranks to agree in.
    return 0.0 if np.isnan(found) else abs(float(found))


def _centre(cells: int) -> Tensor:
    at = (torch.arange(cells) + 0.5) / cells - 0.5
    return torch.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 0.25**2))[None]


def _table(scores: Scores) -> None:
    columns = ["point bird", "point any part", "point telling part"]
    columns += ["energy bird", "energy any part", "energy telling part", "deletion", "insertion", "sanity"]
    shown = [column for column in columns if any(column in row for row in scores.values())]
    print("| map | " + " | ".join(shown) + " | |")
    print("|---" * (len(shown) + 2) + "|")
    for name, row in scores.items():
        cells = [f"{np.mean(row[column]):.3f}" if row.get(column) else "" for column in shown]
        failed = "fails" if row.get("sanity") and np.mean(row["sanity"]) > FAILS_ABOVE else ""
        print(f"| {name} | " + " | ".join(cells) + f" | {failed} |")


if __name__ == "__main__":
    main()
