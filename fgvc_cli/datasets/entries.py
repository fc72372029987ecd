"""What a published set is: where its files lie, how many images there are, how its lists are read.

The sets are in ``published``, those with boxes, and ``catalogue``; ``registry`` finds them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgvc_cli.data.listing import LabelledSet
from fgvc_cli.data.taxonomy import Taxonomy
from fgvc_cli.errors import FgvcError


@dataclass(frozen=True)
class Archive:
    """A file at an official address.

    Args:
        url: where it is.
        md5: as published, hex; None where none is.
        into: the folder below the data root in which it is unpacked, or put where it is no archive.
    """

    url: str
    md5: str | None = None
    into: str = ""

    @property
    def file(self) -> str:
        """Its name."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class KnownSet:
    """A published data set: where its files lie, how many there are, how to list them.

    Args:
        key: the name users type.
        title: the name in print.
        folder: its folder below the data root, POSIX.
        needs: what must exist in that folder; directories end in ``/``.
        classes, train, test: official counts; ``train`` is counted before anything is held out of it.
        source: where it is to be had.
        load: folder -> listing with the official splits, val empty where there is none. May raise
            OSError, ValueError, KeyError, IndexError or TypeError on malformed files.
        val: official count, or 0 where val is held out of train.
        dealt_test: fraction of each class of ``train`` that becomes the test split, where the labels of the
            official one are unpublished (``test`` is 0 then). It does not depend on any seed. A number on
            it compares with no official one.
        archives: what ``fgvc datasets get`` downloads; empty where one has to ask or to sign in first.
        archive_folder: what the unpacked archives call ``folder``, where it is something else.
        other_needs: the same set as it comes from elsewhere: what must exist in its folder then.
        caveat: what has to be said beside every score on it; empty where nothing has.
        preprocess: settings of ``config.Preprocess`` that its images ask for, unless the user says otherwise.
    """

    key: str
    title: str
    folder: str
    needs: tuple[str, ...]
    classes: int
    train: int
    test: int
    source: str
    load: Callable[[Path], LabelledSet]
    val: int = 0
    dealt_test: float = 0.0
    archives: tuple[Archive, ...] = ()
    archive_folder: str = ""
    other_needs: tuple[tuple[str, ...], ...] = ()
    caveat: str = ""
    preprocess: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tree(self) -> str:
        """The expected tree in one line."""
        return f"{self.folder}/{{{','.join(self.needs)}}}"

    @property
    def expected(self) -> str:
        """The official counts in one line."""
        text = counts_text(self.classes, self.train, self.val, self.test)
        return f"{text}, {self.dealt_test:.0%} of train dealt as test" if self.dealt_test else text


def counts_text(classes: int, train: int, val: int, test: int) -> str:
    """Classes and images per split, those that are there."""
    splits = (("train", train), ("val", val), ("test", test))
    return ", ".join([f"{classes} classes", *(f"{count:,} {name}" for name, count in splits if count)])


def read_lines(path: Path) -> list[str]:
    """The non-blank lines of a UTF-8 list file, stripped."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Lines of ``key value``; the value may hold spaces.

    Raises:
        ValueError: a line with one word.
    """
    pairs = []
    for line in read_lines(path):
        key, gap, value = line.partition(" ")
        if not gap:
            raise ValueError(f"{path.name}: {line!r} is not two words")
        pairs.append((key, value.strip()))
    return pairs


def known_taxonomy(
    ranks: Sequence[str], lineages: Mapping[str, Sequence[str]], classes: Sequence[str]
) -> tuple[Taxonomy | None, tuple[str, ...]]:
    """The tree that the lists of a set tell, or none and the note that says why: a set is of use without."""
    try:
        return Taxonomy.of(ranks, lineages, classes), ()
    except FgvcError as error:
        return None, (f"Without a taxonomy: {error.message}",)


def read_mat(path: Path) -> dict[str, Any]:
    """The variables of a MATLAB file, singleton dimensions squeezed.

    Raises:
        ValueError: not a readable MATLAB file.
    """
    from scipy.io import loadmat  # 0.2 s, for two of the sets only

    try:
        variables: dict[str, Any] = loadmat(path, squeeze_me=True)
    except Exception as error:  # a cut file surfaces as zlib.error, TypeError, MatReadError and others
        raise ValueError(f"{path.name}: {error}") from error
    return variables
