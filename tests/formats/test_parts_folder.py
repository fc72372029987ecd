"""``--out preds/``: a folder of Parquet parts that others read as one data set, whole or absent."""

import io
import os

import numpy as np
import pytest
from fake_predictor import begin_shards, fake_info, run

from fgvc_cli.errors import FgvcError
from fgvc_cli.formats.outputs import Outputs, read_embeddings, read_table
from fgvc_cli.formats.rows import join
from fgvc_cli.run.folder import info_of, partial_folder, run_identity
from fgvc_cli.run.merge import MergeOptions, merge_shards
from fgvc_cli.run.predict import PredictOptions

parquet = pytest.importorskip("fgvc_cli.formats.parquet", reason="needs pyarrow")
EXTRAS = frozenset(("attention", "crop", "embedding", "logits"))
ROWS = 150


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parquet, "PART_ROWS", 40)


@pytest.fixture
def preds(tmp_path, small_parts):
    run(Outputs((tmp_path / "preds", tmp_path / "p.parquet"), EXTRAS), ROWS)
    return tmp_path / "preds"


def test_all_parts_and_the_mark_are_there_and_nothing_else(preds):
    assert sorted(os.listdir(preds)) == ["_SUCCESS", *(f"part-{i:05d}.parquet" for i in range(4))]
    assert (preds / "_SUCCESS").read_bytes() == b""
    assert sorted(os.listdir(preds.parent)) == ["p.parquet", "preds"]


def test_pandas_pyarrow_and_duckdb_read_it_as_one_data_set(preds):
    dataset = pytest.importorskip("pyarrow.dataset").dataset(preds)
    assert dataset.count_rows() == ROWS
    assert str(dataset.schema.field("attention").type) == str(dataset.schema.field("crop").type) == "binary"
    file = parquet.pq.read_table(preds.parent / "p.parquet")
    whole = dataset.to_table()
    for name in set(whole.column_names) - {"attention"}:
        assert whole[name].combine_chunks().equals(file[name].combine_chunks()), name
    for ours, theirs in zip(whole["attention"].to_pylist(), file["attention"].to_pylist(), strict=True):
        assert (ours is None) == (theirs is None)
        if ours:
            assert np.load(io.BytesIO(ours)).tolist() == theirs
    duckdb = pytest.importorskip("duckdb")
    query = f"SELECT count(*), count(crop), count(attention) FROM '{preds}/*.parquet' WHERE status = 'ok'"
    assert len(set(duckdb.sql(query).fetchall()[0])) == 1
    pandas = pytest.importorskip("pandas")
    assert pandas.read_parquet(preds)["path"].tolist() == whole["path"].to_pylist()


def test_rows_come_back_exactly(preds):
    info = fake_info(sorted(EXTRAS, key=("attention", "crop", "embedding", "logits").index))
    info = info_of(run_identity(info, []))
    ours, theirs = (
        join(list(parquet.read_blocks(path, info))) for path in (preds, preds.parent / "p.parquet")
    )
    assert ours.path == theirs.path and ours.first == 0 and ours.crop == theirs.crop
    for name in ("topk_prob", "box", "attention", "embedding", "logits"):
        assert getattr(ours, name).tobytes() == getattr(theirs, name).tobytes(), name
    assert len(read_table(preds).rows.path) == ROWS
    rows = np.array([1, 120])
    found = [read_embeddings(path, rows) for path in (preds, preds.parent / "p.parquet")]
    assert found[0].tobytes() == found[1].tobytes()


def test_a_run_without_a_row_has_a_part(tmp_path):
    run(Outputs((tmp_path / "preds",)), 0)
    assert parquet.pq.read_table(tmp_path / "preds").num_rows == 0


def test_a_merge_that_fails_leaves_no_folder(tmp_path, monkeypatch, small_parts):
    write = parquet.ParquetSink._write

    def full(self, block):
        if block.first > 60:
            raise OSError(28, "full")
        write(self, block)

    with monkeypatch.context() as patch:
        patch.setattr(parquet.ParquetSink, "_write", full)
        with pytest.raises(FgvcError, match="full|No space"):
            run(Outputs((tmp_path / "preds",)), ROWS)
    assert os.listdir(tmp_path) == ["preds.partial"]
    run(Outputs((tmp_path / "preds",)), ROWS)
    assert os.listdir(tmp_path) == ["preds"]


def test_a_folder_that_is_there_is_replaced_on_request_and_only_if_it_is_ours(preds):
    outputs = Outputs((preds,))
    with pytest.raises(FgvcError, match="Add --overwrite"):
        outputs.check()
    outputs.check(overwrite=True)
    (preds / "holiday.jpg").touch()
    with pytest.raises(FgvcError, match="holds other files too, such as holiday.jpg"):
        outputs.check(overwrite=True)


def test_a_folder_that_is_not_whole_is_not_read(preds):
    (preds / "_SUCCESS").unlink()
    with pytest.raises(FgvcError, match="lacks _SUCCESS"):
        read_table(preds)
    with pytest.raises(FgvcError, match="lacks part-00000"):
        read_table(preds.parent)


def test_shards_know_that_their_output_is_a_folder(tmp_path):
    root = begin_shards(tmp_path / "preds", 2, 30)
    assert root == partial_folder(tmp_path / "preds")
    merge_shards(root, Outputs((tmp_path / "preds",)))
    assert len(read_table(tmp_path / "preds").rows.path) == 30


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("preds", "expected a name with an ending.*Type preds/ for a folder"),
        ("preds.csv/", "no dot.*Type preds/"),
        ("s3://bucket/preds", "expected a name with an ending"),
    ],
)
def test_the_slash_says_what_is_meant(typed, words):
    for make in (lambda out: PredictOptions(sources="a", out=out), lambda out: MergeOptions(out=out)):
        with pytest.raises(FgvcError, match=words):
            make(typed)
    assert PredictOptions(sources="a", out="preds/").out[0].name == "preds"
