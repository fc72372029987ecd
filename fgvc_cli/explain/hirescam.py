"""HiResCAM (Draelos & Carin 2020, arXiv 2011.08891) of each stage.

Legend: B images, C channels, h w rows and columns of a stage.
"""

from __future__ import annotations

from torch import Tensor

from fgvc_cli.explain.gradcam import GradCam


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
