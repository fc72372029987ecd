"""The contract of every method of explaining: a model and a batch -> heat maps.

Legend: B images, S side of the model's input, h w rows and columns of a map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from fgvc_cli.explain.question import Case
from fgvc_cli.models.output import ModelOutput, Want

Heats = dict[str, Tensor]
"""Name of a map -> (B, h, w) in [0, 1] over the model's input; 0 is no evidence, or the least of it."""


class Method(ABC):
    """One way to say where a model looked. Stateless: one instance serves all."""

    name: ClassVar[str]
    """As typed behind ``--method``; each of its maps is called ``name`` or ``name-something``."""
    describes: ClassVar[str]
    """One line for the help."""
    asks_class: ClassVar[bool] = False
    """Whether its maps are for one class; else they are the same whatever is asked."""
    wants: ClassVar[tuple[Want, ...]] = ()
    """What it reads of the model's answer, asked for once for all methods."""

    @abstractmethod
    def maps(self, model: nn.Module, images: Tensor, output: ModelOutput, case: Case) -> Heats:
        """The maps of a batch.

        Args:
            model: in evaluation mode.
            images: normalised (B, 3, S, S), on the model's device.
            output: the model's answer to them with ``wants``, without gradients.
            case: what to explain, where ``asks_class``.

        Raises:
            FgvcError: a model that this method cannot explain, and why.
        """
