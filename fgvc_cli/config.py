"""Every setting once: type, default, unit, one line of documentation, validation.

A resolved ``TrainConfig`` is what a run prints, saves and stores in its checkpoint. Any field can be set on
the command line with ``--set section.field=value``. Nothing heavy is imported here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fgvc_cli.errors import EXIT_USAGE, FgvcError, nearest


class Section(BaseModel):
    """A frozen group of settings; unknown names and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _read_text(cls, values: Any) -> Any:
        """What ``none`` and a comma in a ``--set`` mean depends on the field."""
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        return {k: _from_text(v, fields[k].annotation) if k in fields else v for k, v in values.items()}


class SetText(str):
    """What ``--set`` was given; unlike other strings, its meaning depends on the field it is for."""


def _from_text(value: Any, annotation: Any) -> Any:
    if not isinstance(value, SetText):
        return value
    if value.lower() in ("none", "null") and type(None) in get_args(annotation):
        return None
    kinds = (annotation, *get_args(annotation))
    return value.split(",") if any(get_origin(kind) is tuple for kind in kinds) else value


def check_device_name(name: str) -> None:
    """Check the spelling of a device, not that it is there.

    Raises:
        FgvcError: it is not ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        number = f"cuda:{name}" if name.isdecimal() else None
        hint = f"Did you mean --device {number}?" if number else None
        raise FgvcError(f"--device got {name!r}, expected auto, cpu, cuda or cuda:N.", hint, EXIT_USAGE)


def worker_count(workers: int | Literal["auto"], processes: int = 1) -> int:
    """Processes that decode; ``auto`` is one per CPU, shared by the ``processes`` of this machine that
    compute."""
    return max(1, usable_cpus() // processes) if workers == "auto" else workers


def usable_cpus() -> int:
    """CPUs this process may run on; torch warns when there are more workers than that."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def build(cls: type[Section], values: dict[str, Any]) -> Any:
    """Construct a section from plain values.

    Raises:
        FgvcError: a value of the wrong type or range, or an unknown name, with the nearest known ones.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise _explain(error, cls) from None


def apply_sets(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Lay ``section.field=value`` strings over nested plain values; the values stay strings for validation.

    Raises:
        FgvcError: an assignment without ``=``.
    """
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise FgvcError(
                f"--set got {assignment!r}, expected section.field=value.",
                "For example: --set optim.lr_backbone=0.01",
                EXIT_USAGE,
            )
        *sections, last = name.strip().split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise FgvcError(
                    f"--set {name}: {section} is a single value, not a section.", None, EXIT_USAGE
                )
        place[last] = SetText(text.strip())
    return values


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested plain values over others; what ``above`` does not say stays."""
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge(merged[name], value) if both else value
    return merged


def _explain(error: ValidationError, cls: type[Section]) -> FgvcError:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"]) or "config"
    if first["type"] == "extra_forbidden":
        return FgvcError(f"Unknown setting {name!r}.", _nearest_setting(name, cls), EXIT_USAGE)
    reason = first["msg"].removeprefix("Value error, ")
    return FgvcError(f"Setting {name} got {first['input']!r}: {reason}.", None, EXIT_USAGE)


def _kinds(cls: type[Section]) -> Iterator[type[Section]]:
    for kind in cls.__subclasses__():
        yield kind
        yield from _kinds(kind)


def _nearest_setting(name: str, cls: type[Section]) -> str:
    """Settings of ``cls`` whose last name is near, written as they are typed."""
    paths: dict[str, str] = {}
    for path in _paths(cls):
        paths.setdefault(path.rpartition(".")[2], path)
    last = name.rpartition(".")[2]
    elsewhere = any(last in kind.model_fields for kind in _kinds(Section))
    if "options" in cls.model_fields and last not in paths and elsewhere:
        return f"Settings of the model are options: --set options.{last}=..."
    near = [paths[key] for key in nearest(last, sorted(paths))]
    return f"Nearest: {', '.join(near)}." if near else "See fgvc train --help."


def _paths(cls: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in cls.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _paths(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


Share = Annotated[float, Field(ge=0, le=1)]
Triple = tuple[float, float, float]
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)

PAPER_INPUT_PX = 448
PAPER_RESIZE_PX = 550


class BackboneOptions(Section):
    """What every family hands on to the constructor of its timm backbone."""

    drop_path: Share = 0.0
    """Stochastic depth: largest probability that a residual block is skipped while training."""
    padding: Literal["own", "same"] = "own"
    """Padding of strided convolutions: the architecture's own, or TensorFlow's SAME, for weights that were
    trained with it (timm's ``pad_type``; EfficientNet and MobileNet families)."""
    pretrained_tag: str | None = None
    """Which of timm's weights the backbone starts from, e.g. ``tv_in1k``; None: timm's default, or the tag
    that the model's name has."""
    closing: Literal["binary", "cells"] = "binary"
    """Object box: close the binary map of full size (the multi-stage ViT's paper, 2.1), or the coarse map's
    cells before it is resized, which makes most boxes nearly the whole image (models before this setting)."""
    closing_px: int = Field(3, ge=1, le=255)
    """Side of the square that a binary map is closed with, an odd number of pixels; 1: none."""
    min_area: Share = 64**2 / 448**2
    """Object box: components below this fraction of the image are specks (the authors' 64^2 of 448^2)."""
    multi_label: bool = False
    """Several labels per image, each with a probability of its own (sigmoid). The data decides it."""

    @model_validator(mode="after")
    def _closing_has_a_middle(self) -> Self:
        if self.closing_px % 2 == 0:
            raise ValueError(f"closing_px {self.closing_px} is even; an odd number has a middle")
        return self


_OPTIONS_BEFORE = {"closing": "cells", "min_area": 0.01}
_VIT_BEFORE = {"rollout_first": 1, "rollout_weight": "attention"}
"""What models did before these were settings, where that is not their default now."""


def stored_options(options: dict[str, Any]) -> dict[str, Any]:
    """A model's options as a checkpoint or a run folder has them, with those that did not exist yet."""
    multistage = "erase_prob" in options
    return _OPTIONS_BEFORE | (_VIT_BEFORE if multistage else {}) | options


class CraSmraConfig(BackboneOptions):
    """CRA-SMRA (Wang et al. 2025): every point the paper leaves open, and the switches of Tables 3-5."""

    closing: Literal["binary", "cells"] = "cells"
    """As for a multi-stage ViT, where ``binary`` is the default: the maps of a CNN fall to nothing around the
    object, so that both give nearly the same box (mean IoU with the truth on `aviary` 0.60)."""
    heat_floor: Share = 0.0
    """Object heat: what a place keeps of each stage's map where it does not rise; 0 lets each stage veto."""
    heat_smooth: bool = False
    """Object heat: average fine maps over the cells of the coarsest before they are multiplied."""
    channel_attention: Literal["cram", "cbam", "none"] = "cram"
    """Module after stages 3-5: the paper's CRAM, timm's CBAM in its place, or none (Table 3)."""
    smram: bool = True
    """Train with SMRAM and its diversity loss (Eq. 7-9); never part of the test graph."""
    reduction: int = Field(16, ge=1)
    """r of the shared MLP, C -> C/r -> C (Eq. 2)."""
    min_hidden: int = Field(1, ge=1)
    """Least width of that MLP's hidden layer (ours): C/16 leaves an EfficientNet-Lite0 2, 7 and 80."""
    mask_norm: Literal["none", "layer"] = "none"
    """LayerNorm on the pooled vectors in front of the MLP (ours), or none (paper)."""
    mask_init: Literal["default", "zero"] = "default"
    """Start of the MLP's second layer: torch's default, or zeros (ours), so that every I is 0.5 at first."""
    mask_sum: Literal["after_mlp", "before_mlp"] = "after_mlp"
    """MLP(avg) + MLP(max), as CBAM, or MLP(avg + max) (Eq. 1)."""
    softmax_of: Literal["mask", "logits"] = "mask"
    """I* is the softmax of the sigmoid outputs, literally, or of the values before it (Eq. 4)."""
    suppress_rule: Literal["threshold", "quantile"] = "threshold"
    """Suppress channels with I* >= delta * max I*, or the top fraction 1 - delta (Eq. 5)."""
    delta: Share = 0.9
    """Threshold of the suppression (Eq. 5, Table 4); with softmax_of=mask, below 0.368 all go."""
    omega: Share = 0.5
    """Factor on suppressed channels (Eq. 5)."""
    neck: Literal["light", "pmg"] = "light"
    """Conv_layer of Eq. 3: one 1x1, or 1x1 then 3x3, each with BN and ReLU."""
    neck_channels: int | None = Field(None, ge=1)
    """Ca, the unified channels of X_e; None: 512 for light, 1024 for pmg."""
    head_hidden: int = Field(512, ge=1)
    """Width of the classifier's hidden layer."""
    head_pool: Literal["avg", "max", "top5"] = "top5"
    """Pooling before each head: average, maximum, or mean of the 5 largest, which was measured to be best."""
    fuse: Literal["mean", "logits", "weighted"] = "mean"
    """Test output: mean of the four softmax (paper), softmax of summed logits, or a softmax mean with branch
    weights fitted on the validation split at the end of training (ours)."""
    smram_map: Literal["phi", "mean"] = "phi"
    """P_l from a learnt 1x1 convolution and BN (paper), or from the channel mean of X_e (ours)."""

    depths: tuple[int, int, int] | None = None
    """On a ViT: the blocks (from 1) after which its three stages end; None: thirds of the encoder."""

    @model_validator(mode="after")
    def _fusion_fits_the_labels(self) -> CraSmraConfig:
        if self.multi_label and self.fuse == "weighted":
            raise ValueError("fuse=weighted is fitted to one class per image: use mean or logits")
        return self

    @property
    def feature_channels(self) -> int:
        """Ca as a number."""
        return self.neck_channels or (512 if self.neck == "light" else 1024)


class BaselineConfig(BackboneOptions):
    """A plain timm classifier."""

    closing: Literal["binary", "cells"] = "cells"
    """As for CRA-SMRA."""
    drop_rate: Share = 0.0
    """Dropout in front of the classifier."""


class MultiStageVitConfig(BackboneOptions):
    """Multi-stage ViT (Conde & Turgutlu 2021): image, object, parts. Sizes are sides in pixels."""

    stages: Literal["main", "main+object", "all"] = "all"
    """Which stages run: the image, its object too, its parts too."""
    encoder_px: int | None = Field(None, ge=16, le=4096)
    """Side of what the encoder sees at each stage; crops come from the larger ``preprocess.input_px``.
    None: the backbone's own size."""
    threshold: Literal["mean", "otsu", "li", "triangle"] = "mean"
    """How the attention map is binarised for the object box (2.1)."""
    residual: Share = 0.5
    """Share of the identity in each layer of the rollout (Abnar & Zuidema 2020)."""
    rollout_first: int | None = Field(None, ge=1)
    """Lowest layer that enters the rollout, from 1; 1: all (paper). None: the upper half of the layers."""
    rollout_weight: Literal["attention", "norm"] = "norm"
    """What the rollout multiplies: attention (paper), or attention times the length of the value vectors
    (Kobayashi et al. 2020), which mutes tokens that are attended to but hand on nothing: such artefacts put
    the map's maximum into a corner of two in three shelf images."""
    parts: int = Field(2, ge=1, le=16)
    """Part crops per image (2.2)."""
    part_window: float = Field(112 / 384, gt=0, le=1)
    """Side of a part as a fraction of the object's side; the paper's 112 of 384."""
    part_iou: Share = 0.1
    """Windows that overlap more are not both parts (non-maximum suppression)."""
    part_score: Literal["mean", "gem", "max"] = "mean"
    """What a window scores: its mean attention (2.2), generalised mean with exponent 3, or maximum."""
    part_aspect: float = Field(1.0, ge=0.25, le=4)
    """Width of a window over its height; its area is that of the square of ``part_window``."""
    part_stride: int = Field(1, ge=1)
    """Distance between windows that are scored, in pixels of the encoder's input."""
    part_map: Literal["main", "object"] = "main"
    """Scores the windows: the object's cut of the first map (paper), or the object stage's map (ours)."""
    differentiable_crop: bool = False
    """Let gradients flow through the crops into the first stage's map (the paper's future work)."""
    erase_prob: Share = 0.5
    """P: fraction of the training images that lose their most attended pixels (2.3)."""
    erase_object_prob: Share = 0.0
    """Fraction of training images whose object crop loses its most attended pixels, drawn apart from
    ``erase_prob``; parts are then cut from what is left (the authors' code). Each takes one more pass."""
    erase_threshold: Share = 0.7
    """T: attention, of the map's maximum, above which a pixel is erased."""
    cascade: Share | None = None
    """Prediction only: an image whose fused confidence reaches this after a stage runs no further one (ours).
    None or 1: all take all."""

    @model_validator(mode="after")
    def _one_map_of_all_boxes(self) -> MultiStageVitConfig:
        if self.differentiable_crop and self.part_map == "object":
            raise ValueError("differentiable_crop reaches the first stage's map only: use part_map=main")
        return self


class Preprocess(Section):
    """From an upright RGB image to the model's input; stored in the checkpoint."""

    input_px: int = Field(PAPER_INPUT_PX, ge=32, le=4096)
    """Side of the square input, pixels."""
    resize_px: int = Field(PAPER_RESIZE_PX, ge=32, le=8192)
    """Side after resizing and before the crop, pixels; at least input_px."""
    resize_rule: Literal["squash", "shorter"] = "squash"
    """Both sides to resize_px (the paper's 550x550), or the shorter side, keeping the aspect ratio."""
    mean: Triple = IMAGENET_MEAN
    """Per-channel mean of the input in [0, 1]."""
    std: Triple = IMAGENET_STD
    """Per-channel standard deviation of the input in [0, 1]."""
    color_profile: Literal["srgb", "ignore"] = "srgb"
    """Bring the colours of images with an ICC profile (Display P3, Adobe RGB, ...) to those of sRGB, or take
    their values as they are, as every model did before there was this choice."""
    raw: Literal["preview", "develop"] = "preview"
    """Of camera RAW: the preview that the camera stored, or the sensor's data developed by LibRaw."""

    @model_validator(mode="after")
    def _crop_fits(self) -> Preprocess:
        if self.resize_px < self.input_px:
            raise ValueError(f"resize_px {self.resize_px} is smaller than input_px {self.input_px}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        return self


class Augment(Section):
    """What training does to an image; evaluation only resizes and crops the centre."""

    crop: Literal["center", "random", "resized"] = "center"
    """Centre crop (paper, 4.2), random crop (its relatives), or a random resized crop."""
    train_px: int | None = Field(None, ge=32)
    """Input side while training; None: the preprocess input_px. Smaller trains faster (FixRes)."""
    scale_min: Share = 0.35
    """Smallest fraction of the area of a random resized crop."""
    flip: bool = True
    """Horizontal flip with probability 0.5."""
    noise: Share = 0.0
    """Standard deviation of Gaussian noise added to every pixel, of the range of the image."""
    color_jitter: Share = 0.0
    """Strength of brightness, contrast and saturation jitter; hue, often the label itself, is kept."""
    rand_augment: int = Field(0, ge=0, le=30)
    """Magnitude of RandAugment with two operations; 0 is off."""
    erase: Share = 0.0
    """Probability of random erasing."""
    mixup: float = Field(0.0, ge=0)
    """Alpha of mixup (Zhang et al. 2018), one draw per batch; 0 is off. With ``cutmix`` each batch
    takes one of the two."""
    cutmix: float = Field(0.0, ge=0)
    """Alpha of CutMix (Yun et al. 2019), one draw per batch; 0 is off."""


class Optim(Section):
    """Optimiser and schedule; learning rates per parameter group as the paper gives them."""

    name: str = "momentum"
    """Any optimiser name of timm: ``momentum`` is SGD with momentum (paper), ``sgd`` its Nesterov variant."""
    lr_backbone: float = Field(0.0002, ge=0)
    """Backbone (paper)."""
    lr_smram: float = Field(0.0002, ge=0)
    """SMRAM (paper)."""
    lr_cram: float = Field(0.006, ge=0)
    """CRAM with its Conv_layer (paper)."""
    lr_mask: float | None = Field(None, ge=0)
    """The MLP behind CRAM's mask (Eq. 2) alone; None: as ``lr_cram``."""
    lr_heads: float = Field(0.002, ge=0)
    """Heads (the paper does not say); a plain baseline's classifier too, so that comparisons are fair."""
    momentum: Share = 0.9
    weight_decay: float = Field(1e-5, ge=0)
    warmup_epochs: float = Field(0, ge=0)
    """Linear warm-up before the cosine decay, epochs."""
    clip_grad: float | None = Field(None, gt=0)
    """Largest gradient norm; None: unclipped."""
    schedule: Literal["cosine", "onecycle"] = "cosine"
    """Cosine decay after the warm-up, or one cycle (Smith & Topin 2017), frozen epochs having their own."""
    onecycle_rise: float = Field(0.3, gt=0, lt=1)
    """Fraction of the updates of one cycle in which the rates rise."""
    freeze_rate: float = Field(1.0, gt=0)
    """Factor on all rates during ``freeze_epochs``, with one cycle only."""
    freeze_epochs: int = Field(0, ge=0)
    """First epochs, in which the backbone rests while everything else learns; it may be all of them."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """The backbone's learning rate falls by this factor per layer towards its start; None: one rate."""


class Loss(Section):
    """Eq. 10-12 of CRA-SMRA. The stages of a multi-stage ViT weigh 1 each (its Eq. 1), a plain model too."""

    alpha: float = Field(2.0, ge=0)
    """Weight of the sum of the stage losses."""
    beta: float = Field(1.0, ge=0)
    """Weight of the concat loss."""
    gamma: float = Field(1.0, ge=0)
    """Weight of the diversity loss (Table 5)."""
    part_loss: Literal["sum", "mean"] = "sum"
    """Losses of the part crops: summed (Eq. 1) or averaged (the authors' code)."""
    label_smoothing: Share = 0.0
    teacher: Share = 0.5
    """How much of each target is the probabilities of ``TrainConfig.teacher``; the rest is the label."""


class TrainConfig(Section):
    """One training run, whole."""

    model: str
    """Registry name."""
    recipe: str | None = None
    """Whose settings lie under those that were given; None: not known, from before recipes had names."""
    data: str | None = None
    """Folder or CSV of labelled images, as given."""
    dataset: str | None = None
    """Known data set in place of ``data``."""
    data_root: str | None = None
    """Folder that holds known data sets, as given; None: $FGVC_DATA."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The model family's own settings, e.g. ``options.delta``."""
    preprocess: Preprocess = Preprocess()
    augment: Augment = Augment()
    optim: Optim = Optim()
    loss: Loss = Loss()
    epochs: int = Field(200, ge=1)
    patience: int | None = Field(None, ge=1)
    """Stop after this many epochs in a row without a better one on validation; None: never."""
    batch_size: int = Field(20, ge=2)
    """Images of one forward pass; with several devices, on each."""
    devices: int = Field(1, ge=1)
    """Processes that train together, one per device, each with batches of ``batch_size``."""
    sync_batchnorm: bool = False
    """Batch norm over the batches of all devices; CUDA only."""
    accumulate: int = Field(1, ge=1)
    """Batches whose gradients make one update: that of a batch so many times larger, but for batch norm,
    which sees each batch alone."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """Each image once per epoch, or every class equally often in an epoch of the same length."""
    seed: int = Field(0, ge=0)
    """Of weights, order and augmentation."""
    split_seed: int = Field(0, ge=0)
    """Of the random division into splits; apart from ``seed``, so that several seeds share one test split."""
    val_share: Share = 0.1
    """Share of the training images held out to choose the checkpoint, where the set has no val split; 0:
    train on all of them and keep the last epoch."""
    test_share: Share = 0.2
    """Share held out for the final test, where the set has no split at all."""
    split_by: str | None = None
    """What stays on one side of a split that is made: ``folder`` (a camera or specimen in CLASS/CAMERA/),
    ``column=NAME`` of the label file, or ``minutes=5`` (bursts by folder and EXIF time). None: each image."""
    taxonomy: str | None = None
    """CSV of what the classes hang on (``class,order,family``); None: what a known set brings."""
    boxes: str | None = None
    """MegaDetector JSON, COCO JSON or CSV: each box is a sample, all of an image in one split."""
    box_conf: Share | None = None
    """Only boxes of at least this score, and those without one."""
    box_margin: Annotated[float, Field(ge=0, le=2)] | None = None
    """What is cut round a box, as a fraction of its sides, on each side."""
    box_category: tuple[str, ...] = ()
    """Only boxes of these categories, names or ids; none: all."""
    box_labels: Literal["auto", "image", "box"] = "auto"
    """What says the class of a box: its image, or its own category; auto: its image, where the data are more
    than a folder of images without folders of classes."""
    similar_names: Literal["refuse", "keep"] = "refuse"
    """Whether classes whose names differ only by case or blanks are refused, or kept as different ones."""
    workers: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """Processes that decode for each that trains; auto: all CPUs of the machine, shared by its devices."""
    amp: Literal["auto", "none", "bf16", "fp16"] = "auto"
    """Autocast of the forward pass: auto is bf16 on a card that has it, else none. none is strict float32;
    with the others a card multiplies in TF32 what stays float32. With fp16 the loss is scaled against
    underflow of its gradients."""
    compile: bool = False
    """Compile the model for training (``torch.compile``): a slow start, then faster steps."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Exponential moving average of the weights; what is validated and kept. None: off."""
    pretrained: bool = True
    """Start from timm's ImageNet weights (a download); ignored with ``init``."""
    init: str | None = None
    """Weight file to start from."""
    teacher: str | None = None
    """Trained model of the same classes to learn from beside the labels (distillation): an embedded model,
    a run folder or its file. ``loss.teacher`` says how much."""
    teacher_options: dict[str, Any] = Field(default_factory=dict)
    """Settings that the teacher answers with, e.g. ``teacher_options.stages=main`` for a quick one."""
    save_minutes: float = Field(10, ge=0)
    """Time between two savings of what ``--resume`` starts from, within an epoch; its end is always one."""
    tensorboard: bool = False
    """Write the lines of metrics.csv as TensorBoard events into the run folder too."""


_BEFORE = {"color_profile": "ignore"}
"""Fields of ``Preprocess`` that what was stored before there were such fields lacks, and what it did."""


def stored_preprocess(values: dict[str, Any]) -> Preprocess:
    """The ``Preprocess`` that a checkpoint, a run or a file of predictions has recorded.

    Raises:
        FgvcError: as ``build``.
    """
    preprocess: Preprocess = build(Preprocess, _BEFORE | values)
    return preprocess


def stored_config(values: dict[str, Any]) -> TrainConfig:
    """The ``TrainConfig`` that a training has recorded.

    Raises:
        FgvcError: as ``build``.
    """
    stored = values | {
        "preprocess": _BEFORE | values.get("preprocess", {}),
        "options": stored_options(values.get("options", {})),
    }
    config: TrainConfig = build(TrainConfig, stored)
    return config


def config_sha256(config: TrainConfig) -> str:
    """Hash of the resolved config, hex; names a run in its checkpoint."""
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()
