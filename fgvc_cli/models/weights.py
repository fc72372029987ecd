"""Files of weights, and what a new model starts from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from fgvc_cli.data.names import same_form
from fgvc_cli.errors import FgvcError
from fgvc_cli.files import AtomicFile
from fgvc_cli.models.output import FgvcModel

CHECKPOINT_KEY = "fgvc"
"""Where the JSON of an fgvc checkpoint stands in the metadata of its file."""

_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def check_weight_file(path: Path) -> None:
    """Refuse what is not a safetensors file.

    Raises:
        FgvcError: no such file, a folder, a pickle (names the conversion command), an empty file.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise FgvcError(
            f"Weights {str(path)!r}: {what}.", "Expected a model.safetensors written by fgvc train."
        )
    with path.open("rb") as stream:
        start = stream.read(4)
    if path.suffix in (".pth", ".pt", ".bin", ".ckpt", ".pkl") or start.startswith(_PICKLE_STARTS):
        target = path.with_suffix(".safetensors").name
        raise FgvcError(
            f"{path.name} is a pickle, which can run code when it is read; fgvc reads safetensors only.",
            'For --init, convert it: python -c "import torch; from safetensors.torch import save_file; '
            f"w = torch.load('{path.name}', map_location='cpu', weights_only=True); "
            f"save_file(w.get('state_dict', w), '{target}')\"",
        )


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor of a safetensors file, on the CPU, and its metadata.

    Raises:
        FgvcError: as ``check_weight_file``, or a file that is damaged.
    """
    check_weight_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FgvcError(
            f"{path.name} is not a readable safetensors file ({error}).",
            "It may be cut short: copy or train it again.",
        ) from error


def rewrite_checkpoint(
    source: Path,
    out: Path,
    document: Mapping[str, Any],
    tensors: Mapping[str, Tensor] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Copy a checkpoint, all as it is but for what is given; the figures it stores were measured before.

    Args:
        source: a checkpoint (``load_checkpoint`` has read it).
        out: the file to write, whole or not at all.
        document: parts of its JSON.
        tensors: by name.

    Raises:
        FgvcError: as ``AtomicFile``.
    """
    own, header = read_tensors(source)
    text = json.dumps(json.loads(header[CHECKPOINT_KEY]) | dict(document))
    with AtomicFile(out, overwrite=overwrite) as stream:
        stream.write(save({**own, **(tensors or {})}, metadata=header | {CHECKPOINT_KEY: text}))


Triple = tuple[float, ...]
_POSITIONS = "backbone.pos_embed"


class Statistics(NamedTuple):
    """Per-channel mean and standard deviation of the input in [0, 1] that weights expect."""

    mean: Triple
    std: Triple


def load_initial_weights(model: nn.Module, path: Path) -> Statistics | None:
    """Load the backbone of ``model`` from a file, and its CRAM and SMRAM where the file has ones that fit.

    The file holds timm's names, or those of an fgvc checkpoint. Classifiers are not taken, as their classes
    may be others: see ``load_classifiers``.

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


def shared_classes(known: Sequence[str], classes: Sequence[str]) -> list[tuple[int, int]]:
    """Classes that two models have by name, in Unicode NFC: the place in ``classes``, that in ``known``."""
    place = {same_form(name): j for j, name in enumerate(known)}
    return [(i, place[same_form(name)]) for i, name in enumerate(classes) if same_form(name) in place]


def load_classifiers(model: FgvcModel, path: Path, classes: Sequence[str]) -> int:
    """Let the classifiers of ``model`` begin with what a checkpoint knows of classes of the same names.

    Args:
        path: the file that its backbone has come from, a checkpoint or not.
        classes: those of ``model``, in order.

    Returns:
        How many were taken over; 0 where the file knows none of them, or its heads are of another shape.
    """
    tensors, metadata = read_tensors(path)
    known = json.loads(metadata[CHECKPOINT_KEY])["classes"] if CHECKPOINT_KEY in metadata else []
    shared = shared_classes(known, classes)
    own = {key: tensor for key, tensor in model.state_dict().items() if key.startswith("heads.")}
    heads = model.get_submodule("heads").named_modules(prefix="heads")
    last = tuple(f"{name}.{len(part) - 1}." for name, part in heads if isinstance(part, nn.Sequential))
    taken = {}
    for key, tensor in own.items():
        # Of the last layers each row is a class; all else has to be of one shape.
        first = 1 if key.startswith(last) else 0
        given = tensors.get(key)
        if given is None or given.shape[first:] != tensor.shape[first:]:
            return 0
        taken[key] = tensor.clone() if first else given
        for i, j in shared if first else ():
            taken[key][i] = given[j]
    if shared:
        model.load_state_dict(taken, strict=False)
    return len(shared)


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
