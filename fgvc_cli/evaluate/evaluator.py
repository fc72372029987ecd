"""Accuracy of a model over labelled photographs.

Legend: N images, K classes, L branches, h w rows and columns of a map.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fgvc_cli.config import Preprocess
from fgvc_cli.data.transforms import normalize
from fgvc_cli.evaluate.calibration import apply_temperature, expected_calibration_error
from fgvc_cli.evaluate.intervals import Interval, macro_f1_interval, share_interval
from fgvc_cli.evaluate.metrics import in_top
from fgvc_cli.evaluate.multilabel import exact_matches, multilabel_metrics
from fgvc_cli.models.output import Want, class_probs, summarize_stats


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
        if self.labels.is_floating_point():
            return self._counts() | multilabel_metrics(self.labels, self.probs, self.branches) | self._rest()
        labels, guesses = self.labels.numpy(), self.guesses()
        result = {
            **self._counts(),
            "top1": float((guesses == labels).mean()),
            "top5": float(in_top(labels, self.probs.numpy()).mean()),
            "macro_f1": float(f1_score(labels, guesses, average="macro", zero_division=0.0)),
            **_confidence_metrics(self.probs, self.labels),
        }
        if temperature is not None:
            calibrated = _confidence_metrics(apply_temperature(self.probs, temperature), self.labels)
            result |= {f"{name}_calibrated": value for name, value in calibrated.items()}
        for name, branch in self.branches.items():
            result |= _branch_metrics(name, branch, self.labels)
        return result | self._rest()

    def _counts(self) -> dict[str, float]:
        return {"images": float(len(self.labels)), "unreadable": float(len(self.failures))}

    def _rest(self) -> dict[str, float]:
        return summarize_stats(self.stats) | {"images_per_second": len(self.labels) / max(self.seconds, 1e-9)}

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


def _confidence_metrics(probs: Tensor, labels: Tensor) -> dict[str, float]:
    nll = float(F.nll_loss(probs.clamp_min(1e-12).log(), labels))
    return {"nll": nll, "ece": expected_calibration_error(probs, labels)}


def _branch_metrics(name: str, probs: Tensor, labels: Tensor) -> dict[str, float]:
    reached = _reached(probs)
    result = {}
    if reached.any():
        right = probs[reached].argmax(dim=1) == labels[reached]
        result[f"top1_{name}"] = float(right.double().mean())
    if not reached.all():
        result[f"reached_{name}"] = float(reached.double().mean())
    return result


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
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run a model in evaluation mode over a loader of ``Batch``; its training mode is restored.

    Args:
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
            images = normalize(batch.images.to(device, non_blocking=True), preprocess)
            images = images.contiguous(memory_format=torch.channels_last)
            output = model(images, want=want)
            row = {"labels": batch.labels, "indices": batch.indices, "probs": output.probs}
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
    cell = torch.stack((hottest % width / width, hottest // width / height), dim=1)
    return (cell + cell.new_tensor([0.5 / width, 0.5 / height])) * input_px


def join_evaluations(parts: Sequence[Evaluation]) -> Evaluation:
    """One evaluation from those of parts of a split, made side by side, in the order of ``indices``.

    No image may be in two of them, and ``indices`` must be those of the whole split.
    """
    filled = [part for part in parts if len(part.labels)] or list(parts[:1])
    counts = torch.tensor([float(len(part.labels)) for part in filled])
    weights = counts.double() / counts.sum().clamp_min(1)
    order = torch.cat([part.indices for part in filled]).argsort()

    def joined(columns: Iterable[Tensor | None]) -> Tensor | None:
        filled_columns = [column for column in columns if column is not None]
        return torch.cat(filled_columns)[order] if filled_columns else None

    return Evaluation(
        labels=torch.cat([part.labels for part in filled])[order],
        probs=torch.cat([part.probs for part in filled])[order],
        branches={
            name: torch.cat([part.branches[name] for part in filled])[order] for name in filled[0].branches
        },
        indices=torch.cat([part.indices for part in filled])[order],
        boxes=joined(part.boxes for part in filled),
        peaks=joined(part.peaks for part in filled),
        stats={
            name: torch.stack([w * part.stats[name] for w, part in zip(weights, filled, strict=True)]).sum(
                dim=0
            )
            for name in filled[0].stats
        },
        failures=[failure for part in parts for failure in part.failures],
        seconds=max(part.seconds for part in parts),
    )
