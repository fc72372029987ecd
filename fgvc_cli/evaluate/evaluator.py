"""What a model answers over labelled images: its accuracy, and where it looked against where the object is.

Boxes are xyxy pixels of the upright image, end-exclusive. An image may have several objects (Stanford
Dogs marks each dog): the nearest counts, as in ImageNet's localisation task. Pointing game: Zhang et al.,
Top-down Neural Attention by Excitation Backprop, ECCV 2016, without their margin of 15 pixels.

Legend: N images, K classes, L branches, h w rows and columns of a map.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.ops import box_iou

from fgvc_cli.config import Preprocess
from fgvc_cli.data.geometry import Box
from fgvc_cli.datasets.entries import TrueBoxes
from fgvc_cli.evaluate.confidence import apply_temperature, mean_probs, reliability_of
from fgvc_cli.evaluate.intervals import Interval, macro_f1_interval, mean_interval, share_interval
from fgvc_cli.evaluate.metrics import exact_matches, in_top, multilabel_metrics
from fgvc_cli.models.output import Want, class_probs, normalize, summarize_stats


@dataclass
class Evaluation:
    """What a model answered over a split."""

    labels: Tensor
    """int64 (N,), of the readable images; of a multi-label set float (N, K)."""
    probs: Tensor
    """Fused, (N, K)."""
    branches: dict[str, Tensor]
    """Branch name -> probabilities (N, K); a row is NaN where a cascade stopped before that branch."""
    stats: dict[str, Tensor]
    """Means of the model's own ``stats``, e.g. ``overlap``, float64."""
    failures: list[str]
    """One line for each unreadable image; these are in no metric."""
    seconds: float
    indices: Tensor
    """int64 (N,), positions of the readable images in the loader's list of examples."""
    boxes: Tensor | None = None
    """Object boxes (N, 4), xyxy pixels of the model's input; None where not asked for."""
    peaks: Tensor | None = None
    """Centres (N, 2) of the hottest cell of each heat map, x y pixels of the input; as ``boxes``."""

    def metrics(self, temperature: float | None = None) -> dict[str, float]:
        """Top-1, top-5, macro F1, ECE and top-1 per branch as shares, NLL, and the model's stats.

        Of a multi-label set, what ``multilabel_metrics`` gives in place of these.

        Fused figures are over all images, ``top1_<branch>`` over those that reached the branch. Where not
        all did, ``reached_<branch>`` is their share; where none did, there is no ``top1_<branch>``.

        Args:
            temperature: of a calibrated model: adds ``nll_calibrated`` and ``ece_calibrated``; all other
                figures are of the probabilities as the model gives them.
        """
        return self.judged(temperature).metrics()

    def judged(self, temperature: float | None = None) -> Judged:
        """What the figures are made of: per image, not per class, but for a multi-label set."""
        if self.labels.is_floating_point():
            probs, branches, answers = self.probs, self.branches, []
        else:
            probs, answers = None, [_answers(self.probs, self.labels)]
            branches = {name: _hits(branch, self.labels) for name, branch in self.branches.items()}
            if temperature is not None:
                answers.append(_answers(apply_temperature(self.probs, temperature), self.labels))
        return Judged(
            self.indices, self.labels, answers, branches, self.stats, len(self.failures), self.seconds, probs
        )

    def intervals(self) -> dict[str, Interval]:
        """95 % bootstrap intervals of the accuracies among ``metrics``, by the same names."""
        if self.labels.is_floating_point():
            exact = exact_matches(self.labels, self.probs)
            return {"exact_match": share_interval(int(exact.sum()), len(exact))}
        labels, guesses = self.labels.numpy(), self.guesses()
        right = {"top1": guesses == labels, "top5": in_top(labels, self.probs.numpy())}
        for name, probs in self.branches.items():
            reached = _reached(probs)
            right[f"top1_{name}"] = (probs[reached].argmax(dim=1) == self.labels[reached]).numpy()
        given = {name: hits for name, hits in right.items() if len(hits)}
        result = {name: share_interval(int(hits.sum()), len(hits)) for name, hits in given.items()}
        f1 = macro_f1_interval(labels, guesses, self.probs.shape[1])
        return result if f1 is None else result | {"macro_f1": f1}

    def guesses(self) -> np.ndarray:
        """The most probable class of each image, int64 (N,)."""
        return self.probs.argmax(dim=1).numpy()


