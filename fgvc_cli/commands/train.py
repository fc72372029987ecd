"""fgvc train: options -> TrainConfig -> run -> where the model is and how good."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvc_cli.commands.console import stderr_console
from fgvc_cli.commands.run_folder import choose_run_dir, finished_run, make_run_dir
from fgvc_cli.commands.train_devices import OnlyWarnings, errors_end_all, gave_up, launch
from fgvc_cli.commands.train_settings import (
    as_json,
    plain_values,
    resolved_config,
    settings_text,
    with_labels,
    with_statistics,
)
from fgvc_cli.config import TrainConfig, build
from fgvc_cli.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, FgvcError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fgvc_cli.data.labelled import LabelledSet
    from fgvc_cli.engine.distributed import World
    from fgvc_cli.engine.run_state import RunState
    from fgvc_cli.engine.trainer import Trainer

_RESUME_FLAGS = ("workers", "data", "data_root")
"""Fields that may differ when a run is gone on with: none of them changes what it computes."""


def run(flags: dict[str, Any], *, sets: list[str], out: Path | None, device: str, overwrite: bool) -> int:
    """Train a model.

    Args:
        flags: TrainConfig fields given as options, ``input_px`` and ``stages``, None where not given; and
            ``show_config``, with which the settings are printed and nothing is trained.
        sets: ``section.field=value`` assignments, laid over the flags.
        out: run folder; None chooses ``runs/<model>-<data>``.

    Raises:
        FgvcError: data, model, options or folder that do not work; the loss diverged.
    """
    from fgvc_cli.engine.distributed import find_world

    check_model_given(flags)
    fields = {name: value for name, value in flags.items() if name != "show_config"}
    values = plain_values(fields, sets, find_world().size)
    if flags.get("show_config"):
        print(as_json(resolved_config(values)))
        return EXIT_OK
    return start(values, out=out, device=device, overwrite=overwrite)


def check_model_given(flags: dict[str, Any]) -> None:
    """Whether there is something to train.

    Raises:
        FgvcError: there is not.
    """
    if not flags.get("model"):
        raise FgvcError(
            "Give --model NAME, or --resume RUN to go on with an interrupted training.",
            "For example: fgvc train --data birds --model crasmra-r50",
            EXIT_USAGE,
        )


def start(values: dict[str, Any], *, out: Path | None, device: str, overwrite: bool) -> int:
    """Train with plain nested values of ``TrainConfig``, recipe and all; otherwise as ``run``."""
    from fgvc_cli.datasets.registry import load_data
    from fgvc_cli.engine.distributed import find_world, restarts
    from fgvc_cli.engine.run_state import state_path

    world = find_world()
    config: TrainConfig = build(TrainConfig, values)
    data = load_data(config)
    if world.is_main:
        from fgvc_cli.datasets.preflight import look_before_training

        for note in look_before_training(data):
            stderr_console().print(f"warning: {note}", markup=False, soft_wrap=True)
    config = with_labels(config, data.multi_label)
    values = values | {"options": config.options}

    from fgvc_cli.engine.learner import seed_everything
    from fgvc_cli.models.registry import check_input_px, create_model

    # Only the main one of several processes looks at the folder: the others may see its files.
    run_dir = choose_run_dir(out, config, data.name, overwrite or not world.is_main or restarts() > 0)
    if restarts() and state_path(run_dir).is_file():
        return resume(run_dir, {}, sets=[], out=None, device=device, overwrite=False)
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
    config = with_statistics(config, values, model)
    check_input_px(model, config.augment.train_px or config.preprocess.input_px)
    return _train(model, config, data, run_dir, target, world)


def resume(
    run_dir: Path, flags: dict[str, Any], *, sets: list[str], out: Path | None, device: str, overwrite: bool
) -> int:
    """Go on with an interrupted training, by the settings it was started with.

    Args:
        run_dir: its run folder.
        flags: as ``run``; only ``workers``, ``data`` and ``data_root`` (where the same photographs lie now)
            may be given.

    Raises:
        FgvcError: other options, no state to go on from, photographs that changed; and what ``run`` raises.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    _check_resume_options(given, sets, out, overwrite)
    from fgvc_cli.datasets.registry import load_data
    from fgvc_cli.engine.distributed import find_world
    from fgvc_cli.engine.learner import seed_everything
    from fgvc_cli.engine.run_state import load_state, state_path
    from fgvc_cli.models.registry import create_model

    if not state_path(run_dir).is_file() and _tell_finished(run_dir):
        return EXIT_OK
    state = load_state(run_dir)
    config = state.config = build(TrainConfig, state.config.model_dump() | given)
    option = "--data-root" if config.dataset else "--data"
    elsewhere = f"If they lie elsewhere now: fgvc train --resume {shlex.quote(str(run_dir))} {option} FOLDER"
    try:
        data = load_data(config)
    except FgvcError as error:
        raise FgvcError(
            f"The photographs of {run_dir} cannot be read: {error.message}",
            elsewhere + ("" if config.dataset else " (or CSV)"),
            error.exit_code,
        ) from error
    if data.sha256() != state.data_sha256:
        raise FgvcError(
            f"The photographs, labels or splits of {data.name} are not those that {run_dir} was trained on.",
            f"Put them back, or train again with another --out. {elsewhere}",
        )
    world = find_world()
    if config.devices > 1 and world.size == 1:
        arguments = {"device": device, **given}
        options = [text for key, value in arguments.items() for text in (_as_option(key), str(value))]
        return launch(run_dir, config.devices, options)
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
    return _train(model, config, data, run_dir, target, world, state)


