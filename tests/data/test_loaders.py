"""Batches of labelled images."""

from __future__ import annotations

import torch

from fgvc_cli.config import Preprocess
from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.data.loaders import LabelledImages, build_loader
from fgvc_cli.data.transforms import eval_transform

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