@dataclass
class Judged:
    """An ``Evaluation`` without its probabilities of all classes: small enough to be gathered."""

    indices: Tensor
    """int64 (N,), as of the evaluation."""
    labels: Tensor
    """As of the evaluation."""
    answers: list[dict[str, Tensor]]
    """As the model gives them and, of a calibrated one, with its temperature: ``guess`` int64 (N,), its
    probability ``sure``, that of the label ``own``, whether the label is among the five first ``top5``."""
    branches: dict[str, Tensor]
    """Branch name -> float (N,), 1 where it is right, NaN where it was not reached; of a multi-label set as
    of the evaluation."""
    stats: dict[str, Tensor]
    unreadable: int
    seconds: float
    probs: Tensor | None
    """Of a multi-label set alone."""

    def metrics(self) -> dict[str, float]:
        """See ``Evaluation.metrics``."""
        counts = {"images": float(len(self.labels)), "unreadable": float(self.unreadable)}
        rest = summarize_stats(self.stats)
        rest |= {"images_per_second": len(self.labels) / max(self.seconds, 1e-9)}
        if self.probs is not None:
            return counts | multilabel_metrics(self.labels, self.probs, self.branches) | rest
        labels, guesses = self.labels.numpy(), self.answers[0]["guess"].numpy()
        result = {
            **counts,
            "top1": float((guesses == labels).mean()),
            "top5": float(self.answers[0]["top5"].numpy().mean()),
            "macro_f1": float(f1_score(labels, guesses, average="macro", zero_division=0.0)),
        }
        for answer, suffix in zip(self.answers, ("", "_calibrated"), strict=False):
            result[f"nll{suffix}"] = float(-answer["own"].clamp_min(1e-12).log().double().mean())
            right = (answer["guess"] == self.labels).numpy()
            result[f"ece{suffix}"] = reliability_of(answer["sure"].double().numpy(), right).error
        for name, hits in self.branches.items():
            reached = hits[~hits.isnan()]
            if len(reached):
                result[f"top1_{name}"] = float(reached.double().mean())
            if len(reached) < len(hits):
                result[f"reached_{name}"] = len(reached) / len(hits)
        return result | rest


