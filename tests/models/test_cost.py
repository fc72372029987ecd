"""Parameters and multiply-accumulates against known figures."""

from __future__ import annotations

import pytest

from fgvc_cli.models.catalog import FAMILY_TEXTS, LISTED, NAMED, read_costs
from fgvc_cli.models.cost import compute_cost
from fgvc_cli.models.registry import FAMILIES, count_gmac, count_parameters, create_model


def test_plain_resnet50_costs_what_the_field_says():
    model = create_model("timm-resnet50", 1000)
    assert count_parameters(model) == 25_557_032
    assert count_gmac(model, 224) == pytest.approx(4.1, abs=0.05)


def test_light_neck_and_cram_add_1_4_gmac_to_resnet50_at_448():
    plain = count_gmac(create_model("timm-resnet50", 200), 448)
    ours = count_gmac(create_model("crasmra-r50", 200), 448)
    assert ours - plain == pytest.approx(1.4, abs=0.05)


def test_smram_is_not_counted():
    with_smram = create_model("crasmra-resnet18", 3)
    without = create_model("crasmra-resnet18", 3, options={"smram": False})
    assert count_parameters(with_smram) == count_parameters(without)


@pytest.mark.parametrize("name", ["crasmra-r50", "crasmra-mobilenetv2_100", "vitms-ti16"])
def test_what_is_recorded_is_what_is_counted(name):
    """After a change of an architecture: python benchmarks/model_costs.py --write."""
    recorded = next(cost for cost in read_costs() if cost.name == name)
    counted = compute_cost(name, LISTED[name])
    assert (recorded.backbone, recorded.input_px, recorded.parameters) == (
        counted.backbone,
        counted.input_px,
        counted.parameters,
    )
    assert recorded.gmac == pytest.approx(counted.gmac, abs=0.0006)


def test_every_named_model_is_listed_and_every_family_described():
    assert set(NAMED) <= set(LISTED) == {cost.name for cost in read_costs()}
    assert set(FAMILY_TEXTS) == set(FAMILIES)
