"""fgvc report: a prediction file -> one HTML page of its rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fgvc_cli.commands.console import stderr_console
from fgvc_cli.errors import EXIT_OK, EXIT_USAGE, FgvcError

if TYPE_CHECKING:
    import h5py
    from rich.console import Console

    from fgvc_cli.formats.rows import Table
    from fgvc_cli.report.page import Written
    from fgvc_cli.report.pictures import PictureMaker
    from fgvc_cli.report.truth import Truth


def run(
    predictions: Path,
    *,
    out: Path | None = None,
    images: str | None = None,
    labels: Path | None = None,
    thumbs: int = 2000,
    thumb_px: int = 240,
    title: str | None = None,
    workers: int = 2,
    overwrite: bool = False,
    quiet: bool = False,
) -> int:
    """Write the page.

    Args:
        predictions: ``.h5`` or ``.csv`` of ``fgvc predict``.
        out: the page to appear, ending in .html; None is ``<stem>.html`` in the current folder.
        images: what the rows' paths are relative to, see ``PictureMaker``; None: what ``recorded_images``
            finds, or else nothing.
        labels: see ``read_labels``.
        thumbs, thumb_px: rows with a picture, at most, and its longest side.
        workers: threads that make pictures; 0 is one.
        overwrite: replace the page if it is there.
        quiet: nothing on stderr but errors.

    Raises:
        FgvcError: a page that cannot be written (found out first), predictions, photographs or labels that
            are not there or cannot be read.
    """
    page = out or Path(f"{predictions.stem}.html")
    if page.suffix.lower() not in (".html", ".htm"):
        raise FgvcError(f"--out got {str(page)!r}, expected a name ending in .html.", None, EXIT_USAGE)
    from fgvc_cli.files import AtomicFile

    with AtomicFile(page, overwrite=overwrite) as stream:
        from fgvc_cli.formats.outputs import read_table
        from fgvc_cli.report.page import write_page
        from fgvc_cli.report.pictures import PictureMaker, choose_rows, recorded_images

        table = read_table(predictions)
        maker = PictureMaker(table, images or recorded_images(table), thumb_px, max(workers, 1))
        if thumbs:
            maker.check()
        truth = _truth(table, labels) if labels else None
        rows = choose_rows(table, thumbs, truth.wrong(table) if truth else None)
        with _crops(table) as crops:
            pictures = maker.make(rows, crops)
            written = write_page(
                stream, table, pictures, title=title or predictions.name, truth=truth, wanted=len(rows)
            )
        size = stream.tell()
    if not quiet:
        console = stderr_console()
        _tell(console, table, truth, maker, written, rows=rows, images=images)
        console.print(f"page: {page}, {size / 1e6:,.1f} MB", markup=False)
    return EXIT_OK


def _truth(table: Table, labels: Path) -> Truth:
    from fgvc_cli.report.labels import read_labels
    from fgvc_cli.report.truth import build_truth

    return build_truth(table, read_labels(labels, table.rows.path, multi_label=table.info.multi_label))


@contextlib.contextmanager
def _crops(table: Table) -> Iterator[h5py.Dataset | None]:
    if "crop" not in table.info.extras:
        yield None
        return
    from fgvc_cli.formats.h5 import open_h5

    with open_h5(table.source) as file:
        yield file["crop"]


def _tell(
    console: Console,
    table: Table,
    truth: Truth | None,
    maker: PictureMaker,
    written: Written,
    *,
    rows: list,
    images: str | None,
) -> None:
    """What the page holds, and what it lacks, each in a line."""

    def line(text: str) -> None:
        console.print(text, markup=False)

    answered = int(table.answered.sum())
    line(f"{len(table.rows):,} rows, {answered:,} with a prediction; {written.pictures:,} pictures.")
    if len(rows) < answered:
        first = "wrong and unsure ones" if truth else "unsure ones"
        line(f"--thumbs {len(rows):,} leaves {answered - len(rows):,} without a picture; {first} come first.")
    if maker.failures:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in maker.failures.most_common())
        instead = f"{written.cropped:,} show their crop instead" if written.cropped else "there are no crops"
        hint = "" if maker.images else f"{_gone(table)} --images FOLDER says where photographs are."
        line(f"{maker.failures.total():,} photographs could not be used ({reasons}); {instead}.{hint}")
    elif maker.images and maker.images != images and written.pictures:
        line(f"The photographs are those in {maker.images}, as {table.source.name} says.")
    if "attention" not in table.info.extras:
        lacks = "holds no attention maps"
        if table.source.suffix.lower() == ".parquet":
            lacks = "is shown without maps and crops"
        line(f"{table.source.name} {lacks}; fgvc predict --out preds.h5 --maps stores them.")
    if truth:
        labelled = table.answered & truth.known
        right = int((labelled & ~truth.wrong(table)).sum())
        count = int(labelled.sum())
        how = "have exactly their labels" if table.info.multi_label else "are right"
        share = f"{right / count:.1%} of {count:,} labelled rows {how}" if count else "No labelled row"
        unknown = len(truth.classes) - len(table.info.classes)
        line(f"{share}. Labels that are no class of the model: {unknown}." if unknown else f"{share}.")


def _gone(table: Table) -> str:
    """Where they were, if that is recorded: they are not there any more."""
    if table.origin is None:
        return ""
    sources = " ".join(table.origin.sources[:3]) + (" ..." if len(table.origin.sources) > 3 else "")
    return f" They were predicted from {sources} in {table.origin.working_folder}, and are not there now."
