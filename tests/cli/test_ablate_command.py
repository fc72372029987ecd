"""fgvc train --ablate as a user meets it: the table, going on, refusals, failures."""

from __future__ import annotations

import csv
import io
import json
import shutil

import pytest
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from fgvc_cli.cli import app
from fgvc_cli.engine import train as train_command
from fgvc_cli.engine import trainer as trainer_module
from fgvc_cli.engine.checkpoint import read_metadata

MODEL = "crasmra-resnet10t"
OPTIONS = ["--no-pretrained", "--input-px", "32", "--batch-size", "8", "--workers", "0", "--epochs", "1"]


def train(data, out, *arguments: object, model=MODEL):
    whole = ["train", "--data", data, "--model", model, *OPTIONS, "--out", out, *arguments]
    return CliRunner().invoke(app, [str(part) for part in whole])


def ablate(data, out, *arguments: object, seeds="0"):
    return train(data, out, "--ablate", "smram-map", "--seeds", seeds, *arguments)


def rows_of(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def table(module_colours, tmp_path_factory):
    out = tmp_path_factory.mktemp("table") / "out"
    result = ablate(module_colours, out, seeds="0,1")
    assert result.exit_code == 0, result.output
    return module_colours, out, result


@pytest.fixture
def copied(table, tmp_path):
    """The finished table, to be spoilt."""
    data, out, _ = table
    return data, shutil.copytree(out, tmp_path / "out")


@pytest.fixture
def started(monkeypatch):
    """Run folders that training began in, or went on with."""
    begun: dict[str, list[str]] = {"start": [], "resume": []}
    start, resume = train_command.start, train_command.resume

    def recorded_start(values, *, out, **rest):
        begun["start"].append(out.name)
        return start(values, out=out, **rest)

    def recorded_resume(run_dir, *arguments, **rest):
        begun["resume"].append(run_dir.name)
        return resume(run_dir, *arguments, **rest)

    monkeypatch.setattr(train_command, "start", recorded_start)
    monkeypatch.setattr(train_command, "resume", recorded_resume)
    return begun


CELLS = ["smram_map=phi-s0", "smram_map=mean-s0", "smram_map=phi-s1", "smram_map=mean-s1"]


def test_every_training_and_split_is_a_line_with_what_its_checkpoint_says(table):
    _, out, _ = table
    rows = rows_of(out / "results.csv")
    assert [f"{row['variant']}-s{row['seed']}" for row in rows[::2]] == CELLS
    for row in rows:
        metadata = read_metadata(out / f"{row['variant']}-s{row['seed']}" / "model.safetensors")
        metrics = metadata["metrics"][row["split"]]
        assert metadata["config"]["recipe"] == "crasmra-paper"
        for name in ("top1", "macro_f1", "top1_stage3", "top1_concat"):
            assert float(row[name]) == pytest.approx(metrics[name], abs=1e-5)
        assert float(row["seconds"]) > 0
    assert {row["split"] for row in rows} == {"val", "test"}


def test_the_summary_compares_with_the_reference_on_stdout_and_in_its_file(table):
    _, out, result = table
    lines = rows_of(out / "summary.csv")
    assert [(line["split"], line["variant"]) for line in lines] == [
        (split, f"smram_map={value}") for split in ("val", "test") for value in ("phi", "mean")
    ]
    assert [line["verdict"] == "" for line in lines] == [True, False, True, False]
    assert {line["seeds"] for line in lines} == {"2"}
    assert "less smram_map=phi" in result.stdout and "highest mean on val" in result.stdout
    assert "epoch" not in result.stdout and "[4/4] smram_map=mean-s1" in result.stderr
    picture = Image.open(io.BytesIO((out / "results.png").read_bytes()))
    assert picture.format == "PNG" and picture.size[0] > 800


def test_a_row_of_the_table_is_what_train_does_alone(table, tmp_path):
    data, out, _ = table
    alone = train(
        data, tmp_path / "alone", "--recipe", "paper", "--seed", 1, "--set", "options.smram_map=mean"
    )
    assert alone.exit_code == 0, alone.output
    one, other = (load_file(p / "model.safetensors") for p in (tmp_path / "alone", out / "smram_map=mean-s1"))
    assert all(one[name].equal(other[name]) for name in one) and one.keys() == other.keys()


def test_the_same_command_again_trains_nothing(copied, started):
    data, out = copied
    before = (out / "results.csv").read_bytes()
    result = ablate(data, out, "--workers", 1, seeds="0,1")
    assert result.exit_code == 0, result.output
    assert started == {"start": [], "resume": []}
    assert (out / "results.csv").read_bytes() == before and "4 of them finished" in result.stderr


def test_more_seeds_are_added_and_overwrite_begins_anew(copied, started):
    data, out = copied
    assert ablate(data, out, seeds="1,2").exit_code == 0
    assert started["start"] == ["smram_map=phi-s2", "smram_map=mean-s2"]
    assert {row["seed"] for row in rows_of(out / "results.csv")} == {"1", "2"}
    started["start"].clear()
    assert ablate(data, out, "--overwrite", "--epochs", 2).exit_code == 0
    assert started["start"] == CELLS[:2]
    assert {row["seed"] for row in rows_of(out / "results.csv")} == {"0"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "2"], "epochs was 1, now 2"),
        (["--recipe", "strong"], "options.min_hidden was 1, now 32"),
        (["--set", "optim.lr_cram=0.5"], "optim.lr_cram was 0.006, now 0.5"),
    ],
)
def test_other_settings_are_refused_before_anything_is_trained(arguments, message, copied, started):
    data, out = copied
    result = ablate(data, out, *arguments, seeds="0,1,2")
    assert result.exit_code == 1 and message in result.stderr
    assert (" more." in result.stderr) == ("strong" in arguments)  # four are named
    assert started["start"] == [] and not (out / "smram_map=phi-s2").exists()


