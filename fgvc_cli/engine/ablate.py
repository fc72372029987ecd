"""``fgvc train --ablate``: every row of a table with several seeds, one run folder each, resumed if cut.

A row is settings laid over those that the named model has by its recipe and by the command line, and differs
from these only as said in ``ABLATIONS``, whose entries are the tables. What the finished trainings say: lines
by seed and split, and by row of the table.
"""

from __future__ import annotations

import contextlib
import csv
import gc
import io
import json
import math
import re
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgvc_cli.charts.figures import draw_spread
from fgvc_cli.command import Messages, command
from fgvc_cli.config import BaselineConfig, MultiStageVitConfig, TrainConfig, build, merge, stored_config
from fgvc_cli.datasets.check import look_before_training
from fgvc_cli.datasets.registry import load_data
from fgvc_cli.engine import train as training
from fgvc_cli.engine.distributed import EndedByAnother, find_world
from fgvc_cli.engine.options import AblateOptions
from fgvc_cli.engine.run_state import CONFIG, METRICS, choose_run_dir, finished_run, state_path
from fgvc_cli.engine.train import plain_values, resolved_config
from fgvc_cli.errors import EXIT_USAGE, FgvcError, Interrupted, nearest
from fgvc_cli.evaluate.intervals import Interval, mean_and_deviation, paired_interval, verdict
from fgvc_cli.files import AtomicFile


@dataclass(frozen=True)
class Variant:
    """A row."""

    name: str
    """In tables, and in front of the seed in the name of a run folder."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Nested, laid over those of the training."""
    plain: bool = False
    """The backbone alone, with a linear classifier."""
    equal: bool = False
    """Plain, of a ViT: given as many patches as all crops of the multi-stage model have together."""


@dataclass(frozen=True)
class Ablation:
    """A table."""

    name: str
    family: str
    """Of the models that it takes apart."""
    about: str
    variants: tuple[Variant, ...]
    reference: str
    """The row that the others are compared with."""

    @property
    def paths(self) -> set[str]:
        """Settings that the rows fix, as ``--set`` names them."""
        return {path for variant in self.variants for path in _paths(variant.settings)}


@dataclass(frozen=True)
class Cell:
    """One training of a table."""

    variant: str
    seed: int
    values: dict[str, Any]
    """Of ``TrainConfig``, nested."""

    @property
    def name(self) -> str:
        """Of its run folder."""
        return f"{self.variant}-s{self.seed}"


def _sweep(section: str, field_name: str, values: tuple[Any, ...]) -> tuple[Variant, ...]:
    return tuple(Variant(f"{field_name}={value}", {section: {field_name: value}}) for value in values)


def _modules(attention: str, smram: bool, **options: Any) -> dict[str, Any]:
    return {"options": {"channel_attention": attention, "smram": smram, **options}}


_PAPER_MASK = {"mask_norm": "none", "min_hidden": 1}
_ALIVE_MASK = {"mask_norm": "layer", "min_hidden": 32}
_MODULE_RATES = ("lr_cram", "lr_smram", "lr_mask")
_TABLE3 = (
    Variant("plain", plain=True),
    Variant("heads", _modules("none", False)),
    Variant("cbam", _modules("cbam", False)),
    Variant("cram", _modules("cram", False)),
    Variant("cram+smram", _modules("cram", True)),
)
_DELTAS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_GAMMAS = (0.0, 0.5, 1.0, 1.5, 2.0)

