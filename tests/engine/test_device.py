import pytest
import torch

from fgvc_cli.engine.device import computing, is_out_of_memory, pick_device, usual_precision
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


CUDA = torch.device("cuda")


def float32_kinds():
    return [kind.fp32_precision for kind in (torch.backends.cuda.matmul, torch.backends.cudnn.conv)]


@pytest.mark.parametrize(("precision", "expected"), [("float32", "ieee"), ("bf16", "tf32"), ("fp16", "tf32")])
def test_float32_is_strict_and_the_rest_of_bfloat16_is_tf32(monkeypatch, precision, expected):
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    before = float32_kinds()
    with computing(CUDA, precision):
        assert float32_kinds() == [expected] * 2
        assert torch.is_autocast_enabled("cuda") == (precision != "float32")
    assert float32_kinds() == before
    with computing(torch.device("cpu"), precision):
        assert float32_kinds() == before


@pytest.mark.parametrize(("bf16", "expected"), [(True, "bf16"), (False, "float32")])
def test_auto_is_bfloat16_on_a_card_that_has_it(monkeypatch, bf16, expected):
    monkeypatch.setattr("fgvc_cli.engine.device.has_bf16", lambda device: bf16)
    assert usual_precision(CUDA) == expected
    assert usual_precision(torch.device("cpu")) == "float32"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("x"),
        MemoryError(),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("NCCL Error 1: unhandled cuda error, Cuda failure 2 'out of memory'"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
    ],
)
def test_every_way_to_say_out_of_memory_is_known(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [ValueError("out of memory"), RuntimeError("size mismatch")])
def test_other_errors_are_not_out_of_memory(error):
    assert not is_out_of_memory(error)
