"""Dividing examples into splits: seeded, per class, the same on every machine."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence

from fgvc_cli.data.listing import NO_LABEL, SPLITS, Example, first_names
from fgvc_cli.errors import EXIT_USAGE, FgvcError

Division = tuple[tuple[Example, ...], tuple[Example, ...], tuple[Example, ...]]
"""Train, val and test."""


def hold_out_validation(
    train: Sequence[Example], classes: Sequence[str], *, val_share: float = 0.1, seed: int = 0
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Divide training examples into (train, val), seeded and per class.

    Each class gives ``val_share`` of its images, rounded, at least one, and keeps at least one. What
    a class gives depends on the seed, its name and its own paths only. The order is kept. An image with
    several labels counts for the rarest of them, so that this one is divided as asked; those with none are
    divided as one class. With ``val_share`` 0 nothing is held out.

    Raises:
        FgvcError: a class with fewer than two images, or a fraction outside [0, 1).
    """
    check_shares(val_share, 0.0)
    kept, val, _ = deal(train, classes, val_share, 0.0, seed)
    return kept, val


def check_shares(val_share: float, test_share: float) -> None:
    """Whether both shares leave something to train on.

    Raises:
        FgvcError: they do not.
    """
    if not (val_share >= 0 and test_share >= 0 and val_share + test_share < 1):
        raise FgvcError(
            f"The fractions for validation, {val_share:g}, and test, {test_share:g}, leave nothing to train "
            "on; expected each from 0, both together below 1.",
            exit_code=EXIT_USAGE,
        )


def deal(
    examples: Sequence[Example], classes: Sequence[str], val_share: float, test_share: float, seed: int
) -> Division:
    """Divide examples into (train, val, test), as ``hold_out_validation`` does.

    Raises:
        FgvcError: a class with fewer than two images; without val and test, one without any.
    """
    images_of = Counter(label for example in examples for label in example.labels)
    least = 2 if val_share else 1
    few = [name for label, name in enumerate(classes) if images_of[label] < least]
    if few:
        raise FgvcError(
            f"{len(few)} of {len(classes)} classes have fewer than {least} images, too few to split: "
            f"{first_names(few)}.",
            "Add images to them, or remove them from the data set.",
        )
    # Those without any label are dealt like a class; no class has the empty name.
    members: dict[str, list[Example]] = {name: [] for name in (*classes, "")}
    for example in examples:
        rarest = min(example.labels, key=lambda label: (images_of[label], label), default=None)
        members["" if rarest is None else classes[rarest]].append(example)
    val: set[Example] = set()
    test: set[Example] = set()
    for name, own in members.items():
        if len(own) < 2:  # of a class that comes with rarer ones only
            continue
        # one generator per class: adding a class leaves the deal of the others alone
        digest = hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()
        rng = random.Random(int.from_bytes(digest, "big"))
        # by random(), whose sequence Python promises to keep between versions; shuffle()'s it does not
        own = [example for _, example in sorted((rng.random(), example) for example in sorted(own))]
        n_val = min(max(1, int(len(own) * val_share + 0.5)), len(own) - 1) if val_share else 0
        n_test = max(1, int(len(own) * test_share + 0.5)) if test_share else 0
        val.update(own[:n_val])
        test.update(own[n_val : min(n_val + n_test, len(own) - 1)])
    train = tuple(e for e in examples if e not in val and e not in test)
    return train, tuple(e for e in examples if e in val), tuple(e for e in examples if e in test)


def deal_groups(
    examples: Sequence[Example],
    classes: Sequence[str],
    groups: Sequence[str],
    val_share: float,
    test_share: float,
    seed: int,
) -> Division:
    """Divide examples into (train, val, test) so that those of a group come into one of them.

    Groups go, in an order that the seed and their names decide, to the split that lacks most of their
    classes, unless it would come to hold much more than its fraction, or train would lose a class. A split
    that is empty then takes one group of each class all the same, the one that overshoots least: few large
    groups make it larger than asked. What is left is train.

    Args:
        groups: of each example.

    Raises:
        FgvcError: a class without an image, or groups that leave nothing to validate or test on.
    """
    members: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    total = Counter(label for example in examples for label in example.labels)
    empty = [name for label, name in enumerate(classes) if not total[label]]
    if empty:
        raise FgvcError(
            f"{len(empty)} of {len(classes)} classes have no image: {first_names(empty)}.",
            "Add images to them, or remove them from the data set.",
        )
    labels_of = {
        group: Counter(label for place in own for label in (examples[place].labels or (NO_LABEL,)))
        for group, own in members.items()
    }
    order = sorted(
        members,
        key=lambda group: hashlib.sha256(f"{seed}/{group}".encode("utf-8", "surrogateescape")).digest(),
    )
    target = {name: share for name, share in (("test", test_share), ("val", val_share)) if share}
    held: dict[str, Counter[int]] = {name: Counter() for name in target}
    split_of: dict[str, str] = {}
    left = Counter(total)

    def gain(name: str, own: Counter[int]) -> float:
        """By how much the split comes closer to its fraction of each class, over the group's size: 1 where
        all of the group is lacking, -1 where nothing of it is."""
        weight = better = 0.0
        for label, count in own.items():
            all_of_class = total[label] or len(examples)
            lacking = target[name] * all_of_class - held[name][label]
            better += (abs(lacking) - abs(lacking - count)) / all_of_class
            weight += count / all_of_class
        return better / weight

    # First what fits well; then, where a split is short of images, what at least brings it closer.
    for least in (0.5, 0.0):
        for group in order:
            own = labels_of[group]
            if group in split_of or any(
                left[label] <= count for label, count in own.items() if label != NO_LABEL
            ):
                continue
            short = [
                name for name in target if least or held[name].total() < target[name] * total.total() / 2
            ]
            best = max(short, key=lambda name: gain(name, own), default=None)
            if best is not None and gain(best, own) > least:
                split_of[group] = best
                held[best].update(own)
                left.subtract(own)
    # A split that nothing fits into takes, class by class, the group that makes it least too large.
    for name in (name for name in ("val", "test") if name in target and not held[name]):
        for label in sorted(total):
            free = [
                group
                for group in order
                if group not in split_of
                and label in labels_of[group]
                and not any(left[own] <= count for own, count in labels_of[group].items() if own != NO_LABEL)
            ]
            if held[name][label] or not free:
                continue
            group = max(free, key=lambda group: gain(name, labels_of[group]))
            split_of[group] = name
            held[name].update(labels_of[group])
            left.subtract(labels_of[group])
    none = [name for name in target if not held[name]]
    if none:
        raise FgvcError(
            f"The {len(members):,} groups leave no {' and no '.join(none)} split: train keeps an image of "
            "every class, and no group is divided.",
            "Split by something finer, or give the splits yourself: a column split, or train/ val/ test/.",
        )
    parts: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for example, group in zip(examples, groups, strict=True):
        parts[split_of.get(group, "train")].append(example)
    return tuple(parts["train"]), tuple(parts["val"]), tuple(parts["test"])
