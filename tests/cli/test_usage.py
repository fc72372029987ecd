"""Usage errors: what to type in place of other programs' options, and an answer without torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fgvc_cli.cli import app
from fgvc_cli.cli.help import FOREIGN
from fgvc_cli.config import BaselineConfig, CraSmraConfig, MultiStageVitConfig, TrainConfig, _paths

ROOT = Path(__file__).parents[2]

MEANT = [
    ("train --lr 0.01", "--set optim.lr_backbone=0.01?"),
    ("train --lr0=0.01", "--set optim.lr_backbone=0.01?"),
    ("train --batch 32", "--batch-size 32?"),
    ("train -b 32", "--batch-size 32?"),
    ("train --batch_size 32", "--batch-size 32?"),
    ("train --imgsz 640", "--input-px 640?"),
    ("train --img-size 224", "--input-px 224?"),
    ("train -j 4", "--workers 4?"),
    ("train --opt adamw", "--set optim.name=adamw?"),
    ("train --weight-decay 0.05", "--set optim.weight_decay=0.05?"),
    ("train --wd", "--set optim.weight_decay=VALUE?"),
    ("train --mixup 0.2", "--set augment.mixup=0.2?"),
    ("train --warmup-epochs 3", "--set optim.warmup_epochs=3?"),
    ("train --name birds", "--out birds?"),
    ("train --project --epochs 3", "--out VALUE?"),
    ("train --epoch 3", "--epochs?"),
    ("train epochs=3 imgsz=640", "--epochs 3?"),
    ("predict images --model groceries", "--weights groceries?"),
    ("predict --source images", "Images are named without an option: fgvc predict images."),
    ("predict images --resume", "The same command again resumes."),
    ("predict images --conf 0.5", "--min-prob 0.5?"),
    ("predict images --half", "--amp bf16?"),
    ("eval --imgsz 224", "The checkpoint holds the input size."),
]


@pytest.mark.parametrize(("typed", "said"), MEANT, ids=[typed for typed, _ in MEANT])
def test_options_of_other_programs_get_what_to_type_here(typed, said):
    result = CliRunner().invoke(app, typed.split())
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1 and said in result.stderr, result.stderr
    assert result.stderr.endswith(f" Try: fgvc {typed.split()[0]} --help\n") and ".. " not in result.stderr


def options_of(command: Any) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts}


def test_what_is_offered_exists():
    group: Any = typer.main.get_command(app)
    options = {name: options_of(command) for name, command in group.commands.items()}
    settings = set(_paths(TrainConfig)) | {
        f"options.{name}"
        for family in (CraSmraConfig, BaselineConfig, MultiStageVitConfig)
        for name in _paths(family)
    }
    for row in FOREIGN:
        assert set(row.commands.split()) <= set(options)
        if not row.here.endswith("."):
            first, *behind = row.here.split()
            assert any(first in known for known in options.values()), row.here
            if first == "--set":
                assert behind[0].partition("=")[0] in settings, row.here
        for name in row.names.split():
            assert re.fullmatch(r"--[a-z0-9-]+|-[a-z]", name)
            for command in row.commands.split() or [n for n in options if row.here.split()[0] in options[n]]:
                taken = name in options[command]
                assert not taken or name == row.here.split()[0], f"fgvc {command} has {name}"


AT_ONCE = [
    "train --lr 0.01",
    "train --data nowhere --model crasmra-r5",
    "train --dataset brids --model timm-resnet18",
    "predict images --device gpu",
    "predict images --weights aviari",
    "predict nowhere --out preds.xyz",
    "eval --split tset",
    "eval --weights nowhere.safetensors --device 0",
    "index --data nowhere",
    "trian",
]


@pytest.mark.parametrize("typed", AT_ONCE)
def test_usage_errors_do_not_wait_for_torch(typed, tmp_path):
    code = f"""
import sys, time
from fgvc_cli.cli import app
try:
    app({typed.split()!r}, prog_name="fgvc")
except SystemExit as end:
    print(end.code, "torch" in sys.modules, time.process_time())
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stderr.startswith("fgvc: ") and ended.stderr.count("\n") == 1
    code, torch, seconds = ended.stdout.split()
    assert code in ("1", "2") and torch == "False"
    assert float(seconds) < 1


def test_the_list_of_models_needs_no_torch():
    code = """
import sys, time
from fgvc_cli.cli import app
try:
    app(["models"], prog_name="fgvc")
except SystemExit:
    print("torch" in sys.modules, time.process_time())
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    torch, seconds = ended.stdout.split()[-2:]
    assert torch == "False" and float(seconds) < 1
    assert ended.stdout.startswith("Two kinds of model") and "crasmra-d161" in ended.stdout


def test_a_missing_folder_is_named_before_a_missing_model():
    result = CliRunner().invoke(app, ["train", "--data", "nowhere"])
    assert "nowhere does not exist" in result.stderr
    for command in ("predict", "explain"):
        result = CliRunner().invoke(app, [command, "nowhere", "--weights", "no-model"])
        assert "nowhere" in result.stderr and "no-model" not in result.stderr
