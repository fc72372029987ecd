"""Named weights that travel inside the package, any checkpoint file, and the hub's, behind one name.

``weights/manifest.json`` lists each model with its file, sha256, data, recipe and metrics by split.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvc_cli import __version__
from fgvc_cli.errors import EXIT_USAGE, FgvcError

if TYPE_CHECKING:
    from fgvc_cli.engine.checkpoint import Checkpoint

MODEL_FILE = "model.safetensors"
"""What a training leaves in its folder, and a repository of the hub holds."""
HUB = "hf-hub:"
REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
"""owner/name on the hub."""
LOGIN = "Log in with hf auth login, or set HF_TOKEN, to a token that may do this."


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


def fetch_weights(name: str, option: str = "--weights") -> Path:
    """The file behind ``hf-hub:owner/name`` or ``hf-hub:owner/name@revision``, from the cache if it is there.

    Args:
        option: which got it, for the message.

    Raises:
        FgvcError: another form, no such model, revision or file, no network and none in the cache.
    """
    from huggingface_hub import errors, hf_hub_download

    from fgvc_cli.sources.remote import offline_at_once

    repo, _, revision = name.removeprefix(HUB).partition("@")
    if not REPO.fullmatch(repo) or name.endswith("@"):
        raise FgvcError(
            f"{option} got {name!r}, expected {HUB}owner/name or {HUB}owner/name@revision.", None, EXIT_USAGE
        )
    try:
        with offline_at_once():
            file = hf_hub_download(
                repo, MODEL_FILE, revision=revision or None, library_name="fgvc", library_version=__version__
            )
            return Path(file)
    except errors.RepositoryNotFoundError as error:
        raise FgvcError(f"The hub has no model {repo}, or it is private or gated.", LOGIN) from error
    except errors.RevisionNotFoundError as error:
        raise FgvcError(f"{repo} has no revision {revision!r}.", "Name a branch, tag or commit.") from error
    except errors.LocalEntryNotFoundError as error:
        raise FgvcError(
            f"{repo} is not in the cache, and the hub cannot be reached.",
            "Connect once, or give the model.safetensors itself.",
        ) from error
    except errors.EntryNotFoundError as error:
        raise FgvcError(f"{repo} holds no {MODEL_FILE}.", "Name a model that fgvc push put there.") from error
    # Hubs fail in many ways (proxy, timeout, a full disk), each with its own exception.
    except Exception as error:
        raise FgvcError(f"{repo} could not be downloaded: {first_line(error)}.") from error


def first_line(error: Exception) -> str:
    """What an error says first."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].removesuffix(".")


def resolve_weights(
    weights: Path | str | None, *, option: str = "--weights"
) -> tuple[Path, WeightsEntry | None]:
    """A manifest name, a file, the folder of a training, ``hf-hub:owner/name[@revision]``, or None for the
    default -> the file, and its entry if it is embedded.

    Args:
        option: which got it, for the message.

    Raises:
        FgvcError: neither a name nor a file; as ``fetch_weights``.
    """
    manifest = read_manifest()
    name = manifest.default if weights is None else str(weights)
    if name in manifest.entries:
        return manifest.folder / manifest.entries[name].file, manifest.entries[name]
    if name.startswith(HUB):
        return fetch_weights(name, option), None
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
            f"Embedded: {', '.join(manifest.entries)}. Or give the model.safetensors of your own training, "
            f"or {HUB}owner/name.",
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


def open_ensemble(
    weights: Sequence[Path | str], *, options: dict[str, Any] | None = None
) -> list[Checkpoint]:
    """Load several models whose probabilities are to be averaged; none named: the default one.

    Raises:
        FgvcError: as ``open_weights``; other classes than the first one's, or labels of another kind.
    """
    from fgvc_cli.data.names import class_order

    first, *others = [open_weights(name, options=options) for name in weights or (None,)]
    for name, other in zip(weights[1:], others, strict=True):
        if other.multi_label != first.multi_label:
            kinds = ("one class", "several labels")
            own, its = kinds[other.multi_label], kinds[first.multi_label]
            raise FgvcError(
                f"{name} tells {own} per image, {weights[0]} {its}.",
                "Only models of one kind have a mean.",
                EXIT_USAGE,
            )
        class_order(first.classes, other.classes, str(name), f"{weights[0]} tells")
    return [first, *others]


def open_main_stage(weights: Path | str | None = None) -> Checkpoint:
    """The checkpoint; a multi-stage ViT stops after the first stage, which its embedding is of."""
    checkpoint = open_weights(weights)
    if not hasattr(checkpoint.model.config, "cascade"):
        return checkpoint
    return open_weights(weights, options={"cascade": 0.0})


def default_notice() -> str:
    """What to tell a user who named no weights: which model serves, what it knows, how to train one's own."""
    manifest = read_manifest()
    entry = manifest.entries[manifest.default]
    return (
        f"No --weights given: using {entry.name!r} ({entry.model}), which knows {entry.describes}. "
        "For your own classes: fgvc train --data FOLDER --model crasmra-r50"
    )
