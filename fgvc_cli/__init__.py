"""fgvc: classify images into look-alike classes, see where the model looked, train your own.

``create_model``, ``load_checkpoint``, ``Predictor`` and a function for each command are the public Python
face. They are imported on first use: ``import fgvc_cli`` and ``fgvc --help`` do not wait for torch.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgvc_cli.engine.ablate import ablate as ablate
    from fgvc_cli.engine.evaluate import evaluate as evaluate
    from fgvc_cli.engine.export import export as export
    from fgvc_cli.engine.hub import push as push
    from fgvc_cli.engine.train import train as train
    from fgvc_cli.engine.weights import open_weights as load_checkpoint
    from fgvc_cli.explain.run import explain as explain
    from fgvc_cli.models.registry import create_model as create_model
    from fgvc_cli.predict.predictor import Predictor as Predictor
    from fgvc_cli.report.page import report as report
    from fgvc_cli.report.select import select as select
    from fgvc_cli.report.wrong_labels import wrong_labels as wrong_labels
    from fgvc_cli.retrieval.index_file import index as index
    from fgvc_cli.run.merge import merge as merge
    from fgvc_cli.run.predict import predict_folder as predict_folder

__version__ = "0.1.0"
__all__ = [
    "Predictor",
    "__version__",
    "ablate",
    "create_model",
    "evaluate",
    "explain",
    "export",
    "index",
    "load_checkpoint",
    "merge",
    "predict_folder",
    "push",
    "report",
    "select",
    "train",
    "wrong_labels",
]

_HOMES: dict[str, tuple[str, ...]] = {
    "create_model": ("fgvc_cli.models.registry", "create_model"),
    "load_checkpoint": ("fgvc_cli.engine.weights", "open_weights"),
    "Predictor": ("fgvc_cli.predict.predictor", "Predictor"),
    "ablate": ("fgvc_cli.engine.ablate", "ablate", "fgvc_cli.engine.options.AblateOptions"),
    "train": ("fgvc_cli.engine.train", "train", "fgvc_cli.engine.options.TrainOptions"),
    "evaluate": ("fgvc_cli.engine.evaluate", "evaluate", "fgvc_cli.engine.options.EvalOptions"),
    "explain": ("fgvc_cli.explain.run", "explain", "fgvc_cli.explain.options.ExplainOptions"),
    "push": ("fgvc_cli.engine.hub", "push", "fgvc_cli.engine.hub.PushOptions"),
    "export": ("fgvc_cli.engine.export", "export", "fgvc_cli.engine.options.ExportOptions"),
    "index": ("fgvc_cli.retrieval.index_file", "index", "fgvc_cli.retrieval.index_file.IndexOptions"),
    "report": ("fgvc_cli.report.page", "report", "fgvc_cli.report.page.ReportOptions"),
    "select": ("fgvc_cli.report.select", "select", "fgvc_cli.report.select.SelectOptions"),
    "wrong_labels": (
        "fgvc_cli.report.wrong_labels",
        "wrong_labels",
        "fgvc_cli.report.wrong_labels.WrongLabelOptions",
    ),
    "merge": ("fgvc_cli.run.merge", "merge", "fgvc_cli.run.merge.MergeOptions"),
    "predict_folder": ("fgvc_cli.run.predict", "predict_folder", "fgvc_cli.run.predict.PredictOptions"),
}
"""Public name -> module and name there; of a command also the class of its options, its arguments."""


def find_public(name: str) -> Any:
    """What a public name stands for, imported now."""
    import importlib

    module, attribute, *_ = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return find_public(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class CallableRoom(ModuleType):
    """A package that is also the public function of its name.

    As soon as a part of such a package is imported, the package is what ``fgvc_cli.<name>`` means; so it is
    called as the function is.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The command, with its options as arguments."""
        return find_public(self.__name__.rpartition(".")[2])(*args, **kwargs)

    @property
    def __signature__(self) -> Any:
        """Of the command, for ``help`` and notebooks."""
        return find_public(self.__name__.rpartition(".")[2]).__signature__

    @property
    def __annotations__(self) -> Any:  # type: ignore[override]
        """Of the command, for ``typing.get_type_hints``; those of a plain module could be set."""
        return find_public(self.__name__.rpartition(".")[2]).__annotations__
