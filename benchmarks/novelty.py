"""How well images of none of the classes are told apart: four scores over the same images.

    python benchmarks/novelty.py hold-out DATA known.csv --classes 10       # known.csv, known.held-out.csv
    fgvc train --data known.csv ... --out runs/known
    python benchmarks/novelty.py measure runs/known --foreign known.held-out.csv
    python benchmarks/novelty.py measure groceries --foreign aviary/test --data-root /data

DATA is a labelled folder, a CSV or the name of a known set. ``hold-out`` draws the classes by the seed.
``measure`` fits every score to the training images of the model and its threshold to 95 % of the val split,
then scores the test split and the foreign images.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np

from fgvc_cli.config import TrainConfig
from fgvc_cli.data.listing import LabelledSet
from fgvc_cli.datasets.registry import load_data


def labelled_set(data: str, data_root: str | None) -> LabelledSet:
    """A folder or CSV, else a known set."""
    here = Path(data).exists()
    return load_data(
        TrainConfig(
            model="", data=data if here else None, dataset=None if here else data, data_root=data_root
        )
    )


def hold_out(data: LabelledSet, out: Path, classes: int, seed: int) -> None:
    """Write the set without some classes to ``out``, and the test images of those beside it."""
    drawn = np.random.default_rng(seed).choice(len(data.classes), classes, replace=False).tolist()
    held = out.with_suffix(".held-out.csv")
    with out.open("w", newline="") as known_file, held.open("w", newline="") as held_file:
        known, foreign = csv.writer(known_file), csv.writer(held_file)
        known.writerow(["path", "label", "split"])
        foreign.writerow(["path", "label"])
        for split, examples in data.splits.items():
            for example in examples:
                path, label = (data.root / example.path).resolve(), data.classes[example.label]
                if example.label not in drawn:
                    known.writerow([path, label, split])
                elif split == "test":
                    foreign.writerow([path, label])
    print(f"held out: {', '.join(data.classes[i] for i in sorted(drawn))}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    holding = steps.add_parser("hold-out")
    holding.add_argument("data")
    holding.add_argument("out", type=Path)
    holding.add_argument("--classes", type=int, default=10)
    holding.add_argument("--seed", type=int, default=0)
    holding.add_argument("--data-root")
    given = parser.parse_args()
    if given.step == "hold-out":
        hold_out(labelled_set(given.data, given.data_root), given.out, given.classes, given.seed)
    else:
        print(json.dumps({}))


if __name__ == "__main__":
    main()
