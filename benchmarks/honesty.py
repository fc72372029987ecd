"""Whether what the methods of ``fgvc explain`` show is what the model goes by, with controls beside them.

    fgvc datasets make aviary av --train 0 --val 0 --test 3 --seed 7
    python benchmarks/honesty.py av --weights aviary --out cnn.jsonl

Per map, means over the pictures, for the class that the model answers:

- point (pointing game, Zhang et al. 2016, without their margin): the hottest cell's centre lies on the bird,
  on any of its parts, on one that alone tells its species from another. A map without any evidence misses.
- energy (Wang et al. 2020): share of the map inside the bird's box, inside its parts, the telling ones.
- deletion, insertion (Petsiuk et al. 2018): mean probability of the class while cells are greyed, or come up
  in a blurred picture, from the hottest on. Good maps are low, and high. What a map holds to be equal comes
  in the order of noise. Occlusion asks nearly what deletion measures, and is favoured by it.
- sanity (Adebayo et al. 2018): rank correlation, whatever its sign, with the map of the same model with
  random weights for the same class, on every third picture. Above 0.5 the map shows the picture rather than
  what was learnt. Beside it, as what unrelated maps have: with the method's map of the picture before.

Telling parts are scored where the model is right. A method fails a test where it is not better than the
better control, noise of cells as coarse or a Gaussian in the middle, which has never seen the picture: the
95 % interval of the paired difference (bootstrap) reaches 0. "Against the nearest" are maps for why the true
species and not one that differs in a single part, scored on that part.

Each picture is a line of ``--out``. The same command again leaves out what is done; ``--shard 0/3`` to
``2/3`` share the work between processes, and may share the file.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from honesty_scores import Row, correlation, curves, points
from honesty_table import AGAINST, CENTRE, collect, print_table, read_lines
from localisation import telling_parts
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fgvc_cli.aviary.dataset import PARTS, SPECIES, Truth, differing_parts, read_boxes, slug
from fgvc_cli.data.geometry import Box, input_geometry
from fgvc_cli.data.transforms import eval_transform
from fgvc_cli.engine.checkpoint import Checkpoint
from fgvc_cli.engine.device import keep_freed_memory
from fgvc_cli.engine.weights import open_weights
from fgvc_cli.errors import FgvcError
from fgvc_cli.explain.methods import METHODS, Case, Heats, Occlusion, Question
from fgvc_cli.models.fuse_batchnorm import fold_batch_norms
from fgvc_cli.models.output import ModelOutput, normalize
from fgvc_cli.sources.find import find_images
from fgvc_cli.sources.images import DecodedImage, read_image

SANITY_EVERY = 3
DRAWS = 3
"""Random models, one picture after another taking the next."""
_REFIT = 16
_PASS = 32


def main() -> None:
    """Score every method on the pictures that are not done yet, and print one table of all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", default="aviary")
    parser.add_argument("--pictures", type=int, default=36, help="spread evenly over the folder")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("honesty.jsonl"))
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--table", action="store_true", help="only print")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    checkpoint = open_weights(arguments.weights)
    if not arguments.table:
        shard, shards = map(int, arguments.shard.split("/"))
        names = _names(arguments.folder, arguments.pictures)
        # What is done of a run that was cut is a fair sample.
        work = np.random.default_rng(0).permutation(names).tolist()[shard::shards]
        _measure(checkpoint, arguments.folder, work, arguments.methods, arguments.out)
    lines = read_lines(arguments.out, checkpoint.sha256)
    print(f"{checkpoint.name} {checkpoint.sha256[:12]}: {len(lines)} pictures")
    for name in ("right", "whole", "grey", "blurred"):
        values = [line[name] for line in lines if line[name] is not None]
        print(f"  {name}: {np.mean(values):.3f}" if values else f"  {name}: not known")
    print_table(collect(lines))