def _train(
    model: nn.Module,
    config: TrainConfig,
    data: LabelledSet,
    run_dir: Path,
    target: torch.device,
    world: World,
    state: RunState | None = None,
) -> int:
    from fgvc_cli.engine.distributed import ALONE, joined, restarts

    if config.devices > 1 and world == ALONE:
        stderr_console().print(settings_text(config), markup=False)
        _trainer(model, config, data, run_dir, target, world).prepare()
        return launch(run_dir, config.devices, ["--device", target.type])
    if restarts() and gave_up(run_dir):
        return EXIT_ERROR
    with joined(world, target), errors_end_all(run_dir) if config.devices > 1 else nullcontext():
        return _run(_trainer(model, config, data, run_dir, target, world, state), state)


def _trainer(
    model: nn.Module,
    config: TrainConfig,
    data: LabelledSet,
    run_dir: Path,
    target: torch.device,
    world: World,
    state: RunState | None = None,
) -> Trainer:
    from fgvc_cli.commands.train_progress import TrainProgress
    from fgvc_cli.engine.device import keep_freed_memory
    from fgvc_cli.engine.trainer import Trainer

    keep_freed_memory()
    console = stderr_console()
    observer = TrainProgress(console, config.epochs, run_dir) if world.is_main else OnlyWarnings(console)
    trainer = Trainer(model, config, data, run_dir, target, observer, state, world)
    if world.is_main and not state:
        make_run_dir(run_dir)
    return trainer


def _run(trainer: Trainer, state: RunState | None) -> int:
    from fgvc_cli.engine.run_state import state_path
    from fgvc_cli.engine.trainer import CHECKPOINT

    console, run_dir, talks = stderr_console(), trainer.run_dir, trainer.world.is_main
    if talks:
        console.print(_head(trainer), markup=False)
    if talks and not state:
        console.print(settings_text(trainer.config), markup=False)
    if state and talks and (state.progress.epoch, state.progress.batches) != (1, 0):
        done = state.progress
        console.print(f"Going on in epoch {done.epoch}, after {done.batches} batches of it.", markup=False)
    try:
        with trainer.observer:
            result = trainer.run()
    except KeyboardInterrupt:
        if not talks:
            return EXIT_INTERRUPTED
        kept = f"epoch {trainer.best_epoch}, the best so far, is kept: {run_dir / CHECKPOINT}"
        console.print(
            f"Interrupted; {kept if trainer.best else 'no epoch is done'}.", markup=False, soft_wrap=True
        )
        if state_path(run_dir).is_file():
            command = shlex.join(["fgvc", "train", "--resume", str(run_dir)])
            console.print(f"To go on: {command}", markup=False, soft_wrap=True)
        return EXIT_INTERRUPTED
    if talks:
        data = trainer.data
        images = len(data.splits["train"])
        _print_result(result.checkpoint, result.best_epoch, result.metrics, images, data.caveat)
    return EXIT_OK


def _head(trainer: Trainer) -> str:
    config, data = trainer.config, trainer.data
    counts = ", ".join(f"{count:,} {split}" for split, count in data.counts().items())
    where = f"{config.devices} processes, {trainer.device.type}" if config.devices > 1 else trainer.device
    head = f"{config.model} on {data.name}: {len(data.classes)} classes, {counts} photographs, {where}."
    return "\n".join([head, *data.notes])


def _own_device(name: str, config: TrainConfig, world: World) -> torch.device:
    """The device of this process among those of its machine.

    Raises:
        FgvcError: fewer devices than processes; settings that need CUDA.
    """
    from fgvc_cli.engine.device import pick_device, pick_devices
    from fgvc_cli.engine.distributed import ALONE

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


def _check_resume_options(given: dict[str, Any], sets: list[str], out: Path | None, overwrite: bool) -> None:
    other = [_as_option(name) for name in given if name not in _RESUME_FLAGS]
    other += ["--set"] * bool(sets) + ["--out"] * bool(out) + ["--overwrite"] * overwrite
    if other:
        raise FgvcError(
            f"--resume goes on by the run's own settings, got {', '.join(other)}.",
            "Leave them out; --device, --workers, --data and --data-root may be given.",
            EXIT_USAGE,
        )


def _as_option(field: str) -> str:
    return "--" + field.replace("_", "-")


def _tell_finished(run_dir: Path) -> bool:
    """Whether a run is finished; if so, say it and print its result again."""
    from fgvc_cli.engine.trainer import CHECKPOINT

    metadata = finished_run(run_dir)
    if metadata is None:
        return False
    stderr_console().print(f"{run_dir} is finished; nothing to go on with.", markup=False, soft_wrap=True)
    from fgvc_cli.datasets.registry import ENTRIES

    entry = ENTRIES.get(metadata["config"].get("dataset") or "")
    _print_result(
        run_dir / CHECKPOINT,
        metadata.get("epoch", 0),
        metadata["metrics"],
        metadata.get("train_images"),
        entry.caveat if entry else "",
    )
    return True


def _print_result(
    checkpoint: Path,
    best_epoch: int,
    metrics: dict[str, dict[str, float]],
    train_images: int | None,
    caveat: str,
) -> None:
    from fgvc_cli.evaluate.multilabel import headline

    for split, values in metrics.items():
        print(f"{split} {headline(values)} of {values['images']:.0f} photographs")
    if train_images:
        print(f"trained on {train_images:,} images")
    if caveat and metrics:
        print(caveat)
    print(f"model of epoch {best_epoch}, {'chosen on val' if 'val' in metrics else 'the last'}: {checkpoint}")
