"""The index holds what the model says of each image, and appears whole or not at all."""

from __future__ import annotations

import errno
import io
import os
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fgvc_cli.config import Preprocess
from fgvc_cli.data.geometry import CROP_PX, surroundings
from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.data.listing import Example
from fgvc_cli.data.transforms import EvalTransform
from fgvc_cli.engine.checkpoint import Checkpoint
from fgvc_cli.engine.index_classes import unit
from fgvc_cli.errors import FgvcError
from fgvc_cli.formats import h5
from fgvc_cli.models.output import ModelOutput, normalize
from fgvc_cli.models.registry import create_model
from fgvc_cli.retrieval.index_file import NearestIndex, index_path, index_predictor, left_out, write_index
from fgvc_cli.sources.images import read_image

CLASSES = ("blue", "green", "red")
PREPROCESS = Preprocess(input_px=64, resize_px=72)
FAMILIES = {
    "crasmra-resnet10t": {"neck_channels": 8},
    "vitms-test_vit": {"encoder_px": 32},
    "timm-resnet10t": {},
}


def checkpoint(name: str = "timm-resnet10t", model: nn.Module | None = None) -> Checkpoint:
    torch.manual_seed(0)
    if model is None:
        options = FAMILIES[name] | ({"cascade": 0.0} if name.startswith("vitms") else {})
        model = create_model(name, 3, input_px=64, options=options).for_inference()
    return Checkpoint(model, name, CLASSES, PREPROCESS, "a" * 64)


def make(out, colours, trained: Checkpoint, examples=None, **options):
    data = load_labelled(colours, for_training=False)
    examples = data.splits["test"] if examples is None else examples
    predictor = index_predictor(trained, device="cpu", batch_size=7, workers=0)
    return write_index(out, predictor, data.root, examples, dataset="colours", split="all", **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_indexed_and_each_image_finds_itself(tmp_path, colours, name):
    trained = checkpoint(name)
    assert make(tmp_path / "i.h5", colours, trained) == 30
    examples = load_labelled(colours, for_training=False).splits["test"]
    images = [read_image(colours / example.path).image for example in examples]
    pixels = torch.stack([EvalTransform(PREPROCESS)(image) for image in images])
    with torch.inference_mode():
        said = trained.model(normalize(pixels, PREPROCESS), want=("boxes", "embedding"))
    with h5py.File(tmp_path / "i.h5") as file:
        assert file["path"].asstr()[:].tolist() == [example.path for example in examples]
        assert file["class_index"][:, 0].tolist() == [example.label for example in examples]
        np.testing.assert_allclose(file["embedding"][:], unit(said.embedding.numpy()), atol=2e-3)
        # Squashed, the input's 64 of 72 pixels lie over 48 pixels of the image.
        expected = ((said.boxes.numpy() + 4) * 48 / 72).clip(0, 48)
        np.testing.assert_allclose(file["box"][:], expected, atol=1e-2)
        assert file["embedding"].dtype == np.float16 and file["embedding"].compression is None
        assert (file["size"][:] == 48).all()
        assert file.attrs["weights_sha256"] == "a" * 64 and file.attrs["model"] == name
        assert file.attrs["metric"] == "cosine" and file.attrs["split"] == "all"
        assert '"input_px": 64' in file.attrs["preprocessing"] and file.attrs["fgvc_version"]
    with NearestIndex(tmp_path / "i.h5", weights_sha256="a" * 64) as index:
        nearest = index.search(said.embedding.numpy(), [["red"]] * 30, count=2)
    for example, near in zip(examples, nearest, strict=True):
        assert near.overall[0].similarity == pytest.approx(1, abs=1e-3)
        assert near.overall[0].labels == (CLASSES[example.label],)
        assert {each.labels for each in near.by_class["red"]} == {("red",)}


class Pooled(nn.Module):
    """Mean colours as embedding; a box in the middle of the input, or none."""

    def __init__(self, boxes: bool = True, embeds: bool = True):
        super().__init__()
        self.boxes, self.embeds, self.config = boxes, embeds, SimpleNamespace()

    def forward(self, images, want=()):
        means = images.mean(dim=(2, 3))
        boxes = torch.tensor([[16.0, 24.0, 48.0, 40.0]]).repeat(len(images), 1)
        return ModelOutput(
            logits={},
            probs=means.softmax(dim=1),
            boxes=boxes if self.boxes and "boxes" in want else None,
            embedding=means if self.embeds and "embedding" in want else None,
        )


@pytest.mark.parametrize("boxes", [True, False])
def test_thumbnails_show_the_object_with_room_or_the_whole_image(tmp_path, boxes):
    (tmp_path / "set").mkdir()
    gradient = np.arange(720 * 360, dtype=np.uint32).reshape(360, 720) % 720
    photo = Image.fromarray((gradient * 255 / 719).astype(np.uint8)).convert("RGB")
    photo.save(tmp_path / "set" / "a.png")
    make_one = index_predictor(checkpoint(model=Pooled(boxes)), device="cpu", batch_size=2, workers=0)
    write_index(
        tmp_path / "i.h5", make_one, tmp_path / "set", [Example("a.png", 1)], dataset="d", split="all"
    )
    with NearestIndex(tmp_path / "i.h5") as index:
        (nearest,) = index.search(np.ones((1, 3)), [[]], count=1)
    picture = Image.open(io.BytesIO(nearest.overall[0].thumbnail))
    row = np.asarray(picture.convert("L")).astype(float).mean(axis=0) / 255 * 719
    if boxes:
        # The box is 320 x 80 of the image; 1.7 times its longer side is more than its height.
        assert picture.size == (CROP_PX, round(CROP_PX * 360 / 544))
        assert row[0] == pytest.approx(360 - 272, abs=8) and row[-1] == pytest.approx(360 + 272, abs=8)
    else:
        assert picture.size == (CROP_PX, CROP_PX // 2)
        assert row[0] == pytest.approx(0, abs=8) and row[-1] == pytest.approx(719, abs=8)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((100, 100, 200, 150), (65, 40, 235, 210)),
        ((0, 0, 100, 100), (0, 0, 170, 170)),
        ((350, 250, 400, 300), (315, 215, 400, 300)),
        ((0, 0, 400, 300), (0, 0, 400, 300)),
        (None, (0, 0, 400, 300)),
    ],
)
def test_surroundings_are_square_and_inside_the_image(box, expected):
    assert surroundings(box, (400, 300)) == pytest.approx(expected)