def _answers(probs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    sure, guess = probs.max(dim=1)
    top5 = torch.from_numpy(in_top(labels.numpy(), probs.numpy()))
    return {"guess": guess, "sure": sure, "own": probs.gather(1, labels[:, None])[:, 0], "top5": top5}


def _hits(probs: Tensor, labels: Tensor) -> Tensor:
    """Whether a branch is right, float (N,), NaN where it was not reached."""
    return (probs.argmax(dim=1) == labels).float().where(_reached(probs), torch.nan)


def _reached(probs: Tensor) -> Tensor:
    return ~probs.isnan().any(dim=1)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    preprocess: Preprocess,
    device: torch.device,
    *,
    locate: bool = False,
    temperature: float | None = None,
    flip: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run a model in evaluation mode over a loader of ``Batch``; its training mode is restored.

    Args:
        temperature: of ``probs``; None: as the model gives them.
        flip: ``probs`` are the mean of those of the image and of its mirror image, each with the temperature;
            all else is of the image itself.
        model: gets normalised images; one that ``takes_pixels`` normalises them itself.
        locate: also keep ``boxes`` and ``peaks``, of a model that gives them.
        on_batch: called with the number of images just finished.
    """
    training = model.training
    model.eval()
    want: tuple[Want, ...] = ("stats", "boxes", "heat") if locate else ("stats",)
    columns: dict[str, list[Tensor]] = {}
    branches: dict[str, list[Tensor]] = {}
    stats, failures = [], []
    start = time.perf_counter()
    for batch in loader:
        failures.extend(batch.failures)
        if len(batch.labels):
            images = batch.images.to(device, non_blocking=True)
            if not getattr(model, "takes_pixels", False):
                images = normalize(images, preprocess).contiguous(memory_format=torch.channels_last)
            output = model(images, want=want)
            probs = [output.probs, *([model(images.flip(-1)).probs] if flip else ())]
            mean = mean_probs(probs, [temperature or 1.0] * len(probs))
            row = {"labels": batch.labels, "indices": batch.indices, "probs": mean}
            row |= {"boxes": output.boxes} if output.boxes is not None else {}
            row |= {"peaks": peaks(output.heat, preprocess.input_px)} if output.heat is not None else {}
            for name, values in row.items():
                values = values.float() if values.is_floating_point() else values
                columns.setdefault(name, []).append(values.cpu())
            for name, logits in output.logits.items():
                branch = class_probs(logits, batch.labels.is_floating_point())
                branches.setdefault(name, []).append(branch.cpu())
            stats.append(
                {name: value.double().cpu() * len(batch.labels) for name, value in output.stats.items()}
            )
        if on_batch:
            on_batch(len(batch.labels) + len(batch.failures))
    model.train(training)
    whole = {name: torch.cat(parts) for name, parts in columns.items()}
    nothing = torch.empty(0, dtype=torch.int64)
    count = len(whole.get("labels", nothing))
    return Evaluation(
        labels=whole.get("labels", nothing),
        probs=whole.get("probs", torch.empty(0, 1)),
        branches={name: torch.cat(parts) for name, parts in branches.items()},
        stats={
            name: torch.stack([row[name] for row in stats]).sum(dim=0) / count
            for name in (stats[0] if stats else ())
        },
        failures=failures,
        seconds=time.perf_counter() - start,
        indices=whole.get("indices", nothing),
        boxes=whole.get("boxes"),
        peaks=whole.get("peaks"),
    )


def peaks(heat: Tensor, input_px: int) -> Tensor:
    """Centre (B, 2) of the hottest cell of maps (B, h, w): x y pixels of the input, on the maps' device."""
    height, width = heat.shape[1:]
    hottest = heat.flatten(1).argmax(dim=1)
    return torch.stack(((hottest % width + 0.5) / width, (hottest // width + 0.5) / height), 1) * input_px


def join_judged(parts: Sequence[Judged]) -> Judged:
    """One from those of parts of a split, made side by side, in the order of ``indices``.

    No image may be in two of them, and ``indices`` must be those of the whole split.
    """
    filled = [part for part in parts if len(part.labels)] or list(parts[:1])
    counts = torch.tensor([float(len(part.labels)) for part in filled])
    weights = counts.double() / counts.sum().clamp_min(1)
    order = torch.cat([part.indices for part in filled]).argsort()
    first, probs = filled[0], [part.probs for part in filled if part.probs is not None]

    def joined(columns: Iterable[Tensor]) -> Tensor:
        return torch.cat([*columns])[order]

    return Judged(
        indices=joined(part.indices for part in filled),
        labels=joined(part.labels for part in filled),
        answers=[
            {name: joined(part.answers[i][name] for part in filled) for name in answer}
            for i, answer in enumerate(first.answers)
        ],
        branches={name: joined(part.branches[name] for part in filled) for name in first.branches},
        stats={
            name: torch.stack([w * part.stats[name] for w, part in zip(weights, filled, strict=True)]).sum(
                dim=0
            )
            for name in first.stats
        },
        unreadable=sum(part.unreadable for part in parts),
        seconds=max(part.seconds for part in parts),
        probs=joined(probs) if probs else None,
    )


ENOUGH = 0.5
"""IoU above which a box counts as found (Russakovsky et al. 2015)."""
CENTRED = 0.6
"""Share of each side of the fixed box that figures are to be compared with."""
PART_SIDE = 0.2
"""Side of the square around a part that is known as a point, of the object's mean side."""

Point = tuple[float, float]


class Located(NamedTuple):
    """What the model says of one image, in its pixels."""

    truth: TrueBoxes
    size: tuple[int, int]
    """(width, height) of the upright image."""
    box: Box
    peak: Point | None
    """The hottest point of the heat map; None from a model without one."""


def best_iou(box: Box, truths: Sequence[Box]) -> float:
    """Intersection over union with the nearest of the true boxes, in [0, 1]."""
    return float(box_iou(torch.tensor([box]), torch.tensor(truths, dtype=torch.float)).max())


def inside(point: Point, boxes: Iterable[Box]) -> bool:
    """Whether a point lies in one of the boxes."""
    x, y = point
    return any(x1 <= x < x2 and y1 <= y < y2 for x1, y1, x2, y2 in boxes)


def part_boxes(truth: TrueBoxes) -> list[Box]:
    """The boxes of the parts. A part known as a point has a square around it, of ``PART_SIDE`` of the
    object's mean side (ours: the data give no size)."""
    x1, y1, x2, y2 = truth.objects[0]
    reach = PART_SIDE * ((x2 - x1) + (y2 - y1)) / 4
    around = [(x - reach, y - reach, x + reach, y + reach) for x, y in truth.points.values()]
    return [*truth.parts.values(), *around]


def centred_box(size: tuple[int, int], share: float = CENTRED) -> Box:
    """A box in the middle of (width, height) that covers a share of each side."""
    x, y = size[0] * (1 - share) / 2, size[1] * (1 - share) / 2
    return x, y, size[0] - x, size[1] - y


def localisation_metrics(located: Sequence[Located]) -> tuple[dict[str, float], dict[str, Interval]]:
    """Mean IoU, share above 0.5, pointing game, and what a fixed box scores; with 95 % intervals.

    Args:
        located: N of them, at least one.

    Returns:
        ``boxes`` (N), ``iou``, ``iou_above_0.5``, ``pointing_object``, ``pointing_parts`` (over the
        images whose part boxes are known), ``iou_centred`` and ``iou_above_0.5_centred`` of a fixed box
        in the middle, ``pointing_chance`` (mean share of the picture that the objects cover); the intervals
        of the first figures by the same names.
    """
    iou = np.array([best_iou(each.box, each.truth.objects) for each in located])
    fixed = np.array([best_iou(centred_box(each.size), each.truth.objects) for each in located])
    figures = {"boxes": float(len(located)), "iou": float(iou.mean())}
    mean = mean_interval(iou)
    intervals = {} if mean is None else {"iou": mean}
    shares = {"iou_above_0.5": iou > ENOUGH} | _pointing(located)
    for name, hits in shares.items():
        figures[name] = float(hits.mean())
        intervals[name] = share_interval(int(hits.sum()), len(hits))
    figures |= {"iou_centred": float(fixed.mean()), "iou_above_0.5_centred": float((fixed > ENOUGH).mean())}
    if "pointing_object" in figures:
        figures["pointing_chance"] = float(np.mean([_covered(each) for each in located]))
    return figures, intervals


def _pointing(located: Sequence[Located]) -> dict[str, np.ndarray]:
    pointed = [(each.peak, each.truth) for each in located if each.peak is not None]
    if not pointed:
        return {}
    hits = {"pointing_object": np.array([inside(peak, truth.objects) for peak, truth in pointed])}
    with_parts = [(peak, part_boxes(truth)) for peak, truth in pointed if truth.parts or truth.points]
    if with_parts:
        hits["pointing_parts"] = np.array([inside(peak, parts) for peak, parts in with_parts])
    return hits


def _covered(each: Located) -> float:
    """Share of the picture inside any of its objects, counted on a grid of 64 x 64 points."""
    width, height = each.size
    ticks = (np.arange(64) + 0.5) / 64
    x, y = np.meshgrid(ticks * width, ticks * height)
    held = [(x1 <= x) & (x < x2) & (y1 <= y) & (y < y2) for x1, y1, x2, y2 in each.truth.objects]
    return float(np.any(held, axis=0).mean())
