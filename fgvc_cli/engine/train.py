"""``fgvc train``: options and a recipe -> settings -> a run -> where the model is and how good.

One training; ``engine.ablate`` trains tables of them.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fgvc_cli.command import Messages, box_settings, command
from fgvc_cli.config import SetText, TrainConfig, apply_sets, build, merge, stored_options
from fgvc_cli.data.labelled import LabelledSet
from fgvc_cli.datasets.check import look_before_training
from fgvc_cli.datasets.registry import ENTRIES, load_data
from fgvc_cli.engine.checkpoint import read_metadata
from fgvc_cli.engine.device import keep_freed_memory, pick_device, pick_devices
from fgvc_cli.engine.distributed import (
    ALONE,
    EndedByAnother,
    Silent,
    World,
    errors_end_all,
    find_world,
    gave_up,
    joined,
    launch,
    restarts,
)
from fgvc_cli.engine.learner import seed_everything
from fgvc_cli.engine.options import (
    DEFAULT,
    PAPER,
    REFINE,
    AblateOptions,
    Setup,
    TrainOptions,
    find_recipe,
    given_options,
    source_px,
)
from fgvc_cli.engine.run_state import (
    CHECKPOINT,
    RunState,
    TrainProgress,
    choose_run_dir,
    finished_run,
    load_state,
    make_run_dir,
    state_path,
)
from fgvc_cli.engine.trainer import Trainer
from fgvc_cli.engine.weights import read_manifest, resolve_weights
from fgvc_cli.errors import EXIT_USAGE, FgvcError, Interrupted, counted
from fgvc_cli.evaluate.metrics import check_labels, headline
from fgvc_cli.models.output import FgvcModel
from fgvc_cli.models.registry import backbone_traits, check_input_px, create_model, resolve
from fgvc_cli.models.weights import check_weight_file, load_classifiers, shared_classes

_SECTION_HINT = "For example: --set preprocess.input_px=224"
_FIELDS = (
    *("model", "recipe", "data", "dataset", "data_root", "split_by", "epochs", "batch_size", "seed", "init"),
    *("pretrained", "amp", "workers", "devices", "taxonomy"),
)
"""Options that are fields of ``TrainConfig``."""
_SAID_ELSEWHERE = ("model", "data", "boxes", "dataset", "data_root", "recipe", "workers")
"""Fields that the block of settings leaves out: the line above it says them, or they change no result."""


def plain_values(options: TrainOptions, processes: int = 1) -> dict[str, Any]:
    """What the user gave, laid over the recipe: nested plain values of ``TrainConfig``.

    Where none is named the recipe is ``strong``, and for a table of an ablation that of the model's paper.

    Args:
        processes: that train together, where others started them; else ``devices`` says it.

    Raises:
        FgvcError: an unknown model or recipe, a recipe of another family, an assignment that is none, weights
            to start from that are not there.
    """
    given = {name: getattr(options, name) for name in _FIELDS if getattr(options, name) is not None}
    given |= box_settings(options)
    given = apply_sets(given, list(options.set))
    sections = (("preprocess", "input_px", options.input_px), ("options", "stages", options.stages))
    for section, field, value in sections:
        inside = given.setdefault(section, {})
        if not isinstance(inside, dict):
            raise FgvcError(f"{section} is a section, got {inside!r}.", _SECTION_HINT, EXIT_USAGE)
        if value is not None:
            inside.setdefault(field, value)
    if processes > 1:
        given["devices"] = processes
    if str(given.get("init", "none")).lower() not in ("none", "null"):
        given["init"] = str(resolve_weights(str(given["init"]), option="--init")[0])
    resolved = resolve(str(given["model"]))
    family = resolved.name.partition("-")[0]
    usual = PAPER if isinstance(options, AblateOptions) else DEFAULT
    recipe = find_recipe(str(given.pop("recipe", usual)), family)
    traits = backbone_traits(resolved.backbone)._asdict() if recipe.asks_backbone else {}
    setup = Setup(
        family=family,
        backbone=resolved.backbone,
        dataset=str(given.get("dataset") or ""),
        input_px=_count(given["preprocess"].get("input_px"))
        or source_px(family, str(given.get("dataset") or "")),
        epochs=_count(given.get("epochs")),
        batch_size=_count(given.get("batch_size")),
        batches=(_count(given.get("devices")) or 1) * (_count(given.get("accumulate")) or 1),
        **traits,
    )
    return merge(recipe.settings(setup), given) | {"recipe": recipe.name}


def _count(value: Any) -> int | None:
    """A number from 1 as given; None for what is none, which validation refuses later in its own words."""
    text = str(value)
    return int(text) if text.isdigit() and int(text) > 0 else None


def with_data(config: TrainConfig, data: LabelledSet) -> TrainConfig:
    """The config of a model that tells as many labels per image as the data has.

    Branch weights are fitted on a val split to one class per image. Where a recipe wants them and the data
    has no such split, all branches count equally; what the user has set stays, to be refused.

    Raises:
        FgvcError: settings that say otherwise, or that several labels do not go with.
    """
    multi_label, options = data.multi_label, config.options
    check_labels(options.get("multi_label", multi_label), multi_label, config.sampling)
    fuse = options.get("fuse")
    if fuse == "weighted" and not isinstance(fuse, SetText) and (multi_label or not data.splits["val"]):
        options = options | {"fuse": "mean"}
    return config.model_copy(update={"options": options | {"multi_label": multi_label}})


def with_statistics(values: dict[str, Any], model: FgvcModel) -> TrainConfig:
    """Normalise as the starting weights expect, unless the user set it; record the options in full."""
    preprocess = {"mean": model.input_mean, "std": model.input_std} | values["preprocess"]
    options = model.config.model_dump()
    return build(TrainConfig, values | {"preprocess": preprocess, "options": options})


def resolved_config(values: dict[str, Any]) -> TrainConfig:
    """What ``config.json`` of a run with these values holds, without its data; nothing is downloaded.

    Raises:
        FgvcError: settings or a model that do not work.
    """
    config: TrainConfig = build(TrainConfig, values)
    model = create_model(
        config.model, 2, input_px=config.preprocess.input_px, init=config.init, options=config.options
    )
    config = with_statistics(values, model)
    check_input_px(model, config.augment.train_px or config.preprocess.input_px)
    return config


def settings_text(config: TrainConfig) -> str:
    """The recipe and, a line per section, what is not the default, each as ``--set`` takes it."""
    given, usual = config.model_dump(), TrainConfig(model=config.model).model_dump()
    usual["options"] = resolve(config.model).family.config().model_dump()
    lines = []
    single = _changed("", given, usual, skip=_SAID_ELSEWHERE)
    for section in (name for name, value in usual.items() if isinstance(value, dict)):
        changed = _changed(f"{section}.", given[section], usual[section])
        lines += [f"  {changed}"] if changed else []
    lines += [f"  {single}"] if single else []
    head = f"Recipe {config.recipe}" if config.recipe else "No recipe"
    what = "; what is not the default:" if lines else "; every setting is the default."
    return "\n".join([head + what, *lines])


def _changed(prefix: str, given: dict[str, Any], usual: dict[str, Any], skip: tuple[str, ...] = ()) -> str:
    return " ".join(
        f"{prefix}{name}={_text(value)}"
        for name, value in given.items()
        if name not in skip and not isinstance(value, dict) and value != usual.get(name)
    )


def _text(value: Any) -> str:
    """As ``--set`` reads it."""
    if isinstance(value, tuple | list):
        return ",".join(_text(part) for part in value)
    if value is None:
        return "none"
    return format(value, ".6g") if isinstance(value, float) else str(value)


_MAY_DIFFER = ("workers", "data", "data_root")
"""Options that may differ when a run is gone on with: none of them changes what it computes."""


SPLIT_LABELS = {"val_fitted": "val, with what was fitted on it:"}
"""What a set of figures is called in print, where its name does not say it."""


@dataclass(frozen=True)
class Trained:
    """A training that came to its end."""

    checkpoint: Path
    """``model.safetensors`` in its run folder."""
    epoch: int
    """Whose weights were kept."""
    metrics: dict[str, dict[str, float]]
    """Split -> metric -> value, of that epoch."""
    train_images: int | None = None
    """How many it was trained on; None: not recorded."""
    caveat: str = ""
    """What must be known of the set to read its scores; empty: nothing."""
    told: bool = False
    """Whether another process has printed it already."""

    @property
    def run_dir(self) -> Path:
        """Its folder."""
        return self.checkpoint.parent

    @property
    def text(self) -> str:
        """The result for people: a line for each split, and where the model is."""
        lines = [
            f"{SPLIT_LABELS.get(split, split)} {headline(values)} of "
            f"{counted(round(values['images']), 'image')}"
            for split, values in self.metrics.items()
        ]
        if self.train_images:
            lines.append(f"trained on {counted(self.train_images, 'image')}")
        if self.caveat and self.metrics:
            lines.append(self.caveat)
        chosen = "chosen on val" if "val" in self.metrics else "the last"
        return "\n".join([*lines, f"model of epoch {self.epoch}, {chosen}: {self.checkpoint}"])


@command(TrainOptions)
def train(options: TrainOptions) -> Trained:
    """Train a model on labelled images; the best epoch on validation is kept, then tested once.

    Raises:
        FgvcError: data, model, options or folder that do not work; the loss diverged.
        Interrupted: Ctrl-C or SIGTERM; what was done is saved.
        EndedByAnother: one of several processes failed, and has said why.
    """
    messages = options.speaker
    if options.resume is not None:
        _check_resume_options(options)
        given = {name: getattr(options, name) for name in _MAY_DIFFER if getattr(options, name) is not None}
        return resume(options.resume, given, device=options.device, messages=messages)
    options = with_default_model(options, messages)
    return start(
        plain_values(options, find_world().size),
        out=options.out,
        device=options.device,
        overwrite=options.overwrite,
        messages=messages,
    )


def with_default_model(options: TrainOptions, messages: Messages) -> TrainOptions:
    """Where no model is named, one that the data and the device suit, said with its reason.

    It starts from an embedded model, so that nothing is downloaded.

    Raises:
        FgvcError: no data either, or data that cannot be read.
    """
    if options.model or not (options.data or options.dataset):
        check_model_given(options)
        return options
    data = load_data(_data_config(options))
    images = data.counts()["train"]
    on_cuda = pick_device(options.device).type == "cuda"
    init = options.init or ("groceries-vit" if on_cuda else "groceries")
    document = _read_document(init)
    known = len(shared_classes(document["classes"], data.classes)) if options.init else 0
    if known:
        return _refined(options, document, known, data, messages)
    chosen = replace(
        options,
        model=document["model"],
        init=init,
        recipe=options.recipe or DEFAULT,
        input_px=options.input_px or DEFAULT_MODEL_PX,
        epochs=options.epochs or max(5, min(30, round(DEFAULT_MODEL_IMAGES / max(images, 1)))),
    )
    reason = "accurate for its size, for a GPU" if on_cuda else "light enough for a CPU"
    origin = f"from the embedded {init} (no download)" if init in read_manifest().entries else f"from {init}"
    reason = f", {reason}, {origin}" if options.init is None else f" {origin}, none of whose classes are here"
    messages.note(
        f"No --model given: {chosen.model}{reason}, "
        f"{chosen.input_px} px, recipe {chosen.recipe}, {chosen.epochs} epochs for "
        f"{counted(images, 'training image')}. Larger, with ImageNet weights from the net: --model "
        "crasmra-r50; fgvc models lists others."
    )
    return chosen


def _read_document(init: str) -> dict[str, Any]:
    """What a checkpoint says of itself: see ``Checkpoint.metadata``.

    Raises:
        FgvcError: no such file, or weights that do not say which model they are of.
    """
    path, _ = resolve_weights(init, option="--init")
    check_weight_file(path)
    try:
        return read_metadata(path)
    except FgvcError as error:
        message = f"--init {init} without --model: {error.message.removesuffix('.')}, and names no model."
        hint = f"Give --model NAME too, or --init RUN, or one of {', '.join(read_manifest().entries)}."
        raise FgvcError(message, hint, EXIT_USAGE) from error


def _refined(
    options: TrainOptions, document: dict[str, Any], known: int, data: LabelledSet, messages: Messages
) -> TrainOptions:
    """A training that goes on from a model which knows some of the classes: its network and its input."""
    stored, trained = document["preprocess"], document["config"]
    own = {
        f"options.{name}": value
        for name, value in stored_options(document["options"]).items()
        # Stochastic depth is a recipe's.
        if name not in ("multi_label", "pretrained_tag", "drop_path")
    }
    if own.get("options.fuse") == "weighted" and (data.multi_label or not data.splits["val"]):
        del own["options.fuse"]  # as ``with_data``: there is nothing to fit the weights on
    if options.input_px in (None, stored["input_px"]):
        own |= {"preprocess.resize_px": stored["resize_px"], "preprocess.resize_rule": stored["resize_rule"]}
        if trained.get("augment", {}).get("train_px"):
            own["augment.train_px"] = trained["augment"]["train_px"]
    recipe = options.recipe or REFINE
    classes, px = counted(len(data.classes), "class", "classes"), options.input_px or stored["input_px"]
    messages.note(
        f"Going on from {options.init}, which knows {known:,} of the {classes}: {document['model']}, "
        f"{px} px, recipe {recipe}."
    )
    return replace(
        options,
        model=document["model"],
        recipe=recipe,
        input_px=px,
        set=(*(f"{name}={json.dumps(value).strip(chr(34))}" for name, value in own.items()), *options.set),
    )


def _data_config(options: TrainOptions) -> TrainConfig:
    """What was given of the data and its splits, for a model that is not known yet."""
    names = ("data", "dataset", "data_root", "split_by", "taxonomy")
    given = {name: getattr(options, name) for name in names} | {"model": "none"} | box_settings(options)
    config: TrainConfig = build(TrainConfig, apply_sets(given, list(options.set)))
    return config


DEFAULT_MODEL_PX = 224
"""Input of the model that is taken where none is named, pixels a side."""
DEFAULT_MODEL_IMAGES = 40_000
"""How many images it sees in all, within 5 to 30 epochs."""


def check_model_given(options: TrainOptions) -> None:
    """Raise FgvcError where there is nothing to train; data that cannot be read are named first."""
    if options.model:
        return
    if options.data or options.dataset:
        load_data(_data_config(options))
    raise FgvcError(
        "Give --model NAME, or --resume RUN to go on with an interrupted training.",
        "For example: fgvc train --data birds --model crasmra-r50",
        EXIT_USAGE,
    )


def start(
    values: dict[str, Any],
    *,
    out: Path | None,
    device: str = "auto",
    overwrite: bool = False,
    messages: Messages | None = None,
    look: bool = True,
) -> Trained:
    """Train with plain nested values of ``TrainConfig``, recipe and all; otherwise as ``train``.

    Args:
        look: at the images first; False where that was done.
    """
    messages = messages or Messages()
    world = find_world()
    config: TrainConfig = build(TrainConfig, values)
    data = load_data(config)
    if world.is_main:
        # What the listing took in another way than it is written, and what no score will tell.
        for note in data.notes:
            messages.note(note)
        for note in look_before_training(data) if look else ():
            messages.warn(note)
    config = with_data(config, data)
    values = values | {"options": config.options}
    # Only the main one of several processes looks at the folder: the others may see its files.
    run_dir = choose_run_dir(out, config, data.name, overwrite or not world.is_main or restarts() > 0)
    if restarts() and state_path(run_dir).is_file():
        return resume(run_dir, {}, device=device, messages=messages)
    target = _own_device(device, config, world)
    seed_everything(config.seed)
    model = create_model(
        config.model,
        len(data.classes),
        input_px=config.preprocess.input_px,
        pretrained=config.pretrained,
        init=config.init,
        options=config.options,
    )
    if config.init:
        kept, source = load_classifiers(model, Path(config.init), data.classes), Path(config.init).name
        if kept and world.is_main:
            messages.note(f"{kept:,} of {len(data.classes):,} classes begin with what {source} knows.")
        elif config.recipe == REFINE and world.is_main:
            messages.warn(
                f"No classifier of {source} fits this model and these classes: they begin anew, at the "
                f"small rates of {REFINE}. --recipe {DEFAULT} trains a new one."
            )
    config = with_statistics(values, model)
    check_input_px(model, config.augment.train_px or config.preprocess.input_px)
    return _train(model, config, data, run_dir, target, world, messages)


def resume(
    run_dir: Path, given: dict[str, Any], *, device: str = "auto", messages: Messages | None = None
) -> Trained:
    """Go on with an interrupted training, by the settings it was started with.

    Args:
        run_dir: its run folder.
        given: ``workers``, ``data`` and ``data_root`` (where the same images lie now), where they differ.

    Raises:
        FgvcError: no state to go on from, images that changed; and what ``train`` raises.
    """
    messages = messages or Messages()
    if not state_path(run_dir).is_file() and (ended := _read_result(run_dir)):
        messages.note(f"{run_dir} is finished; nothing to go on with.")
        return ended
    state = load_state(run_dir)
    config = state.config = build(TrainConfig, state.config.model_dump() | given)
    option = "--data-root" if config.dataset else "--data"
    elsewhere = f"If they lie elsewhere now: fgvc train --resume {shlex.quote(str(run_dir))} {option} FOLDER"
    try:
        data = load_data(config)
    except FgvcError as error:
        raise FgvcError(
            f"The images of {run_dir} cannot be read: {error.message}",
            elsewhere + ("" if config.dataset else " (or CSV)"),
            error.exit_code,
        ) from error
    if data.sha256() != state.data_sha256:
        raise FgvcError(
            f"The images, labels or splits of {data.name} are not those that {run_dir} was trained on.",
            f"Put them back, or train again with another --out. {elsewhere}",
        )
    world = find_world()
    if config.devices > 1 and world.size == 1:
        arguments = {"device": device, **given}
        options = [text for key, value in arguments.items() for text in (_as_option(key), str(value))]
        return _launch(run_dir, config.devices, options)
    if config.devices != world.size:
        raise FgvcError(
            f"{run_dir} was started with {config.devices} processes, this is one of {world.size}.",
            f"Start {config.devices}: its batches are dealt to so many.",
        )
    target = _own_device(device, config, world)
    seed_everything(config.seed)
    model = create_model(
        config.model, len(data.classes), input_px=config.preprocess.input_px, options=config.options
    )
    return _train(model, config, data, run_dir, target, world, messages, state)


def _train(
    model: FgvcModel,
    config: TrainConfig,
    data: LabelledSet,
    run_dir: Path,
    target: torch.device,
    world: World,
    messages: Messages,
    state: RunState | None = None,
) -> Trained:
    def trainer(device: torch.device) -> Trainer:
        keep_freed_memory()
        observer = TrainProgress(messages, config.epochs, run_dir) if world.is_main else Silent(messages)
        made = Trainer(model, config, data, run_dir, device, observer, state, world)
        if world.is_main and not state:
            make_run_dir(run_dir)
        return made

    if config.devices > 1 and world == ALONE:
        messages.note(settings_text(config))
        # This process only starts the others: on a card it would take memory from the first of them.
        trainer(torch.device("cpu")).prepare()
        return _launch(run_dir, config.devices, ["--device", target.type])
    if restarts() and gave_up(run_dir):
        raise EndedByAnother
    with joined(world, target), errors_end_all(run_dir) if config.devices > 1 else contextlib.nullcontext():
        return _run(trainer(target), messages, state)


def _launch(run_dir: Path, devices: int, arguments: list[str]) -> Trained:
    launch(run_dir, devices, arguments)
    ended = _read_result(run_dir)
    if ended is None:
        raise FgvcError(f"{run_dir} is not finished, though its processes have ended.", None)
    return replace(ended, told=True)


def _run(trainer: Trainer, messages: Messages, state: RunState | None) -> Trained:
    run_dir, talks = trainer.run_dir, trainer.world.is_main
    if talks:
        messages.note(_head(trainer))
    if talks and not state:
        messages.note(settings_text(trainer.config))
    if state and talks and (state.progress.epoch, state.progress.batches) != (1, 0):
        done = state.progress
        messages.note(f"Going on in epoch {done.epoch}, after {done.batches} batches of it.")
    if talks and not state and trainer.world == ALONE:
        _tell_duration(trainer, messages)
    try:
        with trainer.observer:
            result = trainer.run()
    except KeyboardInterrupt:
        if not talks:
            raise Interrupted from None
        kept = f"epoch {trainer.best_epoch}, the best so far, is kept: {run_dir / CHECKPOINT}"
        messages.note(f"Interrupted; {kept if trainer.best else 'no epoch is done'}.")
        if state_path(run_dir).is_file():
            again = shlex.join(["fgvc", "train", "--resume", str(run_dir)])
            messages.note(f"To go on: {again}")
        raise Interrupted from None
    return Trained(
        result.checkpoint,
        result.best_epoch,
        result.metrics,
        len(trainer.data.splits["train"]),
        trainer.data.caveat,
        told=not talks,
    )


WORTH_TELLING_S = 300
"""Trainings that are expected to be shorter start without a word about it."""
LONG_S = 12 * 3600
"""What is expected to take longer is told with what would be shorter."""


def _tell_duration(trainer: Trainer, messages: Messages) -> None:
    """Say how long the training will take, by two measured steps, where that is long."""
    config, count = trainer.config, trainer.data.counts()
    side = config.augment.train_px or config.preprocess.input_px
    # Whatever the network, so little work is short.
    if config.epochs * count["train"] * side**2 < 2e3 * DEFAULT_MODEL_PX**2:
        return
    per_image = trainer.learner.seconds_per_image(side)
    if per_image is None:
        return
    # Validation has the forward pass only, about a third of a step.
    seconds = config.epochs * per_image * (count["train"] + count["val"] / 3)
    if seconds < WORTH_TELLING_S:
        return
    line = (
        f"About {in_words(seconds)} for {counted(config.epochs, 'epoch')} on {trainer.device} "
        f"({1 / per_image:.3g} images/s in two steps tried now, without decoding)"
    )
    if seconds > LONG_S:
        fitting = max(1, int(config.epochs * LONG_S / seconds))
        line += (
            f". To shorten it: --input-px {max(128, side // 2)}, --epochs {fitting}, --amp bf16, or a "
            "lighter --model"
        )
    messages.note(f"{line}.")


def in_words(seconds: float) -> str:
    """A duration as people say it: ``12 min``, ``3 h 40 min``, ``2 days``."""
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes / 1440:.0f} days"


def _head(trainer: Trainer) -> str:
    config, data = trainer.config, trainer.data
    counts = ", ".join(f"{count:,} {split}" for split, count in data.counts().items())
    where = f"{config.devices} processes, {trainer.device.type}" if config.devices > 1 else trainer.device
    return f"{config.model} on {data.name}: {len(data.classes)} classes, {counts} images, {where}."


def _own_device(name: str, config: TrainConfig, world: World) -> torch.device:
    """The device of this process among those of its machine.

    Raises:
        FgvcError: fewer devices than processes; settings that need CUDA.
    """
    if config.devices > 1 and name not in ("auto", "cpu", "cuda"):
        pick_device(name)  # a name that is none is told first
        raise FgvcError(
            f"--device {name} is one device, this trains on {config.devices}.",
            "Use --device auto, cpu or cuda; CUDA_VISIBLE_DEVICES chooses among several.",
            EXIT_USAGE,
        )
    if config.devices > 1 and world == ALONE:
        target = pick_device(pick_devices(name, config.devices)[0].partition(":")[0])
    else:
        target = pick_device(name)
    if config.devices > 1 and target.type == "cuda" and world != ALONE:
        target = pick_device(f"cuda:{world.local_rank}")
    if config.sync_batchnorm and target.type != "cuda":
        raise FgvcError(
            f"sync_batchnorm needs CUDA devices, this trains on {target}.", "Leave it out.", EXIT_USAGE
        )
    return target


def _check_resume_options(options: TrainOptions) -> None:
    other = given_options(options, "resume", "device", *_MAY_DIFFER)
    if other:
        raise FgvcError(
            f"--resume goes on by the run's own settings, got {', '.join(other)}.",
            "Leave them out; --device, --workers, --data and --data-root may be given.",
            EXIT_USAGE,
        )


def _as_option(field: str) -> str:
    return "--" + field.replace("_", "-")


def _read_result(run_dir: Path) -> Trained | None:
    """What a finished run says of itself; None of one that is not."""
    metadata = finished_run(run_dir)
    if metadata is None:
        return None
    entry = ENTRIES.get(metadata["config"].get("dataset") or "")
    return Trained(
        run_dir / CHECKPOINT,
        metadata.get("epoch", 0),
        metadata["metrics"],
        metadata.get("train_images"),
        entry.caveat if entry else "",
    )
