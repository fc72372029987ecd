"""The labelled photographs that a training config names."""

from __future__ import annotations

from pathlib import Path

from fgvc_cli.config import TrainConfig
from fgvc_cli.data.known import load_known
from fgvc_cli.data.labelled import LabelledSet, load_labelled
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
