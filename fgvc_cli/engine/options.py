"""What the commands of this room are asked for, and the recipes: what a training uses where it was not asked.

Options are names, types, defaults and limits. A recipe is a function from a ``Setup`` to settings of
``TrainConfig``, as plain nested values; its docstring gives source, command, run time and expected score.
Learning rates hold for the batch that a recipe names. The papers' recipes keep theirs whatever the batch is,
so that they stay what was published; ``strong`` scales its own. Nothing heavy is imported here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from fgvc_cli.command import BoxOptions, MessageOptions, Several, options
from fgvc_cli.config import PAPER_INPUT_PX, PAPER_RESIZE_PX
from fgvc_cli.errors import EXIT_USAGE, FgvcError, nearest

Pixels = Literal["uint8", "float"]
"""What a graph takes: uint8 from 0 to 255, or float32 from 0 to 1."""

Stages = Literal["main", "main+object", "all"]
"""Of a multi-stage ViT: what it looks at."""


@options
class ExportOptions(MessageOptions):
    """What ``fgvc export`` is asked for."""

    out: Path
    """File to write, ending in .onnx, or .pt2 for ``torch.export.load``."""
    weights: str | None = None
    """File or folder of a training, or an embedded model; None: the default one."""
    check: str | None = None
    """Images to compare the graph with the model on; None: generated ones."""
    pixels: Pixels = "uint8"
    """What the graph takes."""
    stages: Stages | None = None
    """Of a multi-stage ViT; None: as trained."""
    tolerance: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """Largest difference in a probability that passes, of the graph in float32."""
    int8: bool = False
    """Quantise convolutions and linear layers to int8, of an .onnx; needs ``calibrate``."""
    calibrate: str | None = None
    """Images like those to come, from which ``int8`` takes its ranges."""
    overwrite: bool = False
    """Replace a file that is there."""

    def __post_init__(self) -> None:
        """Raise FgvcError where options exclude each other."""
        if self.int8 and self.calibrate is None:
            message = "--int8 takes the ranges of its numbers from images, and none are named."
            raise FgvcError(message, "Add --calibrate FOLDER with some hundred of yours.", EXIT_USAGE)
        if self.calibrate is not None and not self.int8:
            raise FgvcError("--calibrate is for --int8.", "Add --int8, or leave it away.", EXIT_USAGE)
        if self.int8 and self.out.suffix.lower() != ".onnx":
            raise FgvcError(f"--int8 got {self.out.name!r}, expected an .onnx.", None, EXIT_USAGE)


@options
class EvalOptions(MessageOptions, BoxOptions):
    """What ``fgvc eval`` is asked for."""

    weights: Several = ()
    """File or folder of a training, or an embedded model; none: the default one. Of several models with the
    same classes the mean of their probabilities is measured."""
    data: str | None = None
    """Labelled folder or CSV; None, and no ``dataset``: what the checkpoint was trained on."""
    dataset: str | None = None
    """Known set in place of ``data``."""
    data_root: str | None = None
    """Folder that holds known sets; None: the environment's ``FGVC_DATA``."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Which images."""
    against: str | None = None
    """Second model, as ``weights``: compared on the same images."""
    out: Path | None = None
    """New folder for tables and pictures."""
    overwrite: bool = False
    """Replace what an earlier one wrote."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Images per forward pass."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Parallel readers of images."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    amp: Literal["auto", "none", "bf16"] = "auto"
    """Precision: none (float32), bf16, or auto: bf16 on a card that has it, as prediction, else float32."""
    runtime: Literal["auto", "onnxruntime", "openvino"] = "auto"
    """Of an exported graph, as in prediction."""
    stages: Stages | None = None
    """Of a multi-stage ViT; None: as trained."""
    cascade: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of a multi-stage ViT: images this sure after a stage take no further one; None: as trained."""
    tta: Literal["flip"] | None = None
    """``flip``: the mean of the probabilities of the image and of its mirror image."""
    taxonomy: str | None = None
    """CSV of what the classes hang on, as for training; None: that of the model, else of the data."""
    rollup: Annotated[float, Field(gt=0, le=1)] | None = None
    """Also measure the answers at the finest rank that is this probable; needs a taxonomy."""
    calibrate: Path | None = None
    """With the val split: fit the temperature, and write the model with it to this new file."""
    index: Path | None = None
    """File of ``fgvc index``: its classes in place of the model's, as in prediction."""
    by: Literal["neighbours", "means"] | None = None
    """What stands for a class of ``index``: its nearest image or the mean of all; None: ``means``."""
    fit_novelty: Path | None = None
    """With the val split: fit what tells images unlike the training's, and write the model with it to this
    new file."""
    target_precision: Annotated[float, Field(gt=0, lt=1)] | None = None
    """With the val split and ``thresholds``: the precision that rows above them are to have."""
    thresholds: Path | None = None
    """CSV to appear: the least probability of each class at which it is reached."""


