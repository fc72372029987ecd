"""Object boxes follow the object: those of an image and of its 180-degree turn correspond."""

from __future__ import annotations

import torch
from torchvision.ops import box_iou

from fgvc_cli.data.transforms import eval_transform, normalize
from fgvc_cli.engine.export import generated_photos
from fgvc_cli.engine.weights import open_weights


@torch.inference_mode()
def test_boxes_of_turned_birds_are_the_boxes_turned():
    checkpoint = open_weights("aviary")
    transform, side = eval_transform(checkpoint.preprocess), checkpoint.preprocess.input_px
    pixels = torch.stack([transform(image) for _, image in generated_photos(48)])
    images = normalize(pixels, checkpoint.preprocess)
    upright = checkpoint.model(images, want=("boxes",)).boxes
    turned = side - checkpoint.model(images.flip(-1, -2), want=("boxes",)).boxes[:, [2, 3, 0, 1]]
    overlap = torch.stack([box_iou(a[None], b[None])[0, 0] for a, b in zip(upright, turned, strict=True)])
    # 0.80 over 96 birds (benchmarks/RESULTS.md); 0.68 where paddings alone say where cells lie.
    assert overlap.mean() >= 0.75
