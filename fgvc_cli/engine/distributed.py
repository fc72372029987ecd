"""Training in several processes, one per device, on one machine or on many.

TorchElastic starts them (``fgvc train --devices N``, or ``torchrun`` on clusters) and sets RANK, WORLD_SIZE
and LOCAL_RANK. Every process holds the whole model and takes its part of each batch; gradients are averaged
(DistributedDataParallel). Each method below is called by all processes or by none: they wait for each other.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import timm.layers
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fgvc_cli.errors import FgvcError

_SYNC_BUFFERS = "forward_sync_buffers"
if _SYNC_BUFFERS not in inspect.signature(DistributedDataParallel).parameters:
    _SYNC_BUFFERS = "broadcast_buffers"  # its name before torch 2.13

_VARIABLES = ("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")


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
        own_buffers = {_SYNC_BUFFERS: False}
        return DistributedDataParallel(model, gradient_as_bucket_view=True, **own_buffers)

    def without_exchange(self, wrapped: nn.Module) -> contextlib.AbstractContextManager[None]:
        """While active, gradients of what ``wrap`` gave add up in each process by itself."""
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else contextlib.nullcontext()

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over the processes of each value, on the CPU."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def synchronize_batchnorm(self, model: nn.Module) -> nn.Module:
        """Batch norms that take their statistics from all processes' batches; CUDA only."""
        return timm.layers.convert_sync_batchnorm(model) if self.size > 1 else model


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
