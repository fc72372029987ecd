"""Labels that are likely wrong: what a model says of each image, against what the data say.

An image is judged by a classifier that has not seen it: a linear probe (logistic regression) on the
embeddings of a model, fitted without its fold, whether or not the model itself was trained on these images.
cleanlab (Northcutt et al., 2021, confident learning) says from these probabilities how many labels of
each class are likely wrong, and which.

Legend: N images, K classes, D embedding width.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from fgvc_cli.command import BoxOptions, MessageOptions, Messages, command, options
from fgvc_cli.data.listing import SPLITS, Example, LabelledSet
from fgvc_cli.data.names import same_form
from fgvc_cli.datasets.check import open_source
from fgvc_cli.engine.checkpoint import Checkpoint, choose_data
from fgvc_cli.engine.device import keep_freed_memory
from fgvc_cli.engine.weights import open_main_stage
from fgvc_cli.errors import EXIT_USAGE, FgvcError, counted
from fgvc_cli.files import check_writable
from fgvc_cli.formats.csv_rows import CsvSink
from fgvc_cli.formats.rows import GIVEN_BOX, Row, RunInfo, has_prediction, rows_block
from fgvc_cli.predict.predictor import Predictor
from fgvc_cli.sources.find import Found

SEED = 0
"""Of the division into folds."""
TOP_K = 5
INVERSE_PENALTY = 30.0
"""Of the probe, ``C`` of scikit-learn, on embeddings of length 1."""


@options
class WrongLabelOptions(MessageOptions):
    """What ``fgvc datasets check --weights`` is asked for."""

    data: str
    """Labelled folder, CSV or known set."""
    weights: str | None = None
    """File or folder of a training, or an embedded model; None: the default one."""
    data_root: str | None = None
    """Folder that holds known sets; None: the environment's ``FGVC_DATA``."""
    out: Path | None = None
    """CSV of the likely wrong labels, the likeliest first, for ``fgvc report --review``."""
    folds: Annotated[int, Field(ge=0)] = 5
    """Parts of the cross-validated probe; 0: the model's own probabilities."""
    together: tuple[tuple[str, ...], ...] = ()
    """Paths that are one image, copies or near duplicates: they are kept in one fold."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Images per forward pass."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Parallel readers of images."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    overwrite: bool = False
    """Replace ``out`` if it is there."""


@dataclass(frozen=True)
class Suspect:
    """An image whose label is likely wrong."""

    path: str
    """Relative to the folder of the data; of a box with its id."""
    label: str
    """What the data say."""
    suggested: str
    """The class that the image looks like."""
    prob: float
    """Of ``suggested``."""
    quality: float
    """Of the label, cleanlab's score in [0, 1]: the probability that the image shows it."""


@dataclass(frozen=True)
class WrongLabels:
    """What was found."""

    images: int
    """That were judged."""
    suspects: tuple[Suspect, ...]
    """The likeliest first."""
    judged_by: str
    """For people."""
    notes: tuple[str, ...]
    """What has to be known to read it."""
    out: Path | None = None


@command(WrongLabelOptions)
def wrong_labels(options: WrongLabelOptions) -> WrongLabels:
    """Rank the labels of a data set that are likely wrong.

    Raises:
        FgvcError: cleanlab is not there; weights or data that cannot be read; images with several labels; one
            fold; too few images; without folds, labels that the model does not know.
    """
    messages = options.speaker
    require_cleanlab()
    if options.folds == 1:
        raise FgvcError("--folds got 1, expected 2 or more, or 0 for the model's own probabilities.")
    if options.out is not None:
        if options.out.suffix.lower() != ".csv":
            message = f"--suspects got {str(options.out)!r}, expected a name ending in .csv."
            raise FgvcError(message, None, EXIT_USAGE)
        check_writable(options.out, overwrite=options.overwrite)
    data = open_source(options.data, options.data_root)
    if data.multi_label:
        raise FgvcError(
            f"{data.name} has several labels per image; wrong ones are ranked where each image has one.",
            "Leave --weights out.",
        )
    keep_freed_memory()
    checkpoint = open_main_stage(options.weights)
    answers = _Answers.of(checkpoint, data, options, messages)
    notes, probs = [], answers.values
    if unread := sum(data.counts().values()) - len(probs):
        notes.append(f"{counted(unread, 'image')} could not be read.")
    if options.folds:
        groups = _groups([example.path for example in answers.examples], options.together)
        with messages.bar("fitting probes", options.folds, unit="folds") as advance:
            probs = out_of_fold(answers.values, answers.labels, groups, options.folds, advance)
        judged_by = f"linear probe on the embeddings of {checkpoint.name}, {options.folds} folds"
    else:
        judged_by = f"probabilities of {checkpoint.name}"
    if _trained_on(checkpoint, options):
        sure = "its probabilities are too sure of the labels that it has seen"
        notes.append(
            f"{checkpoint.name} was trained on these very images: "
            + (
                "wrong labels that it has learnt by heart look right to it. Another model may find more."
                if options.folds
                else f"{sure}. --folds 5 judges each image by a probe that has not seen it."
            )
        )
    judged = np.flatnonzero(probs[np.arange(len(probs)), answers.labels] >= 0)
    if len(judged) < len(probs):
        alone = {data.classes[label] for label in answers.labels[np.delete(np.arange(len(probs)), judged)]}
        images = counted(len(probs) - len(judged), "image")
        notes.append(f"{images} of {counted(len(alone), 'class', 'classes')} without others to judge by.")
    ranked, quality = rank_labels(probs[judged], answers.labels[judged])
    suspects = [answers.suspect(data, int(judged[i]), probs[judged[i]], quality[i]) for i in ranked]
    if options.out is not None:
        about = {"folds": options.folds, "seed": SEED, "images": len(judged)}
        rows = [answers.row(data, int(judged[i]), probs[judged[i]], quality[i]) for i in ranked]
        _write(options, checkpoint, data.classes, rows, about, boxed=data.boxed)
    return WrongLabels(len(judged), tuple(suspects), judged_by, tuple(notes), options.out)


