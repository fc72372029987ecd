"""What to say when memory runs out: the batch that would have fitted."""

from __future__ import annotations

import gc

import torch

from fgvc_cli.config import TrainConfig
from fgvc_cli.data.loaders import Batch
from fgvc_cli.engine.device import is_out_of_memory, release_memory
from fgvc_cli.engine.learner import Learner
from fgvc_cli.engine.meter import Meter
from fgvc_cli.errors import FgvcError


def out_of_memory(learner: Learner, config: TrainConfig) -> FgvcError:
    """The user's line. Tries smaller batches, so the learner is not to be used after it.

    Call it outside the ``except`` block: the exception holds the activations of the step that failed.
    """
    side = config.augment.train_px or config.preprocess.input_px
    what = f"Out of memory with batches of {config.batch_size} at {side} px on {learner.device}."
    if learner.world.size > 1:
        half = max(2, config.batch_size // 2)
        keeps = f"--set accumulate={-(-config.batch_size * config.accumulate // half)}"
        return FgvcError(what, f"Try --batch-size {half}; {keeps} keeps the photographs per update.")
    fitting = largest_batch(learner, config.batch_size // 2, side)
    if fitting is None:
        hint = "Not even a batch of 2 fits: take a smaller --input-px or model"
        return FgvcError(
            what, hint + ("." if config.grad_checkpointing else ", or --set grad_checkpointing=yes.")
        )
    accumulate = -(-config.batch_size * config.accumulate // fitting)
    return FgvcError(
        what,
        f"A batch of {fitting} fits; --batch-size {fitting} --set accumulate={accumulate} "
        f"keeps {fitting * accumulate} photographs per update.",
    )


def largest_batch(learner: Learner, start: int, side: int) -> int | None:
    """Halve a batch from ``start`` until a whole update goes through.

    Args:
        start: photographs.
        side: of their input, pixels.

    Returns:
        A number of photographs, at least 2, or None.
    """
    size = start
    while size >= 2:
        if _fits(learner, size, side):
            return size
        size //= 2
    return None


def _fits(learner: Learner, size: int, side: int) -> bool:
    learner.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    release_memory(learner.device)
    batch = Batch(
        torch.zeros(size, 3, side, side, dtype=torch.uint8),
        torch.zeros(size, dtype=torch.int64),
        torch.arange(size),
        [],
    )
    try:
        learner.update([((0,), batch)], size, Meter())
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return False
        raise
    return True
