"""What a format writes, it reads back: as a table for a report, exactly for a run that is taken up again."""

import csv
import dataclasses
import io
import json

import h5py
import numpy as np
import pytest
from fake_predictor import fake_block, fake_info

from fgvc_cli.config import Preprocess
from fgvc_cli.data import names
from fgvc_cli.errors import FgvcError
from fgvc_cli.formats import rows
from fgvc_cli.formats.csv_rows import as_cell, csv_lines, from_cell
from fgvc_cli.formats.outputs import SINKS, format_of, read_table
from fgvc_cli.formats.rows import ARRAYS, COLUMNS, OPTIONAL_ARRAYS, TEXTS, OtherRun, join

EXTRAS = ("attention", "crop", "embedding", "logits")
FORMULAS = [
    "=1+1",
    "+1+1|cmd",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "＝1",
    "'=1",
    "'quoted",
    "''",
    "'",
]
NAMES = ["bad0.jpg", *FORMULAS, "é 鳥.jpg", "a,b.jpg", "a=b.jpg", "-5", "bad1.jpg"]
CLASSES = ("=cmd|' /C calc'!A0", "@cow", "-3.5")


def an_info(extras=(), parts=1, **settings):
    return dataclasses.replace(fake_info(extras, parts, **settings), classes=CLASSES)


def write(path, info, extras=(), names=NAMES):
    block = fake_block(info, names)
    sink = getattr(format_of(path), SINKS[path.suffix][1])
    with sink(path, extras=extras, overwrite=True) as out:
        out.begin(info)
        out.write(block)
    return block


@pytest.fixture(params=[".csv", ".jsonl", ".h5", ".parquet"])
def ending(request):
    if request.param == ".parquet":
        pytest.importorskip("pyarrow")
    return request.param


@pytest.mark.parametrize("parts", [0, 2])
def test_a_table_holds_the_rows_that_were_written(tmp_path, ending, parts, monkeypatch):
    monkeypatch.setattr(rows, "READ_ROWS", 4)
    path, info = tmp_path / f"p{ending}", an_info(parts=parts)
    block = write(path, info)
    table = read_table(path)
    assert [getattr(table.rows, name) for name in TEXTS] == [getattr(block, name) for name in TEXTS]
    names = [[table.info.classes[i] for i in ranked if i >= 0] for ranked in table.rows.topk_index]
    assert names == [[CLASSES[i] for i in ranked if i >= 0] for ranked in block.topk_index]
    for name in ("size", "topk_prob", "box", "parts"):
        # A CSV and JSON lines round to 6 and to 1 decimals.
        np.testing.assert_allclose(getattr(table.rows, name), getattr(block, name), atol=0.051, err_msg=name)
    assert table.answered.tolist() == [status == "ok" for status in block.status]
    assert (table.info.top_k, table.info.parts) == (2, parts)


@pytest.mark.parametrize("parts", [0, 2])
def test_rows_of_a_run_come_back_exactly_from_hdf5_and_parquet(tmp_path, ending, parts):
    if ending not in (".h5", ".parquet"):
        pytest.skip("holds no extras")
    path, info = tmp_path / f"p{ending}", an_info(EXTRAS, parts, precision="float32")
    block = write(path, info, EXTRAS)
    read = join(list(format_of(path).read_blocks(path, info)))
    assert [getattr(read, name) for name in TEXTS] == [getattr(block, name) for name in TEXTS]
    for name in (*ARRAYS, *OPTIONAL_ARRAYS):
        ours, theirs = getattr(read, name), getattr(block, name)
        assert ours.dtype == theirs.dtype, name
        np.testing.assert_array_equal(ours, theirs, name)
    assert read.crop == block.crop


def test_columns_that_only_some_runs_have_come_back_from_every_format(tmp_path, ending):
    path, info = tmp_path / f"p{ending}", fake_info(parts=2, columns=COLUMNS)
    block = write(path, info, names=["bad0.jpg", "=1.jpg", "blank.jpg", "a.jpg"])
    for read in (read_table(path).rows, join(list(format_of(path).read_blocks(path, info)))):
        assert list(read.more) == list(COLUMNS)
        for name, values in block.more.items():
            if isinstance(values, list):
                assert read.more[name] == values and values[0] and not values[2]
            else:
                np.testing.assert_allclose(read.more[name], values, rtol=1e-6)
                assert np.isnan(values[2]).all() and not np.isnan(values[0]).any()
    assert read_table(path).info.columns == tuple(COLUMNS)
    with pytest.raises(OtherRun, match="not those of this run"):
        list(format_of(path).read_blocks(path, fake_info(parts=2, columns=("novelty",))))


