"""Starting a model from a weight file (``--init``): timm's ImageNet weights, or an fgvc checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from fgvc_cli.errors import FgvcError
from fgvc_cli.models.weight_files import CHECKPOINT_KEY, read_tensors

Triple = tuple[float, ...]
_POSITIONS = "backbone.pos_embed"


class Statistics(NamedTuple):
    """Per-channel mean and standard deviation of the input in [0, 1] that weights expect."""

    mean: Triple
    std: Triple


def load_initial_weights(model: nn.Module, path: Path) -> Statistics | None:
    """Load the backbone of ``model`` from a file, and its CRAM and SMRAM where the file has ones that fit.

    The file holds timm's names, or those of an fgvc checkpoint. Classifiers are never taken: their classes
    may be others.

    Returns:
        What the file says about its input, or None where it says nothing.

    Raises:
        FgvcError: no such file, a pickle, a damaged file, or weights of another architecture.
    """
    tensors, metadata = read_tensors(path)
    if not any(key.startswith("backbone.") for key in tensors):
        tensors = {f"backbone.{key}": tensor for key, tensor in tensors.items()}
    own = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("heads.")}
    _resample_positions(model, tensors)
    _check_backbone(own, tensors, path)
    fitting = {k: v for k, v in tensors.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(fitting, strict=False)
    return _read_statistics(metadata)


def _resample_positions(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Position embeddings learnt on another grid of patches, interpolated to the model's by timm."""
    grid = getattr(getattr(model.backbone, "patch_embed", None), "grid_size", None)
    own, given = model.state_dict().get(_POSITIONS), tensors.get(_POSITIONS)
    if not grid or own is None or given is None or own.ndim != 3 or own.shape == given.shape:
        return
    prefix = own.shape[1] - grid[0] * grid[1]
    patches = given.shape[1] - prefix if given.ndim == 3 else 0
    if patches > 0 and math.isqrt(patches) ** 2 == patches and own.shape[2] == given.shape[2]:
        tensors[_POSITIONS] = resample_abs_pos_embed(given, list(grid), num_prefix_tokens=prefix)


def _check_backbone(own: dict[str, Tensor], tensors: dict[str, Tensor], path: Path) -> None:
    names = [key for key in own if key.startswith("backbone.")]
    wrong = [key for key in names if key in tensors and own[key].shape != tensors[key].shape]
    missing = [key for key in names if key not in tensors and not key.endswith("num_batches_tracked")]
    if wrong or missing:
        key = (wrong or missing)[0].removeprefix("backbone.")
        why = "has another shape" if wrong else "is missing"
        raise FgvcError(
            f"--init {path.name} does not fit this backbone: {key} {why} "
            f"({len(wrong)} of another shape, {len(missing)} missing, of {len(names)}).",
            "Choose the --model these weights were made for.",
        )


def _read_statistics(metadata: dict[str, str]) -> Statistics | None:
    if CHECKPOINT_KEY in metadata:
        preprocess = json.loads(metadata[CHECKPOINT_KEY])["preprocess"]
        return Statistics(tuple(preprocess["mean"]), tuple(preprocess["std"]))
    if "mean" in metadata and "std" in metadata:
        return Statistics(_numbers(metadata["mean"]), _numbers(metadata["std"]))
    return None


def _numbers(text: str) -> Triple:
    return tuple(float(value) for value in text.strip("()[]").split(","))
