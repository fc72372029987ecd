"""Means over an epoch that do not make the device wait."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fgvc_cli.engine.distributed import World


class Meter:
    """Sums of scalars over images, kept on the device in float64 until somebody asks.

    Reading a number back from a GPU at every step would make the CPU wait for the step to end.
    """

    def __init__(self) -> None:
        self.images = 0
        self._sums: dict[tuple[str, ...], Tensor] = {}

    def add(self, values: dict[str, Tensor], images: int) -> None:
        """Count scalars that are means over ``images``."""
        names = tuple(values)
        stacked = torch.stack([value.detach().double() for value in values.values()]) * images
        self._sums[names] = self._sums[names] + stacked if names in self._sums else stacked
        self.images += images

    def means(self) -> dict[str, float]:
        """Name -> mean over all images so far; waits for the device."""
        sums: dict[str, float] = {}
        for names, values in self._sums.items():
            for name, value in zip(names, values.tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + value
        return {name: value / self.images for name, value in sums.items()}

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
            key, values = tuple(names), torch.tensor(sums, dtype=torch.float64, device=device)
            self._sums[key] = self._sums[key] + values if key in self._sums else values
