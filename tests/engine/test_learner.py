"""One update: accumulation, precision, mixing; and the batch that would have fitted."""

from __future__ import annotations

import copy

import pytest
import torch

from fgvc_cli.config import Augment, Loss, Optim, Preprocess, TrainConfig
from fgvc_cli.data.loaders import Batch
from fgvc_cli.engine.checkpoint import Checkpoint
from fgvc_cli.engine.device import computing
from fgvc_cli.engine.learner import Learner, Meter, Teacher, largest_batch, out_of_memory, total_loss
from fgvc_cli.errors import FgvcError
from fgvc_cli.models.output import ModelOutput, normalize
from fgvc_cli.models.registry import create_model

CPU = torch.device("cpu")


def make_config(**fields) -> TrainConfig:
    optim = Optim(name="momentum", lr_backbone=0.1, lr_heads=0.1, **fields.pop("optim", {}))
    sizes = Preprocess(input_px=32, resize_px=32)
    return TrainConfig(model="timm-test_vit", preprocess=sizes, optim=optim, **fields)


def make_learner(config, name="timm-test_vit", options=None) -> Learner:
    torch.manual_seed(0)
    model = create_model(name, 3, input_px=32, options=options)
    learner = Learner(model, config, classes=3, updates_per_epoch=2, device=CPU)
    learner.begin_epoch(1)
    return learner


def make_batches(*sizes) -> list[tuple[tuple[int, ...], Batch]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (sum(sizes), 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(sum(sizes)) % 3
    rows = torch.arange(sum(sizes)).split(sizes)
    return [((1, n), Batch(images[i], labels[i], i, [])) for n, i in enumerate(rows)]


def updated(learner, batches, expected=None) -> dict[str, torch.Tensor]:
    learner.update(batches, expected or sum(len(b.labels) for _, b in batches), Meter())
    return {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}


@pytest.mark.parametrize("sizes", [(4, 4), (2, 2, 2, 2), (6, 2)])
def test_accumulated_batches_make_the_update_of_the_big_one(sizes):
    config = make_config(optim={"clip_grad": 0.5}, loss=Loss(label_smoothing=0.1))
    whole = updated(make_learner(config), make_batches(8))
    parts = updated(make_learner(config), make_batches(*sizes))
    start = make_learner(config).model.state_dict()
    assert not torch.equal(whole["heads.1.weight"], start["heads.1.weight"])
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_unreadable_images_do_not_shrink_the_update():
    config = make_config()
    torch.testing.assert_close(
        updated(make_learner(config), make_batches(4, 2), expected=8),
        updated(make_learner(config), make_batches(6)),
        rtol=1e-4,
        atol=1e-6,
    )


def test_a_single_image_and_an_empty_batch_are_left_out():
    learner, meter = make_learner(make_config()), Meter()
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    learner.update(make_batches(1, 0), 8, meter)
    assert learner.updates == 0 and meter.images == 0
    torch.testing.assert_close(dict(learner.model.state_dict()), before, rtol=0, atol=0)


def test_dropout_follows_the_numbers_of_the_batch_and_not_the_past():
    config = make_config()
    first = make_learner(config, options={"drop_rate": 0.5})
    second = make_learner(config, options={"drop_rate": 0.5})
    torch.rand(100)
    one, two = updated(first, make_batches(4)), updated(second, make_batches(4))
    assert torch.equal(one["heads.1.weight"], two["heads.1.weight"])
    third = make_learner(config, options={"drop_rate": 0.5})
    other = [((1, 7), make_batches(4)[0][1])]
    assert not torch.equal(updated(third, other)["heads.1.weight"], one["heads.1.weight"])


def test_fp16_scales_the_loss_and_learns_what_float32_does():
    config = make_config(amp="fp16", optim={"clip_grad": 1.0})
    learner, plain = make_learner(config), make_learner(make_config(optim={"clip_grad": 1.0}))
    assert learner.scaler.is_enabled() and learner.state()["scaler"]["scale"] == 65536
    # Where no gradient overflows at once, so that the first step is taken.
    learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": 256.0})
    start = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    half, full = updated(learner, make_batches(6)), updated(plain, make_batches(6))
    moves = [torch.cat([(after[n] - start[n]).flatten() for n in start]) for after in (half, full)]
    assert moves[1].norm() > 0
    assert (moves[0] - moves[1]).norm() < 0.05 * moves[1].norm()


def test_fp16_overflow_skips_the_step_and_the_scale_is_part_of_the_state():
    learner = make_learner(make_config(amp="fp16"))
    learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": 2.0**120})
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    after = updated(learner, make_batches(4))
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    other = make_learner(make_config(amp="fp16"))
    other.load(copy.deepcopy(learner.state()))
    assert other.scaler.get_scale() == 2.0**119


def test_mixing_reaches_the_loss_as_shares_of_classes():
    torch.manual_seed(0)
    logits = {"main": torch.randn(4, 3), "parts": torch.randn(4, 3)}
    output = ModelOutput(logits=logits, probs=torch.empty(0), part_logits=torch.randn(4, 2, 3))
    labels, other = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2])
    one_hot = [torch.nn.functional.one_hot(values, 3).float() for values in (labels, other)]
    for smoothing in (0.0, 0.1):
        config = Loss(label_smoothing=smoothing)
        by_index = [total_loss(output, values, config)[0] for values in (labels, other)]
        torch.testing.assert_close(total_loss(output, one_hot[0], config)[0], by_index[0])
        mixed = total_loss(output, 0.3 * one_hot[0] + 0.7 * one_hot[1], config)[0]
        torch.testing.assert_close(mixed, 0.3 * by_index[0] + 0.7 * by_index[1])


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_batches_train(kind):
    config = make_config()
    mixed = make_learner(make_config(augment=Augment(**{kind: 1.0})))
    assert not torch.equal(
        updated(mixed, make_batches(6))["heads.1.weight"],
        updated(make_learner(config), make_batches(6))["heads.1.weight"],
    )


