"""From a checkpoint and an image to an explanation, with models whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from fgvc_cli.config import Preprocess
from fgvc_cli.engine.checkpoint import Checkpoint
from fgvc_cli.explain.explainer import Explainer, explain_photo
from fgvc_cli.explain.methods import HEAT, pick_methods
from fgvc_cli.explain.pages import render
from fgvc_cli.models.output import ModelOutput, scale_maps
from fgvc_cli.models.registry import create_model

SQUASH = Preprocess(input_px=64, resize_px=80, mean=(0, 0, 0), std=(1, 1, 1))
SHORTER = SQUASH.model_copy(update={"resize_rule": "shorter"})


class BrightnessModel(nn.Module):
    """Looks at bright pixels: its maps are the input's brightness, its box the bright pixels' own."""

    def __init__(self, stages: dict[str, int], heat: int | None = 16, boxes: bool = True):
        super().__init__()
        self.stages, self.heat, self.boxes = stages, heat, boxes
        self.wanted: set[str] = set()

    def forward(self, images: torch.Tensor, want: tuple[str, ...] = ()) -> ModelOutput:
        self.wanted = {*want}
        grey = images.mean(dim=1)

        def cells(n: int) -> torch.Tensor:
            return scale_maps(F.adaptive_avg_pool2d(grey, n))

        rows, columns = (grey[0] > 0.5).nonzero(as_tuple=True)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        logits = {"early": torch.tensor([[0.0, 9.0, 0.0]]), "late": torch.tensor([[9.0, 0.0, 0.0]])}
        return ModelOutput(
            logits=logits,
            probs=torch.tensor([[0.2, 0.7, 0.1]]),
            heat=cells(self.heat) if self.heat else None,
            boxes=torch.tensor([box]).float() if self.boxes else None,
            stages={name: cells(n) for name, n in self.stages.items()},
        )


class SecondLook(BrightnessModel):
    """Looks again: at the bright pixels' box, and at its left and right half."""

    def __init__(self, stopped: tuple[str, ...] = (), part_count: int = 2):
        super().__init__({"main": 16}, heat=16)
        self.stopped, self.part_count = stopped, part_count

    def forward(self, images: torch.Tensor, want: tuple[str, ...] = ()) -> ModelOutput:
        output = super().forward(images, want)
        x1, y1, x2, y2 = output.boxes[0].tolist()
        halves = [[x1, y1, (x1 + x2) / 2, y2], [(x1 + x2) / 2, y1, x2, y2]][: self.part_count]
        output.logits = {
            name: torch.full((1, 3), torch.nan) if name in self.stopped else torch.eye(3)[None, index] * 9
            for index, name in enumerate(("main", "object", "parts"))
        }
        output.parts = torch.tensor([halves])
        output.part_logits = torch.eye(3)[None, : self.part_count] * 9
        output.object_heat = torch.eye(4)[None]
        output.erased = images.mean(dim=1) > 0.5
        for name, fields in (("object", ("object_heat",)), ("parts", ("parts", "part_logits"))):
            for field in fields if name in self.stopped else ():
                getattr(output, field).fill_(torch.nan)
        return output


def checkpoint(model: nn.Module, preprocess: Preprocess = SQUASH) -> Checkpoint:
    return Checkpoint(model, "fake-model", ("ant", "bee", "cat"), preprocess, "0" * 64)