def test_other_images_and_foreign_folders_are_refused(copied, colours, tmp_path):
    data, out = copied
    (colours / "blue" / "000.png").unlink()
    assert "other images" in ablate(colours, out).stderr
    (tmp_path / "new" / CELLS[0]).mkdir(parents=True)
    (tmp_path / "new" / CELLS[0] / "notes.txt").write_text("mine")
    (tmp_path / "new" / CELLS[0] / "config.json").write_text('{"title": "mine"}')
    result = ablate(data, tmp_path / "new")
    assert result.exit_code == 1 and "holds no training" in result.stderr
    assert (tmp_path / "new" / CELLS[0] / "notes.txt").read_text() == "mine"


def test_a_failed_training_does_not_end_the_others_and_is_tried_again(
    colours, tmp_path, monkeypatch, started
):
    original = trainer_module.Trainer._train_epoch

    def fails(self, epoch):
        if self.config.options["smram_map"] == "phi":
            raise RuntimeError("the card\nfell out")
        return original(self, epoch)

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(trainer_module.Trainer, "_train_epoch", fails)
        result = ablate(colours, out)
    assert result.exit_code == 1
    assert "fgvc: smram_map=phi-s0 failed: RuntimeError: the card fell out" in result.stderr
    assert "RuntimeError: the card" in (out / CELLS[0] / "error.txt").read_text()
    assert {row["variant"] for row in rows_of(out / "results.csv")} == {"smram_map=mean"}
    started["start"].clear()
    result = ablate(colours, out)
    assert result.exit_code == 0, result.output
    assert started["start"] == [] and started["resume"] == [CELLS[0]]
    assert not (out / CELLS[0] / "error.txt").exists()
    assert len(rows_of(out / "results.csv")) == 4


def test_a_cut_table_goes_on_and_ends_as_an_uncut_one(colours, tmp_path, monkeypatch, started):
    uncut, cut = tmp_path / "uncut", tmp_path / "cut"
    assert ablate(colours, uncut, "--epochs", 2).exit_code == 0
    original = trainer_module.Trainer._train_epoch

    def interrupted(self, epoch):
        if epoch == 2 and self.config.options["smram_map"] == "mean":
            raise KeyboardInterrupt
        return original(self, epoch)

    with monkeypatch.context() as patched:
        patched.setattr(trainer_module.Trainer, "_train_epoch", interrupted)
        result = ablate(colours, cut, "--epochs", 2)
    assert result.exit_code == 130 and "the same command again" in result.stderr
    assert len(rows_of(cut / "results.csv")) == 2
    for times in started.values():
        times.clear()
    assert ablate(colours, cut, "--epochs", 2).exit_code == 0
    assert started == {"start": [], "resume": [CELLS[1]]}
    one, other = (load_file(folder / CELLS[1] / "model.safetensors") for folder in (uncut, cut))
    assert all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds goes with --ablate"),
        (["--ablate", "table4"], "Nearest: table3"),
        (["--ablate", "delta", "--seeds", "0,0"], "different whole numbers"),
        (["--ablate", "delta", "--seeds", "many"], "different whole numbers"),
        (["--ablate", "delta", "--seed", "1"], "--seeds 0,1,2"),
        (["--ablate", "delta", "--set", "seed=1"], "--seeds 0,1,2"),
        (["--ablate", "delta", "--set", "options.delta=0.7"], "options.delta is what --ablate delta varies"),
        (["--ablate", "delta", "--set", "options.detla=0.7"], "Nearest: delta"),
        (["--ablate", "stages"], "table3, masks, delta"),
    ],
)
def test_bad_requests_are_one_line_and_leave_nothing(arguments, message, tmp_path):
    (tmp_path / "set").mkdir()
    result = train(tmp_path / "set", tmp_path / "out", *arguments)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("fgvc: ")]
    assert len(lines) == 1 and message in lines[0] and not (tmp_path / "out").exists()


def test_the_settings_of_every_training_are_shown_without_data():
    arguments = ["train", "--model", MODEL, "--input-px", "32", "--ablate", "table3", "--show-config"]
    result = CliRunner().invoke(app, [*arguments, "--seeds", "4"])
    shown = json.loads(result.stdout)
    assert list(shown) == ["plain-s4", "heads-s4", "cbam-s4", "cram-s4", "cram+smram-s4"]
    assert shown["plain-s4"]["model"] == "timm-resnet10t" and shown["cbam-s4"]["seed"] == 4
