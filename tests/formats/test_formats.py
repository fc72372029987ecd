"""What each format holds of the same rows, read with plain tools."""

import io
import json
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest
from fake_predictor import fake_block, fake_info
from PIL import Image

from fgvc_cli.errors import FgvcError
from fgvc_cli.formats import h5
from fgvc_cli.formats.h5 import CHUNK_BYTES, H5Sink
from fgvc_cli.formats.jsonl import JsonlSink
from fgvc_cli.formats.outputs import CropsFolder, MapsFolder, Outputs, safe_name
from fgvc_cli.formats.rows import RunInfo

EXTRAS = ("attention", "crop", "embedding", "logits")
NAMES = ["bad0.jpg", "bad1.jpg", "é 鳥.jpg", "b.jpg", "bad2.jpg"]


def blocks(info):
    """Two failures before any model output, then good rows and a failure."""
    return [fake_block(info, NAMES[:2]), fake_block(info, NAMES[2:], first=2)]


def write(sink, info, given=None):
    with sink:
        sink.begin(info)
        for block in given or blocks(info):
            sink.write(block)


def test_hdf5_holds_every_field_row_by_row(tmp_path):
    info = fake_info(EXTRAS, parts=2, precision="float32")
    write(H5Sink(tmp_path / "p.h5", extras=EXTRAS), info)
    good = blocks(info)[1]
    with h5py.File(tmp_path / "p.h5") as file:
        assert {len(data_set) for data_set in file.values()} == {5}
        assert file["path"].asstr()[:].tolist() == NAMES
        assert file["status"].asstr()[:].tolist() == ["truncated"] * 2 + ["ok"] * 2 + ["truncated"]
        assert file["error"].asstr()[0] == "cut short"
        for name in ("size", "topk_index", "topk_prob", "box", "parts", "attention", "embedding", "logits"):
            np.testing.assert_array_equal(file[name][2:], getattr(good, name), name)
        assert file["topk_index"][0].tolist() == [-1, -1] and np.isnan(file["attention"][:2]).all()
        assert [item.tobytes() for item in file["crop"][:]] == [b"", b"", *good.crop]
        assert (file["attention"].dtype, file["topk_index"].dtype) == (np.float16, np.int32)
        for name in ("size", "topk_prob", "attention", "logits"):
            data_set = file[name]
            assert (data_set.compression, data_set.shuffle, data_set.fletcher32) == ("gzip", True, True)
            assert data_set.maxshape[0] is None
        assert "logarithm of the fused, calibrated probabilities" in file["logits"].attrs["description"]
        assert "over the model's input" in file["attention"].attrs["description"]
        assert "JPEG" in file["crop"].attrs["description"]
        attributes = dict(file.attrs)
    assert attributes["class_names"].tolist() == ["cat", "dog", "cow"]
    assert json.loads(attributes["preprocessing"])["input_px"] == 448
    assert json.loads(attributes["settings"]) == {"precision": "float32"}
    assert (attributes["schema_version"], attributes["weights_sha256"]) == (2, "0" * 64)
    assert "end-exclusive" in attributes["box_convention"] and attributes["fgvc_version"]


def test_hdf5_without_extras_parts_or_any_good_row(tmp_path):
    write(H5Sink(tmp_path / "p.h5"), fake_info(EXTRAS, parts=0))
    with h5py.File(tmp_path / "p.h5") as file:
        assert not {"parts", *EXTRAS} & set(file)
    info = fake_info(EXTRAS)
    write(H5Sink(tmp_path / "q.h5", extras=EXTRAS), info, blocks(info)[:1])
    with h5py.File(tmp_path / "q.h5") as file:
        assert file["attention"].shape == (2, 0) and len(file["crop"]) == 2


def test_hdf5_holds_the_names_of_very_many_classes(tmp_path):
    many = fake_info()
    many = RunInfo(many.model, "0", tuple(f"class {i}" for i in range(20_000)), many.preprocess, 2, 1)
    write(H5Sink(tmp_path / "p.h5"), many, [fake_block(many, ["a"])])
    with h5py.File(tmp_path / "p.h5") as file:
        assert file.attrs["class_names"][19_999] == "class 19999"


