"""fgvc explain from the outside: what it prints, what it writes, and what it leaves when it fails."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fgvc_cli
from fgvc_cli.cli.explain import run as run_command
from fgvc_cli.cli.progress import ConsoleMessages
from fgvc_cli.config import Preprocess, TrainConfig
from fgvc_cli.engine.checkpoint import Checkpoint, save_checkpoint
from fgvc_cli.errors import EXIT_ERROR, EXIT_OK, EXIT_SOME_FAILED, EXIT_USAGE, FgvcError
from fgvc_cli.explain.options import ExplainOptions, expand_weights
from fgvc_cli.models.output import ModelOutput
from fgvc_cli.models.registry import create_model


def run(image, **options) -> int:
    messages = ConsoleMessages(quiet=options.pop("quiet", False))
    return run_command(ExplainOptions(image, **options), messages)


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
    monkeypatch.setattr("fgvc_cli.explain.run.default_notice", lambda: "using the default")
    return asked


class MaskedModel(FixedModel):
    """Of four channels in stage3 one is always suppressed; the second, where ``alive``, in bright images."""

    def __init__(self, alive: bool):
        super().__init__()
        self.alive = alive

    def forward(self, images: torch.Tensor, want: tuple[str, ...] = ()) -> ModelOutput:
        output = super().forward(images, want)
        second = (images.mean(dim=(1, 2, 3)) > 0).float().mean() * self.alive
        rates = torch.stack([torch.ones(()), second, torch.zeros(()), torch.zeros(())])
        output.stats = {"overlap": torch.zeros(())}
        output.stats |= {"suppressed_stage3": rates, "mask_saturated_stage3": torch.tensor(0.75)}
        return output


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """An image in a folder of its own; the command runs in another, empty one."""
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
    from fgvc_cli.explain import run as module

    monkeypatch.setattr(module, "render", lambda e, title: seen.append(e.image.size) or e.image)
    run(photo, weights="any", device="cpu")
    assert seen == [(60, 90)]


def test_a_notebook_gets_what_the_command_prints(photo, opened, capsys):
    """Before and after a part of the room is imported, which puts the package in the function's place."""
    explained = fgvc_cli.explain(photo, weights="any", device="cpu", top_k=3, quiet=True)
    assert explained.out == Path("bird [red].explain.png") and explained.statuses == {"ok": 1}
    ((guess, prob), *_) = explained.explanations[0].explanation.top
    assert (guess, prob) == ("bee", 0.5) and capsys.readouterr() == ("", "")
    from fgvc_cli.explain import pages  # noqa: F401

    many = fgvc_cli.explain(str(photo.parent), weights=["any"], device="cpu", quiet=True)
    assert many.statuses == {"ok": 1} and many.explanations == () and (many.out / "index.csv").is_file()


def test_an_existing_picture_is_replaced_only_on_request(photo, opened, tmp_path):
    out = tmp_path / "why.PNG"
    out.write_bytes(b"precious")
    with pytest.raises(FgvcError, match="--overwrite") as caught:
        run(photo, weights="any", out=out, device="cpu")
    assert caught.value.exit_code == EXIT_ERROR and out.read_bytes() == b"precious" and opened == []
    run(photo, weights="any", out=out, device="cpu", overwrite=True)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_the_image_is_never_overwritten(tmp_path, opened):
    photo = tmp_path / "bird.png"
    Image.new("RGB", (9, 9)).save(photo)
    before = photo.read_bytes()
    with pytest.raises(FgvcError, match="image itself"):
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
    [(b"", "no bytes"), (b"not an image", "header"), (None, "no such file")],
)
def test_an_image_that_cannot_be_read_says_why(tmp_path, monkeypatch, opened, content, reason):
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
        assert row["picture"] == str(Path(row["path"]).with_suffix(".jpg"))
        with Image.open(out / row["picture"]) as picture:
            assert picture.format == "JPEG" and picture.width == 1600 and picture.height < 700
    # The box is the whole input's middle; the wide image was kept smaller, its box was not.
    wide = rows[-1]
    assert float(wide["width"]) == 4000 and float(wide["box_x2"]) > 1600
    stdout, stderr = capsys.readouterr()
    assert stdout == "" and "index.csv" in stderr
    assert sorted(os.listdir()) == ["photos.explain"]


@pytest.mark.parametrize("archive", [False, True])
def test_a_picture_to_write_for_many_images_is_refused(photo, opened, archive):
    source = photo.parent
    if archive:
        source = Path(shutil.make_archive("photos", "zip", photo.parent))
    before = os.listdir()
    for out in ("fig4.png", "fig4.PNG"):
        with pytest.raises(FgvcError) as caught:
            run(source, weights="any", device="cpu", out=Path(out))
        kind = "an archive" if archive else "a folder"
        told = f"--out {out} names a picture, but {source} is {kind} of images."
        assert told in str(caught.value) and caught.value.hint == "Name a folder: --out fig4"
        assert caught.value.exit_code == EXIT_USAGE
    assert opened == [] and os.listdir() == before


