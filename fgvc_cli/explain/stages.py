"""What a model answers about one photograph: its maps, its boxes, and its further looks.

Stage maps are the channel-averaged activations that Wang et al. (2025) draw in Figs. 4-6; object and part
crops, their attention and the erased pixels are those of Conde & Turgutlu (2021), Figs. 3-5. An explainer is
a function from a checkpoint and one upright photograph to an ``Explanation``; this one reads what the model
itself answers, so that it serves every family.

Legend: B batch, P parts, K classes, h w rows and columns of a map.
"""

from __future__ import annotations

from itertools import chain

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fgvc_cli.data.transforms import Geometry, eval_transform, input_geometry, normalize
from fgvc_cli.engine.checkpoint import Checkpoint
from fgvc_cli.explain.explanation import HEAT, Box, Explanation
from fgvc_cli.models.output import ModelOutput, Want, class_probs

_WANTED: tuple[Want, ...] = ("heat", "boxes", "parts", "stages", "object_heat", "erased")
"""Asked of every model; what it does not have it leaves None, and the picture goes without."""


@torch.inference_mode()
def explain_stages(checkpoint: Checkpoint, image: Image.Image, *, top_k: int = 5) -> Explanation:
    """Classify one photograph and keep the model's maps and boxes, and what it saw when it looked again.

    A look that a cascade did not take (its logits are NaN) is left out: its branch, its boxes and its map.

    Args:
        checkpoint: its model on any device, in evaluation mode.
        image: upright, RGB.
        top_k: how many classes to name; no more than the checkpoint has.
    """
    preprocess = checkpoint.preprocess
    geometry = input_geometry(image.width, image.height, preprocess)
    images = eval_transform(preprocess)(image)[None].to(_device(checkpoint.model))
    output: ModelOutput = checkpoint.model(normalize(images, preprocess), want=_WANTED)
    looked = output.parts if _looked(output, "parts") else None
    object_map = output.object_heat if _looked(output, "object") else None
    return Explanation(
        image=image,
        top=_top(output.probs[0], checkpoint.classes, top_k),
        branches=_branches(output, checkpoint.classes, checkpoint.multi_label),
        maps=stage_maps(output),
        box=None if output.boxes is None else _photo_boxes(output.boxes[:1], geometry)[0],
        geometry=geometry,
        input_px=preprocess.input_px,
        model=checkpoint.name,
        parts=() if looked is None else _photo_boxes(looked[0], geometry),
        object_map=None if object_map is None else object_map[0].float().cpu().numpy(),
        erased=None if output.erased is None else output.erased[0].cpu().numpy(),
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


def _looked(output: ModelOutput, branch: str) -> bool:
    """Whether the first image went through a branch; where a cascade stops before it, its row is NaN."""
    logits = output.logits.get(branch)
    return logits is None or not bool(logits[0].isnan().any())


def _branches(
    output: ModelOutput, classes: tuple[str, ...], multi_label: bool
) -> dict[str, tuple[str, float]]:
    """What each branch that looked says alone; several parts (P, K) also one by one."""
    rows = {name: logits[0] for name, logits in output.logits.items() if _looked(output, name)}
    if output.part_logits is not None and output.part_logits.shape[1] > 1 and _looked(output, "parts"):
        rows |= {f"part_{number}": each for number, each in enumerate(output.part_logits[0], start=1)}
    return {name: _top(class_probs(row, multi_label), classes, 1)[0] for name, row in rows.items()}


def _photo_boxes(boxes: Tensor, geometry: Geometry) -> tuple[Box, ...]:
    """Boxes (P, 4) of the model's input in pixels of the photograph."""
    return tuple(geometry.to_photo((x1, y1, x2, y2)) for x1, y1, x2, y2 in boxes.tolist())


def _top(probs: Tensor, classes: tuple[str, ...], k: int) -> tuple[tuple[str, float], ...]:
    found = probs.float().topk(min(k, len(classes)))
    return tuple((classes[i], p) for p, i in zip(found.values.tolist(), found.indices.tolist(), strict=True))


def _device(model: torch.nn.Module) -> torch.device:
    first = next(chain(model.parameters(), model.buffers()), None)
    return first.device if first is not None else torch.device("cpu")
