"""CUDA without a card: models on fake tensors that say they are on ``cuda:0``, and what makes the host wait.

Fake tensors (``torch._subclasses.FakeTensorMode``) have shapes, types and devices, but no numbers. Every
operator checks them as a card would: tensors of two devices do not mix. Backward passes cannot run: the
autograd engine asks the driver for a stream.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten

_UNKNOWN_SIZES = ("masked_select", "_unique2", "unique_dim", "unique_consecutive")
"""Operators whose result has as many rows as the values say: the host waits to learn how many."""


def caller() -> str:
    """File of the package that called into torch last, as ``room/file.py``."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        _, found, place = frame.f_code.co_filename.rpartition("fgvc_cli/")
        if found:
            return place
        frame = frame.f_back
    return "outside the package"


class HostWaits(TorchDispatchMode):
    """While active, counts what would make the host wait for the card, as "what room/file.py" in ``waits``.

    Answers what depends on numbers as a run most likely would: masks are full, tensors compared are equal.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def _wait(self, what: str) -> None:
        self.waits[f"{what} {caller()}"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace != "aten":
            return func(*args, **kwargs)
        on_cuda = any(leaf.is_cuda for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        name, composite = _name_of(func)
        if on_cuda and (name in _UNKNOWN_SIZES or func is aten.repeat_interleave.Tensor):
            self._wait(name)
        if func is aten._local_scalar_dense.default:
            if on_cuda:
                self._wait("item")
            if isinstance(args[0], FakeTensor):
                kind = args[0].dtype
                return True if kind == torch.bool else 1.0 if kind.is_floating_point else 1
        elif func in (aten.equal.default, aten.allclose.default) and on_cuda:
            self._wait(name)
            return True
        elif func is aten.nonzero.default and isinstance(args[0], FakeTensor):
            if on_cuda:
                self._wait(name)
            return torch.zeros(args[0].numel(), args[0].ndim, dtype=torch.int64, device=args[0].device)
        elif name in ("index", "index_put", "index_put_") and on_cuda:
            for index in args[1]:
                if isinstance(index, Tensor) and (index.dtype == torch.bool or not index.is_cuda):
                    self._wait("mask" if index.dtype == torch.bool else "index")
            if any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]):
                return args[0] if "put" in name else args[0].new_empty(args[0].shape)
        if composite:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            source, target = (args[1], args[0]) if name == "copy_" else (args[0], out)
            non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
            if source.device.type != target.device.type and not non_blocking:
                self._wait(f"{source.device.type}->{target.device.type}")
        return out


@functools.cache
def _name_of(func: Any) -> tuple[str, bool]:
    """Name of an operator, and whether it is made of others, which are then looked at one by one."""
    made_of_others = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    return func._schema.name.removeprefix("aten::"), made_of_others and func is not aten.detach.default


def to_fake_cuda(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A module whose parameters and buffers are fake ones on the card, with their strides; itself changed."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with mode:
                empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return made[id(tensor)]

    for part in module.modules():
        for named in (part._parameters, part._buffers):
            named.update({name: fake(tensor) for name, tensor in named.items() if tensor is not None})
    return module


class _Anything:
    """A stream or an event."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


@contextlib.contextmanager
def fake_cuda() -> Iterator[HostWaits]:
    """A card as far as the package asks: modules move to it, streams and events do nothing."""
    mode, waits = FakeTensorMode(allow_non_fake_inputs=True), HostWaits()

    def move(module: nn.Module, device: Any = None, **_: Any) -> nn.Module:
        on_card = device is not None and torch.device(device).type == "cuda"
        return to_fake_cuda(module, mode) if on_card else module

    def empty(*size: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        return _empty(*size, **kwargs)

    def backward(loss: Tensor, *_: Any, **__: Any) -> None:
        for leaf in _leaves(loss):
            leaf.grad = torch.empty_like(leaf.detach())

    def numpy(tensor: Tensor, **_: Any) -> np.ndarray:
        return np.empty(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    _empty = torch.empty
    with contextlib.ExitStack() as stack:
        for target, replacement in (
            ("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
            ("torch.cuda.is_bf16_supported", lambda *_, **__: True),
            ("torch.cuda.Stream", _Anything),
            ("torch.cuda.Event", _Anything),
            ("torch.cuda.current_stream", _Anything),
            ("torch.cuda.stream", lambda *_: contextlib.nullcontext()),
            ("torch.cuda.device", lambda *_: contextlib.nullcontext()),
            ("torch.empty", empty),
            ("torch.Tensor.record_stream", lambda *_: None),
            ("torch.Tensor.backward", backward),
            ("torch.Tensor.numpy", numpy),
            ("torch.nn.Module.to", move),
        ):
            stack.enter_context(mock.patch(target, replacement))
        stack.enter_context(mode)
        stack.enter_context(waits)
        yield waits


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """The parameters that a loss was computed from."""
    seen, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        todo += [parent for parent, _ in node.next_functions]
