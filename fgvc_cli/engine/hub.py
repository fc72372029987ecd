"""``fgvc push``: a model and its card to the Hugging Face hub, where ``hf-hub:owner/name`` finds them.

All traffic is ``huggingface_hub``'s: its cache, its endpoint (``HF_ENDPOINT``), and its token (``hf auth
login`` or ``HF_TOKEN``), which is neither read nor shown here.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from safetensors.torch import save_file

from fgvc_cli import __version__
from fgvc_cli.command import MessageOptions, command, options
from fgvc_cli.config import TrainConfig, build
from fgvc_cli.engine.checkpoint import read_metadata
from fgvc_cli.engine.train import settings_text
from fgvc_cli.engine.weights import HUB, LOGIN, MODEL_FILE, REPO, first_line, resolve_weights
from fgvc_cli.errors import EXIT_USAGE, FgvcError, counted
from fgvc_cli.evaluate.intervals import LEVEL, share_interval
from fgvc_cli.files import whole_folder
from fgvc_cli.models.weights import CHECKPOINT_KEY, read_tensors
from fgvc_cli.sources.remote import offline_at_once

CARD = "README.md"
_SNAPSHOT = re.compile(r".*models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})/.*")
_SHOWN_CLASSES = 1000


@options
class PushOptions(MessageOptions):
    """What ``fgvc push`` is asked for."""

    weights: str
    """Folder or file of a training."""
    repo: str
    """``owner/name`` on the hub."""
    license: str
    """Of the weights, as the hub calls it: apache-2.0, mit, cc-by-4.0, ...; other."""
    private: bool = False
    """Only who is allowed to sees it."""
    dry_run: bool = False
    """Write the folder that would be uploaded to ``out``, and upload nothing."""
    out: Path | None = None
    """With ``dry_run``: new folder."""

    def __post_init__(self) -> None:
        """Raise FgvcError for what can be known to fail."""
        if not REPO.fullmatch(self.repo):
            raise FgvcError(f"The model's name is {self.repo!r}, expected owner/name.", None, EXIT_USAGE)
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise FgvcError(
                f"--license got {self.license!r}, expected one as the hub writes it.",
                "For example apache-2.0, mit, cc-by-4.0, cc-by-nc-4.0 or other.",
                EXIT_USAGE,
            )
        if self.dry_run != (self.out is not None):
            given, lacks = ("--dry-run", "--out FOLDER") if self.dry_run else ("--out", "--dry-run")
            raise FgvcError(f"{given} goes with {lacks}.", f"Add {lacks}", EXIT_USAGE)


@dataclass(frozen=True)
class Pushed:
    """A model that is on the hub, or would be."""

    url: str
    """Of its page; with ``dry_run`` the folder."""
    weights: str
    """How others name it: ``hf-hub:owner/name``."""
    commit: str = ""
    """Of the upload."""


@command(PushOptions)
def push(options: PushOptions) -> Pushed:
    """Upload a model with a card to the Hugging Face hub.

    The card tells data, split sizes, figures with their intervals, classes, limits and the training command.
    Paths of this machine are cut from what the file records.

    Raises:
        FgvcError: no checkpoint; no right to write there, no network; a public repository where a private one
            was asked for; a folder that is there already.
    """
    messages = options.speaker
    file, _ = resolve_weights(options.weights)
    metadata = read_metadata(file)
    public = _without_paths(metadata)
    if not metadata.get("finished", True):
        messages.warn(f"{options.weights} is of a training that has not finished; the card says so.")
    if public != metadata:
        messages.note("Paths of this machine are cut from the uploaded copy: its sha256 is not the file's.")

    def fill(folder: Path) -> None:
        if public == metadata:
            shutil.copyfile(file, folder / MODEL_FILE)
        else:
            _write_copy(file, folder / MODEL_FILE, public)
        card = model_card(public, options.repo, options.license)
        (folder / CARD).write_text(card, encoding="utf-8")

    named = f"{HUB}{options.repo}"
    if options.out is not None:
        with whole_folder(options.out) as folder:
            fill(folder)
        messages.note(f"Nothing is uploaded; what would be lies in {options.out}.")
        return Pushed(str(options.out), named)
    with tempfile.TemporaryDirectory() as name:
        fill(Path(name))
        url, commit = _upload(Path(name), options)
    messages.note(f"{url}; to use it: --weights {named}")
    return Pushed(url, named, commit)


def _upload(folder: Path, options: PushOptions) -> tuple[str, str]:
    """Address of the page, and the commit."""
    from huggingface_hub import HfApi, errors

    api = HfApi(library_name="fgvc", library_version=__version__)
    try:
        with offline_at_once():
            url = api.create_repo(options.repo, private=options.private or None, exist_ok=True)
            if options.private and not api.model_info(options.repo).private:
                raise FgvcError(
                    f"{options.repo} is there already, and public.",
                    "Make it private on its page, or leave --private out.",
                )
            done = api.upload_folder(
                repo_id=options.repo, folder_path=folder, commit_message=f"fgvc push ({__version__})"
            )
    except FgvcError:
        raise
    except errors.OfflineModeIsEnabled as error:
        raise FgvcError("The hub cannot be reached.", "Try again, or --dry-run --out FOLDER.") from error
    # As in fetch_weights.
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        refused = status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError)
        why = f"refused ({status or 'no token'})" if refused else first_line(error)
        hint = LOGIN if refused else "Nothing is lost: type the same again, or --dry-run --out FOLDER."
        raise FgvcError(f"{options.repo} could not be uploaded: {why}.", hint) from error
    return str(url), done.oid


def _without_paths(value: Any) -> Any:
    """The same, with the last part of absolute paths alone; a file of the hub's cache by its name there."""
    if isinstance(value, dict):
        return {name: _without_paths(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_paths(each) for each in value]
    if not isinstance(value, str):
        return value
    if hub := _SNAPSHOT.fullmatch(PurePath(value).as_posix()):
        return f"{HUB}{hub[1]}/{hub[2]}@{hub[3]}"
    kinds = (PurePosixPath(value), PureWindowsPath(value))
    return next((kind.name for kind in kinds if kind.is_absolute()), value)


def _write_copy(source: Path, out: Path, metadata: dict[str, Any]) -> None:
    """The same tensors with other metadata."""
    tensors, header = read_tensors(source)
    save_file(tensors, out, metadata=header | {CHECKPOINT_KEY: json.dumps(metadata)})


_FIGURES = {
    "top1": ("top-1", "accuracy"),
    "top5": ("top-5", "top-5 accuracy"),
    "macro_f1": ("macro F1", "f1"),
    "exact_match": ("exact match", "exact match"),
    "map": ("mAP", "mAP"),
    "micro_f1": ("micro F1", "f1"),
}
"""Metric -> how a card calls it, and its type on the hub."""
_COUNTED = ("top1", "top5", "exact_match")
"""Fractions of images, whose intervals follow from their number."""


def model_card(metadata: dict[str, Any], repo: str, license: str) -> str:
    """The card of a checkpoint, Markdown behind the hub's YAML.

    Args:
        metadata: of the file, see ``Checkpoint.metadata``, with ``classes``.
    """
    from huggingface_hub import EvalResult, ModelCardData

    config, data = metadata["config"], metadata["dataset"]
    measured = metadata["metrics"].get("test", {})
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=data,
            dataset_name=data,
            dataset_split="test",
            metric_type=kind,
            metric_name=title,
            metric_value=round(float(measured[name]), 4),
        )
        for name, (title, kind) in _FIGURES.items()
        if name in measured
    ]
    about = ModelCardData(
        license=license,
        library_name="fgvc",
        pipeline_tag="image-classification",
        tags=["fgvc", "fine-grained", metadata["model"].partition("-")[0]],
        model_name=repo.partition("/")[2],
        eval_results=results or None,
    )
    classes = metadata["classes"]
    sections = {
        "Use": _use(repo),
        "Data": _data_lines(metadata),
        "Measured": _measured_lines(metadata),
        f"Classes ({len(classes):,})": _class_lines(classes),
        "Limits": _limit_lines(metadata),
        "Training": _training_lines(metadata, config),
    }
    title = repo.partition("/")[2]
    head = (
        f"`{metadata['model']}`, trained with fgvc {metadata['fgvc_version']} to tell "
        f"{counted(len(classes), 'class', 'classes')} apart. Licence: {license}."
    )
    body = [f"## {name}\n\n" + "\n".join(lines) for name, lines in sections.items()]
    return "\n\n".join([f"---\n{about.to_yaml()}\n---\n\n# {title}", head, *body]) + "\n"