def photo_with_spot(size: tuple[int, int], spot: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGB", size, (20, 20, 20))
    image.paste((255, 255, 255), spot)
    return image


@pytest.mark.parametrize("preprocess", [SQUASH, SHORTER], ids=["squash", "shorter"])
@pytest.mark.parametrize("size", [(320, 320), (320, 640), (960, 320)], ids=["square", "portrait", "panorama"])
def test_the_box_comes_back_to_where_the_object_is_in_the_image(size, preprocess):
    centre_x, centre_y = size[0] // 2, size[1] // 2
    spot = (centre_x - 80, centre_y - 100, centre_x + 20, centre_y + 40)
    explanation = explain_photo(checkpoint(BrightnessModel({}), preprocess), photo_with_spot(size, spot))
    # One pixel of the input is up to 12 pixels of the image; resizing blurs by as much.
    np.testing.assert_allclose(explanation.box, spot, atol=max(size) / 80 + 1)


def test_the_region_is_the_part_of_the_image_that_the_model_saw():
    model = BrightnessModel({})
    squashed = explain_photo(checkpoint(model), photo_with_spot((400, 200), (190, 90, 210, 110)))
    assert squashed.region == pytest.approx((40, 20, 360, 180))
    cut = explain_photo(checkpoint(model, SHORTER), photo_with_spot((400, 200), (190, 90, 210, 110)))
    assert cut.region == pytest.approx((120, 20, 280, 180))


def test_maps_keep_the_models_order_and_the_heat_map_comes_last():
    model = BrightnessModel({"zeta": 32, "alpha": 8})
    image = photo_with_spot((80, 80), (8 + 48, 8 + 16, 8 + 56, 8 + 24))
    explanation = explain_photo(checkpoint(model), image)
    assert list(explanation.maps) == ["zeta", "alpha", HEAT]
    assert {"heat", "boxes", "stages"} <= model.wanted
    alpha = explanation.maps["alpha"]
    assert alpha.shape == (8, 8) and alpha.dtype == np.float32
    # 8 pixels of crop margin; the spot fills the cell in row 2, column 6 of 8.
    assert np.unravel_index(alpha.argmax(), alpha.shape) == (2, 6)
    assert (alpha.min(), alpha.max()) == (0, 1)


def test_a_heat_map_that_repeats_a_stage_is_drawn_once():
    explanation = explain_photo(
        checkpoint(BrightnessModel({"last": 16})), photo_with_spot((80, 80), (20, 20, 40, 40))
    )
    assert list(explanation.maps) == ["last"]


def test_a_model_without_heat_or_boxes_is_explained_by_its_stages():
    model = BrightnessModel({"last": 16}, heat=None, boxes=False)
    explanation = explain_photo(checkpoint(model), photo_with_spot((80, 80), (20, 20, 40, 40)))
    assert list(explanation.maps) == ["last"] and explanation.box is None


def test_classes_come_in_order_of_probability_and_branches_speak_for_themselves():
    image = photo_with_spot((80, 80), (20, 20, 40, 40))
    explanation = explain_photo(checkpoint(BrightnessModel({})), image, top_k=2)
    assert [name for name, _ in explanation.top] == ["bee", "ant"]
    assert [prob for _, prob in explanation.top] == pytest.approx([0.7, 0.2])
    sure = float(np.exp(9) / (np.exp(9) + 2))
    assert explanation.branches == {
        "early": ("bee", pytest.approx(sure)),
        "late": ("ant", pytest.approx(sure)),
    }
    assert len(explain_photo(checkpoint(BrightnessModel({})), image, top_k=99).top) == 3


@pytest.mark.parametrize("size", [(320, 320), (320, 640), (960, 320)], ids=["square", "portrait", "panorama"])
def test_further_looks_come_with_their_boxes_in_the_image(size):
    x, y = size[0] // 2, size[1] // 2
    model = SecondLook()
    explanation = explain_photo(checkpoint(model), photo_with_spot(size, (x - 80, y - 100, x + 20, y + 40)))
    assert {"parts", "object_heat", "erased"} <= model.wanted
    halves = [(x - 80, y - 100, x - 30, y + 40), (x - 30, y - 100, x + 20, y + 40)]
    np.testing.assert_allclose(explanation.parts, halves, atol=max(size) / 80 + 1)
    np.testing.assert_array_equal(explanation.object_map, np.eye(4, dtype=np.float32))
    assert explanation.erased.dtype == bool and explanation.erased.shape == (64, 64)
    x1, y1, x2, y2 = explanation.box
    whole = (explanation.region[2] - explanation.region[0]) * (explanation.region[3] - explanation.region[1])
    assert explanation.erased.mean() == pytest.approx((x2 - x1) * (y2 - y1) / whole, abs=0.01)
    assert list(explanation.maps) == ["main"]
    names = {branch: name for branch, (name, _) in explanation.branches.items()}
    assert names == {"main": "ant", "object": "bee", "parts": "cat", "part_1": "ant", "part_2": "bee"}


def test_a_single_part_is_not_listed_beside_its_branch():
    explanation = explain_photo(
        checkpoint(SecondLook(part_count=1)), photo_with_spot((80, 80), (20, 20, 40, 40))
    )
    assert len(explanation.parts) == 1 and list(explanation.branches) == ["main", "object", "parts"]


def test_looks_that_a_cascade_did_not_take_are_left_out():
    image = photo_with_spot((80, 80), (20, 20, 40, 40))
    two = explain_photo(checkpoint(SecondLook(("parts",))), image)
    assert list(two.branches) == ["main", "object"] and two.parts == () and two.object_map is not None
    one = explain_photo(checkpoint(SecondLook(("object", "parts"))), image)
    assert list(one.branches) == ["main"] and one.parts == () and one.object_map is None
    assert one.box is not None and one.erased is not None
    render(two), render(one)


def test_a_real_cra_smra_answers_its_three_stages():
    torch.manual_seed(0)
    model = create_model("crasmra-resnet18", 3).for_inference()
    image = Image.effect_noise((50, 90), 80).convert("RGB")
    explanation = explain_photo(checkpoint(model), image)
    assert {name: each.shape for name, each in explanation.maps.items()} == {
        "stage3": (8, 8),
        "stage4": (4, 4),
        "stage5": (2, 2),
        HEAT: (8, 8),
    }
    assert list(explanation.branches) == ["stage3", "stage4", "stage5", "concat"]
    assert explanation.parts == () and explanation.object_map is None and explanation.erased is None
    assert sum(prob for _, prob in explanation.top) == pytest.approx(1)
    x1, y1, x2, y2 = explanation.box
    assert 0 <= x1 < x2 <= 50 and 0 <= y1 < y2 <= 90


def test_a_real_multi_stage_vit_answers_its_looks():
    torch.manual_seed(0)
    model = create_model("vitms-vit_tiny_patch16_224", 3, options={"encoder_px": 64}).for_inference()
    explanation = explain_photo(checkpoint(model), Image.effect_noise((50, 90), 80).convert("RGB"))
    assert {name: each.shape for name, each in explanation.maps.items()} == {"main": (4, 4)}
    assert list(explanation.branches) == ["main", "object", "parts", "part_1", "part_2"]
    assert explanation.object_map.shape == (4, 4) and explanation.erased.shape == (64, 64)
    x1, y1, x2, y2 = explanation.box
    for left, top, right, bottom in explanation.parts:
        assert x1 - 1e-3 <= left < right <= x2 + 1e-3 and y1 - 1e-3 <= top < bottom <= y2 + 1e-3


@pytest.mark.parametrize("name", ["crasmra-test_resnet", "vitms-test_vit", "timm-test_vit"])
@pytest.mark.parametrize("methods", [(), ("gradcam", "object", "occlusion")])
def test_a_batch_says_what_each_image_would_alone(name, methods):
    torch.manual_seed(0)
    preprocess = Preprocess(input_px=160, resize_px=160)
    classes = ("ant", "bee", "cat")
    trained = Checkpoint(create_model(name, 3, input_px=160).eval(), name, classes, preprocess, "0" * 64)
    explainer = Explainer(trained, methods=pick_methods(methods), target="bee" if methods else None)
    sizes = [(90, 60), (60, 200), (300, 40)]
    photos = [explainer.prepare(Image.effect_noise(size, 90).convert("RGB")) for size in sizes]
    for together, photo in zip(explainer.explain(photos), photos, strict=True):
        (alone,) = explainer.explain([photo])
        assert together.image is photo.image and list(together.maps) == list(alone.maps)
        assert together.region == alone.region and together.chosen == bool(methods)
        assert together.why == (("bee", None) if methods else None)
        np.testing.assert_allclose(together.top[0][1], alone.top[0][1], rtol=1e-3)
        for key, heat in together.maps.items():
            np.testing.assert_allclose(heat, alone.maps[key], atol=0.02)


def test_looks_of_a_cascade_are_left_out_image_by_image():
    class Unsure(SecondLook):
        def forward(self, images, want=()):
            outputs = [SecondLook(stopped)(images[:1], want) for stopped in ((), ("object", "parts"))]
            return ModelOutput(
                logits={k: torch.cat([o.logits[k] for o in outputs]) for k in outputs[0].logits},
                probs=torch.cat([o.probs for o in outputs]),
                boxes=torch.cat([o.boxes for o in outputs]),
                parts=torch.cat([o.parts for o in outputs]),
                part_logits=torch.cat([o.part_logits for o in outputs]),
                object_heat=torch.cat([o.object_heat for o in outputs]),
            )

    explainer = Explainer(checkpoint(Unsure()))
    photo = explainer.prepare(photo_with_spot((80, 80), (20, 20, 40, 40)))
    all_looks, first_only = explainer.explain([photo, photo])
    assert len(all_looks.parts) == 2 and all_looks.object_map is not None
    assert first_only.parts == () and first_only.object_map is None and list(first_only.branches) == ["main"]


def test_probabilities_are_calibrated_as_in_predict():
    trained = checkpoint(BrightnessModel({}))
    trained.temperature = 0.5
    explanation = explain_photo(trained, photo_with_spot((80, 80), (20, 20, 40, 40)))
    squares = np.array([0.7, 0.2, 0.1]) ** 2
    assert [prob for _, prob in explanation.top] == pytest.approx(list(squares / squares.sum()))


def test_a_large_image_is_kept_small_and_seen_whole():
    explainer = Explainer(checkpoint(BrightnessModel({"last": 8})))
    photo = photo_with_spot((3000, 600), (1500, 300, 1800, 450))
    kept, small = explainer.explain([explainer.prepare(photo)]), explainer.prepare(photo, 300)
    assert small.image.size == (300, 60)
    (reduced,) = explainer.explain([small])
    np.testing.assert_array_equal(reduced.maps["last"], kept[0].maps["last"])
    np.testing.assert_allclose(np.array(reduced.box) * 10, kept[0].box, atol=1)
    assert explainer.prepare(photo_with_spot((2, 2000), (0, 0, 1, 1)), 100).image.size == (1, 100)
