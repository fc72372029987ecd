"""Temperature and calibration error: closed forms, then through training, checkpoint and eval."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import train_options

import fgvc_cli
from fgvc_cli.cli.eval import format_document
from fgvc_cli.cli.train import run as run_command
from fgvc_cli.config import TrainConfig
from fgvc_cli.data.loaders import LabelledImages, build_loader
from fgvc_cli.data.transforms import eval_transform
from fgvc_cli.datasets.registry import load_data
from fgvc_cli.engine import trainer as trainer_module
from fgvc_cli.engine.checkpoint import load_checkpoint, save_checkpoint
from fgvc_cli.evaluate.confidence import (
    Calibration,
    apply_temperature,
    fit_calibration,
    fit_temperature,
    reliability,
)
from fgvc_cli.evaluate.evaluator import evaluate
from fgvc_cli.models.registry import create_model

LOOKS = {"model": "vitms-test_vit", "input_px": 48, "epochs": 1, "batch_size": 8, "workers": 0}
SETS = ["preprocess.resize_px=48", "options.encoder_px=32", "optim.name=adamw", "optim.freeze_epochs=0"]
LOGIT_08 = math.log(4)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def drawn(n: int, classes: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and labels drawn from them: calibrated."""
    generator = torch.Generator().manual_seed(seed)
    probs = (2 * torch.randn(n, classes, generator=generator)).softmax(dim=-1)
    return probs, torch.multinomial(probs, 1, generator=generator).squeeze(1)


def two_classes(n: int, right: float, p: float = 0.8) -> tuple[torch.Tensor, torch.Tensor]:
    """The same answer ``p`` for every image, of which a share is right."""
    return torch.tensor([[p, 1 - p]]).repeat(n, 1), (torch.arange(n) >= round(n * right)).long()


def nll(probs: torch.Tensor, labels: torch.Tensor) -> float:
    return -probs.double()[torch.arange(len(labels)), labels].log().mean().item()


@pytest.mark.parametrize(("temperature", "odds"), [(2.0, 2.0), (0.5, 16.0), (1.0, 4.0)])
def test_temperature_is_a_root_of_the_odds(temperature, odds):
    probs = apply_temperature(torch.tensor([[0.8, 0.2]]), temperature)
    assert (probs[0, 0] / probs[0, 1]).item() == pytest.approx(odds, rel=1e-5)


def test_temperature_one_changes_no_bit():
    probs, _ = drawn(50)
    assert torch.equal(apply_temperature(probs, 1.0), probs)
    assert apply_temperature(probs.bfloat16(), 1.0).dtype == torch.float32


@pytest.mark.parametrize("temperature", [0.05, 0.7, 3.0, 20.0])
def test_rows_stay_distributions_in_their_order(temperature):
    probs, _ = drawn(500)
    probs[:3] = torch.tensor([1.0, 0, 0, 0, 0, 0, 0])
    probs[3] = torch.tensor([0.5, 0.5, 0, 0, 0, 0, 0])
    tempered = apply_temperature(probs, temperature)
    assert tempered.isfinite().all()
    torch.testing.assert_close(tempered.sum(dim=1), torch.ones(500))
    assert (tempered[4:].argmax(dim=1) == probs[4:].argmax(dim=1)).all()
    ranked = tempered.gather(1, probs.topk(7, dim=1).indices)
    assert (ranked.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ValueError, match="expected a positive number"):
        apply_temperature(torch.tensor([[0.8, 0.2]]), temperature)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and there is none")
def test_cuda_answers_as_the_cpu():
    probs, _ = drawn(100)
    on_gpu = apply_temperature(probs.cuda(), 1.7)
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), apply_temperature(probs, 1.7))


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_the_temperature_of_the_data_is_found(true):
    probs, labels = drawn(6000)
    stated = apply_temperature(probs, 1 / true)
    fitted = fit_temperature(stated, labels)
    assert fitted == pytest.approx(true, rel=0.03)
    best = nll(apply_temperature(stated.double(), fitted), labels)
    for other in (0.97, 1.03):
        assert best < nll(apply_temperature(stated, fitted * other), labels)
    assert best <= nll(stated, labels) + 1e-6
    assert fit_temperature(stated, labels) == fitted


@pytest.mark.parametrize(("n", "right"), [(10, 1.0), (10, 0.9), (1, 1.0), (9000, 0.95)])
def test_one_image_more_keeps_a_small_split_from_certainty(n, right):
    # n images of which some are right, and one that is right with the probability it states.
    share = (n * right + 0.8) / (n + 1)
    assert fit_temperature(*two_classes(n, right)) == pytest.approx(LOGIT_08 / logit(share), rel=1e-4)


