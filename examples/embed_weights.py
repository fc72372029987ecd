"""Put a trained model among the embedded ones: half the size, no path of a machine, entry in the manifest.

    python examples/embed_weights.py runs/groceries groceries --check /data/grocery/test

Large tensors are stored as float16; small ones (norms, biases, depthwise kernels) stay float32: they
weigh little and matter most. ``--check`` reads a folder of images with both files and refuses where a
label is not equal, or a probability differs by more than 0.002 although both look at the same boxes: a
multi-stage ViT cuts its crops to whole cells, and rounding moves one now and then; that is counted. What a
model is and was trained on is taken from the entry of that name, or given.

What tells images unlike the training's is fitted by ``fgvc train``. To fit it anew into what is embedded, or
into a model that was trained without, where /data/grocery and /data/aviary hold the images of the trainings
(the entry in the manifest says how the second is rendered):

    for name in aviary groceries groceries-vit; do
      python examples/embed_weights.py $name $name --fit-novelty /data
    done
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save

from fgvc_cli import Predictor, evaluate
from fgvc_cli.config import TrainConfig, build
from fgvc_cli.engine.checkpoint import CHECKPOINT_KEY, config_sha256, file_sha256
from fgvc_cli.engine.weights import resolve_weights, weights_folder
from fgvc_cli.files import AtomicFile
from fgvc_cli.models.weights import read_tensors

LARGEST_DIFFERENCE = 0.002
METRICS = ("images", "top1", "top5", "macro_f1")


SMALL = 100_000
"""Tensors of fewer values stay float32: depthwise kernels and first layers weigh little, and matter most."""


def halved(tensor: torch.Tensor) -> torch.Tensor:
    """A weight as float16 where that keeps its values."""
    if (
        tensor.dtype != torch.float32
        or tensor.numel() < SMALL
        or tensor.abs().max() > torch.finfo(torch.float16).max
    ):
        return tensor
    return tensor.half()


def without_paths(document: dict) -> dict:
    """The document of a checkpoint, naming files by their last part only."""
    config = document["config"]
    for field in ("init", "data", "data_root"):
        if config.get(field):
            config[field] = Path(config[field]).name
    return document | {"config": config, "config_sha256": config_sha256(build(TrainConfig, config))}


def compare(first: Path, second: Path, images: Path) -> None:
    """Exit with a message unless both models say the same of every image."""
    answers = [list(Predictor(path, top_k=1).predict(images)) for path in (first, second)]
    largest, changed, moved = 0.0, [], [0.0]
    for one, other in zip(*answers, strict=True):
        if not one.ok:
            continue
        if one.labels[0] != other.labels[0]:
            changed.append(f"{one.path}: {one.labels[0]} {one.probs[0]:.4f}, then {other.labels[0]}")
        difference = abs(one.probs[0] - other.probs[0])
        if one.parts and (one.box, one.parts) != (other.box, other.parts):
            moved.append(difference)
        else:
            largest = max(largest, difference)
    print(
        f"{len(answers[0])} images, {len(changed)} labels changed, largest difference {largest:.5f}; a "
        f"crop moved in {len(moved) - 1}, largest difference there {max(moved):.5f}"
    )
    if changed or largest > LARGEST_DIFFERENCE:
        sys.exit("\n".join(changed[:5]) or f"more than {LARGEST_DIFFERENCE}")


def with_novelty(weights: str, data_root: Path) -> Path:
    """A copy of the model, in a folder of its own, with novelty fitted to the images of its training."""
    source, out = resolve_weights(weights)[0].resolve(), Path(tempfile.mkdtemp()) / "model.safetensors"
    # What is embedded names a folder of images by its last part only.
    with contextlib.chdir(data_root):
        evaluate(weights=source, split="val", data_root=str(data_root.resolve()), fit_novelty=out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", help="a run folder, a checkpoint or the name of an embedded model")
    parser.add_argument("name")
    parser.add_argument("--check", type=Path, help="a folder of images")
    parser.add_argument(
        "--fit-novelty", type=Path, metavar="DATA_ROOT", help="folder that holds the data set"
    )
    for field in ("describes", "data", "recipe"):
        parser.add_argument(f"--{field}")
    given = parser.parse_args()
    folder = weights_folder()
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    source, embedded = resolve_weights(given.weights)
    if given.fit_novelty:
        source = with_novelty(given.weights, given.fit_novelty)
    tensors, header = read_tensors(source)
    document = without_paths(json.loads(header[CHECKPOINT_KEY]))
    new = folder / f"{given.name}.new.safetensors"
    # What is embedded already stays as it is.
    halve = halved if embedded is None else lambda tensor: tensor
    kept = {key: halve(tensor) for key, tensor in tensors.items() if not key.startswith("smram.")}
    with AtomicFile(new, overwrite=True) as stream:
        stream.write(save(kept, metadata={CHECKPOINT_KEY: json.dumps(document)}))
    if given.check:
        compare(source, new, given.check)
    target = folder / f"{given.name}.safetensors"
    new.replace(target)
    entry = manifest["models"].get(given.name, {})
    entry |= {field: text for field in ("describes", "data", "recipe") if (text := getattr(given, field))}
    stored = {split: document["metrics"][split] for split in ("val", "test") if split in document["metrics"]}
    entry |= {
        "file": target.name,
        "sha256": file_sha256(target),
        "model": document["model"],
        "classes": len(document["classes"]),
        "metrics": {
            split: {
                name: round(value, 4)
                for name, value in values.items()
                if name in METRICS or name.startswith("top1_")
            }
            for split, values in stored.items()
        },
    }
    manifest["models"][given.name] = entry
    with AtomicFile(folder / "manifest.json", overwrite=True) as stream:
        stream.write((json.dumps(manifest, indent=2) + "\n").encode())
    print(f"{target.name}: {target.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