@options
class TrainOptions(MessageOptions, BoxOptions):
    """What ``fgvc train`` is asked for; None: not given, so that the recipe or the default counts."""

    model: str | None = None
    """Registry name; needed but for ``resume``."""
    data: str | None = None
    """Class-per-folder folder, or CSV."""
    dataset: str | None = None
    """Known set in place of ``data``."""
    data_root: str | None = None
    """Folder that holds known sets."""
    split_by: str | None = None
    """``folder``, ``column=NAME`` or ``minutes=5``: what keeps images in one split; None: nothing."""
    taxonomy: str | None = None
    """CSV of what the classes hang on: ``class``, then ranks from coarse to fine; None: what a known set
    brings."""
    out: Path | None = None
    """Run folder; None: ``runs/<model>-<data>``."""
    recipe: str | None = None
    """Settings to start from; None: ``strong``, and of a table of ``ablate`` those of the model's paper."""
    epochs: int | None = None
    """How often every image is seen."""
    batch_size: int | None = None
    """Images per forward pass."""
    input_px: int | None = None
    """Side of the model's input, pixels."""
    seed: int | None = None
    """Of everything random."""
    init: str | None = None
    """Start from these weights: embedded model, file or folder of a training. Of its classifiers, those of
    classes that the data have too are taken; without ``model``, its network, options and input as well."""
    pretrained: bool | None = None
    """Start from timm's ImageNet weights."""
    stages: Stages | None = None
    """Of a multi-stage ViT."""
    amp: str | None = None
    """auto, none, bf16 or fp16."""
    workers: int | None = None
    """Processes that decode."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    devices: int | None = None
    """Processes that train together."""
    set: Several = ()
    """Any other settings, each as ``section.field=value``; laid over the rest."""
    overwrite: bool = False
    """Write into a run folder in use."""
    resume: Path | None = None
    """Go on with this interrupted run folder, by its own settings; only ``device``, ``workers`` and where the
    data lie may be given."""


@options
class AblateOptions(TrainOptions):
    """What ``fgvc train --ablate`` is asked for: a table, and the training that its rows vary."""

    ablate: str = "table3"
    """Name of the table."""
    seeds: str | None = None
    """Different whole numbers; None: 0,1,2."""


def given_options(asked: TrainOptions, *but: str) -> list[str]:
    """Options, as they are typed, that are not at their defaults."""
    names = [f.name for f in fields(asked) if f.name not in ("quiet", "messages", *but)]
    defaults = {f.name: f.default for f in fields(asked)}
    return [f"--{name.replace('_', '-')}" for name in names if getattr(asked, name) != defaults[name]]


DEFAULT = "strong"
"""Taken where none is named."""
REFINE = "refine"
"""Taken where training goes on from a model that knows some of the classes."""
PAPER = "paper"
"""Stands for the recipe of the model's paper; taken for a table of an ablation where none is named."""


