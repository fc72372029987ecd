"""The tree of classes: what a file of it must say, and how far two classes are apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fgvc_cli.data.taxonomy import Taxonomy, read_taxonomy
from fgvc_cli.errors import FgvcError

TREE = """class,order,family
sparrow,Passeriformes,Passeridae
gull,Charadriiformes,Laridae
tit,Passeriformes,Paridae
marsh tit,Passeriformes,Paridae
unknown bird,Passeriformes,
empty,,
"""
CLASSES = ("tit", "marsh tit", "sparrow", "gull", "unknown bird", "empty")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "tree.csv"
    path.write_text(text, encoding="utf-8-sig")
    return path


def refusal(tmp_path: Path, text: str, classes=("a", "b")) -> str:
    with pytest.raises(FgvcError) as error:
        read_taxonomy(write(tmp_path, text), classes)
    assert "\n" not in str(error.value) and "tree.csv" in str(error.value)
    return str(error.value)


def test_lineages_come_in_the_order_of_the_classes_and_of_what_was_asked_for(tmp_path):
    tree = read_taxonomy(write(tmp_path, TREE), ("gull", "tit"))
    assert tree.ranks == ("order", "family")
    assert tree.lineages == (("Charadriiformes", "Laridae"), ("Passeriformes", "Paridae"))
    assert Taxonomy.from_document(tree.document()) == tree
    assert Taxonomy.from_document(None) is None


def test_nodes_are_told_from_fine_to_coarse(tmp_path):
    levels = read_taxonomy(write(tmp_path, TREE), CLASSES).levels()
    assert [(rank, names) for rank, names, _ in levels] == [
        ("family", ("Laridae", "Paridae", "Passeridae")),
        ("order", ("Charadriiformes", "Passeriformes")),
    ]
    assert [node.tolist() for _, _, node in levels] == [[1, 1, 2, 0, -1, -1], [1, 1, 1, 0, 1, -1]]


def test_the_distance_is_the_height_of_the_lowest_common_ancestor(tmp_path):
    tree = read_taxonomy(write(tmp_path, TREE), CLASSES)
    everything = np.arange(len(CLASSES))
    to_tit = tree.distance(np.zeros_like(everything), everything)
    assert to_tit.tolist() == [0, 1, 2, 3, 2, 3]
    assert tree.distance(everything, np.zeros_like(everything)).tolist() == to_tit.tolist()
    assert not tree.distance(everything, everything).any()


def test_names_are_compared_by_what_they_look_like(tmp_path):
    assert read_taxonomy(write(tmp_path, "class,group\ncafe\u0301,x\n"), ("caf\u00e9",)).lineages == (("x",),)


def test_what_is_no_tree_of_the_classes_is_refused_in_one_line(tmp_path):
    head = "class,order,family\n"
    missing = refusal(tmp_path, head + "a,O,F\n", ("a", "b", "c"))
    assert "lacks 2 of 3 classes: b, c." in missing
    assert "line 3: class 'a' is there twice" in refusal(tmp_path, head + "a,O,F\na,O,G\n")
    two = refusal(tmp_path, head + "a,O,F\nb,P,F\n")
    assert "family 'F' below two of order: 'O' and 'P'" in two and "from coarse to fine" in two
    assert "line 2: 2 values, expected 3" in refusal(tmp_path, head + "a,O\n")
    for header in ("name,order", "class", "order,class", "class,order,order", "class,,family", ""):
        assert "class,order,family,genus" in refusal(tmp_path, f"{header}\n")
    with pytest.raises(FgvcError, match=r"gone\.csv cannot be read: No such file"):
        read_taxonomy(tmp_path / "gone.csv", ("a",))


def test_ranks_named_from_fine_to_coarse_are_told(tmp_path):
    """Read the other way round, an order would lie below two families."""
    assert "order 'O' below two of family" in refusal(tmp_path, "class,family,order\na,F,O\nb,G,O\n")
