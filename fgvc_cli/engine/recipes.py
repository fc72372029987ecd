"""Settings that belong together: what a run uses where the command line says nothing.

A recipe is a function from the input size to settings of ``TrainConfig``, as plain nested values. Nothing
heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fgvc_cli.config import PAPER_INPUT_PX, PAPER_RESIZE_PX

Recipe = Callable[[int], dict[str, Any]]


def crasmra_paper(input_px: int = PAPER_INPUT_PX) -> dict[str, Any]:
    """Wang et al. 2025, section 4.2: 550 px cut to 448, SGD, cosine, 200 epochs of batches of 20.

    Everything but the sizes is the default of ``TrainConfig``. Other sizes keep the ratio of the two.
    """
    return {
        "preprocess": {"input_px": input_px, "resize_px": round(input_px * PAPER_RESIZE_PX / PAPER_INPUT_PX)}
    }


def vitms_paper(input_px: int = PAPER_INPUT_PX) -> dict[str, Any]:
    """Conde & Turgutlu 2021 and their code: crops from 448 px (512 for Cars), the encoder frozen at first,
    then trained with a lower rate than the classifier, one cycle, label smoothing 0.1.

    The paper names neither optimiser, rates nor epochs; AdamW and the values here are ours. Score and run
    time: not measured; the runs in benchmarks/RESULTS.md set smaller sizes and freeze nothing.
    """
    return {
        "preprocess": {"input_px": input_px, "resize_px": input_px},
        "optim": {
            "name": "adamw",
            "lr_backbone": 5e-5,
            "lr_heads": 1e-3,
            "weight_decay": 0.05,
            "clip_grad": 1.0,
            "schedule": "onecycle",
            "freeze_epochs": 2,
        },
        "loss": {"label_smoothing": 0.1},
        "epochs": 30,
        "batch_size": 16,
    }


OF_FAMILY: dict[str, Recipe] = {"vitms": vitms_paper}
"""Model family -> its recipe; every other family takes ``crasmra_paper``."""


def default_recipe(model: str) -> Recipe:
    """The recipe of a registry name."""
    return OF_FAMILY.get(model.partition("-")[0], crasmra_paper)