@dataclass(frozen=True)
class Setup:
    """What a recipe may depend on: known before anything is built."""

    family: str = "crasmra"
    """The part of the model's name before the first dash."""
    backbone: str = ""
    """timm's name of the backbone."""
    dataset: str = ""
    """Key of the published data set; empty: another."""
    input_px: int = PAPER_INPUT_PX
    epochs: int | None = None
    """As given; None: the recipe chooses."""
    batch_size: int | None = None
    """As given; None: the recipe chooses."""
    batches: int = 1
    """Batches that make one update: devices * accumulate."""
    vit: bool = False
    """Whether the backbone is a plain ViT; told only to a recipe that ``asks_backbone``."""
    drop_path: bool = False
    """Whether the backbone takes stochastic depth; likewise."""
    parameters: int = 0
    """Of the backbone; likewise."""


@dataclass(frozen=True)
class Recipe:
    """A named recipe."""

    name: str
    families: tuple[str, ...]
    """Families of models that it is for."""
    settings: Callable[[Setup], dict[str, Any]]
    asks_backbone: bool = False
    """Whether ``vit``, ``drop_path`` and ``parameters`` matter, which costs a look at the network."""

    @property
    def text(self) -> str:
        """Its docstring: what it is in one line, then the rest."""
        return inspect.getdoc(self.settings) or ""


def crasmra_paper(setup: Setup) -> dict[str, Any]:
    """CRA-SMRA as published: 550 px cut to 448, SGD, cosine, 200 epochs of batches of 20.

    Source: Wang et al. 2025, section 4.1.
    Command: fgvc train --dataset cub --data-root /data --model crasmra-r50 --recipe crasmra-paper
    Run time: not measured. Expected top-1 (paper, ResNet-50): CUB 89.4, Aircraft 93.2, Cars 94.7, Dogs 88.2;
    here not measured.

    The paper's words: sizes, SGD, rates of backbone, SMRAM and CRAM, Eq. 1-12 with r 16, delta 0.9, omega
    0.5, alpha 2, beta 1, gamma 1, the mean of four softmax. Of its relatives (PMG), as the paper is silent:
    the classifier with a hidden layer of 512, and the maximum in front of it. Ours: Conv_layer as one 1x1
    convolution to 512 channels ("adjusts the channel number"), the rate of the heads. ResNet-50 and
    ResNet-101 start from the weights of the paper's day, timm's ``tv_in1k``. Everything else is the default
    of ``TrainConfig``. Other sizes keep the ratio of the two.
    """
    resize_px = round(setup.input_px * PAPER_RESIZE_PX / PAPER_INPUT_PX)
    options: dict[str, Any] = {}
    if setup.family == "crasmra":
        options = {
            "channel_attention": "cram",
            "smram": True,
            "smram_map": "phi",
            "reduction": 16,
            "min_hidden": 1,
            "mask_norm": "none",
            "mask_init": "default",
            "mask_sum": "after_mlp",
            "softmax_of": "mask",
            "suppress_rule": "threshold",
            "delta": 0.9,
            "omega": 0.5,
            "neck": "light",
            "neck_channels": 512,
            "head_hidden": 512,
            "head_pool": "max",
            "fuse": "mean",
        }
    if setup.backbone in ("resnet50", "resnet101"):
        options["pretrained_tag"] = "tv_in1k"
    return {
        "preprocess": {"input_px": setup.input_px, "resize_px": resize_px},
        "options": options,
        "loss": {"alpha": 2.0, "beta": 1.0, "gamma": 1.0} if setup.family == "crasmra" else {},
    }


def source_px(family: str, dataset: str) -> int:
    """Input side where none is given: what crops are cut from, 512 px for the multi-stage ViT on Cars, else
    448 (both papers)."""
    return 512 if (family, dataset) == ("vitms", "cars") else PAPER_INPUT_PX


def _vitms_published(**changes: Any) -> dict[str, Any]:
    """What the multi-stage ViT's paper says of its maps, boxes and erasing, pinned."""
    return {
        "stages": "all",
        "threshold": "mean",
        "closing": "binary",
        "closing_px": 3,
        "min_area": 64**2 / 448**2,
        "residual": 0.5,
        "rollout_first": 1,
        "rollout_weight": "attention",
        "parts": 2,
        "part_window": 112 / 384,
        "part_iou": 0.1,
        "part_score": "mean",
        "part_map": "main",
        "erase_prob": 0.5,
        "erase_threshold": 0.7,
        **changes,
    }


