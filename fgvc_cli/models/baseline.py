"""Plain timm classifiers behind the same contract, so that a module's gain is one flag away.

Legend: B batch, K classes, D feature width, h w rows and columns of the last feature map.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from fgvc_cli.attention.objects import locate_objects
from fgvc_cli.config import BaselineConfig
from fgvc_cli.models.backbones import checkpoint_gradients
from fgvc_cli.models.cells import align_maps, cell_shift, leaves
from fgvc_cli.models.output import ModelOutput, Want, class_probs, scale_maps


class Baseline(nn.Module):
    """A timm network with one linear classifier.

    Args:
        backbone: a timm network built without classifier.
        num_classes: K.
        config: see ``BaselineConfig``.
    """

    branches = ("main",)
    part_count = 0

    def __init__(self, backbone: nn.Module, num_classes: int, config: BaselineConfig):
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.backbone = backbone
        width = int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]
        self.heads = nn.Sequential(nn.Dropout(config.drop_rate), nn.Linear(width, num_classes))

    def forward(self, images: Tensor, want: Collection[Want] = ()) -> ModelOutput:
        """Normalised images (B, 3, H, W) -> ``ModelOutput`` with the one branch ``main``."""
        features = self.backbone.forward_features(images)  # type: ignore[operator]
        pooled = self.backbone.forward_head(features, pre_logits=True)  # type: ignore[operator]
        logits = self.heads(pooled)
        probs = class_probs(logits, self.config.multi_label)
        output = ModelOutput(logits={"main": logits}, probs=probs)
        if {"heat", "boxes", "stages"} & {*want}:
            maps = self._activation(features, images).float()
            stride = round(images.shape[-1] / maps.shape[-1])
            heat = scale_maps(align_maps(maps, cell_shift(leaves(self.backbone), stride)))
            output.heat = heat if "heat" in want else None
            output.stages = {"last_stage": heat} if "stages" in want else None
            output.boxes = locate_objects(heat, images.shape[-2:]) if "boxes" in want else None
        if "embedding" in want:
            output.embedding = pooled
        return output

    def for_inference(self) -> Baseline:
        """Evaluation mode."""
        return self.eval()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """See ``backbones.checkpoint_gradients``."""
        checkpoint_gradients(self.backbone, enable)

    def _activation(self, features: Tensor, images: Tensor) -> Tensor:
        """Channel-averaged last features as a map (B, h, w); tokens go back to their grid."""
        if features.ndim == 3:
            tokens = features[:, int(getattr(self.backbone, "num_prefix_tokens", 0)) :].mean(dim=-1)
            height, width = images.shape[-2:]
            rows = round((tokens.shape[1] * height / width) ** 0.5)
            return tokens.view(tokens.shape[0], rows, -1)
        channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        return features.mean(dim=-1 if channels_last else 1)
