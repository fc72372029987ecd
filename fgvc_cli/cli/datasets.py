"""``fgvc datasets``: options, help, and what they print."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgvc_cli.cli.help import HelpCommand, HelpGroup
from fgvc_cli.cli.options import DataRoot, Device, Workers, guarded
from fgvc_cli.errors import EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, FgvcError

if TYPE_CHECKING:
    from fgvc_cli.datasets.registry import Presence
    from fgvc_cli.report.wrong_labels import WrongLabels

datasets_app = typer.Typer(
    cls=HelpGroup, help="Labelled data sets: list, get, check, make. Alone, it lists them."
)
make_app = typer.Typer(cls=HelpGroup, help="Make a data set.", no_args_is_help=True)
datasets_app.add_typer(make_app, name="make")

_NO_ROOT = "Give --data-root DIR or set FGVC_DATA=DIR to see which are here."
_PIPE_WIDTH = 200
"""Columns where stdout is no terminal: one line for each set."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@datasets_app.callback(invoke_without_command=True)
def _alone(context: typer.Context, data_root: DataRoot = None, as_json: Json = False) -> None:
    """Options of the list; in front of a command they are refused, so that none is passed over in silence."""
    if context.invoked_subcommand is None:
        list_datasets(data_root, as_json)
    given = [name for name, value in (("--data-root", data_root), ("--json", as_json)) if value]
    if given:
        raise typer.BadParameter(
            f"Give {' and '.join(given)} behind the command: fgvc datasets {context.invoked_subcommand} ..."
        )


@datasets_app.command("list", cls=HelpCommand)
@guarded
def list_datasets(data_root: DataRoot = None, as_json: Json = False) -> int:
    """List the known data sets: their counts, whether they are here and whole, and how to get them."""
    from fgvc_cli.datasets.registry import default_root, look_for_sets

    root = Path(data_root) if data_root else default_root()
    found = look_for_sets(root)
    if as_json:
        print(json.dumps([_as_json(presence) for presence in found], indent=2))
        return EXIT_OK
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", "here", "classes", "train", "val", "test", "where, or how to get it"):
        numbers = column in ("classes", "train", "val", "test")
        table.add_column(column, overflow="fold", no_wrap=numbers, justify="right" if numbers else "left")
    for presence in found:
        entry = presence.entry
        counts = (f"{count:,}" if count else "-" for count in (entry.train, entry.val, entry.test))
        here = {"ok": "yes", "absent": "no", "broken": "broken"}[presence.state]
        table.add_row(entry.key, here, str(entry.classes), *counts, escape(_where(presence)))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    with console.capture() as text:
        console.print(table)
    print("\n".join(line.rstrip() for line in text.get().splitlines()))
    print(f"Looked below {root}; counts are checked." if root else _NO_ROOT)
    print("val -: held out of train. test -: labels unpublished, a fifth of train is dealt as test.")
    return EXIT_OK


@datasets_app.command("get", cls=HelpCommand)
@guarded
def get_dataset(
    name: Annotated[str, typer.Argument(help="A known set, e.g. cub.")],
    data_root: DataRoot = None,
) -> int:
    """Download a known data set from its official address, check it, and put it below the data root.

    An interrupted download resumes with the same command.
    """
    from fgvc_cli.cli.progress import ConsoleMessages
    from fgvc_cli.datasets.get import fetch_set
    from fgvc_cli.datasets.registry import default_root, find_known

    entry = find_known(name)
    with ConsoleMessages().bar(name, unit="bytes") as advance:
        done = 0

        def show(here: int, total: int | None) -> None:
            nonlocal done
            text = f"{name}: checking and unpacking" if here == total else None
            advance(here - done, total=total, text=text)
            done = here

        listing, folder = fetch_set(name, data_root, on_bytes=show)
    if listing is None:
        print(f"{name} is there already: {folder}, {entry.expected}")
        return EXIT_OK
    print(f"{entry.title}: {entry.expected}, in {folder}")
    print(f"fgvc train --dataset {name} --data-root {data_root or default_root()} --model crasmra-r50")
    return EXIT_OK


