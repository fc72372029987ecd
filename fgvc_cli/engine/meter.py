"""Means over an epoch that do not make the device wait."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fgvc_cli.engine.distributed import World
from fgvc_cli.models.output import summarize_stats


class Meter:
    """Sums over images, kept on the device in float64 until somebody asks.

    Reading a number back from a GPU at every step would make the CPU wait for the step to end.
    """

    def __init__(self) -> None:
        self.images = 0
        self._sums: dict[tuple[str, ...], Tensor] = {}

    def add(self, values: dict[str, Tensor], images: int) -> None:
        """Count scalars, or rates per channel (C,), that are means over ``images``."""
        scalars = {name: value for name, value in values.items() if not value.dim()}
        self._add(
            tuple(scalars), torch.stack([value.detach().double() for value in scalars.values()]) * images
        )
        for name, value in values.items():
            if value.dim():
                self._add((name,), value.detach().double() * images)
        self.images += images

    def _add(self, names: tuple[str, ...], sums: Tensor) -> None:
        self._sums[names] = self._sums[names] + sums if names in self._sums else sums

    def means(self) -> dict[str, float]:
        """Name -> mean over all images so far, rates per channel as ``summarize_stats`` has them; waits for
        the device."""
        sums: dict[str, Tensor] = {}
        for names, values in self._sums.items():
            parts = values.cpu().unbind() if len(names) == len(values) else (values.cpu(),)
            for name, value in zip(names, parts, strict=True):
                sums[name] = sums[name] + value if name in sums else value
        return summarize_stats({name: value / self.images for name, value in sums.items()})

    def joined(self, world: World) -> Meter:
        """Over the images of all processes; each has to ask."""
        whole = Meter()
        for state in world.gather(self.state()) if world.size > 1 else [self.state()]:
            whole.load(state, torch.device("cpu"))
        return whole

    def state(self) -> dict[str, Any]:
        """What ``load`` takes, as plain values."""
        return {"images": self.images, "sums": [[names, sums.tolist()] for names, sums in self._sums.items()]}

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Add the sums of ``state``."""
        self.images += state["images"]
        for names, sums in state["sums"]:
            self._add(tuple(names), torch.tensor(sums, dtype=torch.float64, device=device))
