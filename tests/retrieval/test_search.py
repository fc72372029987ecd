"""The search finds exactly what comparing with every row finds, whatever the chunks, ties by row order."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from fgvc_cli.engine.index_classes import FORMAT, METRIC, SCHEMA_VERSION, unit
from fgvc_cli.errors import FgvcError
from fgvc_cli.retrieval import index_file
from fgvc_cli.retrieval.index_file import NearestIndex

CLASSES = ("ant", "bee", "cat", "dog")
ROWS, WIDTH = 157, 24


def write(path: Path, embeddings: np.ndarray, labels: np.ndarray, **attributes: object) -> Path:
    """An index by hand, thumbnails being the row's number."""
    with h5py.File(path, "w") as file:
        known = {"format": FORMAT, "metric": METRIC, "schema_version": SCHEMA_VERSION}
        known |= {"fgvc_version": "9", "weights_sha256": "a" * 64, "dataset": "zoo", "split": "train"}
        for name, value in (known | attributes).items():
            file.attrs[name] = value
        file.attrs["class_names"] = np.array(CLASSES, dtype=h5py.string_dtype())
        file["embedding"] = unit(embeddings)
        file["class_index"] = labels.reshape(len(labels), -1).astype(np.int32)
        file["path"] = np.array([f"d/{i}.jpg" for i in range(len(labels))], dtype=h5py.string_dtype())
        pictures = file.create_dataset("thumbnail", (len(labels),), h5py.vlen_dtype(np.uint8))
        for i in range(len(labels)):
            pictures[i] = np.frombuffer(str(i).encode(), np.uint8)
    return path


def world(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings with many equal ones, their classes, and queries."""
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(ROWS, WIDTH))
    embeddings[rng.integers(0, ROWS, 60)] = embeddings[3]
    embeddings[40] = 0
    queries = np.concatenate([rng.normal(size=(4, WIDTH)), embeddings[[3]] * 7])
    return embeddings, rng.integers(0, 3, ROWS), queries


def brute_force(stored: np.ndarray, query: np.ndarray, rows: np.ndarray, count: int):
    """All similarities as exact fractions of whole numbers, sorted with Python's own stable sort."""
    whole = (stored[rows].astype(np.float64) * 2**24).astype(np.int64).astype(object)
    asked = (query.astype(np.float64) * 2**24).astype(np.int64).astype(object)
    exact = [sum(a * b for a, b in zip(row, asked, strict=True)) for row in whole]
    order = sorted(range(len(rows)), key=lambda i: -exact[i])[:count]
    return [int(rows[i]) for i in order], [exact[i] / 2**48 for i in order]


@pytest.mark.parametrize("count", [1, 5, 90, 1000])
@pytest.mark.parametrize("chunk", [1, 10, 64, 4096])
@pytest.mark.parametrize("held", [True, False])
def test_rows_are_those_of_comparing_with_everything(tmp_path, monkeypatch, count, chunk, held):
    embeddings, labels, queries = world()
    monkeypatch.setattr(index_file, "HELD_BYTES", 1 << 20 if held else 0)
    targets = [[0, 1], [2], [], [1, 3], [0]]
    with NearestIndex(write(tmp_path / "i.h5", embeddings, labels)) as index:
        for _ in range(2):  # the second time from memory
            found = index.find_rows(queries, targets, count, chunk=chunk)
    for query, asked, answers in zip(unit(queries), targets, found, strict=True):
        groups = [np.arange(ROWS), *(np.flatnonzero(labels == c) for c in asked)]
        for rows, (got, similarities) in zip(groups, answers, strict=True):
            expected, exact = brute_force(unit(embeddings), query, rows, count)
            assert got.tolist() == expected
            assert similarities.tolist() == exact


def test_equal_images_come_in_the_order_of_their_rows(tmp_path):
    embeddings = np.tile([[3.0, 4.0]], (50, 1))
    with NearestIndex(write(tmp_path / "i.h5", embeddings, np.zeros(50))) as index:
        ((found, similarities),) = index.find_rows(embeddings[:1], [[]], 4, chunk=7)[0]
    assert found.tolist() == [0, 1, 2, 3] and len({*similarities.tolist()}) == 1


def test_neighbours_have_names_pictures_and_similarities_up_to_one(tmp_path):
    embeddings, labels, queries = world()
    with NearestIndex(write(tmp_path / "i.h5", embeddings, labels)) as index:
        assert len(index) == ROWS and index.classes == CLASSES
        nearest = index.search(queries, [["bee", "dog"]] * len(queries), count=3)
    last = nearest[-1]
    assert [near.row for near in last.overall] == sorted(near.row for near in last.overall)
    best = last.overall[0]
    assert best.similarity == pytest.approx(1, abs=1e-3) and best.similarity <= 1
    assert best.path == f"d/{best.row}.jpg" and best.thumbnail == str(best.row).encode()
    assert best.labels == (CLASSES[labels[best.row]],)
    assert [near.labels for near in last.by_class["bee"]] == [("bee",)] * 3
    assert last.by_class["dog"] == () and last.photographs == ROWS and last.source == "zoo, train"


def test_a_image_of_several_labels_is_found_under_each(tmp_path):
    labels = np.array([[0, 2], [1, -1], [2, 3]])
    with NearestIndex(write(tmp_path / "i.h5", np.eye(3), labels)) as index:
        (nearest,) = index.search(np.array([[1.0, 0.5, 0.1]]), [["ant", "cat"]], count=9)
    assert [near.row for near in nearest.by_class["ant"]] == [0]
    assert [near.row for near in nearest.by_class["cat"]] == [0, 2]
    assert [near.labels for near in nearest.overall] == [("ant", "cat"), ("bee",), ("cat", "dog")]


def test_float16_hardly_moves_a_cosine():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 300, 512)).clip(0)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    stored = (unit(a).astype(float) * unit(b).astype(float)).sum(1)
    assert np.abs(stored - cosine).max() < 1e-4


