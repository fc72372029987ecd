"""fgvc explain from the outside: what it prints, what it writes, and what it leaves when it fails."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fgvc_cli.commands import explain as command
from fgvc_cli.commands.explain_options import ExplainOptions
from fgvc_cli.config import Preprocess
from fgvc_cli.engine.checkpoint import Checkpoint
from fgvc_cli.errors import EXIT_ERROR, EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, FgvcError
from fgvc_cli.models.output import ModelOutput


def run(image, **options) -> int:
    return command.run(ExplainOptions(image, **options))


class FixedModel(nn.Module):
    def forward(self, images: torch.Tensor, want: tuple[str, ...] = ()) -> ModelOutput:
        count = len(images)
        probs = torch.tensor([[0.25, 0.5, 0.0625, 0.1875]]).repeat(count, 1)
        return ModelOutput(
            logits={"main": probs.log()},
            probs=probs,
            heat=torch.eye(4).repeat(count, 1, 1),
            boxes=torch.tensor([[8.0, 8.0, 40.0, 40.0]]).repeat(count, 1),
            stages={"last": torch.eye(8).repeat(count, 1, 1)},
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


def write_photos(folder, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.effect_noise((90 + i, 60), 60).convert("RGB").save(folder / f"{i}.jpg")


def test_a_folder_gives_a_picture_each_and_a_table(photo, opened, capsys):
    write_photos(photo.parent / "below", 4)
    Image.new("RGB", (4000, 30)).save(photo.parent / "wide.png")
    assert run(photo.parent, weights="any", device="cpu", batch_size=3, workers=1) == EXIT_OK
    out = Path("photos.explain")
    rows = list(csv.DictReader((out / "index.csv").open()))
    names = ["below/0.jpg", "below/1.jpg", "below/2.jpg", "below/3.jpg", "bird [red].jpg", "wide.png"]
    assert [row["path"] for row in rows] == names
    assert {row["label"] for row in rows} == {"bee"} and {row["status"] for row in rows} == {"ok"}
    for row in rows:
        assert row["picture"] == f"{row['path']}.png"
        with Image.open(out / row["picture"]) as picture:
            assert picture.width == 1600 and picture.height < 700
    # The box is the whole input's middle; the wide photograph was kept smaller, its box was not.
    wide = rows[-1]
    assert float(wide["width"]) == 4000 and float(wide["box_x2"]) > 1600
    stdout, stderr = capsys.readouterr()
    assert stdout == "" and "index.csv" in stderr
    assert sorted(os.listdir()) == ["photos.explain"]


def test_full_pages_of_a_folder_on_request(photo, opened):
    run(photo.parent, weights="any", device="cpu", page="full", out=Path("why"))
    with Image.open("why/bird [red].jpg.png") as picture:
        assert picture.height > 700


def test_what_cannot_be_read_is_named_and_the_others_still_come_out(photo, opened, capsys):
    (photo.parent / "bad.jpg").write_text("not a photograph")
    assert run(photo.parent, weights="any", device="cpu", out=Path("why")) == EXIT_SOME_FAILED
    with open("why/index.csv") as stream:
        rows = {row["path"]: row for row in csv.DictReader(stream)}
    assert rows["bad.jpg"]["status"] == "not_an_image" and rows["bad.jpg"]["picture"] == ""
    assert rows[photo.name]["status"] == "ok"
    assert sorted(os.listdir("why")) == ["bird [red].jpg.png", "index.csv"]
    assert "Left out bad.jpg" in capsys.readouterr().err


def test_a_folder_with_nothing_readable_is_a_table_of_failures(tmp_path, monkeypatch, opened):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "bad.jpg").touch()
    assert run(Path("photos"), weights="any", device="cpu") == EXIT_SOME_FAILED
    assert os.listdir("photos.explain") == ["index.csv"]


def test_a_folder_that_holds_anything_is_never_replaced(photo, opened):
    os.makedirs("why")
    Path("why/precious").touch()
    for options in ({"out": Path("why")}, {"parts_dir": Path("why")}):
        with pytest.raises(FgvcError, match="not empty"):
            run(photo.parent, weights="any", device="cpu", overwrite=True, **options)
    assert opened == [] and os.listdir("why") == ["precious"]


def test_a_method_that_fails_on_the_way_leaves_no_folder(photo, opened):
    with pytest.raises(FgvcError, match="rollout needs a plain ViT"):
        run(photo.parent, weights="any", device="cpu", methods=("rollout",), parts_dir=Path("parts"))
    assert os.listdir() == []


@pytest.mark.parametrize("many", [False, True])
def test_raw_maps_are_16_bit_pictures_of_their_own_cells(photo, opened, many):
    source = photo.parent if many else photo
    run(source, weights="any", device="cpu", parts_dir=Path("parts"))
    assert sorted(os.listdir("parts")) == ["bird [red].jpg.heat.png", "bird [red].jpg.last.png"]
    with Image.open("parts/bird [red].jpg.last.png") as picture:
        assert picture.mode.startswith("I;16") or picture.mode == "I"
        np.testing.assert_array_equal(np.asarray(picture), np.eye(8) * 65535)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"methods": ("gradcma",)}, "gradcam"),
        ({"target": "bees"}, "Nearest: bee"),
        ({"target": "bee", "against": "BEE"}, "both"),
        ({"target": "bee", "methods": ("stages",)}, "gradcam or occlusion"),
        ({"page": "poster"}, "full or strip"),
    ],
)
def test_what_is_not_known_is_a_usage_error(photo, opened, options, shown):
    with pytest.raises(FgvcError, match=shown) as caught:
        run(photo, weights="any", device="cpu", **options)
    assert caught.value.exit_code == EXIT_USAGE and os.listdir() == []


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
