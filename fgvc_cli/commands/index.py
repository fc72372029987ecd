"""fgvc index: labelled photographs -> the file that ``fgvc explain --nearest`` looks them up in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fgvc_cli.commands.console import ConsoleMessages
from fgvc_cli.commands.eval_data import choose_data, known_examples
from fgvc_cli.errors import EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, FgvcError

if TYPE_CHECKING:
    from fgvc_cli.engine.checkpoint import Checkpoint
    from fgvc_cli.formats.rows import Block

SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class IndexRequest:
    """What the command line asks for; see ``cli/index.py``. None: not given."""

    weights: str | None = None
    data: str | None = None
    dataset: str | None = None
    data_root: str | None = None
    split: str | None = None
    out: Path | None = None
    overwrite: bool = False
    batch_size: int = 32
    workers: int = 2
    device: str = "auto"
    quiet: bool = False


def run(request: IndexRequest) -> int:
    """Write the index; without ``data`` and ``dataset``, of what the checkpoint was trained on.

    Returns:
        0, or 3 where a photograph could not be read; the index holds the others.

    Raises:
        FgvcError: an output that is there already, weights or data that cannot be read, an empty split,
            labels that the checkpoint does not know, a model without embeddings.
    """
    if request.split not in (None, *SPLITS):
        expected = f"--split got {request.split!r}, expected one of {', '.join(SPLITS)}."
        raise FgvcError(expected, None, EXIT_USAGE)
    from fgvc_cli.files import check_writable

    out = request.out or default_index(request.weights)
    check_writable(out, overwrite=request.overwrite)
    # As for fgvc predict; read once, as torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from fgvc_cli.engine.device import keep_freed_memory
    from fgvc_cli.engine.weights import default_notice
    from fgvc_cli.retrieval.index_file import index_predictor, left_out, write_index
    from fgvc_cli.run.progress import PredictProgress

    progress = PredictProgress(ConsoleMessages(quiet=request.quiet), live=True)
    if request.weights is None:
        progress.note(default_notice())
    keep_freed_memory()
    checkpoint = open_first_look(request.weights)
    labelled, _ = choose_data(
        checkpoint, request.data, request.dataset, request.data_root, request.split or "train"
    )
    split = request.split or ("train" if labelled.splits.get("train") else "all")
    examples = known_examples(labelled, split, checkpoint.classes)
    progress.total = lambda: len(examples)
    predictor = index_predictor(
        checkpoint, device=request.device, batch_size=request.batch_size, workers=request.workers
    )

    def on_block(block: Block) -> None:
        for line in left_out(block):
            progress.note(line)
        progress.on_block(block)

    with progress:
        write_index(
            out,
            predictor,
            labelled.root,
            examples,
            dataset=labelled.name,
            split=split,
            overwrite=request.overwrite,
            on_block=on_block,
        )
    progress.summary([out])
    return EXIT_SOME_FAILED if progress.failed else EXIT_OK


def default_index(weights: str | None) -> Path:
    """Where the index of ``--weights`` lies where nobody says otherwise.

    Beside the checkpoint; of an embedded model in the current folder, since its own is the installation's.
    """
    from fgvc_cli.engine.weights import resolve_weights
    from fgvc_cli.retrieval.index_file import index_path

    path, entry = resolve_weights(weights)
    return index_path(Path(path.name) if entry else path)


def open_first_look(weights: str | None) -> Checkpoint:
    """The checkpoint; a multi-stage ViT stops after the first look, which its embedding is of."""
    from fgvc_cli.engine.weights import open_weights

    checkpoint = open_weights(weights)
    if not hasattr(checkpoint.model.config, "cascade"):
        return checkpoint
    return open_weights(weights, options={"cascade": 0.0})