@pytest.mark.parametrize(
    ("attributes", "shown"),
    [
        ({"format": "else"}, "not an index"),
        ({"metric": "euclid"}, "not an index"),
        ({"schema_version": SCHEMA_VERSION + 1}, "newer fgvc"),
        ({"weights_sha256": "b" * 64}, "other weights.*fgvc index --weights W --out .*i.h5 --overwrite"),
    ],
)
def test_what_is_not_this_models_index_is_refused_in_one_line(tmp_path, attributes, shown):
    path = write(tmp_path / "i.h5", np.eye(3), np.zeros(3), **attributes)
    with pytest.raises(FgvcError, match=shown) as caught:
        NearestIndex(path, weights_sha256="a" * 64)
    assert "\n" not in str(caught.value)
    with h5py.File(path, "r+"):  # nobody holds it open
        assert path.is_file()


def test_what_is_no_hdf5_or_is_not_there_is_refused(tmp_path):
    (tmp_path / "i.h5").write_text("not one")
    with pytest.raises(FgvcError, match="cannot be read as HDF5"):
        NearestIndex(tmp_path / "i.h5")
    with pytest.raises(FgvcError, match="no index .*gone.h5. Make it with fgvc index"):
        NearestIndex(tmp_path / "gone.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["embedding"] = np.eye(3)
    with pytest.raises(FgvcError, match="not an index"):
        NearestIndex(tmp_path / "other.h5")


def test_wrong_questions_are_refused(tmp_path):
    with NearestIndex(write(tmp_path / "i.h5", np.eye(3), np.zeros(3))) as index:
        with pytest.raises(FgvcError, match="width 3"):
            index.search(np.ones((1, 4)), [[]], count=1)
        with pytest.raises(FgvcError, match="no class 'emu'"):
            index.search(np.ones((1, 3)), [["emu"]], count=1)


def test_an_image_is_not_near_itself(tmp_path):
    embeddings = np.array([[1, 0, 0], [1, 0.001, 0], [0, 1, 0], [0, 1, 1]], float)
    with NearestIndex(write(tmp_path / "i.h5", embeddings, np.array([0, 0, 1, 1]))) as index:
        (found,) = index.search(embeddings[:1], [["ant"]], count=3)
    itself, twin, other = found.overall
    for path in (f"/data/birds/{itself.path}", itself.path, itself.path.rpartition("/")[2]):
        without = found.without(path, 2)
        assert [near.row for near in without.overall] == [twin.row, other.row]
        assert [near.row for near in without.by_class["ant"]] == [twin.row]
    assert found.without("", 3).overall == found.overall, "of nobody knows which file, all are others"
    assert found.without(f"/data/birds/{other.path}", 3).overall == found.overall, "only one that is equal"
    assert found.without(f"/data/birds/not-{itself.path}", 2).overall == (itself, twin)
