"""Rows of n shards come out in the order of the walk; an incomplete run is not merged."""

import dataclasses
import json
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
import pytest
from fake_predictor import begin_shards, fake_images, fake_info, outputs_in, run

from fgvc_cli.errors import FgvcError
from fgvc_cli.formats.outputs import Outputs
from fgvc_cli.run.folder import ShardOf, ShardWalk, discard, read_record, write_record
from fgvc_cli.run.merge import merge_shards
from fgvc_cli.run.parts import list_parts
from fgvc_cli.sources.find import Found

EXTRAS = ("attention", "crop")


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("rows", [1, 20, 41])
def test_shards_together_are_the_run_in_one_piece(tmp_path, count, rows):
    for name in ("whole", "shards"):
        (tmp_path / name).mkdir()
    whole, outputs = outputs_in(tmp_path / "whole"), outputs_in(tmp_path / "shards")
    run(whole, rows)
    root = begin_shards(outputs.files[0], count, rows, fake_info(EXTRAS))
    statuses, where = merge_shards(root, outputs)
    assert statuses.total() == rows and where == outputs
    assert outputs.files[0].read_bytes() == whole.files[0].read_bytes()
    with h5py.File(outputs.files[1]) as ours, h5py.File(whole.files[1]) as theirs:
        for name in theirs:
            for x, y in zip(ours[name][:], theirs[name][:], strict=True):
                np.testing.assert_array_equal(x, y, name)
    names = [sorted(p.name for p in (tmp_path / n / "crops").rglob("*.jpg")) for n in ("whole", "shards")]
    assert names[0] == names[1]
    assert not root.exists()


def test_a_missing_or_incomplete_shard_is_named(tmp_path):
    out = tmp_path / "p.csv"
    root = begin_shards(out, 3, 20, complete=(0, 2))
    with pytest.raises(FgvcError, match="shard-1-of-3 is not complete. Run --shard 1/3 again"):
        merge_shards(root, Outputs((out,)))
    for path in sorted((root / "shard-1-of-3").iterdir()):
        path.unlink()
    (root / "shard-1-of-3").rmdir()
    with pytest.raises(FgvcError, match="shard-1-of-3 is missing"):
        merge_shards(root, Outputs((out,)))
    assert not out.exists()


def test_shards_of_different_runs_are_refused(tmp_path):
    out = tmp_path / "p.csv"
    root = begin_shards(out, 2, 20)
    path = root / "shard-1-of-2" / "run.json"
    document = json.loads(path.read_text())
    other = document["run"] | {"weights_sha256": "1" * 64}
    path.write_text(json.dumps(document | {"run": other}))
    with pytest.raises(FgvcError, match="weights_sha256 is .1111.*not .0000"):
        merge_shards(root, Outputs((out,)))
    path.write_text(json.dumps(document))
    (root / "shard-0-of-3").mkdir()
    (root / "shard-0-of-3" / "run.json").write_text("{}")
    with pytest.raises(FgvcError, match="shards of 2 and of 3"):
        merge_shards(root, Outputs((out,)))


def test_shards_that_saw_different_lists_are_refused(tmp_path):
    out = tmp_path / "p.csv"
    root = begin_shards(out, 2, 20)
    folder = root / "shard-1-of-2"
    record = read_record(folder)
    write_record(folder, dataclasses.replace(record, images=None))
    with pytest.raises(FgvcError, match="different lists"):
        merge_shards(root, Outputs((out,)))
    write_record(folder, dataclasses.replace(record, complete={"rows": 7, "statuses": {"ok": 7}}))
    with pytest.raises(FgvcError, match="different lists"):
        merge_shards(root, Outputs((out,)))


def test_lists_of_equal_length_that_differ_are_told_apart(tmp_path):
    """One image came and one went between the shards: their counts fit."""
    root = begin_shards(tmp_path / "p.csv", 2, 20)
    discard(root / "shard-1-of-2")
    begin_shards(tmp_path / "other.csv", 2, 20, images=[*fake_images(21)][1:])
    (tmp_path / "other.csv.partial" / "shard-1-of-2").rename(root / "shard-1-of-2")
    with pytest.raises(
        FgvcError, match=r"shard-1-of-2 and shard-0-of-2 saw .*--restart, or .*@list"
    ) as caught:
        merge_shards(root, Outputs((tmp_path / "p.csv",)))
    assert "\n" not in str(caught.value) and not (tmp_path / "p.csv").exists()


def test_a_shard_sees_the_names_behind_its_last_row():
    def seen(names, index):
        walk = ShardWalk(iter([Found(Path(name), name) for name in names]), ShardOf(index, 3))
        return [image.name for image in islice(walk, 1)], walk.seen()

    assert seen("abcd", 1) == (["b"], seen("abcd", 0)[1])
    assert seen("abcd", 1)[1]["total"] == 4
    assert seen("abcd", 1)[1] != seen("abce", 1)[1]


def test_a_folder_without_a_run_is_no_shard(tmp_path):
    root = begin_shards(tmp_path / "p.csv", 2, 20)
    (root / "shard-0-of-3").mkdir()
    assert merge_shards(root, Outputs((tmp_path / "p.csv",)))[0].total() == 20


def test_rows_that_are_gone_stop_the_merge(tmp_path):
    out = tmp_path / "p.csv"
    root = begin_shards(out, 2, 40)
    for path in list_parts(root / "shard-1-of-2")[-1:]:
        path.unlink()
    with pytest.raises(FgvcError, match="shard-1-of-2 lacks rows 16 to 19. Run --shard 1/2 again"):
        merge_shards(root, Outputs((out,)))
    assert not out.exists() and root.exists()


def test_extras_that_the_rows_do_not_carry_are_refused(tmp_path):
    out = tmp_path / "p.h5"
    root = begin_shards(out, 2, 20)
    with pytest.raises(FgvcError, match="carry no crop"):
        merge_shards(root, Outputs((out,), frozenset(("crop",))))


def test_shards_may_differ_in_batch_size_which_is_recorded(tmp_path):
    root = begin_shards(tmp_path / "p.h5", 2, 20, fake_info(batch_size=16, device="cuda"))
    document = root / "shard-1-of-2" / "run.json"
    document.write_text(document.read_text().replace('"batch_size": 16', '"batch_size": 64'))
    assert merge_shards(root, Outputs((tmp_path / "p.h5",)))[0].total() == 20
    with h5py.File(tmp_path / "p.h5") as file:
        assert json.loads(file.attrs["settings"]) == {"batch_size": [16, 64], "device": "cuda"}


def test_shards_of_different_devices_are_refused(tmp_path):
    root = begin_shards(tmp_path / "p.csv", 2, 20, fake_info(device="cuda"))
    document = root / "shard-1-of-2" / "run.json"
    document.write_text(document.read_text().replace('"cuda"', '"cpu"'))
    with pytest.raises(FgvcError, match='settings.device is "cpu", not "cuda"'):
        merge_shards(root, Outputs((tmp_path / "p.csv",)))