ABLATIONS: dict[str, Ablation] = {
    ablation.name: ablation
    for ablation in (
        Ablation(
            "table3",
            "crasmra",
            "Table 3 of Wang et al. 2025: the backbone; with CBAM, CRAM, CRAM and SMRAM. Ours: heads, the "
            "necks and classifiers of three stages without attention, for what is theirs is not CRAM's",
            _TABLE3,
            "plain",
        ),
        Ablation(
            "masks",
            "crasmra",
            "As table3, with CRAM's MLP as the paper has it, and a normalised and wider one, which keeps "
            "its masks alive",
            (
                *_TABLE3[:3],
                Variant("cram-paper", _modules("cram", False, **_PAPER_MASK)),
                Variant("cram-alive", _modules("cram", False, **_ALIVE_MASK)),
                Variant("cram-alive+smram", _modules("cram", True, **_ALIVE_MASK)),
            ),
            "plain",
        ),
        Ablation(
            "delta",
            "crasmra",
            "Table 4: the threshold of CRAM's suppression; the values are ours, the paper's text has none",
            _sweep("options", "delta", _DELTAS),
            "delta=0.9",
        ),
        Ablation(
            "gamma",
            "crasmra",
            "Table 5: the weight of the diversity loss; values as for delta",
            _sweep("loss", "gamma", _GAMMAS),
            "gamma=1.0",
        ),
        Ablation(
            "necks",
            "crasmra",
            "Conv_layer of Eq. 3, ours",
            _sweep("options", "neck", ("light", "pmg")),
            "neck=light",
        ),
        Ablation(
            "head-pool",
            "crasmra",
            "Pooling before each head, ours",
            _sweep("options", "head_pool", ("avg", "max", "top5")),
            "head_pool=top5",
        ),
        Ablation(
            "smram-map",
            "crasmra",
            "What SMRAM's maps are made of, ours",
            _sweep("options", "smram_map", ("phi", "mean")),
            "smram_map=phi",
        ),
        Ablation(
            "stages",
            "vitms",
            "Stages of the multi-stage ViT (Conde & Turgutlu 2021), and without erasing; ours: the plain ViT "
            "on what its encoder sees, and on an image of as many patches as all its crops together. The "
            "same crops at test time alone: fgvc eval --weights RUN --stages all on a row of stages=main",
            (
                Variant("plain", plain=True),
                Variant("plain-equal", plain=True, equal=True),
                *_sweep("options", "stages", ("main", "main+object", "all")),
                Variant("no-erasing", {"options": {"stages": "all", "erase_prob": 0.0}}),
            ),
            "stages=main",
        ),
    )
}


def find_ablation(name: str) -> Ablation:
    """A table by its name.

    Raises:
        FgvcError: an unknown name, with the nearest known ones.
    """
    if name in ABLATIONS:
        return ABLATIONS[name]
    near = nearest(name, ABLATIONS)
    raise FgvcError(
        f"--ablate got {name!r}, expected {', '.join(ABLATIONS)}.",
        f"Nearest: {', '.join(near)}." if near else None,
        EXIT_USAGE,
    )


def order_variants(names: list[str]) -> list[str]:
    """Rows as the first table has them that knows them all; others by name."""
    for ablation in ABLATIONS.values():
        order = [variant.name for variant in ablation.variants]
        if {*names} <= {*order}:
            return sorted(names, key=order.index)
    return sorted(names)


def table_cells(ablation: Ablation, values: dict[str, Any], seeds: list[int]) -> list[Cell]:
    """All trainings of a table, seed by seed: a table that is cut is whole for its first seeds.

    Args:
        values: of ``TrainConfig`` for the model that is taken apart, recipe and all.

    Raises:
        FgvcError: a model of another family; settings that do not work.
    """
    family = str(values["model"]).partition("-")[0]
    if family != ablation.family:
        fitting = [other.name for other in ABLATIONS.values() if other.family == family]
        raise FgvcError(
            f"--ablate {ablation.name} takes a {ablation.family}- model apart, got {values['model']}.",
            f"For {family}- there is --ablate {', '.join(fitting)}."
            if fitting
            else f"Give --model {ablation.family}-<timm name>; the plain backbone is a row of table3.",
            EXIT_USAGE,
        )
    rows = {variant.name: _variant_values(variant, values) for variant in ablation.variants}
    return [
        Cell(variant.name, seed, rows[variant.name] | {"seed": seed})
        for seed in seeds
        for variant in ablation.variants
    ]


def _variant_values(variant: Variant, values: dict[str, Any]) -> dict[str, Any]:
    return _plain(values, variant.equal) if variant.plain else merge(values, variant.settings)


