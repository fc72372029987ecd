"""fgvc: classify photographs into look-alike classes, see where the model looked, train your own.

``create_model``, ``load_checkpoint`` and ``Predictor`` are the public Python face; they are imported on first
use, so that ``import fgvc_cli`` and ``fgvc --help`` do not wait for torch.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__", "create_model", "load_checkpoint"]

_HOMES = {
    "create_model": ("fgvc_cli.models.registry", "create_model"),
    "load_checkpoint": ("fgvc_cli.engine.weights", "open_weights"),
    "Predictor": ("fgvc_cli.predict.predictor", "Predictor"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        module, attribute = _HOMES[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
