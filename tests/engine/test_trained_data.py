"""Which images go with a checkpoint: where those of its training are looked for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fgvc_cli.config import TrainConfig
from fgvc_cli.engine import checkpoint as module
from fgvc_cli.errors import FgvcError


@pytest.mark.parametrize(
    ("recorded", "given", "used"),
    [
        ("here", None, "here"),
        ("gone", None, None),  # None: $FGVC_DATA, as for training
        (None, None, None),
        ("gone", "here", "here"),
        ("here", "elsewhere", "elsewhere"),
    ],
)
def test_recorded_folder_counts_only_where_it_is(recorded, given, used, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    asked = []

    def load_data(config):
        asked.append(config.data_root)
        raise FgvcError("not needed further")

    monkeypatch.setattr(module, "load_data", load_data)
    config = TrainConfig(model="timm-resnet18", dataset="grocery", data_root=recorded)
    checkpoint = SimpleNamespace(metadata={"config": config.model_dump()})
    with pytest.raises(FgvcError, match="was trained on 'grocery'"):
        module.trained_data(checkpoint, given, "test")
    assert asked == [used]
