"""Batches of labelled images."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from fgvc_cli.config import Preprocess
from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.data.listing import Example
from fgvc_cli.data.loaders import LabelledImages, build_loader, read_example
from fgvc_cli.data.transforms import eval_transform
from fgvc_cli.sources.images import TO_SHOW

TRANSFORM = eval_transform(Preprocess(input_px=32, resize_px=32))


def make_images(root) -> LabelledImages:
    data = load_labelled(root)
    return LabelledImages(data.root, data.splits["train"], TRANSFORM)


def test_unreadable_images_leave_their_neighbours_in_place(colours):
    images = make_images(colours)
    bad = [0, 5, len(images) - 1]
    good = {i: images[i][2] for i in range(len(images)) if i not in bad}
    for i in bad:
        (colours / images.examples[i].path).write_bytes(b"\xff\xd8\xff broken")
    batches = list(build_loader(images, batch_size=6, workers=2))
    seen = {}
    for batch in batches:
        assert len(batch.images) == len(batch.labels) == len(batch.indices)
        for image, label, index in zip(batch.images, batch.labels, batch.indices, strict=True):
            assert label == images.examples[index].label
            seen[int(index)] = image
    assert seen.keys() == good.keys()
    assert all(torch.equal(seen[i], good[i]) for i in good)
    failures = [line for batch in batches for line in batch.failures]
    assert [line.split(":")[0] for line in failures] == [images.examples[i].path for i in bad]


def test_batch_without_a_readable_image_is_empty(colours):
    images = make_images(colours)
    for example in images.examples:
        (colours / example.path).write_bytes(b"")
    batch = next(iter(build_loader(images, batch_size=4, workers=0)))
    assert len(batch.labels) == 0 and len(batch.failures) == 4


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_banner_at_the_foot_of_an_image_is_not_seen(tmp_path, ending):
    image = Image.new("RGB", (64, 84), "blue")
    image.paste("red", (0, 64, 64, 84))
    image.save(tmp_path / f"a.{ending}", quality=95, subsampling=0)
    Image.new("RGB", (64, 12), "blue").save(tmp_path / f"low.{ending}")
    examples = [Example(f"a.{ending}", 0, banner_px=20), Example(f"low.{ending}", 0, banner_px=20)]
    transform = eval_transform(Preprocess(input_px=64, resize_px=64))
    shown = LabelledImages(tmp_path, examples, transform)[0][2]
    assert shown[0].max() < 60 and shown[2].min() > 200, "no red is left"
    whole = LabelledImages(tmp_path, [examples[0]._replace(banner_px=0)], transform)[0][2]
    assert whole[0].max() > 200
    # A smaller copy loses as much; an image that is no higher than its banner stays.
    small = read_example(tmp_path, examples[0], TO_SHOW, lambda opened: opened.draft(None, (32, 42)))
    assert small.size == (64, 64) and small.image.width == small.image.height
    assert read_example(tmp_path, examples[1], TO_SHOW).size == (64, 12)
