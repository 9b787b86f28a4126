"""Devices, precisions, cores and memory."""

import threading

import pytest
import torch

from common.errors import DeviceError
from models import devices
from testing.servers.processes import LONGEST_S

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
TOO_OLD = "The NVIDIA driver on your system is too old (found version 11040)."


@pytest.fixture
def torch_with(monkeypatch):
    """Lets torch look as if it were built for a version of CUDA and found so many GPUs."""

    def change(cuda, gpus=0, error=None):
        def init():
            if error:
                raise RuntimeError(error)

        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "init", init)

    return change


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:", "cpu:1", ""])
def test_unknown_devices(device):
    with pytest.raises(DeviceError, match="not one of auto"):
        devices.choose_device(device)


@pytest.mark.parametrize(
    ("cuda", "error", "said"),
    [
        (None, None, "is built without CUDA"),
        ("13.0", None, "it finds no GPU"),
        ("13.0", TOO_OLD, "too old (found version 11040)"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_explained(
    cuda, error, said, torch_with, tmp_path, monkeypatch
):
    monkeypatch.setattr(devices, "NVIDIA_DRIVER", tmp_path)
    torch_with(cuda, 0, error)
    assert devices.has_unused_gpu()
    assert devices.choose_device("auto") == CPU
    with pytest.raises(DeviceError) as refused:
        devices.choose_device("cuda:0")
    assert said in refused.value.message and "--device cpu" in refused.value.message
    assert said in devices.why_no_gpu()


def test_the_gpus_that_there_are(torch_with):
    torch_with("13.0", 2)
    for name, number in (("auto", 0), ("cuda", 0), ("cuda:1", 1)):
        assert devices.choose_device(name) == torch.device("cuda", number)
    with pytest.raises(DeviceError, match="there are 2 GPUs"):
        devices.choose_device("cuda:2")
    assert devices.why_no_gpu() is None and not devices.has_unused_gpu()


@pytest.mark.parametrize(
    ("name", "said"),
    [("half", "not one of auto"), ("float16", "needs a GPU"), ("bfloat16", "a CPU with AVX-512")],
)
def test_precisions_that_a_cpu_has_not(name, said, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(DeviceError, match=said):
        devices.choose_precision(name, CPU)
    assert devices.choose_precision("auto", CPU) is None


def test_available_memory_honours_a_cgroup(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    without = devices.available_memory()
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    assert devices.available_memory() == 1_000_000 < without
    (tmp_path / "memory.max").write_text("max\n")
    assert devices.available_memory() > 1_000_000


def test_cores_honour_a_quota(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    monkeypatch.setattr(devices, "TORCH_THREADS", 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(32)), raising=False)
    assert devices.cores() == 32
    for quota, expected in (("150000", 2), ("max", 32)):
        (tmp_path / "cpu.max").write_text(f"{quota} 100000\n")
        assert devices.cores() == expected


def test_pixel_budget_lets_a_large_image_go_alone():
    budget = devices.PixelBudget(100)
    order = []

    def large():
        with budget.spend(500):
            order.append("large")

    with budget.spend(60):
        thread = threading.Thread(target=large)
        thread.start()
        with budget.spend(40):
            order.append("small")
    thread.join(LONGEST_S)
    assert order == ["small", "large"] and not thread.is_alive()


@pytest.mark.parametrize(
    "said",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDA error: all CUDA-capable devices are busy or unavailable",
    ],
)
def test_a_gpu_without_room_is_one_sentence(said):
    with pytest.raises(DeviceError) as refused, devices.gpu_errors(GPU):
        raise RuntimeError(f"{said}.\nMore")
    assert refused.value.message.startswith("cuda:0 has no room for the models")
    assert said in refused.value.message and "\n" not in refused.value.message
    for device, other in ((GPU, "CUDA error: an illegal memory access"), (CPU, said)):
        with pytest.raises(RuntimeError, match=other[:20]), devices.gpu_errors(device):
            raise RuntimeError(other)


def test_more_images_wait_for_a_gpu_if_memory_allows(monkeypatch):
    for gigabytes, expected in ((1, 100_000_000), (6, 200_000_000), (100, 400_000_000)):
        monkeypatch.setattr(devices, "available_memory", lambda size=gigabytes: size * 10**9)
        assert devices.waiting_pixels(GPU) == expected
        assert devices.waiting_pixels(CPU) == 100_000_000
