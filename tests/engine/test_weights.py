"""The embedded weights: named, verified, whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from fgvc_cli.engine import weights as weights_module
from fgvc_cli.engine.checkpoint import file_sha256
from fgvc_cli.engine.weights import default_notice, open_weights, read_manifest, resolve_weights
from fgvc_cli.errors import FgvcError
from fgvc_cli.predict.predictor import Predictor

MAX_BYTES = 30e6


@pytest.fixture
def own_manifest(tmp_path, monkeypatch):
    """A copy of the manifest's folder that a test may damage."""
    shutil.copytree(weights_module.weights_folder(), tmp_path / "weights")
    monkeypatch.setattr(weights_module, "weights_folder", lambda: tmp_path / "weights")
    read_manifest.cache_clear()
    yield tmp_path / "weights"
    read_manifest.cache_clear()


def test_manifest_names_its_models_and_a_default():
    manifest = read_manifest()
    assert set(manifest.entries) == {"aviary", "groceries", "groceries-vit"}
    assert manifest.default == "groceries"


@pytest.mark.parametrize("name", ["aviary", "groceries", "groceries-vit"])
def test_each_entry_is_what_its_file_says(name):
    entry = read_manifest().entries[name]
    path, _ = resolve_weights(name)
    assert path.stat().st_size < MAX_BYTES
    assert file_sha256(path) == entry.sha256
    checkpoint = open_weights(name)
    assert checkpoint.name == entry.model
    assert len(checkpoint.classes) == entry.classes
    stored = checkpoint.metadata["metrics"]
    for split, metrics in entry.metrics.items():
        for metric, value in metrics.items():
            assert stored[split][metric] == pytest.approx(value, abs=5e-5), (split, metric)
    assert "fgvc train" in entry.recipe


@pytest.mark.parametrize(
    ("name", "known"), [("aviary", True), ("groceries", False), ("groceries-vit", False)]
)
def test_birds_are_known_to_aviary_and_unknown_to_groceries(name, known):
    checkpoint, photos = open_weights(name), Path(__file__).parents[2] / "examples" / "photos"
    assert checkpoint.novelty is not None and checkpoint.novelty.means.dtype == torch.float16
    assert len(checkpoint.novelty.means) == len(checkpoint.classes)
    rows = list(Predictor(checkpoint, device="cpu", workers=0).predict(photos))
    unknown = [row.status == "unknown" for row in rows]
    assert len(rows) == 12 and (sum(unknown) <= 3 if known else sum(unknown) >= 11)
    assert unknown == [row.more["novelty"] > 1 for row in rows]


def test_no_path_of_a_machine_is_recorded():
    for name in read_manifest().entries:
        text = json.dumps(open_weights(name).metadata)
        assert '"/' not in text


def test_changed_file_is_refused(own_manifest):
    path = own_manifest / read_manifest().entries["aviary"].file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(FgvcError, match="damaged: sha256"):
        open_weights("aviary")


def test_unknown_name_shows_the_nearest():
    with pytest.raises(FgvcError, match="neither a file nor an embedded model.*groceries"):
        resolve_weights("grocerys")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FgvcError, match="no such file"):
        open_weights(str(tmp_path / "model.safetensors"))


def test_default_notice_says_what_serves_and_how_to_train_ones_own():
    notice = default_notice()
    for part in ("'groceries'", "81", "fgvc train --data"):
        assert part in notice
    assert "\n" not in notice


def test_the_folder_of_a_training_stands_for_its_model(tmp_path):
    file, _ = resolve_weights("aviary")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").symlink_to(file)
    assert open_weights(str(tmp_path / "run")).classes == open_weights("aviary").classes
    (tmp_path / "run" / "model.safetensors").unlink()
    with pytest.raises(FgvcError, match=r"run holds no model\.safetensors"):
        open_weights(tmp_path / "run")


def test_the_public_name_takes_what_every_command_takes():
    import fgvc_cli

    assert (
        fgvc_cli.load_checkpoint("aviary").classes
        == fgvc_cli.load_checkpoint(resolve_weights("aviary")[0]).classes
    )
