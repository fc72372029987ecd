"""Grad-CAM and HiResCAM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fgvc_cli.explain.method import Heats, Method
from fgvc_cli.explain.question import Case
from fgvc_cli.models.cells import align_maps
from fgvc_cli.models.output import ModelOutput, over_maximum


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
