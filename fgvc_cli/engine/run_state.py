"""What ``fgvc train --resume`` goes on from: one file in the run folder, never a pickle.

``last/state.safetensors`` holds the tensors, and in its header as JSON everything else. One file is written
whole or not at all, so its parts are always of the same moment.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from fgvc_cli import __version__
from fgvc_cli.config import TrainConfig, stored_config
from fgvc_cli.errors import EXIT_USAGE, FgvcError, nearest
from fgvc_cli.files import AtomicFile
from fgvc_cli.models.weights import read_tensors

FOLDER, FILE = "last", "state.safetensors"
STATE_KEY = "fgvc_state"
FORMAT = 1


@dataclass
class Progress:
    """Where a run stands between two updates."""

    epoch: int = 1
    """The one in progress; one more than there are when all are done."""
    batches: int = 0
    """Of this epoch, done."""
    seconds: float = 0.0
    """Of training in this epoch so far."""
    meter: dict[str, Any] | None = None
    """See ``Meter.state``; None where the epoch has not begun."""
    best_epoch: int = 0
    """Whose model lies in the run folder; 0: none."""
    rows: list[dict[str, float]] = field(default_factory=list)
    """Lines of metrics.csv, of the epochs before this one."""


@dataclass
class RunState:
    """A saved state, read back."""

    config: TrainConfig
    data_sha256: str
    classes: tuple[str, ...]
    progress: Progress
    learner: dict[str, Any]
    """See ``Learner.state``."""


def save_state(
    run_dir: Path,
    *,
    config: TrainConfig,
    data_sha256: str,
    classes: tuple[str, ...],
    progress: Progress,
    learner: dict[str, Any],
) -> None:
    """Replace the state in ``run_dir``, whole or not at all.

    Raises:
        FgvcError: it cannot be written; the one before is left as it was.
    """
    tensors: dict[str, Tensor] = {}
    document = {
        "format": FORMAT,
        "fgvc_version": __version__,
        "config": config.model_dump(),
        "data_sha256": data_sha256,
        "classes": list(classes),
        "progress": asdict(progress),
        "learner": pack(learner, tensors),
    }
    path = state_path(run_dir)
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise AtomicFile(path).explain(error) from error
    with AtomicFile(path, overwrite=True) as stream:
        stream.write(save(tensors, metadata={STATE_KEY: json.dumps(document)}))


def load_state(run_dir: Path) -> RunState:
    """The last state that was saved in ``run_dir``.

    Raises:
        FgvcError: no such folder, a file, a folder without one; a state that is damaged, foreign or newer.
    """
    path = state_path(run_dir)
    if not path.is_file():
        raise _nothing_there(run_dir)
    tensors, header = read_tensors(path)
    if STATE_KEY not in header:
        raise FgvcError(f"{path} was not written by fgvc train.", "Train again, with another --out.")
    document = json.loads(header[STATE_KEY])
    if document["format"] > FORMAT:
        raise FgvcError(
            f"{path} was written by fgvc {document['fgvc_version']}, this is {__version__}.",
            "pip install --upgrade fgvc",
        )
    return RunState(
        config=stored_config(document["config"]),
        data_sha256=document["data_sha256"],
        classes=tuple(document["classes"]),
        progress=Progress(**document["progress"]),
        learner=unpack(document["learner"], tensors),
    )


def _nothing_there(run_dir: Path) -> FgvcError:
    start = "or start one: fgvc train --model ... --data ..."
    if run_dir.is_dir():
        return FgvcError(
            f"--resume {run_dir} holds nothing to go on from: there is no {FOLDER}/{FILE} in it.",
            f"Give the run folder of an interrupted training, {start}",
            EXIT_USAGE,
        )
    if run_dir.exists():
        return FgvcError(
            f"--resume {run_dir} is a file, expected a run folder.",
            f"Give the folder of an interrupted training, which holds {FOLDER}/{FILE}.",
            EXIT_USAGE,
        )
    beside = run_dir.parent.iterdir() if run_dir.parent.is_dir() else ()
    close = nearest(run_dir.name, [folder.name for folder in beside if folder.is_dir()])
    meant = f"Did you mean {' or '.join(str(run_dir.with_name(name)) for name in close)}?" if close else None
    return FgvcError(
        f"--resume {run_dir}: there is no such folder.",
        meant or f"Give the run folder of an interrupted training, {start}",
        EXIT_USAGE,
    )


def state_path(run_dir: Path) -> Path:
    """Where the state of a run lies."""
    return run_dir / FOLDER / FILE


def remove_state(run_dir: Path) -> None:
    """Take the state away: of a run that is finished, or replaced."""
    shutil.rmtree(run_dir / FOLDER, ignore_errors=True)


def pack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Nested dicts, lists and tuples as JSON takes them; tensors go into ``tensors`` and leave their name.

    Raises:
        TypeError: a leaf that is neither a tensor nor a plain value.
    """
    if isinstance(tree, Tensor):
        name = str(len(tensors))
        spread = tree.ndim == 4 and not tree.is_contiguous()
        # A copy: two names may share memory, which safetensors refuses.
        tensors[name] = tree.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name, "channels_last": spread}
    if isinstance(tree, dict):
        return {"dict": [[key, pack(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return {type(tree).__name__: [pack(value, tensors) for value in tree]}
    if tree is None or isinstance(tree, str | int | float):
        return tree
    raise TypeError(f"a state holds a {type(tree).__name__}")


def unpack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """What ``pack`` was given, tensors on the CPU in their memory format: sums over another one round
    differently."""
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        tensor = tensors[tree["tensor"]]
        return tensor.contiguous(memory_format=torch.channels_last) if tree["channels_last"] else tensor
    if "dict" in tree:
        return {key: unpack(value, tensors) for key, value in tree["dict"]}
    kind, values = next(iter(tree.items()))
    return (tuple if kind == "tuple" else list)(unpack(value, tensors) for value in values)