def vitms_paper(setup: Setup) -> dict[str, Any]:
    """Multi-stage ViT as published: crops from 448 px, encoder frozen at first, one cycle, label smoothing.

    Source: Conde & Turgutlu 2021. The paper's words: 384 px crops from 448 (Cars: 512, taken by themselves),
    rollout of all layers with half the identity, mean threshold, a box of the largest attention, two parts of
    112 of 384, erasing of half the images above 0.7 of the attention, the sum of all losses. Their code's:
    3 px closing of the binary map, 64 x 64 of 448 x 448 as the smallest object, part overlap up to 0.1,
    frozen epochs, one cycle, label smoothing 0.1. Ours, as they name neither optimiser, rates nor epochs
    there: AdamW, its rates, weight decay, clipped gradients, 30 epochs. As their notebooks have it:
    vitms-authors.
    Command: fgvc train --dataset cub --data-root /data --model vitms-b16 --recipe vitms-paper
    Run time: not measured. Expected top-1 (paper, ViT-B/16): CUB 91.0, Cars 94.3, Dogs 93.2; here not
    measured, the runs in benchmarks/RESULTS.md set smaller sizes and freeze nothing.

    A run too short for two frozen epochs freezes fewer.
    """
    epochs = setup.epochs or 30
    return {
        "options": _vitms_published() if setup.family == "vitms" else {},
        "preprocess": {"input_px": setup.input_px, "resize_px": setup.input_px},
        "optim": {
            "name": "adamw",
            "lr_backbone": 5e-5,
            "lr_heads": 1e-3,
            "weight_decay": 0.05,
            "clip_grad": 1.0,
            "schedule": "onecycle",
            "freeze_epochs": max(0, min(2, epochs - 1)),
        },
        "loss": {"label_smoothing": 0.1},
        "epochs": epochs,
        "batch_size": setup.batch_size or 16,
    }


def vitms_authors(setup: Setup) -> dict[str, Any]:
    """Multi-stage ViT as its authors' notebooks train it: Ranger, two cycles that rise for half their way.

    Source: the notebooks of Conde & Turgutlu 2021. Dogs, and everything else here: 2 frozen epochs at 3e-3,
    then 4 at 1e-3, the encoder at a fiftieth. Cars: 24 epochs at 1e-2, read as frozen ones, then 32 at a
    hundredth. Batches of 16. Random resized crops of 0.75 of the area or more (Cars 0.7), flips, lighting;
    erasing drawn apart for object crops; losses of parts averaged. Ranger is RAdam in Lookahead, timm's
    ``lookahead_radam``. Ours: the strength of lighting and of noise (0.02), which the text names without one.
    Not here: their mild rotation and warp.
    Command: fgvc train --dataset dogs --data-root /data --model vitms-b16 --recipe vitms-authors
    Run time and score: not measured. Expected top-1 (paper, ViT-B/16): Cars 94.3, Dogs 93.2.
    """
    cars = setup.dataset == "cars"
    epochs = setup.epochs or (56 if cars else 6)
    frozen = round(epochs * (24 / 56 if cars else 2 / 6))
    vitms = setup.family == "vitms"
    return {
        "options": _vitms_published(erase_object_prob=0.5) if vitms else {},
        "preprocess": {"input_px": setup.input_px, "resize_px": setup.input_px},
        "augment": {
            "crop": "resized",
            "scale_min": 0.7 if cars else 0.75,
            "color_jitter": 0.2,
            "noise": 0.02,
        },
        "optim": {
            "name": "lookahead_radam",
            "lr_backbone": 1e-4 if cars else 2e-5,
            "lr_heads": 1e-4 if cars else 1e-3,
            "weight_decay": 0.01,
            "schedule": "onecycle",
            "onecycle_rise": 0.5,
            "freeze_epochs": max(0, min(frozen, epochs - 1)),
            "freeze_rate": 100.0 if cars else 3.0,
        },
        "loss": {"label_smoothing": 0.1, "part_loss": "mean"},
        "epochs": epochs,
        "batch_size": setup.batch_size or 16,
    }


