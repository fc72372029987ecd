"""Object boxes on packages: against 120 marked by hand, and against those of the images turned round.

    python benchmarks/grocery_boxes.py DATA/grocery --weights groceries
    python benchmarks/grocery_boxes.py DATA/grocery --weights groceries --set heat_floor=0.1

``grocery_boxes.csv`` holds the boxes of 120 images of the Grocery Store test split that show one package in
a hand (drawn with seed 0 from all packages, shelves passed over): what is to be seen of the package, cap
included, and what fingers cover; marked by eye on a grid, to about 2 % of a side.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from fgvc_cli import Predictor
from fgvc_cli.data.geometry import Box
from fgvc_cli.engine.weights import open_weights
from fgvc_cli.evaluate.evaluator import ENOUGH, best_iou, centred_box
from fgvc_cli.sources.images import DecodedImage, read_image

MARKS = Path(__file__).with_name("grocery_boxes.csv")


def main() -> None:
    """Print mean IoU, and what boxes that look at nothing would score."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grocery", type=Path)
    parser.add_argument("--weights", default="groceries")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE")
    arguments = parser.parse_args()
    with MARKS.open(newline="") as file:
        marks = {
            row["path"]: tuple(float(row[side]) for side in ("x1", "y1", "x2", "y2"))
            for row in csv.DictReader(file)
        }
    options = dict(setting.split("=", 1) for setting in arguments.set)
    checkpoint = open_weights(arguments.weights, options=options)
    paths = [arguments.grocery / path for path in marks]
    upright = list(Predictor(checkpoint).predict(paths))
    turned = list(Predictor(checkpoint, read=read_turned).predict(paths))
    overlap, covered, again, sizes = [], [], [], []
    for row, other, truth in zip(upright, turned, marks.values(), strict=True):
        size = (row.width, row.height)
        overlap.append(best_iou(row.box, [truth]))
        covered.append((row.box[2] - row.box[0]) * (row.box[3] - row.box[1]) / (size[0] * size[1]))
        again.append(best_iou(turn(other.box, size), [row.box]))
        sizes.append(size)
    print(f"{checkpoint.name} {checkpoint.sha256[:12]} {options or ''}: {len(marks)} images")
    _report("box", np.array(overlap))
    for share in (1.0, 0.8, 0.6):
        fixed = [
            best_iou(centred_box(size, share), [truth])
            for size, truth in zip(sizes, marks.values(), strict=True)
        ]
        _report(f"centred, {share:.1f} of each side", np.array(fixed))
    shares = np.array(covered)
    print(f"boxes cover {shares.mean():.2f} of the image; over 0.9 of it {(shares > 0.9).mean():.3f}")
    print(f"box of the image turned by 180 degrees, turned back: mean IoU {np.mean(again):.3f}")


def read_turned(path: Path) -> DecodedImage:
    """The image turned by 180 degrees."""
    read = read_image(path)
    assert isinstance(read, DecodedImage), path
    return replace(read, image=read.image.rotate(180))


def turn(box: Box, size: tuple[int, int]) -> Box:
    """The box of the same pixels in the image turned by 180 degrees."""
    x1, y1, x2, y2 = box
    return size[0] - x2, size[1] - y2, size[0] - x1, size[1] - y1


def _report(name: str, iou: np.ndarray) -> None:
    print(f"{name:26s} mean IoU {iou.mean():.3f}   IoU > {ENOUGH} {(iou > ENOUGH).mean():.3f}")


if __name__ == "__main__":
    main()