def _plain(values: dict[str, Any], equal: bool) -> dict[str, Any]:
    """The same training for the backbone alone.

    A fair baseline: its classifier, which is all of it that starts from nothing, learns at the rate of what
    the modules start from nothing, where that is higher than the rate of the heads.
    """
    from fgvc_cli.models.registry import resolve

    config: TrainConfig = build(TrainConfig, values)
    resolved = resolve(config.model)
    if resolved.family.own_size:
        values = merge(values, {"preprocess": _plain_size(config, resolved.backbone, equal)})
        rate = config.optim.lr_heads
    else:
        rate = max(config.optim.lr_heads, config.optim.lr_cram)
    options = {name: value for name, value in config.options.items() if name in BaselineConfig.model_fields}
    model = f"timm-{resolved.backbone}"
    # Rates of what it has not would only look like a difference.
    rates = {name: value for name, value in values.get("optim", {}).items() if name not in _MODULE_RATES}
    return values | {"model": model, "options": options, "optim": rates | {"lr_heads": rate}}


def _plain_size(config: TrainConfig, backbone: str, equal: bool) -> dict[str, int]:
    """Input of a plain ViT beside a multi-stage one: what its encoder sees, or as many patches as the image,
    the object and the parts have together, to the nearest whole patch."""
    import timm

    options = build(MultiStageVitConfig, config.options)
    cfg = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
    side = options.encoder_px or (cfg.input_size[-1] if cfg else config.preprocess.input_px)
    if equal:
        patch = int(found[1]) if (found := re.search(r"patch(\d+)", backbone)) else 16
        side = round(side * math.sqrt(2 + options.parts) / patch) * patch
    return {"input_px": side, "resize_px": side}