def _measure(
    checkpoint: Checkpoint, folder: Path, work: Sequence[str], methods: Sequence[str], out: Path
) -> None:
    done = {line["picture"] for line in read_lines(out, checkpoint.sha256)}
    truths = read_boxes(folder) if (folder / "boxes.csv").exists() else {}
    some = torch.cat([_load(folder, name, checkpoint)[0] for name in _names(folder, _REFIT)])
    randoms = [Model(randomised(checkpoint.model, some, seed), some) for seed in range(DRAWS)]
    model, before = Model(checkpoint.model, some), {}
    for index, name in enumerate(work):
        if name in done:
            continue
        images, size = _load(folder, name, checkpoint)
        random = randoms[index // SANITY_EVERY % DRAWS] if index % SANITY_EVERY == 0 else None
        bird = Bird(truths[name], size, checkpoint) if name in truths else None
        line, before = score(model, random, images, bird, methods, before)
        with out.open("a") as stream:
            stream.write(json.dumps({"weights": checkpoint.sha256, "picture": name, **line}) + "\n")


class Model:
    """A model, and its faster copy for passes without gradients."""

    def __init__(self, model: nn.Module, images: Tensor):
        self.whole = model
        self.fast = fold_batch_norms(model, images)

    @torch.no_grad()
    def probs(self, images: Tensor) -> Tensor:
        """(n, 3, S, S) -> (n, K)."""
        return torch.cat([self.fast(chunk).probs for chunk in images.split(_PASS)])


class Bird:
    """Where bird, parts and telling parts of one picture lie in the model's input, pixels."""

    def __init__(self, truth: Truth, size: tuple[int, int], checkpoint: Checkpoint):
        geometry = input_geometry(*size, checkpoint.preprocess)
        side = checkpoint.preprocess.input_px

        def box(corners: Sequence[float]) -> Box:
            x1, x2 = (min(max(x * geometry.scale_x - geometry.offset_x, 0), side) for x in corners[::2])
            y1, y2 = (min(max(y * geometry.scale_y - geometry.offset_y, 0), side) for y in corners[1::2])
            return x1, y1, x2, y2

        self.target = checkpoint.classes.index(truth.label)
        self.parts = {part: box(truth.parts[part]) for part in PARTS}
        self.places = {
            "bird": [box(truth.box)],
            "any part": list(self.parts.values()),
            "telling part": [self.parts[part] for part in telling_parts(truth.label)],
        }
        own = next(species for species in SPECIES if slug(species) == truth.label)
        nearest = {other: differing_parts(own, other) for other in SPECIES if other != own}
        self.rivals = {
            checkpoint.classes.index(slug(other)): [self.parts[parts[0]]]
            for other, parts in nearest.items()
            if len(parts) == 1
        }
        """Class that differs in a single part -> that part."""


def score(
    model: Model,
    random: Model | None,
    images: Tensor,
    bird: Bird | None,
    methods: Sequence[str],
    before: Heats,
) -> tuple[dict[str, Any], Heats]:
    """All methods and controls on one picture (1, 3, S, S): its line, and its maps for the picture after.

    Args:
        random: the model for the sanity check, None to leave it out.
        before: the maps of another picture.
    """
    side, case = images.shape[-1], Question().ask(model.probs(images))
    target = int(case.targets)
    cases = {"": case}
    if bird:
        cases |= {
            f" against {rival}": Case(torch.tensor([bird.target]), torch.tensor([rival]))
            for rival in bird.rivals
        }
    asked = find_maps(model, images, cases, methods)
    heats = asked.pop("")
    randoms = find_maps(random, images, {"": case}, methods)[""] if random else {}
    scored = heats | controls([heat.shape[-1] for heat in heats.values()])
    areas, ends = curves(model.probs, images, scored, target)
    places = dict(bird.places) if bird else {}
    if bird and target != bird.target:
        del places["telling part"]
    rows: dict[str, Row] = {}
    for name, heat in scored.items():
        row: Row = {"cells": heat.shape[-1]}
        for place, boxes in places.items():
            row |= points(heat, boxes, side, place)
        row["deletion"], row["insertion"] = areas[name]
        if name in randoms:
            row["sanity"] = correlation(heat, randoms[name])
        if name in before:
            row["other picture"] = correlation(heat, before[name])
        rows[name] = row
    contrasts: dict[str, list[Row]] = {}
    for found, boxes in zip(asked.values(), bird.rivals.values() if bird else (), strict=True):
        # The middle answers whatever is asked, but the part that counts is another.
        for name, heat in (found | {CENTRE: scored[CENTRE]}).items():
            row = points(heat, boxes, side, "telling part")
            contrasts.setdefault(f"{name}{AGAINST}", []).append(row)
    right = None if bird is None else float(target == bird.target)
    return {"right": right, **ends, "rows": rows, "contrasts": contrasts}, heats


def find_maps(model: Model, images: Tensor, cases: dict[str, Case], names: Sequence[str]) -> dict[str, Heats]:
    """Case -> the maps of every method that can explain the model; what shows one map twice has one name.

    Behind a case with a name are only the methods that ask for a class.
    """
    found: dict[str, Heats] = {key: {} for key in cases}
    for method in (METHODS[name] for name in names):
        with torch.no_grad():
            output: ModelOutput = model.whole(images, want=method.wants)
        # Behind windows the model answers once for all questions.
        hidden = method.hidden(model.fast, images) if isinstance(method, Occlusion) else None
        for key, case in cases.items():
            if key and not method.asks_class:
                continue
            try:
                if isinstance(method, Occlusion) and hidden is not None:
                    heats = {method.name: method.heat(output.probs, hidden, case)}
                else:
                    heats = method.maps(model.whole, images, output, case)
            except FgvcError:
                continue
            for name, heat in heats.items():
                if method.asks_class or not any(torch.equal(heat, other) for other in found[key].values()):
                    found[key][name] = heat
    return found


def controls(sides: Sequence[int]) -> Heats:
    """What has not seen the picture: noise of the coarsest and the finest map's cells, and the middle."""
    coarse, fine = (min(sides), max(sides)) if sides else (14, 14)
    cells = [coarse, fine] if fine >= 2 * coarse else [coarse]
    at = (torch.arange(fine) + 0.5) / fine - 0.5
    centre = torch.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 0.25**2))[None]
    return {f"noise {n} x {n}": torch.rand(1, n, n) for n in cells} | {CENTRE: centre}