def test_a_csv_has_what_is_known_of_the_box_behind_the_path_and_the_rest_behind_all(tmp_path):
    write(tmp_path / "p.csv", fake_info(parts=0, columns=("box_id", "given_box", "novelty")), names=["a.jpg"])
    header = (tmp_path / "p.csv").read_text().splitlines()[0].split(",")
    assert header[:7] == ["path", "box_id", "in_x1", "in_y1", "in_x2", "in_y2", "status"]
    assert header[-2:] == ["box_y2", "novelty"]


def test_a_file_of_the_first_schema_is_read(tmp_path):
    path, info = tmp_path / "p.h5", fake_info()
    block = write(path, info)
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = 1
    assert join(list(format_of(path).read_blocks(path, info))).path == block.path


def test_rows_read_back_are_written_again_as_they_were(tmp_path, ending):
    path, info = tmp_path / f"p{ending}", an_info(parts=2)
    write(path, info)
    again = tmp_path / f"again{ending}"
    with getattr(format_of(path), SINKS[ending][1])(again) as out:
        out.begin(info)
        for block in format_of(path).read_blocks(path, info):
            out.write(block)
    if ending == ".h5":
        with h5py.File(path) as ours, h5py.File(again) as theirs:
            for name in ours:
                np.testing.assert_array_equal(ours[name][:], theirs[name][:], name)
    elif ending == ".parquet":  # whose pages depend on how many rows came at once
        ours, theirs = (pytest.importorskip("pyarrow.parquet").read_table(each) for each in (path, again))
        assert ours.schema.equals(theirs.schema, check_metadata=True)
        assert repr(ours.to_pylist()) == repr(theirs.to_pylist())
    else:
        assert path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    "change", [{"top_k": 1}, {"parts": 2}, {"classes": ("x", "y", "z")}, {"settings": {"multi_label": True}}]
)
def test_rows_of_another_run_are_told_apart(tmp_path, ending, change):
    path, info = tmp_path / f"p{ending}", an_info()
    write(path, info)
    if ending in (".h5", ".jsonl") and "parts" in change:
        pytest.skip(
            "an .h5 tells the model, from which they follow; .jsonl does not tell how many there can be"
        )
    with pytest.raises(OtherRun):
        list(format_of(path).read_blocks(path, dataclasses.replace(info, **change)))