def test_full_pages_of_a_folder_on_request(photo, opened):
    run(photo.parent, weights="any", device="cpu", page="full", out=Path("why"))
    with Image.open("why/bird [red].png") as picture:
        assert picture.height > 700


def test_what_cannot_be_read_is_named_and_the_others_still_come_out(photo, opened, capsys):
    (photo.parent / "bad.jpg").write_text("not an image")
    assert run(photo.parent, weights="any", device="cpu", out=Path("why")) == EXIT_SOME_FAILED
    with open("why/index.csv") as stream:
        rows = {row["path"]: row for row in csv.DictReader(stream)}
    assert rows["bad.jpg"]["status"] == "not_an_image" and rows["bad.jpg"]["picture"] == ""
    assert rows[photo.name]["status"] == "ok"
    assert sorted(os.listdir("why")) == ["bird [red].jpg", "index.csv"]
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
        run(photo.parent, weights="any", device="cpu", method=("rollout",), parts_dir=Path("parts"))
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
        ({"method": ("gradcma",)}, "gradcam"),
        ({"target": "bees"}, "Nearest: bee"),
        ({"target": "bee", "against": "BEE"}, "both"),
        ({"target": "bee", "method": ("features",)}, "occlusion or occlusion-blur or hirescam or gradcam"),
        ({"method": ("stages",)}, "called features now"),
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


def trained(folder: Path, seed: int = 0) -> Path:
    """A training that ended, as far as its checkpoint says."""
    torch.manual_seed(seed)
    name = "timm-test_resnet" if "plain" in folder.name else "crasmra-test_resnet"
    config = TrainConfig(model=name, preprocess={"input_px": 32 + 32 * seed, "resize_px": 128})
    model = create_model(name, 2, input_px=32).eval()
    folder.mkdir(parents=True)
    path = folder / "model.safetensors"
    save_checkpoint(
        path,
        model,
        config=config,
        classes=("ant", "bee"),
        dataset="d",
        metrics={"val": {}},
        finished="cut" not in folder.name,
    )
    return path


def labels(*weights) -> list[str]:
    return [row.label for row in expand_weights([str(each) for each in weights])]


def test_a_folder_of_a_table_stands_for_its_rows_of_the_first_seed(tmp_path):
    for name in ("delta=1.0-s1", "delta=0.9-s1", "delta=0.5-s1", "delta=0.5-s2", "delta=0.6-s0-cut", "other"):
        trained(tmp_path / "delta" / name)
    trained(tmp_path / "delta" / "delta=cut-s0")
    rows = expand_weights([str(tmp_path / "delta")])
    assert [row.label for row in rows] == ["delta=0.5", "delta=0.9", "delta=1.0"]
    assert all(row.weights and Path(row.weights).parent.name == f"{row.label}-s1" for row in rows)
    for name in ("cram-s0", "plain-s0", "cram+smram-s0"):
        trained(tmp_path / "table3" / name)
    assert labels(tmp_path / "table3") == ["plain", "cram", "cram+smram"]


def test_a_row_is_called_after_its_folder_or_as_it_is_told(tmp_path):
    path = trained(tmp_path / "delta=0.9-s0")
    assert labels(path) == labels(path.parent) == ["delta=0.9-s0"]
    assert labels("aviary", "groceries") == ["aviary", "groceries"]
    assert labels(f"+ CRAM={path}", "A=aviary") == ["+ CRAM", "A"]
    assert expand_weights([f"+ CRAM={path}"])[0].weights == str(path)
    with pytest.raises(FgvcError, match="'A=aviary'"):
        expand_weights(["aviary", "aviary"])
    with pytest.raises(FgvcError, match="without a finished training"):
        (tmp_path / "empty").mkdir()
        expand_weights([str(tmp_path / "empty")])


def test_several_models_make_a_figure_with_a_row_each(photo, tmp_path, capsys):
    paths = [str(trained(tmp_path / name, seed)) for seed, name in enumerate(("plain", "cram", "both"))]
    run(photo, weights=(paths[0],), device="cpu", out=Path("one.png"))
    capsys.readouterr()
    heights = []
    for count in (2, 3):
        run(photo, weights=tuple(paths[:count]), device="cpu", out=Path(f"{count}.png"), top_k=1)
        lines = capsys.readouterr().out.splitlines()
        assert [line.split("  ")[-1] for line in lines] == ["plain", "cram", "both"][:count]
        with Image.open(f"{count}.png") as picture:
            heights.append(picture.height)
    assert heights[1] - heights[0] > 200
    with pytest.raises(FgvcError, match="--page is for one model"):
        run(photo, weights=tuple(paths), page="strip", device="cpu")