def test_limits_hold_and_are_told():
    for probs_labels, limit in ((two_classes(20, 0.0), 20.0), (two_classes(200, 1.0, p=0.55), 0.05)):
        fitted = fit_temperature(*probs_labels)
        assert fitted == limit and Calibration(fitted, "val", 20).clamped
    assert not Calibration(fit_temperature(*drawn(100)), "val", 100).clamped


@pytest.mark.parametrize("true", [1.0, 2.0])
@pytest.mark.parametrize("count", [1, 6, 19])
def test_too_few_images_fit_nothing(true, count):
    probs, labels = drawn(count)
    fitted = fit_calibration(apply_temperature(probs, 1 / true), labels, "val")
    assert fitted == Calibration(1.0, "val", count, refused=True)
    assert "too few" in fitted.in_words and ("1 image " in fitted.in_words) == (count == 1)


def test_a_fit_is_kept_where_images_left_out_of_it_gain():
    """Of 40 splits of 60 images each: what is calibrated stays so, what is twice too sure is mended."""
    probs, labels = drawn(2400)
    refused = {}
    for true in (1.0, 2.0):
        stated = apply_temperature(probs, 1 / true)
        fits = [fit_calibration(p, y, "val") for p, y in zip(stated.split(60), labels.split(60), strict=True)]
        refused[true] = sum(fit.refused for fit in fits)
        assert all(fit.temperature == 1 for fit in fits if fit.refused)
    assert refused[1.0] >= 34 and refused[2.0] <= 6
    given_up = Calibration(1.0, "val", 60, refused=True)
    assert "did not hold up in cross-validation" in given_up.in_words


def test_many_images_are_fitted_as_they_are():
    probs, labels = drawn(1200)
    stated = apply_temperature(probs, 0.5)
    fitted = fit_calibration(stated, labels, "val")
    assert fitted == Calibration(fit_temperature(stated, labels), "val", 1200)


def test_certain_and_wrong_is_finite():
    probs = torch.eye(3).repeat(4, 1)
    labels = torch.arange(3).repeat(4)
    assert fit_temperature(probs, labels) == 1
    labels[0] = 1
    assert fit_temperature(probs, labels) == 20, "the limit: nothing less makes up for a certain mistake"


@pytest.mark.parametrize("shape", [(0, 3), (8, 3), (8, 1)])
def test_without_evidence_nothing_changes(shape):
    probs = torch.full(shape, 1 / shape[1])
    assert fit_temperature(probs, torch.zeros(shape[0], dtype=torch.int64)) == 1


def test_a_split_in_pieces_is_the_whole(monkeypatch):
    probs, labels = drawn(100)
    whole = fit_temperature(probs, labels)
    monkeypatch.setattr("fgvc_cli.evaluate.confidence._ROWS", 7)
    assert fit_temperature(probs, labels) == pytest.approx(whole, rel=1e-6)


