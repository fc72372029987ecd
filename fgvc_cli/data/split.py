"""Dividing examples into splits: seeded, per class, the same on every machine."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence

from fgvc_cli.data.listing import Example, first_names
from fgvc_cli.errors import EXIT_USAGE, FgvcError


def hold_out_validation(
    train: Sequence[Example], classes: Sequence[str], *, val_share: float = 0.1, seed: int = 0
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Divide training examples into (train, val), seeded and per class.

    Each class gives ``val_share`` of its images, rounded, at least one, and keeps at least one. What
    a class gives depends on the seed, its name and its own paths only. The order is kept. An image with
    several labels counts for the rarest of them, so that this one is divided as asked; those with none are
    divided as one class.

    Raises:
        FgvcError: a class with fewer than two images, or a share outside (0, 1).
    """
    check_shares(val_share, 0.0)
    kept, val, _ = deal(train, classes, val_share, 0.0, seed)
    return kept, val


def check_shares(val_share: float, test_share: float) -> None:
    """Whether both shares leave something to train on.

    Raises:
        FgvcError: they do not, or there is none to validate on.
    """
    if not (val_share > 0 and test_share >= 0 and val_share + test_share < 1):
        raise FgvcError(
            f"The validation share {val_share:g} and test share {test_share:g} leave no split to train on "
            "or none to validate on; expected val above 0, test from 0, both together below 1.",
            exit_code=EXIT_USAGE,
        )


def deal(
    examples: Sequence[Example], classes: Sequence[str], val_share: float, test_share: float, seed: int
) -> tuple[tuple[Example, ...], ...]:
    """Divide examples into (train, val, test), as ``hold_out_validation`` does.

    Raises:
        FgvcError: a class with fewer than two images.
    """
    images_of = Counter(label for example in examples for label in example.labels)
    few = [name for label, name in enumerate(classes) if images_of[label] < 2]
    if few:
        raise FgvcError(
            f"{len(few)} of {len(classes)} classes have fewer than 2 images, too few to split: "
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
        n_val = min(max(1, int(len(own) * val_share + 0.5)), len(own) - 1)
        n_test = max(1, int(len(own) * test_share + 0.5)) if test_share else 0
        val.update(own[:n_val])
        test.update(own[n_val : min(n_val + n_test, len(own) - 1)])
    train = tuple(e for e in examples if e not in val and e not in test)
    return train, tuple(e for e in examples if e in val), tuple(e for e in examples if e in test)
