"""The curves that training draws."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from rich.console import Console

from fgvc_cli.charts import figures as charts
from fgvc_cli.cli.progress import ConsoleMessages
from fgvc_cli.engine import run_state
from fgvc_cli.engine.run_state import CURVES, METRICS, MetricsFile, TrainProgress, read_metrics


def row(epoch: int) -> dict[str, float]:
    return {"epoch": epoch, "loss": 1 / epoch, "val_top1": 0.1 * epoch, "lr": 0.1, "images_per_second": 9.0}


@pytest.fixture
def console() -> ConsoleMessages:
    messages = ConsoleMessages()
    messages.console = Console(file=io.StringIO(), width=200)
    return messages


@pytest.fixture
def drawn(monkeypatch) -> list[int]:
    """How many epochs each picture showed."""
    seen: list[int] = []
    monkeypatch.setattr(charts, "draw_curves", lambda rows, title: seen.append(len(rows)) or b"PNG")
    return seen


def train(progress: TrainProgress, epochs: int) -> None:
    table = MetricsFile(progress.run_dir / METRICS)
    with progress:
        for epoch in range(1, epochs + 1):
            table.write(row(epoch))
            progress.on_epoch(epoch, row(epoch), True)


def test_a_training_has_its_curves(tmp_path, console):
    train(TrainProgress(console, 2, tmp_path), 2)
    with Image.open(tmp_path / CURVES) as picture:
        assert picture.format == "PNG"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [CURVES, METRICS]


def test_they_are_drawn_at_each_epoch(tmp_path, console, drawn, monkeypatch):
    monkeypatch.setattr(run_state, "CURVES_SHARE", float("inf"))
    train(TrainProgress(console, 3, tmp_path), 3)
    assert drawn == [1, 2, 3]


def test_short_epochs_do_not_wait_for_pictures_but_the_last_is_drawn(tmp_path, console, drawn, monkeypatch):
    monkeypatch.setattr(run_state, "CURVES_SHARE", 1e-12)
    train(TrainProgress(console, 4, tmp_path), 4)
    assert drawn == [1, 4]


def test_a_picture_that_fails_is_one_warning_and_ends_nothing(tmp_path, console, monkeypatch):
    def fail(rows, title):
        raise RuntimeError("no\nfont")

    monkeypatch.setattr(charts, "draw_curves", fail)
    monkeypatch.setattr(run_state, "CURVES_SHARE", float("inf"))
    train(TrainProgress(console, 3, tmp_path), 3)
    said = console.console.file.getvalue()
    assert said.count("warning: no curves.png from here on: no font") == 1
    assert said.count("val top-1") == 3


def test_curves_of_an_earlier_training_do_not_stay(tmp_path, console):
    (tmp_path / CURVES).touch()
    with TrainProgress(console, 1, tmp_path):
        assert not (tmp_path / CURVES).exists()
    (tmp_path / CURVES).touch()
    (tmp_path / METRICS).touch()
    with TrainProgress(console, 1, tmp_path):
        assert (tmp_path / CURVES).exists()


def test_empty_cells_of_metrics_are_left_out(tmp_path):
    (tmp_path / METRICS).write_text("epoch,loss,val_top1_parts\n1,2.5,\n2,nan,0.5\n")
    first, second = read_metrics(tmp_path / METRICS)
    assert first == {"epoch": 1, "loss": 2.5}
    assert second["val_top1_parts"] == 0.5