def probe(setup: Setup) -> dict[str, Any]:
    """The backbone stays frozen, only what stands on it learns: minutes, the honest floor of a comparison.

    Source: linear probing, as in Kornblith et al. 2019; with ``--model timm-<name>`` it is a linear
    classifier on frozen features.
    Command: fgvc train --data birds --model timm-tf_efficientnet_lite0 --recipe probe
    Run time and score: not measured.
    """
    epochs = setup.epochs or 10
    batch_size = setup.batch_size or STRONG_BATCH
    rate = _rate(2e-3 * math.sqrt(batch_size * setup.batches / STRONG_BATCH))
    resize_px = setup.input_px if setup.family == "vitms" else round(setup.input_px * 8 / 7)
    return {
        "preprocess": {"input_px": setup.input_px, "resize_px": resize_px},
        "optim": {
            "name": "adamw",
            "lr_cram": rate,
            "lr_smram": rate,
            "lr_heads": rate,
            "weight_decay": 1e-4,
            "freeze_epochs": epochs,
        },
        "epochs": epochs,
        "batch_size": batch_size,
    }


STRONG_BATCH = 32
"""Images of an update that the rates of ``strong`` hold for."""
SMALL_CNN = 10_000_000
"""Parameters of a backbone up to which a CNN takes the rates that were measured with small ones."""


_LIVING_CRAM = {"mask_norm": "layer", "min_hidden": 32}
"""What keeps CRAM's masks from saturating (benchmarks/RESULTS.md)."""


def strong(setup: Setup) -> dict[str, Any]:
    """What fine-tunes ImageNet weights best in our measurements, for every family; the default.

    Source: AdamW, random resized crops, a colour jitter that keeps the hue, label smoothing 0.1, clipped
    gradients, stochastic depth 0.1 where the network takes it: common practice, put together here. The rates
    were measured on Grocery Store (benchmarks/RESULTS.md, val chose):
    - CNNs of under 10 million parameters: 0.002 for the backbone, 0.008 for what is new. In pilots of four
      epochs of a plain MobileNetV2 at 128 px val was 55.4, 62.2 and 67.9 with 0.0003, 0.001 and 0.002; six
      epochs of CRA-SMRA gave 81.7 on test, and 78.2 with a quarter of both and an average of the weights.
    - ViTs: one cycle with 0.0001 and 0.001. Three epochs of a plain ViT-Ti gave 80.1 on val, with 0.0003
      78.4; nine epochs 87.7 on test, 90.4 with the multi-stage ViT.
    - Larger CNNs take a quarter of the small ones' rates. That, other ViTs, more than nine epochs and the
      other parts one by one are not measured, nor whether it beats the papers' recipes on their data.
    CRAM's masks are normalised, at least 32 wide and learn as slowly as the backbone, without which
    these rates leave stages 4 and 5 a fixed gate (on the first guide's birds mask_variation was 0.03 and
    0.01, and is 0.66 and 0.50).
    Command: fgvc train --data birds --model crasmra-r50

    Neither mixup nor CutMix: what tells fine classes apart is a small part, which a share of the area does
    not weigh (Huang et al. 2021, SnapMix), and both papers' modules look for that part. No RandAugment
    either: solarising and posterising change the colour that is often the label; random resized crops and
    the jitter take its place. No average of the weights: the runs above had none. To try them: --set
    augment.mixup=0.2, --set augment.rand_augment=9, --set ema_decay=0.999.

    The rates hold for 32 images per update and grow with the square root of that number, as suits Adam
    (Malladi et al. 2022). The head of a plain backbone gets the rate of the modules' parts.
    """
    epochs = setup.epochs or 30
    batch_size = setup.batch_size or STRONG_BATCH
    scale = math.sqrt(batch_size * setup.batches / STRONG_BATCH)
    if setup.vit:
        backbone, parts = 1e-4, 1e-3
    else:
        backbone, parts = (2e-3, 8e-3) if setup.parameters < SMALL_CNN else (5e-4, 2e-3)
    # The multi-stage ViT cuts its own crops; elsewhere a margin keeps the centre crop on the object.
    resize_px = setup.input_px if setup.family == "vitms" else round(setup.input_px * 8 / 7)
    return {
        "options": ({"drop_path": 0.1} if setup.drop_path else {})
        | ({"fuse": "weighted"} | _LIVING_CRAM if setup.family == "crasmra" else {}),
        "preprocess": {"input_px": setup.input_px, "resize_px": resize_px},
        "augment": {"crop": "resized", "color_jitter": 0.3},
        "optim": {
            "name": "adamw",
            "lr_backbone": _rate(backbone * scale),
            "lr_smram": _rate(backbone * scale),
            "lr_cram": _rate(parts * scale),
            "lr_mask": _rate(backbone * scale) if setup.family == "crasmra" else None,
            "lr_heads": _rate(parts * scale),
            "weight_decay": 0.05,
            # The losses of CRA-SMRA sum to seven times that of one classifier.
            "clip_grad": 5.0 if setup.family == "crasmra" else 1.0,
        }
        | ({"schedule": "onecycle"} if setup.vit else {"warmup_epochs": min(3, epochs / 6)}),
        "loss": {"label_smoothing": 0.1},
        "epochs": epochs,
        "batch_size": batch_size,
    }


