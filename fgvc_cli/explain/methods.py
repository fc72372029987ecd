"""The methods of explaining: a class that is asked about, a model and a batch -> heat maps.

What is to be explained is a ``Question``: for which class an image is looked at, and against which. A new
method is a class, and a place in METHODS.

What the model itself shows are the channel-averaged activations that Wang et al. (2025) draw in Figs. 4-6.
Those of a CNN, and the heat made of them, find what stands out: with random weights they are much the same,
so they are no evidence of what was learnt (benchmarks/RESULTS.md, "Whether the maps are honest").

Occlusion (Zeiler & Fergus, ECCV 2014) hides a place and sees how much less the model is for the class. It
asks only for probabilities, so it serves any model and says what the whole of it does: where a box moves
because its object is hidden, that counts too. An image costs ``POSITIONS`` squared passes.

Legend: B images, K classes, S side of the model's input, h w rows and columns of a map, n cells per side of
an occlusion map, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as v2

from fgvc_cli.errors import EXIT_USAGE, FgvcError, nearest
from fgvc_cli.models.backbones import align_maps
from fgvc_cli.models.output import ModelOutput, Want, over_maximum

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


HEAT = "heat"
"""The map from which the object's box comes; other maps are named as the model names its stage, or ``method``
or ``method-stage`` after the method that made them."""

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


_MAY_REPEAT = (HEAT, "rollout")


class Features(Method):
    """Channel-averaged activations of each stage; of a multi-stage ViT, the attention of its first look."""

    name = "features"
    describes = "what each stage responds to"
    wants = ("stages",)

    def maps(self, model: nn.Module, images: Tensor, output: ModelOutput, case: Case) -> Heats:
        """One map per stage, as the model names them."""
        if not output.stages:
            raise FgvcError("--method features: this model gives no feature maps.", None, EXIT_USAGE)
        return output.stages


class ObjectHeat(Method):
    """The map that the model's own object box is cut from."""

    name = "object"
    describes = "the heat that the object box comes from"
    wants = ("heat",)

    def maps(self, model: nn.Module, images: Tensor, output: ModelOutput, case: Case) -> Heats:
        """One map."""
        if output.heat is None:
            raise FgvcError("--method object: this model gives no object heat.", None, EXIT_USAGE)
        return {HEAT: output.heat}


def stage_maps(output: ModelOutput, row: int = 0) -> dict[str, np.ndarray]:
    """The maps of one image of a batch: its stages in the model's order, then ``HEAT``.

    Returns:
        Name -> (h, w) float32 in [0, 1]; see ``unlike``.
    """
    named = dict(output.stages or {})
    if output.heat is not None:
        named[HEAT] = output.heat
    return unlike(named, row)


def unlike(heats: Heats, row: int) -> dict[str, np.ndarray]:
    """The maps of one image; the heat, or the rollout, of a model whose one stage is that map goes."""
    kept: dict[str, np.ndarray] = {}
    for name, maps in heats.items():
        heat = maps[row].float().cpu().numpy()
        repeats = name in _MAY_REPEAT and any(np.array_equal(heat, other) for other in kept.values())
        if not repeats:
            kept[name] = heat
    return kept


class Rollout(Method):
    """Where information comes from through all layers of a ViT, whatever class is asked about."""

    name = "rollout"
    describes = "where a ViT's layers attended"
    wants = ("rollout",)

    def maps(self, model: nn.Module, images: Tensor, output: ModelOutput, case: Case) -> Heats:
        """One map on the grid of patches; of a multi-stage ViT that of its first look."""
        if output.rollout is None:
            raise FgvcError(
                "--method rollout needs a plain ViT: this model has no attention to follow through layers.",
                "Try --method occlusion or --method features.",
                EXIT_USAGE,
            )
        return {self.name: output.rollout}


