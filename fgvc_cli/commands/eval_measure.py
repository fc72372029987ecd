"""One checkpoint over one split: what it answered, and the figures of that."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from rich.console import Console
from rich.progress import Progress

from fgvc_cli.commands.eval_data import known_examples
from fgvc_cli.data.geometry import input_geometry
from fgvc_cli.data.labelled import Example, LabelledSet
from fgvc_cli.datasets.boxes import TrueBoxes
from fgvc_cli.datasets.registry import load_boxes
from fgvc_cli.errors import FgvcError
from fgvc_cli.sources.images import DecodedImage, ReadRule, read_image

if TYPE_CHECKING:
    import torch

    from fgvc_cli.engine.checkpoint import Checkpoint
    from fgvc_cli.evaluate.evaluator import Evaluation
    from fgvc_cli.evaluate.localisation import Located


@dataclass
class Measured:
    """A checkpoint's answers over the readable photographs of a split."""

    checkpoint: Checkpoint
    root: Path
    examples: list[Example]
    """All of the split, labels in the checkpoint's numbering; ``result.indices`` points into it."""
    result: Evaluation
    located: dict[int, Located]
    """Position among the readable photographs -> where the model looked; of those with known boxes."""

    def paths(self) -> list[str]:
        """Of the readable photographs, in the order of ``result``."""
        return [self.examples[index].path for index in self.result.indices.tolist()]

    def right(self) -> dict[str, bool]:
        """Path of each readable photograph -> whether the model has it right."""
        hits = (self.result.guesses() == self.result.labels.numpy()).tolist()
        return dict(zip(self.paths(), hits, strict=True))

    def localisation(self) -> dict[str, Any] | None:
        """Figures and intervals of where it looked; None where no box is known."""
        if not self.located:
            return None
        from fgvc_cli.evaluate.localisation import localisation_metrics

        metrics, intervals = localisation_metrics([*self.located.values()])
        return {"metrics": metrics, "intervals": intervals}


def measure(
    checkpoint: Checkpoint,
    labelled: LabelledSet,
    split: str,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    console: Console,
    locate: bool = True,
) -> Measured:
    """The model over a split, with progress and unreadable photographs on the console.

    Args:
        locate: also compare where it looked with the boxes of the set, if it has any.

    Raises:
        FgvcError: see ``known_examples`` and ``load_boxes``; no readable photograph.
    """
    from fgvc_cli.data.loaders import LabelledImages, build_loader
    from fgvc_cli.data.transforms import eval_transform
    from fgvc_cli.evaluate.evaluator import evaluate
    from fgvc_cli.evaluate.multilabel import label_slots

    examples = known_examples(labelled, split, checkpoint.classes)
    truths = load_boxes(labelled.root, [e.path for e in examples]) if locate else {}
    slots = label_slots(labelled, len(checkpoint.classes), checkpoint.multi_label)
    preprocess = checkpoint.preprocess
    images = LabelledImages(labelled.root, examples, eval_transform(preprocess), slots, preprocess)
    loader = build_loader(images, batch_size=batch_size, workers=workers)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("evaluating", total=len(examples))
        result = evaluate(
            checkpoint.model.to(device),
            loader,
            checkpoint.preprocess,
            device,
            locate=bool(truths),
            on_batch=lambda count: progress.advance(task, count),
        )
    for failure in result.failures:
        console.print(f"warning: left out {failure}", markup=False)
    if not len(result.labels):
        raise FgvcError(f"No photograph of the {split} split could be read.", "Check the files named above.")
    measured = Measured(checkpoint, labelled.root, examples, result, {})
    measured.located = _locate(measured, truths, workers)
    return measured


def _locate(measured: Measured, truths: dict[str, TrueBoxes], workers: int) -> dict[int, Located]:
    """The model's boxes and peaks in pixels of each photograph, through the geometry of its input."""
    from fgvc_cli.evaluate.localisation import Located

    boxes, peaks = measured.result.boxes, measured.result.peaks
    if boxes is None:
        return {}
    chosen = [(i, path) for i, path in enumerate(measured.paths()) if path in truths]
    files = [measured.root / path for _, path in chosen]
    sizes = _upright_sizes(files, measured.checkpoint.preprocess, workers)
    located = {}
    for (i, path), size in zip(chosen, sizes, strict=True):
        if size is None:
            continue
        geometry = input_geometry(*size, measured.checkpoint.preprocess)
        x1, y1, x2, y2 = boxes[i].tolist()
        peak = None
        if peaks is not None:
            x, y = peaks[i].tolist()
            peak = geometry.to_photo((x, y, x, y))[:2]
        located[i] = Located(truths[path], size, geometry.to_photo((x1, y1, x2, y2)), peak)
    return located


def _upright_sizes(files: Sequence[Path], rule: ReadRule, workers: int) -> list[tuple[int, int] | None]:
    """(width, height) of photographs that were read a moment ago; None where one has gone meanwhile."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        photos = pool.map(partial(read_image, prepare=_least, rule=rule), files)
        return [photo.size if isinstance(photo, DecodedImage) else None for photo in photos]


def _least(image: Image.Image) -> None:
    """Only the size is wanted: of a JPEG, decode the smallest copy there is."""
    image.draft(None, (1, 1))
