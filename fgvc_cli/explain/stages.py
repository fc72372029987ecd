"""Stage maps: the channel-averaged activations that the paper draws (Wang et al. 2025, Figs. 4-6).

An explainer is a function from a checkpoint and one upright photograph to an ``Explanation``; this one reads
what the model itself answers, so that it serves every family. Legend: S side of the input, h w of a map.
"""

from __future__ import annotations

from itertools import chain

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fgvc_cli.data.transforms import eval_transform, input_geometry, normalize
from fgvc_cli.engine.checkpoint import Checkpoint
from fgvc_cli.explain.explanation import HEAT, Explanation
from fgvc_cli.models.output import ModelOutput


@torch.inference_mode()
def explain_stages(checkpoint: Checkpoint, image: Image.Image, *, top_k: int = 5) -> Explanation:
    """Classify one photograph and keep the activation maps of the model's stages and its heat map.

    Args:
        checkpoint: its model on any device, in evaluation mode.
        image: upright, RGB.
        top_k: how many classes to name; no more than the checkpoint has.
    """
    preprocess = checkpoint.preprocess
    geometry = input_geometry(image.width, image.height, preprocess)
    images = eval_transform(preprocess)(image)[None].to(_device(checkpoint.model))
    output: ModelOutput = checkpoint.model(normalize(images, preprocess), want=("heat", "boxes", "stages"))
    branches = {name: logits[0].float().softmax(dim=-1) for name, logits in output.logits.items()}
    box = None
    if output.boxes is not None:
        x1, y1, x2, y2 = output.boxes[0].tolist()
        box = geometry.to_photo((x1, y1, x2, y2))
    return Explanation(
        image=image,
        top=_top(output.probs[0], checkpoint.classes, top_k),
        branches={name: _top(probs, checkpoint.classes, 1)[0] for name, probs in branches.items()},
        maps=stage_maps(output),
        box=box,
        geometry=geometry,
        input_px=preprocess.input_px,
        model=checkpoint.name,
    )


def stage_maps(output: ModelOutput, row: int = 0) -> dict[str, np.ndarray]:
    """The maps of one image of a batch: its stages in the model's order, then ``HEAT``.

    The heat map of a model with one stage is that stage and is not repeated.

    Returns:
        Name -> (h, w) float32 in [0, 1].
    """
    stages = {name: maps[row].float().cpu().numpy() for name, maps in (output.stages or {}).items()}
    if output.heat is None:
        return stages
    heat = output.heat[row].float().cpu().numpy()
    repeated = any(np.array_equal(heat, stage) for stage in stages.values())
    return stages if repeated else stages | {HEAT: heat}


def _top(probs: Tensor, classes: tuple[str, ...], k: int) -> tuple[tuple[str, float], ...]:
    found = probs.float().topk(min(k, len(classes)))
    return tuple((classes[i], p) for p, i in zip(found.values.tolist(), found.indices.tolist(), strict=True))


def _device(model: torch.nn.Module) -> torch.device:
    first = next(chain(model.parameters(), model.buffers()), None)
    return first.device if first is not None else torch.device("cpu")