@pytest.mark.parametrize("ending", [".h5", ".parquet"])
def test_settings_of_a_run_are_compared_and_the_batch_size_may_differ(tmp_path, ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    path, info = tmp_path / f"p{ending}", an_info(precision="float32", batch_size=4)
    write(path, info)
    assert format_of(path).read_setting(path, "precision") == "float32"
    other = dataclasses.replace(info, settings={"precision": "bf16", "batch_size": 4})
    with pytest.raises(OtherRun, match='settings.precision is "float32", this run\'s "bf16"'):
        list(format_of(path).read_blocks(path, other))
    same = dataclasses.replace(info, settings={"precision": "float32", "batch_size": 16})
    assert sum(map(len, format_of(path).read_blocks(path, same))) == len(NAMES)
    with pytest.raises(OtherRun, match="holds no crop"):
        list(format_of(path).read_blocks(path, dataclasses.replace(info, extras=("crop",))))


@pytest.mark.parametrize("ending", [".h5", ".parquet"])
def test_rows_from_before_a_setting_are_those_of_what_was_done_then(tmp_path, ending, monkeypatch):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    now = {"drop_path": 0.0, "closing": "cells", "min_area": 0.01}
    info = dataclasses.replace(an_info(options=now), preprocess=Preprocess(color_profile="ignore"))
    module, path = format_of(tmp_path / f"p{ending}"), tmp_path / f"p{ending}"

    def before(info):
        shared = rows.shared_by_rows(info)
        del shared["preprocessing"]["color_profile"]
        return shared | {"settings": {"options": {"drop_path": 0.0}}}

    with monkeypatch.context() as patch:
        patch.setattr(module, "shared_by_rows", before)
        write(path, info)
    assert sum(map(len, module.read_blocks(path, info))) == len(NAMES)
    for change, words in (
        ({"settings": {"options": now | {"closing": "binary"}}}, 'settings.options.closing is "cells"'),
        ({"preprocess": Preprocess(color_profile="srgb")}, 'preprocessing.color_profile is "ignore"'),
    ):
        with pytest.raises(OtherRun, match=words):
            list(module.read_blocks(path, dataclasses.replace(info, **change)))


def test_no_cell_of_a_csv_is_a_formula_and_all_come_back(tmp_path):
    path = tmp_path / "p.csv"
    write(path, an_info())
    with path.open(encoding="utf-8", newline="") as stream:
        lines = list(csv.reader(stream))
    texts = [cell for line in lines[1:] for cell in line if not names._NUMBER.fullmatch(cell)]
    assert not [cell for cell in texts if cell[:1] in tuple(names.FORMULA_STARTS)]
    assert [line[0] for line in lines[1:14]] == [as_cell(name) for name in NAMES[:13]]
    assert [from_cell(line[0]) for line in lines[1:]] == NAMES
    good = next(line for line in lines[1:] if line[1] == "ok")
    assert good[5] == f"'{CLASSES[0]}" and good[6][0].isdigit()


@pytest.mark.parametrize("text", [*FORMULAS, "", "a", " =1", "-5", "+1.5e-3", "''=1", "'a", "=", "-", "é"])
def test_a_cell_gives_its_text_back(text):
    assert from_cell(as_cell(text)) == text


def test_numbers_and_common_names_stay_as_they_are():
    for text in ("-0.0", "-12.5", "+3", "1e-05", "-1e+20", "birds/a.jpg", "a-b=c@d.jpg", "", "O'Neil"):
        assert as_cell(text) == text
    assert [as_cell(text) for text in ("-1-1", "--1", "-a.jpg")] == ["'-1-1", "'--1", "'-a.jpg"]


def test_a_csv_from_before_cells_were_protected_is_read_as_it_was():
    assert [from_cell(cell) for cell in ("'quoted.jpg", "=raw.jpg", "-raw.jpg")] == (
        ["'quoted.jpg", "=raw.jpg", "-raw.jpg"]
    )


def test_a_csv_that_excel_has_saved_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "p.csv"
    write(path, an_info())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_table(path).rows.path == NAMES


def test_other_tables_are_protected_by_the_same_function():
    stream = io.BytesIO()
    csv_lines(stream, [["=1+1", "2"]])
    assert stream.getvalue() == b"'=1+1,2\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[1]", "line 1: no JSON object"),
        ("{", "line 1: no JSON object"),
        ('{"path": "a", "prob": 1}', "line 1: expected the keys of fgvc predict"),
        ("", "holds no rows"),
    ],
)
def test_json_lines_that_are_not_ours_are_refused(tmp_path, line, words):
    path = tmp_path / "p.jsonl"
    path.write_text(line)
    with pytest.raises(FgvcError, match=words):
        read_table(path)


def test_json_lines_without_a_value_name_their_line(tmp_path):
    path = tmp_path / "p.jsonl"
    write(path, an_info())
    lines = path.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | {"prob": None})
    path.write_text("\n".join(lines))
    with pytest.raises(FgvcError, match="line 3: a row of status ok without its size, a label or a prob"):
        read_table(path)


def test_parquet_that_is_not_ours_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "p.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(FgvcError, match="cannot be read as Parquet"):
        read_table(path)
    pq.write_table(pa.table({"path": ["a"]}), path)
    with pytest.raises(FgvcError, match="is not what fgvc predict writes"):
        read_table(path)
    write(path, an_info(), names=["a"])
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["prob_2"]), path)
    with pytest.raises(FgvcError, match="has not the columns"):
        read_table(path)
    pq.write_table(table.set_column(5, "label", pa.array(["wasp"])), path)
    with pytest.raises(FgvcError, match="names 'wasp', which is none of its classes"):
        read_table(path)
