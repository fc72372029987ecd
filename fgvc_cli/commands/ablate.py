"""fgvc train --ablate: every row of a table with several seeds, one run folder each, gone on with if cut."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgvc_cli.commands import train as train_command
from fgvc_cli.commands.console import stderr_console
from fgvc_cli.commands.run_folder import choose_run_dir, finished_run
from fgvc_cli.commands.train_settings import plain_values, resolved_config
from fgvc_cli.config import TrainConfig, build, stored_config
from fgvc_cli.datasets.registry import load_data
from fgvc_cli.engine.ablation_table import (
    SPLITS,
    Score,
    read_scores,
    summarise,
    summary_text,
    top1_by_seed,
    write_scores,
    write_summary,
)
from fgvc_cli.engine.ablations import Ablation, Cell, find_ablation, table_cells
from fgvc_cli.engine.distributed import find_world
from fgvc_cli.engine.run_state import state_path
from fgvc_cli.engine.trainer import CONFIG
from fgvc_cli.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, FgvcError

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
    device: str
    overwrite: bool
    resume_flags: dict[str, Any]
    """What ``fgvc train --resume`` takes beside the run folder."""

    def run_dir(self, cell: Cell) -> Path:
        """Of one training."""
        return self.folder / cell.name


def run(flags: dict[str, Any], *, sets: list[str], out: Path | None, device: str, overwrite: bool) -> int:
    """Train a table; each of its trainings is what ``fgvc train`` does with the same settings.

    Args:
        flags: as ``commands.train.run``, with ``ablate`` and ``seeds``.
        out: folder of the run folders; None chooses ``runs/<model>-<data>-<table>``.

    Returns:
        0, or 1 where a training failed, or 130.

    Raises:
        FgvcError: before anything is trained: settings that do not work for a row, a folder that holds
            another training.
    """
    ablation, seeds = _read_request(flags, sets)
    own = ("ablate", "seeds", "show_config")
    values = plain_values({name: value for name, value in flags.items() if name not in own}, sets)
    cells = table_cells(ablation, values, seeds)
    configs = {cell.name: resolved_config(cell.values) for cell in cells}
    if flags.get("show_config"):
        print(json.dumps({name: config.model_dump() for name, config in configs.items()}, indent=2))
        return EXIT_OK
    base: TrainConfig = build(TrainConfig, values)
    data = load_data(base)
    folder = choose_run_dir(out, base, data.name, overwrite=True)
    folder = folder if out else folder.with_name(f"{folder.name}-{ablation.name}")
    resume_flags = {name: flags.get(name) for name in ("workers", "data", "data_root")}
    table = Table(ablation, cells, folder, device, overwrite, resume_flags)
    if not overwrite:
        for cell in cells:
            _check_folder(table.run_dir(cell), configs[cell.name], data.sha256())
    failures = _train_all(table, data.name)
    if failures is None:
        return EXIT_INTERRUPTED
    _tell(table, {cell.name for cell in cells} - {*failures}, data.name)
    for name, why in failures.items():
        print(f"fgvc: {name} failed: {why}", file=sys.stderr)
    if failures:
        print("fgvc: The same command again tries these once more.", file=sys.stderr)
    return EXIT_ERROR if failures else EXIT_OK


def _read_request(flags: dict[str, Any], sets: list[str]) -> tuple[Ablation, list[int]]:
    if not flags.get("ablate"):
        raise FgvcError("--seeds goes with --ablate.", "One training takes --seed.", EXIT_USAGE)
    train_command.check_model_given(flags)
    ablation = find_ablation(flags["ablate"])
    if flags.get("seed") is not None or any(text.partition("=")[0].strip() == "seed" for text in sets):
        raise FgvcError(
            "--ablate trains with several seeds, got one.", "For example: --seeds 0,1,2", EXIT_USAGE
        )
    given = {text.partition("=")[0].strip() for text in sets}
    given |= {"options.stages"} if flags.get("stages") else set()
    for path in sorted(given & ablation.paths):
        raise FgvcError(f"{path} is what --ablate {ablation.name} varies.", "Leave it out.", EXIT_USAGE)
    if find_world().size > 1:
        raise FgvcError(
            "--ablate starts its trainings itself, this is one process of several.",
            "Without torchrun: --devices N.",
            EXIT_USAGE,
        )
    return ablation, _read_seeds(flags.get("seeds") or "0,1,2")


def _read_seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len({*map(int, parts)}) < len(parts):
        raise FgvcError(
            f"--seeds got {text!r}, expected different whole numbers.",
            "For example: --seeds 0,1,2",
            EXIT_USAGE,
        )
    return [int(part) for part in parts]


def _check_folder(run_dir: Path, config: TrainConfig, data_sha256: str) -> None:
    """Whether a folder is this training, finished or cut, or free.

    Raises:
        FgvcError: it holds a training with other settings or photographs, or something else.
    """
    metadata = finished_run(run_dir)
    if metadata is not None and metadata.get("data_sha256") != data_sha256:
        raise FgvcError(
            f"{run_dir} was trained on other photographs, labels or splits.",
            "Choose another --out, or train the table anew with --overwrite.",
        )
    found = stored_config(metadata["config"]) if metadata else _read_config(run_dir)
    differing = _differences(found, config) if found else []
    if differing:
        raise FgvcError(
            f"{run_dir} was started with other settings: {'; '.join(differing[:4])}.",
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


def _train_all(table: Table, data_name: str) -> dict[str, str] | None:
    """Every training that is not finished; a failed one does not end the others.

    Returns:
        Name -> why it failed; None where Ctrl-C came.
    """
    console, cells = stderr_console(), table.cells
    done = {cell.name for cell in cells if not table.overwrite and finished_run(table.run_dir(cell))}
    console.print(
        f"{table.ablation.name} on {data_name}: {len(cells)} trainings in {table.folder}, "
        f"{len(done)} of them finished.\n{table.ablation.about}.",
        markup=False,
    )
    failures: dict[str, str] = {}
    for number, cell in enumerate(cells, start=1):
        if cell.name in done:
            continue
        console.print(f"\n[{number}/{len(cells)}] {cell.name}", markup=False)
        try:
            why = _train_cell(table, cell)
        except KeyboardInterrupt:
            console.print("To go on: the same command again.", markup=False)
            return None
        if why is not None:
            failures[cell.name] = why
            console.print(f"{cell.name} failed: {why}", markup=False)
        else:
            done.add(cell.name)
            write_scores(table.folder / SCORES, _scores(table, done))
    return failures


def _train_cell(table: Table, cell: Cell) -> str | None:
    """Train or go on; why it failed, or None.

    Raises:
        KeyboardInterrupt: Ctrl-C; what was done is saved.
    """
    run_dir = table.run_dir(cell)
    try:
        # Of a table only the table itself is data.
        with contextlib.redirect_stdout(sys.stderr):
            if state_path(run_dir).is_file() and not table.overwrite:
                code = train_command.resume(
                    run_dir, table.resume_flags, sets=[], out=None, device=table.device, overwrite=False
                )
            else:
                # Nothing to go on from, so what an earlier attempt left may go.
                code = train_command.start(cell.values, out=run_dir, device=table.device, overwrite=True)
    except FgvcError as error:
        return str(error)
    # torch, timm and the decoders raise anything, and a night of trainings must not end with the first.
    except Exception as error:
        text = " ".join(str(error).split())
        with contextlib.suppress(OSError):
            (run_dir / FAILURE).write_text(traceback.format_exc())
        return f"{type(error).__name__}: {text[:200]}"
    finally:
        gc.collect()
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    (run_dir / FAILURE).unlink(missing_ok=True)
    return None if code == EXIT_OK else "its processes ended with an error, see above"


def _scores(table: Table, finished: set[str]) -> list[Score]:
    """Of these trainings only: with --overwrite a folder may still hold an earlier one."""
    scores = []
    for cell in table.cells:
        metadata = finished_run(table.run_dir(cell)) if cell.name in finished else None
        if metadata is not None:
            scores += read_scores(table.run_dir(cell), cell.variant, cell.seed, metadata)
    return scores


def _tell(table: Table, finished: set[str], data_name: str) -> None:
    """The table on stdout, and the files beside the run folders."""
    from fgvc_cli.charts.seed_statistics import draw_spread
    from fgvc_cli.files import AtomicFile

    scores, reference = _scores(table, finished), table.ablation.reference
    if not scores:
        return
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
    print(summary_text(lines, reference))
    # A row that lacks seeds has had less chance of a bad one.
    best = max((line for line in lines if line.split == "val"), key=lambda line: (line.seeds, line.top1))
    than = f"; than {reference}: {best.verdict}" if best.verdict else ""
    print(f"\nhighest mean on val, by which to choose: {best.variant}{than}")
    print(f"{SCORES}, {SUMMARY} and {PICTURE} are in {table.folder}")