def test_compile_is_asked_for_and_what_it_makes_is_trained(monkeypatch):
    compiled = []

    def fake(model):
        compiled.append(model)
        return lambda images: model(images)

    monkeypatch.setattr(torch, "compile", fake)
    learner = make_learner(make_config(compile=True))
    found, expected = updated(learner, make_batches(4)), updated(make_learner(make_config()), make_batches(4))
    assert compiled == [learner.model]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_meter_is_the_mean_over_images_and_survives_its_state():
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0), "x": torch.tensor(4.0)}, 3)
    meter.add({"loss": torch.tensor(3.0), "suppressed_stage3": torch.tensor([0.0, 1.0, 1.0])}, 1)
    meter.add({"suppressed_stage3": torch.tensor([0.0, 1.0, 0.0]), "loss": torch.tensor(2.0)}, 4)
    other = Meter()
    other.load(meter.state(), CPU)
    means = {"loss": 1.75, "x": 1.5, "suppressed_stage3": 6 / 8 / 3, "mask_variation_stage3": 2 / 3}
    assert meter.means() == other.means() == pytest.approx(means) and other.images == 8


def limit_memory(monkeypatch, learner, photographs, error=None):
    original, seen = learner.forward, []

    def limited(images):
        seen.append(len(images))
        if len(images) > photographs:
            raise error or torch.OutOfMemoryError("CUDA out of memory")
        return original(images)

    monkeypatch.setattr(learner, "forward", limited)
    return seen


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_advice_names_the_largest_half_that_fits_and_keeps_the_global_batch(error, monkeypatch):
    config = make_config(batch_size=20, accumulate=2)
    learner = make_learner(config)
    seen = limit_memory(monkeypatch, learner, 6, error)
    told = str(out_of_memory(learner, config))
    assert seen == [10, 5]
    assert "batches of 20 at 32 px" in told
    assert "--batch-size 5 --set accumulate=8 keeps 40 images per update" in told


def test_advice_where_nothing_fits(monkeypatch):
    config = make_config(batch_size=8)
    learner = make_learner(config)
    limit_memory(monkeypatch, learner, 1)
    assert "Not even a batch of 2 fits" in str(out_of_memory(learner, config))


