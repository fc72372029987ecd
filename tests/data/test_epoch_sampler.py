"""Order and seeds of training."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from fgvc_cli.config import Augment, Preprocess
from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.data.loaders import EpochDraws, LabelledImages, build_train_loader
from fgvc_cli.data.transforms import train_transform

LABELS = [0] * 14 + [1] * 5 + [2] * 2


def draws(labels=LABELS, batch_size=4, seed=0, epochs=1, **options) -> EpochDraws:
    return EpochDraws(labels, batch_size=batch_size, seed=seed, epochs=epochs, **options)


def places(batches) -> list[int]:
    return [draw.place for batch in batches for draw in batch]


def test_each_image_once_per_epoch_in_an_order_of_its_own():
    batches = list(draws(batch_size=7, epochs=2))
    first, second = places(batches[:3]), places(batches[3:])
    assert sorted(first) == sorted(second) == list(range(21)) and first != second


def test_equal_seeds_equal_draws():
    assert list(draws()) == list(draws()) != list(draws(seed=1))


@pytest.mark.parametrize("start", [(1, 0), (1, 3), (2, 0), (2, 4), (3, 5)])
def test_going_on_gives_what_would_have_come(start):
    whole, later = draws(epochs=3), draws(epochs=3)
    later.start = start
    assert list(later) == list(whole)[(start[0] - 1) * len(whole) + start[1] :]


def test_a_last_batch_of_one_is_left_out_and_nothing_else():
    for batch_size, sizes in ((4, [4] * 5), (6, [6, 6, 6, 3]), (50, [21]), (20, [20])):
        made = draws(batch_size=batch_size)
        assert [len(batch) for batch in made] == sizes == [made.size(i) for i in range(len(made))]
    assert [len(batch) for batch in draws([0], batch_size=4)] == [1]


def test_balanced_gives_every_class_its_share_and_its_images_in_turn():
    epoch = places(draws(batch_size=21, balanced=True))
    assert len(epoch) == len(LABELS)
    assert Counter(LABELS[place] for place in epoch) == {0: 7, 1: 7, 2: 7}
    counts = Counter(epoch)
    assert {counts[place] for place in range(14)} == {0, 1}
    assert {counts[place] for place in range(14, 19)} == {1, 2}
    assert {counts[place] for place in range(19, 21)} == {3, 4}
    # What remains of an uneven division goes to other classes in other epochs.
    shares = [
        Counter(LABELS[p] for p in places([batch])) for batch in draws(LABELS[:-1], 20, 0, 9, balanced=True)
    ]
    assert {share[0] for share in shares} == {6, 7} and all(sum(share.values()) == 20 for share in shares)


def test_a_image_drawn_twice_is_augmented_twice():
    repeated = [draw for batch in draws(balanced=True) for draw in batch if draw.place == 20]
    assert len({draw.seed for draw in repeated}) == len(repeated) > 1


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batches_of_one(world):
    alone = list(draws(batch_size=2 * world, epochs=2))
    parts = [draws(batch_size=2, epochs=2, rank=rank, world=world) for rank in range(world)]
    together = [list(itertools.chain(*batch)) for batch in zip(*parts, strict=True)]
    # One process keeps a last batch that would leave another a single image.
    kept = [batch for batch in alone if len(batch) >= 2 * world]
    assert together == kept
    assert all(part.size(0) == 2 * world for part in parts), "of all processes together"


def test_augmentation_follows_the_draw_and_not_the_worker(colours):
    data = load_labelled(colours)
    transform = train_transform(Preprocess(input_px=32, resize_px=48), Augment(crop="random", erase=0.5))
    images = LabelledImages(data.root, data.splits["train"], transform)

    def batches(workers):
        labels = [example.label for example in images.examples]
        return list(build_train_loader(images, draws(labels, 6, epochs=2), workers=workers))

    torch.manual_seed(0)
    before = torch.get_rng_state()
    alone = batches(0)
    with_one, with_two = batches(1), batches(2)
    for first, second, third in zip(alone, with_one, with_two, strict=True):
        assert torch.equal(first.images, second.images) and torch.equal(first.images, third.images)
        assert torch.equal(first.indices, third.indices)
    twice = {
        int(i): image for batch in alone[4:] for i, image in zip(batch.indices, batch.images, strict=True)
    }
    again = [
        torch.equal(image, twice[int(i)])
        for b in alone[:4]
        for i, image in zip(b.indices, b.images, strict=True)
    ]
    assert len(alone) == 8 and not any(again)
    # The loader itself draws one number; the transforms leave the generator as it was.
    torch.manual_seed(0)
    assert torch.equal(before, torch.get_rng_state())
    images[next(iter(draws([0] * 21)))[0]]
    assert torch.equal(before, torch.get_rng_state())