def test_what_cannot_be_read_is_left_out_and_labels_stay_with_their_images(tmp_path, colours):
    (colours / "blue" / "003.png").write_bytes(b"no image")
    (colours / "red" / "000.png").unlink()
    examples = [
        Example(f"{name}/{i:03d}.png", label) for label, name in enumerate(CLASSES) for i in range(10)
    ]
    lines: list[str] = []
    count = make(
        tmp_path / "i.h5",
        colours,
        checkpoint(model=Pooled()),
        examples,
        on_block=lambda block: lines.extend(left_out(block)),
    )
    assert count == 28
    assert [line.split(":")[0] for line in lines] == ["Left out blue/003.png", "Left out red/000.png"]
    with h5py.File(tmp_path / "i.h5") as file:
        kept = [example for example in examples if example.path not in ("blue/003.png", "red/000.png")]
        assert file["path"].asstr()[:].tolist() == [example.path for example in kept]
        assert file["class_index"][:, 0].tolist() == [example.label for example in kept]


def test_several_labels_lie_beside_each_other(tmp_path, colours):
    examples = [Example("blue/000.png", 0, (2,)), Example("green/000.png", 1)]
    make(tmp_path / "i.h5", colours, checkpoint(model=Pooled()), examples)
    with h5py.File(tmp_path / "i.h5") as file:
        assert file["class_index"][:].tolist() == [[0, 2], [1, -1]]


def test_nothing_readable_a_model_without_embeddings_and_ctrl_c_leave_no_file(tmp_path, colours):
    trained = checkpoint(model=Pooled())
    with pytest.raises(FgvcError, match="No image of colours could be read"):
        make(tmp_path / "i.h5", colours, trained, [Example("blue/gone.png", 0)])
    with pytest.raises(FgvcError, match="gives no embedding"):
        make(tmp_path / "i.h5", colours, checkpoint(model=Pooled(embeds=False)))

    def interrupt(block):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "i.h5", colours, trained, on_block=interrupt)
    assert os.listdir(tmp_path) == ["colours"]


def test_a_full_disk_leaves_the_old_index_and_says_so(tmp_path, colours, monkeypatch):
    trained = checkpoint(model=Pooled())
    make(tmp_path / "i.h5", colours, trained)
    before = (tmp_path / "i.h5").read_bytes()
    with pytest.raises(FgvcError, match="exists"):
        make(tmp_path / "i.h5", colours, trained)

    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(h5._Disk, "check", full)
    with pytest.raises(FgvcError, match="Could not write .*i.h5.*left as it was"):
        make(tmp_path / "i.h5", colours, trained, overwrite=True)
    assert (tmp_path / "i.h5").read_bytes() == before and sorted(os.listdir(tmp_path)) == ["colours", "i.h5"]


def test_the_index_lies_beside_its_checkpoint(tmp_path):
    assert index_path(tmp_path / "model.safetensors") == tmp_path / "model.index.h5"
