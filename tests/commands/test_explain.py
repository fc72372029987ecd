"""fgvc explain from the outside: what it prints, what it writes, and what it leaves when it fails."""

from __future__ import annotations

import os

import pytest
import torch
from PIL import Image
from torch import nn

from fgvc_cli.commands.explain import run
from fgvc_cli.config import Preprocess
from fgvc_cli.engine.checkpoint import Checkpoint
from fgvc_cli.errors import EXIT_ERROR, EXIT_OK, EXIT_USAGE, FgvcError
from fgvc_cli.models.output import ModelOutput


class FixedModel(nn.Module):
    def forward(self, images: torch.Tensor, want: tuple[str, ...] = ()) -> ModelOutput:
        probs = torch.tensor([[0.25, 0.5, 0.0625, 0.1875]])
        return ModelOutput(
            logits={"main": probs.log()},
            probs=probs,
            heat=torch.eye(4)[None],
            boxes=torch.tensor([[8.0, 8.0, 40.0, 40.0]]),
            stages={"last": torch.eye(8)[None]},
        )


@pytest.fixture
def opened(monkeypatch) -> list[str | None]:
    """The weights that were asked for; a known model answers whatever they are."""
    asked: list[str | None] = []

    def open_weights(weights: str | None, options: object = None) -> Checkpoint:
        asked.append(weights)
        preprocess = Preprocess(input_px=64, resize_px=80)
        return Checkpoint(
            FixedModel(), "fake-model", ("ant", "bee", "cat", "dog [red]"), preprocess, "0" * 64
        )

    monkeypatch.setattr("fgvc_cli.engine.weights.open_weights", open_weights)
    monkeypatch.setattr("fgvc_cli.engine.weights.default_notice", lambda: "using the default")
    return asked


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """A photograph in a folder of its own; the command runs in another, empty one."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    path = tmp_path / "photos" / "bird [red].jpg"
    Image.effect_noise((90, 60), 60).convert("RGB").save(path)
    return path


def test_prints_the_classes_and_writes_the_picture_into_the_current_folder(photo, opened, capsys):
    assert run(photo, weights="any", top_k=3, device="cpu") == EXIT_OK
    stdout, stderr = capsys.readouterr()
    assert stdout.splitlines() == ["0.5000  bee", "0.2500  ant", "0.1875  dog [red]"]
    assert stderr.splitlines() == ["picture: bird [red].explain.png"]
    assert opened == ["any"]
    assert os.listdir() == ["bird [red].explain.png"] and os.listdir(photo.parent) == [photo.name]
    with Image.open("bird [red].explain.png") as picture:
        picture.load()
        assert picture.format == "PNG" and picture.width == 1600


def test_no_weights_means_the_default_and_says_so_unless_quiet(photo, opened, capsys):
    run(photo, device="cpu")
    assert "using the default" in capsys.readouterr().err
    run(photo, device="cpu", overwrite=True, quiet=True)
    stdout, stderr = capsys.readouterr()
    assert stderr == "" and len(stdout.splitlines()) == 4
    assert opened == [None, None]


def test_the_exif_orientation_is_honoured(photo, opened, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (90, 60)).save(photo, exif=exif)
    seen = []
    from fgvc_cli.explain import render

    monkeypatch.setattr(render, "render", lambda e, title: seen.append(e.image.size) or e.image)
    run(photo, weights="any", device="cpu")
    assert seen == [(60, 90)]


def test_an_existing_picture_is_replaced_only_on_request(photo, opened, tmp_path):
    out = tmp_path / "why.PNG"
    out.write_bytes(b"precious")
    with pytest.raises(FgvcError, match="--overwrite") as caught:
        run(photo, weights="any", out=out, device="cpu")
    assert caught.value.exit_code == EXIT_ERROR and out.read_bytes() == b"precious" and opened == []
    run(photo, weights="any", out=out, device="cpu", overwrite=True)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_the_photograph_is_never_overwritten(tmp_path, opened):
    photo = tmp_path / "bird.png"
    Image.new("RGB", (9, 9)).save(photo)
    before = photo.read_bytes()
    with pytest.raises(FgvcError, match="photograph itself"):
        run(photo, weights="any", out=photo, device="cpu", overwrite=True)
    assert photo.read_bytes() == before


@pytest.mark.parametrize("out", ["why.jpg", "why", "png"])
def test_another_suffix_than_png_is_a_usage_error(photo, opened, out, tmp_path):
    with pytest.raises(FgvcError, match=".png") as caught:
        run(photo, weights="any", out=tmp_path / out, device="cpu")
    assert caught.value.exit_code == EXIT_USAGE


def test_fewer_than_one_class_is_a_usage_error(photo, opened):
    with pytest.raises(FgvcError, match="--top-k") as caught:
        run(photo, weights="any", top_k=0, device="cpu")
    assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize("out", ["nowhere/why.png", "file/why.png", "folder.png"])
def test_an_output_that_cannot_be_written_is_found_before_any_work(photo, opened, tmp_path, out):
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FgvcError) as caught:
        run(photo, weights="any", out=tmp_path / out, device="cpu", overwrite=True)
    assert caught.value.exit_code == EXIT_ERROR
    assert opened == [] and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "no bytes"), (b"not a photograph", "header"), (None, "no such file")],
)
def test_a_photograph_that_cannot_be_read_says_why(tmp_path, monkeypatch, opened, content, reason):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FgvcError, match=reason) as caught:
        run(path, weights="any", device="cpu")
    assert caught.value.exit_code == EXIT_ERROR and "bad.jpg" in str(caught.value)
    assert opened == [] and {p.name for p in tmp_path.iterdir()} <= {"bad.jpg"}


def test_a_folder_is_told_apart(photo, opened):
    with pytest.raises(FgvcError, match="one photograph"):
        run(photo.parent, weights="any", device="cpu")
    assert os.listdir() == []


@pytest.mark.parametrize("failure", [MemoryError, KeyboardInterrupt, OSError])
def test_a_failure_on_the_way_leaves_nothing_behind(photo, opened, monkeypatch, capsys, failure):
    def fail(*_args, **_kwargs):
        raise failure

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises((failure, FgvcError)):
        run(photo, weights="any", device="cpu")
    assert os.listdir() == [] and capsys.readouterr().out == ""


def test_an_unknown_device_leaves_nothing_behind(photo, opened):
    with pytest.raises(FgvcError, match="--device"):
        run(photo, weights="any", device="gpu")
    assert os.listdir() == []
