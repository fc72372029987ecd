"""Training in several processes, one per device, on one machine or on many.

TorchElastic starts them (``fgvc train --devices N``, or ``torchrun`` on clusters) and sets RANK, WORLD_SIZE
and LOCAL_RANK. Every process holds the whole model and takes its part of each batch; gradients are averaged
(DistributedDataParallel). Each method below is called by all processes or by none: they wait for each other.

``fgvc train --devices N``: TorchElastic starts the processes, and again if one dies.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import timm.layers
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fgvc_cli.command import Messages
from fgvc_cli.config import usable_cpus
from fgvc_cli.errors import EXIT_ERROR, EXIT_INTERRUPTED, FgvcError, Interrupted
from fgvc_cli.files import FolderLock

_SYNC_BUFFERS = "forward_sync_buffers"
if _SYNC_BUFFERS not in inspect.signature(DistributedDataParallel).parameters:
    _SYNC_BUFFERS = "broadcast_buffers"  # its name before torch 2.13

_VARIABLES = ("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")

_Model = TypeVar("_Model", bound=nn.Module)


@dataclass(frozen=True)
class World:
    """This process among those that train together; alone by default."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Place on this machine: which of its devices is ours."""

    @property
    def here(self) -> int:
        """How many of them are on this machine."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.size)) if self.size > 1 else 1

    @property
    def is_main(self) -> bool:
        """Whether this process talks and writes."""
        return self.rank == 0

    def counts(self, count: int) -> list[int]:
        """The ``count`` of every process, by rank."""
        if self.size == 1:
            return [count]
        every = [torch.zeros((), dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(every, torch.tensor(count))
        return [int(one) for one in every]

    def main_says(self, answer: bool) -> bool:
        """The main process's answer, for all; the others' own does not count."""
        if self.size == 1:
            return answer
        told = torch.tensor([int(answer)])
        dist.broadcast(told, src=0)
        return bool(told)

    def gather(self, value: Any) -> list[Any]:
        """The ``value`` of every process, by rank; tensors in it are on the CPU."""
        gathered: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(gathered, value)
        return gathered

    def copy_from_main(self, tensors: list[Tensor]) -> None:
        """Overwrite ``tensors`` with those of the main process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def wrap(self, model: nn.Module) -> nn.Module:
        """A forward whose gradients are averaged over the processes; the model itself when alone.

        Wrap again when other parameters learn: those that rest take no part in the averaging.
        """
        if self.size == 1:
            return model
        # Gradients are not copied to be sent, and buffers stay each process's own until validation, where
        # those of the main process count.
        own_buffers: dict[str, Any] = {_SYNC_BUFFERS: False}
        return DistributedDataParallel(model, gradient_as_bucket_view=True, **own_buffers)

    def without_exchange(self, wrapped: nn.Module) -> contextlib.AbstractContextManager[None]:
        """While active, gradients of what ``wrap`` gave add up in each process by itself."""
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else contextlib.nullcontext()

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over the processes of each value, on the CPU."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def synchronize_batchnorm(self, model: _Model) -> _Model:
        """Batch norms that take their statistics from all processes' batches; CUDA only."""
        if self.size == 1:
            return model
        converted: _Model = timm.layers.convert_sync_batchnorm(model)
        return converted


ALONE = World()


class ProcessLost(FgvcError):
    """This process cannot go on because others ended; starting all again may help."""


def find_world() -> World:
    """From the environment that TorchElastic sets; alone where it does not."""
    return World(*(int(os.environ.get(name, usual)) for name, usual in _VARIABLES))


def restarts() -> int:
    """How often TorchElastic started the processes again because one died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextlib.contextmanager
def joined(world: World, device: torch.device) -> Iterator[None]:
    """Be one of the group for a block: gloo between CPUs and for plain values, NCCL between CUDA devices."""
    if world.size == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=_fresh_store(), rank=world.rank, world_size=world.size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _fresh_store() -> dist.Store:
    """Where processes find each other, without what those before a restart wrote.

    On one machine TorchElastic keeps its store over a restart, and with it the addresses of processes that
    are gone: the new ones would wait for them. Machines may count restarts differently, so there it stays.
    """
    store, _, size = next(dist.rendezvous("env://"))
    alone = int(os.environ.get("LOCAL_WORLD_SIZE", "0")) == size
    return dist.PrefixStore(f"start-{restarts()}", store) if alone else store


RESTARTS = 3
"""How often all processes start again after one died; each time from the last saved state."""
STOP_SECONDS = 15
"""How long a process may take to end after it was asked to."""
WATCH_SECONDS = 1.0
"""Between two looks whether the process that started the others is still there."""
_LAUNCHER = "FGVC_LAUNCHER"
"""Its process number, in the environment of the others."""
_GAVE_UP = "gave-up"
"""Lies beside the state when a process ended with an error that a restart would only meet again."""


class Silent:
    """``run_state.Observer`` of the processes that are not the main one: warnings alone are said."""

    def __init__(self, messages: Messages):
        self.messages = messages

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing was opened."""

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """The main process says it."""

    def on_epoch(self, epoch: int, row: dict[str, float], best: bool) -> None:
        """The main process says it."""

    def on_warning(self, message: str) -> None:
        """One line."""
        self.messages.warn(message)


class EndedByAnother(Exception):
    """Another process of this training has ended it with an error, and has said why."""


def launch(run_dir: Path, devices: int, arguments: list[str]) -> None:
    """Train from the saved state of ``run_dir`` in ``devices`` processes of this machine.

    Args:
        arguments: of ``fgvc train --resume RUN`` beside the run folder.

    Raises:
        FgvcError: another process trains in the folder; processes kept dying.
        EndedByAnother: a process failed, and has said why.
        Interrupted: Ctrl-C; it has been said how to go on.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with FolderLock(run_dir / "last"):  # nobody else trains there
        (run_dir / "last" / _GAVE_UP).unlink(missing_ok=True)
    # Our own lines say what happened.
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // devices)))
    os.environ[_LAUNCHER] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=f"fgvc-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=RESTARTS,
        shutdown_timeout=STOP_SECONDS,
    )
    command = ["-m", "fgvc_cli", "train", "--resume", str(run_dir), *arguments]
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        if code < 0:
            raise FgvcError(
                f"A process died by {signal.Signals(-code).name}, as it did {RESTARTS} times before.",
                f"Go on with: fgvc train --resume {run_dir}",
            ) from None
        if code == EXIT_INTERRUPTED:
            raise Interrupted from None
        raise EndedByAnother from None
    except SignalException:
        raise Interrupted from None


@contextlib.contextmanager
def errors_end_all(run_dir: Path) -> Iterator[None]:
    """In a process of several: a user's error is the end of all, not a reason to start them again."""
    _end_with(os.environ.get(_LAUNCHER))
    try:
        yield
    except ProcessLost:
        raise
    except FgvcError as error:
        with contextlib.suppress(OSError):
            (run_dir / "last" / _GAVE_UP).write_text(f"{error}\n")
        raise


def _end_with(launcher: str | None) -> None:
    """End this process soon after the one that started it all, which may be killed without a word."""

    def watch() -> None:
        while _is_running(int(launcher or 0)):
            time.sleep(WATCH_SECONDS)
        os._exit(EXIT_ERROR)

    if launcher:
        threading.Thread(target=watch, daemon=True).start()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def gave_up(run_dir: Path) -> bool:
    """Whether the processes of this training ended with an error before this restart."""
    return (run_dir / "last" / _GAVE_UP).exists()