REFINE_STEP = 1 / 20
"""Of the rates of ``strong``."""


def refine(setup: Setup) -> dict[str, Any]:
    """Go on with a model that knows the classes, or some: what was corrected, or new images, in a few epochs.

    Source: ours: ``strong`` with a twentieth of its rates, so that what is known stays, and no stochastic
    depth.
    Command: fgvc train --data again.csv --init runs/birds
    Run time and score: of `groceries`, with 486 of its training images and 51 boxes, three epochs in 3 min on
    one core: 50 of 50 packages on other shelves in place of 47 (benchmarks/RESULTS.md); else not measured.
    """
    settings = strong(replace(setup, epochs=setup.epochs or 5))
    optim = settings["optim"]
    optim |= {
        name: _rate(rate * REFINE_STEP)
        for name, rate in optim.items()
        if name.startswith("lr_") and rate is not None
    }
    settings["options"].pop("drop_path", None)
    return settings


def _rate(value: float) -> float:
    """Four digits, so that what is printed is what was used."""
    return float(f"{value:.4g}")


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("crasmra-paper", ("crasmra", "timm"), crasmra_paper),
        Recipe("vitms-paper", ("vitms", "timm"), vitms_paper),
        Recipe("vitms-authors", ("vitms", "timm"), vitms_authors),
        Recipe("probe", ("crasmra", "vitms", "timm"), probe),
        Recipe("strong", ("crasmra", "vitms", "timm"), strong, asks_backbone=True),
        Recipe("refine", ("crasmra", "vitms", "timm"), refine, asks_backbone=True),
    )
}


def find_recipe(name: str, family: str) -> Recipe:
    """A recipe by its name; ``paper`` is that of the family's paper, a plain model having that of CRA-SMRA.

    Raises:
        FgvcError: an unknown name, with the nearest known ones; a recipe of another family.
    """
    if name == PAPER:
        return RECIPES["vitms-paper" if family == "vitms" else "crasmra-paper"]
    if name not in RECIPES:
        near = nearest(name, [*RECIPES, PAPER])
        raise FgvcError(
            f"No recipe is called {name!r}; expected {', '.join(RECIPES)}, or {PAPER} for that of the model.",
            f"Nearest: {', '.join(near)}." if near else "fgvc recipes describes them.",
            EXIT_USAGE,
        )
    recipe = RECIPES[name]
    if family not in recipe.families:
        fitting = [other.name for other in RECIPES.values() if family in other.families]
        raise FgvcError(
            f"Recipe {name} is for {' and '.join(f'{f}-' for f in recipe.families)} models, "
            f"the model is of {family}-.",
            f"Those that fit: {', '.join(fitting)}.",
            EXIT_USAGE,
        )
    return recipe