def confident(*rows: tuple[float, bool]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images by confidence and whether they are right."""
    probs = torch.tensor([[p, 1 - p] for p, _ in rows])
    return probs, torch.tensor([0 if right else 1 for _, right in rows])


def test_calibration_error_by_hand():
    gap = [(0.95, True)] * 3 + [(0.95, False)]
    assert reliability(*confident(*gap)).error == pytest.approx(0.2)
    calm = [(0.75, True)] * 3 + [(0.75, False)]
    assert reliability(*confident(*calm)).error == pytest.approx(0, abs=1e-6)
    assert reliability(*confident(*gap, *calm)).error == pytest.approx(0.1)
    assert reliability(*confident((1.0, True))).error == 0


def test_fifteen_bins_each_with_its_upper_edge():
    # 14/15 lies between: with 10 or 20 bins they would share one.
    assert reliability(*confident((0.93, False), (0.94, True))).error == pytest.approx(0.495)
    edge = torch.tensor([[0.5, 0.4, 0.1], [0.6, 0.3, 0.1]]), torch.tensor([1, 0])
    assert reliability(*edge, bins=4).error == pytest.approx(0.45)


def test_a_fitted_temperature_lowers_the_error():
    probs, labels = drawn(6000)
    stated = apply_temperature(probs, 0.4)
    before = reliability(stated, labels).error
    after = reliability(apply_temperature(stated, fit_temperature(stated, labels)), labels).error
    assert before > 0.1 and after < 0.02


def train(data, out, **flags) -> int:
    values = LOOKS | {"data": str(data), "pretrained": False} | flags
    return run_command(train_options(SETS, **values, out=out, device="cpu"))


@pytest.fixture(scope="module")
def trained(module_colours):
    """A multi-stage model: its weights file."""
    assert train(module_colours, module_colours.parent / "run") == 0
    return module_colours.parent / "run" / "model.safetensors"


def run_eval(weights, capsys, *, as_json=True, split="test", data=None, **looks):
    options = dict(batch_size=8, workers=0, device="cpu")
    evaluated = fgvc_cli.evaluate(str(weights), data=data and str(data), split=split, **options, **looks)
    return evaluated.document if as_json else format_document(evaluated.document)


def test_training_fits_on_validation_what_the_checkpoint_answers_there(trained):
    checkpoint = load_checkpoint(trained)
    config = TrainConfig(**checkpoint.metadata["config"])
    data = load_data(config)
    images = LabelledImages(data.root, data.splits["val"], eval_transform(checkpoint.preprocess))
    loader = build_loader(images, batch_size=8, workers=0)
    result = evaluate(checkpoint.model, loader, checkpoint.preprocess, torch.device("cpu"))
    assert checkpoint.temperature == 1
    stored = checkpoint.metadata["calibration"]
    assert (stored["split"], stored["images"], stored["refused"]) == ("val", len(result.labels), True)


def test_stored_figures_say_what_they_were_measured_on(trained):
    metrics = load_checkpoint(trained).metadata["metrics"]
    assert set(metrics) == {"val", "val_fitted", "test"}
    # What chose the epoch stays as it was measured; what the fit saw is marked.
    assert "ece" in metrics["val"] and "ece_calibrated" not in metrics["val"]
    assert metrics["val_fitted"]["nll"] == pytest.approx(metrics["val"]["nll"])
    assert metrics["val_fitted"]["nll_calibrated"] == pytest.approx(metrics["val_fitted"]["nll"])
    assert metrics["test"].keys() >= {"nll", "nll_calibrated", "ece", "ece_calibrated"}


def test_eval_prints_both_and_where_the_temperature_is_from(trained, capsys):
    printed = run_eval(trained, capsys, as_json=False)
    temperature = load_checkpoint(trained).temperature
    for name in ("nll ", "ece ", "nll_calibrated ", "ece_calibrated "):
        assert f"  {name}" in printed
    assert temperature == 1 and "not calibrated: 3 images of the val split were too few" in printed
    assert "not held out" not in printed and "other looks" not in printed and "cascade" not in printed


@pytest.mark.parametrize(("split", "held_out"), [("val", False), ("all", False), ("test", True)])
def test_eval_marks_what_the_fit_saw(trained, capsys, split, held_out):
    assert run_eval(trained, capsys, split=split)["calibration"]["held_out"] is held_out
    assert ("not held out" not in run_eval(trained, capsys, split=split, as_json=False)) is held_out


def test_other_data_is_held_out(trained, capsys, colours):
    (colours / "blue").rename(colours.parent / "blue")
    assert run_eval(trained, capsys, data=colours, split="all")["calibration"]["held_out"] is True


def test_eval_says_that_other_looks_were_fitted_and_what_a_cascade_compares(trained, capsys):
    printed = run_eval(trained, capsys, as_json=False, cascade=0.0)
    assert "fitted with other looks" in printed and "before the temperature" in printed
    (line,) = (line for line in printed.splitlines() if "reached_object" in line)
    assert line.split() == ["reached_object", "0.00", "%"]
    assert run_eval(trained, capsys, stages="all")["calibration"]["same_looks"] is True
    assert run_eval(trained, capsys, stages="main")["calibration"]["same_looks"] is False


@pytest.fixture
def uncalibrated(trained, tmp_path):
    """The same model as an earlier version wrote it."""
    checkpoint = load_checkpoint(trained)
    config = TrainConfig(**checkpoint.metadata["config"])
    model = create_model(checkpoint.name, 3, input_px=48, options=checkpoint.metadata["options"])
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, config=config, classes=checkpoint.classes, dataset="colours", metrics={})
    return path


def test_a_checkpoint_without_a_temperature_has_one_and_eval_says_so(uncalibrated, capsys):
    checkpoint = load_checkpoint(uncalibrated)
    assert checkpoint.temperature == 1 and "calibration" not in checkpoint.metadata
    printed = run_eval(uncalibrated, capsys, as_json=False)
    assert "temperature: none in this checkpoint" in printed
    assert "  ece " in printed and "ece_calibrated" not in printed


def test_a_temperature_at_its_limit_is_told(colours, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer_module, "fit_calibration", lambda *split: Calibration(20.0, "val", 3))
    train(colours, tmp_path / "run")
    told = " ".join(capsys.readouterr().err.split())
    assert "stopped at its limit of 20, fitted on 3 images of the val split" in told
    assert load_checkpoint(tmp_path / "run" / "model.safetensors").temperature == 20
