"""fgvc predict: photographs -> one row each, in a CSV or on stdout; talk on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from fgvc_cli.commands.console import stderr_console
from fgvc_cli.commands.predict_progress import PredictProgress
from fgvc_cli.errors import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_SOME_FAILED,
    EXIT_USAGE,
    FgvcError,
)

if TYPE_CHECKING:
    from fgvc_cli.data.find import Found

LIST_ON_STDIN = "-"


def run(
    sources: Sequence[str],
    *,
    weights: str | None = None,
    out: Path | None = None,
    top_k: int = 5,
    batch_size: int = 16,
    workers: int = 2,
    device: str = "auto",
    stages: str | None = None,
    cascade: float | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> int:
    """Predict; returns the exit code of design.md: 0, 3 where a row failed, 130 after Ctrl-C.

    Args:
        sources: folders, files and globs, or ``-`` alone for a list of files on stdin.
        weights: manifest name, file, or None for the default.
        out: the CSV to appear, complete or not at all; None writes rows to stdout as they come.
        stages, cascade: settings of a multi-stage model to answer with; None: as trained.
        quiet: nothing on stderr but errors.

    Raises:
        FgvcError: an output that cannot be written (found out first), sources without an image, weights or a
            device that are not there.
    """
    shared_terminal = out is None and sys.stdout.isatty()
    progress = PredictProgress(stderr_console(), quiet=quiet, live=not shared_terminal)
    try:
        from fgvc_cli.predict.sinks import open_sink

        with open_sink(out, overwrite=overwrite) as sink:
            images = _images(sources, progress)
            from fgvc_cli.engine.allocator import keep_freed_memory
            from fgvc_cli.engine.weights import default_notice, open_weights
            from fgvc_cli.predict.predictor import Predictor

            keep_freed_memory()
            if weights is None:
                progress.note(default_notice())
            predictor = Predictor(
                open_weights(weights, options={"stages": stages, "cascade": cascade}),
                device=device,
                batch_size=batch_size,
                workers=workers,
                top_k=top_k,
            )
            sink.begin(predictor.info)
            with progress, closing(predictor.predict(images)) as rows:
                for row in rows:
                    sink.write(row)
                    progress.on_row(row)
    except KeyboardInterrupt:
        progress.interrupted(out)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _abandon_stdout()
        return EXIT_ERROR
    progress.summary(out)
    return EXIT_SOME_FAILED if progress.failed else EXIT_OK


def _images(sources: Sequence[str], progress: PredictProgress) -> Iterator[Found]:
    from fgvc_cli.data.find import find_images, read_list

    if LIST_ON_STDIN not in sources:
        return find_images(sources, progress.on_unreadable)
    if len(sources) > 1:
        raise FgvcError("- reads the list of images from stdin and stands alone.", None, EXIT_USAGE)
    return read_list(sys.stdin.buffer)


def _abandon_stdout() -> None:
    """Whoever read stdout, ``head`` for example, has gone; Python would flush it once more at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
