"""The batched boxes equal the reference on maps of real models over real pictures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from fgvc_cli.attention.objects import locate_objects, peak_boxes
from fgvc_cli.config import Preprocess
from fgvc_cli.data.transforms import eval_transform
from fgvc_cli.engine.weights import open_weights
from fgvc_cli.models.output import normalize
from fgvc_cli.models.registry import create_model
from fgvc_cli.sources.images import DecodedImage, read_image

PHOTOS = sorted((Path(__file__).parents[2] / "examples" / "photos").glob("*.jpg"))


def pixels(paths: list[Path], preprocess: Preprocess) -> torch.Tensor:
    photos = [read_image(path) for path in paths]
    assert all(isinstance(photo, DecodedImage) for photo in photos)
    stacked = torch.stack([eval_transform(preprocess)(photo.image) for photo in photos])
    return normalize(stacked, preprocess)


def same_boxes(maps: torch.Tensor) -> None:
    for size in ((224, 224), (448, 448), (160, 200)):
        for closing_px in (3, 15):
            found = peak_boxes(maps, size, math.ceil(64**2 / 448**2 * math.prod(size)), closing_px)
            expected = locate_objects(maps, size, closing_px=closing_px)
            torch.testing.assert_close(found.float(), expected, rtol=0, atol=0)
    for size in ((224, 224), (160, 200)):
        found = peak_boxes(maps, size, math.ceil(0.01 * math.prod(size)))
        expected = locate_objects(maps, size, closing="cells", min_area=0.01)
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=0)


@torch.inference_mode()
def test_maps_of_the_embedded_model():
    checkpoint = open_weights("aviary")
    output = checkpoint.model(pixels(PHOTOS, checkpoint.preprocess), want=("heat", "stages"))
    for maps in (output.heat, *output.stages.values()):
        same_boxes(maps)


@torch.inference_mode()
def test_rollouts_of_a_real_vit_over_shelf_images(shared):
    weights = shared / "weights" / "vit_tiny_patch16_224.augreg_in1k.safetensors"
    photos = sorted((shared / "data" / "grocery" / "test").rglob("*.jpg"))[::310]
    if not weights.exists() or not photos:
        pytest.skip("needs the shared ViT weights and grocery images")
    model = create_model("vitms-vit_tiny_patch16_224", 3, init=weights).eval()
    half = (0.5, 0.5, 0.5)
    preprocess = Preprocess(input_px=224, resize_px=224, mean=half, std=half)
    same_boxes(model(pixels(photos, preprocess), want=("heat",)).heat)
