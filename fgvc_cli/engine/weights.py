"""Named weights that travel inside the package, and any checkpoint file, behind one name.

``weights/manifest.json`` lists each model with its file, sha256, data, recipe and metrics by split.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvc_cli.errors import EXIT_USAGE, FgvcError

if TYPE_CHECKING:
    from fgvc_cli.engine.checkpoint import Checkpoint

MODEL_FILE = "model.safetensors"
"""What a training leaves in its folder."""


@dataclass(frozen=True)
class WeightsEntry:
    """One model of the manifest."""

    name: str
    file: str
    sha256: str
    model: str
    describes: str
    """What it knows, one line."""
    data: str
    """What it was trained on, with licence."""
    recipe: str
    """The command that trained it."""
    metrics: dict[str, dict[str, float]]
    """Split -> metric -> value."""
    classes: int


@dataclass(frozen=True)
class Manifest:
    """All embedded models and which one serves when none is named."""

    folder: Path
    default: str
    entries: dict[str, WeightsEntry]


def weights_folder() -> Path:
    """Where the embedded weights lie: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "weights", package.parent / "weights"):
        if (folder / "manifest.json").is_file():
            return folder
    raise FgvcError(
        "The package has no weights/manifest.json; it was not installed whole.", "pip install . again."
    )


@cache
def read_manifest() -> Manifest:
    """The manifest of this installation.

    Raises:
        FgvcError: it is missing.
    """
    folder = weights_folder()
    document: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    entries = {name: WeightsEntry(name=name, **entry) for name, entry in document["models"].items()}
    return Manifest(folder, document["default"], entries)


def resolve_weights(
    weights: Path | str | None, *, option: str = "--weights"
) -> tuple[Path, WeightsEntry | None]:
    """A manifest name, a file, the folder of a training, or None for the default -> the file, and its
    entry if it is embedded.

    Args:
        option: which got it, for the message.

    Raises:
        FgvcError: neither a name nor a file.
    """
    manifest = read_manifest()
    name = manifest.default if weights is None else str(weights)
    if name in manifest.entries:
        return manifest.folder / manifest.entries[name].file, manifest.entries[name]
    path = Path(name)
    if name and path.is_dir():
        path /= MODEL_FILE
        if not path.is_file():
            raise FgvcError(
                f"The folder {name} holds no {MODEL_FILE}.",
                "Name the folder of a training that has saved one.",
            )
    if not name or (not path.exists() and path.suffix == ""):
        raise FgvcError(
            f"{option} {name!r} is neither a file nor an embedded model.",
            f"Embedded: {', '.join(manifest.entries)}. Or give the model.safetensors of your own training.",
        )
    return path, None


def open_weights(
    weights: Path | str | None = None, *, options: dict[str, Any] | None = None, option: str = "--weights"
) -> Checkpoint:
    """Load a checkpoint by name, file or folder of a training; what is embedded is checked by its sha256.

    Args:
        options: as ``load_checkpoint``.
        option: as ``resolve_weights``.

    Raises:
        FgvcError: as ``resolve_weights`` and ``load_checkpoint``; an embedded file that was changed.
    """
    from fgvc_cli.engine.graph import is_graph

    if is_graph(weights):
        raise FgvcError(
            f"{option} {weights}: only fgvc predict and fgvc eval run exported graphs.",
            "Name the model that it was exported from.",
            EXIT_USAGE,
        )
    path, entry = resolve_weights(weights, option=option)
    from fgvc_cli.engine.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path, options=options)
    if entry and checkpoint.sha256 != entry.sha256:
        raise FgvcError(
            f"{path.name} is damaged: sha256 {checkpoint.sha256[:12]}..., expected {entry.sha256[:12]}....",
            "Install fgvc again.",
        )
    return checkpoint


def default_notice() -> str:
    """What to tell a user who named no weights: which model serves, what it knows, how to train one's own."""
    manifest = read_manifest()
    entry = manifest.entries[manifest.default]
    return (
        f"No --weights given: using {entry.name!r} ({entry.model}), which knows {entry.describes}. "
        "For your own classes: fgvc train --data FOLDER --model crasmra-r50"
    )
