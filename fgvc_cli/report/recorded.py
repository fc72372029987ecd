"""The photographs of a prediction file where it says that they were, as long as they are there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fgvc_cli.data.archives import is_archive
from fgvc_cli.data.remote import local_path
from fgvc_cli.report.pictures import file_name
from fgvc_cli.report.table import Table


def recorded_images(table: Table) -> str | None:
    """What the rows' paths are relative to, as ``PictureMaker`` takes it; None where it is not known or gone.

    Relative sources are looked for where they were typed, then in the current folder and beside the
    prediction file, with which they may have moved. What counts is that the first photograph with a
    prediction is there: a folder of the same name may be another. No network is asked.
    """
    if table.origin is None:
        return None
    bases = (Path(file_name(table.origin.working_folder)), Path.cwd(), table.source.absolute().parent)
    return next((root for base in dict.fromkeys(bases) if (root := _below(base, table))), None)


def _below(base: Path, table: Table) -> str | None:
    sources = table.origin.sources if table.origin else ()
    answered = np.flatnonzero(table.answered)
    first = file_name(table.rows.path[answered[0] if len(answered) else 0])
    # One folder or archive: paths are relative to it. Else they are as given.
    if len(sources) == 1:
        source = base / file_name(local_path(sources[0]))
        if is_archive(source.name) and source.is_file():
            return str(source)
        if source.is_dir():
            return str(source) if (source / first).is_file() else None
    return str(base) if os.path.isfile(base / first) else None
