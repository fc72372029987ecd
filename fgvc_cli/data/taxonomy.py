"""The tree that classes hang on: order, family, genus, or whatever its ranks are called.

A file of it is a CSV: ``class`` and its ranks, **from coarse to fine**, as the header names them::

    class,order,family,genus
    Parus major,Passeriformes,Paridae,Parus

A blank cell says that the class has no node at that rank. A class is the finest rank of all, ``class``.

Legend: N images, K classes, R ranks, V nodes of all ranks.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from fgvc_cli.data.names import same_form
from fgvc_cli.errors import EXIT_USAGE, FgvcError, counted

CLASS = "class"
"""The finest rank, and the column that names the classes."""

FORM = "class,order,family,genus: a column class, then the ranks from coarse to fine"


@dataclass(frozen=True)
class Taxonomy:
    """The nodes above each class of a model or set.

    Args:
        ranks: from coarse to fine; ``class`` itself is not among them.
        lineages: per class, in the order of the classes: its node at each rank, empty for none.
    """

    ranks: tuple[str, ...]
    lineages: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, ranks: Sequence[str], rows: Mapping[str, Sequence[str]], classes: Sequence[str]) -> Self:
        """The tree of ``classes`` from rows that may know more of them.

        Args:
            ranks: from coarse to fine.
            rows: class -> its node at each rank.

        Raises:
            FgvcError: a class that no row is of, a node below two others.
        """
        known = {same_form(name): tuple(nodes) for name, nodes in rows.items()}
        missing = [name for name in classes if same_form(name) not in known]
        if missing:
            raise FgvcError(
                f"The taxonomy lacks {len(missing)} of {counted(len(classes), 'class', 'classes')}: "
                f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}.",
                "Add a row for each, spelled as the model spells it.",
            )
        _check_tree(ranks, known)
        return cls(tuple(ranks), tuple(known[same_form(name)] for name in classes))

    @classmethod
    def from_document(cls, document: Mapping[str, Any] | None) -> Self | None:
        """Back from ``document``."""
        if not document:
            return None
        return cls(tuple(document["ranks"]), tuple(tuple(nodes) for nodes in document["lineages"]))

    def document(self) -> dict[str, Any]:
        """As plain JSON values, for a checkpoint or the settings of a run."""
        return {"ranks": list(self.ranks), "lineages": [list(nodes) for nodes in self.lineages]}

    def levels(self) -> list[tuple[str, tuple[str, ...], np.ndarray]]:
        """Per rank, from fine to coarse: its name, its nodes, and the node of each class, int (K,), -1 for
        none."""
        found = []
        for number in reversed(range(len(self.ranks))):
            of_class = [nodes[number] for nodes in self.lineages]
            names = tuple(sorted({*of_class} - {""}))
            index = {"": -1} | {name: i for i, name in enumerate(names)}
            found.append((self.ranks[number], names, np.array([index[name] for name in of_class], np.int64)))
        return found

    def distance(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """How many ranks one has to climb from two classes until they meet, int (N,): the height of their
        lowest common ancestor, 0 of a class and itself, R + 1 where only the root is common (Bertinetto et
        al. 2020).

        Args:
            first, second: classes, int (N,).
        """
        climbs = np.where(first == second, 0, len(self.ranks) + 1)
        # From coarse to fine, so that the finest common node counts.
        for height, (_, _, node) in reversed([*enumerate(self.levels(), start=1)]):
            common = (first != second) & (node[first] >= 0) & (node[first] == node[second])
            climbs = np.where(common, height, climbs)
        return climbs


def _check_tree(ranks: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """Raise FgvcError where a node lies below two others of the next rank that both classes fill."""
    above: dict[tuple[int, str], tuple[int, str]] = {}
    for nodes in rows.values():
        parent: tuple[int, str] | None = None
        for number, node in enumerate(nodes):
            if not node:
                continue
            before = above.setdefault((number, node), parent or (-1, ""))
            if parent and before[1] and before[0] == parent[0] and before != parent:
                raise FgvcError(
                    f"The taxonomy has {ranks[number]} {node!r} below two of {ranks[parent[0]]}: "
                    f"{before[1]!r} and {parent[1]!r}.",
                    f"Expected {FORM}; a node has one parent.",
                )
            parent = number, node


def read_taxonomy(path: Path | str, classes: Sequence[str]) -> Taxonomy:
    """Read a CSV (see the top of this file) and take the rows of ``classes``, in their order.

    Raises:
        FgvcError: no such file, another header, a class twice, and as ``Taxonomy.of``; with the file's name.
    """
    rows: dict[str, tuple[str, ...]] = {}
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            header = [name.strip() for name in next(lines, [])]
            ranks = header[1:]
            if header[:1] != [CLASS] or not ranks or "" in ranks or len({*header}) < len(header):
                got = ",".join(header)[:60]
                raise FgvcError(f"{path} line 1: got {got!r}, expected {FORM}.", None, EXIT_USAGE)
            for cells in lines:
                if not any(cells):
                    continue
                name, *nodes = (cell.strip() for cell in cells)
                if len(cells) != len(header) or not name:
                    what = f"{len(cells)} values" if name else "no class"
                    raise FgvcError(f"{path} line {lines.line_num}: {what}, expected {len(header)}.", None)
                if same_form(name) in rows:
                    raise FgvcError(f"{path} line {lines.line_num}: class {name!r} is there twice.", None)
                rows[same_form(name)] = tuple(nodes)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise FgvcError(f"The taxonomy {path} cannot be read: {why}.", f"Expected a CSV, {FORM}.") from error
    try:
        return Taxonomy.of(ranks, rows, classes)
    except FgvcError as error:
        raise FgvcError(f"{path}: {error.message}", error.hint) from error