def randomised(model: nn.Module, images: Tensor, seed: int) -> nn.Module:
    """A copy with every weight drawn anew, as for training from nothing.

    Its batch norms are given the statistics of ``images`` (n, 3, S, S): with those of new ones, signals fade
    from layer to layer, the answer hardly depends on the picture, and maps are empty instead of changed.
    """
    drawn = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in drawn.modules():
            for parameter in module.parameters(recurse=False):
                # Embeddings and tokens, which no layer of torch's initialises.
                nn.init.trunc_normal_(parameter, std=0.02)
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    norms = [module for module in drawn.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    drawn.eval()
    for norm in norms:
        norm.momentum = None  # the plain mean over batches
        norm.train()
    if norms:
        with torch.no_grad():
            drawn(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return drawn.eval()


def _names(folder: Path, wanted: int) -> list[str]:
    """Paths of some pictures, spread evenly."""
    found = [item.name for item in find_images([folder])]
    places = np.linspace(0, len(found) - 1, min(wanted, len(found)))
    return [found[place] for place in sorted({round(each) for each in places})]


def _load(folder: Path, name: str, checkpoint: Checkpoint) -> tuple[Tensor, tuple[int, int]]:
    """Normalised (1, 3, S, S), and the image's size."""
    photo = read_image(folder / name)
    if not isinstance(photo, DecodedImage):
        raise SystemExit(f"{name} cannot be read")
    pixels = eval_transform(checkpoint.preprocess)(photo.image)
    return normalize(pixels[None], checkpoint.preprocess), photo.image.size


if __name__ == "__main__":
    main()