CELLS = 12
"""n: cells per side of the map."""
WINDOW = 2
"""Side of what is hidden at a time, cells: a sixth of the input, less than the paper's 50 of 224 px, since
the parts that tell fine-grained classes apart are small."""
POSITIONS = CELLS - WINDOW + 1
LEAST_LOSS = 1e-3
"""Nats below which a loss is rounding: a map of nothing else would be stretched to full scale."""
_PASS = 32
"""Images of one forward pass."""


class Occlusion(Method):
    """Windows replaced by the data's mean, which normalisation makes zero: the paper's grey square."""

    name = "occlusion"
    describes = "how much hiding a place in grey takes from the class"
    asks_class = True

    def maps(self, model: nn.Module, images: Tensor, output: ModelOutput, case: Case) -> Heats:
        """One map of n x n cells: what each takes away, the mean over the windows that hide it."""
        return {self.name: self.heat(output.probs, self.hidden(model, images), case)}

    @torch.no_grad()
    def hidden(self, model: nn.Module, images: Tensor) -> Tensor:
        """What the model answers with each window hidden: (B, positions squared, K), whatever is asked."""
        fill = self.fill(images)
        return torch.stack([self._probs(model, *pair) for pair in zip(images, fill, strict=True)])

    def heat(self, probs: Tensor, hidden: Tensor, case: Case) -> Tensor:
        """The map (B, n, n) of a question, from the answers before (B, K) and those of ``hidden``."""
        after = case.repeated(hidden.shape[1]).score(hidden.flatten(0, 1)).view(-1, POSITIONS, POSITIONS)
        losses = case.score(probs)[:, None, None] - after
        return over_maximum(spread_losses(torch.where(losses > LEAST_LOSS, losses, 0)))

    def fill(self, images: Tensor) -> Tensor:
        """What is put in place of what is hidden, (B, 3, S, S)."""
        return torch.zeros_like(images)

    @staticmethod
    def _probs(model: nn.Module, image: Tensor, fill: Tensor) -> Tensor:
        """The probabilities of one image (3, S, S) with each window hidden, (positions squared, K)."""
        windows = list(_windows(image.shape[-1]))
        probs = []
        for first in range(0, len(windows), _PASS):
            chunk = windows[first : first + _PASS]
            hidden = image.repeat(len(chunk), 1, 1, 1)
            for one, (rows, columns) in zip(hidden, chunk, strict=True):
                one[:, rows, columns] = fill[:, rows, columns]
            probs.append(model(hidden).probs)
        return torch.cat(probs)


class OcclusionBlur(Occlusion):
    """Windows replaced by a blurred copy: what is hidden leaves no edges of its own, colours stay."""

    name = "occlusion-blur"
    describes = "the same, hidden in a blur"

    def fill(self, images: Tensor) -> Tensor:
        """The images behind a Gaussian whose width is that of a cell."""
        sigma = images.shape[-1] / CELLS
        return v2.gaussian_blur(images, [2 * round(2 * sigma) + 1] * 2, [sigma, sigma])


def spread_losses(losses: Tensor) -> Tensor:
    """What each window took away (B, positions, positions) -> each cell's mean over the windows that hide it,
    (B, n, n)."""
    kernel = losses.new_ones(1, 1, WINDOW, WINDOW)
    total = nn.functional.conv_transpose2d(losses[:, None], kernel)
    count = nn.functional.conv_transpose2d(torch.ones_like(losses[:1, None]), kernel)
    return (total / count).squeeze(1)