def _use(repo: str) -> Iterator[str]:
    yield f"```sh\nfgvc predict photos/ --weights {HUB}{repo} --out preds.csv\n```"


def _data_lines(metadata: dict[str, Any]) -> Iterator[str]:
    counts = {"train": metadata.get("train_images")}
    counts |= {split: metadata["metrics"].get(split, {}).get("images") for split in ("val", "test")}
    known = ", ".join(f"{count:,.0f} {split}" for split, count in counts.items() if count)
    yield f"{metadata['dataset']}: {known or 'numbers of images are not recorded'}."


def _measured_lines(metadata: dict[str, Any]) -> Iterator[str]:
    splits = [split for split in ("test", "val") if metadata["metrics"].get(split)]
    if not splits:
        yield "Nothing was measured."
        return
    yield f"| split | images | figure | | {100 * LEVEL:.0f} % interval |\n|---|---|---|---|---|"
    for split in splits:
        figures = metadata["metrics"][split]
        images = int(figures["images"])
        for name, (title, _) in _FIGURES.items():
            if name not in figures:
                continue
            value, ends = figures[name], ""
            if name in _COUNTED and images:
                low, high = share_interval(round(value * images), images)
                ends = f"[{100 * low:.1f}, {100 * high:.1f}]"
            yield f"| {split} | {images:,} | {title} | {100 * value:.1f} % | {ends} |"
    yield "\nIntervals: bootstrap over the images."
    if "val" in splits:
        yield "Val chose the epoch: its figures flatter."