def test_hdf5_chunks_of_large_maps_stay_small(tmp_path):
    info = fake_info(("attention",))
    block = fake_block(info, ["a"])
    block.attention = np.zeros((1, 448, 448), np.float16)
    write(H5Sink(tmp_path / "p.h5", extras=("attention",)), info, [block])
    with h5py.File(tmp_path / "p.h5") as file:
        assert file["attention"].chunks == (CHUNK_BYTES // (448 * 448 * 2), 448, 448)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("sizes", [(1024,), (700, 700, 700), (1, 2047, 1), (3000,)])
def test_chunks_that_are_compressed_here_are_those_of_hdf5(tmp_path, sizes, compress):
    """Content, filters and chunks; plain h5py reads each with its checksum."""
    rng = np.random.default_rng(0)
    stored = {
        "map": rng.random((sum(sizes), 3, 5)).astype(np.float16),
        "index": rng.integers(-1, 9, (sum(sizes), 2), np.int32),
        "byte": rng.integers(0, 255, sum(sizes), np.uint8),
    }
    late = rng.random(sum(sizes))
    (tmp_path / "p.h5").touch()
    with closing(h5.H5Rows(str(tmp_path / "p.h5"))) as rows, h5py.File(tmp_path / "plain.h5", "w") as plain:
        for name, values in stored.items():
            rows.add(name, values.shape[1:], values.dtype, compress=compress)
        start = 0
        for i, size in enumerate(sizes):
            here = slice(start, start + size)
            if i == 1:
                rows.add("late", (), np.float64, compress=compress)
                rows.add("never", (), np.float64, compress=compress)
            columns = {name: values[here] for name, values in stored.items()}
            rows.append(size, columns | ({"late": late[here]} if i else {}))
            start += size
        if len(sizes) > 1:
            late[: sizes[0]] = np.nan
            stored |= {"late": late, "never": np.full(len(late), np.nan)}
        filters = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if compress else {}
        for name, values in stored.items():
            chunks = (1024, *values.shape[1:])
            plain.create_dataset(name, data=values, chunks=chunks, fletcher32=True, **filters)
    with h5py.File(tmp_path / "p.h5") as ours, h5py.File(tmp_path / "plain.h5") as theirs:
        assert ours.keys() == stored.keys()
        for name, values in stored.items():
            np.testing.assert_array_equal(ours[name][:], values)
            assert ours[name].dtype == values.dtype and ours[name].chunks == theirs[name].chunks
            plists = [file[name].id.get_create_plist() for file in (ours, theirs)]
            mine, plain = ([p.get_filter(i) for i in range(p.get_nfilters())] for p in plists)
            assert mine == plain and (ours[name].compression == "gzip") == compress
        if len(sizes) > 1:
            assert ours["never"].id.get_num_chunks() == 0


def test_a_chunk_that_is_damaged_is_noticed(tmp_path):
    (tmp_path / "p.h5").touch()
    with closing(h5.H5Rows(str(tmp_path / "p.h5"))) as rows:
        rows.add("values", (), np.float64, compress=False)
        rows.append(1024, {"values": np.full(1024, 0.125)})
    content = bytearray((tmp_path / "p.h5").read_bytes())
    content[content.index(np.float64(0.125).tobytes() * 9) + 40] ^= 1
    (tmp_path / "p.h5").write_bytes(content)
    with h5py.File(tmp_path / "p.h5") as file, pytest.raises(OSError, match="filter returned failure"):
        file["values"][:]


@pytest.mark.skipif(not shutil.which("h5dump"), reason="needs h5dump")
def test_h5dump_reads_it(tmp_path):
    info = fake_info(EXTRAS)
    write(H5Sink(tmp_path / "p.h5", extras=EXTRAS), info)
    done = subprocess.run(["h5dump", tmp_path / "p.h5"], capture_output=True, text=True)
    assert done.returncode == 0 and "topk_prob" in done.stdout


def test_json_lines_have_the_columns_of_the_csv(tmp_path):
    info = fake_info(parts=1)
    write(JsonlSink(tmp_path / "p.jsonl"), info)
    text = (tmp_path / "p.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["path"] for row in rows] == NAMES and "é 鳥.jpg" in text
    assert list(rows[2]) == (
        ["path", "status", "error", "width", "height", "label", "prob", "label_2", "prob_2", "box", "parts"]
    )
    assert (rows[2]["label"], rows[2]["label_2"], rows[2]["width"]) == ("cat", "dog", 640)
    assert len(rows[2]["box"]) == 4 and len(rows[2]["parts"][0]) == 4
    assert rows[2]["prob"] == round(float(blocks(info)[1].topk_prob[0, 0]), 6)
    assert {rows[0][key] for key in ("width", "label", "prob", "prob_2", "box")} == {None}
    assert rows[0]["parts"] == []
    write(JsonlSink(tmp_path / "q.jsonl"), fake_info(parts=0))
    assert "parts" not in json.loads((tmp_path / "q.jsonl").read_text().splitlines()[2])


def test_parquet_has_the_columns_of_the_csv_with_types(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    from fgvc_cli.formats.parquet import ParquetSink

    info = fake_info(EXTRAS, parts=1)
    write(ParquetSink(tmp_path / "p.parquet", extras=EXTRAS), info)
    table = pq.read_table(tmp_path / "p.parquet")
    rows, good = table.to_pylist(), blocks(info)[1]
    assert [row["path"] for row in rows] == NAMES
    assert (rows[2]["label"], rows[2]["width"]) == ("cat", 640)
    assert rows[2]["box_x1"] == good.box[0, 0] and rows[2]["part_1_y2"] == good.parts[0, 0, 3]
    np.testing.assert_array_equal(rows[3]["attention"], good.attention[1])
    np.testing.assert_array_equal(np.float32(rows[3]["embedding"]), good.embedding[1])
    assert rows[3]["crop"] == good.crop[1]
    for row in (rows[0], rows[4]):
        assert {row[k] for k in ("label", "prob", "width", "box_x1", "attention", "crop", "logits")} == {None}
    assert json.loads(table.schema.metadata[b"fgvc"])["class_names"] == ["cat", "dog", "cow"]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(FgvcError, match=r"pip install 'fgvc\[parquet\]'"):
        Outputs((tmp_path / "p.parquet",)).check()


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


HOSTILE = [
    "../../up.jpg",
    "/root.jpg",
    "a.jpg",
    "a.png",
    "a",
    "a.jpg/b.png",
    "d/./e.jpg",
    "x" * 254,
    "a.jpg",
    "\\..\\z",
]


def test_names_of_crops_stay_inside_and_never_clash(tmp_path):
    info = fake_info(("crop",))
    block = fake_block(info, HOSTILE)
    (tmp_path / "in").mkdir()
    write(CropsFolder(tmp_path / "in" / "crops"), info, [block])
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["crops"]
    folder = tmp_path / "in" / "crops"
    assert files_below(folder) == sorted(
        ["__/__/up.jpg.jpg", "__/z.jpg", "a.jpg", "a.jpg.jpg", "a.png.jpg", "d/e.jpg.jpg", "root.jpg.jpg"]
        + ["row-5.jpg", "row-7.jpg", "row-8.jpg"]
    )
    assert (folder / "a.png.jpg").read_bytes() == block.crop[3]
    assert (folder / "row-8.jpg").read_bytes() == block.crop[8]


def test_safe_names():
    assert [safe_name(name) for name in ("", "..", "/", "C:\\a\\b.jpg", "s3://b/k.jpg", "a\0b")] == (
        ["_", "__", "_", "C:/a/b.jpg", "s3:/b/k.jpg", "a_b"]
    )


def test_maps_are_16_bit_pngs_of_good_rows(tmp_path):
    info = fake_info(("attention",))
    write(MapsFolder(tmp_path / "maps"), info)
    assert files_below(tmp_path / "maps") == ["b.jpg.png", "é 鳥.jpg.png"]
    with Image.open(io.BytesIO((tmp_path / "maps" / "b.jpg.png").read_bytes())) as image:
        assert image.mode == "I;16"
        expected = blocks(info)[1].attention[1].astype(np.float32) * 65535
        np.testing.assert_allclose(np.asarray(image), expected, atol=0.5)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    sink = CropsFolder(tmp_path / "crops")
    with pytest.raises(KeyboardInterrupt), sink:
        sink.write(fake_block(fake_info(("crop",)), ["a.jpg"]))
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_outputs_are_checked_without_touching_anything(tmp_path):
    (tmp_path / "crops").mkdir()
    Outputs((tmp_path / "p.csv",), crops_dir=tmp_path / "crops").check()
    (tmp_path / "crops" / "mine.jpg").touch()
    with pytest.raises(FgvcError, match="replaces no folder"):
        Outputs((tmp_path / "p.csv",), crops_dir=tmp_path / "crops").check(overwrite=True)
    with pytest.raises(FgvcError, match="named twice"):
        Outputs((tmp_path / "p.csv", tmp_path / "." / "p.csv")).check()
    assert Outputs((tmp_path / "p.h5",), frozenset(("logits",)), tmp_path / "c").needed() == (
        "crop",
        "logits",
    )