def require_cleanlab() -> None:
    """Raise FgvcError unless cleanlab is there."""
    try:
        import cleanlab  # noqa: F401
    except ImportError as error:
        raise FgvcError("Ranking wrong labels needs cleanlab.", "pip install 'fgvc[clean]'") from error


@dataclass
class _Answers:
    """What the model says of the readable images."""

    examples: list[Example]
    given: list[Any]
    """Box of each in pixels of its image; empty where they are whole images."""
    sizes: np.ndarray
    """(N, 2) width, height, pixels."""
    boxes: np.ndarray
    """(N, 4)."""
    labels: np.ndarray
    """(N,) into the classes of the data."""
    values: np.ndarray
    """Embeddings of length 1 (N, D), or probabilities (N, K) of the classes of the data."""

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, data: LabelledSet, options: WrongLabelOptions, messages: Messages
    ) -> _Answers:
        examples = [example for split in SPLITS for example in data.splits[split]]
        places = None if options.folds else _places(checkpoint, data)
        predictor = Predictor(
            checkpoint,
            device=options.device,
            batch_size=options.batch_size,
            workers=options.workers,
            top_k=1,
            extras=("embedding",) if options.folds else ("logits",),
            columns=(GIVEN_BOX,) if data.boxed else (),
        )
        images = (Found(example.where(data.root), example.path) for example in examples)
        kept, given, sizes, boxes, values = [], [], [], [], []
        with (
            messages.bar("judging labels", len(examples), lines=True) as advance,
            contextlib.closing(predictor.blocks(images)) as blocks,
        ):
            for block in blocks:
                own = [i for i, status in enumerate(block.status) if has_prediction(status)]
                found = block.embedding if options.folds else block.logits
                if own and found is not None:
                    kept += [examples[block.first + i] for i in own]
                    given += [block.more[GIVEN_BOX][i] for i in own if data.boxed]
                    sizes.append(block.size[own])
                    boxes.append(block.box[own])
                    values.append(found[own])
                advance(len(block))
        if not kept:
            raise FgvcError(f"No image of {data.name} could be read.")
        whole = np.concatenate(values)
        if places is None:
            whole /= np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), 1e-12)
        else:
            whole = np.exp(whole)[:, places]
            whole /= whole.sum(axis=1, keepdims=True)
        labels = np.array([example.label for example in kept])
        return cls(kept, given, np.concatenate(sizes), np.concatenate(boxes), labels, whole)

    def suspect(self, data: LabelledSet, i: int, probs: np.ndarray, quality: float) -> Suspect:
        """One image in words."""
        best = int(probs.argmax())
        names = data.classes[self.labels[i]], data.classes[best]
        return Suspect(self.examples[i].name, *names, float(probs[best]), float(quality))

    def row(self, data: LabelledSet, i: int, probs: np.ndarray, quality: float) -> Row:
        """One image as a row of predictions."""
        best = np.argsort(-probs, kind="stable")[:TOP_K].tolist()
        x1, y1, x2, y2 = self.boxes[i].tolist()
        box = self.examples[i].box
        own = {"box_id": box.id, GIVEN_BOX: self.given[i]} if box else {}
        return Row(
            path=self.examples[i].path,
            width=int(self.sizes[i, 0]),
            height=int(self.sizes[i, 1]),
            labels=tuple(data.classes[each] for each in best),
            probs=tuple(max(0.0, float(probs[each])) for each in best),
            box=None if np.isnan(x1) else (x1, y1, x2, y2),
            more=own | {"data_label": data.classes[self.labels[i]], "label_quality": float(quality)},
        )