def test_probing_passes_on_other_errors(monkeypatch):
    learner = make_learner(make_config())
    limit_memory(monkeypatch, learner, 1, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        largest_batch(learner, 4, 32)


def test_a_loss_that_is_no_number_names_what_helps():
    with pytest.raises(FgvcError, match="loss became nan after 0 updates.*lr_.*clip_grad"):
        make_learner(make_config()).check_loss(float("nan"))


def test_the_rate_of_a_frozen_backbone_is_0():
    learner = make_learner(make_config(optim={"freeze_epochs": 1}, epochs=3))
    assert (learner.rates()["lr_backbone"], learner.rates()["lr_heads"]) == (0, 0.1)
    learner.begin_epoch(2)
    assert learner.rates() == {"lr_backbone": 0.1, "lr_heads": 0.1}


def test_a_backbone_frozen_to_the_end_never_changes():
    learner = make_learner(make_config(optim={"freeze_epochs": 2}, epochs=2))
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    for epoch in (1, 2):
        learner.begin_epoch(epoch)
        updated(learner, make_batches(4))
    after = learner.model.state_dict()
    changed = {
        name.partition(".")[0] for name, value in after.items() if not torch.equal(value, before[name])
    }
    assert "heads" in changed and "backbone" not in changed
    with pytest.raises(FgvcError, match="freeze_epochs=3 keeps the backbone frozen longer than the 2 epochs"):
        make_learner(make_config(optim={"freeze_epochs": 3}, epochs=2))


def test_depthwise_convolutions_stay_in_float32_under_bf16_on_a_cpu():
    learner = make_learner(make_config(amp="bf16", ema_decay=0.9), name="timm-mobilenetv2_035")
    seen = set()

    def note(conv, given, output):
        seen.add(("depthwise" if conv.groups > 1 else "other", output.dtype))

    for model in (learner.model, learner.ema.module):
        seen.clear()
        for conv in (m for m in model.modules() if isinstance(m, torch.nn.Conv2d)):
            conv.register_forward_hook(note)
        with computing(learner.device, learner.precision):
            model(torch.randn(2, 3, 32, 32))
        assert seen == {("depthwise", torch.float32), ("other", torch.bfloat16)}


def test_trying_a_step_changes_nothing_of_the_training():
    learner = make_learner(make_config())
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    state = torch.random.get_rng_state()
    assert learner.seconds_per_image(32) > 0
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())
    assert all(parameter.grad is None for parameter in learner.model.parameters())


def make_teacher(share=0.25, classes=("a", "b", "c"), preprocess=None) -> Teacher:
    torch.manual_seed(1)
    model = create_model("timm-test_vit", 3, input_px=32).eval()
    own = Preprocess(input_px=32, resize_px=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    known = Checkpoint(model, "timm-test_vit", ("b", "c", "a"), own, "")
    return Teacher(
        known, classes, multi_label=False, share=share, preprocess=preprocess or Preprocess(), device=CPU
    )


def test_targets_are_labels_and_what_the_teacher_sees_in_the_same_pixels():
    teacher, student = make_teacher(), Preprocess()
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 1])
    targets = teacher.targets(normalize(pixels, student), labels)
    with torch.no_grad():
        own = normalize(pixels, Preprocess(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)))
        told = teacher._model(own).probs[:, [2, 0, 1]]
    torch.testing.assert_close(targets, 0.75 * torch.eye(3)[labels] + 0.25 * told)
    assert not targets.requires_grad
    mixed = torch.tensor([[0.5, 0.5, 0.0]] * 4)
    torch.testing.assert_close(teacher.targets(normalize(pixels, student), mixed), 0.75 * mixed + 0.25 * told)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_update_follows_the_teacher_by_its_share(share):
    config = make_config()
    learner = make_learner(config)
    learner.teacher = make_teacher(share, preprocess=config.preprocess)
    told = updated(learner, make_batches(8))
    alone = updated(make_learner(config), make_batches(8))
    assert torch.allclose(told["heads.1.weight"], alone["heads.1.weight"], atol=1e-6) == (share == 0)


def test_a_teacher_of_other_classes_is_refused():
    with pytest.raises(FgvcError, match="tells 3 classes, the data have 2; it does not know 'd'") as error:
        make_teacher(classes=("a", "d"))
    assert "same classes" in error.value.hint
