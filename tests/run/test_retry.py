"""A finished run taken apart into completed rows, whatever ends that; and whether it is the same run."""

import dataclasses

import pytest
from fake_predictor import fake_block, fake_info

from fgvc_cli.errors import FgvcError
from fgvc_cli.formats import h5
from fgvc_cli.formats.h5 import H5Sink
from fgvc_cli.formats.outputs import Outputs
from fgvc_cli.run import retry
from fgvc_cli.run.folder import RunFolder, placed_outputs, run_identity
from fgvc_cli.run.parts import list_parts, read_blocks
from fgvc_cli.run.retry import finished_setting, is_apart, take_apart

NAMES = [f"{i}.jpg" for i in range(7)]


@pytest.fixture
def info():
    return dataclasses.replace(fake_info(), settings={"cascade": None, "precision": "bfloat16"})


@pytest.fixture
def finished(tmp_path, info, monkeypatch):
    """A finished run of four shards."""
    monkeypatch.setattr(h5, "READ_ROWS", 2)
    out = tmp_path / "p.h5"
    with H5Sink(out) as sink:
        sink.begin(info)
        sink.write(fake_block(info, NAMES))
    return out


def opened(tmp_path, info):
    return RunFolder(tmp_path / "p.h5.partial", run_identity(info, ["photos"]))


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_kill_while_it_is_taken_apart_begins_that_anew(tmp_path, info, finished, monkeypatch, done):
    write, calls = retry.write_part, []

    def killed(folder, block):
        if len(calls) == done:
            raise RuntimeError("killed")
        calls.append(write(folder, block))

    monkeypatch.setattr(retry, "write_part", killed)
    with pytest.raises(RuntimeError), opened(tmp_path, info) as folder:
        take_apart(Outputs((finished,)), folder, info)
    assert len(list_parts(folder.path)) == done and not is_apart(folder.path)
    assert placed_outputs(folder.root) == set()
    monkeypatch.setattr(retry, "write_part", write)
    with opened(tmp_path, info) as folder:
        take_apart(Outputs((finished,)), folder, info)
        assert is_apart(folder.path)
        shards = list_parts(folder.path)
        assert [path for block in read_blocks(shards) for path in block.path] == NAMES
        assert placed_outputs(folder.root) == {str(finished.resolve())}
        # Rows that are there are not taken apart again.
        finished.unlink()
        take_apart(Outputs((finished,)), folder, info)
        assert list_parts(folder.path) == shards


def test_the_setting_that_differs_is_named(tmp_path, info, finished):
    other = dataclasses.replace(info, settings={"cascade": None, "precision": "float32"})
    with (
        pytest.raises(FgvcError, match='its settings.precision is "bfloat16", this run\'s "float32"'),
        opened(tmp_path, other) as folder,
    ):
        take_apart(Outputs((finished,)), folder, other)
    assert not folder.root.exists()


def test_the_precision_of_a_finished_run_is_known_from_its_h5(tmp_path, finished):
    table = tmp_path / "p.csv"
    table.touch()
    assert finished_setting([table, finished], "precision") == "bfloat16"
    assert finished_setting([table], "precision") is None
    assert finished_setting([tmp_path / "none.h5"], "precision") is None
