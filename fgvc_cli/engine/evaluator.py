"""Accuracy of a model over labelled photographs.

Legend: N images, K classes, L branches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score, top_k_accuracy_score
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fgvc_cli.config import Preprocess
from fgvc_cli.data.transforms import normalize
from fgvc_cli.engine.calibration import apply_temperature, expected_calibration_error
from fgvc_cli.engine.multilabel import multilabel_metrics
from fgvc_cli.models.output import class_probs


@dataclass
class Evaluation:
    """What a model answered over a split."""

    labels: Tensor
    """int64 (N,), of the readable images; of a multi-label set float (N, K)."""
    probs: Tensor
    """Fused, (N, K)."""
    branches: dict[str, Tensor]
    """Branch name -> probabilities (N, K); a row is NaN where a cascade stopped before that branch."""
    stats: dict[str, float]
    """Means of the model's own scalars, e.g. ``overlap``."""
    failures: list[str]
    """One line for each unreadable image; these are in no metric."""
    seconds: float

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
        labels, probs = self.labels.numpy(), self.probs.double().numpy()
        classes = range(probs.shape[1])
        guesses = probs.argmax(axis=1)
        result = {
            **self._counts(),
            "top1": float(accuracy_score(labels, guesses)),
            "top5": _top5(labels, probs, classes),
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
        return self.stats | {"images_per_second": len(self.labels) / max(self.seconds, 1e-9)}


def _confidence_metrics(probs: Tensor, labels: Tensor) -> dict[str, float]:
    nll = float(F.nll_loss(probs.clamp_min(1e-12).log(), labels))
    return {"nll": nll, "ece": expected_calibration_error(probs, labels)}


def _branch_metrics(name: str, probs: Tensor, labels: Tensor) -> dict[str, float]:
    reached = ~probs.isnan().any(dim=1)
    result = {}
    if reached.any():
        guesses = probs[reached].argmax(dim=1)
        result[f"top1_{name}"] = float(accuracy_score(labels[reached].numpy(), guesses.numpy()))
    if not reached.all():
        result[f"reached_{name}"] = float(reached.double().mean())
    return result


def _top5(labels: np.ndarray, probs: np.ndarray, classes: range) -> float:
    if len(classes) <= 5:
        return 1.0
    return float(top_k_accuracy_score(labels, probs, k=5, labels=list(classes)))


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    preprocess: Preprocess,
    device: torch.device,
    *,
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run a model in evaluation mode over a loader of ``Batch``; its training mode is restored.

    Args:
        on_batch: called with the number of images just finished.
    """
    training = model.training
    model.eval()
    labels, probs, stats, failures = [], [], [], []
    branches: dict[str, list[Tensor]] = {}
    start = time.perf_counter()
    for batch in loader:
        failures.extend(batch.failures)
        if len(batch.labels):
            images = normalize(batch.images.to(device, non_blocking=True), preprocess)
            images = images.contiguous(memory_format=torch.channels_last)
            output = model(images, want=("stats",))
            labels.append(batch.labels)
            probs.append(output.probs.float().cpu())
            for name, logits in output.logits.items():
                branch = class_probs(logits, batch.labels.is_floating_point())
                branches.setdefault(name, []).append(branch.cpu())
            stats.append({name: float(value) * len(batch.labels) for name, value in output.stats.items()})
        if on_batch:
            on_batch(len(batch.labels) + len(batch.failures))
    model.train(training)
    count = sum(len(part) for part in labels)
    return Evaluation(
        labels=torch.cat(labels) if labels else torch.empty(0, dtype=torch.int64),
        probs=torch.cat(probs) if probs else torch.empty(0, 1),
        branches={name: torch.cat(parts) for name, parts in branches.items()},
        stats={name: sum(row[name] for row in stats) / count for name in (stats[0] if stats else ())},
        failures=failures,
        seconds=time.perf_counter() - start,
    )


def join_evaluations(parts: Sequence[Evaluation]) -> Evaluation:
    """One evaluation from those of parts of a split, made side by side; no image may be in two of them."""
    filled = [part for part in parts if len(part.labels)] or list(parts[:1])
    counts = torch.tensor([float(len(part.labels)) for part in filled])
    shares = (counts / counts.sum().clamp_min(1)).tolist()
    return Evaluation(
        labels=torch.cat([part.labels for part in filled]),
        probs=torch.cat([part.probs for part in filled]),
        branches={name: torch.cat([part.branches[name] for part in filled]) for name in filled[0].branches},
        stats={
            name: sum(share * part.stats[name] for share, part in zip(shares, filled, strict=True))
            for name in filled[0].stats
        },
        failures=[failure for part in parts for failure in part.failures],
        seconds=max(part.seconds for part in parts),
    )
