"""The labelled images that a training config names, and the boxes that a set brings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from fgvc_cli.config import TrainConfig
from fgvc_cli.data.labelled import LabelledSet, load_labelled
from fgvc_cli.datasets.aircraft import read_aircraft_boxes
from fgvc_cli.datasets.boxes import BOXES_CSV, TrueBoxes, read_box_table
from fgvc_cli.datasets.cub import read_cub_boxes
from fgvc_cli.datasets.dogs import read_dogs_boxes
from fgvc_cli.datasets.registry import load_known
from fgvc_cli.errors import EXIT_USAGE, FgvcError


def load_data(config: TrainConfig, *, for_training: bool = True) -> LabelledSet:
    """List the set under ``config.data`` or ``config.dataset``.

    Args:
        for_training: see ``load_labelled``; a known set always has its own splits.

    Raises:
        FgvcError: neither or both are named, or the set cannot be listed.
    """
    if bool(config.data) == bool(config.dataset):
        raise FgvcError(
            "Give either --data PATH (a class-per-folder folder or a CSV with path,label[,split]) "
            "or --dataset NAME.",
            "For example: fgvc train --data birds --model crasmra-r50",
            EXIT_USAGE,
        )
    if config.dataset:
        root = Path(config.data_root) if config.data_root else None
        return load_known(config.dataset, root, val_share=config.val_share, seed=config.split_seed)
    return load_labelled(
        Path(config.data or ""),
        val_share=config.val_share,
        test_share=config.test_share,
        seed=config.split_seed,
        for_training=for_training,
    )


def load_boxes(root: Path, paths: Iterable[str]) -> dict[str, TrueBoxes]:
    """The boxes of those photographs of a set that have any.

    Args:
        root: the set's folder.
        paths: relative to ``root``, POSIX, as ``Example.path``.

    Returns:
        Path -> boxes; empty for a set without.

    Raises:
        FgvcError: a file of boxes that does not read.
    """
    for marker, read in _readers().items():
        if (root / marker).exists():
            try:
                return read(root, paths)
            except (OSError, ValueError, KeyError, SyntaxError) as error:
                why = " ".join(f"{type(error).__name__}: {error}".split())
                raise FgvcError(
                    f"The boxes in {root / marker} do not read ({why}).",
                    "Mend the file, or move it away to evaluate without boxes.",
                ) from error
    return {}


def _readers() -> dict[str, Callable[[Path, Iterable[str]], dict[str, TrueBoxes]]]:
    """The file or folder that holds the boxes -> what reads it. The sets' modules import this one."""
    return {
        BOXES_CSV: read_box_table,
        "bounding_boxes.txt": read_cub_boxes,
        "images_box.txt": read_aircraft_boxes,
        "Annotation": read_dogs_boxes,
    }