@datasets_app.command("check", cls=HelpCommand)
@guarded
def check_dataset(
    source: Annotated[str, typer.Argument(help="Class-per-folder folder, CSV, or known set.")],
    data_root: DataRoot = None,
    out: Annotated[Path | None, typer.Option(help="CSV for all findings, one line per image.")] = None,
    as_json: Json = False,
    max_bits: Annotated[
        int,
        typer.Option(
            min=0, max=64, help="Bits of 64 by which near duplicates may differ: 0 is strict, 8 the default."
        ),
    ] = 8,
    min_images: Annotated[
        int, typer.Option(min=0, help="Classes with fewer images to train on are named.")
    ] = 5,
    minutes: Annotated[
        float,
        typer.Option(
            min=0,
            help="Longest gap, by EXIF, in a burst of one folder; 0: bursts are not looked for.",
        ),
    ] = 5,
    weights: Annotated[
        str | None,
        typer.Option(help="Also rank labels that are likely wrong, by this model (as predict --weights)."),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="With --weights: judge each image by a linear probe fitted without its fold, of N. "
            "Default: 5. 0: by the model's own probabilities, too sure of images it was trained on.",
        ),
    ] = None,
    suspects: Annotated[
        Path | None,
        typer.Option(help="With --weights: CSV of likely wrong labels, for fgvc report --review --only."),
    ] = None,
    device: Device = "auto",
    workers: Workers = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the CSV.")] = False,
) -> int:
    """Find unreadable files, duplicates, images and bursts in two splits, contradicting labels, tiny classes.

    With --weights, also labels that are likely wrong, the likeliest first (needs pip install 'fgvc[clean]').
    Exit code 0: nothing was found; 3: something was.
    """
    from fgvc_cli.cli.progress import ConsoleMessages
    from fgvc_cli.datasets.check import as_document, check_set, open_source, summary, write_findings
    from fgvc_cli.files import check_writable

    given = {"--folds": folds, "--suspects": suspects}
    for name, value in given.items():
        if value is not None and weights is None:
            raise FgvcError(f"{name} is for wrong labels.", "Add --weights MODEL", EXIT_USAGE)
    if weights is not None:
        from fgvc_cli.report.wrong_labels import require_cleanlab

        require_cleanlab()

    if out:
        check_writable(out, overwrite=overwrite)
    data = open_source(source, data_root)
    with ConsoleMessages().bar("reading images", sum(data.counts().values())) as advance:
        report = check_set(
            data,
            workers=workers,
            max_bits=max_bits,
            min_images=min_images,
            minutes=minutes,
            on_image=lambda: advance(),
        )
    if out:
        write_findings(report, out, overwrite=overwrite)
    wrong = None
    if weights is not None:
        from fgvc_cli.report.wrong_labels import wrong_labels

        same = tuple(tuple(member.example.path for member in group.members) for group in report.groups)
        wrong = wrong_labels(
            source,
            weights,
            data_root,
            out=suspects,
            folds=5 if folds is None else folds,
            together=same,
            workers=workers,
            device=device,
            overwrite=overwrite,
            messages=ConsoleMessages(),
        )
    if as_json:
        document = as_document(report) | ({"wrong_labels": asdict(wrong)} if wrong else {})
        print(json.dumps(document, indent=2, default=str))
    else:
        lines = _wrong_lines(wrong, source, data.root) if wrong else []
        print("\n".join([summary(report, out), *lines]))
    return EXIT_OK if report.clean and not (wrong and wrong.suspects) else EXIT_SOME_FAILED


def _wrong_lines(wrong: WrongLabels, source: str, root: Path) -> list[str]:
    """Likely wrong labels for people, and how to look at them."""
    count = len(wrong.suspects)
    lines = [f"  {count:6,d} labels that are likely wrong, of {wrong.images:,} ({wrong.judged_by})"]
    for each in wrong.suspects[:5]:
        lines.append(f"      {each.path} [{each.label}] looks like {each.suggested} ({each.prob:.2f})")
    if count > 5:
        lines.append(f"      and {count - 5:,} more")
    lines += [f"      {note}" for note in wrong.notes]
    if wrong.out is None:
        lines += ["      All of them, to look at: --suspects suspects.csv"] if count else []
    elif count:
        lines.append(
            f"      To look at them: fgvc report {wrong.out} --review --only {wrong.out} --images {root} "
            f"--labels {source}"
        )
    return lines


@make_app.command("aviary", cls=HelpCommand)
@guarded
def make_aviary(
    out: Annotated[Path, typer.Argument(help="New folder.")],
    species: Annotated[int, typer.Option(help="Number of species, 2 to 12.")] = 12,
    train: Annotated[int, typer.Option(help="Images per species to train on.")] = 40,
    val: Annotated[int, typer.Option(help="Images per species to choose the epoch.")] = 10,
    test: Annotated[int, typer.Option(help="Images per species to test on.")] = 20,
    size_px: Annotated[int, typer.Option(help="Side of each picture, pixels.")] = 256,
    seed: Annotated[int, typer.Option(help="Same seed, same pictures.")] = 0,
) -> int:
    """Render birds that differ only in their parts: class folders, with every box in boxes.csv."""
    given = dict(locals())
    from fgvc_cli.aviary.dataset import write_aviary
    from fgvc_cli.cli.progress import ConsoleMessages

    with ConsoleMessages().bar("rendering birds") as advance:
        done = 0

        def show(now: int, total: int) -> None:
            nonlocal done
            advance(now - done, total=total)
            done = now

        count = write_aviary(**given, on_progress=show)
    print(f"{count:,} pictures in {out}, object and part boxes in {out / 'boxes.csv'}")
    return EXIT_OK


def _where(presence: Presence) -> str:
    if presence.state == "ok":
        return str(presence.root)
    if presence.state == "broken":
        return presence.problem
    entry = presence.entry
    return f"fgvc datasets get {entry.key}" if entry.archives else f"from {entry.source}, as {entry.tree}"


def _as_json(presence: Presence) -> dict[str, Any]:
    entry = presence.entry
    return {
        "name": entry.key,
        "title": entry.title,
        "state": presence.state,
        "root": str(presence.root) if presence.root else None,
        "problem": presence.problem or None,
        "classes": entry.classes,
        "train": entry.train,
        "val": entry.val,
        "test": entry.test,
        "dealt_test": entry.dealt_test,
        "tree": entry.tree,
        "source": entry.source,
        "downloadable": bool(entry.archives),
    }
