"""Exported graphs: the same answers in onnxruntime and after torch.export.load, for batches of any size."""

from __future__ import annotations

import json

import onnx
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from fgvc_cli.config import MultiStageVitConfig, Preprocess, build
from fgvc_cli.engine.checkpoint import Checkpoint
from fgvc_cli.engine.export import (
    FORMATS,
    METADATA_FILE,
    Deployed,
    compare,
    describe,
    generated_photos,
    trace,
)
from fgvc_cli.errors import FgvcError
from fgvc_cli.models.multistage_vit import MultiStageVit
from fgvc_cli.models.registry import create_model
from fgvc_cli.predict.predictor import Predictor

CLASSES = ("ant", "bee", "cat", "dog", "émeu")


def tiny_vit(**options) -> MultiStageVit:
    """Looks of 32 px cut from 48 px; weights large enough for maps with peaks."""
    net = VisionTransformer(img_size=32, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=0)
    for parameter in net.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.25)
    return MultiStageVit(net, len(CLASSES), build(MultiStageVitConfig, options))


def checkpoint_of(name: str, **options) -> Checkpoint:
    torch.manual_seed(0)
    if name == "vitms":
        model = tiny_vit(**options)
    else:
        model = create_model(name, len(CLASSES), input_px=64, options=options)
    side = 48 if name == "vitms" else 64
    preprocess = Preprocess(input_px=side, resize_px=side + 8)
    return Checkpoint(model.for_inference(), name, CLASSES, preprocess, "5" * 64, temperature=1.5)


@pytest.fixture(scope="module", params=["crasmra-resnet10t", "vitms", "timm-resnet10t"])
def exported(request, tmp_path_factory):
    """A tiny checkpoint of each family, its metadata, and its graph from uint8 in each format."""
    checkpoint = checkpoint_of(request.param)
    program = trace(checkpoint, "uint8")
    document = describe(checkpoint, "uint8", program)
    paths = {ending: tmp_path_factory.mktemp("graph") / f"model{ending}" for ending in FORMATS}
    for ending, path in paths.items():
        with path.open("wb") as stream:
            FORMATS[ending].write(program, document, stream)
    return checkpoint, document, paths


@pytest.mark.parametrize("ending", FORMATS)
def test_a_graph_answers_as_the_model_for_any_batch(exported, ending):
    checkpoint, _, paths = exported
    graph, original = FORMATS[ending].open(paths[ending]), Deployed(checkpoint, "uint8")
    for count in (1, 3):
        side = checkpoint.preprocess.input_px
        generator = torch.Generator().manual_seed(count)
        small = torch.rand(count, 3, 6, 6, generator=generator) * 255
        images = torch.nn.functional.interpolate(small, side, mode="bilinear").byte()
        with torch.no_grad():
            expected = original(images)
        found = graph(images)
        assert list(found) == list(expected)
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values, rtol=1e-3, atol=1e-3, msg=name)
    # The check of the command agrees, on pictures with things in them.
    difference = compare(checkpoint, "uint8", graph, generated_photos(5))
    assert difference.images == 5 and difference.probs < 1e-4 and difference.box_px == 0
    assert b"site-packages" not in paths[ending].read_bytes()  # no traces of this machine


def test_metadata_travels_in_both_formats(exported):
    checkpoint, document, paths = exported
    assert document["class_names"] == list(CLASSES) and document["weights_sha256"] == "5" * 64
    assert document["preprocess"]["resize_rule"] == "squash" and document["temperature"] == 1.5
    assert ("parts" in document["outputs"]) == (checkpoint.name == "vitms")
    extra = {METADATA_FILE: ""}
    torch.export.load(paths[".pt2"], extra_files=extra)
    assert json.loads(extra[METADATA_FILE]) == document
    model = onnx.load(paths[".onnx"])
    held = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(held["class_names"]) == list(CLASSES) and held["model"] == checkpoint.name
    assert [value.name for value in model.graph.output] == list(document["outputs"])
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


@pytest.mark.parametrize("name", ["crasmra-resnet10t", "vitms"])
def test_what_is_exported_is_what_predict_gives(name, tmp_path):
    checkpoint = checkpoint_of(name)
    side = checkpoint.preprocess.input_px
    checkpoint.preprocess = Preprocess(input_px=side, resize_px=side)
    _, image = next(generated_photos())
    image = image.resize((side, side), Image.Resampling.BILINEAR)
    image.save(tmp_path / "bird.png")
    (row,) = Predictor(checkpoint, workers=0, device="cpu").predict(tmp_path / "bird.png")
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, side, side, 3)
    with torch.no_grad():
        whole = Deployed(checkpoint, "uint8")(pixels.permute(0, 3, 1, 2))
        share = Deployed(checkpoint, "float")(pixels.permute(0, 3, 1, 2).float() / 255)
    for answers in (whole, share):
        best = answers["probs"][0].sort(descending=True)
        assert [CLASSES[i] for i in best.indices] == list(row.labels)
        assert best.values.tolist() == pytest.approx(list(row.probs), abs=1e-5)
        assert answers["box"][0].tolist() == pytest.approx(list(row.box), abs=1e-3)


def test_fewer_looks_make_a_smaller_graph():
    program = trace(checkpoint_of("vitms", stages="main"), "float")
    images = torch.rand(3, 3, 48, 48)
    answers = program.module()(images)
    assert set(answers) == {"probs", "box", "heat", "logits_main"}


def test_a_threshold_that_needs_histograms_is_refused():
    with pytest.raises(FgvcError, match="otsu threshold, which no graph"):
        trace(checkpoint_of("vitms", threshold="otsu"), "uint8")


def test_differences_are_counted_and_nan_is_infinite():
    checkpoint = checkpoint_of("timm-resnet10t")
    original = Deployed(checkpoint, "uint8")

    def off(images):
        with torch.no_grad():
            answers = original(images)
        return answers | {"box": answers["box"] + 2, "probs": answers["probs"].roll(1, dims=1)}

    difference = compare(checkpoint, "uint8", off, generated_photos(6))
    assert difference.box_px == 2 and difference.labels == 6 and difference.probs > 0
    assert difference.worst.startswith("generated")

    def broken(images):
        return original(images) | {"probs": torch.full((len(images), 5), torch.nan)}

    with torch.no_grad():
        assert compare(checkpoint, "uint8", broken, generated_photos(2)).probs == float("inf")


def test_probabilities_of_several_labels_are_not_said_to_sum_to_one(monkeypatch):
    monkeypatch.setattr("fgvc_cli.engine.export.output_names", lambda program: ["probs"])
    single, several = checkpoint_of("timm-resnet10t"), checkpoint_of("timm-resnet10t", multi_label=True)
    several.metadata["options"] = {"multi_label": True}
    assert describe(single, "uint8", None)["outputs"]["probs"].endswith("rows sum to 1")
    assert describe(several, "uint8", None)["outputs"]["probs"].endswith("each by itself")
