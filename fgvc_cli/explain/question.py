"""What is to be explained: for which class an image is looked at, and against which.

Legend: B images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fgvc_cli.errors import EXIT_USAGE, FgvcError, nearest

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Question:
    """Why this class, or why this one and not that one; None leaves it to the model's answer."""

    target: int | None = None
    """Class to explain; None: the most probable one of each image."""
    against: int | None = None
    """Class to contrast it with; None: all others together."""
    multi_label: bool = False
    """Whether each class is a yes or no of its own."""

    def ask(self, probs: Tensor) -> Case:
        """The question put to a batch, fused probabilities (B, K).

        Where an image's most probable class is the one to contrast with, the next one is explained.
        """
        if self.target is not None:
            targets = torch.full_like(probs[:, 0], self.target, dtype=torch.long)
        else:
            ranked = probs.detach().clone()
            if self.against is not None:
                ranked[:, self.against] = -1
            targets = ranked.argmax(dim=1)
        rivals = None if self.against is None else torch.full_like(targets, self.against)
        return Case(targets, rivals, self.multi_label)


@dataclass(frozen=True)
class Case:
    """A question about each image of a batch."""

    targets: Tensor
    """int64 (B,)."""
    rivals: Tensor | None = None
    """int64 (B,), or None for all other classes together."""
    multi_label: bool = False

    def score(self, probs: Tensor) -> Tensor:
        """How much the fused probabilities (B, K) speak for the targets: float32 (B,), in nats.

        Against all others: the log odds, log p_t - log sum of the others' p. Against one: log p_t - log p_r.
        For a single softmax these are z_t - logsumexp of the other logits, and z_t - z_r. Unlike log p, whose
        gradient vanishes where the model is sure, and unlike a logit, which a model that fuses several
        branches has only per branch, this serves every family and keeps its slope. Selvaraju et al. (2017)
        take the class's logit itself; the difference is the rivals' share. Of several labels, each a yes or
        no, it is the log odds of the target's yes, and the difference of two log odds.
        """
        if self.multi_label:
            probs = probs.float()
            logs = probs.clamp_min(_TINY).log() - (1 - probs).clamp_min(_TINY).log()
            own = logs.gather(1, self.targets[:, None]).squeeze(1)
            return own if self.rivals is None else own - logs.gather(1, self.rivals[:, None]).squeeze(1)
        logs = probs.float().clamp_min(_TINY).log()
        own = logs.gather(1, self.targets[:, None]).squeeze(1)
        if self.rivals is not None:
            return own - logs.gather(1, self.rivals[:, None]).squeeze(1)
        if logs.shape[1] == 1:
            return own
        return own - logs.scatter(1, self.targets[:, None], -torch.inf).logsumexp(dim=1)

    def repeated(self, times: int) -> Case:
        """The same question about ``times`` versions of each image, version by version of the first one."""
        rivals = None if self.rivals is None else self.rivals.repeat_interleave(times)
        return Case(self.targets.repeat_interleave(times), rivals, self.multi_label)


def build_question(
    classes: tuple[str, ...], target: str | None, against: str | None, *, multi_label: bool = False
) -> Question:
    """A question from class names as typed; case does not matter where that leaves one class.

    Raises:
        FgvcError: a class that the model does not know, with the nearest ones; a class against itself.
    """
    found = Question(_index(classes, "--target", target), _index(classes, "--against", against), multi_label)
    if found.target is not None and found.target == found.against:
        raise FgvcError(f"--target and --against are both {target!r}.", "Name two classes.", EXIT_USAGE)
    if found.against is not None and len(classes) < 2:
        raise FgvcError("--against needs a model of two classes or more.", None, EXIT_USAGE)
    return found


def _index(classes: tuple[str, ...], option: str, name: str | None) -> int | None:
    if name is None:
        return None
    if name in classes:
        return classes.index(name)
    lower = name.casefold()
    same = [index for index, known in enumerate(classes) if known.casefold() == lower]
    if len(same) == 1:
        return same[0]
    # Part of a name is what people remember of a long one.
    near = nearest(name, classes) or [known for known in classes if lower and lower in known.casefold()][:3]
    hint = f"Nearest: {', '.join(near)}." if near else f"It knows {', '.join(classes[:3])}, ..."
    raise FgvcError(f"{option} got {name!r}, which is no class of the model.", hint, EXIT_USAGE)
