"""Devices and precisions: what this machine has, how much fits into memory, what errors mean."""

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from common.errors import DeviceError
from common.terminal import count

# What ResNet-50 keeps in memory at its peak, in res2: 52 values per pixel (input, shortcut, inner
# and output), and the workspace of the convolution.
VALUES_PER_PIXEL = 65
CPU_BYTES_PER_PIXEL = 200  # in float32, where sums overwrite the shortcut: measured 173
MEMORY_SHARE = 0.6  # of what is free, for one batch
# The stem gives 16 values per pixel: beyond this a tensor has 2**31 values, which cuDNN refuses.
LARGEST_PIXELS = 2**27 - 1
BATCH_PIXELS = 32 * 640 * 512  # larger batches are not faster; see bench/schedule.py
LARGEST_BATCH = 256
# Of images that are decoded or wait for a batch: 3 bytes per pixel, about 10 while decoding. A GPU
# gets more: 100 megapixels are only 8 photographs of 12 megapixels.
WAITING_PIXELS_CPU, WAITING_PIXELS_GPU = 100_000_000, 400_000_000
WAITING_SHARE = 0.1  # of the free main memory, for these
UNKNOWN_MEMORY_BYTES = 4 << 30
CGROUP = Path("/sys/fs/cgroup")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")  # exists where the driver is loaded
# cuDNN 9 has other names than cuDNN 8; without memory for a workspace it finds no engine.
OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED", "unable to find an engine")
TORCH_THREADS = torch.get_num_threads()  # as found: physical cores, or OMP_NUM_THREADS
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(name: str) -> torch.device:
    """The device that `--device` names; auto is the first CUDA GPU, or else the CPU."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind == "cpu" and not index:
        return torch.device("cpu")
    if kind != "cuda" or (":" in name and not index.isdecimal()):
        raise DeviceError(f"--device {name!r} is not one of auto, cpu, cuda, cuda:1.")
    if torch.version.cuda is None and torch.version.hip is None:
        raise DeviceError(
            f"--device {name}: torch {torch.__version__} is built without CUDA. Install another"
            " build (https://pytorch.org/get-started/locally), or use --device cpu."
        )
    if not torch.cuda.is_available():
        raise DeviceError(
            f"--device {name}: torch finds no CUDA GPU. Check whether `nvidia-smi` lists one, or"
            " use --device cpu."
        )
    gpus = torch.cuda.device_count()
    if int(index or 0) >= gpus:
        last = f" to cuda:{gpus - 1}" if gpus > 1 else ""
        raise DeviceError(
            f"--device {name}: this machine has {count(gpus, 'GPU')}. Use cuda:0{last}."
        )
    return torch.device("cuda", int(index or 0))


def why_no_gpu() -> str | None:
    """Why torch does not use the NVIDIA GPU of this machine, in a sentence; None without a GPU."""
    if not NVIDIA_DRIVER.exists() or torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return (
            f"This machine has an NVIDIA GPU, but torch {torch.__version__} is built without CUDA."
            " To use the GPU, install another build (https://pytorch.org/get-started/locally)."
        )
    try:
        torch.cuda.init()
    except RuntimeError as error:  # such as: the driver is too old
        said = str(error).partition("\n")[0].rstrip(".")
        return f"This machine has an NVIDIA GPU that torch {torch.__version__} cannot use: {said}."
    return f"This machine has an NVIDIA GPU that torch {torch.__version__} does not find."


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU ran out of memory: by type if torch says so, by text if cuDNN or cuBLAS do."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        word in str(error) for word in OUT_OF_MEMORY
    )


@contextlib.contextmanager
def gpu_errors(device: torch.device) -> Iterator[None]:
    """Raise as DeviceError that a GPU is full, or that another program uses it exclusively."""
    try:
        yield
    except RuntimeError as error:
        if device.type != "cuda":
            raise
        if is_out_of_memory(error):
            raise DeviceError(
                f"{device} has too little free memory for the models: end other programs that use"
                " it (`nvidia-smi` lists them), or choose another --device."
            ) from error
        if "busy or unavailable" in str(error):
            raise DeviceError(
                f"Another program uses {device} exclusively: end it (`nvidia-smi` lists it), or"
                " choose another --device."
            ) from error
        raise


def fastest_precision(device: torch.device) -> str:
    """The precision that auto tries first.

    On a GPU it is float16, whose mantissa has 3 bits more than bfloat16's. On a CPU it is float32,
    which keeps the numbers of the original packages to 1e-5.
    """
    return "float16" if device.type == "cuda" else "float32"


def bfloat16_is_faster() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32: it has AVX512-BF16 or AMX."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has no public ones
    return any(getattr(torch.cpu, name, bool)() for name in checks)


def check_precision(name: str, device: torch.device) -> None:
    """Raise DeviceError unless the device can compute in the precision `name`."""
    if name != "auto" and name not in PRECISIONS:
        raise DeviceError(f"--precision {name!r} is not one of auto, {', '.join(PRECISIONS)}.")
    if name == "float16" and device.type == "cpu":
        raise DeviceError("--precision float16 needs a GPU: use float32 or bfloat16 on a CPU.")
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)
    if name == "bfloat16" and device.type == "cpu" and not supported():
        raise DeviceError("--precision bfloat16 needs a GPU or a CPU with AVX-512: use float32.")


def available_memory() -> int:
    """Bytes of main memory that this process may still use: the least of system and cgroup."""
    limits = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        limits.append(_fields(meminfo, ":")["MemAvailable"] * 1024)
    for directory, limit, usage in (
        ("", "memory.max", "memory.current"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        cgroup = CGROUP / directory
        try:
            used = int((cgroup / usage).read_text())
            # Cached files count as used there and give way when memory is needed.
            used -= _fields(cgroup / "memory.stat", " ").get("inactive_file", 0)
            limits.append(int((cgroup / limit).read_text()) - used)
        except (OSError, ValueError):  # no such cgroup, or "max"
            continue
    return max(0, min(limits, default=UNKNOWN_MEMORY_BYTES))


def _fields(path: Path, separator: str) -> dict[str, int]:
    lines = (line.split(separator, 1) for line in path.read_text().splitlines())
    return {name: int(rest.split()[0]) for name, rest in lines if rest.split()[0].isdecimal()}


def cores() -> int:
    """How many cores this process may use: the least of torch's count, affinity and cgroup."""
    counts = [TORCH_THREADS]
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        counts.append(len(os.sched_getaffinity(0)))
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        counts.append(math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no cgroup, or "max"
        pass
    return max(1, min(counts))


class PixelBudget:
    """Limits the pixels of the images that threads compute at the same time to `capacity`.

    An image of more pixels waits until it is the only one.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._used = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def spend(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + pixels <= self.capacity)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


def waiting_pixels(device: torch.device) -> int:
    """How many pixels of decoded images may wait in main memory for a device."""
    if device.type == "cpu":
        return WAITING_PIXELS_CPU
    fitting = int(WAITING_SHARE * available_memory()) // 3
    return max(WAITING_PIXELS_CPU, min(WAITING_PIXELS_GPU, fitting))


def free_memory(device: torch.device) -> int:
    """Bytes that tensors on `device` may still use, including what torch keeps for reuse."""
    if device.type != "cuda":
        return available_memory()
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + kept


def pixels_that_fit(device: torch.device, dtype: torch.dtype) -> int:
    """How many pixels ResNet-50 can compute at once in the free memory of `device`."""
    on_cpu = device.type == "cpu"
    per_pixel = CPU_BYTES_PER_PIXEL if on_cpu else VALUES_PER_PIXEL * dtype.itemsize
    return min(LARGEST_PIXELS, int(MEMORY_SHARE * free_memory(device)) // per_pixel)
