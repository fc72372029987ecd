"""fgvc datasets check: read a labelled set once and say what is wrong with it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from rich.progress import Progress

from fgvc_cli.commands.console import stderr_console
from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.data.listing import LabelledSet
from fgvc_cli.datasets.check import Group, Member, Report, check_set
from fgvc_cli.datasets.registry import default_root, find_known, known_names, read_official
from fgvc_cli.errors import EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, FgvcError
from fgvc_cli.files import AtomicFile, check_writable

_SHOWN = 5
COLUMNS = ("finding", "group", "path", "split", "label", "splits", "labels_differ", "detail")


def run(
    source: str,
    data_root: str | None,
    *,
    out: Path | None,
    as_json: bool,
    workers: int,
    max_bits: int,
    min_images: int,
    overwrite: bool,
) -> int:
    """Check a folder, a CSV or a known set, print a summary, and write all findings where asked.

    Raises:
        FgvcError: a set that cannot be listed, an output that cannot be written.
    """
    if out:
        check_writable(out, overwrite=overwrite)
    data = _open(source, data_root)
    console = stderr_console()
    total = sum(data.counts().values())
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading photographs", total=total)
        report = check_set(
            data,
            workers=workers,
            max_bits=max_bits,
            min_images=min_images,
            on_image=lambda: progress.advance(task),
        )
    if out:
        _write_csv(report, out, overwrite)
    print(json.dumps(as_document(report), indent=2) if as_json else summary(report, out))
    return EXIT_OK if report.clean else EXIT_SOME_FAILED


def _open(source: str, data_root: str | None) -> LabelledSet:
    """A path where there is one of that name, else a known set with its official splits, nothing held out."""
    path = Path(source)
    if path.exists() or path.suffix or len(path.parts) != 1:
        return load_labelled(path, for_training=False)
    try:
        entry = find_known(source)
    except FgvcError as error:
        raise FgvcError(
            f"{source} is neither a file or folder here nor a known set ({', '.join(known_names())}).",
            error.hint or "Give a folder with one folder of images per class, a .csv file, or a known set.",
            EXIT_USAGE,
        ) from error
    root = Path(data_root) if data_root else default_root()
    if root is None:
        raise FgvcError(
            f"Where the data set {source} lies is not known.",
            "Give --data-root DIR or set FGVC_DATA=DIR.",
            EXIT_USAGE,
        )
    return read_official(entry, root)


def summary(report: Report, out: Path | None) -> str:
    """The findings for people: counts, and the first of each kind."""
    data = report.data
    counts = ", ".join(f"{count:,} {split}" for split, count in data.counts().items() if count)
    if data.undivided:
        counts = f"{sum(data.counts().values()):,}"
    bare = _without_label(data)
    none = f", {bare:,} of them without a label" if bare else ""
    divided = ", not divided into splits" if data.undivided else ""
    lines = [f"{data.name}: {len(data.classes)} classes, {counts} photographs{none}{divided}"]
    lines += [f"  {note}" for note in data.notes]
    lines += _section(
        "unreadable",
        [f"{member.example.path}: {failure.error}" for member, failure in report.unreadable],
    )
    for kind, title in (("exact", "groups of equal files"), ("near", "groups of near duplicates")):
        groups = [group for group in report.groups if group.kind == kind]
        lines += _section(title, [_group_text(data, group) for group in groups])
    leaks = [group for group in report.groups if len(group.splits) > 1]
    lines += _section("groups across splits", [_group_text(data, group) for group in leaks])
    wrong = [group for group in report.groups if group.contradicts]
    lines += _section("groups with different labels", [_group_text(data, group) for group in wrong])
    few = [f"{name}: {count}" for name, count in sorted(report.tiny.items(), key=lambda item: item[1])]
    lines += _section(f"tiny classes ({_counted(data)})", few)
    if not report.clean:
        lines.append(f"All findings: {out}" if out else "All findings: --out report.csv, or --json")
    return "\n".join(lines)


def _without_label(data: LabelledSet) -> int:
    return sum(not example.labels for examples in data.splits.values() for example in examples)


def _section(title: str, items: list[str]) -> list[str]:
    more = [f"      and {len(items) - _SHOWN:,} more"] if len(items) > _SHOWN else []
    return [f"  {len(items):6,d} {title}", *(f"      {item}" for item in items[:_SHOWN]), *more]


def _group_text(data: LabelledSet, group: Group) -> str:
    # only where they differ: in many a set the path says the label too
    texts = [data.label_text(m.example) or "no label" for m in group.members]
    labels = [f" [{text}]" if group.contradicts else "" for text in texts]
    shown = [f"{m.example.path}{label}" for m, label in zip(group.members[:3], labels, strict=False)]
    more = f" and {len(group.members) - 3} more" if len(group.members) > 3 else ""
    where = "" if data.undivided else f"{'+'.join(group.splits)}: "
    return f"{where}{' = '.join(shown)}{more}"


def _counted(data: LabelledSet) -> str:
    return "photographs" if data.undivided else "training photographs"


def as_document(report: Report) -> dict[str, Any]:
    """The findings for programs."""
    data = report.data

    def image(member: Member) -> dict[str, Any]:
        labels = [data.classes[label] for label in member.example.labels]
        split = None if data.undivided else member.split
        return {"path": member.example.path, "split": split, "labels": labels}

    groups = [
        {
            "kind": group.kind,
            "splits": [] if data.undivided else list(group.splits),
            "labels_differ": group.contradicts,
            "images": [image(member) for member in group.members],
        }
        for group in report.groups
    ]
    return {
        "name": data.name,
        "root": str(data.root),
        "classes": len(data.classes),
        "images": {"all": sum(data.counts().values())} if data.undivided else data.counts(),
        "without_label": _without_label(data),
        "notes": list(data.notes),
        "clean": report.clean,
        "unreadable": [
            image(member) | {"status": failure.status, "error": failure.error}
            for member, failure in report.unreadable
        ],
        "groups": groups,
        "tiny_classes": report.tiny,
    }


def _write_csv(report: Report, out: Path, overwrite: bool) -> None:
    """One line for each image of a finding."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    data = report.data
    for member, failure in report.unreadable:
        example = member.example
        detail = f"{failure.status}: {failure.error}"
        split = "" if data.undivided else member.split
        table.writerow(("unreadable", "", example.path, split, data.label_text(example), "", "", detail))
    for number, group in enumerate(report.groups, 1):
        splits = "" if data.undivided else "+".join(group.splits)
        flags = (splits, "yes" if group.contradicts else "no")
        for member in group.members:
            example = member.example
            split = "" if data.undivided else member.split
            row = (group.kind, number, example.path, split, data.label_text(example), *flags, "")
            table.writerow(row)
    for name, count in report.tiny.items():
        table.writerow(("tiny_class", "", "", "", name, "", "", f"{count} {_counted(data)}"))
    with AtomicFile(out, overwrite=overwrite) as stream:
        stream.write(text.getvalue().encode("utf-8", "surrogateescape"))