def _windows(side: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of each window in pixels, row by row."""
    edges = [round(i * side / CELLS) for i in range(CELLS + 1)]
    spans = [slice(edges[i], edges[i + WINDOW]) for i in range(POSITIONS)]
    for rows in spans:
        for columns in spans:
            yield rows, columns


class GradCam(Method):
    """ReLU of the sum of the stage's channels, each times the mean slope of the score along it (Eq. 1, 2).

    The score is ``Case.score`` of the fused probabilities in place of the class's logit. The feature maps
    come from the model's own answer (``want={"features"}``), so that nothing is hooked. A multi-stage ViT is
    explained by its first look: boxes carry no gradient to what they were cut from. Of a ViT's last stage the
    map is that of the patches that its pooling reads. On the Aviary it fails tests that occlusion passes
    (benchmarks/RESULTS.md, "Whether the maps are honest").
    """

    name = "gradcam"
    describes = "what in each stage speaks for the class, by gradients"
    asks_class = True

    def maps(self, model: nn.Module, images: Tensor, output: ModelOutput, case: Case) -> Heats:
        """One map per stage, in its own cells."""
        with torch.enable_grad():
            answer: ModelOutput = model(images, want=("features",))
            stages = answer.features or {}
            # Images do not mix in evaluation mode: the sum's gradient is each image's own.
            total = case.score(answer.probs).sum()
            slopes = torch.autograd.grad(total, [stage.values for stage in stages.values()])
        return {
            f"{self.name}-{name}": self.cam(stage.values.detach(), slope, stage.shift)
            for (name, stage), slope in zip(stages.items(), slopes, strict=True)
        }

    def cam(self, features: Tensor, slopes: Tensor, shift: float = 0.0) -> Tensor:
        """Features and gradients (B, C, h, w) -> maps (B, h, w) in [0, 1], each cell in its place.

        All zeros where nothing speaks for the class.
        """
        weighted = self.weights(slopes.float()) * features.float()
        return over_maximum(align_maps(weighted.sum(dim=1), shift))

    def weights(self, slopes: Tensor) -> Tensor:
        """What the features are multiplied by: (B, C, h, w) -> (B, C, 1, 1) or (B, C, h, w)."""
        return slopes.mean(dim=(-2, -1), keepdim=True)


class HiResCam(GradCam):
    """Grad-CAM without its mean: ReLU of the sum over channels of slope times feature, each at its own place.

    map(y, x) = ReLU(sum over c of ds/dA_c(y, x) * A_c(y, x)), s being ``Case.score`` and A the stage. Where a
    linear layer follows the stage, this is what each place adds to a difference of two logits, exactly, and
    all places together with the bias are that difference; Grad-CAM is the same only behind a global average.
    On the Aviary it points better than Grad-CAM, and only stage 4 of a CNN passes every test
    (benchmarks/RESULTS.md, "Whether the maps are honest").
    """

    name = "hirescam"
    describes = "what each place of each stage adds for the class, by gradients"

    def weights(self, slopes: Tensor) -> Tensor:
        """The slopes as they are."""
        return slopes


METHODS: dict[str, Method] = {
    method.name: method
    for method in (Features(), ObjectHeat(), Rollout(), Occlusion(), OcclusionBlur(), HiResCam(), GradCam())
}


def pick_methods(names: Sequence[str], *, asked: bool = False) -> tuple[Method, ...]:
    """Methods by name, each once, in the order given; none for none.

    Args:
        asked: whether a class is asked about. Then, without a name, it is occlusion that answers: of those
            that can, it alone passes every test on both families (benchmarks/RESULTS.md, "Whether the maps
            are honest"), for about 100 times the cost of the gradients.

    Raises:
        FgvcError: an unknown name, with the nearest; a class asked of methods that answer for none.
    """
    for name in names:
        if name not in METHODS:
            near = nearest(name, METHODS)
            if name == "stages":
                # Its name until --stages came to mean those of a multi-stage ViT.
                raise FgvcError("--method stages is called features now.", "--method features", EXIT_USAGE)
            hint = f"Nearest: {', '.join(near)}." if near else f"Known: {', '.join(METHODS)}."
            raise FgvcError(f"--method got {name!r}, which is no method.", hint, EXIT_USAGE)
    chosen = tuple(METHODS[name] for name in dict.fromkeys(names))
    if not asked:
        return chosen
    if chosen and not any(method.asks_class for method in chosen):
        answering = " or ".join(name for name, method in METHODS.items() if method.asks_class)
        raise FgvcError(
            f"--target and --against change nothing in {', '.join(m.name for m in chosen)}.",
            f"Add --method {answering}.",
            EXIT_USAGE,
        )
    return chosen or (METHODS[Occlusion.name],)
