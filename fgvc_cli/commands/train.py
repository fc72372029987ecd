"""fgvc train: options -> TrainConfig -> run -> where the model is and how good."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgvc_cli.commands.console import stderr_console
from fgvc_cli.config import PAPER_INPUT_PX, TrainConfig
from fgvc_cli.engine.recipes import default_recipe
from fgvc_cli.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, FgvcError
from fgvc_cli.sections import apply_sets, build, merge

if TYPE_CHECKING:
    from torch import nn

    from fgvc_cli.engine.trainer import TrainResult

_SECTION_HINT = "For example: --set preprocess.input_px=224"


def run(flags: dict[str, Any], *, sets: list[str], out: Path | None, device: str, overwrite: bool) -> int:
    """Train a model.

    Args:
        flags: TrainConfig fields given as options, ``input_px`` and ``stages``; None where not given.
        sets: ``section.field=value`` assignments, laid over the flags.
        out: run folder; None chooses ``runs/<model>-<data>``.

    Raises:
        FgvcError: data, model, options or folder that do not work; the loss diverged.
    """
    values = _plain_values(flags, sets)
    config: TrainConfig = build(TrainConfig, values)
    from fgvc_cli.data.load import load_data

    data = load_data(config)
    run_dir = _choose_run_dir(out, config, data.name, overwrite)

    from fgvc_cli.commands.train_progress import TrainProgress
    from fgvc_cli.engine.allocator import keep_freed_memory
    from fgvc_cli.engine.device import pick_device
    from fgvc_cli.engine.trainer import CHECKPOINT, Trainer, seed_everything
    from fgvc_cli.models.registry import check_input_px, create_model

    target = pick_device(device)
    keep_freed_memory()
    seed_everything(config.seed)
    model = create_model(
        config.model,
        len(data.classes),
        input_px=config.preprocess.input_px,
        pretrained=config.pretrained,
        init=config.init,
        options=config.options,
    )
    config = _with_statistics(config, values, model)
    check_input_px(model, config.augment.train_px or config.preprocess.input_px)
    console = stderr_console()
    trainer = Trainer(model, config, data, run_dir, target, TrainProgress(console, config.epochs, run_dir))
    _make_run_dir(run_dir)
    counts = ", ".join(f"{count:,} {split}" for split, count in data.counts().items())
    head = f"{config.model} on {data.name}: {len(data.classes)} classes, {counts} photographs, {target}."
    console.print(head, markup=False)
    try:
        with trainer.observer:
            result = trainer.run()
    except KeyboardInterrupt:
        kept = run_dir / CHECKPOINT
        fate = f"the best epoch so far is kept: {kept}" if kept.exists() else "no epoch was finished"
        console.print(f"Interrupted; {fate}.", markup=False)
        return EXIT_INTERRUPTED
    _print_result(result)
    return EXIT_OK


def _print_result(result: TrainResult) -> None:
    for split, metrics in result.metrics.items():
        print(f"{split} top-1 {100 * metrics['top1']:.2f} % of {metrics['images']:.0f} photographs")
    print(f"model of epoch {result.best_epoch}, chosen on val: {result.checkpoint}")


def _plain_values(flags: dict[str, Any], sets: list[str]) -> dict[str, Any]:
    """What the user gave, laid over the recipe of the model's family."""
    given = {name: value for name, value in flags.items() if value is not None}
    input_px, stages = given.pop("input_px", None), given.pop("stages", None)
    given = apply_sets(given, sets)
    for section, field, value in (("preprocess", "input_px", input_px), ("options", "stages", stages)):
        inside = given.setdefault(section, {})
        if not isinstance(inside, dict):
            raise FgvcError(f"{section} is a section, got {inside!r}.", _SECTION_HINT, EXIT_USAGE)
        if value is not None:
            inside.setdefault(field, value)
    side = str(given["preprocess"].get("input_px", PAPER_INPUT_PX))
    recipe = default_recipe(given["model"])(int(side) if side.isdigit() else PAPER_INPUT_PX)
    return merge(_fitting(recipe, given), given)


def _fitting(recipe: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The recipe for a run so short that its frozen epochs would be all of it."""
    frozen, epochs = recipe.get("optim", {}).get("freeze_epochs", 0), str(given.get("epochs", ""))
    if epochs.isdigit() and 0 < int(epochs) <= frozen:
        return merge(recipe, {"optim": {"freeze_epochs": int(epochs) - 1}})
    return recipe


def _with_statistics(config: TrainConfig, values: dict[str, Any], model: nn.Module) -> TrainConfig:
    """Normalise as the starting weights expect, unless the user set it; record the options in full."""
    preprocess = {"mean": model.input_mean, "std": model.input_std} | values["preprocess"]
    options = model.config.model_dump()  # type: ignore[operator, union-attr]
    return build(TrainConfig, values | {"preprocess": preprocess, "options": options})


def _choose_run_dir(out: Path | None, config: TrainConfig, data_name: str, overwrite: bool) -> Path:
    run_dir = out or Path("runs") / f"{config.model}-{data_name}".replace("/", "_").replace(":", "_")
    if run_dir.exists() and not run_dir.is_dir():
        raise FgvcError(f"--out {run_dir} is a file, expected a folder.", "Choose another --out.")
    if run_dir.is_dir() and not overwrite and any(run_dir.iterdir()):
        raise FgvcError(
            f"The run folder {run_dir} is not empty.", "Choose another --out, or replace it with --overwrite."
        )
    return run_dir


def _make_run_dir(run_dir: Path) -> None:
    """Made only once everything else is known to work, so that a mistake leaves no empty folder."""
    from fgvc_cli.engine.trainer import RUN_FILES

    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        # What an earlier run left must not be taken for this one's.
        for name in RUN_FILES:
            (run_dir / name).unlink(missing_ok=True)
        probe = run_dir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise FgvcError(f"Cannot write to {run_dir}: {error.strerror}.", "Choose another --out.") from error