def _paths(settings: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{name}.")
        else:
            yield prefix + name


SCORES, SUMMARY, PICTURE = "results.csv", "summary.csv", "results.png"
FAILURE = "error.txt"
"""In the folder of a training that ended with an error that is not the user's: where it came from."""

_MAY_DIFFER = ("recipe", "workers", "data", "data_root", "save_minutes", "tensorboard")
"""What changes no result, the name of a recipe beside its settings too; it may be another when a table is
gone on with."""


@dataclass
class Table:
    """What one call is about."""

    ablation: Ablation
    cells: list[Cell]
    folder: Path
    options: AblateOptions
    messages: Messages

    def run_dir(self, cell: Cell) -> Path:
        """Of one training."""
        return self.folder / cell.name


@dataclass(frozen=True)
class Ablated:
    """What the finished trainings of a table say."""

    folder: Path
    """Of the run folders, and of results.csv, summary.csv and results.png."""
    reference: str
    """The row that the others are compared with."""
    lines: tuple[Line, ...]
    """Row by split; empty where no training is finished."""
    failures: dict[str, str]
    """Training -> why it failed."""


@command(AblateOptions)
def ablate(options: AblateOptions) -> Ablated:
    """Train a table; each of its trainings is what ``train`` does with the same settings.

    Without ``out``, its folder is ``runs/<model>-<data>-<table>``.

    Raises:
        FgvcError: before anything is trained: settings that do not work for a row, a folder that holds
            another training.
        Interrupted: Ctrl-C; the same call again goes on.
    """
    ablation, cells, values = _read_options(options)
    configs = {cell.name: resolved_config(cell.values) for cell in cells}
    base: TrainConfig = build(TrainConfig, values)
    data = load_data(base)
    if data.multi_label:
        raise FgvcError(
            f"--ablate compares top-1, and {data.name} has several labels per image.",
            "Train the rows one by one, without --ablate; fgvc eval gives their F1 and mAP.",
            EXIT_USAGE,
        )
    folder = choose_run_dir(options.out, base, data.name, overwrite=True)
    folder = folder if options.out else folder.with_name(f"{folder.name}-{ablation.name}")
    table = Table(ablation, cells, folder, options, options.speaker)
    if not options.overwrite:
        for cell in cells:
            _check_run_dir(table.run_dir(cell), configs[cell.name], data.sha256())
    if not all(finished_run(table.run_dir(cell)) for cell in cells) or options.overwrite:
        # Once for all of them: they train on the same images.
        for note in look_before_training(data):
            table.messages.warn(note)
    failures = _train_all(table, data.name)
    lines = _write_results(table, {cell.name for cell in cells} - {*failures}, data.name)
    return Ablated(folder, ablation.reference, tuple(lines), failures)


def ablation_configs(options: AblateOptions) -> dict[str, TrainConfig]:
    """Name of each training of a table -> its settings; nothing is trained."""
    return {cell.name: resolved_config(cell.values) for cell in _read_options(options)[1]}


def _read_options(options: AblateOptions) -> tuple[Ablation, list[Cell], dict[str, Any]]:
    """The table, its trainings, and the values of the training that they vary."""
    training.check_model_given(options)
    ablation = find_ablation(options.ablate)
    given = {text.partition("=")[0].strip() for text in options.set}
    if options.seed is not None or "seed" in given:
        raise FgvcError(
            "--ablate trains with several seeds, got one.", "For example: --seeds 0,1,2", EXIT_USAGE
        )
    given |= {"options.stages"} if options.stages else set()
    for path in sorted(given & ablation.paths):
        raise FgvcError(f"{path} is what --ablate {ablation.name} varies.", "Leave it out.", EXIT_USAGE)
    if find_world().size > 1:
        raise FgvcError(
            "--ablate starts its trainings itself, this is one process of several.",
            "Without torchrun: --devices N.",
            EXIT_USAGE,
        )
    seeds = _read_seeds("0,1,2" if options.seeds is None else options.seeds)
    values = plain_values(options)
    return ablation, table_cells(ablation, values, seeds), values


def _read_seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len({*map(int, parts)}) < len(parts):
        raise FgvcError(
            f"--seeds got {text!r}, expected different whole numbers.",
            "For example: --seeds 0,1,2",
            EXIT_USAGE,
        )
    return [int(part) for part in parts]


def _check_run_dir(run_dir: Path, config: TrainConfig, data_sha256: str) -> None:
    """Whether a folder is this training, finished or cut, or free.

    Raises:
        FgvcError: it holds a training with other settings or images, or something else.
    """
    metadata = finished_run(run_dir)
    if metadata is not None and metadata.get("data_sha256") != data_sha256:
        raise FgvcError(
            f"{run_dir} was trained on other images, labels or splits.",
            "Choose another --out, or train the table anew with --overwrite.",
        )
    found = stored_config(metadata["config"]) if metadata else _read_config(run_dir)
    differing = _differences(found, config) if found else []
    if differing:
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise FgvcError(
            f"{run_dir} was started with other settings: {'; '.join(differing[:4])}{more}.",
            "Give them again, choose another --out, or train the table anew with --overwrite.",
        )


def _read_config(run_dir: Path) -> TrainConfig | None:
    """The settings that a training was started with; None where the folder is free.

    Raises:
        FgvcError: it holds something else.
    """
    if not run_dir.exists() or (run_dir.is_dir() and not any(run_dir.iterdir())):
        return None
    try:
        return stored_config(json.loads((run_dir / CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError, FgvcError) as error:
        raise FgvcError(f"{run_dir} is there and holds no training.", "Choose another --out.") from error


def _differences(found: TrainConfig, asked: TrainConfig) -> list[str]:
    """``section.field was X, now Y`` for every setting that matters."""
    old, new = (_flat(json.loads(config.model_dump_json())) for config in (found, asked))
    names = dict.fromkeys([*old, *new])
    return [
        f"{name} was {old.get(name)}, now {new.get(name)}"
        for name in names
        if old.get(name) != new.get(name) and name not in _MAY_DIFFER
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _train_all(table: Table, data_name: str) -> dict[str, str]:
    """Every training that is not finished; a failed one does not end the others.

    Returns:
        Name -> why it failed.

    Raises:
        Interrupted: Ctrl-C.
    """
    messages, cells, overwrite = table.messages, table.cells, table.options.overwrite
    done = {cell.name for cell in cells if not overwrite and finished_run(table.run_dir(cell))}
    messages.note(
        f"{table.ablation.name} on {data_name}: {len(cells)} trainings in {table.folder}, "
        f"{len(done)} of them finished.\n{table.ablation.about}."
    )
    failures: dict[str, str] = {}
    for number, cell in enumerate(cells, start=1):
        if cell.name in done:
            continue
        messages.note(f"\n[{number}/{len(cells)}] {cell.name}")
        try:
            why = _train_cell(table, cell)
        except KeyboardInterrupt:
            messages.note("To go on: the same command again.")
            raise Interrupted from None
        if why is not None:
            failures[cell.name] = why
            messages.note(f"{cell.name} failed: {why}")
        else:
            done.add(cell.name)
            write_scores(table.folder / SCORES, _scores(table, done))
    return failures


def _train_cell(table: Table, cell: Cell) -> str | None:
    """Train or go on; why it failed, or None.

    Raises:
        KeyboardInterrupt: Ctrl-C; what was done is saved.
    """
    run_dir, options = table.run_dir(cell), table.options
    try:
        if state_path(run_dir).is_file() and not options.overwrite:
            moved = {name: getattr(options, name) for name in ("workers", "data", "data_root")}
            given = {name: value for name, value in moved.items() if value is not None}
            trained = training.resume(run_dir, given, device=options.device, messages=table.messages)
        else:
            # Nothing to go on from, so what an earlier attempt left may go.
            trained = training.start(
                cell.values,
                out=run_dir,
                device=options.device,
                overwrite=True,
                messages=table.messages,
                look=False,
            )
    except FgvcError as error:
        return str(error)
    except EndedByAnother:
        return "its processes ended with an error, see above"
    # torch, timm and the decoders raise anything, and a night of trainings must not end with the first.
    except Exception as error:
        text = " ".join(str(error).split())
        with contextlib.suppress(OSError):
            (run_dir / FAILURE).write_text(traceback.format_exc())
        return f"{type(error).__name__}: {text[:200]}"
    finally:
        gc.collect()
    (run_dir / FAILURE).unlink(missing_ok=True)
    if not trained.told:
        table.messages.note(trained.text)
    return None


def _scores(table: Table, finished: set[str]) -> list[Score]:
    """Of these trainings only: with --overwrite a folder may still hold an earlier one."""
    scores = []
    for cell in table.cells:
        metadata = finished_run(table.run_dir(cell)) if cell.name in finished else None
        if metadata is not None:
            scores += read_scores(table.run_dir(cell), cell.variant, cell.seed, metadata)
    return scores


def _write_results(table: Table, finished: set[str], data_name: str) -> list[Line]:
    """The files beside the run folders; the lines of the table."""
    scores, reference = _scores(table, finished), table.ablation.reference
    if not scores:
        return []
    names = [variant.name for variant in table.ablation.variants]
    lines = summarise(scores, names, reference)
    write_scores(table.folder / SCORES, scores)
    write_summary(table.folder / SUMMARY, lines)
    groups = {
        split: {name: [100 * value for value in top1_by_seed(scores, name, split).values()] for name in names}
        for split in SPLITS
        if any(score.split == split for score in scores)
    }
    model, seeds = table.cells[-1].values["model"], len({cell.seed for cell in table.cells})
    title = f"{table.ablation.name}: {model} on {data_name}, {seeds} seeds (bar: one standard deviation)"
    with AtomicFile(table.folder / PICTURE, overwrite=True) as stream:
        stream.write(draw_spread(names, groups, reference=reference, title=title))
    return lines


SPLITS = ("val", "test")
"""A choice may be made by val; test is what it is then worth. With ``fuse=weighted`` val is scored with equal
weights, for the others are fitted to it, and test with those."""


@dataclass(frozen=True)
class Score:
    """One training on one split."""

    variant: str
    seed: int
    split: str
    metrics: dict[str, float]
    """As in the checkpoint: shares in [0, 1]."""
    seconds: float
    """Of training, without validation; NaN where metrics.csv is gone."""


@dataclass(frozen=True)
class Line:
    """One row of the table on one split: means over the seeds, shares in [0, 1], deviations of the sample."""

    variant: str
    split: str
    seeds: int
    top1: float
    top1_deviation: float
    macro_f1: float
    macro_f1_deviation: float
    seconds: float
    difference: float | None
    """Of top-1, less that of the reference with the same seeds; None for the reference and without such."""
    interval: Interval | None
    """95 % of the difference, see ``paired_interval``."""
    verdict: str


def read_scores(run_dir: Path, variant: str, seed: int, metadata: dict[str, Any]) -> list[Score]:
    """Of a finished run folder; ``metadata`` is its checkpoint's."""
    seconds = _seconds(run_dir / METRICS)
    return [
        Score(variant, seed, split, metadata["metrics"][split], seconds)
        for split in SPLITS
        if split in metadata["metrics"]
    ]


def summarise(scores: Sequence[Score], variants: Iterable[str], reference: str) -> list[Line]:
    """Split by split, in the order of ``variants``; what has no score has no line."""
    return [
        _line(scores, variant, split, reference)
        for split in SPLITS
        for variant in variants
        if any(score.variant == variant and score.split == split for score in scores)
    ]


def top1_by_seed(scores: Sequence[Score], variant: str, split: str) -> dict[int, float]:
    """Seed -> top-1, a share."""
    return {s.seed: s.metrics["top1"] for s in scores if (s.variant, s.split) == (variant, split)}


def _line(scores: Sequence[Score], variant: str, split: str, reference: str) -> Line:
    own = [score for score in scores if (score.variant, score.split) == (variant, split)]
    tops, theirs = top1_by_seed(scores, variant, split), top1_by_seed(scores, reference, split)
    pairs = [tops[seed] - theirs[seed] for seed in tops if seed in theirs and variant != reference]
    top1, deviation = mean_and_deviation([*tops.values()])
    f1, f1_deviation = mean_and_deviation([score.metrics["macro_f1"] for score in own])
    return Line(
        variant,
        split,
        len(own),
        top1,
        deviation,
        f1,
        f1_deviation,
        mean_and_deviation([score.seconds for score in own])[0],
        mean_and_deviation(pairs)[0] if pairs else None,
        paired_interval(pairs),
        verdict(pairs) if pairs else "",
    )


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """``variant,seed,split,top1,macro_f1,<branches>,images,seconds``; shares with six digits.

    Raises:
        FgvcError: it cannot be written.
    """
    branches = dict.fromkeys(name for s in scores for name in s.metrics if name.startswith("top1_"))
    columns = ["top1", "macro_f1", *branches, "images"]
    rows = [
        [s.variant, s.seed, s.split, *(_number(s.metrics.get(c)) for c in columns), _number(s.seconds)]
        for s in scores
    ]
    _write_csv(path, ["variant", "seed", "split", *columns, "seconds"], rows)


def write_summary(path: Path, lines: Sequence[Line]) -> None:
    """The fields of ``Line``, the interval as ``low`` and ``high``.

    Raises:
        FgvcError: it cannot be written.
    """
    numbers = ("top1", "top1_deviation", "macro_f1", "macro_f1_deviation", "seconds", "difference")
    rows = [
        [line.variant, line.split, line.seeds, *(_number(getattr(line, name)) for name in numbers)]
        + [_number(end) for end in line.interval or (None, None)]
        + [line.verdict]
        for line in lines
    ]
    _write_csv(path, ["variant", "split", "seeds", *numbers, "low", "high", "verdict"], rows)


def summary_text(lines: Sequence[Line], reference: str) -> str:
    """The table for people: per cent, mean +- sample standard deviation."""
    width = max(len(line.variant) for line in lines)
    text = []
    for split in dict.fromkeys(line.split for line in lines):
        text.append(
            f"{split:<{width}}  seeds  {'top-1 %':<13}  {'macro F1 %':<13}  less {reference}, points (95 %)"
        )
        for line in (line for line in lines if line.split == split):
            top1 = _percent(line.top1, line.top1_deviation)
            f1 = _percent(line.macro_f1, line.macro_f1_deviation)
            row = f"{line.variant:<{width}}  {line.seeds:>5}  {top1:<13}  {f1:<13}  {_difference(line)}"
            text.append(row.rstrip())
        text.append("")
    return "\n".join(text[:-1])


def _percent(mean: float, deviation: float) -> str:
    spread = "" if math.isnan(deviation) else f" +- {100 * deviation:.2f}"
    return f"{100 * mean:.2f}{spread}"


def _difference(line: Line) -> str:
    if line.difference is None:
        return ""
    ends = f" [{100 * line.interval.low:+.2f}, {100 * line.interval.high:+.2f}]" if line.interval else ""
    return f"{100 * line.difference:+.2f}{ends} {line.verdict}"


def _seconds(path: Path) -> float:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return sum(float(row["seconds"]) for row in csv.DictReader(file))
    except OSError:
        return math.nan


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else format(value, ".6g")


def _write_csv(path: Path, columns: list[str], rows: list[list[Any]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns, *rows])
    with AtomicFile(path, overwrite=True) as stream:
        stream.write(text.getvalue().encode())
