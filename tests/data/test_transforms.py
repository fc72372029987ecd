"""Image -> input and back."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from fgvc_cli.config import Augment, Preprocess
from fgvc_cli.data.geometry import input_geometry, resized_size
from fgvc_cli.data.transforms import eval_transform, mix_transform, train_transform
from fgvc_cli.models.output import normalize

SIZES = [(64, 64), (200, 100), (90, 240), (1, 1), (3000, 20), (33, 257)]
RULES = ["squash", "shorter"]


def make_preprocess(rule: str, input_px: int = 32, resize_px: int = 40) -> Preprocess:
    return Preprocess(input_px=input_px, resize_px=resize_px, resize_rule=rule)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_every_size_gives_the_input(size, rule):
    tensor = eval_transform(make_preprocess(rule))(Image.new("RGB", size, (10, 20, 30)))
    assert tensor.shape == (3, 32, 32) and tensor.dtype == torch.uint8
    assert tensor[:, 0, 0].tolist() == [10, 20, 30] == tensor[:, -1, -1].tolist()


@pytest.mark.parametrize("size", [(160, 160), (240, 160), (160, 320)])
@pytest.mark.parametrize("rule", RULES)
def test_a_spot_comes_back_to_where_it_is(size, rule):
    width, height = size
    image = np.zeros((height, width, 3), np.uint8)
    left, top = width // 2 - 12, height // 2 + 4
    image[top : top + 24, left : left + 24] = 255
    preprocess = make_preprocess(rule, 128, 150)
    tensor = eval_transform(preprocess)(Image.fromarray(image))[0]
    rows, columns = (tensor > 127).nonzero(as_tuple=True)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    geometry = input_geometry(width, height, preprocess)
    back = geometry.to_photo(tuple(float(v) for v in box))
    assert back == pytest.approx(
        (left, top, left + 24, top + 24), abs=2 / min(geometry.scale_x, geometry.scale_y)
    )


@pytest.mark.parametrize("rule", RULES)
def test_equals_resizing_the_whole_image_and_cropping(rule):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (90, 120, 3), dtype=np.uint8)).resize((480, 360))
    preprocess = make_preprocess(rule, 96, 120)
    sides = {"squash": (120, 120), "shorter": (160, 120)}[rule]
    whole = np.asarray(image.resize(sides, Image.Resampling.BILINEAR)).astype(int)
    left, top = (sides[0] - 96) // 2, (sides[1] - 96) // 2
    expected = whole[top : top + 96, left : left + 96].transpose(2, 0, 1)
    got = eval_transform(preprocess)(image).numpy().astype(int)
    assert np.abs(got - expected).max() <= 2


def test_transforms_travel_to_spawned_workers():
    image = Image.new("RGB", (50, 40), (9, 8, 7))
    preprocess = make_preprocess("squash")
    for transform in (eval_transform(preprocess), train_transform(preprocess, Augment(flip=False))):
        assert torch.equal(pickle.loads(pickle.dumps(transform))(image), transform(image))


def test_boxes_are_clipped_to_the_image():
    geometry = input_geometry(100, 50, make_preprocess("squash", 32, 32))
    assert geometry.to_photo((-5, -5, 40, 40)) == (0, 0, 100, 50)
    assert geometry.to_photo((0, 0, 32, 32)) == (0, 0, 100, 50)


def test_normalize_uses_the_checkpoints_statistics():
    preprocess = Preprocess(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    images = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    torch.testing.assert_close(normalize(images, preprocess).flatten(), torch.tensor([1.0, -1.0, 0.2]))


@pytest.mark.parametrize("crop", ["center", "random", "resized"])
def test_training_size(crop):
    image = Image.new("RGB", (100, 80))
    preprocess = make_preprocess("squash")
    assert train_transform(preprocess, Augment(crop=crop))(image).shape == (3, 32, 32)
    assert train_transform(preprocess, Augment(crop=crop, train_px=36))(image).shape == (3, 36, 36)


def test_paper_augmentation_is_a_centre_crop_and_a_flip():
    ramp = np.tile(np.linspace(0, 255, 80, dtype=np.uint8), (80, 1))
    image = Image.fromarray(np.stack([ramp] * 3, axis=-1))
    preprocess = make_preprocess("squash")
    plain = eval_transform(preprocess)(image).float()
    torch.manual_seed(0)
    seen = set()
    for _ in range(20):
        augmented = train_transform(preprocess, Augment())(image).float()
        same = (augmented - plain).abs().max() <= 3
        mirrored = (augmented - plain.flip(-1)).abs().max() <= 3
        assert same or mirrored
        seen.add(bool(same))
    assert seen == {True, False}


@pytest.mark.parametrize("augment", [{"color_jitter": 0.5}, {"rand_augment": 9}, {"erase": 1.0}])
def test_each_augmentation_changes_pixels(augment):
    image = Image.fromarray(np.random.default_rng(0).integers(60, 200, (40, 40, 3), dtype=np.uint8))
    preprocess = make_preprocess("squash", 40, 40)
    torch.manual_seed(1)
    plain = train_transform(preprocess, Augment(flip=False))(image)
    changed = [train_transform(preprocess, Augment(flip=False, **augment))(image) for _ in range(5)]
    assert any(not torch.equal(plain, other) for other in changed)


def mixed(**augment) -> tuple[torch.Tensor, torch.Tensor]:
    mix = mix_transform(Augment(**augment), 3)
    assert mix is not None
    return mix(torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1, 1).expand(3, 3, 8, 8).clone(), torch.arange(3))


def test_mixup_mixes_pixels_and_labels_by_the_same_share():
    torch.manual_seed(0)
    images, targets = mixed(mixup=1.0)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(3))
    # An image of class k has the value k everywhere: the mean of the labels is the pixel.
    expected = (targets * torch.arange(3.0)).sum(dim=1)
    torch.testing.assert_close(images, expected.view(3, 1, 1, 1).expand_as(images))
    assert (targets > 0).sum() == 6


def test_cutmix_labels_are_the_shares_of_the_area():
    torch.manual_seed(1)
    images, targets = mixed(cutmix=1.0)
    for image, target in zip(images, targets, strict=True):
        shares = torch.stack([(image[0] == k).float().mean() for k in range(3)])
        torch.testing.assert_close(shares, target)
    assert (targets > 0).sum() == 6


def test_both_take_turns_and_neither_is_none():
    torch.manual_seed(0)
    seen = {bool((mixed(mixup=1.0, cutmix=1.0)[0] % 1 == 0).all()) for _ in range(12)}
    assert seen == {True, False}
    assert mix_transform(Augment(), 3) is None


ODD_SIZES = [(640, 480), (481, 641), (101, 99), (17, 1500), (1500, 17), (33, 33), (225, 224)]


@pytest.mark.parametrize("size", ODD_SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_training_without_augmentation_sees_what_evaluation_sees(size, rule):
    preprocess = Preprocess(input_px=64, resize_px=75, resize_rule=rule)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
    trained = train_transform(preprocess, Augment(crop="center", flip=False))(image)
    assert torch.equal(trained, eval_transform(preprocess)(image))


@pytest.mark.parametrize("size", ODD_SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_a_random_crop_is_one_of_the_resized_image(size, rule):
    preprocess = Preprocess(input_px=64, resize_px=75, resize_rule=rule)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
    transform = train_transform(preprocess, Augment(crop="random", flip=False))
    whole = image.resize(resized_size(*size, preprocess), Image.Resampling.BILINEAR)
    for seed in range(5):
        torch.manual_seed(seed)
        got = transform(image)
        torch.manual_seed(seed)
        wanted = v2.functional.pil_to_tensor(v2.RandomCrop(64)(whole))
        assert (got.int() - wanted.int()).abs().max() <= 1


@pytest.mark.parametrize("crop", ["center", "random"])
def test_training_on_a_strip_never_builds_the_resized_image(monkeypatch, crop):
    sizes = []
    resize = Image.Image.resize

    def recorded(self, size, *args, **options):
        sizes.append(tuple(size))
        return resize(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", recorded)
    preprocess = Preprocess(input_px=64, resize_px=75, resize_rule="shorter")
    train_transform(preprocess, Augment(crop=crop))(Image.new("RGB", (30_000, 12)))
    assert sizes == [(64, 64)]


def test_noise_has_the_strength_that_was_set():
    image = Image.new("RGB", (64, 64), (128, 128, 128))
    preprocess = Preprocess(input_px=64, resize_px=64)
    made = train_transform(preprocess, Augment(noise=0.1))(image).float()
    assert made.std() == pytest.approx(25.5, rel=0.05)
    assert made.mean() == pytest.approx(128, abs=1)
