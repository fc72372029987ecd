"""What a model costs, computed; ``catalog`` has it recorded for the models that are listed."""

from __future__ import annotations

from fgvc_cli.models.catalog import COST_CLASSES, Cost
from fgvc_cli.models.registry import count_gmac, count_parameters, create_model, resolve


def compute_cost(name: str, input_px: int) -> Cost:
    """Build a model of ``COST_CLASSES`` classes and count.

    Args:
        name: registry name.
        input_px: side of the input, pixels; a backbone that is built for one size is counted at its own.

    Raises:
        FgvcError: an unknown name, or a backbone that does not fit the family.
    """
    backbone = resolve(name).backbone
    model = create_model(name, COST_CLASSES)
    side = model.fixed_px or input_px
    return Cost(name, backbone, side, count_parameters(model), count_gmac(model, side))