def test_figures_of_a_folder_have_a_line_per_model_and_maps_in_one_file(photo, tmp_path):
    weights = tuple(str(trained(tmp_path / name)) for name in ("plain", "size"))
    (photo.parent / "bad.jpg").touch()
    out, maps = Path("figures"), Path("maps.h5")
    options = {"weights": weights, "device": "cpu", "method": ("gradcam",), "out": out, "parts_dir": maps}
    assert run(photo.parent, **options) == EXIT_SOME_FAILED
    rows = [*csv.DictReader((out / "index.csv").open())]
    assert [(row["path"], row["weights"], row["picture"]) for row in rows] == [
        ("bad.jpg", "", ""),
        (photo.name, "plain", f"{photo.stem}.png"),
        (photo.name, "size", f"{photo.stem}.png"),
    ]
    with h5py.File(maps) as file:
        assert file["status"].asstr()[:].tolist() == ["empty", "ok"]
        for row in rows[1:]:
            group = file[row["weights"].replace("size", "size_")]  # not the data set of that name
            assert group.attrs["class_names"][group["target_index"][1]] == row["label"]
            assert sorted(group)[:3] == [f"gradcam-stage{i}" for i in (3, 4, 5)]
            assert np.isnan(group["gradcam-stage3"][0]).all()
            # Of random weights, a stage may find nothing that speaks for the class.
            assert max(group[f"gradcam-stage{i}"][1].max() for i in (3, 4, 5)) == 1
        assert file["plain"].attrs["model"] == "timm-test_resnet"


def test_maps_in_one_file_are_rows_of_images(photo, opened):
    for i in range(70):  # more than wait to be written together
        Image.new("RGB", (9, 8)).save(photo.parent / f"{i:02}.png")
    (photo.parent / "bad.jpg").touch()
    run(photo.parent, weights="any", device="cpu", parts_dir=Path("maps.h5"))
    with h5py.File("maps.h5") as file:
        paths = file["path"].asstr()[:].tolist()
        assert paths == sorted(paths) and len(paths) == 72
        assert file["last"].shape == (72, 8, 8) and file["last"].dtype == np.float16
        assert file["last"].compression == "gzip" and file["last"].fletcher32
        at = paths.index("bad.jpg")
        assert np.isnan(file["last"][at]).all() and file["error"].asstr()[at]
        assert file["top_index"][at] == -1 and (file["top_index"][:at] == 1).all()
        np.testing.assert_array_equal(file["last"][paths.index(photo.name)], np.eye(8))
        assert file["size"][paths.index(photo.name)].tolist() == [90, 60]
        assert file.attrs["weights_sha256"] == "0" * 64 and file.attrs["methods"] == "own"
        assert file.attrs["class_names"].tolist() == ["ant", "bee", "cat", "dog [red]"]
    before = Path("maps.h5").read_bytes()
    for options in ({"out": Path("b")}, {"out": Path("c"), "overwrite": True, "method": ("rollout",)}):
        with pytest.raises(FgvcError):
            run(photo.parent, weights="any", device="cpu", parts_dir=Path("maps.h5"), **options)
    assert Path("maps.h5").read_bytes() == before and sorted(os.listdir()) == ["maps.h5", "photos.explain"]


def test_the_guide_reads_the_maps_back(photo, opened, capsys):
    run(photo, weights="any", device="cpu", parts_dir=Path("maps.h5"), quiet=True)
    capsys.readouterr()
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "explaining.md").read_text()
    examples = [block.partition("```")[0] for block in guide.split("```python\n")[1:]]
    exec(next(each for each in examples if "maps.h5" in each).replace("stage5", "last"))
    assert "bird [red].jpg" in capsys.readouterr().out


@pytest.mark.parametrize("alive", [True, False])
def test_what_crams_masks_did_is_told_over_all_images_of_a_folder(photo, opened, monkeypatch, capsys, alive):
    """Dark images and bright ones: batches of one kind alone must not hide what varies between them."""

    def open_weights(weights: str | None, options: object = None) -> Checkpoint:
        preprocess = Preprocess(input_px=64, resize_px=80)
        return Checkpoint(MaskedModel(alive), "fake", ("ant", "bee", "cat", "dog"), preprocess, "0" * 64)

    monkeypatch.setattr("fgvc_cli.engine.weights.open_weights", open_weights)
    for number in range(10):
        Image.new("RGB", (64, 64), (250 * (number >= 5),) * 3).save(photo.parent / f"{number}.png")
    photo.unlink()
    assert run(photo.parent, weights="any", device="cpu", batch_size=5, workers=1) == EXIT_OK
    (row,) = csv.DictReader(Path("photos.explain/masks.csv").read_text().splitlines())
    expected = {
        "suppressed": "0.3750" if alive else "0.2500",
        "mask_variation": "0.2500" if alive else "0.0000",
    }
    assert row == {"stage": "stage3", "images": "10", "mask_saturated": "0.7500"} | expected
    told = capsys.readouterr().err
    assert "CRAM, stage3: " in told and "75.0 % of the mask saturated" in told
    assert ("warning: CRAM is a fixed gate in stage3" in told) == (not alive)
    # One image, or a few, cannot show that a mask is fixed.
    run(photo.parent / "0.png", weights="any", device="cpu")
    told = capsys.readouterr().err
    assert "25.0 % of channels suppressed, 75.0 % of the mask saturated" in told and "fixed gate" not in told
    assert "and not in others" not in told
