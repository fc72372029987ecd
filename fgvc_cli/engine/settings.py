"""Options and a recipe -> the settings of a training, and these as a person reads them."""

from __future__ import annotations

from typing import Any

from fgvc_cli.command import box_settings
from fgvc_cli.config import SetText, TrainConfig, apply_sets, build, merge
from fgvc_cli.data.labelled import LabelledSet
from fgvc_cli.engine.options import (
    DEFAULT,
    PAPER,
    AblateOptions,
    Setup,
    TrainOptions,
    find_recipe,
    source_px,
)
from fgvc_cli.engine.weights import resolve_weights
from fgvc_cli.errors import EXIT_USAGE, FgvcError
from fgvc_cli.evaluate.metrics import check_labels
from fgvc_cli.models.output import FgvcModel
from fgvc_cli.models.registry import backbone_traits, check_input_px, create_model, resolve

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


def with_statistics(config: TrainConfig, values: dict[str, Any], model: FgvcModel) -> TrainConfig:
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
    config = with_statistics(config, values, model)
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
