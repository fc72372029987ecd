"""fgvc push, and hf-hub:owner/name, against a local hub that speaks the API."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import fgvc
from hub_server import TOKEN, Hub, serve_hub
from safetensors.torch import load_file

import fgvc_cli
from fgvc_cli.config import Preprocess, TrainConfig
from fgvc_cli.engine.checkpoint import read_metadata, save_checkpoint
from fgvc_cli.engine.weights import open_weights, resolve_weights
from fgvc_cli.errors import FgvcError
from fgvc_cli.evaluate.confidence import Calibration
from fgvc_cli.evaluate.intervals import share_interval
from fgvc_cli.models.registry import create_model
from fgvc_cli.retrieval.index_file import default_index

TEST = {"images": 250.0, "top1": 0.9, "top5": 0.992, "macro_f1": 0.8765}


def save(run: Path, *, data: str, finished: bool = True, metrics: dict | None = None) -> Path:
    torch.manual_seed(0)
    run.mkdir()
    config = TrainConfig(
        model="timm-resnet10t", recipe="strong", data=data, preprocess=Preprocess(input_px=32, resize_px=36)
    )
    save_checkpoint(
        run / "model.safetensors",
        create_model("timm-resnet10t", 3, input_px=32),
        config=config,
        classes=("blue tit", "great tit", "marsh ```tit"),
        dataset="tits",
        metrics={"val": {"images": 40.0, "top1": 0.95}, "test": TEST} if metrics is None else metrics,
        calibration=Calibration(0.7, "val", 40) if finished else None,
        train_images=800,
        epoch=7,
        finished=finished,
    )
    return run


@pytest.fixture
def run(tmp_path) -> Path:
    return save(tmp_path / "run", data="tits.csv")


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """As HF_ENDPOINT would, which is read once, at import."""
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + template[template.index("/{repo_id}") :]
    )
    monkeypatch.setattr(constants, "ENDPOINT", url)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    """The hub that huggingface_hub talks to here, with an empty cache; logged in by the environment."""
    from huggingface_hub import constants

    with serve_hub() as hub:
        use_endpoint(monkeypatch, hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_a_model_goes_up_with_its_card_and_comes_back(hub, run, colours):
    result = fgvc("push", run, "someone/tits", "--license", "cc-by-4.0")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{hub.url}/someone/tits\n" and "--weights hf-hub:someone/tits" in result.stderr
    assert TOKEN not in result.output
    files = hub.commits["someone/tits"][hub.head("someone/tits")]
    assert sorted(files) == ["README.md", "model.safetensors"]
    assert files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert hub.private["someone/tits"] is False
    name = "hf-hub:someone/tits"
    assert open_weights(name).classes == open_weights(run).classes
    result = fgvc("predict", colours, "--weights", name, "--device", "cpu", "--workers", 0)
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 31
    model = create_model("timm-resnet10t", 5, init=resolve_weights(name, option="--init")[0])
    trained = load_file(run / "model.safetensors")["backbone.conv1.0.weight"]
    assert torch.equal(model.state_dict()["backbone.conv1.0.weight"], trained)
    assert default_index(f"{name}@main") == Path("tits.index.h5")


def test_the_card_tells_data_figures_classes_limits_and_command(run, tmp_path):
    from huggingface_hub import ModelCard

    pushed = fgvc_cli.push(str(run), "someone/tits", "mit", dry_run=True, out=tmp_path / "up", quiet=True)
    assert pushed.url == str(tmp_path / "up") and pushed.weights == "hf-hub:someone/tits"
    card = ModelCard.load(tmp_path / "up" / "README.md")
    about = card.data
    assert (about.license, about.library_name, about.pipeline_tag) == ("mit", "fgvc", "image-classification")
    assert {(r.metric_name, r.metric_value, r.dataset_split) for r in about.eval_results} == {
        ("top-1", 0.9, "test"),
        ("top-5", 0.992, "test"),
        ("macro F1", 0.8765, "test"),
    }
    low, high = share_interval(225, 250)
    for part in (
        "tits: 800 train, 40 val, 250 test.",
        f"| test | 250 | top-1 | 90.0 % | [{100 * low:.1f}, {100 * high:.1f}] |",
        "| val | 40 | top-1 | 95.0 % |",
        "## Classes (3)\n\n```text\nblue tit\ngreat tit\nmarsh '''tit\n```",
        "It knows these classes only",
        "calibrated on 40 images of val",
        "fgvc train --data tits.csv --model timm-resnet10t --recipe strong --epochs",
        "fgvc predict photos/ --weights hf-hub:someone/tits",
    ):
        assert part in card.text, part
    assert sorted(os.listdir(tmp_path / "up")) == ["README.md", "model.safetensors"]
    with pytest.raises(FgvcError, match="exists"):
        fgvc_cli.push(str(run), "someone/tits", "mit", dry_run=True, out=tmp_path / "up", quiet=True)


def test_an_unfinished_training_is_said_to_be_one(tmp_path):
    run = save(tmp_path / "run", data="tits.csv", finished=False, metrics={})
    result = fgvc("push", run, "a/b", "--license", "mit", "--dry-run", "--out", tmp_path / "up")
    assert result.exit_code == 0 and "has not finished" in result.stderr
    text = (tmp_path / "up" / "README.md").read_text()
    for part in ("Nothing was measured", "not measured on a test split", "epoch 7", "not calibrated"):
        assert part in text


def test_paths_of_this_machine_stay_here(tmp_path):
    run = save(tmp_path / "run", data=str(tmp_path / "secret" / "tits.csv"))
    before = (run / "model.safetensors").read_bytes()
    result = fgvc("push", run, "a/b", "--license", "mit", "--dry-run", "--out", tmp_path / "up")
    assert result.exit_code == 0 and "Paths of this machine are cut" in result.stderr
    for file in ("README.md", "model.safetensors"):
        assert b"secret" not in (tmp_path / "up" / file).read_bytes()
    copy = read_metadata(tmp_path / "up" / "model.safetensors")
    assert copy["config"]["data"] == "tits.csv"
    ours, theirs = load_file(run / "model.safetensors"), load_file(tmp_path / "up" / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours) and ours.keys() == theirs.keys()
    assert (run / "model.safetensors").read_bytes() == before
    # Of the hub's cache, what it is called there stays known.
    from fgvc_cli.engine.hub import _without_paths

    cached = f"/home/x/.cache/huggingface/hub/models--timm--resnet10t/snapshots/{'a' * 40}/model.safetensors"
    assert _without_paths({"init": [cached, r"C:\Users\x\w.safetensors", "relative/w"]}) == {
        "init": [f"hf-hub:timm/resnet10t@{'a' * 40}", "w.safetensors", "relative/w"]
    }


def test_revisions_and_the_cache(hub, run, colours, tmp_path, monkeypatch):
    first = fgvc_cli.push(str(run), "a/b", "mit", quiet=True).commit
    other = save(tmp_path / "other", data="others.csv", metrics={})
    second = fgvc_cli.push(str(other), "a/b", "mit", quiet=True).commit
    assert hub.head("a/b") == second != first

    def data_of(name: str) -> str:
        return read_metadata(resolve_weights(name)[0])["config"]["data"]

    assert data_of("hf-hub:a/b") == "others.csv"
    assert data_of(f"hf-hub:a/b@{first}") == "tits.csv" and data_of("hf-hub:a/b@main") == "others.csv"
    # Without a network, what is in the cache serves; else one line.
    use_endpoint(monkeypatch, "http://no-such-host.invalid")
    asked = len(hub.asked)
    assert data_of("hf-hub:a/b") == "others.csv" and data_of(f"hf-hub:a/b@{first}") == "tits.csv"
    assert len(hub.asked) == asked
    result = fgvc("predict", colours, "--weights", "hf-hub:a/unknown")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert "a/unknown is not in the cache, and the hub cannot be reached" in result.stderr
    with pytest.raises(FgvcError, match="a/new could not be uploaded|cannot be reached"):
        fgvc_cli.push(str(run), "a/new", "mit", quiet=True)


def test_what_is_not_there_is_named(hub, run, colours):
    fgvc_cli.push(str(run), "a/b", "mit", quiet=True)
    hub.commits["a/empty"] = {}
    hub.commit("a/empty", {"README.md": b""})
    for name, part in (
        ("a/c", "The hub has no model a/c, or it is private"),
        ("a/b@v9", "a/b has no revision 'v9'"),
        ("a/empty", "a/empty holds no model.safetensors"),
        ("b", "--weights got 'hf-hub:b', expected hf-hub:owner/name"),
        ("a/b@", "expected hf-hub:owner/name"),
    ):
        result = fgvc("predict", colours, "--weights", f"hf-hub:{name}")
        assert result.exit_code in (1, 2) and part in result.stderr and result.stderr.count("\n") == 1
    with pytest.raises(FgvcError, match="--init got 'hf-hub:b'"):
        resolve_weights("hf-hub:b", option="--init")


def test_private_stays_private(hub, run):
    fgvc_cli.push(str(run), "a/secret", "mit", private=True, quiet=True)
    assert hub.private["a/secret"] is True
    fgvc_cli.push(str(run), "a/open", "mit", quiet=True)
    before = hub.head("a/open")
    with pytest.raises(FgvcError, match="a/open is there already, and public"):
        fgvc_cli.push(str(run), "a/open", "mit", private=True, quiet=True)
    assert hub.head("a/open") == before


def test_refusals_are_one_line_and_show_no_token(hub, run, monkeypatch):
    push = ("push", run, "a/b", "--license", "mit")
    result = fgvc("push", run, "foreign/b", "--license", "mit")
    assert result.exit_code == 1 and "refused (403)" in result.stderr and "hf auth login" in result.stderr
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    result = fgvc(*push)
    assert result.exit_code == 1 and "refused (401)" in result.stderr and result.stderr.count("\n") == 1
    assert "hf_another" not in result.output and hub.commits == {}
    for arguments, part in (
        (("push", run, "a/b"), "--license"),
        (("push", run, "b", "--license", "mit"), "expected owner/name"),
        (("push", run, "a/b", "--license", "My Own"), "expected one as the hub writes it"),
        ((*push, "--dry-run"), "--dry-run goes with --out FOLDER"),
        ((*push, "--out", "x"), "--out goes with --dry-run"),
    ):
        result = fgvc(*arguments)
        assert result.exit_code == 2 and part in result.stderr, result.output


def test_from_the_shell_with_the_endpoint_of_the_environment(run, tmp_path):
    with serve_hub() as hub:
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}
        own |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "fgvc_cli", "push", str(run), "me/tits", "--license", "mit"]
        root = Path(fgvc_cli.__file__).parents[1]
        done = subprocess.run(command, env=os.environ | own, cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        assert "me/tits" in hub.commits and done.stdout.strip() == f"{hub.url}/me/tits"
        assert any(line.startswith("PUT /lfs/") for line in hub.asked), "the real upload code went through"
