"""What is wrong with a labelled set: unreadable files, copies, leaks, contradictions, tiny classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from fgvc_cli.data.listing import SPLITS, Example, LabelledSet
from fgvc_cli.datasets.duplicates import MAX_BITS, Fingerprint, find_groups, fingerprint_all
from fgvc_cli.sources.images import Failure

Kind = Literal["exact", "near"]


@dataclass(frozen=True)
class Member:
    """A listed image."""

    split: str
    example: Example


@dataclass(frozen=True)
class Group:
    """Images that are one: equal files, or looking alike."""

    kind: Kind
    members: tuple[Member, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits it is in; more than one: a test that was seen in training."""
        there = {member.split for member in self.members}
        return tuple(split for split in SPLITS if split in there)

    @property
    def contradicts(self) -> bool:
        """Whether its images have different labels."""
        return len({member.example.labels for member in self.members}) > 1


@dataclass
class Report:
    """The findings over a set."""

    data: LabelledSet
    groups: list[Group] = field(default_factory=list)
    """Exact ones first. A near group holds the equal files of its members too."""
    unreadable: list[tuple[Member, Failure]] = field(default_factory=list)
    tiny: dict[str, int] = field(default_factory=dict)
    """Class -> training images, where they are few; of all images in a set without a training split."""

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not (self.groups or self.unreadable or self.tiny)

    def of(self, kind: Kind) -> list[Group]:
        """The groups of a kind."""
        return [group for group in self.groups if group.kind == kind]


def check_set(
    data: LabelledSet,
    *,
    workers: int = 2,
    max_bits: int = MAX_BITS,
    min_images: int = 5,
    on_image: Callable[[], None] = lambda: None,
) -> Report:
    """Read every image of a set once. No pixels are kept: about 0.5 kB per image.

    Args:
        workers: processes that read; 0: this one.
        max_bits: bits of 64 that the hashes of near duplicates may differ by; 0 finds the closest only.
        min_images: classes with fewer training images are tiny.
        on_image: called after each.
    """
    members = [Member(split, example) for split in SPLITS for example in data.splits[split]]
    report = Report(data, tiny=_tiny_classes(data, min_images))
    prints: list[Fingerprint] = []
    readable: list[Member] = []
    results = fingerprint_all((data.root / member.example.path for member in members), workers)
    for member, result in zip(members, results, strict=True):
        if isinstance(result, Failure):
            report.unreadable.append((member, result))
        else:
            prints.append(result)
            readable.append(member)
        on_image()
    report.groups = _groups(readable, prints, max_bits)
    return report


def _groups(members: list[Member], prints: list[Fingerprint], max_bits: int) -> list[Group]:
    equal: dict[bytes, list[int]] = {}
    for index, own in enumerate(prints):
        equal.setdefault(own.digest, []).append(index)

    def group(kind: Kind, indices: list[int]) -> Group:
        return Group(kind, tuple(members[index] for index in indices))

    exact = [group("exact", indices) for indices in equal.values() if len(indices) > 1]
    alike = find_groups(prints, max_bits=max_bits)
    # One that holds nothing but equal files says nothing new.
    near = [group("near", indices) for indices in alike if len({prints[i].digest for i in indices}) > 1]
    return exact + near


def _tiny_classes(data: LabelledSet, min_images: int) -> dict[str, int]:
    examples = data.splits["train"] or [e for split in SPLITS for e in data.splits[split]]
    counts = Counter(label for example in examples for label in example.labels)
    return {name: counts[label] for label, name in enumerate(data.classes) if counts[label] < min_images}
