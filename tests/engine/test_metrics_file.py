"""metrics.csv."""

from __future__ import annotations

from fgvc_cli.engine.run_state import MetricsFile


def test_each_row_is_on_disk_at_once(tmp_path):
    path = tmp_path / "metrics.csv"
    table = MetricsFile(path)
    table.write({"epoch": 1, "loss": 1 / 3})
    assert path.read_text().split() == ["epoch,loss", "1,0.333333"]
    table.write({"epoch": 2, "loss": 0.25})
    assert path.read_text().split() == ["epoch,loss", "1,0.333333", "2,0.25"]


def test_going_on_drops_what_came_after_the_saved_rows(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,loss\n1,1\n2,0.5\n3,0.")
    MetricsFile(path, [{"epoch": 1, "loss": 1}]).write({"epoch": 2, "loss": 0.25})
    assert path.read_text().split() == ["epoch,loss", "1,1", "2,0.25"]


def test_a_column_that_comes_later_is_kept_and_one_that_goes_stays_empty(tmp_path):
    path = tmp_path / "metrics.csv"
    table = MetricsFile(path)
    table.write({"epoch": 1, "val_reached_parts": 0, "loss": 2})
    table.write({"epoch": 2, "val_reached_parts": 0.5, "val_top1_parts": 0.75, "loss": 1})
    table.write({"epoch": 3, "val_top1_parts": 1, "loss": 0.5})
    lines = ["epoch,val_reached_parts,loss,val_top1_parts", "1,0,2,", "2,0.5,1,0.75", "3,,0.5,1"]
    assert path.read_text().split() == lines
