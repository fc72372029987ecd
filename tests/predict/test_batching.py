"""Which batch the probe takes, and how images are grouped."""

import pytest
import torch

from fgvc_cli.engine.device import best_batch_size
from fgvc_cli.predict.decoding import delayed, until_full

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_larger_batch_is_taken_only_where_it_is_faster():
    assert best_batch_size(lambda size: 0.001 * size, CPU) == 1
    assert best_batch_size(lambda size: 0.001 * size + 0.01, CPU) == 32
    assert best_batch_size(lambda size: 0.001 * max(size, 8), CPU) == 8


def test_a_slow_model_is_not_probed_for_long():
    asked = []

    def seconds(size):
        asked.append(size)
        return 1.0 * size

    assert best_batch_size(seconds, CPU) == 1
    assert asked == [1]


def test_on_cuda_it_doubles_until_memory_or_speed_end():
    def seconds(size):
        if size > 64:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return 0.001 * size + 0.01

    assert best_batch_size(seconds, CUDA) == 64
    asked = []
    assert best_batch_size(lambda size: asked.append(size) or max(size, 16) * 0.001, CUDA) == 16
    assert asked[-1] == 64


def test_a_model_that_fails_otherwise_or_at_once_is_not_hidden():
    def fails(size):
        raise RuntimeError("shapes differ")

    def too_large(size):
        raise MemoryError

    with pytest.raises(RuntimeError, match="shapes"):
        best_batch_size(fails, CPU)
    with pytest.raises(MemoryError):
        best_batch_size(too_large, CPU)


def test_the_probe_gives_its_memory_back(monkeypatch):
    released = []
    monkeypatch.setattr("fgvc_cli.engine.device.release_memory", released.append)
    best_batch_size(lambda size: 0.001 * size, CUDA)
    assert released == [CUDA]


def test_groups_are_full_of_what_counts_and_bounded():
    groups = list(until_full([1, 0, 1, 1, 0, 0, 1], lambda: 2, bool))
    assert groups == [[1, 0, 1], [1, 0, 0, 1]]
    assert [len(group) for group in until_full([0] * 10, lambda: 1, bool)] == [4, 4, 2]


def test_groups_and_delay_take_no_more_than_they_need():
    taken = []

    def source():
        for i in range(100):
            taken.append(i)
            yield i

    groups = until_full(source(), lambda: 3, lambda i: True)
    assert next(groups) == [0, 1, 2] and len(taken) == 3
    late = delayed(groups, 1)
    assert next(late) == [3, 4, 5] and len(taken) == 9
    assert [*delayed("abc", 0)] == [*delayed("abc", 2)] == [*delayed("abc", 9)] == ["a", "b", "c"]