def _places(checkpoint: Checkpoint, data: LabelledSet) -> list[int]:
    """Of each class of the data, its place among the model's.

    Raises:
        FgvcError: one that the model does not know.
    """
    index = {same_form(name): i for i, name in enumerate(checkpoint.classes)}
    unknown = [name for name in data.classes if same_form(name) not in index]
    if unknown:
        raise FgvcError(
            f"The model does not know {len(unknown)} of the {len(data.classes)} classes ({unknown[0]}, ...), "
            "so it cannot judge their labels itself.",
            "Leave --folds 0 out: a probe on its embeddings can.",
        )
    return [index[same_form(name)] for name in data.classes]


def _groups(paths: Sequence[str], together: Sequence[Sequence[str]]) -> np.ndarray:
    """A number for each image, the same for those that are one."""
    number = {path: i for i, path in reversed([*enumerate(paths)])}
    groups = np.array([number[path] for path in paths], int)  # boxes of one image are together
    for own in together:
        places = [number[path] for path in own if path in number]
        groups[np.isin(groups, groups[places])] = min(groups[places], default=0)
    return groups


def out_of_fold(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    folds: int,
    on_fold: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Probabilities of each image by a linear probe fitted without its fold.

    Args:
        features: (N, D), of length 1.
        labels: (N,), class indices below K.
        groups: (N,); images of one come into one fold.

    Returns:
        (N, K), -1 for a class that the others have no image of.

    Raises:
        FgvcError: no class with two images.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    most = int(np.bincount(labels).max())
    apart = len(np.unique(groups))
    if most < 2 or apart < 2:
        raise FgvcError("No class has two images: there are none to judge its label by.")
    probs = np.full((len(labels), int(labels.max()) + 1), -1.0)
    divide = StratifiedGroupKFold(min(folds, most, apart), shuffle=True, random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes smaller than the number of folds, and of convergence
        for rest, part in divide.split(features, labels, groups):
            if len(part) and len(np.unique(labels[rest])) > 1:
                probe = LogisticRegression(C=INVERSE_PENALTY, max_iter=300, tol=1e-3)
                probe.fit(features[rest], labels[rest])
                probs[np.ix_(part, probe.classes_)] = probe.predict_proba(features[part])
            on_fold()
    return probs


def rank_labels(probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which labels are likely wrong, the likeliest first, and the quality of every label in [0, 1].

    Args:
        probs: (n, K), -1 or 0 where a class is out of the question.
        labels: (n,).

    Returns:
        Numbers of images, and (n,).
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    there, compact = np.unique(labels, return_inverse=True)
    own = np.clip(probs[:, there], 1e-9, 1)
    own /= own.sum(axis=1, keepdims=True)
    if len(there) < 2:
        return np.empty(0, int), own[:, 0]
    quality = get_label_quality_scores(compact, own, method="self_confidence")
    wrong = np.flatnonzero(find_label_issues(compact, own, n_jobs=1))
    return wrong[np.argsort(quality[wrong], kind="stable")], quality


def _trained_on(checkpoint: Checkpoint, options: WrongLabelOptions) -> bool:
    """Whether these are the images of the model's training."""
    known = not Path(options.data).exists()
    with contextlib.suppress(FgvcError):
        path, name = (None, options.data) if known else (options.data, None)
        return choose_data(checkpoint, path, name, options.data_root, "all", BoxOptions())[1]
    return False


def _write(
    options: WrongLabelOptions,
    checkpoint: Checkpoint,
    classes: tuple[str, ...],
    rows: list[Row],
    about: dict[str, Any],
    *,
    boxed: bool,
) -> None:
    assert options.out is not None
    info = RunInfo(
        model=checkpoint.name,
        weights_sha256=checkpoint.sha256,
        classes=classes,
        preprocess=checkpoint.preprocess,
        top_k=min(TOP_K, len(classes)),
        settings={"wrong_labels": about},
        columns=(*(("box_id", GIVEN_BOX) if boxed else ()), "data_label", "label_quality"),
    )
    with CsvSink(options.out, overwrite=options.overwrite) as sink:
        sink.begin(info)
        sink.write(rows_block(rows, 0, info))
