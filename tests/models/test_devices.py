"""Devices, precisions, cores and memory."""

import threading

import pytest
import torch

from common.errors import DeviceError
from models.device import devices


def test_bfloat16_needs_a_cpu_that_has_it(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(DeviceError, match="bfloat16 needs a GPU or a CPU with AVX-512"):
        devices.check_precision("bfloat16", torch.device("cpu"))
    devices.check_precision("auto", torch.device("cpu"))


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("gpu", "not one of auto"),
        ("cuda:x", "not one of auto"),
        ("cpu:1", "not one of auto"),
        ("", "not one of"),
    ],
)
def test_unknown_devices(device, said):
    with pytest.raises(DeviceError, match=said):
        devices.choose_device(device)


def test_cuda_in_a_build_without_it(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(DeviceError) as refused:
        devices.choose_device("cuda")
    assert refused.value.message == (
        f"--device cuda: torch {torch.__version__} is built without CUDA. Install another build "
        "(https://pytorch.org/get-started/locally), or use --device cpu."
    )


def test_cuda_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.choose_device("auto") == torch.device("cpu")
    with pytest.raises(DeviceError) as refused:
        devices.choose_device("cuda:0")
    assert refused.value.message == (
        "--device cuda:0: torch finds no CUDA GPU. Check whether `nvidia-smi` lists one, or use "
        "--device cpu."
    )


def test_cuda_index_that_does_not_exist(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert devices.choose_device("auto") == torch.device("cuda:0")
    assert devices.choose_device("cuda") == torch.device("cuda:0")
    with pytest.raises(DeviceError) as refused:
        devices.choose_device("cuda:1")
    assert refused.value.message == "--device cuda:1: this machine has 1 GPU. Use cuda:0."
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(DeviceError) as refused:
        devices.choose_device("cuda:4")
    assert refused.value.message == (
        "--device cuda:4: this machine has 4 GPUs. Use cuda:0 to cuda:3."
    )


@pytest.mark.parametrize(
    ("name", "said"), [("half", "not one of auto"), ("float16", "needs a GPU")]
)
def test_precisions_that_a_cpu_has_not(name, said):
    with pytest.raises(DeviceError, match=said):
        devices.check_precision(name, torch.device("cpu"))


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
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert devices.cores() == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert devices.cores() == 32


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
    thread.join(10)
    assert order == ["small", "large"] and not thread.is_alive()


def test_a_gpu_that_torch_cannot_use_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "NVIDIA_DRIVER", tmp_path / "version")
    assert devices.why_no_gpu() is None
    (tmp_path / "version").touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA" in devices.why_no_gpu()

    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    assert "too old (found version 11040)" in devices.why_no_gpu()


FULL = (
    "cuda:0 has too little free memory for the models: end other programs that use it "
    "(`nvidia-smi` lists them), or choose another --device."
)
TAKEN = (
    "Another program uses cuda:0 exclusively: end it (`nvidia-smi` lists it), or choose another "
    "--device."
)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", FULL),
        ("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", FULL),
        ("CUBLAS_STATUS_ALLOC_FAILED", FULL),
        ("CUDA error: all CUDA-capable devices are busy or unavailable", TAKEN),
    ],
)
def test_a_gpu_without_room_is_one_sentence(said, expected):
    with pytest.raises(DeviceError) as refused, devices.gpu_errors(torch.device("cuda:0")):
        raise RuntimeError(said)
    assert refused.value.message == expected
    with pytest.raises(RuntimeError, match="illegal"), devices.gpu_errors(torch.device("cuda:0")):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_more_images_wait_for_a_gpu_if_memory_allows(monkeypatch):
    gpu = torch.device("cuda:0")
    for gigabytes, expected in ((1, 100_000_000), (6, 200_000_000), (100, 400_000_000)):
        monkeypatch.setattr(devices, "available_memory", lambda size=gigabytes: size * 10**9)
        assert devices.waiting_pixels(gpu) == expected
        assert devices.waiting_pixels(torch.device("cpu")) == 100_000_000