def _class_lines(classes: list[str]) -> Iterator[str]:
    shown = [" ".join(name.split()).replace("`", "'") for name in classes[:_SHOWN_CLASSES]]
    yield "\n".join(["```text", *shown, "```"])
    if len(classes) > len(shown):
        yield f"\nAnd {len(classes) - len(shown):,} more, in the file."


def _limit_lines(metadata: dict[str, Any]) -> Iterator[str]:
    yield "- It knows these classes only: an image of anything else gets one of them."
    if metadata["metrics"].get("test"):
        yield "- The figures are of the same data set: images of other cameras, places or seasons are harder."
    else:
        yield "- It was not measured on a test split."
    if not metadata.get("finished", True):
        yield f"- The training had not finished: this is epoch {metadata['epoch']}."
    fitted = metadata.get("calibration")
    if fitted and not fitted.get("refused"):
        yield f"- Probabilities are calibrated on {counted(fitted['images'], 'image')} of {fitted['split']}."
    else:
        yield "- Probabilities are not calibrated."


def _training_lines(metadata: dict[str, Any], config: dict[str, Any]) -> Iterator[str]:
    options = {
        "--dataset": config.get("dataset"),
        "--data": config.get("data"),
        "--model": config["model"],
        "--recipe": config.get("recipe"),
        "--init": config.get("init"),
        "--epochs": config.get("epochs"),
        "--batch-size": config.get("batch_size"),
        "--input-px": config["preprocess"].get("input_px"),
        "--seed": config.get("seed"),
    }
    given = " ".join(f"{name} {value}" for name, value in options.items() if value not in (None, ""))
    yield f"```sh\nfgvc train {given}\n```\n"
    with contextlib.suppress(FgvcError):  # settings of another version
        yield f"```text\n{settings_text(build(TrainConfig, config))}\n```\n"
    yield (
        'Every setting is in the file: `fgvc_cli.load_checkpoint(...).metadata["config"]` (sha256 '
        f"`{metadata['config_sha256'][:12]}`)."
    )
