import pytest
import torch

from fgvc_cli.engine.device import pick_device
from fgvc_cli.errors import EXIT_USAGE, FgvcError


def pretend_cuda(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(("count", "expected"), [(0, "cpu"), (1, "cuda")])
def test_auto_takes_cuda_where_there_is_one(monkeypatch, count, expected):
    pretend_cuda(monkeypatch, count)
    assert pick_device("auto") == torch.device(expected)
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_cuda_that_is_not_there_names_the_way_out(monkeypatch, name, count):
    pretend_cuda(monkeypatch, count)
    with pytest.raises(FgvcError, match="--device cpu"):
        pick_device(name)


def test_cuda_by_number(monkeypatch):
    pretend_cuda(monkeypatch, 2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", ""])
def test_other_names_are_usage_errors(name):
    with pytest.raises(FgvcError) as caught:
        pick_device(name)
    assert caught.value.exit_code == EXIT_USAGE
