"""Where a model looked against where the bird is, on the Aviary's exact boxes.

    fgvc datasets make aviary /tmp/aviary --train 0 --val 0 --test 20 --seed 1
    python benchmarks/localisation.py /tmp/aviary --weights aviary

``fgvc eval --data /tmp/aviary --weights aviary`` prints the figures of the object box and of the object heat;
here are those of every stage, threshold and part window too.

Printed beside the model: what the whole picture and a fixed centred box would score, and how often windows
thrown at random into the object box would hit a part, since a number without them says little.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from fgvc_cli.attention.objects import THRESHOLDS, locate_objects
from fgvc_cli.aviary.dataset import PARTS, SPECIES, Truth, differing_parts, read_boxes, slug
from fgvc_cli.data.geometry import Box
from fgvc_cli.engine.weights import open_weights
from fgvc_cli.evaluate.evaluator import ENOUGH, best_iou, centred_box, inside
from fgvc_cli.explain.explainer import Explanation, explain_photo
from fgvc_cli.explain.methods import HEAT
from fgvc_cli.sources.images import DecodedImage, read_image


def main() -> None:
    """Score every picture of an Aviary folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("aviary", type=Path)
    parser.add_argument("--weights", default="aviary")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    checkpoint = open_weights(arguments.weights)
    truths, sizes = [], []
    boxes: dict[str, list[tuple[float, float, float, float]]] = {}
    hits: dict[str, list[tuple[bool, bool]]] = {}
    windows: dict[str, list[tuple[bool, bool]]] = {}
    generator = np.random.default_rng(0)
    correct = 0
    for path, truth in read_boxes(arguments.aviary).items():
        photo = read_image(arguments.aviary / path)
        assert isinstance(photo, DecodedImage), path
        explanation = explain_photo(checkpoint, photo.image, top_k=1)
        correct += explanation.top[0][0] == truth.label
        for name, heat in _maps(explanation).items():
            for threshold in THRESHOLDS:
                size = (explanation.input_px, explanation.input_px)
                box = locate_objects(torch.from_numpy(heat)[None], size, threshold)[0].tolist()
                boxes.setdefault(f"{name}, {threshold}", []).append(explanation.geometry.to_photo(box))
        if explanation.parts and explanation.box:
            thrown = _throw(explanation.box, explanation.parts, generator)
            for name, parts in (("the model's windows", explanation.parts), ("windows at random", thrown)):
                windows.setdefault(name, []).append(_hit(parts, truth))
        truths.append(truth.box)
        sizes.append(photo.image.size)
        parts = [truth.parts[part] for part in PARTS]
        for name, heat in explanation.maps.items():
            point = peak(heat, explanation.region)
            hits.setdefault(name, []).append((inside(point, [truth.box]), inside(point, parts)))
    print(f"{checkpoint.name} {checkpoint.sha256[:12]}: {len(truths)} pictures")
    print(f"top-1 {correct / len(truths):.3f}")
    for name, found in boxes.items():
        _report(f"box from {name}", found, truths)
    for share in (1.0, 0.6):
        fixed = [centred_box((width, height), share) for width, height in sizes]
        _report(f"centred {share:.1f} of each side", fixed, truths)
    covered = np.mean([_area(box) / (w * h) for box, (w, h) in zip(truths, sizes, strict=True)])
    print(f"pointing game (chance: object {covered:.3f})")
    for name, pairs in hits.items():
        objects, any_part = np.mean(pairs, axis=0)
        print(f"  {name:12s} on the bird {objects:.3f}   on one of its parts {any_part:.3f}")
    for name, pairs in windows.items():
        any_part, telling = np.mean(pairs, axis=0)
        print(f"{name:20s} hold a part's centre {any_part:.3f}   that of a telling part {telling:.3f}")


def _maps(explanation: Explanation) -> dict[str, np.ndarray]:
    """The explanation's maps, and where there are several stages what the object heat is compared with: their
    plain mean, at the first one's size."""
    if len(explanation.maps) < 3:
        return explanation.maps
    stages = [torch.from_numpy(heat)[None, None] for name, heat in explanation.maps.items() if name != HEAT]
    size = stages[0].shape[-2:]
    mean = torch.cat([F.interpolate(m, size, mode="bilinear") for m in stages]).mean(dim=0)[0].numpy()
    return explanation.maps | {"mean of stages": mean}


def _hit(parts: tuple[Box, ...], truth: Truth) -> tuple[bool, bool]:
    """Whether a window holds the centre of any part, and of one that tells the species from its nearest."""
    telling = telling_parts(truth.label)
    held = {
        name
        for name, (x1, y1, x2, y2) in truth.parts.items()
        if inside(((x1 + x2) / 2, (y1 + y2) / 2), parts)
    }
    return bool(held), bool(held & telling)


def telling_parts(label: str) -> set[str]:
    """Parts that alone tell a species from another one."""
    own = next(species for species in SPECIES if slug(species) == label)
    differences = [differing_parts(own, other) for other in SPECIES if other != own]
    return {parts[0] for parts in differences if len(parts) == 1}


def _throw(box: Box, parts: tuple[Box, ...], generator: np.random.Generator) -> tuple[Box, ...]:
    """Windows of the parts' sizes anywhere in the object box."""
    thrown = []
    for x1, y1, x2, y2 in parts:
        x = box[0] + generator.random() * max(0.0, box[2] - box[0] - (x2 - x1))
        y = box[1] + generator.random() * max(0.0, box[3] - box[1] - (y2 - y1))
        thrown.append((x, y, x + x2 - x1, y + y2 - y1))
    return tuple(thrown)


def _report(name: str, boxes: Sequence[Box], truths: Sequence[Box]) -> None:
    iou = np.array([best_iou(box, [truth]) for box, truth in zip(boxes, truths, strict=True)])
    print(f"{name:32s} mean IoU {iou.mean():.3f}   IoU > {ENOUGH} {(iou > ENOUGH).mean():.3f}")


def peak(heat: np.ndarray, region: tuple[float, float, float, float]) -> tuple[float, float]:
    """Centre of the hottest cell, in pixels of the image."""
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    x1, y1, x2, y2 = region
    return x1 + (column + 0.5) / heat.shape[1] * (x2 - x1), y1 + (row + 0.5) / heat.shape[0] * (y2 - y1)


def _area(box: tuple[int, int, int, int]) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


if __name__ == "__main__":
    main()
